"""The records of the runs, how their values are written, and the page that compares them.

Nothing here opens a notebook: the page is made from the run.json files alone, so it is quick to
rebuild after every run, and a run that was killed half-way still has its row.
"""

from __future__ import annotations

import json
import math
import os
import platform
import uuid
from collections import Counter
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

if TYPE_CHECKING:
    import jinja2

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"
STATUSES = ("ok", "running", "failed", "timeout", "killed", "corrupt")
_CLOCK_SLACK = 2.0  # seconds between a process's birth and the first line of its record
_LONGEST = 2000  # characters of one value on a page


def read_runs(out: Path) -> list[dict]:
    """The record of every run in out/runs, in the order of the folders' names."""
    return [read_record(path.parent) for path in sorted((out / "runs").glob("*/run.json"))]


def read_record(folder: Path) -> dict:
    """run.json of one run, with the folder's name added as "folder".

    A record that can't be used becomes one with the status "corrupt" and an error that says why;
    "running" without a living process becomes "killed". Nothing is raised, nothing is rewritten.
    """
    try:
        run = json.loads((folder / "run.json").read_text("utf-8"))
        if not isinstance(run, dict) or not isinstance(run.get("status"), str):
            raise ValueError("run.json is not the record of a run")
        if run.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"schema {shown(run['schema'])}; this llmnb reads schema {SCHEMA}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)  # strerror: without the path
        return {"folder": folder.name, "status": "corrupt", "error": {"message": reason}}
    run["folder"] = folder.name
    if run["status"] == "running" and not _alive(run):
        run["status"] = "killed"
        run["error"] = run.get("error") or {"message": "The process of this run is gone."}
    return run


def _alive(run: dict) -> bool:
    """Whether the process that wrote this record lives, or can't be judged from here."""
    pid, host = run.get("pid"), section(run, "hardware").get("host")
    elsewhere = host is not None and host != platform.node()
    if elsewhere or not isinstance(pid, int) or not 0 < pid < 2**31:
        return True
    try:
        process, started = psutil.Process(pid), moment(run.get("started"))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Born after the run started: the number was given to another process.
        return started is None or process.create_time() <= started.timestamp() + _CLOCK_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def section(run: dict, key: str) -> dict:
    """A part of a record that should be an object; {} where it is missing or something else."""
    value = run.get(key)
    return value if isinstance(value, dict) else {}


def metrics(run: dict) -> dict[str, dict]:
    """The metrics of a run that have the shape of one."""
    return {k: v for k, v in section(run, "metrics").items() if isinstance(v, dict)}


def moment(text: Any) -> datetime | None:
    """The time in an ISO 8601 string, if it is one."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def finite(value: Any) -> float | None:
    """A number fit for arithmetic and a chart, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def shown(value: Any) -> str:
    """Any value as a short text: strings as they are, the rest as Python writes it."""
    try:
        text = (value or '""') if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # ValueError: an integer too long to print
        text = f"({type(value).__name__})"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def number(value: Any) -> str:
    """A number with four digits that count: 0.8412, 12,345, 1.2e-05."""
    exact = finite(value)
    if exact is None:
        return shown(value)
    return f"{exact:,.0f}" if 1e4 <= abs(exact) < 1e15 else f"{exact:.4g}"


def interval(metric: dict) -> str:
    """The interval of a metric, or nothing if it has none."""
    low, high = metric.get("low"), metric.get("high")
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def duration(seconds: Any) -> str:
    """Seconds as a person says them: 4.2 s, 2 min 5 s, 3 h 10 min."""
    exact = finite(seconds)
    if exact is None or exact < 0:
        return shown(seconds)
    if exact < 60:
        return f"{exact:.1f} s"
    minutes, rest = divmod(round(exact), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: Any) -> str:
    """Megabytes as a person says them: 812 MB, 1.9 GB."""
    exact = finite(megabytes)
    if exact is None:
        return shown(megabytes)
    return f"{exact:,.0f} MB" if exact < 1000 else f"{exact / 1000:,.1f} GB"


def when(text: Any) -> str:
    """An ISO time to the minute, with its zone."""
    time = moment(text)
    return f"{time:%Y-%m-%d %H:%M %Z}".strip() if time else shown(text)


FILTERS = {
    "section": section,
    "metrics": metrics,
    "shown": shown,
    "number": number,
    "interval": interval,
    "duration": duration,
    "memory": memory,
    "when": when,
}


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters.update(FILTERS)
    return environment


def write_page(path: Path, page: str) -> Path:
    """Put a page in its place in one step: a reader sees the old one or the new one, never half.

    Raises OSError where the folder can't be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # replace: a lone surrogate in somebody's text must not cost the page
        draft.write_bytes(page.encode("utf-8", "replace"))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_index(out: Path) -> Path:
    """Rebuild out/index.html from the run.json files in out/runs.

    Raises OSError where out can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = read_runs(out)
    groups: dict[tuple[bool, str], list[dict]] = {}
    for run in runs:
        corrupt = run["status"] == "corrupt"
        name = "Unreadable records" if corrupt else shown(run.get("notebook") or "Unnamed")
        groups.setdefault((corrupt, name), []).append(_row(out, run))
    page = _environment().get_template("index.html.j2")
    counts = Counter(run["status"] if run["status"] in STATUSES else "other" for run in runs)
    content = page.render(
        groups=[_group(name, rows) for (_, name), rows in sorted(groups.items())],
        counts=[(status, counts[status]) for status in (*STATUSES, "other") if counts[status]],
        statuses=STATUSES,
    )
    return write_page(out / "index.html", content)


def _row(out: Path, run: dict) -> dict:
    folder = out / "runs" / run["folder"]
    links = {
        name: f"runs/{quote(os.fsencode(run['folder']))}/{name}"
        for name in ("report.html", "notebook.ipynb")
        if (folder / name).is_file()
    }
    parameters = {name: shown(value) for name, value in section(run, "parameters").items()}
    return {"run": run, "links": links, "parameters": parameters, "metrics": metrics(run)}


def _group(notebook: str, rows: list[dict]) -> dict:
    """The runs of one notebook, newest first, and what there is to compare."""
    rows.sort(key=lambda row: (shown(row["run"].get("started", "")), row["run"]["folder"]))
    for position, row in enumerate(rows, start=1):
        row["number"] = position
    names = {name: None for row in rows for name in row["parameters"]}
    differing = [n for n in names if len({row["parameters"].get(n) for row in rows}) > 1]
    for row in rows:
        row["label"] = ", ".join(f"{n}={row['parameters'].get(n, '–')}" for n in differing)
    compared = [_metric(name, rows) for name in {n: None for row in rows for n in row["metrics"]}]
    return {
        "notebook": notebook,
        "rows": rows[::-1],
        "parameters": differing,
        "metrics": compared,
    }


def _metric(name: str, rows: list[dict]) -> dict:
    """One metric over the runs of a notebook: which way is better, who is best, and the chart."""
    having = [row for row in rows if name in row["metrics"]]
    directions = {shown(row["metrics"][name].get("better")) for row in having}
    better = directions.pop() if len(directions) == 1 else None
    values = {
        row["number"]: value
        for row in having
        if row["run"]["status"] == "ok"
        and (value := finite(row["metrics"][name].get("value"))) is not None
    }
    best: set[int] = set()
    if len(set(values.values())) > 1 and better in ("higher", "lower"):
        top = max(values.values()) if better == "higher" else min(values.values())
        best = {position for position, value in values.items() if value == top}
    units = (row["metrics"][name].get("unit") for row in having)
    return {
        "name": name,
        "better": better,
        "unit": next((unit for unit in units if isinstance(unit, str)), ""),
        "best": best,
        "chart": _chart(name, having),
    }


def _chart(name: str, rows: list[dict]) -> dict | None:
    """Where the points, error bars and ticks of a small chart stand; None for fewer than two."""
    points = []
    for row in rows:
        metric = row["metrics"][name]
        value, low, high = (finite(metric.get(key)) for key in ("value", "low", "high"))
        if value is not None:
            ends = (value, value) if low is None or high is None else (low, high)
            points.append((row, value, *ends))
    if len(points) < 2:
        return None
    ticks, labels = _ticks(min(min(p[1:]) for p in points), max(max(p[1:]) for p in points))
    left, top, width, height = 56, 12, 292, 140  # of a picture of 360 by 200

    def at(value: float) -> float:
        return round(top + height * (ticks[-1] - value) / (ticks[-1] - ticks[0]), 1)

    places = [round(left + width * (i + 0.5) / len(points), 1) for i in range(len(points))]
    numbers = [(x, row["number"]) for x, (row, *_) in zip(places, points, strict=True)]
    return {
        "ticks": [(at(tick), label) for tick, label in zip(ticks, labels, strict=True)],
        "numbers": numbers[:: math.ceil(len(points) / 12)],
        "points": [
            (row, x, at(value), at(low), at(high))
            for x, (row, value, low, high) in zip(places, points, strict=True)
        ],
    }


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Two to seven round numbers from below low to above high, and how they are written."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):  # all equal: any scale will do
        span = abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(max(span, 1e-290)))
    step = next(power * part for part in (0.2, 0.5, 1, 2, 5) if span <= 5 * power * part)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = [step * position for position in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    plain = digits < 7 and max(map(abs, ticks)) < 1e6
    return ticks, [f"{tick:.{digits}f}" if plain else f"{tick:.6g}" for tick in ticks]
