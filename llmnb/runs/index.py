"""The page over all runs: a card for each notebook, with its answer and its comparison.

It is made from the run.json files, and opens one notebook a card, for the question and the key
figure. So it is quick to rebuild after every run, and a run that was killed halfway is on it too.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from llmnb.runs import charts, compare, records, report
from llmnb.runs import parameters as params
from llmnb.runs.records import as_number, as_text

MAX_PICTURES = 24  # on a page
MAX_NAME_CHARACTERS = 60  # of a setting in a sentence


def write_index(out: Path) -> Path:
    """Write out/index.html from the runs in out/runs; returns its path.

    Raises OSError where out can't be written.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    unreadable = []
    rows_of = {}
    for run in records.read_runs(out):
        if run["status"] == "corrupt":
            unreadable.append(run)
        else:
            title = as_text(run.get("notebook") or "Unnamed")
            rows_of.setdefault(title, []).append(_row(out, run))
    cards = [_card(title, rows_of[title]) for title in sorted(rows_of)]
    n_compared = sum(metric["is_comparable"] for card in cards for metric in card["metrics"])
    for number, card in enumerate(cards):
        for metric in card["metrics"]:
            _compare(card, metric, compare.ERROR_RATE / max(1, n_compared))
        card |= _headline(out, card["newest"], has_picture=number < MAX_PICTURES)
    template = records.page_templates().get_template("index.html.j2")
    page = template.render(cards=cards, unreadable=unreadable, n_compared=n_compared)
    return records.write_page(out / "index.html", page)


def _row(out: Path, run: dict) -> dict:
    """A run for the page; "pages" are those of its files that exist."""
    folder = out / "runs" / run["folder"]
    parameters = records.section(run, "parameters")
    return {
        "run": run,
        "status": as_text(run["status"]),
        "address": "runs/" + quote(os.fsencode(run["folder"])),
        "pages": [name for name in ("report.html", "notebook.ipynb") if (folder / name).is_file()],
        # Runs of different code are not repeats of each other, so the code's digest counts as one
        # more parameter.
        "texts": {as_text(name): as_text(value) for name, value in parameters.items()}
        | {"code": as_text(records.section(run, "source").get("code", ""))},
        "metrics": records.metrics(run),
        "seconds": as_number(run.get("seconds")),
    }


def _card(notebook: str, rows: list[dict]) -> dict:
    """A notebook's runs, newest first: their settings, metrics and failures."""
    rows.sort(key=lambda row: (as_text(row["run"].get("started", "")), row["run"]["folder"]))
    rows.reverse()
    texts = {}  # of each parameter; a dict keeps the order in which the names appear
    for row in rows:
        for name, text in row["texts"].items():
            texts.setdefault(name, []).append(text)
    differing = [n for n in texts if len({*texts[n]}) > 1 or len(texts[n]) < len(rows)]
    finished = [row for row in rows if row["status"] == "ok"]
    newest = records.section(rows[0]["run"], "parameters")
    is_output = {name for name in differing if params.is_output(name, newest.get(name, ""))}
    names = [name for name in differing if name != "seed" and name not in is_output]
    settings = _settings(finished, names)
    finished_names = {_name_of(row) for row in finished}
    metrics = {name: row["metrics"][name] for row in rows[::-1] for name in row["metrics"]}
    return {
        "notebook": notebook,
        "rows": rows,
        "newest": (finished or rows)[0],
        "statuses": Counter(row["status"] for row in rows),
        "differing": differing,
        "names": names,
        "settings": settings,
        "metrics": [_metric(name, metrics[name], settings) for name in metrics],
        # A run that ended well later on is no failure any more.
        "failures": [
            row
            for row in rows
            if row["status"] not in ("ok", "running") and _name_of(row) not in finished_names
        ],
    }


def _name_of(row: dict) -> str:
    """The name of the run's folder without the number of its attempt."""
    return row["run"]["folder"].removesuffix(f"-{row['run'].get('attempt')}")


def _settings(rows: list[dict], names: list[str]) -> list[dict]:
    """The finished runs by the values of these parameters, each with its runs by seed.

    Of two runs with the same setting and seed the newer one counts: they are no repeats.
    """
    settings = {}
    for row in rows:
        texts = {name: row["texts"].get(name, "–") for name in names}
        setting = settings.setdefault(tuple(texts.values()), {"texts": texts, "runs": {}})
        setting["runs"].setdefault(row["texts"].get("seed", _name_of(row)), row)
    by_value = sorted(settings, key=lambda key: [_sortable(text) for text in key])
    ordered = [settings[key] for key in by_value]
    for number, setting in enumerate(ordered, start=1):
        name = ", ".join(f"{name} {text}" for name, text in setting["texts"].items()) or "all"
        if len(name) > MAX_NAME_CHARACTERS:  # the number keeps apart what begins alike
            name = f"{name[:MAX_NAME_CHARACTERS]}… ({number})"
        setting["name"] = name
    return ordered


def _sortable(text: str) -> tuple:
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def _metric(name: str, metric: dict, settings: list[dict]) -> dict:
    """A metric over the settings. metric: that of the newest run, for its label and direction."""
    better = metric.get("better")
    values = {}
    for setting in settings:
        for seed, row in setting["runs"].items():
            value = as_number(row["metrics"].get(name, {}).get("value"))
            if value is not None:
                values.setdefault(setting["name"], {})[seed] = value
    all_values = [value for by_seed in values.values() for value in by_seed.values()]
    can_be_better = better in ("higher", "lower")
    unit = metric.get("unit")
    return {
        "name": name,
        "label": records.label(metric, name),
        "better": better,
        "unit": unit if isinstance(unit, str) else "",
        "values": values,
        "newest": metric,
        "is_same": len(values) == len(settings) > 0 and compare.is_constant(all_values),
        "is_comparable": can_be_better and compare.is_comparable(values),
    }


def _compare(card: dict, metric: dict, level: float) -> None:
    """Add to the metric its settings with their means, the comparison, and the charts."""
    comparison = None
    if metric["is_comparable"]:
        comparison = compare.compare(metric["values"], metric["better"], level)
    lines = []
    for setting in card["settings"]:
        values = list(metric["values"].get(setting["name"], {}).values())
        if not values:
            continue
        mean, low, high = compare.mean_interval(values)
        newest = next(iter(setting["runs"].values()))["metrics"].get(metric["name"], {})
        own = [as_number(newest.get(end)) for end in ("low", "high")]
        if low == high and None not in own:
            low, high = own
        line = {"setting": setting, "n": len(values), "value": mean, "low": low, "high": high}
        line["text"], _, line["interval"] = compare.with_interval(mean, low, high).partition(" ")
        lines.append(line)
    pick = {"higher": max, "lower": min}.get(as_text(metric["better"]))
    best = pick(line["value"] for line in lines) if pick and len(lines) > 1 else None
    for line in lines:
        name = line["setting"]["name"]
        is_best = name == comparison.best if comparison else line["value"] == best
        line["is_best"] = is_best and not metric["is_same"]
        line["lead"] = lead = comparison and comparison.leads.get(name)
        if lead:
            text = compare.with_interval(lead.difference, lead.low, lead.high)
            line["behind"], _, line["behind_interval"] = text.partition(" ")
    metric["lines"] = lines
    metric["comparison"] = comparison
    metric["sentence"] = compare.sentence(comparison, metric["unit"]) if comparison else ""
    metric["charts"] = _charts(card, lines)


def _charts(card: dict, lines: list[dict]) -> list[dict]:
    """The metric against the parameters that differ, and against the time of a run."""
    if len(lines) < 2:
        return []
    pairs_of = {}
    for name in card["names"]:
        pairs = [(line["setting"]["texts"][name], line) for line in lines]
        pairs_of[name] = sorted(pairs, key=lambda pair: _sortable(pair[0]))
    times = []
    for line in lines:
        seconds = [row["seconds"] for row in line["setting"]["runs"].values()]
        if None not in seconds:
            times.append((sum(seconds) / len(seconds), line))
    pairs_of["seconds a run"] = times
    drawn = [charts.chart(pairs, name) for name, pairs in pairs_of.items()]
    return [chart for chart in drawn if chart]


def _headline(out: Path, row: dict, has_picture: bool) -> dict:
    """The card's question, answer, key figure and address in Colab, from the newest good run."""
    headline = report.headline(out / "runs" / row["run"]["folder"])
    answer = headline["answer"] or {}
    return {
        "title": headline["title"],
        "answer": answer.get("html"),
        "figure": answer.get("figure") if has_picture else None,
        "colab": headline["colab"],
    }
