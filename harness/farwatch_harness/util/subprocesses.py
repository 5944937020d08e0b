# SPDX-License-Identifier: Apache-2.0
"""Running other programs: a failure becomes one line that names the program and gives its last
words."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from farwatch_harness.util.errors import HarnessError


def last_words(text: str, lines: int = 3) -> str:
    """The last lines of a program's output, on one line."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> str:
    """Runs a program to its end and returns its output; HarnessError when it fails or is not
    there."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except FileNotFoundError:
        raise HarnessError(f"{words[0]} is not installed") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise HarnessError(
            f"{' '.join(words[:4])} failed ({done.returncode}): {last_words(output)}"
        )
    return output


def lines_of(
    argv: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
) -> Iterator[str]:
    """Runs a program and yields its output line by line, keeping all of it in `log`; HarnessError
    when it fails.

    `inherited` are file descriptors that the program and its children keep open.
    """
    words = [str(word) for word in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as keep,
        subprocess.Popen(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                keep.write(line)
                yield line.rstrip("\n")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise HarnessError(f"{' '.join(words[:2])} failed ({process.returncode}), see {log}")
