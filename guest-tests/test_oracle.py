# SPDX-License-Identifier: Apache-2.0
"""Any script of file operations is told in the guest as native inotify tells it, done on the host
or in the guest.

FARWATCH_EXAMPLES=N runs N random scripts for each test instead of 80, other ones each time; what
fails is told with the seed, which FARWATCH_SEED=S runs again.
"""

import contextlib
import dataclasses
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pytest
from farwatch_harness.oracle.compare import (
    Comparison,
    HostWatch,
    compare_in_the_guest,
    compare_on_the_host,
)
from farwatch_harness.oracle.operations import KINDS, FileOperation, choices
from farwatch_harness.oracle.script_runners import (
    GuestScriptRunners,
    HostScriptRunners,
    ScriptRunners,
)
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import SharedVm
from farwatch_harness.vm.testbed import Share, TestbedSpec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("FARWATCH_EXAMPLES")
SEED = int(os.environ.get("FARWATCH_SEED") or secrets.randbelow(1 << 32))
Test = TypeVar("Test", bound=Callable[..., None])


def random_scripts(test: Test) -> Test:
    """Runs the test with many scripts: the same ones each time, or of the seed if it is told how
    many."""
    chosen = settings(
        max_examples=int(EXAMPLES or 80),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        print_blob=False,
        # The guest is the same for all examples, but each has directories of its own.
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


operations = st.sampled_from(KINDS).flatmap(
    lambda kind: st.tuples(st.just(kind), *(st.sampled_from(names) for names in choices(kind))).map(
        list
    )
)
MOST_LANES = 3
one_process = st.lists(operations, min_size=1, max_size=12).map(lambda script: [script])
several_processes = st.lists(
    st.lists(operations, min_size=1, max_size=6), min_size=2, max_size=MOST_LANES
)
scripts = one_process | several_processes
ThreadScripts = list[list[FileOperation]]
NUMBERS = itertools.count(1)
TMPFS = "/run/farwatch/tmpfs"


@pytest.fixture(scope="module")
def shared_vms(
    shared_vms: dict[str, SharedVm],
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, SharedVm]]:
    """In mode others a guest that may set extended attributes, as its tmpfs lets it."""

    def make_spec(name: str) -> TestbedSpec:
        spec = environment.testbed_spec(f"{name}-oracle", tmp_path_factory.mktemp("share"))
        return dataclasses.replace(spec, daemon_options=("--fsnotify=others", "--xattr"))

    with contextlib.closing(SharedVm(make_spec)) as own:
        yield {**shared_vms, "others": own}


@pytest.fixture
def host_performers() -> Iterator[ScriptRunners]:
    """Processes on the host, enough for all lanes of a script."""
    with contextlib.closing(HostScriptRunners(MOST_LANES)) as several:
        yield several


@pytest.fixture
def guest_performers(guest: Guest) -> Iterator[ScriptRunners]:
    """Processes in the guest, enough for all lanes of a script."""
    with contextlib.closing(GuestScriptRunners(guest, MOST_LANES)) as several:
        yield several


def part_of(share: Share) -> Share:
    """A directory for one script, still to be made."""
    name = f"script-{next(NUMBERS)}"
    return Share(share.host / name, share.guest / name)


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("testbed", ["remote"], indirect=True)
@random_scripts
@given(threads=scripts)
def test_what_the_host_does_is_told_as_native_inotify_tells_it(
    guest: Guest,
    share: Share,
    tmp_path: Path,
    host_performers: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    reference = tmp_path / part.host.name
    assert_same(
        compare_on_the_host(guest, part, reference, threads, host_performers, HostWatch.INOTIFY)
    )


@pytest.mark.patch("others-only")
@pytest.mark.parametrize("testbed", ["others"], indirect=True)
@random_scripts
@given(threads=scripts)
def test_what_the_host_does_is_told_step_by_step_with_fanotify_too(
    guest: Guest,
    share: Share,
    tmp_path: Path,
    host_performers: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    reference = tmp_path / part.host.name
    assert_same(
        compare_on_the_host(guest, part, reference, threads, host_performers, HostWatch.FANOTIFY)
    )


@pytest.fixture
def tmpfs(guest: Guest) -> PurePosixPath:
    """A local file system of the guest."""
    guest.shell(f"mkdir -p {TMPFS} && (mountpoint -q {TMPFS} || mount -t tmpfs farwatch {TMPFS})")
    return PurePosixPath(TMPFS)


@pytest.mark.patch("others-only")
@random_scripts
@given(threads=scripts)
def test_what_the_guest_does_is_told_as_on_its_own_tmpfs(
    guest: Guest,
    share: Share,
    tmpfs: PurePosixPath,
    guest_performers: ScriptRunners,
    threads: ThreadScripts,
) -> None:
    part = part_of(share)
    local = tmpfs / part.host.name
    assert_same(compare_in_the_guest(guest, part, local, threads, guest_performers))
