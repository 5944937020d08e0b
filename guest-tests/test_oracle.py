# SPDX-License-Identifier: Apache-2.0
"""The guest reports any script of file operations as native inotify does.

The host or the guest performs the scripts. FARWATCH_EXAMPLES=N runs N random scripts for each test
instead of 80, and other ones each time. A failure prints the seed, and FARWATCH_SEED=S runs its
scripts again.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pytest
from farwatch_harness.oracle.compare import (
    Comparison,
    HostWatch,
    compare_in_the_guest,
    compare_on_the_host,
)
from farwatch_harness.oracle.file_operations import HOST_KINDS, KINDS, FileOperation, choices
from farwatch_harness.oracle.script_runners import (
    GuestScriptRunners,
    HostScriptRunners,
    ScriptRunners,
)
from farwatch_harness.util import apt, paths
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import SharedVm
from farwatch_harness.vm.testbed import Share, Testbed, TestbedSpec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("FARWATCH_EXAMPLES")
SEED = int(os.environ.get("FARWATCH_SEED") or secrets.randbelow(1 << 32))
Test = TypeVar("Test", bound=Callable[..., None])


def random_scripts(test: Test) -> Test:
    """Run the test with many scripts.

    They are the same ones each time, or those of the seed if FARWATCH_EXAMPLES is set.
    """
    chosen = settings(
        max_examples=int(EXAMPLES or 80),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        print_blob=False,
        # All examples use the same guest, but each has its own directories.
        suppress_health_check=list(HealthCheck),
    )(test)
    return seed(SEED)(chosen) if EXAMPLES else chosen


def assert_same(comparison: Comparison) -> None:
    again = (
        f"\nFARWATCH_EXAMPLES={EXAMPLES} FARWATCH_SEED={SEED} runs the same scripts"
        if EXAMPLES
        else ""
    )
    assert not comparison.difference(), comparison.difference() + again


MAX_THREADS = 3


def scripts_of(kinds: Sequence[str]) -> st.SearchStrategy[list[list[FileOperation]]]:
    """Return the scripts of one process, and of several."""
    operations = st.sampled_from(kinds).flatmap(
        lambda kind: st.tuples(
            st.just(kind), *(st.sampled_from(names) for names in choices(kind))
        ).map(list)
    )
    one_process = st.lists(operations, min_size=1, max_size=12).map(lambda script: [script])
    several_processes = st.lists(
        st.lists(operations, min_size=1, max_size=6), min_size=2, max_size=MAX_THREADS
    )
    return one_process | several_processes


host_scripts, guest_scripts = scripts_of(HOST_KINDS), scripts_of(KINDS)
ThreadScripts = list[list[FileOperation]]
NUMBERS = itertools.count(1)
TMPFS = "/run/farwatch/tmpfs"


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def mounted(place: Path, *options: str | Path) -> Iterator[Path]:
    """Mount a file system at a new directory."""
    place.mkdir()
    run("mount", *options, place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)


@contextlib.contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """Yield an overlayfs, whose upper directory must not be on another one."""
    with mounted(folder / "layers", "-t", "tmpfs", "none") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        with mounted(folder / "overlay", "-t", "overlay", "-o", options, "overlay") as place:
            yield place


@contextlib.contextmanager
def btrfs(folder: Path) -> Iterator[Path]:
    """Yield a subvolume of a btrfs."""
    apt.install(("btrfs-progs",), paths.LOGS / "apt-btrfs.log")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(160 << 20)
    run("mkfs.btrfs", "-q", image)
    with mounted(folder / "btrfs", "-o", "loop", image) as place:
        run("btrfs", "-q", "subvolume", "create", place / "subvolume")
        yield place / "subvolume"


FILE_SYSTEMS = {"overlayfs": overlay, "btrfs": btrfs}


@pytest.fixture(scope="module")
def shared_vms(
    shared_vms: dict[str, SharedVm],
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, SharedVm]]:
    """Yield guests for mode others that may set extended attributes, as their tmpfs permits."""
    with contextlib.ExitStack() as mounts, contextlib.ExitStack() as stack:

        def make_spec(name: str, kind: str) -> TestbedSpec:
            folder = tmp_path_factory.mktemp("share")
            if kind in FILE_SYSTEMS:
                folder = mounts.enter_context(FILE_SYSTEMS[kind](folder))
            shared = folder / "share"
            shared.mkdir()
            spec = environment.testbed_spec(f"{name}-oracle-{kind}", shared)
            return dataclasses.replace(spec, daemon_options=("--fsnotify=others", "--xattr"))

        own = {
            kind: stack.enter_context(
                contextlib.closing(SharedVm(functools.partial(make_spec, kind=kind)))
            )
            for kind in ("others", *FILE_SYSTEMS)
        }
        yield {**shared_vms, **own}


@pytest.fixture
def beside(testbed: Testbed) -> Path:
    """Return a directory on the file system of the share, outside of it."""
    path = testbed.shared.with_name(f"{testbed.shared.name}-beside")
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def host_runners(beside: Path) -> Iterator[ScriptRunners]:
    """Yield script runners on the host, enough for all threads of a script."""
    with contextlib.closing(HostScriptRunners(MAX_THREADS, beside / "outside")) as several:
        yield several


@pytest.fixture
def guest_runners(guest: Guest) -> Iterator[ScriptRunners]:
    """Yield script runners in the guest, enough for all threads of a script."""
    with contextlib.closing(GuestScriptRunners(guest, MAX_THREADS)) as several:
        yield several


def part_of(share: Share) -> Share:
    """Return a directory for one script; the script makes it."""
    name = f"script-{next(NUMBERS)}"
    return Share(share.host / name, share.guest / name)


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("testbed", ["remote"], indirect=True)
@random_scripts
@given(threads=host_scripts)
def test_random_host_script_is_reported_as_by_native_inotify(
    guest: Guest,
    share: Share,
    beside: Path,
    host_runners: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    reference = beside / part.host.name
    assert_same(
        compare_on_the_host(guest, part, reference, threads, host_runners, HostWatch.INOTIFY)
    )


@pytest.mark.patch("others-only")
@pytest.mark.parametrize("testbed", ["others", "wait", *FILE_SYSTEMS], indirect=True)
@random_scripts
@given(threads=host_scripts)
def test_random_host_script_is_reported_step_by_step_with_fanotify(
    guest: Guest,
    share: Share,
    beside: Path,
    host_runners: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    reference = beside / part.host.name
    assert_same(
        compare_on_the_host(guest, part, reference, threads, host_runners, HostWatch.FANOTIFY)
    )


@pytest.fixture
def tmpfs(guest: Guest) -> PurePosixPath:
    """Return a local file system of the guest."""
    guest.shell(f"mkdir -p {TMPFS} && (mountpoint -q {TMPFS} || mount -t tmpfs farwatch {TMPFS})")
    return PurePosixPath(TMPFS)


@pytest.mark.patch("others-only")
@random_scripts
@given(threads=guest_scripts)
def test_random_guest_script_is_reported_as_on_tmpfs(
    guest: Guest,
    share: Share,
    tmpfs: PurePosixPath,
    guest_runners: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    local = tmpfs / part.host.name
    assert_same(compare_in_the_guest(guest, part, local, threads, guest_runners))
