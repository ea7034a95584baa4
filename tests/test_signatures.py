"""Calls in notebooks, package and benchmarks fit what is installed: arguments that were renamed.

Libraries rename arguments, and a notebook shows it only when it runs. Here each call whose function
can be found without running anything is bound to the signature of the installed function.
"""

import ast
import functools
import importlib
import inspect
import json
import re
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(ROOT.glob("llmnb/**/*.py"))
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SCRIPTS = sorted(ROOT.glob("benchmarks/*.py"))


def source_of(path: Path) -> str:
    """Of a notebook: its code cells, without lines for IPython."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(
        re.sub(r"^(\s*)[%!].*", r"\1pass", line)
        for line in lines  # IPython's own
    )


@functools.cache
def module_named(name: str) -> types.ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:  # an extra that isn't installed here
        return None


class Names(ast.NodeVisitor):
    """What the names of one file stand for: modules, functions and classes that it imports."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.objects: dict[str, object] = {}
        self.assigned: set[str] = set()  # also something else, somewhere in the file

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            top = alias.name if alias.asname else alias.name.partition(".")[0]
            module_named(alias.name)
            self.add(alias.asname or top, module_named(top))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = module_named(node.module or self.package)
        for alias in node.names:
            value = getattr(module, alias.name, None) or module_named(f"{node.module}.{alias.name}")
            self.add(alias.asname or alias.name, value)

    def add(self, name: str, value: object) -> None:
        if self.objects.setdefault(name, value) is not value:
            self.assigned.add(name)  # two imports of one name: which one counts isn't known

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.assigned.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.assigned.add(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.assigned.add(node.name)
        self.generic_visit(node)

    def object_of(self, node: ast.expr) -> object | None:
        """What `name` or `name.attribute.attribute` stands for, None where that isn't known."""
        if isinstance(node, ast.Name):
            return None if node.id in self.assigned else self.objects.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.object_of(node.value)
            return None if owner is None else getattr(owner, node.attr, None)
        return None


def misfits(source: str, package: str = "") -> Iterator[tuple[str, int]]:
    """Of each call that can be checked: what is wrong with it ("" if nothing), and its line."""
    tree = ast.parse(source)
    names = Names(package)
    names.visit(tree)
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not callable(function := names.object_of(call.func)):
            continue
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):  # written in C, without one
            continue
        if inspect.isclass(function) and "self" in signature.parameters:
            continue  # written in Rust: the signature isn't that of the constructor
        is_unpacked = any(isinstance(argument, ast.Starred) for argument in call.args)
        is_unpacked |= any(keyword.arg is None for keyword in call.keywords)
        arguments = [object()] * sum(not isinstance(a, ast.Starred) for a in call.args)
        keywords = {k.arg: object() for k in call.keywords if k.arg}
        try:
            (signature.bind_partial if is_unpacked else signature.bind)(*arguments, **keywords)
            yield "", call.lineno
        except TypeError as error:
            yield f"{ast.unparse(call.func)}: {error}", call.lineno


@pytest.mark.parametrize("path", [*MODULES, *NOTEBOOKS, *SCRIPTS], ids=lambda path: path.stem)
def test_every_call_fits_the_installed_signature(path):
    wrong = [f"line {line}: {text}" for text, line in misfits(source_of(path)) if text]
    assert wrong == []


def test_many_calls_of_notebooks_and_package_are_checked():
    """Or all of this could pass because nothing was found."""
    for paths, least in ((NOTEBOOKS, 600), (MODULES, 1200)):
        assert sum(1 for path in paths for _ in misfits(source_of(path))) >= least


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("import torch.nn as nn\nnn.Linear(3, out_size=4)", "out_features"),
        ("from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained()", "missing"),
        ("from llmnb.record import record\nrecord('x', 1.0, better_is='lower')", "better_is"),
        ("from llmnb import plots\nplots.bars({}, 'x', 'title', colour='red', **{})", "colour"),
    ],
)
def test_a_renamed_argument_is_found(call, message):
    assert [message in text for text, _ in misfits(call)] == [True]
