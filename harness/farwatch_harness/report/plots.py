# SPDX-License-Identifier: Apache-2.0
"""The benchmark's plots as SVG; the page's style has the colours.

Series also differ by shape, and each plot has its table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from farwatch_harness.bench import bench_report
from farwatch_harness.bench.events import Latency, Throughput
from farwatch_harness.bench.operations import Rate

WIDTH = 540
LEFT, RIGHT = 125, 24
ROW = 30
TOP = 14
CHART_HEIGHT = 300


@dataclass(frozen=True)
class Scale:
    """Maps a value to a coordinate; `low` and `high` are at `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def log_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """Return a logarithmic scale between round numbers around the values.

    Values of 0 and less are left out.
    """
    found = [value for value in values if value > 0] or [1.0]
    steps = [factor * 10.0**power for power in range(-12, 13) for factor in (1, 2, 5)]
    low = max(step for step in steps if step <= min(found))
    high = min(step for step in steps if step >= max(found) and step > low)
    return Scale(low, high, start, end, logarithmic=True)


def round_numbers(scale: Scale) -> list[float]:
    """Return the ticks of a logarithmic scale.

    They are 1, 2 and 5 times powers of ten, or the powers alone if there are many.
    """
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    found = (factor * 10.0**power for power in powers for factor in factors)
    return [number for number in found if scale.low * 0.999 <= number <= scale.high * 1.001]


def round_steps(high: float, steps: int = 5) -> list[float]:
    """Return about `steps` round numbers from 0 to at least `high`."""
    raw = max(high, 1.0) / steps
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [step * number for number in range(max(1, math.ceil(high / step)) + 1)]


def svg(height: float, title: str, parts: Iterable[Markup]) -> Markup:
    """Return the whole picture; `title` is its name for screen readers."""
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def label(x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> Markup:
    """Return a text whose baseline is at y."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, style, text
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """Return a straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, style
    )


def shape(number: int, x: float, y: float) -> Markup:
    """Return the marker of a series: a circle, square, diamond or triangle, in its colour."""
    outlines = (
        "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
        "M-4.5,-4.5h9v9h-9z",
        "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
        "M0,-6L6,5H-6z",
    )
    path = outlines[number % len(outlines)]
    return Markup('<path d="{}" transform="translate({:.1f} {:.1f})" class="sign s{}"/>').format(
        path, x, y, number % 4
    )


def legend(names: Sequence[str], y: float) -> list[Markup]:
    """Return the markers and names of the series, in a row."""
    parts: list[Markup] = []
    x = float(LEFT)
    for number, name in enumerate(names):
        parts += [shape(number, x + 6, y - 4), label(x + 18, y, name, "start")]
        x += 34 + 7.2 * len(name)
    return parts


def grid(
    scale: Scale, top: float, bottom: float, ticks: Sequence[float], name: Callable[[float], str]
) -> list[Markup]:
    """Return vertical lines at the ticks, with their names below."""
    parts: list[Markup] = []
    for tick in ticks:
        parts += [
            line(scale(tick), top, scale(tick), bottom, "grid"),
            label(scale(tick), bottom + 17, name(tick)),
        ]
    return parts


def microseconds(value: float) -> str:
    """Format a time for people."""
    return (
        f"{value:g} µs"
        if value < 1000
        else f"{value / 1000:g} ms"
        if value < 1e6
        else f"{value / 1e6:g} s"
    )


def thousands(value: float) -> str:
    """Format a number for people."""
    return f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"


def latency(latencies: Sequence[Latency]) -> Markup:
    """Plot the median of each mode, and a line to the 99th percentile."""
    scale = log_scale(
        [value for each in latencies for value in (each.median, each.p99)], LEFT, WIDTH - RIGHT
    )
    bottom = TOP + 10 + (ROW + 14) * len(latencies)
    parts = grid(scale, TOP, bottom, round_numbers(scale), microseconds)
    for number, each in enumerate(latencies):
        y = TOP + 10 + (ROW + 14) * (number + 0.65)
        first, last = scale(each.median), scale(each.p99)
        parts += [
            label(LEFT - 12, y + 4, each.mode, "end"),
            line(first, y, last, y, f"line l{number % 4}"),
            line(last, y - 7, last, y + 7, f"line l{number % 4}"),
            shape(number, first, y),
            label(first, y - 12, microseconds(float(f"{each.median:.3g}")), "middle", "value"),
            label(last, y - 12, microseconds(float(f"{each.p99:.3g}")), "middle", "value"),
        ]
    parts.append(
        label(
            (LEFT + WIDTH - RIGHT) / 2,
            bottom + 36,
            "marker: median; end of the line: 99th percentile",
        )
    )
    return svg(bottom + 44, "Latency by mode: median and 99th percentile", parts)


def throughput(throughputs: Sequence[Throughput]) -> Markup:
    """Plot the events per second that arrive against the number of files of a burst."""
    batches = [batch for each in throughputs for batch in each.batches]
    top, bottom = TOP + 26, TOP + CHART_HEIGHT
    across = log_scale([batch.count for batch in batches], LEFT - 60, WIDTH - RIGHT)
    steps = round_steps(
        max([batch.guest_rate for batch in batches] + [each.steady_rate for each in throughputs])
    )
    up = Scale(0.0, steps[-1], bottom, top)
    parts = grid(across, top, bottom, round_numbers(across), thousands)
    for step in steps:
        parts += [line(LEFT - 60, up(step), WIDTH - RIGHT, up(step), "grid")]
        parts += [label(LEFT - 70, up(step) + 4, thousands(step), "end")]
    for number, each in enumerate(throughputs):
        points = " ".join(
            f"{across(batch.count):.1f},{up(batch.guest_rate):.1f}" for batch in each.batches
        )
        parts.append(Markup('<polyline points="{}" class="line l{}"/>').format(points, number % 4))
        for batch in each.batches:
            parts.append(shape(number, across(batch.count), up(batch.guest_rate)))
            if batch.lost:
                parts.append(
                    label(across(batch.count), up(batch.guest_rate) - 12, "lost", "middle", "value")
                )
    parts += legend([each.mode for each in throughputs], TOP + 4)
    parts.append(
        label(
            (LEFT + WIDTH - RIGHT) / 2,
            bottom + 36,
            "files created in one burst; vertical axis: events per second",
        )
    )
    return svg(
        bottom + 44,
        "Events per second that arrive in the guest, by the number of files created",
        parts,
    )


def rates(rates: Sequence[Rate], where: str = "in a guest") -> Markup:
    """Plot the ratio of our rate to each other daemon's, for each operation.

    Return an empty text if there is nothing to compare.
    """
    found = {(rate.operation, rate.server): rate.rounds for rate in rates}
    servers = list(dict.fromkeys(rate.server for rate in rates))
    others = [name for name in servers if not name.startswith(bench_report.OURS)]
    operations = list(dict.fromkeys(rate.operation for rate in rates))
    if not others or bench_report.OURS not in servers:
        return Markup("")
    ratios = {
        (operation, other): bench_report.ratio(
            found[operation, bench_report.OURS], found[operation, other]
        )
        for operation in operations
        for other in others
    }
    scale = log_scale([*ratios.values(), 0.9, 1.1], LEFT, WIDTH - RIGHT)
    top = TOP + 26
    bottom = top + 10 + ROW * len(operations)
    parts = grid(scale, top, bottom, round_numbers(scale), lambda value: f"{value:g} x")
    parts.append(line(scale(1), top, scale(1), bottom, "axis"))
    for row, operation in enumerate(operations):
        y = top + 10 + ROW * (row + 0.5)
        parts.append(label(LEFT - 12, y + 4, operation.title, "end"))
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts += [
            shape(number, scale(ratios[operation, other]), y) for number, other in enumerate(others)
        ]
    parts += legend([f"against {other}" for other in others], TOP + 4)
    parts.append(
        label(
            (LEFT + WIDTH - RIGHT) / 2,
            bottom + 36,
            "farwatchd's rate over the other's; right of 1 x is faster",
        )
    )
    return svg(
        bottom + 44, f"Operations per second of farwatchd {where}, relative to other daemons", parts
    )
