# SPDX-License-Identifier: Apache-2.0
"""Reads the text of the guest's console and finds the kernel's reports of faults. No I/O here."""

import re
from dataclasses import dataclass
from enum import Enum

TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Severity(Enum):
    """What a problem means for the guest."""

    FATAL = "the guest is lost"
    WARNING = "the kernel reports a fault and goes on"


FATAL = re.compile(
    r"Kernel panic - not syncing|Oops: |BUG: kernel NULL|BUG: unable to handle|general protection"
    r" fault"
    r"|kernel BUG at|double fault|Attempted to kill init"
)
#: Reports that do not begin with "BUG:", "WARNING:" or "INFO:", by the part that prints them.
OTHER_REPORTS = (
    # Locks and contexts.
    "turning off the locking correctness validator",
    "possible (?:recursive locking|circular locking|irq lock inversion|deadlock)",
    "inconsistent lock state",
    "suspicious RCU usage",
    "bad unlock balance",
    "held lock freed",
    r"DEBUG_LOCKS_WARN_ON\(",
    "scheduling while atomic",
    "sleeping function called from invalid context",
    # Memory and objects.
    "(?:KASAN|KCSAN|KMSAN|KFENCE|UBSAN|ODEBUG): ",
    "refcount_t: ",
    "list_(?:add|del) corruption",
    r"BUG \S+ \((?:Not tainted|Tainted)",
    "Bad page state",
    "Bad rss-counter state",
    "Wrong slab cache",
    "page allocation failure",
    "unreferenced object",
    r"kmemleak: \d+ new suspected memory leaks",
    "VFS: Busy inodes after unmount",
    # Interrupts and devices.
    "nobody cared",
    "unchecked MSR access error",
    "is not a head!",
    "cannot create duplicate filename",
    "tried to init an initialized object",
    # Whatever it is about: where nothing is wrong no trace is printed.
    "Call Trace:",
)
#: Lines with "INFO:" that are about the host's speed. All others report hung tasks, stalls or
#: locks.
HARMLESS_INFO = "NMI handler |perf interrupt "
WARNING = re.compile(rf"\b(?:WARNING|BUG): |\bINFO: (?!{HARMLESS_INFO})|{'|'.join(OTHER_REPORTS)}")
# virtme-ng's init also writes to the kernel's log, for instance if the host has no systemd.
KERNEL_LINE = re.compile(r"^\[ *\d+\.\d+\] (?!virtme-)")


@dataclass(frozen=True)
class ConsoleProblem:
    """One line of the console that reports a fault; `number` counts lines from 1."""

    severity: Severity
    number: int
    line: str


class Console:
    """The text of one guest's console, line by line, and the problems found in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[ConsoleProblem] = []
        self.unfinished = ""

    def feed(self, text: str) -> list[ConsoleProblem]:
        """Add the next part of the output; return the problems that it adds."""
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        before = len(self.problems)
        for line in lines:
            self.take(TERMINAL_CODES.sub("", line))
        return self.problems[before:]

    def take(self, line: str) -> None:
        """Add one line, without its line end."""
        self.lines.append(line)
        if not KERNEL_LINE.match(line):
            return
        severity = (
            Severity.FATAL
            if FATAL.search(line)
            else Severity.WARNING
            if WARNING.search(line)
            else None
        )
        if severity:
            self.problems.append(ConsoleProblem(severity, len(self.lines), line))

    def last_lines(self) -> str:
        """Return the first fatal problem with its trace; without one, the last lines."""
        fatal = [problem.number for problem in self.problems if problem.severity is Severity.FATAL]
        if not fatal:
            return self.tail()
        start = max(fatal[0] - 6, 0)
        return "\n".join(self.lines[start : start + 60])

    def tail(self, count: int = 25) -> str:
        """Return the last lines, for people."""
        return "\n".join([*self.lines, self.unfinished][-count:])
