"""The records of runs (run.json): how they are read, and how their values are written on a page.

The runner writes a record, the report shows one, and the index compares many. A record may come
from another machine, another version or a killed process, so any part of it can be missing or of
another type; the functions here take any value.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import psutil

from llmnb import files

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"
CLOCK_SLACK_SECONDS = 2.0  # between a process's start and the first line of its record
MAX_VALUE_CHARACTERS = 2000  # of one value on a page


def attempt_folders(out: Path, name: str) -> Iterator[tuple[Path, int]]:
    """The folder of the first, second, … attempt at a run, with the number; some may exist."""
    for attempt in itertools.count(1):
        yield out / "runs" / (name if attempt == 1 else f"{name}-{attempt}"), attempt


def read_runs(out: Path) -> list[dict]:
    """The record of every run in out/runs, in the order of the folders' names."""
    return [read_record(path.parent) for path in sorted((out / "runs").glob("*/run.json"))]


def read_record(folder: Path) -> dict:
    """run.json of one run, with the folder's name added as "folder".

    An unusable record becomes one with the status "corrupt" and an error that says why. The status
    "running" becomes "killed" where the process is gone. Nothing is raised, and no file is changed.
    """
    try:
        run = json.loads((folder / "run.json").read_text("utf-8"))
        if not isinstance(run, dict) or not isinstance(run.get("status"), str):
            raise ValueError("run.json is not the record of a run")
        if run.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"schema {as_text(run['schema'])}; this llmnb reads schema {SCHEMA}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)  # strerror: without the path
        return {"folder": folder.name, "status": "corrupt", "error": {"message": reason}}
    run["folder"] = folder.name
    if run["status"] == "running" and not _may_be_running(run):
        run["status"] = "killed"
        run["error"] = run.get("error") or {"message": "The process of this run is gone."}
    return run


def _may_be_running(run: dict) -> bool:
    """Whether the process that wrote this record is alive, or can't be seen from here."""
    pid = run.get("pid")
    host = section(run, "hardware").get("host")
    if host is not None and host != platform.node():
        return True
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return True
    try:
        process = psutil.Process(pid)
        started = parse_time(run.get("started"))
        if started and process.create_time() > started.timestamp() + CLOCK_SLACK_SECONDS:
            return False  # the process is younger than the run: the pid was given out again
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def section(run: dict, key: str) -> dict:
    """A part of a record that should be an object; {} where it is missing or something else."""
    value = run.get(key)
    return value if isinstance(value, dict) else {}


def metrics(run: dict) -> dict[str, dict]:
    """The metrics of a run that are objects, by name."""
    return {k: v for k, v in section(run, "metrics").items() if isinstance(v, dict)}


def label(metric: dict, name: Any) -> str:
    """What people read for a metric: its label, or its name where it has none."""
    text = metric.get("label")
    return as_text(text if isinstance(text, str) and text.strip() else name)


def parse_time(text: Any) -> datetime | None:
    """The time in an ISO 8601 string; None for anything else."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def as_number(value: Any) -> float | None:
    """A finite number that arithmetic and charts can use; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def as_text(value: Any) -> str:
    """Any value as a short text: strings as they are, the rest as Python writes it."""
    try:
        text = (value or '""') if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # ValueError: an integer too long to print
        text = f"({type(value).__name__})"
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "…"


def number_text(value: Any) -> str:
    """A number with four significant digits: 0.8412, 12,345, 1.2e-05."""
    number = as_number(value)
    if number is None:
        return as_text(value)
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e15 else f"{number:.4g}"


def interval_text(metric: dict) -> str:
    """The interval of a metric, for example [0.82, 0.86]; an empty string if it has none."""
    low = metric.get("low")
    high = metric.get("high")
    return "" if low is None or high is None else f"[{number_text(low)}, {number_text(high)}]"


def baseline_text(metric: dict) -> str:
    """The baseline of a metric, for example 0.5 (always the majority); "" if it has none."""
    baseline = section(metric, "baseline")
    if not baseline:
        return ""
    value = number_text(baseline.get("value"))
    return f"{value} ({as_text(baseline['label'])})" if baseline.get("label") else value


def duration_text(seconds: Any) -> str:
    """Seconds for a reader: 4.2 s, 2 min 5 s, 3 h 10 min."""
    number = as_number(seconds)
    if number is None:
        return as_text(seconds)
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory_text(megabytes: Any) -> str:
    """Megabytes for a reader: 812 MB, 1.9 GB."""
    number = as_number(megabytes)
    if number is None:
        return as_text(megabytes)
    return f"{number / 1000:,.1f} GB" if number >= 1000 else f"{number:.0f} MB"


def time_text(text: Any) -> str:
    """An ISO 8601 time to the minute, with its zone."""
    time = parse_time(text)
    return f"{time:%Y-%m-%d %H:%M %Z}".strip() if time else as_text(text)


@cache
def page_templates() -> jinja2.Environment:
    """The templates of both pages. They escape everything; the functions above are filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (section, metrics, label, as_text, number_text, interval_text, baseline_text)
    for function in (*functions, duration_text, memory_text, time_text):
        environment.filters[function.__name__] = function
    return environment


def write_page(path: Path, page: str) -> Path:
    """Write a page atomically, with "?" for lone surrogates; returns the path. Raises OSError."""
    files.write_text(path, page.encode("utf-8", "replace").decode())
    return path
