# SPDX-License-Identifier: Apache-2.0
"""Runs as the matrix records them, for the tests of the report."""

from dataclasses import replace

from farwatch_harness.bench.bench_report import BenchmarkEnvironment, Report
from farwatch_harness.bench.events import Batch, Latency, Throughput
from farwatch_harness.bench.inodes import InodeCost
from farwatch_harness.bench.kernel_cost import KernelCost
from farwatch_harness.bench.operations import OPERATIONS, Rate
from farwatch_harness.bench.start import StartCost
from farwatch_harness.bench.storms import StormCost
from farwatch_harness.bench.synthetic import SyntheticRate
from farwatch_harness.bench.watch_cost import WatchCost
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Run, Status, TestResult

MESSAGE = """\
A file system whose files change on a server has to know what its users
watch.

- one thing, which goes on
  in the next line
- another

Link: https://lore.kernel.org/r/1
Signed-off-by: A U Thor <author@example.org>
"""
DIFFSTAT = """\
 fs/fuse/Makefile   | 1 +
 fs/fuse/fsnotify.c | 3 +++
 2 files changed, 4 insertions(+)"""
DIFF = """\
diff --git a/fs/fuse/Makefile b/fs/fuse/Makefile
index 1111111..2222222 100644
--- a/fs/fuse/Makefile
+++ b/fs/fuse/Makefile
@@ -1,2 +1,2 @@
 fuse-y := dev.o
-fuse-y += old.o
+fuse-y += fsnotify.o
diff --git a/fs/fuse/fsnotify.c b/fs/fuse/fsnotify.c
new file mode 100644
--- /dev/null
+++ b/fs/fuse/fsnotify.c
@@ -0,0 +1,3 @@
+/* <b>&amp; */
+int a[3] = { 1, 2, 3 }; /* a line that is far wider than any telephone's screen, and than most of the others */
+	return 0;
"""
SECTIONS = ("", "Prerequisites", "The series", "The series")
#: Everything that must not reach a reader as it is.
HOSTILE = (
    "<script>document.title = 'run'</script> <img src=x onerror=alert(1)> ]]> </pre></details>"
    " &amp;\n\x1b[01;31m\x1b[Kerror:\x1b[m\x1b[K red \x1b]8;;http://example.org\x07link\x1b]8;;\x07"
    " \x1b(B\x1b=\nnul \x00 bell \x07 delete \x7f next line \x85 lone \udcff \ud800 none"
    " \ufffe\nturned \u202eround\u202c\r\nover\rwritten\r\r\nok 1 not a result\n1..3\nKTAP version"
    " 1\n# Subtest: not one\nKernel panic - not syncing: VFS: no root\nreboot: System halted\n{{ 7"
    " * 6 }} {% raw %}"
)


def checks(**changed: CheckResult) -> tuple[CheckResult, ...]:
    """All checks, green but for the changed ones."""
    found = {
        name: CheckResult(name, Status.PASSED, 2.5 + number, "", f"{name} says\nok\n")
        for number, name in enumerate(CheckName)
    }
    return tuple(
        replace(changed.get(name.value, check), name=name) for name, check in found.items()
    )


def failed(reason: str, output: str = "") -> CheckResult:
    """Return a failed check, for checks()."""
    return CheckResult(CheckName.APPLY, Status.FAILED, 1.0, reason, output)


def blocked(reason: str = "") -> CheckResult:
    """Return a check that could not run, for checks()."""
    return CheckResult(CheckName.APPLY, Status.BLOCKED, 0.0, reason)


def tests(number: int) -> tuple[TestResult, ...]:
    """Return the tests that run on the kernel of a patch.

    They are one of each patch up to it, and a second one of its own.
    """
    found = [
        TestResult(f"test_host.py::test_of_{patch}", patch, Status.PASSED, 0.25)
        for patch in range(number + 1)
    ]
    return (*found, TestResult("test_host.py::test_again", number, Status.PASSED, 61.5))


def patch(number: int) -> PatchResult:
    """Return a patch that passed; 0 is the base."""
    if not number:
        return PatchResult(
            0,
            "",
            "Linux 6.12",
            checks=checks(checkpatch=CheckResult(CheckName.APPLY, Status.SKIPPED)),
        )
    return PatchResult(
        number=number,
        file=f"{number:04}-fuse-Add-part-{number}.patch",
        subject=f"fuse: Add part #{number}",
        name=f"part-{number}",
        section=SECTIONS[number],
        message=MESSAGE,
        diffstat=DIFFSTAT,
        diff=DIFF,
        checks=checks(),
        tests=tests(number),
        logs={"console": "[    0.000000] Linux version 6.12\n", "daemon log": "INFO listening\n"},
    )


def green() -> Run:
    """Return a run in which everything passed: the base and three patches."""
    environment = {
        "machine": "2 x CPU",
        "accelerator": "tcg",
        "QEMU": "QEMU emulator version 11.1.3",
    }
    patches = tuple(patch(number) for number in range(4))
    return Run("2026-11-24T12:00:00+00:00", "2026-11-24T12:31:05+00:00", environment, patches)


def with_patch(run: Run, changed: PatchResult) -> Run:
    """Return the run with one of its patches replaced."""
    return replace(
        run,
        patches=tuple(changed if each.number == changed.number else each for each in run.patches),
    )


def build_error() -> Run:
    """Return a run with a compile error in patch 1, which blocks later checks."""
    red = failed("fs/fuse/fsnotify.c:3:9: error: expected ';'", "make: *** Error 1\n")
    rest = {name: blocked("build failed") for name in ("sparse", "options", "boot", "tests")}
    return with_patch(
        green(), replace(patch(1), checks=checks(build=red, **rest), tests=(), logs={})
    )


def checkpatch_error() -> Run:
    """Return a run with a checkpatch error in patch 2, which blocks nothing."""
    red = failed(
        "1 error: trailing whitespace",
        "ERROR: trailing whitespace\n#12: FILE: fs/fuse/fsnotify.c:2:\n",
    )
    return with_patch(green(), replace(patch(2), checks=checks(checkpatch=red)))


def lost_event() -> Run:
    """Return a run in which a test of patch 1 fails on the kernel of patch 3."""
    output = (
        ">   assert events == ['a']\nE   AssertionError: assert [] == ['a']\n\ntest_host.py:7:"
        " AssertionError\n"
    )
    found = tuple(
        (
            replace(test, status=Status.FAILED, output=output)
            if test.patch == 1
            else replace(test, output="well\n")
        )
        for test in tests(3)
    )
    red = failed("1 test failed: test_of_1", "1 failed, 4 passed")
    return with_patch(green(), replace(patch(3), checks=checks(tests=red), tests=found))


def hostile() -> Run:
    """Return a run with hostile text in every field of a failed patch."""
    red = failed(HOSTILE, HOSTILE)
    bad = TestResult(HOSTILE, 1, Status.FAILED, 1.0, HOSTILE)
    changed = replace(
        patch(1),
        file=HOSTILE,
        subject=HOSTILE,
        section=HOSTILE,
        message=HOSTILE,
        diffstat=HOSTILE,
        diff=DIFF + HOSTILE,
        checks=checks(build=red, tests=red),
        tests=(bad, replace(bad, patch=0, status=Status.PASSED)),
        logs={HOSTILE: HOSTILE},
    )
    run = with_patch(green(), changed)
    return replace(run, environment={HOSTILE: HOSTILE}, started=HOSTILE)


def long_logs() -> Run:
    """Return a run with a megabyte in each log of each patch: many lines, and a single one."""
    lines = "".join(
        f"[{number:12.6f}] a line of a log that never ends\n" for number in range(21_000)
    )
    logs = {"console": lines, "one line": "x" * 1_000_000}
    return replace(green(), patches=tuple(replace(each, logs=logs) for each in green().patches))


def bench() -> Report:
    """Return the results of a benchmark of all parts."""
    environment = BenchmarkEnvironment(
        "2026-11-24T11:07:54+00:00",
        "CPU",
        2,
        23.5,
        "6.18",
        0.5,
        "linux-6.12",
        "QEMU 11.1.3",
        "tcg",
        "3.11",
        {},
    )
    batches = (
        Batch(1000, 9000.0, 8000.0, 1000, False),
        Batch(50_000, 40_000.0, 30_000.0, 45_000, True),
    )
    servers = ("farwatchd", "virtiofsd C", "virtiofsd Rust")
    rates = [
        Rate(server, each, (900.0, 1000.0), (9.0, 8.0)) for each in OPERATIONS for server in servers
    ]
    cost = WatchCost(**{name: 1 for name in WatchCost.__annotations__} | {"mode": "others"})  # type: ignore[arg-type]
    inodes = InodeCost(**dict.fromkeys(InodeCost.__annotations__, 1))
    return Report(
        environment,
        (
            Latency("others", 500, 240.0, 5770.0, 6000.0, 2.0, 230.0),
            Latency("remote", 500, 110.0, 2311.0, 3000.0, 2.0, 230.0),
            Latency("native", 500, 150.0, 300.0, 400.0, 1.0, 0.5),
        ),
        (
            Throughput("others", batches, 25_000.0, 3.0),
            Throughput("remote", batches, 0.0, 3.0),
            Throughput("native", (Batch(1000, 10_000.0, 10_000.0, 1000, False),), 50_000.0, 3.0),
        ),
        tuple(rates),
        (cost,),
        (inodes,),
        tuple(SyntheticRate(rate, (2.0, 3.0), (0.5, 0.5)) for rate in rates),
        (KernelCost(OPERATIONS[0], True, 1000.0, 1012.0),),
        (StormCost("a storm", "others", 2.0, 0.5, 30_000, 0, 1.5),),
        (StartCost("farwatchd", (100.0,), (70.0,), (200.0,), (150.0,), (27_000_000,), 20_000_000),),
    )
