"""What a run found: metrics worth comparing across runs, and the answer to a notebook's question.

    record("full.accuracy", 0.84, label="accuracy of full fine-tuning", low=0.82, high=0.86)
    record.answer("Fine-tuning is right on 84 % of the texts.", figure=comparison)

Both are shown in the notebook, and their data is stored in the cell's output, where the runner
and the report (runs/) find it.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

METRIC_MIME = "application/vnd.llmnb.metric+json"
ANSWER_MIME = "application/vnd.llmnb.answer+json"
RUN_MIME = "application/vnd.llmnb.run+json"  # a run's profile, device and dtype

MAX_LABEL_CHARACTERS = 120
MAX_ANSWER_CHARACTERS = 1500

_NAME = re.compile(r"[A-Za-z][\w.:/ -]{0,79}")


def record(
    name: str,
    value: float,
    better: str = "higher",
    unit: str | None = None,
    low: float | None = None,
    high: float | None = None,
    *,
    label: str | None = None,
    baseline: tuple[str, float] | None = None,
) -> None:
    """Show one metric as a line, and store it in the cell's output for the report.

    name: what programs compare; label: what people read (without one, they read the name).
    better: "higher" or "lower"; low, high: the interval, both or neither. baseline: what the value
    is to be seen beside, for example ("always the majority", 0.5), in the same unit.
    Raises ValueError for a name, value, interval, label or baseline that no report could show.
    """
    metric = _checked(name, value, better, unit, low, high)
    metric["label"] = None if label is None else _label(name, label)
    metric["baseline"] = None if baseline is None else _baseline(name, baseline)
    display_with_data(METRIC_MIME, metric, describe(metric))


def answer(text: str, figure: Any = None) -> None:
    """Show the notebook's answer to its question, and store it for the top of the report.

    text: two or three sentences, as Markdown. figure: the key figure, made by `llmnb.plots` and
    shown in an earlier cell; the report repeats it beside the answer.
    Raises ValueError for an empty or a very long text, TypeError for another kind of figure.
    """
    text = text.strip()
    if not 0 < len(text) <= MAX_ANSWER_CHARACTERS:
        raise ValueError(
            f"An answer has 1 to {MAX_ANSWER_CHARACTERS} characters, two or three sentences; "
            f"this one has {len(text)}."
        )
    alt = None if figure is None else getattr(figure, "alt", None)
    if figure is not None and not isinstance(alt, str):
        raise TypeError(
            f"The key figure is one that llmnb.plots made, known by its alt text; got a "
            f"{type(figure).__name__}."
        )
    display_with_data(ANSWER_MIME, {"text": text, "figure": alt}, text, markdown=True)


record.answer = answer  # so that a notebook needs one import for both


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
    beside = ""
    if metric.get("baseline"):
        beside = f"; {metric['baseline']['label']}: {metric['baseline']['value']:.4g}{unit}"
    name = metric.get("label") or metric["name"]
    return f"{name} = {metric['value']:.4g}{unit}{interval}  ({metric['better']} is better{beside})"


def display_with_data(mime: str, data: dict, line: str, markdown: bool = False) -> None:
    """Print a line; inside a notebook the output carries the data under its MIME type as well.

    markdown: the line is Markdown, and a notebook shows it as such.
    """
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(line)
        return
    bundle = {mime: data, "text/plain": line}
    if markdown:
        bundle["text/markdown"] = line
    display(bundle, raw=True)


def _label(name: str, label: Any) -> str:
    if not isinstance(label, str) or not 0 < len(label.strip()) <= MAX_LABEL_CHARACTERS:
        raise ValueError(
            f"{name}: a label is a text of at most {MAX_LABEL_CHARACTERS} characters; "
            f"got {label!r}."
        )
    return " ".join(label.split())


def _baseline(name: str, baseline: Any) -> dict:
    try:
        label, value = baseline
        value = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f'{name}: a baseline is a label and a number, as in ("always the majority", 0.5); '
            f"got {baseline!r}."
        ) from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: the baseline {value} is not finite.")
    return {"label": _label(name, label), "value": value}


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
