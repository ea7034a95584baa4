"""Every notebook: its skeleton, its stored outputs, its numbers, and checks that can go red."""

import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT
from nbval.plugin import find_comment_markers

from llmnb.runs import parameters, runner

tools = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Changes to a notebook's module that its checks must notice: file, what stands there, what instead.
MUTATIONS = {
    "01": [
        ("concepts.py", "level.discount * kinds / total", "level.discount / total"),
        ("concepts.py", "float(nats) / math.log(2)", "float(nats)"),
    ],
    "02": [
        ("attention.py", " / math.sqrt(query.shape[-1])", ""),
        ("attention.py", "diagonal=n_keys - n_queries)", "diagonal=n_keys - n_queries + 1)"),
    ],
    "03": [
        ("pretraining/objectives.py", "blocks[:, 1:].flatten()", "blocks[:, :-1].flatten()"),
        ("pretraining/checkpoint.py", "optimizer.state.get(parameter, {}).items()", "()"),
    ],
    "04": [
        ("fine_tuning/baselines.py", "(hidden * mask).sum(1) / mask.sum(1)", "hidden.mean(1)"),
        ("data.py", "chosen = {name: index[np", 'groups["test"] = first; chosen = {name: index[np'),
    ],
    "05": [
        ("evaluation/uncertainty.py", " - binom.pmf(fewer, both, 0.5)", ""),
        ("evaluation/calibration.py", '["accuracy"]).abs()', '["accuracy"])'),
    ],
    "06": [
        ("applications/retrieval.py", "(1 / (60 + ranks))", "(1 / ranks)"),
        ("applications/text_generation.py", "if token.special:", "if False:"),
    ],
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def checked_cells(path):
    """The cells that nbval itself compares under --nbval-lax."""
    return [c for c in code_cells(path) if ("check", True) in set(find_comment_markers(c.source))]


def test_there_are_notebooks():
    subjects = ["concepts", "attention", "pretraining", "fine_tuning", "evaluation"]
    subjects.append("applications")
    names = [f"{number:02}_{subject}" for number, subject in enumerate(subjects, 1)]
    assert [path.stem for path in NOTEBOOKS] == names


@every_notebook
def test_the_skeleton(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[-5:] == [
        "Exercises",
        "What we learned",
        "Where it breaks",
        "References",
        "Solutions",
    ]
    assert (
        notebook.cells[0].source.startswith("# ") and "colab-badge.svg" in notebook.cells[0].source
    )
    declared = parameters.declared(notebook)
    assert declared["profile"] == "auto" and declared["seed"] == 0
    lines = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert statistics.median(lines) <= 8 and max(lines) <= 25


FORM = re.compile(r'(\w+) = .+?  # @param (?:(\[.+?\])|\{type:"(\w+)"\})(?: # (.+))?')
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@every_notebook
def test_each_parameter_is_a_field_of_a_form_that_fits_and_says_what_it_does(path):
    """Colab shows the parameters as a form; in JupyterLab the same comments explain them."""
    (cell,) = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    defaults, said = parameters.declared(read(path)), None
    for line in cell.source.splitlines():
        if line.startswith("# @markdown "):
            said = line
            continue
        name, choices, kind, comment = FORM.fullmatch(line).groups()
        value = defaults.pop(name)
        if choices:
            assert value in json.loads(choices), name
        else:
            assert TYPES[type(value)] == kind, name
        assert comment or said, f"{name}: what does it do?"
        said = None
    assert not defaults


@every_notebook
def test_the_checked_cells_are_checked(path):
    cells = checked_cells(path)
    assert len(cells) >= 8
    for cell in cells:
        printed = "".join(output.get("text", "") for output in cell.outputs).strip()
        assert cell.execution_count and len(printed) > 20, cell.id
        assert "assert" in cell.source or "abs(" in cell.source, cell.id
        assert "record(" not in cell.source, cell.id
        assert not re.search(r"\d\.\d{4,}", printed), f"{cell.id}: a raw float flakes"


@every_notebook
def test_stored_outputs_are_normalized(path):
    notebook = read(path)
    assert tools["problems"](notebook, path.stat().st_size) == []
    assert nbformat.writes(tools["normalized"](read(path))) == nbformat.writes(notebook)
    run = [cell for cell in code_cells(path) if cell.source.strip()]
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and not any(re.fullmatch(r"[0-9a-f]{8}", i) for i in ids)
    for cell in run:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 40, cell.id


def test_one_set_up_cell_serves_all_notebooks():
    cells = [cell for path in NOTEBOOKS for cell in read(path).cells if cell.id == "set-up"]
    assert len(cells) == len(NOTEBOOKS) and len({cell.source for cell in cells}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "given", "words"),
    [
        ("01", {"prompt": ""}, "The prompt is empty"),
        ("01", {"text": "no such file.txt"}, "no such file.txt"),
        ("02", {"sentence": "Hi"}, "has 1 tokens: give one of 4 to 100"),
        ("02", {"max_length": 100}, "max_length is 100: 0, or from 512"),
        ("03", {"vocab_size": 10}, "vocab_size"),
        ("04", {"methods": "tfidf magic"}, "magic"),
        ("04", {"lora_rank": 0}, "lora_rank is 0"),
        ("05", {"model_b": "tfidf"}, "Name two different models"),
        ("05", {"probes": "judge tea"}, "tea"),
        ("06", {"task": "questions", "input": "."}, "takes both"),
        ("06", {"price_per_hour": -1.0}, "price_per_hour is -1.0"),
        ("06", {"target_language": "xx"}, "choose fr, es, de or zh"),
    ],
)
def test_a_parameter_that_can_not_be_is_said_by_the_first_cells(number, given, words, monkeypatch):
    """Before anything is trained or generated."""
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    monkeypatch.setenv("LLMNB_PROFILE", "smoke")
    _, declared, *first = code_cells(path)[:7]
    names = {}
    exec(declared.source, names)
    names |= given
    with pytest.raises((ValueError, OSError), match=re.escape(words)):
        exec("\n".join(cell.source for cell in first), names)


@pytest.mark.parametrize("number", ["03", "04", "06"])
def test_colab_opens_with_a_gpu_what_gains_from_it(number):
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    metadata = read(path).metadata
    assert metadata["accelerator"] == "GPU" and metadata["colab"] == {"gpuType": "T4"}


@every_notebook
def test_badges_point_where_pyproject_says(path):
    where = tools["links"]()
    for cell in read(path).cells:
        assert tools["stamped"](cell.source) == cell.source
    badge = f"{where['owner']}/{where['repo']}/blob/{where['ref']}/notebooks/{path.name}"
    assert badge in read(path).cells[0].source


def test_stamping_changes_what_it_should(monkeypatch):
    monkeypatch.setitem(
        tools["stamped"].__globals__, "links", lambda: {"owner": "me", "repo": "my", "ref": "v2"}
    )
    badge = "https://colab.research.google.com/github/OWNER/llmnb/blob/main/notebooks/01_x.ipynb"
    assert "github/me/my/blob/v2/notebooks/01_x.ipynb" in tools["stamped"](badge)
    archive = "https://github.com/OWNER/llmnb/archive/main.zip"
    assert tools["stamped"](archive) == "https://github.com/me/my/archive/v2.zip"


def disagreements(metrics, path):
    """How a smoke run's metrics differ from tests/expected/NN.smoke.json."""
    expected = json.loads((ROOT / "tests/expected" / f"{path.stem[:2]}.smoke.json").read_text())
    found = [f"{name} is missing or new" for name in set(metrics) ^ set(expected)]
    for name in set(metrics) & set(expected):
        if "machine" in expected[name]:  # a speed: it must be there, its value is the machine's
            continue
        value, tolerance = expected[name]["value"], expected[name]["tolerance"]
        if abs(metrics[name]["value"] - value) > tolerance:
            found.append(f"{name} is {metrics[name]['value']}, expected {value} ± {tolerance}")
    return found


@pytest.mark.slow
@every_notebook
def test_a_smoke_run_without_a_network_gives_the_expected_metrics(path, tmp_path, monkeypatch):
    """From an empty folder, by itself; whoever asks the Hub or an index meets a closed door."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    os.chdir(tmp_path)
    try:
        record = runner.run(runner.Job(str(path), {"profile": "smoke"}, str(tmp_path)))
    finally:
        os.chdir(ROOT)
    assert record["status"] == "ok", record["error"]
    assert disagreements(record["metrics"], path) == []
    notebook = nbformat.read(f"{record['folder']}/notebook.ipynb", as_version=4)
    noise = [
        c.id for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr"
    ]
    assert noise == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "mutation"),
    [(number, mutation) for number, all_ in MUTATIONS.items() for mutation in all_],
)
def test_a_mutation_turns_the_checks_red(number, mutation, tmp_path):
    """The notebook against a broken copy of the package: a checked cell or a metric must notice."""
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    name, before, after = mutation
    shutil.copytree(ROOT / "llmnb", tmp_path / "llmnb")
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "llmnb/benchmarks")
    module = tmp_path / "llmnb" / name
    assert module.read_text().count(before) == 1
    module.write_text(module.read_text().replace(before, after))
    shutil.copy(path, tmp_path)
    code = f"""
import json, sys
from llmnb.runs import runner
assert runner.__file__.startswith({str(tmp_path)!r})
record = runner.run(runner.Job({path.name!r}, {{"profile": "smoke"}}, "out"))
print(json.dumps(record))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    failed = record["status"] == "failed" and record["error"]["type"] == "AssertionError"
    assert failed or disagreements(record["metrics"], path)
