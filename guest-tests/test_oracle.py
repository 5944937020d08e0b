# SPDX-License-Identifier: Apache-2.0
"""Any script of file operations is told in the guest as native inotify tells it, done on the host or in the guest.

FARWATCH_EXAMPLES=N runs N random scripts for each test instead of a few dozen, other ones each time; the seed of one
that fails is printed.
"""

import itertools
import os
from pathlib import PurePosixPath

import pytest
from farwatch_harness.guest import Guest
from farwatch_harness.machine import Share
from farwatch_harness.operations import NAMES, ONE, TWO, Operation
from farwatch_harness.oracle import compare_guest, compare_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("FARWATCH_EXAMPLES")
random_scripts = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    # The guest is the same for all examples, but each has directories of its own.
    suppress_health_check=list(HealthCheck),
)
names = st.sampled_from(NAMES)
operations = st.one_of(
    st.tuples(st.sampled_from(ONE), names).map(list), st.tuples(st.sampled_from(TWO), names, names).map(list)
)
scripts = st.lists(operations, min_size=1, max_size=12)
NUMBERS = itertools.count(1)
TMPFS = "/run/farwatch/tmpfs"


def on_the_host(
    guest: Guest, share: Share, twins: "pytest.TempPathFactory", script: list[Operation], exact: bool
) -> str:
    part = f"script-{next(NUMBERS)}"
    (share.host / part).mkdir()
    both = Share(share.host / part, share.guest / part)
    return compare_steps(guest, both, twins.mktemp("twin"), script, exact=exact).difference()


@pytest.mark.patch(7)
@pytest.mark.parametrize("machine", ["remote"], indirect=True)
@random_scripts
@given(script=scripts)
def test_what_the_host_does_is_told_as_native_inotify_tells_it(
    guest: Guest, share: Share, tmp_path_factory: pytest.TempPathFactory, script: list[Operation]
) -> None:
    difference = on_the_host(guest, share, tmp_path_factory, script, exact=True)
    assert not difference, difference


@pytest.mark.patch(10)
@pytest.mark.parametrize("machine", ["merged"], indirect=True)
@random_scripts
@given(script=scripts)
def test_what_the_host_does_is_told_with_what_fanotify_merges(
    guest: Guest, share: Share, tmp_path_factory: pytest.TempPathFactory, script: list[Operation]
) -> None:
    difference = on_the_host(guest, share, tmp_path_factory, script, exact=False)
    assert not difference, difference


@pytest.fixture
def tmpfs(guest: Guest) -> PurePosixPath:
    """A local file system of the guest."""
    guest.shell(f"mkdir -p {TMPFS} && (mountpoint -q {TMPFS} || mount -t tmpfs farwatch {TMPFS})")
    return PurePosixPath(TMPFS)


@pytest.mark.patch(10)
@random_scripts
@given(script=scripts)
def test_what_the_guest_does_is_told_as_on_its_own_tmpfs(
    guest: Guest, share: Share, tmpfs: PurePosixPath, script: list[Operation]
) -> None:
    part = f"script-{next(NUMBERS)}"
    difference = compare_guest(guest, tmpfs / part, share.guest / part, script).difference()
    assert not difference, difference
