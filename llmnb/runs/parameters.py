"""What a notebook declares, what it is given, and the digest that says which run it is.

papermill only warns about an unknown parameter, and executes code in a parameter's name. Here both
are errors, before anything runs.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from llmnb import LlmnbError, assets, files, models, profiles, table_files
from llmnb.runs.redaction import (
    REDACTED,
    is_secret,
    redacted,
    secret_variable,
    secrets,
    words_of_name,
)
from llmnb.text_files import is_hidden

SOURCE_SUFFIXES = (".py", ".json", ".jsonl", ".md")  # of the package's files in the digest
OUTPUT_WORDS = {"out", "output", "outputs", "outdir", "outfile"}  # in the name of a parameter
# What the notebooks read of a folder: models with their tokenizers, tables, texts, documents.
INPUT_SUFFIXES = {Path(pattern).suffix for pattern in models.MODEL_FILES}
INPUT_SUFFIXES |= {*table_files.SUFFIXES, ".md", ".markdown", ".rst", ".html", ".htm", ".py"}
INPUT_SUFFIXES |= {".ipynb", ".pdf", ".docx", ".eml", ".gz"}
MAX_INPUT_FILES = 10_000  # of one parameter, whose content is in the digest
MAX_INPUT_BYTES = 4_000_000_000  # of these files; of others only name, size and time
# This stands in the set-up cell of every notebook of the series, as JSON writes it.
SET_UP = rb"find_spec(\"llmnb\")"


class ParameterError(LlmnbError, ValueError):
    """A notebook or parameter that can't be run; the message says which and what is allowed."""


def notebook_folders() -> list[Path]:
    """Where notebooks are looked for, in this order."""
    package = Path(__file__).parents[1]
    return [Path("notebooks"), package.parent / "notebooks", package / "notebooks"]


def notebooks_in(folder: Path) -> list[Path]:
    """The numbered notebooks of a folder, in their order: 01_…, 04_…, 04a_…, 05_…."""
    paths = [path for path in folder.glob("*.ipynb") if re.match(r"\d\d[a-z]?_", path.name)]
    return sorted(paths, key=number_of)


def number_of(notebook: Path) -> str:
    """The number in a notebook's name, with its letter: "06c" for 06c_question_answering.ipynb."""
    return notebook.stem.partition("_")[0]


def subject_of(notebook: Path) -> str:
    """The name behind the number: "question_answering" for 06c_question_answering.ipynb."""
    return notebook.stem.partition("_")[2]


def all_notebooks() -> list[Path]:
    """The numbered notebooks of the series, from the first folder that holds any.

    Another project's notebooks, which can lie in a folder of the same name, are left out.
    """
    for folder in notebook_folders():
        if notebooks := [path for path in notebooks_in(folder) if is_of_series(path)]:
            return notebooks
    return []


def is_of_series(path: Path) -> bool:
    """Whether a notebook is one of this series, or was copied from one: by its set-up cell."""
    try:
        return SET_UP in path.read_bytes()
    except OSError:  # a folder of this name, or a file that can't be read
        return False


def find_notebook(name: str) -> Path:
    """A notebook by path, or by number ("06c", "6c"), subject ("applications") or full name.

    Raises ParameterError where no notebook, or more than one, has the name.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    if path.name != name:
        raise ParameterError(f"There is no notebook file {name!r} (looked in {Path.cwd()}).")
    stem = name.removesuffix(".ipynb")
    number = stem.zfill(2 + stem[-1:].isalpha())  # 6 means 06, and 6c means 06c
    notebooks = all_notebooks()
    matches = [p for p in notebooks if number == number_of(p) or stem in (p.stem, subject_of(p))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        problem = f"{name!r} could be {' and '.join(p.stem for p in matches)}."
    else:
        names = [p.stem for p in notebooks] + [subject_of(p) for p in notebooks]
        problem = f"There is no notebook {name!r}.{files.did_you_mean(name, names)}"
    available = ", ".join(p.stem for p in notebooks) or "none"
    raise ParameterError(f"{problem} The notebooks are: {available}.")


_UNREADABLE = (ValueError, OSError, TypeError, LookupError, AttributeError)
_UNREADABLE += (nbformat.ValidationError,)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook, in format 4. Raises ParameterError where the file is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except _UNREADABLE as error:
        reason = files.first_line(error)
        raise ParameterError(f"{path} can't be read as a notebook: {reason}") from error


def has_tag(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Whether the cell has this tag."""
    return tag in cell.metadata.get("tags", [])


def declared(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The parameters and their defaults, from the cell tagged "parameters"; {} without one.

    They are read from the syntax tree, because papermill's own inspection stops at a # inside a
    string. Raises ParameterError where a default is not a plain JSON value.
    """
    cell = next((cell for cell in notebook.cells if has_tag(cell, "parameters")), None)
    if cell is None:
        return {}
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ParameterError(f"The parameters cell is not valid Python: {error}") from error
    defaults = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                defaults[name] = _default(statement)
    return defaults


def _default(assignment: ast.Assign | ast.AnnAssign) -> Any:
    try:
        value = ast.literal_eval(assignment.value)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ParameterError(
            f"The default in {ast.unparse(assignment)!r} is not a plain value "
            f"(text, number, true/false, list or mapping)."
        ) from error
    return value


def resolve(
    notebook: nbformat.NotebookNode, given: Mapping[str, Any], name: str = "the notebook"
) -> dict[str, Any]:
    """The notebook's defaults, overridden by the given values: {name: plain JSON value}.

    A value gets its default's type; text for a parameter of another type is parsed. name: the
    notebook's, for messages. Raises ParameterError for a name that isn't declared or a value of
    another type, and ProfileError for an unknown profile.
    """
    defaults = declared(notebook)
    for key in given:
        if key not in defaults:
            available = ", ".join(defaults) or "none: no cell is tagged 'parameters'"
            hint = files.did_you_mean(str(key), defaults)
            raise ParameterError(f"{name} has no parameter {key!r}.{hint} It has: {available}.")
    values = {key: _typed(key, value, defaults[key], name) for key, value in given.items()}
    if isinstance(defaults.get("profile"), str):  # record which profile "auto" stands for
        values["profile"] = profiles.resolve(values.get("profile", defaults["profile"])).name
    if isinstance(values.get("seed"), int) and not 0 <= values["seed"] < 2**32:
        raise ParameterError(f"{name}: seed must be from 0 to 2**32 - 1, not {values['seed']}.")
    return defaults | values


def _typed(key: str, value: Any, default: Any, name: str) -> Any:
    """The value as a plain one of its default's type."""
    where = f"{name}: parameter {key!r}"
    is_untyped_secret = default is None and is_secret(key)  # its text is not parsed
    if isinstance(value, str) and not isinstance(default, str) and not is_untyped_secret:
        value = _parsed(value, default)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise ParameterError(f"{where} is too large a number.") from error
    if is_untyped_secret and not isinstance(value, str | None):
        raise ParameterError(f"{where} is named like a secret, so it must be text.")
    if default is not None and type(value) is not type(default):
        expected, actual = type(default).__name__, type(value).__name__
        value_text = REDACTED if is_secret(key) else repr(value)
        raise ParameterError(
            f"{where} must be {expected} (default {default!r}), not {actual} {value_text}."
        )
    try:
        json.dumps(value, allow_nan=False, sort_keys=True, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{where} is {value!r}, no plain JSON value: {error}.") from error
    return value


def _parsed(text: str, default: Any) -> Any:
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except ValueError:
        return text


def is_output(name: str, value: Any = "") -> bool:
    """Whether a parameter says where the notebook writes: out, output_folder, …; with a text."""
    return isinstance(value, str) and bool(OUTPUT_WORDS & set(words_of_name(name)))


def injected_cell(parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The cell that sets the parameters; it reads secrets from the environment."""
    lines = ["# Parameters of this run"]
    secret_names = secrets(parameters).keys()
    for key, value in parameters.items():
        if key in secret_names:
            lines.append(f'{key} = __import__("os").environ["{secret_variable(key)}"]')
        else:
            lines.append(f"{key} = {value!r}")
    cell = nbformat.v4.new_code_cell("\n".join(lines), id="injected-parameters")
    cell.metadata["tags"] = ["injected-parameters"]
    return cell


def inject(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Insert the parameters after the cell that declares them, replacing an earlier injection."""
    cells = [cell for cell in notebook.cells if not has_tag(cell, "injected-parameters")]
    for position, cell in enumerate(cells):
        if has_tag(cell, "parameters"):
            cells.insert(position + 1, injected_cell(parameters))
            break
    notebook.cells = cells


def digest(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> str:
    """Ten hex digits that say what the run is.

    They cover the parameters, the notebook's code, the package, the assets, and the content of the
    files that the parameters name, except outputs (`is_output`). Of a folder, only files count that
    are not hidden and have one of the INPUT_SUFFIXES. The first MAX_INPUT_FILES, up to
    MAX_INPUT_BYTES together, count by content, the others by name, size and time, as is printed.
    """
    facts = {
        "parameters": redacted(parameters),
        "files": {text: _file_facts(text, paths) for text, paths in inputs(parameters).items()},
        "code": code_digest(notebook),
        "assets": [[asset.name, asset.pin] for asset in assets.ASSETS.values()],
    }
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Ten hex digits over the notebook's code and the package's."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = json.dumps([code, package_digest()])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.cache  # a sweep names a thousand runs
def package_digest() -> str:
    """The sha256 over the sources of this package, without benchmarks, which only a wheel has."""
    package = Path(__file__).parents[1]
    sources = sorted(
        path
        for path in package.rglob("*")
        if path.suffix in SOURCE_SUFFIXES and package / "benchmarks" not in path.parents
    )
    sums = [[p.relative_to(package).as_posix(), files.sha256_of(p)] for p in sources]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def inputs(parameters: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files that the parameters name, by the path as it was given; outputs are left out."""
    paths_of = {}
    for name, value in parameters.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text and not is_output(name):
                with contextlib.suppress(OSError, ValueError, RuntimeError):  # a long prompt
                    paths_of[text] = input_files(Path(text).expanduser())
    return {text: paths for text, paths in paths_of.items() if paths}


def _file_facts(text: str, paths: list[Path]) -> list:
    """What identifies the files at the path in a parameter's text."""
    root = Path(text).expanduser()
    facts = []
    n_bytes = n_unread = 0
    for number, path in enumerate(paths, start=1):
        info = path.stat()
        n_bytes += info.st_size
        identity = [info.st_size, info.st_mtime_ns]
        if number <= MAX_INPUT_FILES and n_bytes <= MAX_INPUT_BYTES:
            identity = files.sha256_of(path)
        else:
            n_unread += 1
        facts.append([path.relative_to(root).as_posix(), identity])
    if n_unread:
        print(f"{text}: of {n_unread:,} files only name, size and time are in the run's name.")
    return facts


def input_files(root: Path) -> list[Path]:
    """The file, or those of the folder that a notebook reads, as `digest` says."""
    if root.is_file():
        return [root]
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        paths += [Path(folder, name) for name in names if not is_hidden(name)]
    return sorted(p for p in paths if p.suffix.lower() in INPUT_SUFFIXES and p.is_file())
