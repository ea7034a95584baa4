"""What a notebook may be given: names and types checked before anything runs."""

from pathlib import Path

import nbformat
import numpy as np
import pytest

from llmnb.runs import parameters
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


def notebook(source=CELL, tags=("parameters",)):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    other = nbformat.v4.new_code_cell("print(seed)")
    return nbformat.v4.new_notebook(cells=[cell, other])


def test_defaults_are_read_as_python_reads_them():
    assert parameters.declared(notebook()) == {
        "profile": "auto",
        "seed": 0,
        "rate": 1e-3,
        "text": "a # b",
        "flag": False,
        "rows": [1, 2],
        "table": {"a": 1},
        "anything": None,
        "api_key": "",
    }
    assert parameters.declared(notebook(tags=())) == {}


@pytest.mark.parametrize("source", ["x = open('f')", "x = 1 +", "x = {1, 2}", "x = 1e999"])
def test_a_default_that_is_no_plain_value_is_refused(source):
    with pytest.raises(ParameterError, match=r"plain value|no Python"):
        parameters.declared(notebook(source))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seed": "7"}, 7),
        ({"rate": "2"}, 2.0),
        ({"rate": 3}, 3.0),
        ({"text": "007"}, "007"),
        ({"text": "true"}, "true"),
        ({"text": '"; import os #'}, '"; import os #'),
        ({"flag": "true"}, True),
        ({"rows": "[3]"}, [3]),
        ({"rows": (1, 2)}, [1, 2]),
        ({"table": '{"b": 2}'}, {"b": 2}),
        ({"anything": "x"}, "x"),
        ({"seed": np.int64(3)}, 3),
        ({"text": Path("a") / "b.csv"}, str(Path("a/b.csv"))),
    ],
)
def test_values_become_plain_and_typed(given, expected):
    (key,) = given
    value = parameters.resolve(notebook(), given)[key]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, r"no parameter 'sede'. Did you mean 'seed'\? It has: profile, seed"),
        ({"x; import os": 1}, "no parameter"),
        ({"__builtins__": 1}, "no parameter"),
        ({"seed": "many"}, "'seed' is int .* got str 'many'"),
        ({"seed": 1.5}, "got float"),
        ({"seed": True}, "got bool"),
        ({"seed": -1}, "seed is from 0"),
        ({"seed": "99999999999999999999"}, "seed is from 0"),
        ({"flag": "yes"}, "is bool"),
        ({"text": 3}, "is str"),
        ({"rate": "nan"}, "got str 'nan'"),
        ({"rate": "NaN"}, "finite"),
        ({"rate": float("inf")}, "JSON"),
        ({"anything": object()}, "JSON"),
        ({"rows": [object()]}, "JSON"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        parameters.resolve(notebook(), given, "nb")


@pytest.mark.parametrize("value", ['"; raise SystemExit #', "a\\", "'''", "{x}", "\n1/0\n", "☃"])
def test_injected_values_are_data(value):
    nb = notebook()
    parameters.inject(nb, parameters.resolve(nb, {"text": value}))
    parameters.inject(nb, parameters.resolve(nb, {"text": value}))  # a second one replaces it
    assert [cell.metadata.get("tags") for cell in nb.cells][1] == ["injected-parameters"]
    assert len(nb.cells) == 3
    namespace = {}
    exec(nb.cells[1].source, namespace)
    assert namespace["text"] == value and namespace["rows"] == [1, 2]


@pytest.mark.parametrize("name", ["api_key", "hf_token", "HF_TOKEN", "password", "clientSecret"])
def test_secrets_are_known_by_name(name):
    assert parameters.is_secret(name)


@pytest.mark.parametrize("name", ["new_tokens", "max_tokens", "key", "keyboard", "tokenizer"])
def test_other_names_are_no_secrets(name):
    assert not parameters.is_secret(name)


def test_a_secret_is_neither_injected_nor_stored():
    values = parameters.resolve(notebook(), {"api_key": "sk-very-secret"})
    assert parameters.redacted(values)["api_key"] == "•••"
    assert "sk-very-secret" not in parameters.injected_cell(values).source


def test_a_secret_that_is_no_text_is_refused():
    with pytest.raises(ParameterError, match="must be text") as caught:
        parameters.resolve(notebook("api_key = None  # k"), {"api_key": 12345})
    assert "12345" not in str(caught.value)


def test_a_number_under_a_secrets_name_is_a_number():
    values = parameters.resolve(notebook("token_limit = 100  # n"), {})
    assert parameters.secrets(values) == {} and "100" in parameters.injected_cell(values).source
    values = parameters.resolve(notebook("hf_token = None  # t"), {"hf_token": "12345"})
    assert parameters.secrets(values) == {"hf_token": "12345"}


def test_the_digest_says_what_the_run_is(tmp_path):
    nb, file = notebook(), tmp_path / "data.csv"
    file.write_text("a")
    values = parameters.resolve(nb, {"text": str(file)})
    first = parameters.digest(nb, values)
    assert first == parameters.digest(notebook(), dict(reversed(values.items())))
    file.write_text("b")
    assert parameters.digest(nb, values) != first  # the named file
    file.write_text("a")
    assert parameters.digest(nb, values | {"seed": 1}) != first  # a parameter
    nb.cells[1].source += "  # more"
    assert parameters.digest(nb, values) != first  # the code
    folder = parameters.resolve(nb, {"text": str(tmp_path)})
    before = parameters.digest(nb, folder)
    (tmp_path / "more.txt").write_text("c")
    assert parameters.digest(nb, folder) != before  # a file in a folder


def test_notebooks_are_found_by_number_name_and_path(tmp_path):
    by_number = parameters.find_notebook("01")
    assert by_number.stem == "01_concepts"
    for name in ("1", "concepts", "01_concepts", "notebooks/01_concepts.ipynb", str(by_number)):
        assert parameters.find_notebook(name).resolve() == by_number.resolve()
    for name in ("99", ""):
        with pytest.raises(ParameterError, match="01_concepts"):
            parameters.find_notebook(name)
    for name in ("../../etc/passwd", "/nope/01_concepts.ipynb", "elsewhere/01"):
        with pytest.raises(ParameterError, match="no notebook file"):
            parameters.find_notebook(name)


def test_a_file_that_is_no_notebook_is_said_to_be_none(tmp_path):
    for content in (b"", b"{}", b"[1]", b"\xff\xfe", b'{"cells": 3, "nbformat": 4}'):
        file = tmp_path / "x.ipynb"
        file.write_bytes(content)
        with pytest.raises(ParameterError, match="is no notebook"):
            parameters.read_notebook(file)
