# SPDX-License-Identifier: Apache-2.0
"""Reads the guest's console: finds what a kernel says when something is wrong with it. No I/O
here."""

import re
from dataclasses import dataclass
from enum import Enum

WATCHED_TESTBEDS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Severity(Enum):
    """What a finding means for the guest."""

    FATAL = "the guest is lost"
    WARNING = "the kernel complains"


FATAL = re.compile(
    r"Kernel panic - not syncing|Oops: |BUG: kernel NULL|BUG: unable to handle|general protection"
    r" fault"
    r"|kernel BUG at|double fault|Attempted to kill init"
)
#: Reports whose first words are no "BUG:", "WARNING:" or "INFO:", by what prints them.
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
)
#: "INFO:" begins reports of hung tasks, stalls and lockdep; these lines alone are about the
#: machine.
HARMLESS_INFO = "NMI handler |perf interrupt "
WARNING = re.compile(rf"\b(?:WARNING|BUG): |\bINFO: (?!{HARMLESS_INFO})|{'|'.join(OTHER_REPORTS)}")
# virtme-ng's init writes to the kernel's log, too, for instance when the host has no systemd.
KERNEL_LINE = re.compile(r"^\[ *\d+\.\d+\] (?!virtme-)")


@dataclass(frozen=True)
class Finding:
    """One line of the console that tells of trouble; `number` counts lines from 1."""

    severity: Severity
    number: int
    line: str


class Console:
    """The text of one guest's console, line by line, with what was found in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.findings: list[Finding] = []
        self.unfinished = ""

    def feed(self, text: str) -> list[Finding]:
        """Takes the next piece of output and returns what is new in the findings."""
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        before = len(self.findings)
        for line in lines:
            self.take(WATCHED_TESTBEDS.sub("", line))
        return self.findings[before:]

    def take(self, line: str) -> None:
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
            self.findings.append(Finding(severity, len(self.lines), line))

    def last_words(self) -> str:
        """What tells most after a loss: the trouble and the trace that follows it, else the last
        lines."""
        fatal = [finding.number for finding in self.findings if finding.severity is Severity.FATAL]
        if not fatal:
            return self.tail()
        start = max(fatal[0] - 6, 0)
        return "\n".join(self.lines[start : start + 60])

    def tail(self, count: int = 25) -> str:
        """The last lines, for a person to read."""
        return "\n".join([*self.lines, self.unfinished][-count:])
