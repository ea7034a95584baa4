"""Charts: lines, points, bars and heatmaps. Pictures of texts and layers are in pictures.py."""

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from llmnb.plots.canvas import COLOURS, Figure, box, drawing, label_of, need


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
    """One line per series over x; levels are dashed horizontal lines with a name at the right.

    A value that is NaN was not measured: the line joins the values that were.
    """
    need(series, "series")
    alt = _described(x_label, y_label, x, series)
    alt += "".join(f"; {name} at {level:.3g}" for name, level in (levels or {}).items())
    with drawing(title, alt) as (figure, (axes,)):
        _draw_levels(axes, levels or {})
        for colour, (name, values) in zip(itertools.cycle(COLOURS), series.items(), strict=False):
            points = _measured(x, values)
            axes.plot(*points, color=colour, marker="o", markersize=4, label=label_of(name))
        axes.set(xlabel=x_label, ylabel=textwrap.fill(y_label, 40))
        for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            if log:
                getattr(axes, f"set_{axis.axis_name}scale")("log")
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        places = np.log(x) if log_x else np.array(x, dtype=float)
        if len(x) <= 10 and np.ptp(places) < 25 * np.abs(np.diff(places)).min(initial=np.inf):
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
    chance: Sequence[float] | None = None,
) -> Figure:
    """Horizontal bars, from the top, with intervals; chance: what guessing gives, as dashes."""
    need(values, "values")
    names = list(values)
    numbers = [float(value) for value in values.values()]
    low = low or [None] * len(names)
    high = high or [None] * len(names)
    alt = f"Bars of {x_label}: " + "; ".join(
        f"{name} {form.format(number)}" for name, number in values.items()
    )
    if chance:
        alt += "; by chance " + ", ".join(form.format(level) for level in chance)
    with drawing(title, alt, height=0.8 + 0.46 * len(names)) as (figure, (axes,)):
        colours = [COLOURS[1] if name == highlight else COLOURS[0] for name in names]
        axes.barh(range(len(names)), numbers, height=0.62, color=colours)
        for row, (number, bottom, top) in enumerate(zip(numbers, low, high, strict=True)):
            if bottom is not None:
                errors = [[number - bottom], [top - number]]
                axes.errorbar(number, row, xerr=errors, color="#222222", capsize=4, lw=1.4)
            right_end = (max(number, top or number, 0), row)  # beside the bar, never on it
            offset = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(form.format(number), right_end, **offset)
        if chance:
            rows = np.arange(len(names))
            axes.vlines(chance, rows - 0.45, rows + 0.45, COLOURS[1], "--", label="by chance")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_yticks(range(len(names)), [label_of(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel(textwrap.fill(x_label, 60))
        axes.margins(x=0.12)
        lower_ends = [bottom for bottom in low if bottom is not None]
        if min(numbers + lower_ends) >= 0:
            axes.set_xlim(left=0)
        else:
            axes.axvline(0, color="#666666", linewidth=1)
        axes.grid(axis="y", visible=False)
    return figure


def distributions(
    labels: Sequence[str], groups: Mapping[str, Sequence[float]], x_label: str, title: str
) -> Figure:
    """One panel of bars per group, side by side, to compare distributions over the labels."""
    need(groups, "groups")
    top = max(max(values) for values in groups.values())
    descriptions = []
    for name, values in groups.items():
        numbers = ", ".join(f"{value:.2f}" for value in values)
        descriptions.append(f"{name}: {numbers}")
    alt = f"Panels of bars over {', '.join(labels)}: {'; '.join(descriptions)}"
    height = 0.9 + 0.34 * len(labels)
    with drawing(title, alt, width=8.4, height=height, shape=(1, len(groups))) as (figure, panels):
        for panel, (name, values) in zip(panels, groups.items(), strict=True):
            panel.barh(range(len(labels)), values, color=COLOURS[0], height=0.7)
            tick_labels = [""] * len(labels)
            if panel is panels[0]:
                tick_labels = [label_of(text) for text in labels]
            panel.set_yticks(range(len(labels)), tick_labels)
            panel.invert_yaxis()
            panel.set_title(label_of(name), fontsize=11, fontweight="normal")
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
    expected = (len(rows), len(columns))
    if matrix.shape != expected:
        raise ValueError(f"The matrix is {matrix.shape}, its labels say {expected}.")
    cells = [" ".join(form.format(value) for value in row) for row in matrix]
    alt = f"Matrix of {bar_label}, rows {', '.join(rows)}; columns {', '.join(columns)}; values "
    alt += "; ".join(cells)
    size = {"width": 8.4, "height": 1.4 + 0.5 * len(rows)}
    with drawing(title, alt, **size, grid=False) as (figure, (axes,)):
        norm = "log" if log else "linear"
        image = axes.imshow(matrix, cmap="cividis", aspect="auto", norm=norm)
        for (row, column), value in np.ndenumerate(matrix):
            colour = "black" if image.norm(value) > 0.5 else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour)
            if outline and outline(value):
                axes.add_patch(box(column - 0.46, row, 0.92, COLOURS[1], filled=False))
        axes.set_xticks(
            range(len(columns)), [label_of(text) for text in columns], rotation=25, ha="right"
        )
        axes.set_yticks(range(len(rows)), [label_of(name) for name in rows])
        figure.colorbar(image, ax=axes, label=bar_label, shrink=0.9, format="{x:g}")
    return figure


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for name, level in levels.items():
        axes.axhline(level, color=COLOURS[6], linestyle="--", linewidth=1.2)
        right_end = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(label_of(name), (1, level), fontsize=9, **right_end)


def _measured(x, values) -> tuple[np.ndarray, np.ndarray]:
    """The x and y of the values that are not NaN."""
    x, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    return x[~np.isnan(y)], y[~np.isnan(y)]


def _described(x_label: str, y_label: str, x, series: Mapping[str, Sequence[float]]) -> str:
    parts = []
    for name, values in series.items():
        _, measured = _measured(x, values)
        parts.append(f"{name} goes from {measured[0]:.3g} to {measured[-1]:.3g}")
    ends = "; ".join(parts)
    return f"{y_label} over {x_label} from {float(x[0]):.3g} to {float(x[-1]):.3g}: {ends}"


def points(
    measured: Mapping[str, tuple[float, float, float, float]],
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Named points: x, y, and the interval of y, low and high, for each name.

    levels: as in `lines`.
    """
    need(measured, "measured")
    alt = f"{y_label} over {x_label}: " + "; ".join(
        f"{name} at {x:.3g}: {y:.3g}, {low:.3g} to {high:.3g}"
        for name, (x, y, low, high) in measured.items()
    )
    with drawing(title, alt, height=4.6) as (figure, (axes,)):
        _draw_levels(axes, levels or {})
        for number, (name, (x, y, low, high)) in enumerate(measured.items()):
            colour = COLOURS[number % len(COLOURS)]
            errors = [[y - low], [high - y]]
            axes.errorbar(x, y, yerr=errors, color=colour, marker="o", capsize=4, lw=1.4)
            vertical = -14 if number % 2 else 6  # keeps the names of neighbours apart
            offset = {"xytext": (8, vertical), "textcoords": "offset points", "color": colour}
            axes.annotate(label_of(name), (x, y), **offset)
        axes.set(
            xlabel=x_label, ylabel=textwrap.fill(y_label, 40), xscale="log" if log_x else "linear"
        )
        axes.margins(x=0.15)
        if log_x:
            axes.xaxis.set_major_formatter("{x:g}")
    return figure


def intervals(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x_label: str,
    y_label: str,
    title: str,
    diagonal: str = "",
) -> Figure:
    """Series of points with the intervals of y: (x, y, low, high) for each point.

    diagonal: if given, the name of a dashed line where y equals x.
    """
    need(series, "series")
    parts = []
    for name, rows in series.items():
        numbers = [f"{y:.3g} ({low:.3g} to {high:.3g})" for _, y, low, high in rows]
        parts.append(f"{name} {', '.join(numbers)}")
    alt = f"{y_label} over {x_label}: {'; '.join(parts)}"
    with drawing(title, alt, height=4.6) as (figure, (axes,)):
        for number, (name, rows) in enumerate(series.items()):
            x, y, low, high = np.array(rows, dtype=float).T
            line = {"fmt": "os^D"[number % 4], "capsize": 4, "label": label_of(name)}
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(x, y, yerr=[y - low, high - y], color=colour, **line)
        if diagonal:
            xs = [row[0] for rows in series.values() for row in rows]
            ends = [min(xs), max(xs)]
            axes.plot(ends, ends, color=COLOURS[6], linestyle="--", label=diagonal)
        axes.legend()
        axes.set(xlabel=x_label, ylabel=textwrap.fill(y_label, 40))
    return figure
