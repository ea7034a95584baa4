"""Write the README's measured numbers, from benchmarks/results and from runs.

python .ci/readme.py [REPORTS]      (make readme: REPORTS is reports)

With REPORTS, the times of its newest good runs on the cpu profile are stored first, as
benchmarks/results/series.json. A test holds the README in step with what is stored.
"""

import base64
import json
import re
import statistics
import sys
from pathlib import Path

from llmnb.runs import parameters, records

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def _questions() -> dict[str, str]:
    """The question that each notebook asks in its title, after the number."""
    by_name = {}
    for path in parameters.notebooks_in(ROOT / "notebooks"):
        title = parameters.read_notebook(path).cells[0].source.splitlines()[0]
        by_name[path.stem] = title.partition(" · ")[2]
    return by_name


QUESTIONS = _questions()
# What is claimed, with {the benchmark's speed}, and the tests that fail when it stops being true.
CLAIMS = [
    (
        "Needs no hub, key or GPU: real models and data, offline, on two cores",
        "test_jupyterlab.py::test_run_all_in_jupyterlab_without_a_network_gives_the_expected_metrics",
    ),
    (
        "Every notebook is run in CI and its checked cells compared, and it is run in JupyterLab",
        "test_notebooks.py::test_the_checked_cells_are_checked, "
        "test_jupyterlab.py::test_run_all_in_jupyterlab_without_a_network_gives_the_expected_metrics",
    ),
    (
        "The checks can fail: two bugs planted behind each notebook turn it red",
        "test_notebooks.py::test_a_mutation_turns_the_checks_red",
    ),
    (
        "From scratch and equal to transformers: logits, gradients, generated tokens",
        "test_transformer.py::test_the_real_decoders_logits_and_tokens, "
        "test_transformer.py::test_a_checkpoint_gives_the_same_output_loss_and_gradients",
    ),
    (
        "A training killed at any moment goes on when it is started again, and ends with the "
        "same loss, on a CPU bit for bit",
        "test_pretraining_command.py::test_a_process_killed_five_times_ends_like_an_unbroken_one",
    ),
    (
        "Fast, as last measured (`make bench` measures again): text is generated {generation} "
        "times as fast as by transformers in the same precision, a network fine-tuned "
        "{fine_tuning} times as fast as by the usual loop, and pretrained to the same loss {tuned} "
        "times as fast as by nanoGPT's recipe, tuned equally ({pretraining} times untuned; three "
        "seeds)",
        "test_readme.py::test_the_committed_results_of_the_benchmarks_met_their_targets",
    ),
    (
        "95 % intervals that hold the true value about 95 times of 100, in simulations",
        "test_uncertainty_coverage.py::test_intervals_cover_as_often_as_they_say",
    ),
    (
        "A report of one file, without scripts; hostile text in it stays text",
        "test_report.py::test_hostile_texts_in_a_real_browser, "
        "test_documents.py::test_hostile_documents_do_nothing_in_a_browser",
    ),
]


def stored(name: str) -> dict:
    """benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def series() -> str:
    """The notebooks, with their measured times."""
    runs = stored("series")["notebooks"]
    lines = ["| notebook | the question | seconds | memory |", "|---|---|---|---|"]
    for name, question in QUESTIONS.items():
        number, _, subject = name.partition("_")
        link = f"[{number} {subject.replace('_', '-')}](notebooks/{name}.ipynb)"
        run = runs[name]
        lines.append(f"| {link} | {question} | {run['seconds']:.0f} | {run['gb']:.1f} GB |")
    return "\n".join(lines)


def claims() -> str:
    """What is different here, each with its tests."""
    speeds = {
        name: f"{1 / stored(name)['ratio']:.{0 if stored(name)['ratio'] < 0.2 else 1}f}"
        for name in ("generation", "fine_tuning", "pretraining")
    }
    speeds["tuned"] = f"{1 / statistics.median(stored('pretraining')['against_tuned']):.1f}"
    lines = ["| here | held by |", "|---|---|"]
    for claim, tests in CLAIMS:
        names = [f"[`{t.split('::')[1]}`](tests/{t.split('::')[0]})" for t in tests.split(", ")]
        lines.append(f"| {claim.format(**speeds)} | {', '.join(names)} |")
    return "\n".join(lines)


def times() -> str:
    """How long all of it takes."""
    facts = stored("series")
    minutes = sum(run["seconds"] for run in facts["notebooks"].values()) / 60
    memory = max(run["gb"] for run in facts["notebooks"].values())
    return (
        f"Measured on {facts['cores']} cores ({facts['date']}): all notebooks together take "
        f"{minutes:.0f} minutes, and at most {memory} GB of memory. The installation before them "
        f"(with torch's CPU build) takes a minute or two, "
        f"`make check` {facts['check_minutes']} minutes. "
        f"Checked with {', '.join(f'{n} {v}' for n, v in facts.get('versions', {}).items())}."
    )


BLOCKS = {"series": series, "claims": claims, "times": times}


def rendered(text: str) -> str:
    """The README with every block between its marks written anew."""
    for name, block in BLOCKS.items():
        marks = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        text, n = re.subn(marks, lambda m, b=block: f"{m[1]}{b()}\n{m[2]}", text, flags=re.S)
        if n != 1:
            raise SystemExit(f"README.md has {n} blocks {name!r}; it needs one.")
    return text


def picture() -> bytes:
    """The league of 01, as the stored run drew it."""
    notebook = json.loads((ROOT / "notebooks/01_concepts.ipynb").read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if cell["id"] == "league"]
    (image,) = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
    return base64.b64decode(image)


def collect(reports: Path) -> None:
    """Store the newest good run of each notebook on the cpu profile, with its defaults."""
    file = RESULTS / "series.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"check_minutes": 0}
    newest = {}
    for run in sorted(records.read_runs(reports), key=lambda run: run.get("started", "")):
        path = ROOT / "notebooks" / f"{run.get('notebook')}.ipynb"
        if run["status"] == "ok" and path.is_file():
            defaults = parameters.resolve(parameters.read_notebook(path), {"profile": "cpu"})
            if run["parameters"] == defaults:
                newest[run["notebook"]] = run
    missing = set(QUESTIONS) - set(newest)
    if missing:
        raise SystemExit(f"{reports} has no good run of {', '.join(sorted(missing))}.")
    facts["notebooks"] = {
        name: {"seconds": newest[name]["seconds"], "gb": newest[name]["peak_memory_mb"] // 100 / 10}
        for name in QUESTIONS
    }
    last = newest["06_applications"]
    versions = {n: v for n, v in last["versions"].items() if n != "llmnb"}
    facts |= {"cores": last["hardware"]["cores"], "date": last["started"][:10]}
    facts["versions"] = {"Python" if n == "python" else n: v for n, v in versions.items()}
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    (ROOT / "docs/figure.png").write_bytes(picture())
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(encoding="utf-8")), encoding="utf-8")
