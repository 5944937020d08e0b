# SPDX-License-Identifier: Apache-2.0
"""System calls on the share have the results of a local disk: 3500 observations.

The cases are in posix_cases/, and run as root and as a user. They also run on ext4 in the guest,
whose results are the expectation. A result that differs from ext4 may be that of tmpfs.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("base"), pytest.mark.daemon]

CASES = Path(__file__).parent / "posix_cases"
IDENTITIES = ("root", "user")
LIMIT = 600.0
EXT4, TMPFS = PurePosixPath("/run/reference/ext4"), PurePosixPath("/run/reference/tmpfs")
COMMON = ("--xattr", "--posix-acl", "--allow-direct-io")
ALL = ("names", "owners", "attributes", "data", "locks", "set_id")
Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Configuration:
    """Options of the daemon, and the modules of posix_cases that depend on them."""

    options: tuple[str, ...]
    cases: tuple[str, ...]
    identities: tuple[str, ...] = IDENTITIES


CONFIGURATIONS = {
    "default": Configuration((), ALL),
    "no cache": Configuration(("--cache=never", "--allow-mmap"), ("data", "owners", "set_id")),
    "writeback": Configuration(
        ("--cache=always", "--writeback"), ("data", "owners", "set_id"), ("root",)
    ),
    "locks on the host": Configuration(
        ("--posix-lock", "--flock", "--fsnotify=remote"), ("locks",)
    ),
    "privileges killed here": Configuration(
        ("--killpriv-v2", "--inode-file-handles=never"), ("owners", "set_id")
    ),
}


@dataclass(frozen=True)
class PosixDifference:
    """An intended difference of the share.

    An empty observation, configuration or identity matches any.
    """

    case: str
    observation: str
    reason: str
    configuration: str = ""
    identity: str = ""

    def covers(self, configuration: str, identity: str, case: str, observation: str) -> bool:
        """Return whether this explains a difference that was found."""
        return (
            case == self.case
            and observation.startswith(self.observation)
            and self.configuration in ("", configuration)
            and self.identity in ("", identity)
        )


NO_GROUP_EXECUTION = (
    "Linux 6.12's fs/fuse does not clear set-group-ID if the group may not execute the file"
)
NO_GROUPS_KNOWN = (
    "the host clears set-group-ID for a writer outside of the file's group, as the daemon is"
)
NO_CHANGE = "a chown(2) that changes neither id is a request without attributes"
SET_ID_CASE = "set_id_bits_by_mode_caller_and_operation"
TWO_CLOCKS = "the guest sets the time of change, the host that of access"
KNOWN = (
    PosixDifference(
        "chown_is_permitted_by_identity", "6755 to -1:-1", NO_CHANGE, "privileges killed here"
    ),
    PosixDifference(
        "chown_is_permitted_by_identity", "4711 to -1:-1", NO_CHANGE, "privileges killed here"
    ),
    PosixDifference("times_are_set", "now", TWO_CLOCKS, "writeback"),
    *(
        PosixDifference(SET_ID_CASE, f"set-group-ID of {bits}", NO_GROUP_EXECUTION)
        for bits in ("2666", "6666")
    ),
    *(
        known
        for bits in ("2767", "7666")
        for known in (
            PosixDifference(
                "writing_clears_set_id_bits", bits, NO_GROUP_EXECUTION, identity="root"
            ),
            PosixDifference(
                "writing_clears_set_id_bits", bits, NO_GROUPS_KNOWN, "no cache", "user"
            ),
            PosixDifference(
                "writing_clears_set_id_bits",
                bits,
                NO_GROUPS_KNOWN,
                "privileges killed here",
                "user",
            ),
        )
    ),
)


def run_cases(guest: Guest, folder: PurePosixPath, identity: str, names: Iterable[str]) -> Outcomes:
    """Run cases in the guest, by name or by module."""
    done = guest.run(
        sys.executable, "-I", "-S", "-B", str(CASES), str(folder), identity, *names, limit=LIMIT
    )
    assert done.status == 0 and not done.timed_out, f"{folder} as {identity}: {done.stderr[-2000:]}"
    assert not done.stderr, done.stderr[-2000:]
    outcomes: Outcomes = json.loads(done.stdout)
    broken = {
        case: found["broken off"] for case, found in outcomes.items() if "broken off" in found
    }
    assert not broken, f"{folder} as {identity}: {broken}"
    return outcomes


class Reference:
    """The results of local file systems of the guest, found once for all configurations."""

    def __init__(self) -> None:
        self.ext4: dict[str, Outcomes] = {}
        self.tmpfs: dict[str, Outcomes] = {identity: {} for identity in IDENTITIES}

    def find(self, guest: Guest) -> None:
        """Run all cases on ext4."""
        if self.ext4:
            return
        disk = "/run/reference/disk"
        guest.shell(
            f"mkdir -p {EXT4} && truncate -s 256M {disk} && mkfs.ext4 -q -b 4096 -I 256 {disk}",
            limit=60.0,
        )
        guest.shell(f"mount -o loop {disk} {EXT4}")
        self.ext4 = {identity: run_cases(guest, EXT4, identity, ALL) for identity in IDENTITIES}
        guest.umount(str(EXT4))

    def find_on_tmpfs(self, guest: Guest, identity: str, cases: set[str]) -> None:
        """Run those of the cases on tmpfs that have not run there."""
        wanted = cases - self.tmpfs[identity].keys()
        if not wanted:
            return
        guest.shell(f"mkdir -p {TMPFS} && mount -t tmpfs tmpfs {TMPFS}")
        self.tmpfs[identity] |= run_cases(guest, TMPFS, identity, sorted(wanted))
        guest.umount(str(TMPFS))


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Shared by the configurations."""
    return Reference()


def differing(found: Outcomes, expected: Outcomes) -> Iterator[tuple[str, str]]:
    """Yield case and observation of each result that differs."""
    for case, observations in found.items():
        assert observations.keys() == expected[case].keys(), case
        yield from (
            (case, what)
            for what, outcome in observations.items()
            if outcome != expected[case][what]
        )


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_system_calls_have_the_results_of_a_local_disk(
    configuration: str, boot: Any, guest: Guest, reference: Reference
) -> None:
    reference.find(guest)
    chosen = CONFIGURATIONS[configuration]
    testbed: Testbed = boot(daemon_options=(*COMMON, *chosen.options))
    testbed.shared.chmod(0o755)
    unexpected = []
    for identity in chosen.identities:
        found = run_cases(testbed.guest, testbed.mount_point, identity, chosen.cases)
        differences = [
            (case, what)
            for case, what in differing(found, reference.ext4[identity])
            if not any(known.covers(configuration, identity, case, what) for known in KNOWN)
        ]
        reference.find_on_tmpfs(guest, identity, {case for case, _ in differences})
        unexpected += [
            f"{identity}: {case}: {what}: {found[case][what]} instead of"
            f" {reference.ext4[identity][case][what]}"
            for case, what in differences
            if found[case][what] != reference.tmpfs[identity][case][what]
        ]
    assert not unexpected, f"{len(unexpected)} differences:\n" + "\n".join(unexpected)
