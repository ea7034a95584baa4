"""The page that compares the runs of each notebook: a chart for each metric, and a table.

It is made from the run.json files alone and opens no notebook. So it is quick to rebuild after
every run, and a run that was killed halfway has its row too.
"""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from urllib.parse import quote

from llmnb.runs import records
from llmnb.runs.records import as_number, as_text

Point = namedtuple("Point", "row value low high")  # a run in a metric's chart


def write_index(out: Path) -> Path:
    """Write out/index.html from the run.json files in out/runs; returns its path.

    Raises OSError where out can't be written.
    """
    rows_of = {}
    for run in records.read_runs(out):
        is_corrupt = run["status"] == "corrupt"  # these come last, under a heading of their own
        title = "Unreadable records" if is_corrupt else as_text(run.get("notebook") or "Unnamed")
        rows_of.setdefault((is_corrupt, title), []).append(_row(out, run))
    groups = [_group(title, rows) for (_, title), rows in sorted(rows_of.items())]
    template = records.page_templates().get_template("index.html.j2")
    out.mkdir(parents=True, exist_ok=True)
    return records.write_page(out / "index.html", template.render(groups=groups))


def _row(out: Path, run: dict) -> dict:
    """A run's row in the table; "pages" are those of its files that exist."""
    folder = out / "runs" / run["folder"]
    parameters = records.section(run, "parameters")
    return {
        "run": run,
        "address": "runs/" + quote(os.fsencode(run["folder"])),
        "pages": [name for name in ("report.html", "notebook.ipynb") if (folder / name).is_file()],
        "parameters": {name: as_text(value) for name, value in parameters.items()},
        "metrics": records.metrics(run),
    }


def _group(notebook: str, rows: list[dict]) -> dict:
    """The runs of a notebook, newest first, the parameters that differ, and the metrics."""
    rows.sort(key=lambda row: (as_text(row["run"].get("started", "")), row["run"]["folder"]))
    values = {}  # of each parameter; a dict keeps the order in which the names appear
    rows_with = {}  # each metric
    for number, row in enumerate(rows, start=1):
        row["number"] = number
        for name in row["parameters"]:
            values[name] = {other["parameters"].get(name) for other in rows}
        for name in row["metrics"]:
            rows_with.setdefault(name, []).append(row)
    return {
        "notebook": notebook,
        "rows": rows[::-1],
        "parameters": [name for name in values if len(values[name]) > 1],
        "metrics": [_metric(name, rows_with[name]) for name in rows_with],
    }


def _metric(name: str, rows: list[dict]) -> dict:
    """One metric over the runs that have it, from the oldest to the newest."""
    points = []
    unit = ""
    for row in rows:
        metric = row["metrics"][name]
        if not unit and isinstance(metric.get("unit"), str):
            unit = metric["unit"]
        value, low, high = (as_number(metric.get(key)) for key in ("value", "low", "high"))
        if low is None or high is None:
            low = high = value
        if value is not None:
            points.append(Point(row, value, low, high))
    newest = rows[-1]["metrics"][name]
    better = as_text(newest.get("better"))
    label = records.label(newest, name)
    metric = {"name": name, "label": label, "better": better, "unit": unit, "points": points}
    return metric | {"best": _best(points, better), "ticks": _ticks(points)}


def _best(points: list[Point], better: str) -> set[int]:
    """The numbers of the finished runs with the best value; none where all are the same."""
    finished = [point for point in points if point.row["run"]["status"] == "ok"]
    values = {point.value for point in finished}
    if len(values) < 2 or better not in ("higher", "lower"):
        return set()
    best_value = max(values) if better == "higher" else min(values)
    return {point.row["number"] for point in finished if point.value == best_value}


def _ticks(points: list[Point]) -> list[float]:
    """A few round numbers around the values of a chart; none for fewer than two points."""
    if len(points) < 2:
        return []
    from matplotlib.ticker import MaxNLocator

    values = [end for point in points for end in (point.value, point.low, point.high)]
    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    return locator.tick_values(min(values), max(values)).tolist()
