"""Which profile: explicit wins over the environment, which wins over auto."""

import pytest
import torch
from conftest import python

from llmnb import LlmnbError, profiles
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


def test_only_gpu_names_the_hub():
    hub = {name for name, profile in profiles.PROFILES.items() if "/" in profile.decoder}
    assert hub == {"gpu"}


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
