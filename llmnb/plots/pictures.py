"""Pictures: tokens as boxes, matrices side by side, stacks of layers. Charts: charts.py."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from llmnb.plots.canvas import COLOURS, Figure, axes_of, box, label_of, need, style


@dataclass(frozen=True)
class Panel:
    """One of several small pictures: a matrix (rows, columns), and what its sides are."""

    name: str
    matrix: Any
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""


def tokens(rows: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Each row's pieces as coloured boxes, one box a token: how a text is cut."""
    need(rows, "rows")
    alt = "; ".join(
        f"{name}: {len(pieces)} tokens {' | '.join(pieces)}" for name, pieces in rows.items()
    )
    with rc_context(style()):
        figure, (axes,) = axes_of(title, alt, width=8.4, height=0.5 + 0.5 * len(rows))
        axes.set_axis_off()
        right_end = 59.9
        for row, (name, pieces) in enumerate(rows.items()):
            axes.text(
                0, -row, label_of(name), ha="right", va="center", fontsize=10, color="#444444"
            )
            left = 0.4
            for index, piece in enumerate(map(label_of, pieces)):
                width = _text_width(piece) + 0.5
                axes.add_patch(box(left, -row, width, COLOURS[index % 3]))
                middle = left + width / 2
                axes.text(middle, -row, piece, ha="center", va="center", fontsize=9)
                left += width + 0.15
            right_end = max(right_end, left)
        axes.set_xlim(0, right_end + 0.1)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
    return figure


def _text_width(piece: str) -> float:
    return sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in piece)


def maps(panels: Sequence[Panel], title: str, bar_label: str, per_row: int = 4) -> Figure:
    """Matrices as small pictures side by side on one scale of colours, rows from the top."""
    need(panels, "panels")
    lines = math.ceil(len(panels) / per_row)
    columns = min(len(panels), per_row)
    descriptions = []
    for panel in panels:
        n_rows, n_columns = np.shape(panel.matrix)
        descriptions.append(f"{panel.name} ({n_rows} by {n_columns})")
    alt = f"Pictures of {bar_label}: {'; '.join(descriptions)}. {panels[0].y_label} down, "
    alt += f"{panels[0].x_label} across"
    values = np.concatenate([np.ravel(panel.matrix) for panel in panels])
    scale = {"vmin": float(np.min(values)), "vmax": float(np.max(values)), "cmap": "cividis"}
    with rc_context(style() | {"axes.grid": False}):
        height = 0.9 + 7.2 / max(columns, 2) * lines
        figure, all_axes = axes_of(
            title, alt, width=8.4, height=height, columns=columns, rows=lines
        )
        for axes in all_axes[len(panels) :]:
            axes.set_axis_off()
        for number, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
            image = axes.imshow(panel.matrix, aspect="auto", interpolation="nearest", **scale)
            axes.set_title(label_of(panel.name), fontsize=10, fontweight="normal")
            for axis, texts in ((axes.xaxis, panel.columns), (axes.yaxis, panel.rows)):
                if texts:
                    font_size = 8 if len(texts) <= 16 else 6
                    labels = [label_of(text) for text in texts]
                    axis.set_ticks(range(len(texts)), labels, fontsize=font_size)
                else:
                    axis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(axis="x", labelrotation=90 if panel.columns else 0)
            axes.set_xlabel(panel.x_label, fontsize=9)
            axes.set_ylabel("" if number % per_row else panel.y_label, fontsize=9)
        figure.colorbar(image, ax=list(all_axes), label=bar_label, shrink=0.9, format="{x:g}")
    return figure


def stacks(
    columns: Mapping[str, Sequence[str]], links: Sequence[tuple[int, int, int, int]], title: str
) -> Figure:
    """Columns of boxes, read from the bottom; links: from column, box to column, box.

    A link within a column is a residual connection: from above a box, around those that follow.
    A box whose text begins with * is one of a group that is repeated, and gets the group's colour.
    """
    need(columns, "columns")
    alt = "; ".join(f"{n}, from the bottom: {', '.join(b)}" for n, b in columns.items())
    alt = alt.replace("*", "")
    height = max(map(len, columns.values()))
    with rc_context(style()):
        figure, (axes,) = axes_of(title, alt, width=8.4, height=0.9 + 0.52 * height)
        axes.set_axis_off()
        for column, (name, boxes) in enumerate(columns.items()):
            axes.text(column, -0.85, name, ha="center", va="center", fontweight="bold")
            for row, text in enumerate(boxes):
                colour = COLOURS[0] if text.startswith("*") else COLOURS[6]
                axes.add_patch(box(column - 0.41, row, 0.82, colour))
                axes.text(column, row, text.lstrip("*"), ha="center", va="center", fontsize=9.5)
                if row:
                    _arrow(axes, (column, row - 0.64), (column, row - 0.36))
        for left, low, right, high in links:
            side = left + 0.46
            if left == right:
                axes.plot((left, side, side), (low + 0.5, low + 0.5, high), color="#444444", lw=1.2)
                _arrow(axes, (side + 0.01, high), (left + 0.41, high))
            else:
                _arrow(axes, (left + 0.41, low), (right - 0.41, high))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-1.2, height - 0.5))
    return figure


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "->", "color": "#444444", "lw": 1.2}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
