# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing with atheris: python -m tests.fuzz --minutes 5, or make fuzz.

Each target starts with the kept corpus and goes on with what reaches new branches, which stays in
build/fuzz. An input that finds a fault is written there, too, and the command fails.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import atheris
import coverage

#: Hands the rest of the command line to libFuzzer, in a process of its own.
LIBFUZZER = "--libfuzzer"
INSTRUMENTED = (
    atheris.instrument_imports(include=["farwatchd"])
    if LIBFUZZER in sys.argv
    else contextlib.nullcontext()
)

with INSTRUMENTED:
    from tests.fuzz.targets import TARGETS, Target, read_corpus, write_corpus

#: A branch: the file, and the lines from which and to which it goes.
Arc = tuple[str, int, int]
BUILD = Path(__file__).parents[3] / "build" / "fuzz"
#: Seconds for one input, and its bytes at most.
INPUT_LIMIT, LONGEST = 20, 4096
#: What libFuzzer prints of a target's whole run.
EDGES, RUNS = re.compile(r"\bcov: (\d+)"), re.compile(r"number_of_executed_units: (\d+)")


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--only", choices=TARGETS, action="append", help="a target; repeatable")
    parser.add_argument(
        "--keep", action="store_true", help="write the corpus of the repository again, minimised"
    )
    parser.add_argument(LIBFUZZER, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.only or list(TARGETS)
    if options.libfuzzer is not None:
        run_here(chosen[0], options.libfuzzer)
    found = [fuzz(name, options.minutes * 60 / len(chosen)) for name in chosen if options.minutes]
    if options.keep:
        for name in chosen:
            keep(name)
    return int(any(found))


def run_here(name: str, arguments: list[str]) -> None:
    """Hand this process to libFuzzer, which ends it."""
    target = TARGETS[name]()
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


def libfuzzer(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run libFuzzer in a process of its own. Its output goes to build/fuzz/NAME.log."""
    command = [sys.executable, "-m", "tests.fuzz", "--only", name, LIBFUZZER]
    done = subprocess.run(
        [*command, *arguments, f"-timeout={INPUT_LIMIT}", f"-max_len={LONGEST}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    (BUILD / f"{name}.log").write_text(done.stdout)
    return done


def fuzz(name: str, seconds: float) -> int:
    """Fuzz a target for some seconds; print a line, and return 1 if a fault was found."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    unpack(name, folder)
    done = libfuzzer(
        name,
        f"-max_total_time={seconds:.0f}",
        f"-artifact_prefix={BUILD}/{name}-",
        "-print_final_stats=1",
        folder,
    )
    edges, runs = EDGES.findall(done.stdout), RUNS.search(done.stdout)
    print(
        f"{name}: {runs[1] if runs else 0} inputs, {edges[-1] if edges else 0} edges,"
        f" {len(list(folder.iterdir()))} in the corpus"
        + (f"; FAILED, see {BUILD}/{name}.log" if done.returncode else ""),
        flush=True,
    )
    return int(done.returncode != 0)


def unpack(name: str, folder: Path) -> None:
    """Write the kept corpus as the files that libFuzzer reads."""
    for number, data in enumerate(read_corpus(name)):
        (folder / f"kept-{number}").write_bytes(data)


def keep(name: str) -> None:
    """Write the kept corpus again: small inputs that reach all branches that any is known to."""
    unpack(name, BUILD / name)
    known = {path.read_bytes() for path in (BUILD / name).iterdir()}
    target = TARGETS[name]()
    # The first input also reaches what is done once.
    target.run(b"")
    reached: dict[bytes, set[Arc]] = {}
    seen: set[Arc] = set()
    for data in sorted(known, key=len):
        arcs = arcs_of(target, data)
        if not arcs <= seen:
            reached[data] = arcs
            seen |= arcs
    for data in sorted(reached, key=len, reverse=True):
        others = set().union(*(arcs for other, arcs in reached.items() if other != data))
        if reached[data] <= others:
            del reached[data]
    target.close()
    write_corpus(name, list(reached))
    print(f"{name}: {len(reached)} of {len(known)} inputs kept, {len(seen)} branches")


def arcs_of(target: Target, data: bytes) -> set[Arc]:
    """Return the branches of the daemon that an input reaches."""
    tracer = coverage.Coverage(
        data_file=None, branch=True, config_file=False, source_pkgs=["farwatchd"]
    )
    with tracer.collect():
        target.run(data)
    found = tracer.get_data()
    return {(file, *arc) for file in found.measured_files() for arc in found.arcs(file) or ()}


if __name__ == "__main__":
    sys.exit(main())
