# SPDX-License-Identifier: Apache-2.0
"""The harness's command line. Results go to stdout, progress and errors to stderr."""

import argparse
import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from farwatch_harness import report, results
from farwatch_harness.adversary import command as adversary
from farwatch_harness.bench import run as bench_run
from farwatch_harness.clients import run as clients_run
from farwatch_harness.commands import (
    debian_guest,
    demo,
    drift,
    guest_shell,
    mail,
    mutants,
    unique_names,
    words,
)
from farwatch_harness.kernel import (
    build,
    debian_package,
    distribution,
    module,
    series,
    versions,
)
from farwatch_harness.matrix import run as matrix_run
from farwatch_harness.matrix.prefixes import LAST
from farwatch_harness.report import benchmark
from farwatch_harness.results import CheckName
from farwatch_harness.soak import run as soak_run
from farwatch_harness.util import apt, paths, progress
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm import patched_qemu, qemu
from farwatch_harness.vm.environment import (
    Environment,
    patches_of_series,
    prepare_distribution_environment,
    prepare_environment,
)

# Seconds for pytest to end its guests after an interruption.
INTERRUPTED_LIMIT = 60.0
Command = Callable[[argparse.Namespace], int]


def flavour_of(options: argparse.Namespace) -> build.Flavour:
    """Return the kernel configuration that the options choose."""
    return build.Flavour.DEBUG if options.debug else build.Flavour.NORMAL


def setup(_options: argparse.Namespace) -> int:
    """Install the Debian packages that the other commands need."""
    for number, packages in enumerate((apt.HOST_CHECKS, apt.KERNEL_BUILD, apt.GUEST)):
        apt.install(packages, paths.LOGS / f"apt-setup-{number}.log")
    return 0


def kernel(options: argparse.Namespace) -> int:
    """Build the patched kernel; print the path of its image."""
    print(build.build(patches_of_series(options.patches), flavour_of(options)).image)
    return 0


def package_kernel(options: argparse.Namespace) -> int:
    """Build Debian packages of the patched kernel with Debian's cloud configuration; print them."""
    packages = debian_package.build_packages(patches_of_series(options.patches))
    print(packages.headers, packages.image, sep="\n")
    return 0


def build_module(options: argparse.Namespace) -> int:
    """Build the module for a kernel that is not rebuilt; print its path.

    Without --headers it is built for Debian's own kernel. With --sources its sources are written
    and not compiled: those for all versions, or for the one that --kernel names.
    """
    chosen = versions.chosen()
    if options.sources:
        module.write_sources_for(options.sources, [chosen] if chosen else versions.with_module())
        return 0
    apt.install(apt.MODULE_BUILD, paths.LOGS / "apt-module.log")
    if options.headers:
        headers = options.headers.expanduser().resolve()
        version = chosen or versions.for_headers(headers)
    else:
        headers, version = distribution.find_kernel().headers, versions.current()
    folder = paths.CHECKOUT / "build" / "module"
    module.write_sources(folder, module.sources(version))
    print(module.compile_in(folder, headers))
    return 0


def make_guest(options: argparse.Namespace) -> int:
    """Make a Debian guest with Debian's own kernel and the module; print its files."""
    image = debian_guest.make_image(options.patched)
    print(image.disk, image.kernel, image.initrd, sep="\n")
    return 0


def find_qemu(options: argparse.Namespace) -> int:
    """Find or unpack a QEMU with the notification queue; print the command that runs it."""
    program = patched_qemu.build() if options.patched else qemu.find_qemu().program
    print(shlex.quote(str(program)))
    return 0


def apply(options: argparse.Namespace) -> int:
    """Apply the series for a kernel tree to it: commits in a git tree, else changed files."""
    tree = options.tree.expanduser().resolve()
    version = versions.for_tree(tree)
    done = series.apply_to(tree, patches_of_series(options.patches, version.folder))
    progress.say(f"{versions.release_of(tree)} takes the series for Linux {version.name}: {done}")
    return 0


def prepare_mails(options: argparse.Namespace) -> int:
    """Prepare the mails that would post the series, in build/send; send nothing."""
    apt.install(apt.MATRIX, paths.LOGS / "apt-matrix.log")
    kernel = options.tree.expanduser().resolve() if options.tree else None
    version = versions.for_tree(kernel) if kernel else versions.current()
    prepared = mail.prepare(patches_of_series(folder=version.folder), kernel)
    if not prepared.public_base:
        progress.say(
            "  nobody else has the commit of base-commit: give KERNEL=DIR, a git tree whose commit"
            " is public"
        )
    progress.say(f"  who it would go to is in {prepared.recipients}")
    print(f"{len(prepared.mails)} mails are in {prepared.mails[0].parent}; nothing was sent")
    return 0


def environment_of(options: argparse.Namespace) -> Environment:
    """Return the environment that the options choose."""
    if options.distribution:
        return prepare_distribution_environment()
    return prepare_environment(patches_of_series(options.patches))


def demonstrate(options: argparse.Namespace) -> int:
    """Show how a guest's inotifywait sees changes on the host; fail if an event is missing."""
    demo.demonstrate(environment_of(options))
    return 0


def shell(options: argparse.Namespace) -> int:
    """Start a shell in a guest that has mounted the share."""
    return guest_shell.shell(environment_of(options))


def matrix(options: argparse.Namespace) -> int:
    """Check every patch of the series: applies, checkpatch, builds, sparse, boots, tests."""
    return matrix_run.matrix(
        (options.series or versions.current().folder).resolve(),
        options.patch,
        options.check or list(CheckName),
        options.output or report.folder() / report.RESULTS,
    )


def write_report(run: results.Run, folder: Path) -> None:
    """Write the report on a run, beside those of the other kernel versions, and print its place."""
    bench = benchmark.load(bench_run.RESULT)
    print(report.write(run, folder, bench, report.runs_by_version()))


def test_kernels(_options: argparse.Namespace) -> int:
    """Check the whole series on each kernel version but the default one.

    Writes their reports, and the default version's again.
    """
    others = [version for version in versions.VERSIONS if version is not versions.DEFAULT]
    failed = run_with_each(others, ["matrix", "--patch", LAST])
    stored = report.folder(versions.DEFAULT) / report.RESULTS
    if stored.exists():
        write_report(results.load(stored), stored.parent)
    if failed:
        raise HarnessError(f"the series fails on Linux {', '.join(failed)}")
    return 0


def test_module(_options: argparse.Namespace) -> int:
    """Run the guest tests that apply to the module on Debian's own kernel of each version.

    --kernel names one of them.
    """
    chosen = versions.chosen()
    kernels = [chosen] if chosen else versions.with_module()
    failed = run_with_each(kernels, ["test", "--distribution", "-m", "not daemon"])
    if failed:
        raise HarnessError(f"the module fails on Debian's own Linux {', '.join(failed)}")
    return 0


def run_with_each(kernels: Sequence[versions.KernelVersion], command: Sequence[str]) -> list[str]:
    """Run a command of this program with each kernel version; return the names of those it fails.

    Each version is a process of its own.
    """
    failed = []
    for version in kernels:
        print(f"Linux {version.name}", flush=True)
        words = [sys.executable, "-m", "farwatch_harness.cli", "--kernel", version.name]
        if run_to_end([*words, *command], os.environ):
            failed.append(version.name)
    return failed


def check_drift(_options: argparse.Namespace) -> int:
    """Try each series on the newest point release that Debian has; fail if a patch needs work."""
    return 0 if drift.check() else 1


def test(options: argparse.Namespace) -> int:
    """Run the tests that need a guest."""
    if options.distribution:
        prepare_distribution_environment()
    else:
        prepare_environment(patches_of_series(options.patches), flavour_of(options))
        # Some tests compare with it; built here because pytest would hide the progress.
        build.build([])
    words = [sys.executable, "-m", "pytest", "guest-tests", "--junitxml=build/guest-tests.xml"]
    for option, value in (("-k", options.k), ("-m", options.m)):
        if value:
            words += [option, value]
    environment = {**os.environ, "FARWATCH_FLAVOUR": flavour_of(options).name}
    if options.distribution:
        environment["FARWATCH_FLAVOUR"] = "DISTRIBUTION"
    if options.patches is not None:
        environment["FARWATCH_PATCHES"] = str(options.patches)
    with progress.step("guest tests"):
        status = run_to_end(words, environment)
    if status:
        raise HarnessError("guest tests failed; consoles and daemon logs are in build/logs")
    return 0


def run_to_end(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run pytest; return its exit status.

    An interruption is passed on to pytest, which then gets time to end its guests and daemons.
    """
    process = subprocess.Popen(words, cwd=paths.CHECKOUT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait(INTERRUPTED_LIMIT)
        raise


def measure(options: argparse.Namespace) -> int:
    """Measure events and file operations, beside virtiofsd.

    Prints tables and writes build/bench.json.
    """
    bench_run.bench(bench_run.plan_of(options))
    return 0


def compare_clients(options: argparse.Namespace) -> int:
    """Compare watchers that people use natively and on a share; fail if one differs.

    Prints a table, and writes what they reported to build/clients/results.json.
    """
    outcomes = clients_run.compare(environment_of(options), options.names)
    print(clients_run.table(outcomes))
    return 1 if any(one.differences for one in outcomes) else 0


def check_words(_options: argparse.Namespace) -> int:
    """Check that names and text use the words of docs/glossary.md, and that no name is shared."""
    rules, skipped = words.read_rules(paths.CHECKOUT / "docs" / "words.toml")
    files = words.tracked_files(paths.CHECKOUT, skipped)
    found: list[object] = list(words.check(paths.CHECKOUT, files, rules))
    found += unique_names.check(paths.CHECKOUT, words.tracked_files(paths.CHECKOUT, ()))
    for each in found:
        print(each)
    return 1 if found else 0


def make_report(options: argparse.Namespace) -> int:
    """Write the page, JUnit XML and KTAP of the last run, or of merged runs.

    Runs of parts of the series are merged into the run of the whole. A merge fails if the run of
    the whole would fail.
    """
    folder = report.folder()
    stored = folder / report.RESULTS
    if options.merge:
        results.save(results.merge([results.load(part) for part in options.merge]), stored)
    elif not stored.exists():
        raise HarnessError(
            f"there are no results in {stored} yet: run make test, or name results with --merge"
        )
    run = results.load(stored)
    write_report(run, folder)
    if options.merge:
        print(*matrix_run.summary(run), sep="\n")
    return 1 if options.merge and not run.ok else 0


def run_soak(options: argparse.Namespace) -> int:
    """Run the oracle under load for a given time: no event may be lost or reported twice.

    At the end, the guest and the daemon must be as idle as before.
    """
    soak_run.soak(soak_run.plan_of(options))
    return 0


def fuzz_kernel(options: argparse.Namespace) -> int:
    """Play random scripts against the guest's kernel: nothing may break, be lost or hang."""
    adversary.fuzz(adversary.plan_of(options))
    return 0


def run_mutants(options: argparse.Namespace) -> int:
    """Break the kernel's rules one by one, and check that a guest test notices each."""
    chosen = mutants.read_mutants(mutants.FOLDER, options.names)
    prepare_environment(patches_of_series())
    mutants.hunt(chosen)
    return 0


def clean_cache(_options: argparse.Namespace) -> int:
    """Remove the shared cache: kernel sources, kernels, QEMU."""
    root = paths.cache_root()
    with progress.step(f"removing {root}"):
        shutil.rmtree(root)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="farwatch-harness", description=__doc__)
    top.add_argument(
        "--kernel",
        metavar="VERSION",
        help=f"the kernel version: {versions.names()} (default: {versions.DEFAULT.name})",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command) -> argparse.ArgumentParser:
        description = inspect.getdoc(run) or ""
        summary = description.partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=description)
        sub.set_defaults(run=run)
        return sub

    def add_prefix(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--patches", type=int, metavar="N", help="only the first N patches of the series"
        )

    def add_debug(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--debug", action="store_true", help="a kernel with lockdep, KASAN and kmemleak"
        )

    def add_distribution(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--distribution",
            action="store_true",
            help="Debian's own kernel, unmodified, with the module",
        )

    add("setup", setup)
    building = add("kernel", kernel)
    add_prefix(building)
    add_debug(building)
    add_prefix(add("kernel-deb", package_kernel))
    building = add("module", build_module)
    building.add_argument(
        "--headers",
        type=Path,
        metavar="DIR",
        help="the kernel's headers, as /usr/src/linux-headers-RELEASE",
    )
    building.add_argument(
        "--sources", type=Path, metavar="DIR", help="only write the sources, into DIR"
    )
    making = add("guest", make_guest)
    making.add_argument(
        "--patched", action="store_true", help="the kernel of kernel-deb instead of the module"
    )
    finding = add("qemu", find_qemu)
    finding.add_argument(
        "--patched", action="store_true", help="build QEMU with patches/qemu instead"
    )
    applying = add("apply", apply)
    applying.add_argument("tree", type=Path, metavar="DIR", help="the kernel source tree")
    add_prefix(applying)
    sending = add("send", prepare_mails)
    sending.add_argument(
        "tree", type=Path, nargs="?", metavar="DIR", help="a git tree whose commit is the base"
    )
    for sub in (add("demo", demonstrate), add("boot", shell)):
        add_prefix(sub)
        add_distribution(sub)
    comparing = add("clients", compare_clients)
    comparing.add_argument("names", nargs="*", metavar="NAME", help="only these")
    add_prefix(comparing)
    add_distribution(comparing)
    checking = add("matrix", matrix)
    checking.add_argument(
        "--patch",
        metavar="PATCHES",
        help="only these patches, beside the base, as 3, 3-5, 1,7-9, by name as overflow, or last",
    )
    checking.add_argument(
        "--check",
        type=CheckName,
        action="append",
        metavar="CHECK",
        help=f"only this check, may be given more than once: {', '.join(CheckName)}",
    )
    checking.add_argument("--series", type=Path, metavar="DIR", help="another series")
    checking.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the results go",
    )
    add("test-kernels", test_kernels)
    add("test-module", test_module)
    add("drift", check_drift)
    testing = add("test", test)
    testing.add_argument("-k", metavar="EXPR", help="only the tests that match, as for pytest")
    testing.add_argument(
        "-m", metavar="EXPR", help="only the tests with matching marks, as for pytest"
    )
    add_prefix(testing)
    add_debug(testing)
    add_distribution(testing)
    bench_run.add_options(add("bench", measure))
    reporting = add("report", make_report)
    reporting.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE", help="the results.json of parts"
    )
    soak_run.add_options(add("soak", run_soak))
    adversary.add_options(add("fuzz-kernel", fuzz_kernel))
    breaking = add("mutants", run_mutants)
    breaking.add_argument("names", nargs="*", metavar="NAME", help="only these")
    add("words", check_words)
    add("clean-cache", clean_cache)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    An error that the user can correct is one line, with status 1.
    """
    options = parser().parse_args(arguments)
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.kernel:
            # For the processes of the tests, too.
            os.environ[versions.VARIABLE] = versions.named(options.kernel).name
        status: int = options.run(options)
    except HarnessError as error:
        progress.say(f"farwatch: {error}")
        return 1
    except KeyboardInterrupt:
        progress.say("farwatch: interrupted")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
