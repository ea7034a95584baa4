"""Every figure of the series: one style, colours that the colour-blind can tell apart, alt text.

Figures are made without pyplot: nothing is shown twice, no global state is left behind.
"""

import functools
import io
import itertools
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as _Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, darkened where it would be too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#00795c", "#b5508c", "#8a6d00", "#3a93c8", "#555555")
_DPI = 110
_STYLE = {
    "font.size": 11,
    "text.parse_math": False,  # a $ in a model's or reader's text is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@functools.cache
def _style() -> dict:
    wanted = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "SimHei")
    there = set(get_font_names())
    return _STYLE | {"font.sans-serif": [name for name in wanted if name in there]}


class Figure(_Figure):
    """A matplotlib figure that shows itself in a notebook as one PNG, with its alt text."""

    alt = ""

    def _repr_mimebundle_(self, include=None, exclude=None):
        buffer = io.BytesIO()
        with rc_context(_style()), warnings.catch_warnings():
            # A character that no font here has is drawn as a box; the alt text still says it.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.savefig(buffer, format="png", dpi=1.6 * _DPI, metadata={"Software": None})
        width = round(self.get_figwidth() * _DPI)
        data = {"image/png": _small(buffer), "text/plain": self.alt}
        return data, {"image/png": {"width": width, "alt": self.alt}}


def _small(buffer: io.BytesIO) -> str:
    """The PNG with a palette of 64 colours: a third of the size, no visible difference."""
    import base64

    from PIL import Image

    small = io.BytesIO()
    image = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


def _axes(
    title: str, alt: str, width: float = 7.6, height: float = 4.0, columns: int = 1, rows: int = 1
):
    wrapped = textwrap.fill(title, round(width * 10))
    height += 0.2 * wrapped.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.alt = f"{title}. {alt}" if alt else title
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(wrapped, x=0.01, ha="left", fontweight="bold", fontsize=12.5)
    return figure, axes


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """One line a series over x; levels: dashed lines across, named at their right end."""
    _need(series, "series")
    alt = _described(x_label, y_label, x, series)
    alt += "".join(f"; {name} at {level:.3g}" for name, level in (levels or {}).items())
    with rc_context(_style()):
        figure, (axes,) = _axes(title, alt)
        for name, level in (levels or {}).items():
            axes.axhline(level, color=COLOURS[6], linestyle="--", linewidth=1.2)
            axes.text(max(x), level, _label(name), ha="right", va="bottom", fontsize=9)
        for colour, (name, values) in zip(itertools.cycle(COLOURS), series.items(), strict=False):
            axes.plot(x, values, color=colour, marker="o", markersize=4, label=_label(name))
        axes.set(xlabel=x_label, ylabel=y_label)
        for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            if log:
                getattr(axes, f"set_{axis.axis_name}scale")("log")
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        if len(x) <= 10:
            axes.set_xticks(x, [f"{value:g}" if value < 1e6 else f"{value:.1e}" for value in x])
        if len(series) > 1:
            axes.legend()
    return figure


def bars(
    values: Mapping[str, float],
    x_label: str,
    title: str,
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
    highlight: str | None = None,
    form: str = "{:.2f}",
) -> Figure:
    """Horizontal bars, in the order given from the top, with intervals where there are any."""
    _need(values, "values")
    names, numbers = list(values), [float(value) for value in values.values()]
    low = low or [None] * len(names)
    high = high or [None] * len(names)
    alt = f"Bars of {x_label}: " + "; ".join(
        f"{name} {form.format(number)}" for name, number in values.items()
    )
    with rc_context(_style()):
        figure, (axes,) = _axes(title, alt, height=0.8 + 0.46 * len(names))
        colours = [COLOURS[name == highlight] for name in names]
        axes.barh(range(len(names)), numbers, height=0.62, color=colours)
        for row, (number, bottom, top) in enumerate(zip(numbers, low, high, strict=True)):
            if bottom is not None:
                errors = [[number - bottom], [top - number]]
                axes.errorbar(number, row, xerr=errors, color="#222222", capsize=4, lw=1.4)
            end = (max(number, top or number), row)
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(form.format(number), end, **beside)
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel(textwrap.fill(x_label, 60))
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
    return figure


def distributions(
    labels: Sequence[str], groups: Mapping[str, Sequence[float]], x_label: str, title: str
) -> Figure:
    """The same bars side by side, one panel a group: how a distribution changes."""
    _need(groups, "groups")
    top = max(max(values) for values in groups.values())
    panels = (f"{n}: {', '.join(f'{value:.2f}' for value in v)}" for n, v in groups.items())
    alt = f"Panels of bars over {', '.join(labels)}: {'; '.join(panels)}"
    with rc_context(_style()):
        height = 0.9 + 0.34 * len(labels)
        figure, panels = _axes(title, alt, width=8.4, height=height, columns=len(groups))
        for panel, (name, values) in zip(panels, groups.items(), strict=True):
            panel.barh(range(len(labels)), values, color=COLOURS[0], height=0.7)
            shown = [_label(text) for text in labels] if panel is panels[0] else [""] * len(labels)
            panel.set_yticks(range(len(labels)), shown)
            panel.invert_yaxis()
            panel.set_title(_label(name), fontsize=11, fontweight="normal")
            panel.set_xlim(0, top * 1.08)
            panel.grid(axis="y", visible=False)
        figure.supxlabel(x_label, fontsize=11)
    return figure


def heatmap(
    matrix,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    bar_label: str,
    form: str = "{:.2f}",
    log: bool = False,
    outline: Callable[[float], bool] | None = None,
) -> Figure:
    """A matrix (rows, columns) as coloured cells with their values.

    log: colours on a logarithmic scale; outline(value): whether a cell gets a frame.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (expected := (len(rows), len(columns))):
        raise ValueError(f"The matrix is {matrix.shape}, its labels say {expected}.")
    alt = (
        f"Matrix of {bar_label}, rows {', '.join(rows)}; columns {', '.join(columns)}; values "
        + ("; ".join(" ".join(form.format(value) for value in row) for row in matrix))
    )
    with rc_context(_style() | {"axes.grid": False}):
        figure, (axes,) = _axes(title, alt, width=8.4, height=1.4 + 0.5 * len(rows))
        image = axes.imshow(matrix, cmap="cividis", aspect="auto", norm="log" if log else "linear")
        for (row, column), value in np.ndenumerate(matrix):
            colour = "black" if image.norm(value) > 0.5 else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour)
            if outline and outline(value):
                axes.add_patch(_box(column - 0.46, row, 0.92, COLOURS[1], filled=False))
        axes.set_xticks(
            range(len(columns)), [_label(text) for text in columns], rotation=25, ha="right"
        )
        axes.set_yticks(range(len(rows)), [_label(name) for name in rows])
        figure.colorbar(image, ax=axes, label=bar_label, shrink=0.9, format="{x:g}")
    return figure


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
    _need(rows, "rows")
    alt = "; ".join(
        f"{name}: {len(pieces)} tokens {' | '.join(pieces)}" for name, pieces in rows.items()
    )
    with rc_context(_style()):
        figure, (axes,) = _axes(title, alt, width=8.4, height=0.5 + 0.5 * len(rows))
        axes.set_axis_off()
        for row, (name, pieces) in enumerate(rows.items()):
            axes.text(0, -row, _label(name), ha="right", va="center", fontsize=10, color="#444444")
            left = 0.4
            for index, piece in enumerate(map(_label, pieces)):
                width = _text_width(piece) + 0.5
                axes.add_patch(_box(left, -row, width, COLOURS[index % 3]))
                middle = left + width / 2
                axes.text(middle, -row, piece, ha="center", va="center", fontsize=9)
                left += width + 0.15
        widest = max(sum(_text_width(_label(p)) + 0.65 for p in each) for each in rows.values())
        axes.set_xlim(0, max(widest + 0.5, 60))
        axes.set_ylim(-len(rows) + 0.4, 0.6)
    return figure


def _box(left: float, middle: float, width: float, colour: str, filled: bool = True) -> Rectangle:
    fill = colour + "33" if filled else "none"
    return Rectangle(
        (left, middle - 0.36), width, 0.72, facecolor=fill, edgecolor=colour, lw=1 if filled else 2
    )


def _text_width(piece: str) -> float:
    return sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in piece)


def _label(text: str) -> str:
    """Short enough to leave room for the picture; the alt text has it whole."""
    return text if len(text) <= 40 else text[:39] + "…"


def _need(values, name: str) -> None:
    if not values:
        raise ValueError(f"There is nothing to draw: {name} is empty.")


def _described(x_label: str, y_label: str, x, series: Mapping[str, Sequence[float]]) -> str:
    ends = "; ".join(
        f"{name} goes from {float(values[0]):.3g} to {float(values[-1]):.3g}"
        for name, values in series.items()
    )
    return f"{y_label} over {x_label} from {float(x[0]):.3g} to {float(x[-1]):.3g}: {ends}"


def maps(panels: Sequence[Panel], title: str, bar_label: str, per_row: int = 4) -> Figure:
    """Matrices as small pictures side by side on one scale of colours, rows from the top."""
    _need(panels, "panels")
    lines = -(-len(panels) // per_row)
    columns = min(len(panels), per_row)
    sizes = [np.asarray(panel.matrix).shape for panel in panels]
    seen = [f"{p.name} ({rows} by {cols})" for p, (rows, cols) in zip(panels, sizes, strict=True)]
    alt = f"Pictures of {bar_label}: {'; '.join(seen)}. {panels[0].y_label} down, "
    alt += f"{panels[0].x_label} across"
    values = np.concatenate([np.ravel(panel.matrix) for panel in panels])
    scale = {"vmin": float(np.min(values)), "vmax": float(np.max(values)), "cmap": "cividis"}
    with rc_context(_style() | {"axes.grid": False}):
        figure, axes = _axes(title, alt, 8.4, 0.9 + 7.2 / max(columns, 2) * lines, columns, lines)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        for number, (place, panel) in enumerate(zip(axes, panels, strict=False)):
            image = place.imshow(panel.matrix, aspect="auto", interpolation="nearest", **scale)
            place.set_title(_label(panel.name), fontsize=10, fontweight="normal")
            for axis, texts in ((place.xaxis, panel.columns), (place.yaxis, panel.rows)):
                if texts:
                    small = {"fontsize": 8 if len(texts) <= 16 else 6}
                    axis.set_ticks(range(len(texts)), [_label(text) for text in texts], **small)
                else:
                    axis.set_major_locator(MaxNLocator(integer=True))
            place.tick_params(axis="x", labelrotation=90 if panel.columns else 0)
            place.set_xlabel(panel.x_label, fontsize=9)
            place.set_ylabel("" if number % per_row else panel.y_label, fontsize=9)
        figure.colorbar(image, ax=list(axes), label=bar_label, shrink=0.9, format="{x:g}")
    return figure


def stacks(
    columns: Mapping[str, Sequence[str]], links: Sequence[tuple[int, int, int, int]], title: str
) -> Figure:
    """Columns of boxes, read from the bottom; links: from column, box to column, box.

    A box whose text begins with * is one of a group that is repeated, and gets the group's colour.
    """
    _need(columns, "columns")
    alt = "; ".join(f"{n}, from the bottom: {', '.join(b)}" for n, b in columns.items())
    height = max(map(len, columns.values()))
    with rc_context(_style()):
        figure, (axes,) = _axes(title, alt.replace("*", ""), 8.4, 0.9 + 0.52 * height)
        axes.set_axis_off()
        for column, (name, boxes) in enumerate(columns.items()):
            axes.text(column, -0.85, name, ha="center", va="center", fontweight="bold")
            for row, text in enumerate(boxes):
                colour = COLOURS[0] if text.startswith("*") else COLOURS[6]
                axes.add_patch(_box(column - 0.41, row, 0.82, colour))
                axes.text(column, row, text.lstrip("*"), ha="center", va="center", fontsize=9.5)
                if row:
                    _arrow(axes, (column, row - 0.64), (column, row - 0.36))
        for left, low, right, high in links:
            _arrow(axes, (left + 0.41, low), (right - 0.41, high))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-1.2, height - 0.5))
    return figure


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "->", "color": "#444444", "lw": 1.2}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
