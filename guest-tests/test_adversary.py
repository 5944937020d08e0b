# SPDX-License-Identifier: Apache-2.0
"""The adversary in short: random scripts for half a minute, and scripts that once found something.

The random scripts are the same each time, so that a failure is one of the change that is tested.
`make fuzz-kernel` plays new ones. On a debug kernel they are played for some minutes.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.adversary import command
from farwatch_harness.adversary.script import THEMES, TRANSPORTS, Script
from farwatch_harness.kernel import build, versions
from farwatch_harness.vm.environment import Environment

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.json"))
DEBUG = os.environ.get("FARWATCH_FLAVOUR") == build.Flavour.DEBUG.name
#: Seconds of random scripts, for each transport.
SECONDS = 90.0 if DEBUG else 10.0
#: How often a kept script is played: a race does not show each time.
TIMES = 3

pytestmark = pytest.mark.patch("move-dentries")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_random_scripts_find_nothing(environment: Environment, transport: str) -> None:
    plan = command.Plan(
        seconds=SECONDS,
        seed=os.environ.get("FARWATCH_SEED") or "adversary",
        transports=(transport,),
        pool=THEMES,
        debug=DEBUG,
        shrink_seconds=0,
        series=versions.current().folder,
        replay=(),
        times=1,
        keep_going=False,
    )
    found = command.hunt(plan, environment)
    if found:
        pytest.fail("\n".join(f"{each.script.seed}: {each.finding}" for each in found))


@pytest.fixture(scope="module")
def replayer(environment: Environment) -> Iterator[command.Replayer]:
    """Return what plays scripts, in one guest as long as nothing breaks it."""
    with contextlib.closing(command.Replayer(environment)) as found:
        yield found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_that_once_found_something_finds_nothing(
    replayer: command.Replayer, path: Path
) -> None:
    assert replayer.play(Script.load(path), TIMES) is None
