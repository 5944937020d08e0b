# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the guest tests: a booted guest that serves many tests, a share directory per test,
further machines.

FARWATCH_PATCHES=N runs, on a kernel with the first N patches of the series, the tests that belong
up to there; FARWATCH_SERIES names the directory of another series. FARWATCH_SCOPE=series leaves out
the tests that are about the daemon, and FARWATCH_SCOPE=row, too, those of earlier patches that do
not take the guest which most tests share. For the whole series the shared guests have two
processors, so that what can happen at once does; else guests have one. FARWATCH_FLAVOUR=DEBUG takes
a kernel that looks for faults in itself.
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
from farwatch_harness.kernel import build
from farwatch_harness.kernel.series import Patch, number_of
from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import Device
from farwatch_harness.vm.environment import Equipment, equip, patches_of_series
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import Keeper, log_tail
from farwatch_harness.vm.testbed import Machine, MachineSpec, Mark, Share, running

MARKS = pytest.StashKey[list[tuple[Machine, Mark]]]()
Boot = Callable[..., Machine]
MODES = ("others", "remote", "parked")
NUMBERS = itertools.count(1)
#: The patch that lets a request wait for events: mode parked, and events by QEMU's ordinary device.
WAIT_PATCH = "wait-request"


def pytest_configure(config: pytest.Config) -> None:
    # As Ctrl-C does: guests and daemons are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "patch(name): the patch that the test belongs to, by its name in the series file; 'base' is"
        " the kernel without a patch",
    )
    config.addinivalue_line(
        "markers", "daemon: about the daemon as a file system, whichever patches the kernel has"
    )


def chosen_patches(count: int | None = None) -> list[Patch]:
    """The series of this run, or its first `count` patches."""
    return patches_of_series(count, Path(os.environ.get("FARWATCH_SERIES") or paths.PATCHES))


def prefix() -> int | None:
    """How many patches the kernel is to have; None for all."""
    named = os.environ.get("FARWATCH_PATCHES")
    return int(named) if named else None


def scope() -> str:
    """Which tests this run has: all, series or row."""
    return os.environ.get("FARWATCH_SCOPE", "all")


def parameters(item: pytest.Item) -> dict[str, object]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )


def patch_of(item: pytest.Item, patches: list[Patch]) -> int:
    """The number of the patch that a test belongs to: of all that it is marked with, the last."""
    names = [str(mark.args[0]) for mark in item.iter_markers("patch")]
    if not names:
        raise pytest.UsageError(
            f"{item.nodeid} does not say which patch it belongs to: mark it with patch(name)"
        )
    chosen = parameters(item).values()
    if "parked" in chosen or Device.PLAIN in chosen:
        names.append(WAIT_PATCH)
    try:
        return max(number_of(name, patches) for name in names)
    except HarnessError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None


def takes_the_shared_guest(item: pytest.Item) -> bool:
    """Whether the test needs no machine but the one, in mode others, that most tests share."""
    chosen = parameters(item)
    needed = getattr(item, "fixturenames", ())
    # A module may have guests of its own in the place of the shared ones.
    own = isinstance(item, pytest.Function) and hasattr(item.module, "keepers")
    other = own or "boot" in needed or chosen.get("machine", MODES[0]) != MODES[0]
    return "machine" in needed and not other


def in_scope(item: pytest.Item, number: int, last: int) -> bool:
    """Whether FARWATCH_SCOPE has this test, which belongs to patch `number`, on the kernel with
    `last` patches."""
    if scope() == "all":
        return True
    if item.get_closest_marker("daemon"):
        return False
    return scope() == "series" or number == last or takes_the_shared_guest(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    patches = chosen_patches()
    last = len(patches) if prefix() is None else prefix()
    assert last is not None
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        number = patch_of(item, patches)
        item.user_properties.append(("patch", number))
        (kept if number <= last and in_scope(item, number, last) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(scope="session")
def equipment() -> Equipment:
    """The patched kernel, QEMU and the accelerator."""
    flavour = build.Flavour[os.environ.get("FARWATCH_FLAVOUR", build.Flavour.NORMAL.name)]
    return equip(chosen_patches(prefix()), flavour)


@pytest.fixture(scope="session")
def plain_kernel() -> build.Kernel:
    """The same kernel without any patch."""
    return build.build([])


@pytest.fixture(scope="session")
def keepers(
    equipment: Equipment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Keeper]]:
    """Keep the guests that the tests share, one for each mode that is tested."""

    def keeper(mode: str) -> Keeper:
        def make_spec(name: str) -> MachineSpec:
            spec = equipment.machine(f"{name}-{mode}", tmp_path_factory.mktemp("share"))
            spec = dataclasses.replace(spec, cpus=1 if scope() == "row" else 2)
            if mode == "parked":
                # Mode others by waiting requests: the device that every QEMU has, without a
                # notification queue.
                return dataclasses.replace(spec, device=Device.PLAIN)
            return dataclasses.replace(spec, daemon_options=(f"--fsnotify={mode}",))

        return Keeper(make_spec)

    kept = {mode: keeper(mode) for mode in MODES}
    yield kept
    for each in kept.values():
        each.close()


def watch(request: pytest.FixtureRequest, machine: Machine) -> None:
    """From now on the test answers for what this machine says."""
    request.node.stash.setdefault(MARKS, []).append((machine, machine.mark()))


@pytest.fixture
def machine(keepers: dict[str, Keeper], request: pytest.FixtureRequest) -> Machine:
    """The running guest with its daemon; booted when there is none, or when the last one was lost.

    In mode others, unless the test is parametrized: parametrize("machine", ["others", "parked"],
    indirect=True).
    """
    current = keepers[getattr(request, "param", MODES[0])].machine()
    watch(request, current)
    return current


@pytest.fixture
def guest(machine: Machine) -> Guest:
    """The guest of `machine`."""
    return machine.guest


@pytest.fixture
def share(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Share]:
    """An empty directory on the share for this test alone, on the host and in the guest."""
    # A name of its own: the guest may still know what was called so before.
    readable = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    name = f"{readable}-{next(NUMBERS)}"
    host = machine.shared / name
    host.mkdir()
    yield Share(host, machine.mount_point / name)
    shutil.rmtree(host)


@pytest.fixture
def boot(
    equipment: Equipment, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Boot]:
    """Boots a machine of the test's own: boot(daemon_options=("--max-watches=3",)), any field of
    MachineSpec.

    It is ended with the test. A boot takes about 4 seconds under emulation. With
    expect_trouble=True the test itself judges what the kernel and the daemon say.
    """
    with contextlib.ExitStack() as stack:

        def start(*, expect_trouble: bool = False, **changes: Any) -> Machine:
            name = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
            shared: Path = changes.pop("shared", None) or tmp_path_factory.mktemp("share")
            spec = dataclasses.replace(equipment.machine(name, shared), **changes)
            started = stack.enter_context(running(spec))
            if not expect_trouble:
                watch(request, started)
            return started

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test fails, too, when the guest's kernel complains, the daemon has a traceback, or one of
    them is gone."""
    result = yield
    problems: list[str] = []
    for machine, mark in item.stash.get(MARKS, []):
        if machine.alive:
            # The answer comes after what the kernel had to say on the console before.
            machine.guest.ping()
        problems += machine.problems(mark)
        if not machine.daemon.running:
            problems.append(
                f"the daemon ended with {machine.daemon.process.returncode}:"
                f" {machine.daemon.lines[-3:]}"
            )
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report has the ends of the console and of the daemon's log."""
    report = yield
    if report.failed:
        for machine, _mark in item.stash.get(MARKS, []):
            report.sections.append(("guest console", machine.vm.console.tail()))
            report.sections.append(("daemon log", log_tail(machine.daemon.log)))
    return report
