# SPDX-License-Identifier: Apache-2.0
"""The daemon's numbers: for Prometheus (``--metrics-socket``), and for the log at SIGUSR1."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from farwatchd.fuse.metrics import BOUNDS_NS, SAMPLED, Durations, RequestMetrics
from farwatchd.wire.fuse import Opcode

_log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One value; ``labels`` are names and values, ``suffix`` belongs to the family's name."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


class Family(NamedTuple):
    """Samples of one name; ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number that a part of the daemon has; ``read`` returns it now."""

    name: str
    help: str
    read: Callable[[], int]
    kind: str = "gauge"


class DaemonStatus:
    """The daemon's numbers. Nothing is computed before it is asked for."""

    def __init__(
        self,
        share: str,
        tag: str | None,
        requests: RequestMetrics,
        tasks: Durations,
        gauges: tuple[Gauge, ...],
    ) -> None:
        self._labels = (("share", share), ("tag", tag or ""))
        self._requests = requests
        self._tasks = tasks
        self._gauges = (*gauges, *_PROCESS)
        self._began = time.time()

    def families(self) -> Iterator[Family]:
        """Yield all metrics as Prometheus names them."""
        requests = self._requests
        yield Family("info", "gauge", "The share", [Sample(1, self._labels)])
        yield Family("start_time_seconds", "gauge", "Unix time of the start", [Sample(self._began)])
        yield Family(
            "requests_total",
            "counter",
            "FUSE requests",
            [
                *_by_opcode(requests.counts),
                Sample(requests.unknown, (("opcode", "unknown"),)),
            ],
        )
        yield Family(
            "request_errors_total",
            "counter",
            "FUSE requests whose reply was an errno",
            _by_opcode(requests.errors),
        )
        yield Family(
            "request_duration_seconds",
            "histogram",
            f"Time in the handler, of one in {SAMPLED} requests, without deferred ones",
            [
                sample
                for opcode, durations in sorted(requests.durations.items())
                for sample in _histogram(durations, (("opcode", _name(opcode)),))
            ],
        )
        yield Family(
            "task_duration_seconds",
            "histogram",
            "Time of the thread pool's tasks, waiting for a thread included",
            list(_histogram(self._tasks, ())),
        )
        yield Family("cpu_seconds_total", "counter", "CPU time used", [Sample(time.process_time())])
        for gauge in self._gauges:
            yield Family(gauge.name, gauge.kind, gauge.help, [Sample(gauge.read())])

    def text(self) -> str:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        lines = []
        for family in self.families():
            name = f"farwatchd_{family.name}"
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
            lines += [
                f"{name}{sample.suffix}{_label_text(sample.labels)} {sample.value:.10g}"
                for sample in family.samples
            ]
        return "\n".join(lines) + "\n"

    def log(self) -> None:
        """Log the numbers: a few lines, however long the daemon has served."""
        numbers = ", ".join(f"{gauge.name} {gauge.read()}" for gauge in self._gauges)
        _log.info("status: %s, cpu_seconds %.1f", numbers, time.process_time())
        requests = self._requests
        _log.info(
            "status: requests: %s",
            ", ".join(
                f"{_name(opcode)} {count}{self._details(opcode)}"
                for opcode, count in requests.counts.items()
                if count
            )
            or "none",
        )

    def _details(self, opcode: int) -> str:
        durations = self._requests.durations.get(opcode)
        parts = []
        if errors := self._requests.errors[opcode]:
            parts.append(f"{errors} errors")
        if durations is not None:
            parts.append(f"{durations.total_ns / durations.count / 1000:.0f} us")
        return f" ({', '.join(parts)})" if parts else ""


def open_descriptors() -> int:
    """Return how many descriptors the process has open.

    In the sandbox the current directory is /proc/self/fd.
    """
    # The listing has the descriptor that it is read by.
    return len(os.listdir(".")) - 1  # noqa: PTH208


_PROCESS = (
    Gauge("descriptors", "Open descriptors", open_descriptors),
    Gauge(
        "descriptors_limit",
        "The most descriptors that may be open",
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    ),
    Gauge(
        "memory_max_bytes",
        "The most memory that was resident",
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    ),
)


def _name(opcode: int) -> str:
    return Opcode(opcode).name


def _by_opcode(counts: dict[int, int]) -> list[Sample]:
    return [Sample(count, (("opcode", _name(opcode)),)) for opcode, count in counts.items()]


def _histogram(durations: Durations, labels: tuple[tuple[str, str], ...]) -> Iterator[Sample]:
    bounds = [f"{bound * 1e-9:g}" for bound in BOUNDS_NS] + ["+Inf"]
    for bound, count in zip(bounds, accumulate(durations.counts), strict=True):
        yield Sample(count, (*labels, ("le", bound)), "_bucket")
    yield Sample(durations.total_ns * 1e-9, labels, "_sum")
    yield Sample(durations.count, labels, "_count")


def _label_text(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    parts = ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels)
    return f"{{{parts}}}"
