# SPDX-License-Identifier: Apache-2.0
"""The checks that need no guest: checkpatch, the build with W=1 and kernel-doc, sparse.

What is kept of them is kept by content, so that a patch is only looked at again when it has
changed, or one below it.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from farwatch_harness.kernel import build
from farwatch_harness.kernel.series import Patch, touched_files
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.matrix.check_outcome import Outcome
from farwatch_harness.matrix.compiler_warnings import FINDING, causes_of, new_findings
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.matrix.result_cache import Said, kept
from farwatch_harness.util import paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: Another value when the commands below change what is found.
RECIPE = "1"
# FILE_PATH_CHANGES asks whether MAINTAINERS covers a new file: fs/fuse/ is listed there.
CHECKPATCH = ("scripts/checkpatch.pl", "--strict", "--ignore", "FILE_PATH_CHANGES", "--show-types")
# What make prints of a step, as "  CC      fs/fuse/dev.o".
STEP = re.compile(r"^  [A-Z]{2,}")
OUTPUT_LINES = 200
CHECKPATCH_FINDING = re.compile(r"^(?:ERROR|WARNING|CHECK):")


@dataclass(frozen=True)
class Static:
    """The checks of one run; `source` is the tree that the series is for."""

    source: KernelSource

    def checkpatch(self, row: Row) -> Outcome:
        """checkpatch.pl --strict has nothing to say of the patch."""
        if row.patch is None:
            return Outcome(output="the base has no patch")
        content = row.patch.content
        script = (self.source.path / CHECKPATCH[0]).read_bytes()
        said = kept(
            ["checkpatch", RECIPE, *CHECKPATCH, script, content],
            lambda: self.run_checkpatch(content),
        )
        found = [line for line in said.output.splitlines() if CHECKPATCH_FINDING.search(line)]
        if found:
            return compared(found, said.output, said.seconds, "checkpatch")
        return Outcome(output=said.output, seconds=said.seconds)

    def run_checkpatch(self, content: bytes) -> str:
        with tempfile.NamedTemporaryFile(suffix=".patch") as file:
            file.write(content)
            file.flush()
            argv = ["perl", *CHECKPATCH, file.name]
            done = subprocess.run(argv, cwd=self.source.path, capture_output=True, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace").replace(file.name, "patch")
        if done.returncode not in (0, 1) or "total:" not in said:
            raise HarnessError(f"checkpatch.pl fails: {subprocesses.last_words(said)}")
        return said

    def build(self, row: Row) -> Outcome:
        """The kernel builds, and neither compiler nor linker nor kernel-doc say more than they do
        of the base."""
        try:
            kernel = build.build(row.patches)
        except HarnessError as error:
            return build_failure(row, str(error))
        documented = self.documentation(row.series, row.patches)
        said = kernel.warnings + documented.output
        seconds = round(kernel.seconds + documented.seconds, 1)
        if not row.number:
            return Outcome(output=said, seconds=seconds)
        before = build.build([]).warnings + self.documentation(row.series, ()).output
        return compared(new_findings(before, said), said, seconds, "compiling")

    def documentation(self, series: Sequence[Patch], patches: Sequence[Patch]) -> Said:
        """What kernel-doc says of the files that the series touches, as they are with these
        patches."""
        content = build.wanted(patches).content
        files: dict[str, bytes | None] = {}
        for name in touched_files(series):
            if name.endswith((".c", ".h")):
                files[name] = (
                    content[name] if name in content else original(self.source.path / name)
                )
        about = [part for name, data in files.items() for part in (name, data or b"")]
        script = self.source.path / "scripts" / "kernel-doc"
        return kept(
            ["kernel-doc", RECIPE, script.read_bytes(), *about],
            lambda: run_kernel_doc(script, files),
        )

    def sparse(self, row: Row) -> Outcome:
        """sparse finds nothing where the series is at work that it does not find in the base."""
        said = self.run_sparse(row)
        if not row.number:
            return Outcome(output=said.output, seconds=said.seconds)
        before = self.run_sparse(Row((), row.series))
        return compared(
            new_findings(before.output, said.output), said.output, said.seconds, "sparse"
        )

    def run_sparse(self, row: Row) -> Said:
        """What sparse says of the directories that the series changes, in the kernel of this
        row."""
        kernel = build.wanted(row.patches)
        version = subprocesses.run(["sparse", "--version"]).strip()
        targets = sparse_targets(touched_files(row.series))

        def run() -> str:
            with build.prepared(kernel) as place, progress.step(f"sparse: {kernel.title}") as step:
                log = paths.LOGS / f"sparse-{place.path.name}.log"
                existing = [name for name in targets if source_of(place.path, name).exists()]
                for line in build.run_make(
                    [f"-j{os.cpu_count() or 1}", "C=2", *existing], place, log
                ):
                    step.update(line.strip())
            # What the compiler says meanwhile is the build's affair.
            lines = log.read_text(errors="replace").splitlines(keepends=True)
            return "".join(line for line in lines if line.startswith("  CHECK ") or is_sparse(line))

        return kept(["sparse", RECIPE, version, kernel.key, *targets], run)


def build_failure(row: Row, error: str) -> Outcome:
    """An Outcome for a kernel that there is none of."""
    first, *said = error.splitlines()
    log = paths.LOGS / f"kernel-build-{build.wanted(row.patches).tree_name}.log"
    lines = log.read_text(errors="replace").splitlines() if said and log.exists() else []
    output = [line for line in lines if not STEP.match(line)][-OUTPUT_LINES:]
    errors = [line for line in said if FINDING.search(line)] or said or [first]
    return Outcome(
        errors[0].strip(), "\n".join([first, *output]), causes=causes_of(errors), usable=False
    )


def compared(found: list[str], output: str, seconds: float, tool: str) -> Outcome:
    """An Outcome with what the tool found beyond the base; a kernel there is all the same."""
    if not found:
        return Outcome(output=output, seconds=seconds)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    text = "\n".join([f"New with this series ({tool}):", *found, "", "All:", output])
    return Outcome(f"{found[0].strip()}{more}", text, seconds, causes_of(found))


def original(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def run_kernel_doc(script: Path, files: dict[str, bytes | None]) -> str:
    """kernel-doc's complaints about these contents."""
    with tempfile.TemporaryDirectory(prefix="farwatch-doc-") as name:
        names = [file for file, data in files.items() if data is not None]
        for file in names:
            path = Path(name) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[file] or b"")
        argv = ["perl", str(script), "-none", *names]
        done = subprocess.run(argv, cwd=name, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def sparse_targets(touched: Iterable[str]) -> list[str]:
    """make's targets for what sparse is to look at: the directories of the C files, or one object
    in a large one."""
    targets: set[str] = set()
    for name in touched:
        path = PurePosixPath(name)
        if path.suffix == ".c":
            # The directories of the first level, as fs, hold hundreds of files that have nothing to
            # do with the series.
            targets.add(
                f"{path.parent}/" if len(path.parent.parts) > 1 else str(path.with_suffix(".o"))
            )
    return sorted(
        name
        for name in targets
        if not any(name != other and name.startswith(other) for other in targets)
    )


def source_of(tree: Path, target: str) -> Path:
    """What must be there for make to have this target."""
    return (tree / target).with_suffix(".c") if target.endswith(".o") else tree / target


def is_sparse(line: str) -> bool:
    return ("warning: " in line or "error: " in line) and "[-W" not in line
