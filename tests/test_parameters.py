"""Finding a notebook, and what it may be given: names and types checked before anything runs."""

import json
import os
import shutil

import nbformat
import pytest
from conftest import NOTEBOOKS

from llmnb import corpus_files
from llmnb.applications import documents
from llmnb.runs import parameters, redaction
from llmnb.runs.parameters import ParameterError

CELL = """profile = "auto"  # which
seed = 0
rate = 1e-3  # a # in a comment
text = "a # b"  # and one in a text
flag = False
rows: list = [1, 2]
table = {"a": 1}
anything = None
api_key = ""
"""
DEFAULTS = {"profile": "auto", "seed": 0, "rate": 1e-3, "text": "a # b", "flag": False}
DEFAULTS |= {"rows": [1, 2], "table": {"a": 1}, "anything": None, "api_key": ""}


def notebook(source=CELL, tags=("parameters",)):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    other = nbformat.v4.new_code_cell("print(seed)")
    return nbformat.v4.new_notebook(cells=[cell, other])


def of_series():
    """The notebook with the series' set-up cell."""
    book = notebook()
    set_up = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1]
    assert set_up.id == "set-up"
    book.cells.insert(0, set_up)
    return book


def test_defaults_are_read_as_python_reads_them():
    assert parameters.declared(notebook()) == DEFAULTS
    assert parameters.declared(notebook(tags=())) == {}


@pytest.mark.parametrize("source", ["x = open('f')", "x = 1 +", "x = {1, 2}", "x = 1e999"])
def test_a_default_that_is_not_a_plain_value_is_refused(source):
    with pytest.raises(ParameterError, match=r"not a plain value|not valid Python"):
        parameters.declared(notebook(source))


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("seed", "7", 7),
        ("rate", "2", 2.0),
        ("rate", 3, 3.0),
        ("text", "007", "007"),
        ("flag", "true", True),
        ("rows", "[3]", [3]),
        ("table", '{"b": 2}', {"b": 2}),
        ("anything", "x", "x"),
    ],
)
def test_values_become_plain_and_typed(key, given, expected):
    value = parameters.resolve(notebook(), {key: given})[key]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, r"nb has no parameter 'sede'. Did you mean 'seed'\? It has: profile, seed"),
        ({"x; import os": 1}, "no parameter"),
        ({"seed": "many"}, "'seed' must be int .* not str 'many'"),
        ({"seed": 1.5}, "not float"),
        ({"seed": True}, "not bool"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**32}, "seed must be from 0"),
        ({"text": 3}, "must be str"),
        ({"rate": "NaN"}, "is nan, no plain JSON value"),
        ({"rate": float("inf")}, "JSON"),
        ({"anything": object()}, "JSON"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        parameters.resolve(notebook(), given, "nb")


@pytest.mark.parametrize("value", ['"; raise SystemExit #', "a\\", "'''", "{x}", "\n1/0\n", "☃"])
def test_injected_values_are_data(value):
    injected = notebook()
    for _ in range(2):  # a second injection replaces the first
        parameters.inject(injected, parameters.resolve(injected, {"text": value}))
    assert len(injected.cells) == 3
    assert parameters.has_tag(injected.cells[1], "injected-parameters")
    namespace = {}
    exec(injected.cells[1].source, namespace)
    assert namespace["text"] == value and namespace["rows"] == [1, 2]


def test_secrets_are_recognized_by_their_names():
    for name in (
        "api_key",
        "hf_token",
        "HF_TOKEN",
        "password",
        "clientSecret",
        "HFToken",
        "api_keys",
        "openai_key",
    ):
        assert redaction.is_secret(name), name
    for name in ("new_tokens", "max_tokens", "key", "keyboard", "tokenizer", "stop_token"):
        assert not redaction.is_secret(name), name


def test_a_text_that_is_no_unicode_is_refused():
    with pytest.raises(ParameterError, match="no plain JSON value"):
        parameters.resolve(notebook(), {"text": "caf\udce9"})


def test_a_secret_is_text_and_its_text_is_not_parsed():
    with pytest.raises(ParameterError, match="must be text") as caught:
        parameters.resolve(notebook("api_key = None  # k"), {"api_key": 12345})
    assert "12345" not in str(caught.value)
    values = parameters.resolve(notebook("hf_token = None  # t"), {"hf_token": "12345"})
    assert redaction.secrets(values) == {"hf_token": "12345"}


def test_a_number_under_a_secrets_name_is_a_number():
    values = parameters.resolve(notebook("token_limit = 100  # n"), {})
    assert redaction.secrets(values) == {} and "100" in parameters.injected_cell(values).source


def test_the_digest_says_what_the_run_is(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("a")
    book = notebook()
    values = parameters.resolve(book, {"text": str(file)})
    folder_values = values | {"text": str(tmp_path)}
    first = parameters.digest(book, values)
    first_of_folder = parameters.digest(book, folder_values)
    assert first == parameters.digest(notebook(), dict(reversed(values.items())))
    assert first != parameters.digest(book, values | {"seed": 1})  # another parameter
    (tmp_path / "more.txt").write_text("c")
    assert first_of_folder != parameters.digest(book, folder_values)  # a new file in the folder
    file.write_text("b")
    assert first != parameters.digest(book, values)  # another content of the file
    file.write_text("a")
    assert first == parameters.digest(book, values)
    book.cells[1].source += "  # more"
    assert first != parameters.digest(book, values)  # other code


def test_where_a_run_writes_is_not_what_it_is(tmp_path):
    values = {"out": str(tmp_path), "model_output": str(tmp_path)}
    first = parameters.digest(notebook(), values)
    (tmp_path / "config.json").write_text("{}")  # written by the first run
    assert parameters.digest(notebook(), values) == first
    assert parameters.digest(notebook(), values | {"out": "elsewhere"}) != first


@pytest.mark.parametrize("value", ["{}", ["{}"]])
def test_of_a_folder_only_what_a_notebook_reads_is_in_the_digest(tmp_path, value):
    value = json.loads(json.dumps(value).replace("{}", str(tmp_path)))
    digests = [parameters.digest(notebook(), {"data": value})]
    for name in ("a.md", "b/c.CSV", ".venv/d.py", ".git/e.json", "b/.f.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("new")
        digests.append(parameters.digest(notebook(), {"data": value}))
    assert len(set(digests[:3])) == 3 and set(digests[3:]) == {digests[2]}


def test_every_kind_of_file_that_is_read_is_in_the_digest():
    assert {*documents.READERS, *corpus_files.KINDS} <= parameters.INPUT_SUFFIXES


@pytest.mark.parametrize(("bound", "value"), [("MAX_INPUT_FILES", 1), ("MAX_INPUT_BYTES", 3)])
def test_beyond_the_bound_sizes_and_times_count_and_a_line_says_so(
    tmp_path, monkeypatch, capsys, bound, value
):
    def digest(text, seconds):
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("12" if name == "a.txt" else text)
            os.utime(tmp_path / name, (seconds, seconds))
        return parameters.digest(notebook(), {"data": str(tmp_path)})

    assert digest("12", 1) != digest("34", 1) and capsys.readouterr().out == ""
    monkeypatch.setattr(parameters, bound, value)
    assert digest("12", 1) == digest("34", 1) != digest("34", 2)
    assert ": of 1 files only name, size and time" in capsys.readouterr().out


@pytest.fixture
def lettered(tmp_path, monkeypatch):
    """A folder of short notebooks, some of them with a letter after the number."""
    stems = ["06_applications", "04a_instructions", "06c_question_answering", "01_concepts"]
    stems += ["04_fine_tuning", "05_evaluation", "06a_documents", "notes"]
    (tmp_path / "notebooks").mkdir()
    for stem in stems:
        nbformat.write(of_series(), tmp_path / "notebooks" / f"{stem}.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "notebooks"


def test_lettered_notebooks_come_after_the_number_they_belong_to(lettered):
    numbers = [parameters.number_of(path) for path in parameters.all_notebooks()]
    assert numbers == ["01", "04", "04a", "05", "06", "06a", "06c"]  # and not the notes


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("06", "06_applications"),
        ("6", "06_applications"),
        ("06c", "06c_question_answering"),
        ("6c", "06c_question_answering"),
        ("question_answering", "06c_question_answering"),
        ("04a_instructions", "04a_instructions"),
        ("04a_instructions.ipynb", "04a_instructions"),
        ("notebooks/notes.ipynb", "notes"),
    ],
)
def test_a_notebook_is_found_by_number_subject_name_and_path(lettered, name, stem):
    assert parameters.find_notebook(name).stem == stem


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("instruction", r"Did you mean 'instructions'\? .* 01_concepts, 04_fine_tuning, 04a_"),
        ("99", "The notebooks are: 01_concepts"),
        ("", "The notebooks are: 01_concepts"),
        ("documents", "could be 06a_documents and 06b_documents. The notebooks are: 01_"),
        ("elsewhere/01", "no notebook file"),
        ("/nope/01_concepts.ipynb", "no notebook file"),
    ],
)
def test_an_unknown_or_ambiguous_name_is_answered_with_the_names_there_are(lettered, name, message):
    shutil.copy(lettered / "06a_documents.ipynb", lettered / "06b_documents.ipynb")
    with pytest.raises(ParameterError, match=message):
        parameters.find_notebook(name)


def test_another_projects_notebooks_are_not_taken_for_the_series(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook(), folder / "01_concepts.ipynb")
    (folder / "02_folder.ipynb").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parameters.all_notebooks() == NOTEBOOKS
    with pytest.raises(ParameterError, match="no notebook 'folder'"):
        parameters.find_notebook("folder")
    nbformat.write(of_series(), folder / "04_fine_tuning.ipynb")  # a copy, to work on
    assert [path.name for path in parameters.all_notebooks()] == ["04_fine_tuning.ipynb"]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b'{"cells": 3, "nbformat": 4}'])
def test_a_file_that_is_not_a_notebook_is_refused(tmp_path, content):
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(ParameterError, match="can't be read as a notebook"):
        parameters.read_notebook(tmp_path / "x.ipynb")
