# SPDX-License-Identifier: Apache-2.0
"""The kernel accepts the options of the debug flavour.

olddefconfig drops an option silently if its dependencies are not met.
"""

from farwatch_harness.kernel import build

WANTED = (
    "KASAN",
    "KASAN_GENERIC",
    "PROVE_LOCKING",
    "DEBUG_ATOMIC_SLEEP",
    "DEBUG_OBJECTS",
    "DEBUG_OBJECTS_FREE",
    "DEBUG_OBJECTS_WORK",
    "DEBUG_OBJECTS_TIMERS",
    "DEBUG_OBJECTS_RCU_HEAD",
    "DEBUG_KMEMLEAK",
)


def test_debug_kernel_has_its_options() -> None:
    with build.prepared(build.recipe_of([], build.Flavour.DEBUG)) as place:
        options = build.read_options(place.path / ".config")
    assert [name for name in WANTED if options.get(f"CONFIG_{name}") != "y"] == []
    assert "CONFIG_SLUB_TINY" not in options and "CONFIG_DEBUG_KMEMLEAK_AUTO_SCAN" not in options
