# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the guest tests: shared VMs, testbeds, and a directory on the share for each test.

FARWATCH_PATCHES=N uses a kernel with the first N patches and runs their tests. FARWATCH_SERIES is
the directory of another series. FARWATCH_SCOPE=series leaves out the tests of the daemon.
FARWATCH_SCOPE=patch also leaves out the tests of earlier patches that do not use the shared VM in
mode others. With FARWATCH_SCOPE=patch a shared VM has one CPU, else two, so that concurrent
operations really are concurrent. FARWATCH_FLAVOUR=DEBUG uses a kernel with lockdep, KASAN and
kmemleak; FARWATCH_FLAVOUR=DISTRIBUTION uses Debian's own kernel with the module.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.kernel import build, versions
from farwatch_harness.kernel.series import Patch, number_of
from farwatch_harness.matrix.left_out_tests import LeftOut, read_rules
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.environment import (
    Environment,
    patches_of_series,
    prepare_distribution_environment,
    prepare_environment,
)
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import SharedVm, log_tail
from farwatch_harness.vm.testbed import LogPosition, Share, Testbed, TestbedSpec, start_testbed

WATCHED_TESTBEDS = pytest.StashKey[list[tuple[Testbed, LogPosition]]]()
Boot = Callable[..., Testbed]
MODES = ("others", "remote", "wait")
NUMBERS = itertools.count(1)
#: The patch of the WAIT request: mode wait, and events with QEMU's vhost-user-fs device.
WAIT_PATCH = "wait-request"
#: What does not hold for the module on Debian's own kernel, and for a kernel version.
LEFT_OUT = {path.name: read_rules(path) for path in Path(__file__).parent.glob("*.toml")}


def pytest_configure(config: pytest.Config) -> None:
    # As Ctrl-C: stop guests and daemons.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "patch(name): the patch that the test belongs to, by its name in the series file; 'base' is"
        " the kernel without a patch",
    )
    config.addinivalue_line("markers", "module: about the module on Debian's own kernel")
    config.addinivalue_line(
        "markers", "daemon: about the daemon as a file system, whichever patches the kernel has"
    )


def chosen_patches(count: int | None = None) -> list[Patch]:
    """Return the series of this run, or its first `count` patches."""
    named = os.environ.get("FARWATCH_SERIES")
    return patches_of_series(count, Path(named) if named else None)


def patch_count() -> int | None:
    """Return how many patches the kernel has; None for all."""
    named = os.environ.get("FARWATCH_PATCHES")
    return int(named) if named else None


def scope() -> str:
    """Return which tests run: all, series or patch."""
    return os.environ.get("FARWATCH_SCOPE", "all")


def on_distribution_kernel() -> bool:
    """Return whether the kernel is Debian's own, with the module."""
    return os.environ.get("FARWATCH_FLAVOUR") == "DISTRIBUTION"


def parameters(item: pytest.Item) -> dict[str, object]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )


def patch_of(item: pytest.Item, patches: list[Patch]) -> int:
    """Return the number of a test's patch: the last one that the test is marked with."""
    names = [str(mark.args[0]) for mark in item.iter_markers("patch")]
    if not names:
        raise pytest.UsageError(
            f"{item.nodeid} belongs to no patch: mark it with @pytest.mark.patch(name)"
        )
    chosen = parameters(item).values()
    if "wait" in chosen or QemuDevice.PLAIN in chosen:
        names.append(WAIT_PATCH)
    try:
        return max(number_of(name, patches) for name in names)
    except HarnessError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None


def uses_shared_vm(item: pytest.Item) -> bool:
    """Return whether the test uses only the shared VM of mode others."""
    chosen = parameters(item)
    needed = getattr(item, "fixturenames", ())
    # A module may override shared_vms with its own.
    own = isinstance(item, pytest.Function) and hasattr(item.module, "shared_vms")
    other = own or "boot" in needed or chosen.get("testbed", MODES[0]) != MODES[0]
    return "testbed" in needed and not other


def left_out_here() -> Iterator[LeftOut]:
    """Yield the rules for the kernel of this run."""
    yield from LEFT_OUT.get(f"linux-{versions.current().name}.toml", ())
    if on_distribution_kernel():
        yield from LEFT_OUT["module.toml"]


def holds_here(item: pytest.Item) -> bool:
    """Return whether no rule leaves the test out."""
    named = {str(mark.args[0]) for mark in item.iter_markers("patch")}
    mode = parameters(item).get("testbed", parameters(item).get("mode"))
    return not any(rule.leaves_out(name_in_folder(item), named, mode) for rule in left_out_here())


def name_in_folder(item: pytest.Item) -> str:
    """Return the test's name below guest-tests."""
    return item.nodeid.partition("/")[2]


def check_rules(items: list[pytest.Item], patches: list[Patch]) -> None:
    """Raise UsageError if a rule names a test, a mode or a patch that does not exist.

    items: all tests of their files.
    """
    names = [name_in_folder(item) for item in items]
    known = [patch.name for patch in patches]
    for file, rules in LEFT_OUT.items():
        for rule in rules:
            for problem in rule.problems(names, known, MODES):
                raise pytest.UsageError(f"{file}: {problem} (of: {rule.reason})")


def in_scope(item: pytest.Item, number: int, last: int) -> bool:
    """Return whether FARWATCH_SCOPE includes a test of patch `number` on a kernel with `last`."""
    if not holds_here(item):
        return False
    if scope() == "all":
        return True
    if item.get_closest_marker("daemon"):
        return False
    return scope() == "series" or number == last or uses_shared_vm(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    patches = chosen_patches()
    last = len(patches) if patch_count() is None else patch_count()
    assert last is not None
    if (
        not any("::" in argument for argument in config.args)
        and "FARWATCH_SERIES" not in os.environ
    ):
        check_rules(items, patches)
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("module"):
            (kept if on_distribution_kernel() else dropped).append(item)
            continue
        number = patch_of(item, patches)
        item.user_properties.append(("patch", number))
        (kept if number <= last and in_scope(item, number, last) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(scope="session")
def environment() -> Environment:
    """Build or find the patched kernel, QEMU and the accelerator."""
    if on_distribution_kernel():
        return prepare_distribution_environment()
    flavour = build.Flavour[os.environ.get("FARWATCH_FLAVOUR", build.Flavour.NORMAL.name)]
    return prepare_environment(chosen_patches(patch_count()), flavour)


@pytest.fixture(scope="session")
def plain_kernel() -> build.Kernel:
    """Build the kernel of the base."""
    return build.build([])


@pytest.fixture(scope="session")
def shared_vms(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, SharedVm]]:
    """Return the shared VMs, one for each mode."""

    def shared_vm(mode: str) -> SharedVm:
        def make_spec(name: str) -> TestbedSpec:
            spec = environment.testbed_spec(f"{name}-{mode}", tmp_path_factory.mktemp("share"))
            spec = dataclasses.replace(spec, cpus=1 if scope() == "patch" else 2)
            if mode == "wait":
                # Mode others by WAIT requests: QEMU's vhost-user-fs device has no notification
                # queue.
                return dataclasses.replace(spec, device=QemuDevice.PLAIN)
            return dataclasses.replace(spec, daemon_options=(f"--fsnotify={mode}",))

        return SharedVm(make_spec)

    by_mode = {mode: shared_vm(mode) for mode in MODES}
    yield by_mode
    for each in by_mode.values():
        each.close()


def watch(request: pytest.FixtureRequest, testbed: Testbed) -> None:
    """Fail the test if the testbed's kernel or daemon reports a problem from now on."""
    request.node.stash.setdefault(WATCHED_TESTBEDS, []).append((testbed, testbed.log_position()))


@pytest.fixture
def testbed(shared_vms: dict[str, SharedVm], request: pytest.FixtureRequest) -> Testbed:
    """Return the shared VM's testbed. It boots on first use, and again after it was lost.

    It is in mode others. parametrize("testbed", ["others", "wait"], indirect=True) chooses modes.
    """
    current = shared_vms[getattr(request, "param", MODES[0])].testbed()
    watch(request, current)
    return current


@pytest.fixture
def guest(testbed: Testbed) -> Guest:
    """Return the guest of `testbed`."""
    return testbed.guest


@pytest.fixture
def share(testbed: Testbed, request: pytest.FixtureRequest) -> Iterator[Share]:
    """Make an empty directory on the share for this test, as the host and the guest see it."""
    # A unique name: the guest may have cached an earlier directory of this name.
    readable = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    name = f"{readable}-{next(NUMBERS)}"
    host = testbed.shared / name
    host.mkdir()
    yield Share(host, testbed.mount_point / name)
    shutil.rmtree(host)


@pytest.fixture
def boot(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Boot]:
    """Return a function that boots a testbed for this test.

    Its arguments are fields of TestbedSpec, as in boot(daemon_options=("--max-watches=3",)). The
    testbed stops with the test. A boot takes about 4 seconds under emulation. With
    expect_trouble=True the test may cause kernel warnings and tracebacks of the daemon.
    """
    with contextlib.ExitStack() as stack:

        def start(*, expect_trouble: bool = False, **changes: Any) -> Testbed:
            name = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
            shared: Path = changes.pop("shared", None) or tmp_path_factory.mktemp("share")
            spec = dataclasses.replace(environment.testbed_spec(name, shared), **changes)
            started = stack.enter_context(start_testbed(spec))
            if not expect_trouble:
                watch(request, started)
            return started

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test also if a kernel or daemon reported a problem, or has ended."""
    result = yield
    problems: list[str] = []
    for testbed, position in item.stash.get(WATCHED_TESTBEDS, []):
        if testbed.alive:
            # The kernel's earlier console output arrives before this reply.
            testbed.guest.ping()
        problems += testbed.problems(position)
        if not testbed.daemon.running:
            problems.append(
                f"the daemon ended with {testbed.daemon.process.returncode}:"
                f" {testbed.daemon.lines[-3:]}"
            )
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the console and of the daemon's log to a failed test's report."""
    report = yield
    if report.failed:
        for testbed, _position in item.stash.get(WATCHED_TESTBEDS, []):
            report.sections.append(("guest console", testbed.vm.console.tail()))
            report.sections.append(("daemon log", log_tail(testbed.daemon.log)))
    return report
