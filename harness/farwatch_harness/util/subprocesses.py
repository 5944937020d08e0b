# SPDX-License-Identifier: Apache-2.0
"""Runs other programs; a failure is one line with the program's name and last output."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from farwatch_harness.util.errors import HarnessError


def last_lines(text: str, lines: int = 3) -> str:
    """Return the last lines of a program's output, joined into one line."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> str:
    """Run a program until it exits; return its output.

    HarnessError: the program fails, or is not installed.
    """
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
            f"{' '.join(words[:4])} failed ({done.returncode}): {last_lines(output)}"
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
    """Run a program; yield its output line by line, and write all of it to `log`.

    inherited: file descriptors that the program and its children keep open. HarnessError: the
    program fails.
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
