"""Pictures: tokens as boxes, coloured text, matrices, stacks of layers. Charts: charts.py."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from llmnb.plots.canvas import COLOURS, Figure, box, drawing, label_of, need

LINE_CHARACTERS = 62  # of a coloured text
LONGEST_OVERHANG = 6  # characters by which a word may run over the end of its line


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
    with drawing(title, alt, width=8.4, height=0.5 + 0.5 * len(rows)) as (figure, (axes,)):
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


def coloured_text(
    pieces: Sequence[str], values: Sequence[float], title: str, bar_label: str, top: float
) -> Figure:
    """A text in lines, each piece on a background that gets darker as its value comes near top.

    A line is broken before a piece that begins with a space, and after one with ⏎ in it.
    """
    need(pieces, "pieces")
    highest = sorted(zip(values, pieces, strict=True), reverse=True)[:5]
    alt = f"The text: {''.join(pieces)}. Highest {bar_label}: "
    alt += ", ".join(f"{piece.strip()} {value:.1f}" for value, piece in highest)
    positions = _positions(pieces)
    n_lines = 1 + positions[-1][0]
    size = {"width": 8.4, "height": 1.3 + 0.28 * n_lines}
    with drawing(title, alt, **size, grid=False) as (figure, (axes,)):
        axes.set_axis_off()
        colours = LinearSegmentedColormap.from_list("surprise", ["white", COLOURS[1]])
        scale = ScalarMappable(Normalize(0, top), colours)
        fonts = ["DejaVu Sans Mono", *rcParams["font.sans-serif"]]
        for piece, value, (line, left) in zip(pieces, values, positions, strict=True):
            label = label_of(piece)
            width, colour = _text_width(label), scale.to_rgba(value)
            axes.add_patch(Rectangle((left, line), width, 0.94, facecolor=colour))
            middle = (left + width / 2, line + 0.5)
            axes.text(*middle, label, ha="center", va="center", fontsize=12.5, family=fonts)
        axes.set(xlim=(0, LINE_CHARACTERS + LONGEST_OVERHANG), ylim=(n_lines, 0))
        bar = {"location": "bottom", "shrink": 0.5, "aspect": 40, "pad": 0.02}
        figure.colorbar(scale, ax=axes, label=bar_label, extend="max", format="{x:g}", **bar)
    return figure


def _positions(pieces: Sequence[str]) -> list[tuple[int, float]]:
    """The line of each piece, and where in the line it begins."""
    positions = []
    line, column = 0, 0.0
    for piece in pieces:
        width = _text_width(label_of(piece))
        overhang = 0 if piece.startswith(" ") else LONGEST_OVERHANG
        if column and column + width > LINE_CHARACTERS + overhang:
            line, column = line + 1, 0.0
        positions.append((line, column))
        column += width
        if "⏎" in piece:
            line, column = line + 1, 0.0
    return positions


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
    size = {"width": 8.4, "height": 0.9 + 7.2 / max(columns, 2) * lines}
    shape = (lines, columns)
    with drawing(title, alt, **size, shape=shape, grid=False) as (figure, all_axes):
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
    with drawing(title, alt, width=8.4, height=0.9 + 0.52 * height) as (figure, (axes,)):
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
