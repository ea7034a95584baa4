"""The records of the runs, how their values are written, and the page that compares them.

Nothing here opens a notebook: the page is made from the run.json files alone, so it is quick to
rebuild after every run, and a run that was killed half-way still has its row.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import psutil

from llmnb import files

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"
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
        # Born after the run started: the number was given to another process.
        heir = started and process.create_time() > started.timestamp() + _CLOCK_SLACK
        return not heir and process.status() != psutil.STATUS_ZOMBIE
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
    if (exact := finite(value)) is None:
        return shown(value)
    return f"{exact:,.0f}" if 1e4 <= abs(exact) < 1e15 else f"{exact:.4g}"


def interval(metric: dict) -> str:
    """The interval of a metric, or nothing if it has none."""
    low, high = metric.get("low"), metric.get("high")
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def duration(seconds: Any) -> str:
    """Seconds as a person says them: 4.2 s, 2 min 5 s, 3 h 10 min."""
    exact = finite(seconds)
    if exact is None or exact < 60:
        return shown(seconds) if exact is None else f"{exact:.1f} s"
    minutes, rest = divmod(round(exact), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: Any) -> str:
    """Megabytes as a person says them: 812 MB, 1.9 GB."""
    exact = finite(megabytes)
    if exact is None or exact >= 1000:
        return shown(megabytes) if exact is None else f"{exact / 1000:,.1f} GB"
    return f"{exact:.0f} MB"


def when(text: Any) -> str:
    """An ISO time to the minute, with its zone."""
    time = moment(text)
    return f"{time:%Y-%m-%d %H:%M %Z}".strip() if time else shown(text)


@cache
def environment() -> jinja2.Environment:
    """The pages' templates. Everything is escaped, with the functions above as filters."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters = (section, metrics, shown, number, interval, duration, memory, when)
    made.filters.update({function.__name__: function for function in filters})
    return made


def write_page(path: Path, page: str) -> Path:
    """Put a page in its place in one step: a reader sees the old one or the new one, never half.

    Raises OSError where the folder can't be written.
    """
    files.write_text(path, page.encode("utf-8", "replace").decode())  # no lone surrogates
    return path


def write_index(out: Path) -> Path:
    """Rebuild out/index.html from the run.json files in out/runs.

    Raises OSError where out can't be written.
    """
    groups: dict[tuple[bool, str], list[dict]] = {}
    for run in read_runs(out):
        corrupt = run["status"] == "corrupt"
        name = "Unreadable records" if corrupt else shown(run.get("notebook") or "Unnamed")
        groups.setdefault((corrupt, name), []).append(_row(out, run))
    page = environment().get_template("index.html.j2")
    compared = [_group(name, rows) for (_, name), rows in sorted(groups.items())]
    out.mkdir(parents=True, exist_ok=True)
    return write_page(out / "index.html", page.render(groups=compared))


def _row(out: Path, run: dict) -> dict:
    folder = out / "runs" / run["folder"]
    pages = ("report.html", "notebook.ipynb")
    return {
        "run": run,
        "address": "runs/" + quote(os.fsencode(run["folder"])),
        "pages": [name for name in pages if (folder / name).is_file()],
        "parameters": {k: shown(value) for k, value in section(run, "parameters").items()},
        "metrics": metrics(run),
    }


def _group(notebook: str, rows: list[dict]) -> dict:
    """The runs of one notebook, newest first, and what there is to compare."""
    rows.sort(key=lambda row: (shown(row["run"].get("started", "")), row["run"]["folder"]))
    for position, row in enumerate(rows, start=1):
        row["number"] = position
    parameters = {name: None for row in rows for name in row["parameters"]}
    having = {n: [r for r in rows if n in r["metrics"]] for row in rows for n in row["metrics"]}
    return {
        "notebook": notebook,
        "rows": rows[::-1],
        "parameters": [p for p in parameters if len({r["parameters"].get(p) for r in rows}) > 1],
        "metrics": [_metric(name, those) for name, those in having.items()],
    }


def _metric(name: str, rows: list[dict]) -> dict:
    """One metric over the runs that have it: which way is better, who is best, the chart."""
    points, finished = [], {}
    for row in rows:
        value, low, high = (finite(row["metrics"][name].get(k)) for k in ("value", "low", "high"))
        if value is not None:
            ends = (value, value) if low is None or high is None else (low, high)
            points.append((row, value, *ends))
            finished |= {row["number"]: value} if row["run"]["status"] == "ok" else {}
    better = shown(rows[-1]["metrics"][name].get("better"))  # the newest run says
    choose = {"higher": max, "lower": min}.get(better)
    top = choose(finished.values()) if choose and len(set(finished.values())) > 1 else None
    return {
        "name": name,
        "better": better,
        "unit": next((u for r in rows if isinstance(u := r["metrics"][name].get("unit"), str)), ""),
        "best": {position for position, value in finished.items() if value == top},
        "points": points,
        "ticks": _ticks([end for point in points for end in point[1:]]),
    }


def _ticks(values: list[float]) -> list[float]:
    """A few round numbers around the values of a chart; none for fewer than two points."""
    if len(values) < 6:  # a point has a value and two ends
        return []
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(min(values), max(values)).tolist()
