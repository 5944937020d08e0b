# SPDX-License-Identifier: Apache-2.0
"""The checks that need no guest: checkpatch, the build with W=1 and kernel-doc, sparse.

Their results are cached by content: a check runs again only if its patch, or an earlier one, has
changed.
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
from farwatch_harness.matrix.check_outcome import CheckOutcome
from farwatch_harness.matrix.compiler_warnings import WARNING, causes_of, new_warnings
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.result_cache import ToolOutput, cached
from farwatch_harness.util import paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: Part of the cache's key: change it when the commands below change.
RECIPE = "1"
# FILE_PATH_CHANGES asks whether MAINTAINERS covers a new file: fs/fuse/ is listed there.
CHECKPATCH = ("scripts/checkpatch.pl", "--strict", "--ignore", "FILE_PATH_CHANGES", "--show-types")
# What make prints of a step, as "  CC      fs/fuse/dev.o".
STEP = re.compile(r"^  [A-Z]{2,}")
OUTPUT_LINES = 200
#: What make prints of a file that sparse reads.
CHECKED = "  CHECK "
#: The script by which newer kernels turn sparse off if it does not know __typeof_unqual__, which
#: sparse 0.6.4 does not, and the word for make(1) that lets sparse take __typeof__ for it.
CHECKER_TEST = "scripts/checker-valid.sh"
CHECKER = "CHECK=sparse -D__typeof_unqual__=__typeof__"
CHECKPATCH_WARNING = re.compile(r"^(?:ERROR|WARNING|CHECK):")


@dataclass(frozen=True)
class StaticChecks:
    """The static checks of one run; `source` is the kernel source of the series."""

    source: KernelSource

    def checkpatch(self, prefix: Prefix) -> CheckOutcome:
        """Check that checkpatch.pl --strict reports nothing about the patch."""
        if prefix.patch is None:
            return CheckOutcome(output="the base has no patch")
        content = prefix.patch.content
        script = (self.source.path / CHECKPATCH[0]).read_bytes()
        said = cached(
            ["checkpatch", RECIPE, *CHECKPATCH, script, content],
            lambda: self.run_checkpatch(content),
        )
        found = [line for line in said.output.splitlines() if CHECKPATCH_WARNING.search(line)]
        if found:
            return compared(found, said.output, said.seconds, "checkpatch")
        return CheckOutcome(output=said.output, seconds=said.seconds)

    def run_checkpatch(self, content: bytes) -> str:
        """Run checkpatch.pl on a patch and return its output. HarnessError: it did not run."""
        with tempfile.NamedTemporaryFile(suffix=".patch") as file:
            file.write(content)
            file.flush()
            argv = ["perl", *CHECKPATCH, file.name]
            done = subprocess.run(argv, cwd=self.source.path, capture_output=True, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace").replace(file.name, "patch")
        if done.returncode not in (0, 1) or "total:" not in said:
            raise HarnessError(f"checkpatch.pl fails: {subprocesses.last_lines(said)}")
        return said

    def build(self, prefix: Prefix) -> CheckOutcome:
        """Check that the kernel builds, with no warning that the base does not have.

        The warnings are those of the compiler, the linker and kernel-doc.
        """
        try:
            kernel = build.build(prefix.patches)
        except HarnessError as error:
            return build_failure(prefix, str(error))
        documented = self.documentation(prefix.series, prefix.patches)
        said = kernel.warnings + documented.output
        seconds = round(kernel.seconds + documented.seconds, 1)
        if not prefix.number:
            return CheckOutcome(output=said, seconds=seconds)
        before = build.build([]).warnings + self.documentation(prefix.series, ()).output
        return compared(new_warnings(before, said), said, seconds, "compiling")

    def documentation(self, series: Sequence[Patch], patches: Sequence[Patch]) -> ToolOutput:
        """Run kernel-doc on the files that the series touches, with these patches applied."""
        content = build.recipe_of(patches).content
        files: dict[str, bytes | None] = {}
        for name in touched_files(series):
            if name.endswith((".c", ".h")):
                files[name] = (
                    content[name] if name in content else original(self.source.path / name)
                )
        about = [part for name, data in files.items() for part in (name, data or b"")]
        script = self.source.path / "scripts" / "kernel-doc"
        return cached(
            ["kernel-doc", RECIPE, script.read_bytes(), *about],
            lambda: run_kernel_doc(script, files),
        )

    def sparse(self, prefix: Prefix) -> CheckOutcome:
        """Check that sparse reports nothing that it does not report for the base."""
        said = self.run_sparse(prefix)
        if not prefix.number:
            return CheckOutcome(output=said.output, seconds=said.seconds)
        before = self.run_sparse(Prefix((), prefix.series))
        return compared(
            new_warnings(before.output, said.output), said.output, said.seconds, "sparse"
        )

    def run_sparse(self, prefix: Prefix) -> ToolOutput:
        """Run sparse on the directories that the series changes, in this prefix's kernel.

        HarnessError: sparse did not run.
        """
        kernel = build.recipe_of(prefix.patches)
        checker = [CHECKER] if (self.source.path / CHECKER_TEST).exists() else []
        version = subprocesses.run(["sparse", "--version"]).strip()
        targets = sparse_targets(touched_files(prefix.series))

        def run() -> str:
            with build.prepared(kernel) as place, progress.step(f"sparse: {kernel.title}") as step:
                log = paths.LOGS / f"sparse-{place.path.name}.log"
                existing = [name for name in targets if source_of(place.path, name).exists()]
                for line in build.run_make(
                    [f"-j{os.cpu_count() or 1}", "C=2", *checker, *existing], place, log
                ):
                    step.update(line.strip())
            # The compiler's own warnings belong to the build check.
            lines = log.read_text(errors="replace").splitlines(keepends=True)
            if not any(line.startswith(CHECKED) for line in lines):
                raise HarnessError(f"make C=2 did not run sparse {version}, see {log}")
            return "".join(line for line in lines if line.startswith(CHECKED) or is_sparse(line))

        return cached(["sparse", RECIPE, version, kernel.key, *checker, *targets], run)


def build_failure(prefix: Prefix, error: str) -> CheckOutcome:
    """Return the outcome of a failed build."""
    first, *said = error.splitlines()
    log = paths.LOGS / f"kernel-build-{build.recipe_of(prefix.patches).tree_name}.log"
    lines = log.read_text(errors="replace").splitlines() if said and log.exists() else []
    output = [line for line in lines if not STEP.match(line)][-OUTPUT_LINES:]
    errors = [line for line in said if WARNING.search(line)] or said or [first]
    return CheckOutcome(
        errors[0].strip(), "\n".join([first, *output]), causes=causes_of(errors), usable=False
    )


def compared(found: list[str], output: str, seconds: float, tool: str) -> CheckOutcome:
    """Return the outcome of a tool, with the lines that the base does not have.

    The check fails if there are such lines, but the kernel stays usable.
    """
    if not found:
        return CheckOutcome(output=output, seconds=seconds)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    text = "\n".join([f"New with this series ({tool}):", *found, "", "All:", output])
    return CheckOutcome(f"{found[0].strip()}{more}", text, seconds, causes_of(found))


def original(path: Path) -> bytes | None:
    """Return the file's content, or None if there is no such file."""
    return path.read_bytes() if path.is_file() else None


def run_kernel_doc(script: Path, files: dict[str, bytes | None]) -> str:
    """Run kernel-doc on these files and return its output."""
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
    """Return make's targets for sparse: the directories of the C files, or single objects."""
    targets: set[str] = set()
    for name in touched:
        path = PurePosixPath(name)
        if path.suffix == ".c":
            # A directory of the first level, such as fs, has hundreds of unrelated files.
            targets.add(
                f"{path.parent}/" if len(path.parent.parts) > 1 else str(path.with_suffix(".o"))
            )
    return sorted(
        name
        for name in targets
        if not any(name != other and name.startswith(other) for other in targets)
    )


def source_of(tree: Path, target: str) -> Path:
    """Return the file or directory that a target of make needs."""
    return (tree / target).with_suffix(".c") if target.endswith(".o") else tree / target


def is_sparse(line: str) -> bool:
    """Return whether a line of the build's output is a message of sparse."""
    return ("warning: " in line or "error: " in line) and "[-W" not in line
