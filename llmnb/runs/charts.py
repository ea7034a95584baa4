"""Where the marks of the index page's charts stand: values in, coordinates for inline SVG out."""

from __future__ import annotations

import math
from typing import NamedTuple

LEFT, TOP, WIDTH, HEIGHT = 52, 12, 296, 140  # the plot's own box in a picture of 360 by 200
MAX_LABELS = 6  # of texts below a chart
MAX_LABEL_CHARACTERS = 12


class Axis(NamedTuple):
    """A scale: positions from 0 to 1 for values, and (position, label) of its ticks."""

    positions: list[float]
    ticks: list[tuple[float, str]]


def chart(pairs: list[tuple[float | str, dict]], x_label: str) -> dict | None:
    """The coordinates of marks and ticks; None if there are fewer than two different x.

    pairs: x, and a line of the index page with its "value", "low" and "high".
    """
    x_axis = _x_axis([x for x, _ in pairs]) if pairs else None
    if x_axis is None:
        return None
    ends = [line[key] for _, line in pairs for key in ("value", "low", "high")]
    y_axis = _linear(ends)
    marks = []
    for number, (_, line) in enumerate(pairs):
        y, low, high = (_y(p) for p in y_axis.positions[3 * number : 3 * number + 3])
        x = _x(x_axis.positions[number])
        marks.append({"x": x, "y": y, "low": low, "high": high, "line": line})
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
    """An axis for numbers, or one with a place for each text, in their order."""
    if all(isinstance(value, float) for value in values):
        return _linear(values) if min(values) < max(values) else None
    texts = list(dict.fromkeys(values))
    if len(texts) < 2:
        return None
    positions = {text: (number + 0.5) / len(texts) for number, text in enumerate(texts)}
    step = math.ceil(len(texts) / MAX_LABELS)
    ticks = [(positions[text], _short(text)) for text in texts[::step]]
    return Axis([positions[text] for text in values], ticks)


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARACTERS else text[: MAX_LABEL_CHARACTERS - 1] + "…"


def _linear(values: list[float]) -> Axis:
    """An axis from a round number to a round number, around the values."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    ticks = locator.tick_values(min(values), max(values)).tolist()
    bottom, width = ticks[0], ticks[-1] - ticks[0]
    positions = [(value - bottom) / width for value in values]
    return Axis(positions, [((tick - bottom) / width, f"{tick:.6g}") for tick in ticks])
