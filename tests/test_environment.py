"""The ways to install agree: pyproject.toml, constraints.txt, environment.yml, Makefile."""

import re
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "nbconvert-core": "nbconvert"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wanted(project):
    """Every requirement of pyproject.toml, extras included: {name: specifier}."""
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return {r.name: str(r.specifier) for r in map(Requirement, lines)}


def test_conda_has_the_same_ranges(project, wanted):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = (entry["pip"] for entry in environment if isinstance(entry, dict))
    assert "-e ." in by_pip
    lines = [entry for entry in environment if isinstance(entry, str)]
    lines += [entry for entry in by_pip if entry != "-e ."]
    found = {}
    for requirement in map(Requirement, lines):
        name = CONDA_NAMES.get(requirement.name, requirement.name)
        found[name] = str(requirement.specifier)
    assert found.pop("python") == project["requires-python"] and found.pop("pip") == ""
    assert found == wanted


def test_the_constraints_pin_every_requirement_within_its_range(wanted):
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    for name, specifier in wanted.items():
        assert name in pins, f"{name} is not pinned"
        assert Requirement(f"{name}{specifier}").specifier.contains(pins[name]), name


def test_every_import_of_the_package_is_declared(wanted):
    import ast
    import sys

    modules = {"yaml": "pyyaml", "PIL": "matplotlib", "jupyter_client": "nbclient"}
    modules |= {"sklearn": "scikit-learn", "rouge_score": "rouge-score"}
    modules |= {"IPython": "ipykernel", "huggingface_hub": "transformers", "pygments": "nbconvert"}
    modules |= {
        "tokenizers": "transformers",
        "math_core": "math-core",
        "traitlets": "nbconvert",
        "jinja2": "nbconvert",
    }
    modules |= {
        "jupyter_core": "nbconvert",
        "markupsafe": "nbconvert",
        "mistune": "nbconvert",
        "bs4": "nbconvert",
    }
    for file in (ROOT / "llmnb").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                assert top == "llmnb" or modules.get(top, top) in wanted, f"{file.name}: {top}"


def test_make_help_lists_the_targets():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = re.findall(r"make (\w+)", shown)
    assert {"setup", "report", "check", "notebooks", "stamp", "bench", "lab"} <= set(targets)


def test_imports_point_downward():
    """Shared rooms know no subject, runs knows no subject, and no subject knows runs."""
    shared = {"assets", "download", "data", "files", "profiles", "plots", "record", "tables"}
    imports = {}
    for file in (ROOT / "llmnb").rglob("*.py"):
        room = file.relative_to(ROOT / "llmnb").with_suffix("").parts[0]
        found = re.findall(r"from llmnb(?:\.(\w+))?[.\w]* import ([\w, ]+)", file.read_text())
        names = {name.strip() for first, rest in found for name in (first or rest).split(",")}
        imports.setdefault(room, set()).update(names - {"LlmnbError", "__version__"})
    for room, names in imports.items():
        if room in shared:
            assert names <= shared, room
        elif room == "runs":
            assert names <= shared | {"runs"}, room
        elif room not in ("cli", "__init__"):
            assert not names & {"runs", "cli"}, room


def test_sizes_stay_within_the_house_rules():
    """Files under 350 lines, functions under 50, lines of at most 100 columns."""
    import ast

    files = [*(ROOT / "llmnb").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    for file in files:
        lines = file.read_text().splitlines()
        assert len(lines) < 350, file.name
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{file.name}: {node.name}"
