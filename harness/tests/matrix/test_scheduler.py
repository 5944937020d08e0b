# SPDX-License-Identifier: Apache-2.0
"""The walk over the matrix: a broken patch makes its own cells red, blocks what needs them, and
nothing else."""

import threading

import pytest
from farwatch_harness.kernel.series import Patch
from farwatch_harness.matrix.check_outcome import Outcome, Step, failure
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.matrix.scheduler import AT_ONCE, IN_GUEST, Walk
from farwatch_harness.results import Check, CheckName, PatchResult, State
from farwatch_harness.util.errors import HarnessError

SERIES = tuple(Patch(number, f"000{number}-patch.patch", b"") for number in (1, 2, 3, 4))
ROWS = [Row(SERIES[:number], SERIES) for number in range(5)]
LETTERS = {State.PASSED: "p", State.FAILED: "F", State.BLOCKED: "b", State.ABSENT: "."}


class Witness:
    """Remembers the last state of each row."""

    def __init__(self) -> None:
        self.results: dict[int, PatchResult] = {}
        self.begun: list[tuple[int, CheckName]] = []

    def began(self, row: Row, name: CheckName) -> None:
        self.begun.append((row.number, name))

    def ended(self, row: Row, check: Check, result: PatchResult, wall: float) -> None:
        assert result.checks[-1] == check
        self.results[row.number] = result

    def picture(self) -> list[str]:
        """A row's cells as letters, in the order of CheckName."""
        return [
            "".join(LETTERS[check.state] for check in result.checks)
            for result in self.results.values()
        ]

    def reason(self, number: int, name: CheckName) -> str:
        return next(check.reason for check in self.results[number].checks if check.name is name)


def from_row(first: int, outcome: Outcome, last: int = 99) -> Step:
    """A check that passes but in the rows from `first` to `last`."""
    return lambda row: outcome if first <= row.number <= last else Outcome()


def walked(**steps: Step) -> Witness:
    """The walk over all rows; checks that are not given pass."""
    witness = Witness()
    every: dict[CheckName, Step] = {
        name: steps.get(name, lambda row: Outcome()) for name in CheckName
    }
    Walk(every, witness).over((row, PatchResult(row.number, row.title, "")) for row in ROWS)
    return witness


def test_all_is_asked_of_every_row_in_order() -> None:
    witness = walked()
    assert witness.picture() == ["pppppp"] * 5
    on_host = [name for name in CheckName if name not in IN_GUEST]
    assert [each for each in witness.begun if each[1] in on_host] == [
        (row, name) for row in range(5) for name in on_host
    ]
    for row in range(5):
        assert [name for number, name in witness.begun if number == row] == list(CheckName)


def test_a_compile_error_blocks_what_needs_the_kernel_and_later_rows_only_while_it_lasts() -> None:
    witness = walked(build=from_row(2, failure("fs/fuse/dev.c:3: error: no"), last=3))
    assert witness.picture() == ["pppppp", "pppppp", "ppFbbb", "ppbbbb", "pppppp"]
    assert witness.reason(2, CheckName.BUILD) == "fs/fuse/dev.c:3: error: no"
    assert witness.reason(2, CheckName.BOOT) == "needs build"
    assert witness.reason(2, CheckName.TESTS) == "needs boot"
    assert witness.reason(3, CheckName.BUILD) == "since 0002-patch: fs/fuse/dev.c:3: error: no"


def test_a_checkpatch_error_makes_one_cell_red() -> None:
    witness = walked(checkpatch=from_row(3, failure("ERROR: trailing whitespace"), last=3))
    assert witness.picture() == ["pppppp", "pppppp", "pppppp", "pFpppp", "pppppp"]


def test_a_kernel_with_a_new_warning_is_booted_and_tested_all_the_same() -> None:
    outcome = Outcome("warning: new", causes=frozenset({"new"}))
    assert walked(build=from_row(4, outcome)).picture()[4] == "ppFppp"


def test_a_patch_that_does_not_apply_blocks_all_that_follows() -> None:
    witness = walked(apply=from_row(2, failure("Hunk #1 FAILED")))
    assert witness.picture() == ["pppppp", "pppppp", "Fpbbbb", "bbbbbb", "bbbbbb"]
    assert witness.reason(4, CheckName.TESTS) == "0002-patch does not apply"
    assert (3, CheckName.APPLY) not in witness.begun


def test_tests_that_fail_on_are_the_first_patch_s_and_another_one_is_its_own() -> None:
    def tests(row: Row) -> Outcome:
        failing = {1: {"a"}, 2: {"a"}, 3: {"a", "b"}, 4: {"b"}}.get(row.number, set())
        return Outcome("some fail" if failing else "", causes=frozenset(failing))

    witness = walked(tests=tests)
    assert [picture[5] for picture in witness.picture()] == ["p", "F", "b", "F", "b"]
    assert witness.reason(4, CheckName.TESTS).startswith("since 0003-patch: ")


def test_what_fails_again_after_it_was_well_is_red_again() -> None:
    def boot(row: Row) -> Outcome:
        return failure("panic") if row.number in (1, 3) else Outcome()

    assert [picture[4] for picture in walked(boot=boot).picture()] == ["p", "F", "p", "F", "p"]


def test_a_check_that_cannot_be_done_fails_with_one_line() -> None:
    def sparse(row: Row) -> Outcome:
        raise HarnessError("sparse is not installed\nand more")

    witness = walked(sparse=sparse)
    assert [picture[3] for picture in witness.picture()] == ["F", "b", "b", "b", "b"]
    assert witness.reason(0, CheckName.SPARSE) == "sparse is not installed"


def test_a_check_that_is_not_asked_for_is_absent() -> None:
    witness = Witness()
    row, steps = ROWS[1], {CheckName.BUILD: from_row(0, Outcome(seconds=7.0))}
    Walk(steps, witness).over([(row, PatchResult(1, "", ""))])
    assert witness.picture() == ["..p..."]
    assert witness.results[1].checks[2].seconds == 7.0


def test_guests_of_two_rows_run_at_once_and_no_more() -> None:
    running, most = 0, 0
    both = threading.Barrier(AT_ONCE)
    one_more = threading.Event()
    lock = threading.Lock()

    def tests(row: Row) -> Outcome:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running > AT_ONCE:
                one_more.set()
        if row.last or row.number < AT_ONCE - 1:
            both.wait(10)
            # Time enough for another to come, if it may.
            one_more.wait(0.3)
        with lock:
            running -= 1
        return Outcome()

    assert walked(tests=tests).picture() == ["pppppp"] * 5
    assert most == AT_ONCE


def test_the_whole_series_has_its_guest_first_and_its_answers_last() -> None:
    witness = walked()
    assert next(number for number, name in witness.begun if name is CheckName.BOOT) == 4
    assert list(witness.results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("hard", "order"), [(True, "b0 t0 b1 t1 b2 t2"), (False, "b0 b1 b2 t0 t1 t2")]
)
def test_rows_are_tested_before_hard_work_for_the_next_and_else_together(
    hard: bool, order: str
) -> None:
    ended: list[str] = []

    def step(letter: str) -> Step:
        def run(row: Row) -> Outcome:
            ended.append(f"{letter}{row.number}")
            return Outcome()

        return run

    steps: dict[CheckName, Step] = {CheckName.BUILD: step("b"), CheckName.TESTS: step("t")}
    rows = [(row, PatchResult(row.number, "", "")) for row in ROWS[:3]]
    Walk(steps, Witness(), lambda row: hard).over(rows)
    # Guests that run at once may end in any order.
    assert (ended if hard else [*ended[:3], *sorted(ended[3:])]) == order.split()


@pytest.mark.parametrize("stop", range(8))
def test_a_walk_that_ends_anywhere_has_told_all_that_it_found(stop: int) -> None:
    witness = Witness()
    left = stop

    def step(row: Row) -> Outcome:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return Outcome()

    steps: dict[CheckName, Step] = dict.fromkeys(
        (CheckName.APPLY, CheckName.CHECKPATCH, CheckName.BUILD), step
    )
    with pytest.raises(KeyboardInterrupt):
        Walk(steps, witness).over((row, PatchResult(row.number, "", "")) for row in ROWS)
    assert sum(picture.count("p") for picture in witness.picture()) == stop


def test_an_interruption_of_a_guest_ends_the_walk() -> None:
    def boot(row: Row) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walked(boot=boot)
