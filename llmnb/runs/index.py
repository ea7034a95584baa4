"""The page that compares the runs of each notebook: a chart for each metric, and a table.

It is made from the run.json files alone and opens no notebook. So it is quick to rebuild after
every run, and a run that was killed halfway has its row too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from llmnb.runs import records
from llmnb.runs.records import as_number, as_text

MIN_POINTS_OF_A_CHART = 2


@dataclass
class Row:
    """One run in its notebook's table."""

    run: dict
    address: str  # of the run's folder, as a link
    pages: list[str]  # which of its files can be opened
    parameters: dict[str, str]
    metrics: dict[str, dict]
    number: int = 0  # 1 for the oldest run of this notebook


@dataclass
class Point:
    """One run in a metric's chart."""

    row: Row
    value: float
    low: float
    high: float


@dataclass
class Metric:
    """One metric over the runs that have it."""

    name: str
    better: str  # "higher" or "lower", as the newest run says
    unit: str
    points: list[Point]
    best: set[int]  # numbers of the finished runs that share the best value
    ticks: list[float]  # round values for the chart's axis; empty without a chart


@dataclass
class Group:
    """The runs of one notebook, newest first."""

    notebook: str
    rows: list[Row] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)  # those that differ between the runs
    metrics: list[Metric] = field(default_factory=list)


def write_index(out: Path) -> Path:
    """Write out/index.html from the run.json files in out/runs; returns its path.

    Raises OSError where out can't be written.
    """
    rows_of: dict[tuple[bool, str], list[Row]] = {}
    for run in records.read_runs(out):
        is_corrupt = run["status"] == "corrupt"  # these come last, under a heading of their own
        title = "Unreadable records" if is_corrupt else as_text(run.get("notebook") or "Unnamed")
        rows_of.setdefault((is_corrupt, title), []).append(_row(out, run))
    groups = [_group(title, rows) for (_, title), rows in sorted(rows_of.items())]
    template = records.page_templates().get_template("index.html.j2")
    out.mkdir(parents=True, exist_ok=True)
    records.write_page(out / "index.html", template.render(groups=groups))
    return out / "index.html"


def _row(out: Path, run: dict) -> Row:
    folder = out / "runs" / run["folder"]
    parameters = records.section(run, "parameters")
    return Row(
        run=run,
        address="runs/" + quote(os.fsencode(run["folder"])),
        pages=[name for name in ("report.html", "notebook.ipynb") if (folder / name).is_file()],
        parameters={name: as_text(value) for name, value in parameters.items()},
        metrics=records.metrics(run),
    )


def _group(notebook: str, rows: list[Row]) -> Group:
    rows.sort(key=lambda row: (as_text(row.run.get("started", "")), row.run["folder"]))
    group = Group(notebook, rows[::-1])
    parameters = {}  # a dict keeps the order in which the names appear
    metrics = {}
    for number, row in enumerate(rows, start=1):
        row.number = number
        parameters |= dict.fromkeys(row.parameters)
        for name in row.metrics:
            metrics.setdefault(name, []).append(row)
    for name in parameters:
        if len({row.parameters.get(name) for row in rows}) > 1:
            group.parameters.append(name)
    group.metrics = [_metric(name, rows_with_it) for name, rows_with_it in metrics.items()]
    return group


def _metric(name: str, rows: list[Row]) -> Metric:
    """rows: the runs that have the metric, oldest first."""
    points = []
    unit = ""
    for row in rows:
        metric = row.metrics[name]
        if not unit and isinstance(metric.get("unit"), str):
            unit = metric["unit"]
        value, low, high = (as_number(metric.get(key)) for key in ("value", "low", "high"))
        if value is None:
            continue
        if low is None or high is None:
            low = high = value
        points.append(Point(row, value, low, high))
    better = as_text(rows[-1].metrics[name].get("better"))
    return Metric(name, better, unit, points, _best(points, better), _ticks(points))


def _best(points: list[Point], better: str) -> set[int]:
    """The numbers of the finished runs with the best value; none where all are the same."""
    finished = [point for point in points if point.row.run["status"] == "ok"]
    values = {point.value for point in finished}
    if len(values) < 2 or better not in ("higher", "lower"):
        return set()
    best_value = max(values) if better == "higher" else min(values)
    return {point.row.number for point in finished if point.value == best_value}


def _ticks(points: list[Point]) -> list[float]:
    """A few round numbers around the values of a chart; none for too few points."""
    if len(points) < MIN_POINTS_OF_A_CHART:
        return []
    from matplotlib.ticker import MaxNLocator

    values = [end for point in points for end in (point.value, point.low, point.high)]
    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    return locator.tick_values(min(values), max(values)).tolist()
