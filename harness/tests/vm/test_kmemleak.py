# SPDX-License-Identifier: Apache-2.0
"""A kernel with kmemleak is asked, and what it lists is a failure."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm import kmemleak
from farwatch_harness.vm.guest_client import Guest

LISTED = (
    'unreferenced object 0xffff888003b (size 64):\n  comm "init", pid 1\n   '
    " fuse_fsnotify_watch+0x1/0x2\n"
)


class FakeGuest:
    """A guest that has kmemleak or not, and what it lists."""

    def __init__(self, has: bool, listed: str) -> None:
        self.has, self.listed = has, listed
        self.asked: list[str] = []

    def os(self, name: str, *args: Any) -> bool:
        assert (name, args) == ("access", (kmemleak.KMEMLEAK, 0))
        return self.has

    def shell(self, script: str, limit: float) -> str:
        self.asked.append(script)
        return self.listed


@pytest.fixture
def guest_with() -> Callable[[bool, str], tuple[FakeGuest, Guest]]:
    def make(has: bool, listed: str) -> tuple[FakeGuest, Guest]:
        fake = FakeGuest(has, listed)
        return fake, cast(Guest, fake)

    return make


def test_leak_is_an_error_with_its_report(
    guest_with: Callable[[bool, str], tuple[FakeGuest, Guest]],
) -> None:
    fake, guest = guest_with(True, LISTED * 2)
    with pytest.raises(HarnessError, match=r"(?s)leaked 2 objects.*fuse_fsnotify_watch"):
        kmemleak.fail_on_leaks(guest)
    assert fake.asked[0].count("echo scan") == 2


def test_kernel_without_leak_or_without_kmemleak_passes(
    guest_with: Callable[[bool, str], tuple[FakeGuest, Guest]],
) -> None:
    for has, listed in ((True, "\n"), (False, LISTED)):
        fake, guest = guest_with(has, listed)
        kmemleak.fail_on_leaks(guest)
        assert bool(fake.asked) == has
