"""What a notebook declares, what it is given, and the digest that says which run it is.

papermill only warns of an unknown parameter and executes code in a name: here both are errors,
before anything runs.
"""

import ast
import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from llmnb import LlmnbError, assets, files, profiles

REDACTED = "•••"
_INVALID = (nbformat.ValidationError, nbformat.reader.NotJSONError)
_SECRET_WORDS = {"token", "secret", "password", "passwd", "pwd", "credential", "credentials"}
_SECRET_WORDS |= {"apikey", "passphrase"}


class ParameterError(LlmnbError, ValueError):
    """A notebook or parameter that can't be run; the message says which and what is allowed."""


def notebook_folders() -> list[Path]:
    """Where notebooks are looked for, in order."""
    package = Path(__file__).parents[1]
    return [Path("notebooks"), package.parent / "notebooks", package / "notebooks"]


def all_notebooks() -> list[Path]:
    """The numbered notebooks of the first folder that holds any."""
    for folder in notebook_folders():
        if found := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            return found
    return []


def find_notebook(name: str) -> Path:
    """A notebook by path, name or number ("01", "1", "01_concepts"). Raises ParameterError."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    if Path(name).name != name:
        raise ParameterError(f"There is no notebook file {name!r} (looked in {Path.cwd()}).")
    known = all_notebooks()
    stem = Path(name).name.removesuffix(".ipynb")
    number = stem.zfill(2) if stem.isdigit() else None
    for path in known:
        if path.stem in (name, stem) or path.stem[:2] == number or path.stem[3:] == stem:
            return path
    names = ", ".join(path.stem for path in known) or "none were found"
    raise ParameterError(f"There is no notebook {name!r}. Known by number or name: {names}.")


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook, in format 4. Raises ParameterError where the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, OSError, TypeError, LookupError, AttributeError, *_INVALID) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ParameterError(f"{path} is no notebook that can be read: {reason}") from error


def declared(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The parameters and their defaults, from the cell tagged "parameters"; {} without one.

    Read from the syntax tree: papermill's own inspection stops at a # inside a text. Raises
    ParameterError where a default is no plain JSON value.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if not cells:
        return {}
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ParameterError(f"The parameters cell is no Python: {error}") from error
    found = {}
    for statement in statements:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            continue
        try:
            found[targets[0].id] = ast.literal_eval(statement.value)
            json.dumps(found[targets[0].id], allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ParameterError(
                f"The notebook's own parameter {ast.unparse(statement)} is no plain value "
                f"(text, number, true/false, list, mapping)."
            ) from error
    return found


def resolve(
    notebook: nbformat.NotebookNode, given: Mapping[str, Any], name: str = "the notebook"
) -> dict[str, Any]:
    """Defaults overlaid with what is given, all checked: names declared, types as the defaults'.

    Text for a parameter that is no text (from a command line) is parsed. Raises ParameterError,
    and ProfileError for a profile that doesn't exist.
    """
    defaults = declared(notebook)
    for key in given:
        if key not in defaults:
            allowed = ", ".join(defaults) or "none: no cell is tagged 'parameters'"
            close = difflib.get_close_matches(str(key), defaults, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ParameterError(f"{name} has no parameter {key!r}.{hint} It has: {allowed}.")
    values = {key: _typed(key, value, defaults[key], name) for key, value in given.items()}
    if isinstance(defaults.get("profile"), str):  # "auto" resolved: what ran, not what was asked
        values["profile"] = profiles.resolve(values.get("profile", defaults["profile"])).name
    if "seed" in values and not 0 <= values["seed"] < 2**32:
        raise ParameterError(f"{name}: seed is from 0 to 2**32 - 1, not {values['seed']}.")
    return defaults | values


def _typed(key: str, value: Any, default: Any, name: str) -> Any:
    where = f"{name}: parameter {key!r}"
    if isinstance(value, Path):
        value = str(value)
    secret = default is None and is_secret(key)  # its text is taken as it is
    if isinstance(value, str) and not isinstance(default, str) and not secret:
        value = _parsed(value, default, where)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if secret and not isinstance(value, str | None):
        raise ParameterError(f"{where} is named like a secret: it must be text.")
    if default is not None and type(value) is not type(default):
        wanted, got = type(default).__name__, type(value).__name__
        raise ParameterError(f"{where} is {wanted} (default {default!r}); got {got} {value!r}.")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{where} is no plain JSON value: {error}.") from error
    return value


def _parsed(text: str, default: Any, where: str) -> Any:
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{where} must be a finite number, not {text}.")
    return value


def is_secret(name: str) -> bool:
    """Whether a parameter's name says that its value must not be stored."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_")
    return bool(_SECRET_WORDS & set(parts)) or (
        parts[-1] == "key" and bool({"api", "access", "private", "secret", "auth"} & set(parts))
    )


def secret_variable(name: str) -> str:
    """The environment variable in which a secret parameter reaches the kernel."""
    return f"LLMNB_SECRET_{name.upper()}"


def secrets(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that must not be stored: text under a secret's name."""
    return {k: v for k, v in parameters.items() if is_secret(k) and isinstance(v, str) and v}


def redacted(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they may be stored."""
    return dict(parameters) | dict.fromkeys(secrets(parameters), REDACTED)


def injected_cell(parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The cell that sets the parameters; it fetches secrets from the environment."""
    lines, hidden = ["# Parameters of this run"], secrets(parameters)
    for key, value in parameters.items():
        if key in hidden:
            lines.append(f'{key} = __import__("os").environ["{secret_variable(key)}"]')
        else:
            lines.append(f"{key} = {value!r}")
    cell = nbformat.v4.new_code_cell("\n".join(lines), id="injected-parameters")
    cell.metadata["tags"] = ["injected-parameters"]
    return cell


def inject(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Put the parameters behind the cell that declares them (in place of an earlier injection)."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    kept = [c for c, t in zip(notebook.cells, tags, strict=True) if "injected-parameters" not in t]
    at = next((i for i, c in enumerate(kept) if "parameters" in c.metadata.get("tags", [])), None)
    if at is not None:
        kept.insert(at + 1, injected_cell(parameters))
    notebook.cells = kept


def digest(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> str:
    """What the run is: parameters, files they name, the notebook's code, package and assets."""
    package = Path(__file__).parents[1]
    sources = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".json", ".jsonl", ".md"))
    facts = {
        "parameters": redacted(parameters),
        "files": {k: _file_sums(v) for k, v in parameters.items() if isinstance(v, str) and v},
        "code": [cell.source for cell in notebook.cells if cell.cell_type == "code"],
        "package": [[p.relative_to(package).as_posix(), files.sha256_of(p)] for p in sources],
        "assets": [[asset.name, asset.pin] for asset in assets.ASSETS.values()],
    }
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _file_sums(value: str) -> list:
    """The sums of the file, or of each file in the folder, that a parameter names; else []."""
    try:
        path = Path(value).expanduser()
        if path.is_file():
            return [files.sha256_of(path)]
        if path.is_dir():
            paths = sorted(p for p in path.rglob("*") if p.is_file())
            return [[p.relative_to(path).as_posix(), files.sha256_of(p)] for p in paths]
    except (OSError, ValueError, RuntimeError):  # a long prompt is no path
        pass
    return []
