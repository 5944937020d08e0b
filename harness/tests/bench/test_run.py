# SPDX-License-Identifier: Apache-2.0
"""The plan of a benchmark, from the command line."""

import argparse

import pytest
from farwatch_harness.bench import run
from farwatch_harness.bench.daemons import WITHOUT_EVENTS
from farwatch_harness.util.errors import HarnessError


def plan_of(*words: str) -> run.BenchmarkPlan:
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    return run.plan_of(parser.parse_args(words))


def test_variant_is_the_same_daemon_with_further_options() -> None:
    plan = plan_of("--variant=--state-dir=/run/bench", "--variant=--native=off")
    (compared,) = run.compared_daemons(plan)
    assert compared.command is None
    assert compared.options == (*WITHOUT_EVENTS, "--state-dir=/run/bench", "--native=off")


def test_variant_and_another_checkout_exclude_each_other() -> None:
    with pytest.raises(HarnessError, match="excludes"):
        plan_of("--variant=--native=off", "--against=farwatchd")
