"""The archive for a machine without a network, and what its install script refuses."""

import hashlib
import os
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
from conftest import NOTEBOOKS

from llmnb import profiles
from llmnb.runs import bundle


def test_what_can_not_be_bundled_is_an_error_with_a_reason(tmp_path, monkeypatch):
    with pytest.raises(bundle.BundleError, match=r"\.tar"):
        bundle.write_bundle(tmp_path / "llmnb.zip", "smoke", print)
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "site-packages/llmnb/runs/bundle.py"))
    with pytest.raises(bundle.BundleError, match="checkout"):
        bundle.write_bundle(tmp_path / "llmnb.tar", "smoke", print)


def test_a_wheel_that_can_not_be_fetched_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(bundle.BundleError, match="Is there a network"):
        bundle.write_bundle(tmp_path / "out/llmnb.tar", "smoke", print)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """A bundle with one data set, without wheels, as its reader unpacks it."""
    profile = SimpleNamespace(name="smoke", assets=("movie-reviews",))
    monkeypatch.setattr(profiles, "resolve", lambda name: profile)
    monkeypatch.setattr(bundle, "_fetch_wheels", lambda root, folder: folder.mkdir())
    file = bundle.write_bundle(tmp_path / "llmnb.tar", "smoke", print)
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    return tmp_path / "there/llmnb"


def install(folder, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "HOME": str(folder.parent)} | variables
    return subprocess.run(
        ["./install.sh"], cwd=folder, capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a script for sh")
def test_the_manifest_has_every_file_and_the_script_refuses_a_damaged_one(unpacked):
    lines = (unpacked / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    names = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    assert names == {*sums, "SHA256SUMS"}
    for path in NOTEBOOKS:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert sums[f"notebooks/{path.name}"] == digest
    assert any(name.startswith("assets/movie-reviews") for name in sums)
    (unpacked / "notebooks" / NOTEBOOKS[0].name).write_text("changed")
    result = install(unpacked)
    assert result.returncode == 1 and f"{NOTEBOOKS[0].name} is damaged" in result.stderr
    assert not (unpacked / ".venv").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a script for sh")
def test_the_script_refuses_another_python(unpacked):
    script = unpacked / "install.sh"
    script.write_text(script.read_text().replace("expected='Python 3", "expected='Python 2"))
    result = install(unpacked)
    assert result.returncode == 1 and "This bundle is for Python 2" in result.stderr
