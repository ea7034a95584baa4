"""Every notebook: its skeleton, its stored outputs, its numbers, and checks that can go red."""

import ast
import json
import re
import runpy
import shutil
import statistics

import nbformat
import pytest
from conftest import CLOSED_PROXY, NOTEBOOKS, ROOT, can_run_jupyterlab, disagreements
from nbval.plugin import find_comment_markers

from llmnb.record import ANSWER_MIME
from llmnb.runs import parameters, runner

tools = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Changes to the code behind a notebook that its checks must notice: the file, a text that occurs in
# it once, and its replacement. Two for each notebook, one for a lettered one.
MUTATIONS = {
    "01": [
        (
            "concepts.py",
            "level.discount * level.continuations[context_index] / totals",
            "level.discount / totals",
        ),
        ("concepts.py", "double().numpy() / math.log(2)", "double().numpy()"),
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
        ("embedding.py", "(hidden * mask).sum(1) / mask.sum(1)", "hidden.mean(1)"),
        ("data.py", "[name].append(part)", '[name].append(group if name == "test" else part)'),
    ],
    "04a": [("fine_tuning/instructions.py", "[:, :-1][is_next]", "[:, 1:][is_next]")],
    "05": [
        ("evaluation/uncertainty.py", " - binom.pmf(fewer, both, 0.5)", ""),
        ("evaluation/contamination.py", "share >= SHARE", "share > SHARE"),
    ],
    "06": [
        ("applications/retrieval.py", "(1 / (60 + ranks))", "(1 / ranks)"),
        ("applications/text_generation.py", "if token.special:", "if False:"),
    ],
}


def read(path):
    return nbformat.read(path, as_version=4)


def notebook_with(number):
    (path,) = [path for path in NOTEBOOKS if parameters.number_of(path) == number]
    return path


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def is_lettered(path):
    return parameters.number_of(path)[-1].isalpha()


def test_there_are_notebooks_and_mutations_of_each():
    subjects = ["concepts", "attention", "pretraining", "fine_tuning", "evaluation", "applications"]
    names = [f"{number:02}_{subject}" for number, subject in enumerate(subjects, start=1)]
    names.insert(4, "04a_instructions")
    assert [path.stem for path in NOTEBOOKS] == names
    counts = {number: len(changes) for number, changes in MUTATIONS.items()}
    assert counts == {parameters.number_of(p): 1 if is_lettered(p) else 2 for p in NOTEBOOKS}


@every_notebook
def test_the_skeleton(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.M)
    ending = ["Exercises", "The answer", "Where it breaks", "References", "Solutions"]
    assert headings[-5:] == ending
    assert notebook.cells[0].source.startswith("# ")
    assert [cell.id for cell in notebook.cells[:2]] == ["title", "set-up"]
    defaults = parameters.declared(notebook)
    assert defaults["profile"] == "auto" and defaults["seed"] == 0
    prose = re.sub(r"```.*?```|\$\$.*?\$\$", "", text, flags=re.S)
    assert len(prose.split()) <= 3_500
    _, *cells = code_cells(path)  # the set-up cell is the same everywhere
    lines = [len(cell.source.splitlines()) for cell in cells]
    assert statistics.median(lines) <= 8 and max(lines) <= 25


FORM = re.compile(r'(\w+) = .+?  # @param (?:(\[.+?\])|\{type:"(\w+)"\})(?: # (.+))?')
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@every_notebook
def test_each_parameter_is_a_field_of_a_form_that_fits_and_says_what_it_does(path):
    """Colab shows the parameters as a form; in JupyterLab the same comments explain them."""
    (cell,) = [cell for cell in read(path).cells if parameters.has_tag(cell, "parameters")]
    defaults = parameters.declared(read(path))
    has_description = False  # on a line of its own, before the field
    for line in cell.source.splitlines():
        if line.startswith("# @markdown "):
            has_description = True
            continue
        name, choices, kind, comment = FORM.fullmatch(line).groups()
        value = defaults.pop(name)
        if choices:
            assert value in json.loads(choices), name
        else:
            assert TYPES[type(value)] == kind, name
        assert comment or has_description, f"{name}: what does it do?"
        has_description = False
    assert not defaults


def written_numbers(source):
    """The numbers in a cell's strings that no expression computes; 95 % intervals are a term."""
    nodes = list(ast.walk(ast.parse(source)))
    formats = [node.format_spec for node in nodes if isinstance(node, ast.FormattedValue)]
    skipped = {id(part) for spec in formats if spec for part in ast.walk(spec)}  # ".2f" is no text
    parts = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in skipped]
    text = " ".join(part.value for part in parts if isinstance(part.value, str))
    return re.findall(r"(?<![\w-])\d+(?!\d|[\w-]*-gram)", text.replace("95 % interval", ""))


@every_notebook
def test_it_ends_with_an_answer_whose_numbers_are_computed(path):
    (cell,) = [cell for cell in code_cells(path) if cell.id == "answer"]
    (output,) = cell.outputs
    answer = output.data[ANSWER_MIME]
    sentences = re.findall(r"[^\s.]\.(?=\s|$)", answer["text"])
    assert 2 <= len(sentences) <= 4 and re.search(r"\d", answer["text"])
    assert written_numbers(cell.source) == []
    assert written_numbers('f"{x:.2f} of 7"') == ["7"]
    figures = [o.data["text/plain"] for c in code_cells(path) for o in c.outputs if is_png(o)]
    assert answer["figure"] in figures


def is_png(output):
    return "image/png" in output.get("data", {})


@every_notebook
def test_the_checked_cells_are_checked(path):
    """Those that nbval compares under --nbval-lax."""
    cells = [c for c in code_cells(path) if ("check", True) in set(find_comment_markers(c.source))]
    assert len(cells) >= (4 if is_lettered(path) else 8)
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
    cells = [cell for cell in code_cells(path) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and not any(re.fullmatch(r"[0-9a-f]{8}", i) for i in ids)
    for cell in cells:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 40, cell.id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "values", "message"),
    [
        ("01", {"prompt": ""}, "The prompt is empty"),
        ("01", {"text": "no such file.txt"}, "no such file.txt"),
        ("01", {"text": str(ROOT / "environment.yml")}, "is too short to measure"),
        ("02", {"sentence": "Hi"}, "has 1 tokens: give one of 4 to 100"),
        ("02", {"max_length": 100}, "max_length is 100: 0, or from 512"),
        ("03", {"vocab_size": 10}, "vocab_size"),
        ("04", {"methods": "tfidf magic"}, "magic"),
        ("04", {"lora_rank": 0}, "lora_rank is 0"),
        ("04", {"model": "nowhere"}, "there is no such folder"),
        ("04", {"predict": "new.csv"}, "name a folder for the new classifier"),
        ("04a", {"data": "no such file.jsonl"}, "no such file.jsonl"),
        ("04a", {"lr": 5.0}, "lr is 5.0"),
        ("05", {"model_b": "tfidf"}, "Name two different models"),
        ("05", {"probes": "judge tea"}, "tea"),
        ("05", {"seeds": 0}, "1 or more for seeds"),
        ("06", {"task": "questions", "input": "."}, "takes both"),
        ("06", {"price_per_hour": -1.0}, "price_per_hour is -1.0"),
        ("06", {"target_language": "xx"}, "choose fr, es, de or zh"),
    ],
)
def test_the_first_cells_refuse_an_impossible_parameter(number, values, message, monkeypatch):
    """Before anything is trained or generated."""
    monkeypatch.setenv("LLMNB_PROFILE", "smoke")
    _, parameters_cell, *cells = code_cells(notebook_with(number))[:7]
    namespace = {}
    exec(parameters_cell.source, namespace)
    namespace |= values
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        exec("\n".join(cell.source for cell in cells), namespace)


@pytest.mark.parametrize("number", ["03", "04", "04a", "06"])
def test_colab_opens_with_a_gpu_what_gains_from_it(number):
    metadata = read(notebook_with(number)).metadata
    assert metadata["accelerator"] == "GPU" and metadata["colab"] == {"gpuType": "T4"}


@pytest.mark.slow
@pytest.mark.skipif(can_run_jupyterlab(), reason="test_jupyterlab.py makes this run and checks it")
@every_notebook
def test_a_smoke_run_without_a_network_gives_the_expected_metrics(path, tmp_path, monkeypatch):
    """From an empty folder, by itself; whoever asks the Hub or an index meets a closed door."""
    for name, address in CLOSED_PROXY.items():
        monkeypatch.setenv(name, address)
    monkeypatch.chdir(tmp_path)
    record = runner.run(runner.Job(str(path), {"profile": "smoke"}, str(tmp_path)))
    assert record["status"] == "ok", record["error"]
    assert disagreements(record["metrics"], path) == []
    for cell in read(f"{record['folder']}/notebook.ipynb").cells:
        assert not [o for o in cell.get("outputs", []) if o.get("name") == "stderr"], cell.id


MUTATION_CASES = [(number, *change) for number in MUTATIONS for change in MUTATIONS[number]]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "file", "before", "after"), MUTATION_CASES)
def test_a_mutation_turns_the_checks_red(number, file, before, after, tmp_path, monkeypatch):
    """The notebook against a broken copy of the package: a checked cell or a metric must notice.

    A crash doesn't count: it would show that the change broke the code, not that a check works.
    """
    shutil.copytree(ROOT / "llmnb", tmp_path / "llmnb")
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "llmnb/benchmarks")
    module = tmp_path / "llmnb" / file
    source = module.read_text()
    assert source.count(before) == 1
    module.write_text(source.replace(before, after))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the kernel imports the copy
    monkeypatch.chdir(tmp_path)
    path = notebook_with(number)
    record = runner.run(runner.Job(str(path), {"profile": "smoke"}, "out"))
    if record["status"] == "ok":
        differences = disagreements(record["metrics"], path)
        assert [text for text in differences if "expected" in text], "no check noticed the change"
    else:
        assert record["error"]["type"] == "AssertionError", f"a crash, no check: {record['error']}"
