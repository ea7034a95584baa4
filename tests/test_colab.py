"""Colab: what the set-up cell installs, and what `make stamp` writes into it and the badges."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, ROOT
from IPython.core.inputtransformer2 import TransformerManager

bundle, colab, stamp = (
    runpy.run_path(str(ROOT / ".ci" / name)) for name in ("bundle.py", "colab.py", "stamp.py")
)
UNSTAMPED = {"owner": "", "repo": "", "ref": "main", "published": False, "version": "0.1.0"}
STAMPED = UNSTAMPED | {"owner": "someone", "repo": "llmnb"}
PUBLISHED = STAMPED | {"published": True}


def set_up_cell(path: Path, where: dict) -> str:
    """The set-up cell of a notebook, stamped anew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "set-up"]
    return stamp["stamped_set_up"](source, where)


def test_one_set_up_cell_serves_all_notebooks_and_fits_the_page():
    (cell,) = {set_up_cell(path, STAMPED) for path in NOTEBOOKS}
    assert max(map(len, cell.splitlines())) <= 100


@pytest.mark.parametrize("on_colab", [True, False])
def test_the_set_up_cell_does_nothing_where_llmnb_is_or_outside_colab(on_colab, monkeypatch):
    module = "google.colab" if on_colab else "llmnb"  # None stands for a module that is missing
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module) if on_colab else None)
    namespace = {}
    cell = set_up_cell(NOTEBOOKS[0], STAMPED)
    exec(TransformerManager().transform_cell(cell), namespace)
    assert "wheels" not in namespace


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with the unpacked bundle, and with the archive that GitHub makes of the checkout."""
    folder = tmp_path_factory.mktemp("published")
    bundle["main"](folder / "llmnb-colab.zip")
    shutil.unpack_archive(folder / "llmnb-colab.zip", folder)
    archive = folder / "someone/llmnb/archive/main.zip"
    archive.parent.mkdir(parents=True)
    command = ["git", "-C", ROOT, "archive", "--prefix=llmnb-main/", "-o", archive, "HEAD"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def colab_python(tmp_path):
    """A Python that believes it runs on Colab, with everything that is installed here but llmnb."""
    venv.create(tmp_path / "venv", symlinks=True)
    folder = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "llmnb" not in path.name:
            Path(folder, path.name).symlink_to(path)
    Path(folder, "fake_colab.pth").write_text(colab["FAKE_COLAB_MODULE"], encoding="utf-8")
    return tmp_path / "venv/bin/python"


RUN_CELL = """
import importlib.metadata, json, sys, urllib.parse
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell(sys.stdin.read()).raise_error()
import llmnb
origin = importlib.metadata.distribution("llmnb").read_text("direct_url.json")
print("from", urllib.parse.unquote(json.loads(origin)["url"]) if origin else "the index")
"""
DRIVE = "drive/MyDrive"
# What the notebook was stamped with, the folders that hold a wheel, and what must come of it.
PLACES = {
    "wheel beside the notebook": (PUBLISHED, [".", DRIVE], "/content/llmnb-"),
    "wheel in the Drive": (PUBLISHED, [DRIVE, f"{DRIVE}/my lessons"], "MyDrive/llmnb-"),
    "wheel in a folder there": (STAMPED, [f"{DRIVE}/my lessons"], "/my lessons/llmnb-"),
    "index": (PUBLISHED, [], "from the index"),
    "repository": (STAMPED, [], "/someone/llmnb/archive/main.zip"),
    # Although the index has a project of that name: a stranger's, as far as anybody knows.
    "nothing": (UNSTAMPED, [], "FileNotFoundError: Upload the llmnb-*.whl that"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_set_up_cell_takes_llmnb_from(place, colab_python, published, tmp_path):
    where, folders, expected = PLACES[place]
    content = tmp_path / "content"
    content.mkdir()
    for folder in folders:
        (content / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(*published.glob("llmnb-colab/*.whl"), content / folder)
        older = content / folder / "llmnb-9.0-py3-none-any.whl"
        older.touch()
        os.utime(older, (0, 0))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if place != "repository":  # there, pip needs the real index for what builds the archive
        variables |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(published / "llmnb-colab")}
    cell = set_up_cell(NOTEBOOKS[0], where).replace("https://github.com", published.as_uri())
    command = [colab_python, "-c", RUN_CELL]
    options = {"cwd": content, "env": variables, "capture_output": True, "text": True}
    run = subprocess.run(command, input=cell, **options)
    last_line = (run.stderr if run.returncode else run.stdout).splitlines()[-1]
    assert expected in last_line, run.stdout + run.stderr


def test_a_remotes_address_names_the_repository():
    for url in (
        "https://github.com/some-one/llm.nb.git",
        "https://name:secret@github.com/some-one/llm.nb/",
        "git@github.com:some-one/llm.nb.git",
        "ssh://git@ssh.github.com:443/some-one/llm.nb",
    ):
        assert stamp["repository_in"](url) == "some-one/llm.nb", url
    for url in ("git@gitlab.com:a/b.git", "https://x.org/github.com/a/b", "/srv/github.com/a/b"):
        assert stamp["repository_in"](url) is None, url


@pytest.fixture
def clone(tmp_path):
    """What `make stamp` reads and writes, unstamped, in a git repository without a remote."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / ".ci").mkdir()
    for name in ("README.md", "pyproject.toml", ".ci/stamp.py"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q", folder], check=True)
    run_stamp(folder, "none")
    return folder


def run_stamp(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, folder / ".ci/stamp.py", *words]
    return subprocess.run(command, capture_output=True, text=True)


def add_origin(folder: Path, url: str) -> None:
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", url], check=True)


def contents(folder: Path) -> dict[str, str]:
    """The text of every file that a stamp may change."""
    files = [folder / "README.md", folder / "pyproject.toml", *folder.glob("notebooks/*.ipynb")]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def test_stamping_adds_badges_and_sources_and_is_undone_to_the_byte(clone):
    before = contents(clone)
    assert "colab-badge" not in "".join(before.values())
    add_origin(clone, "git@github.com:someone/llmnb.git")
    assert run_stamp(clone).returncode == 0
    stamped = contents(clone)
    for path in NOTEBOOKS:
        assert f"github/someone/llmnb/blob/main/notebooks/{path.name})" in stamped[path.name]
        assert "llmnb @ https://github.com/someone/llmnb/archive/main.zip" in stamped[path.name]
    assert "someone/llmnb/actions/workflows/ci.yml" in stamped["README.md"]
    assert run_stamp(clone).returncode == 0 and contents(clone) == stamped
    run_stamp(clone, "another/name")
    assert "someone" not in "".join(contents(clone).values())
    run_stamp(clone, "none")
    assert contents(clone) == before


def test_without_a_remote_the_stamp_refuses_in_one_sentence(clone):
    """Nor does it take the remote of a repository around an unpacked archive."""
    before = contents(clone)
    run = run_stamp(clone)
    assert "no git remote 'origin' at github.com" in run.stderr and run.stderr.count("\n") == 1
    (clone / ".git").rename(clone.parent / ".git")
    add_origin(clone.parent, "https://github.com/another/project.git")
    assert run_stamp(clone).returncode == 1
    assert "neither OWNER/REPO nor none" in run_stamp(clone, "owner name").stderr
    assert contents(clone) == before


def test_the_files_are_stamped_as_pyproject_says():
    where, texts = stamp["settings"](), contents(ROOT)
    assert stamp["stamped_readme"](texts["README.md"], where) == texts["README.md"]
    for path in NOTEBOOKS:
        assert stamp["stamped_notebook"](texts[path.name], path.name, where) == texts[path.name]
