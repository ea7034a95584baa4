"""Where the marks of the index page's charts stand: values in, coordinates for inline SVG out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llmnb.runs.records import as_number, as_text, number_text

LEFT, TOP, WIDTH, HEIGHT = 52, 12, 296, 140  # the plot's own box in a picture of 360 by 200
MAX_CATEGORIES = 8  # more texts than these can't be read below a chart
MIN_RATIO_OF_LOG_AXIS = 30  # of the largest to the smallest value
MAX_LABEL_CHARACTERS = 14


class Point(NamedTuple):
    """A setting in a chart."""

    x: Any  # a number or a text
    value: float
    low: float
    high: float
    title: str
    is_best: bool


class Axis(NamedTuple):
    """A scale: positions from 0 to 1 for values, and (position, label) of its ticks."""

    positions: list[float]
    ticks: list[tuple[float, str]]


def chart(points: list[Point], x_label: str) -> dict | None:
    """The coordinates of marks and ticks; None where x doesn't differ or can't be drawn."""
    x_axis = _x_axis([point.x for point in points])
    if x_axis is None:
        return None
    ends = [end for point in points for end in (point.value, point.low, point.high)]
    y_axis = _linear(ends)
    marks = []
    for number, point in enumerate(points):
        value, low, high = (_y(p) for p in y_axis.positions[3 * number : 3 * number + 3])
        x = _x(x_axis.positions[number])
        marks.append({"x": x, "y": value, "low": low, "high": high, "point": point})
    return {
        "x_label": x_label,
        "marks": marks,
        "x_ticks": [(_x(position), label) for position, label in x_axis.ticks],
        "y_ticks": [(_y(position), label) for position, label in y_axis.ticks],
    }


def _x(position: float) -> float:
    return round(LEFT + WIDTH * (0.05 + 0.9 * position), 1)


def _y(position: float) -> float:
    return round(TOP + HEIGHT * (1 - position), 1)


def _x_axis(values: list) -> Axis | None:
    numbers = [as_number(value) for value in values]
    if None not in numbers:
        if min(numbers) == max(numbers):
            return None
        if min(numbers) > 0 and max(numbers) / min(numbers) >= MIN_RATIO_OF_LOG_AXIS:
            return _logarithmic(numbers)
        return _linear(numbers)
    texts = [as_text(value) for value in values]
    names = list(dict.fromkeys(texts))
    if not 1 < len(names) <= MAX_CATEGORIES:
        return None
    places = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
    ticks = [(places[name], _short(name)) for name in names]
    return Axis([places[text] for text in texts], ticks)


def _short(text: str) -> str:
    if len(text) <= MAX_LABEL_CHARACTERS:
        return text
    return text[: MAX_LABEL_CHARACTERS - 1] + "…"


def _linear(values: list[float]) -> Axis:
    """An axis from a round number to a round number, around the values."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    ticks = locator.tick_values(min(values), max(values)).tolist()
    bottom, width = ticks[0], ticks[-1] - ticks[0]
    positions = [(value - bottom) / width for value in values]
    return Axis(positions, [((tick - bottom) / width, f"{tick:.6g}") for tick in ticks])


def _logarithmic(values: list[float]) -> Axis:
    """An axis whose ticks are the values themselves, or a few of them."""
    logs = [math.log(value) for value in values]
    bottom, width = min(logs), max(logs) - min(logs)
    positions = [(log - bottom) / width for log in logs]
    labels = dict(sorted(zip(positions, map(number_text, values), strict=True)))
    ticks = []
    for position, label in labels.items():
        if not ticks or position - ticks[-1][0] > 0.15:
            ticks.append((position, label))
    return Axis(positions, ticks)
