"""The README: its numbers are the stored ones, its commands exist, its claims have tests."""

import json
import re
import runpy

import pytest
from conftest import ROOT

tools = runpy.run_path(str(ROOT / ".ci" / "readme.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADLINES = ("generation", "fine_tuning", "pretraining", "concepts", "runs", "applications")


def test_its_numbers_are_the_stored_ones():
    assert tools["rendered"](README) == README


def test_its_figure_is_the_notebooks():
    assert (ROOT / "docs/figure.png").read_bytes() == tools["picture"]()


def test_another_number_would_be_seen(monkeypatch):
    stored = tools["stored"]
    changed = {"generation": {"ratio": 0.1}}
    monkeypatch.setitem(
        tools["claims"].__globals__, "stored", lambda name: stored(name) | changed.get(name, {})
    )
    assert tools["rendered"](README) != README


@pytest.mark.parametrize("claim", tools["CLAIMS"], ids=lambda claim: claim[0][:40])
def test_every_claim_has_its_tests(claim):
    for test in claim[1].split(", "):
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("name", HEADLINES)
def test_the_committed_results_of_the_benchmarks_met_their_targets(name):
    """At both ends of the spread. This measures nothing; `make bench` does."""
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    assert 0 < result["low"] <= result["ratio"] <= result["high"] <= result["target"]


def test_commands_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"`?make ([\w-]+)", README):
        assert f"\n{name}:" in makefile, name


def test_the_front_page_fits_a_screen():
    first = README[: README.index("## What is different here")]
    assert len([line for line in first.splitlines() if line.strip()]) < 32
