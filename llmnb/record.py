"""Results worth comparing across runs, such as record("accuracy", 0.84, low=0.82, high=0.86).

llmnb.report reads them from the notebooks' outputs.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

METRIC_MIME = "application/vnd.llmnb.metric+json"
RUN_MIME = "application/vnd.llmnb.run+json"  # a run's profile, device and dtype

_NAME = re.compile(r"[A-Za-z][\w.:/ -]{0,79}")


def record(
    name: str,
    value: float,
    better: str = "higher",
    unit: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Show one metric as a line, and store it in the cell's output for the report.

    better: "higher" or "lower"; low, high: the interval, both or neither.
    Raises ValueError for a name, value or interval that no report could compare.
    """
    metric = _checked(name, value, better, unit, low, high)
    display_with_data(METRIC_MIME, metric, describe(metric))


def benchmark(name: str) -> dict[str, Any]:
    """The stored result of benchmarks/NAME.py, with its machine, date and command.

    Raises FileNotFoundError for one that isn't stored.
    """
    package = Path(__file__).parent
    in_wheel = package / "benchmarks"
    in_clone = package.parent / "benchmarks" / "results"
    for folder in (in_wheel, in_clone):
        file = folder / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    raise FileNotFoundError(
        f"No result of a benchmark {name!r} is stored in {in_wheel} or {in_clone}."
    )


def describe(metric: dict) -> str:
    """The metric as one line, for example: accuracy = 0.84  [0.82, 0.86]  (higher is better)."""
    unit = f" {metric['unit']}" if metric["unit"] else ""
    interval = ""
    if metric["low"] is not None:
        interval = f"  [{metric['low']:.4g}, {metric['high']:.4g}]"
    return (
        f"{metric['name']} = {metric['value']:.4g}{unit}{interval}  ({metric['better']} is better)"
    )


def display_with_data(mime: str, data: dict, line: str) -> None:
    """Print a line; inside a notebook the output carries the data under its MIME type as well."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:  # a plain script without IPython
        print(line)
        return
    if get_ipython() is None:
        print(line)
    else:
        display({mime: data, "text/plain": line}, raw=True)


def _checked(name, value, better, unit, low, high) -> dict:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"A metric's name starts with a letter and has at most 80 letters, digits or "
            f"_ . : / - and spaces; got {name!r}."
        )
    if better not in ("higher", "lower"):
        raise ValueError(f'{name}: better is "higher" or "lower", not {better!r}.')
    if (low is None) != (high is None):
        raise ValueError(f"{name}: give both ends of the interval, low and high, or neither.")
    if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        raise ValueError(f"{name}: the value is {value!r}, which is no number.")
    numbers = [float(number) for number in (value, low, high) if number is not None]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: {numbers} contains a number that is not finite.")
    metric = {"name": name, "value": numbers[0], "better": better, "unit": unit}
    if low is None:
        return metric | {"low": None, "high": None}
    if value < low or value > high:
        raise ValueError(f"{name}: {value} lies outside its interval [{low}, {high}].")
    return metric | {"low": numbers[1], "high": numbers[2]}
