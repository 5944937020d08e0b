# SPDX-License-Identifier: Apache-2.0
"""The scheduler with checks that are functions: order, causes, concurrency, interruption."""

import threading

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix.check_outcome import CheckOutcome, CheckRunner, failure
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.matrix.scheduler import ENDS_ONLY, GUEST_CHECKS, MAX_GUESTS, Scheduler
from farwatch_harness.results import CheckName, CheckResult, PatchResult, Status
from farwatch_harness.util.errors import HarnessError

SERIES = tuple(
    Patch(number, f"000{number}-patch.patch", b"", name="patch") for number in (1, 2, 3, 4)
)
PREFIXES = [Prefix(SERIES[:number], SERIES) for number in range(5)]
LETTERS = {Status.PASSED: "p", Status.FAILED: "F", Status.BLOCKED: "b", Status.SKIPPED: "."}


class RecordedProgress:
    """Records the last result of each patch."""

    def __init__(self) -> None:
        self.results: dict[int, PatchResult] = {}
        self.started: list[tuple[int, CheckName]] = []

    def check_started(self, prefix: Prefix, name: CheckName) -> None:
        self.started.append((prefix.number, name))

    def check_finished(
        self, prefix: Prefix, check: CheckResult, result: PatchResult, wall: float
    ) -> None:
        assert result.checks[-1] == check
        self.results[prefix.number] = result

    def picture(self) -> list[str]:
        """Return each patch's results as letters, in the order of CheckName."""
        return [
            "".join(LETTERS[check.status] for check in result.checks)
            for result in self.results.values()
        ]

    def reason(self, number: int, name: CheckName) -> str:
        return next(check.reason for check in self.results[number].checks if check.name is name)


def from_prefix(first: int, outcome: CheckOutcome, last: int = 99) -> CheckRunner:
    """Return a check with this outcome for the patches `first` to `last`; it passes for others."""
    return lambda prefix: outcome if first <= prefix.number <= last else CheckOutcome()


def run_all(**runners: CheckRunner) -> RecordedProgress:
    """Run all checks of all patches; a check that is not given passes."""
    progress = RecordedProgress()
    every: dict[CheckName, CheckRunner] = {
        name: runners.get(name, lambda prefix: CheckOutcome()) for name in CheckName
    }
    Scheduler(every, progress).run(
        (prefix, PatchResult(prefix.number, prefix.title, "")) for prefix in PREFIXES
    )
    return progress


def test_every_patch_gets_every_check_in_order() -> None:
    progress = run_all()
    assert progress.picture() == ["ppppppp", "pppp.pp", "pppp.pp", "pppp.pp", "ppppppp"]
    on_host = [name for name in CheckName if name not in GUEST_CHECKS]
    between = [name for name in CheckName if name not in ENDS_ONLY]
    assert [each for each in progress.started if each[1] in on_host] == [
        (prefix, name)
        for prefix in range(5)
        for name in on_host
        if prefix in (0, 4) or name in between
    ]
    for prefix in range(5):
        assert [name for number, name in progress.started if number == prefix] == (
            list(CheckName) if prefix in (0, 4) else between
        )


def test_compile_error_blocks_dependent_checks_and_later_patches_until_fixed() -> None:
    progress = run_all(build=from_prefix(2, failure("fs/fuse/dev.c:3: error: no"), last=3))
    assert progress.picture() == ["ppppppp", "pppp.pp", "ppFb.bb", "ppbb.bb", "ppppppp"]
    assert progress.reason(2, CheckName.BUILD) == "fs/fuse/dev.c:3: error: no"
    assert progress.reason(2, CheckName.BOOT) == "needs build"
    assert progress.reason(2, CheckName.TESTS) == "needs boot"
    assert progress.reason(3, CheckName.BUILD) == "since 0002 patch: fs/fuse/dev.c:3: error: no"


def test_checkpatch_error_fails_one_check() -> None:
    progress = run_all(checkpatch=from_prefix(3, failure("ERROR: trailing whitespace"), last=3))
    assert progress.picture() == ["ppppppp", "pppp.pp", "pppp.pp", "pFpp.pp", "ppppppp"]


def test_kernel_with_new_warning_is_booted_and_tested() -> None:
    outcome = CheckOutcome("warning: new", causes=frozenset({"new"}))
    assert run_all(build=from_prefix(4, outcome)).picture()[4] == "ppFpppp"


def test_patch_that_does_not_apply_blocks_all_later_patches() -> None:
    progress = run_all(apply=from_prefix(2, failure("Hunk #1 FAILED")))
    assert progress.picture() == ["ppppppp", "pppp.pp", "Fpbb.bb", "bbbb.bb", "bbbbbbb"]
    assert progress.reason(4, CheckName.TESTS) == "0002 patch does not apply"
    assert (3, CheckName.APPLY) not in progress.started


def test_failure_is_attributed_to_the_patch_that_introduced_it() -> None:
    def tests(prefix: Prefix) -> CheckOutcome:
        failing = {1: {"a"}, 2: {"a"}, 3: {"a", "b"}, 4: {"b"}}.get(prefix.number, set())
        return CheckOutcome("some fail" if failing else "", causes=frozenset(failing))

    progress = run_all(tests=tests)
    assert [picture[6] for picture in progress.picture()] == ["p", "F", "b", "F", "b"]
    assert progress.reason(4, CheckName.TESTS).startswith("since 0003 patch: ")


def test_failure_that_returns_after_a_pass_is_failed_again() -> None:
    def boot(prefix: Prefix) -> CheckOutcome:
        return failure("panic") if prefix.number in (1, 3) else CheckOutcome()

    assert [picture[5] for picture in run_all(boot=boot).picture()] == ["p", "F", "p", "F", "p"]


def test_check_that_cannot_run_fails_with_one_line() -> None:
    def sparse(prefix: Prefix) -> CheckOutcome:
        raise HarnessError("sparse is not installed\nand more")

    progress = run_all(sparse=sparse)
    assert [picture[3] for picture in progress.picture()] == ["F", "b", "b", "b", "b"]
    assert progress.reason(0, CheckName.SPARSE) == "sparse is not installed"


def test_check_that_was_not_requested_is_absent() -> None:
    progress = RecordedProgress()
    prefix, runners = PREFIXES[1], {CheckName.BUILD: from_prefix(0, CheckOutcome(seconds=7.0))}
    Scheduler(runners, progress).run([(prefix, PatchResult(1, "", ""))])
    assert progress.picture() == ["..p...."]
    assert progress.results[1].checks[2].seconds == 7.0


def test_guests_of_at_most_two_patches_run_concurrently() -> None:
    running, most = 0, 0
    both = threading.Barrier(MAX_GUESTS)
    one_more = threading.Event()
    lock = threading.Lock()

    def tests(prefix: Prefix) -> CheckOutcome:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running > MAX_GUESTS:
                one_more.set()
        if prefix.last or prefix.number < MAX_GUESTS - 1:
            both.wait(10)
            # Time enough for another to come, if it may.
            one_more.wait(0.3)
        with lock:
            running -= 1
        return CheckOutcome()

    assert run_all(tests=tests).picture() == ["ppppppp", "pppp.pp", "pppp.pp", "pppp.pp", "ppppppp"]
    assert most == MAX_GUESTS


def test_whole_series_boots_first_and_reports_last() -> None:
    progress = run_all()
    assert next(number for number, name in progress.started if name is CheckName.BOOT) == 4
    assert list(progress.results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("hard", "order"), [(True, "b0 t0 b1 t1 b2 t2"), (False, "b0 b1 b2 t0 t1 t2")]
)
def test_guests_finish_before_the_next_kernel_is_built(hard: bool, order: str) -> None:
    order_seen: list[str] = []

    def step(letter: str) -> CheckRunner:
        def run(prefix: Prefix) -> CheckOutcome:
            order_seen.append(f"{letter}{prefix.number}")
            return CheckOutcome()

        return run

    runners: dict[CheckName, CheckRunner] = {CheckName.BUILD: step("b"), CheckName.TESTS: step("t")}
    prefixes = [(prefix, PatchResult(prefix.number, "", "")) for prefix in PREFIXES[:3]]
    Scheduler(runners, RecordedProgress(), lambda prefix: hard).run(prefixes)
    # Guests that run concurrently may end in any order.
    assert (order_seen if hard else [*order_seen[:3], *sorted(order_seen[3:])]) == order.split()


@pytest.mark.parametrize("stop", range(8))
def test_interrupted_run_has_reported_all_its_results(stop: int) -> None:
    progress = RecordedProgress()
    left = stop

    def step(prefix: Prefix) -> CheckOutcome:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return CheckOutcome()

    runners: dict[CheckName, CheckRunner] = dict.fromkeys(
        (CheckName.APPLY, CheckName.CHECKPATCH, CheckName.BUILD), step
    )
    with pytest.raises(KeyboardInterrupt):
        Scheduler(runners, progress).run(
            (prefix, PatchResult(prefix.number, "", "")) for prefix in PREFIXES
        )
    assert sum(picture.count("p") for picture in progress.picture()) == stop


def test_interruption_in_a_guest_ends_the_run() -> None:
    def boot(prefix: Prefix) -> CheckOutcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(boot=boot)
