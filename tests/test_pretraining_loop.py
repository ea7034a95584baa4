"""The loop: its numbers, what it writes, and that a killed run ends as if nothing had been."""

import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small
from safetensors import safe_open
from safetensors.torch import load_file

from llmnb import hardware
from llmnb.data import DataError
from llmnb.pretraining import loop
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.optimizers import learning_rate
from llmnb.pretraining.processes import Processes
from llmnb.pretraining.recipe import PretrainingError
from llmnb.pretraining.tokens import batch_at, prepare, validation_blocks


class Stop(Exception):
    """In the middle of a run."""


def stopping(lines):
    """Takes so many lines of progress, and stops the run at the next."""
    number = itertools.count()

    def say(line):
        if next(number) == lines:
            raise Stop

    return say


def trained(corpus, recipe, out=None, **options):
    options = {"evaluations": 10, "checkpoint_seconds": 0.0} | options
    trainer = Trainer(corpus, recipe, out, **options)
    trainer.run()
    return trainer


def rows(out):
    """Of the log in a folder, without what time has to do with."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").split("\n")
    log = [json.loads(line) for line in lines if line]
    assert [row["seconds"] for row in log] == sorted(row.pop("seconds") for row in log)
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in log]


def facts(out):
    """What the checkpoint keeps beside the tensors, without the time."""
    with safe_open(out / "checkpoint.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts.pop("seconds") > 0
    return facts


def assert_same_run(one, other):
    """Bit for bit: losses, weights, the optimizers' states."""
    assert rows(one) == rows(other) and facts(one) == facts(other)
    states = [load_file(folder / "checkpoint.safetensors") for folder in (one, other)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 20
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


# What it computes


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_it_is_this_plain_loop(family, corpus):
    options = {"family": family, "weight_decay": 0.1, "clip": 1.0, "warmup": 0.3, "decay": 0.3}
    recipe = small(optimizer="adamw", seed=3, **options)
    trainer = Trainer(corpus, recipe)
    model = recipe.build(len(corpus.tokenizer)).to(trainer.device)
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1}]
    groups += [{"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer, norms = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True), []
    for step in range(30):
        blocks = torch.from_numpy(batch_at(corpus.train, 3, step, 8, 16)).to(trainer.device)
        loss = F.cross_entropy(model(blocks[:, :-1]).flatten(0, 1), blocks[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * learning_rate(step, 30, 0.3, 0.3)
        optimizer.step()
        assert trainer.train_step() == pytest.approx(loss.item(), abs=1e-5)
    assert min(norms) < 1 < max(norms)  # some were clipped
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_once", [8192, 48])
def test_the_validation_loss_is_the_mean_over_every_token(at_once, corpus, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATION_TOKENS", at_once)
    trainer = Trainer(corpus, small(zero_init=False))
    blocks = torch.from_numpy(validation_blocks(corpus.validation, 16)).to(trainer.device)
    assert len(blocks) % 3 and len(blocks) > 50  # the last part is smaller
    probabilities = trainer.model(blocks[:, :-1]).log_softmax(-1)
    expected = -probabilities.gather(2, blocks[:, 1:, None]).mean().item()
    assert trainer.evaluate() == pytest.approx(expected, abs=1e-6)
    assert trainer.parallel_model.training


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_it_learns_and_says_so(objective, corpus, tmp_path):
    lines = []
    recipe = small(objective=objective, tokens=60 * 8 * 16, decay=0.8)
    trainer = Trainer(corpus, recipe, tmp_path, evaluations=7, say=lines.append)
    first = trainer.evaluate()
    assert first == pytest.approx(math.log(len(corpus.tokenizer)), rel=0.02)  # as by chance
    log = trainer.run()
    assert log == trainer.log and not trainer.model.training
    assert [row["step"] for row in log] == [*range(0, 60, 8), 60]
    assert [row["tokens"] for row in log] == [128 * row["step"] for row in log]
    assert log[0]["loss"] is None and log[0]["validation_loss"] == first
    assert log[-1]["validation_loss"] == trainer.evaluate() < 0.8 * first
    assert log[3]["lr"] == pytest.approx(recipe.lr * learning_rate(23, 60, 0.02, 0.8))
    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == log
    assert len(lines) == len(log) and "7,680 tokens" in lines[-1]
    assert f"validation {log[-1]['validation_loss']:.3f}" in lines[-1]


def test_a_rows_loss_is_the_mean_since_the_last_row(corpus):
    plain = Trainer(corpus, small())
    losses = [plain.train_step() for _ in range(30)]
    log = trained(corpus, small(), evaluations=4).log
    assert [row["step"] for row in log] == [0, 7, 14, 21, 28, 30]
    for before, row in itertools.pairwise(log):
        mean = np.mean(losses[before["step"] : row["step"]])
        assert row["loss"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_in_parts_it_is_the_same(objective, corpus):
    settings = {"objective": objective, "optimizer": "adamw"}
    whole, parts = (trained(corpus, small(**settings, accumulation=n)).log for n in (1, 8))
    for one, other in zip(whole[1:], parts[1:], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)


def test_samples_are_written_at_their_moments_and_change_nothing(corpus):
    plain = trained(corpus, small()).log
    log = trained(corpus, small(), samples=3, prompt="The ").log
    samples = {row["step"]: row["sample"] for row in log if "sample" in row}
    assert [*samples] == [0, 12, 30] and all(s.startswith("The ") for s in samples.values())
    assert log[-1]["validation_loss"] == plain[-1]["validation_loss"]
    masked = trained(corpus, small(objective="masked"), samples=3).log
    assert not any("sample" in row for row in plain + masked)


def test_bf16_is_for_the_products_alone(corpus):
    exact, rounded = (trained(corpus, small(dtype=dtype)) for dtype in ("fp32", "bf16"))
    ids = torch.from_numpy(exact.blocks[:2, :-1]).to(exact.device)
    assert rounded.forward(ids).dtype == torch.bfloat16
    weights = [*rounded.model.parameters()]
    for optimizer in rounded.optimizers:
        weights += [value for state in optimizer.state.values() for value in state.values()]
    assert len(weights) > 20 and {weight.dtype for weight in weights} == {torch.float32}
    assert not all(p.bfloat16().float().equal(p) for p in rounded.model.parameters())
    for one, other in zip(exact.log, rounded.log, strict=True):
        assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=0.02)
    assert rounded.log[-1] != exact.log[-1]


# Stopped and taken up again

RECIPES = {
    "adamw, in parts": {"family": "gpt2", "optimizer": "adamw", "accumulation": 4},
    "masked, bf16": {"objective": "masked", "dtype": "bf16"},
    "fp16": {"family": "llama", "dtype": "fp16"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_ends_like_an_unbroken_one(name, corpus, tmp_path):
    recipe = small(weight_decay=0.1, **RECIPES[name])
    whole = trained(corpus, recipe, tmp_path / "whole")
    for lines in (1, 3, 4):
        with pytest.raises(Stop):
            trained(corpus, recipe, tmp_path / "cut", say=stopping(lines))
    lines = []
    last = trained(corpus, recipe, tmp_path / "cut", say=lines.append)
    assert lines[0] == "resumed at step 17 of 30"
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert last.evaluate() == whole.evaluate()


def test_minutes_become_steps_once(corpus, tmp_path, monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 100, monotonic=time.monotonic)
    monkeypatch.setattr(loop, "time", clock)  # a step takes a hundredth of a second
    recipe = small(tokens=0, minutes=0.005)
    with pytest.raises(Stop):
        trained(corpus, recipe, tmp_path / "cut", say=stopping(4))
    monkeypatch.undo()  # a resumed run measures nothing
    assert trained(corpus, recipe, tmp_path / "cut").step == 30
    trained(corpus, small(), tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_before_the_first_checkpoint_it_begins_anew(corpus, tmp_path):
    with pytest.raises(Stop):
        trained(corpus, small(), tmp_path / "cut", say=stopping(4), checkpoint_seconds=1e9)
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == ["log.jsonl", "run.json"]
    trained(corpus, small(), tmp_path / "cut")
    trained(corpus, small(), tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_half_written_files_do_no_harm(text, tmp_path):
    corpus, out = prepare(text, "bytes"), tmp_path / "cut"
    options = {"samples": 3, "prompt": "é\u2028\x85"}  # str.splitlines would cut here
    trained(corpus, small(), tmp_path / "whole", **options)
    with pytest.raises(Stop):
        trained(corpus, small(), out, say=stopping(6), **options)
    (out / "checkpoint.part").write_bytes((out / "checkpoint.safetensors").read_bytes()[:999])
    with open(out / "log.jsonl", "ab") as file:
        file.write('{"step": 17, "sample": "é'.encode()[:-1])
    trained(corpus, small(), out, **options)
    assert_same_run(out, tmp_path / "whole")
    assert [row["step"] for row in rows(out) if "\u2028" in row.get("sample", "")] == [0, 12, 30]
    assert not (out / "checkpoint.part").exists()


# What can't work


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ({}, {"lr": 1e-3}, "its lr is 0.008, not 0.001"),
        ({}, {"model": {"rope_theta": 5.0}}, r"its model is {}, not {'rope_theta': 5.0}"),
        ({"model": {"rope_theta": 5.0}}, {}, r"its model is {'rope_theta': 5.0}, not {}"),
    ],
)
def test_another_run_is_not_overwritten(before, changes, message, corpus, text, tmp_path):
    recipe = small(tokens=128, **before)
    trained(corpus, recipe, tmp_path)
    content = contents(tmp_path)
    assert len(content) == 3
    with pytest.raises(PretrainingError, match=f"holds another run: {message}"):
        Trainer(corpus, small(**{"tokens": 128} | changes), tmp_path)
    with pytest.raises(PretrainingError, match="holds a run already"):
        Trainer(corpus, recipe, tmp_path, resume=False)
    with pytest.raises(PretrainingError, match="holds another run: its corpus is 'tokens-sent"):
        Trainer(prepare(text, "bytes"), recipe, tmp_path)
    assert contents(tmp_path) == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", "of another program", "holds another log.jsonl"),
        ("checkpoint.safetensors", "of another program", "holds another checkpoint.safetensors"),
        ("run.json", "[1]", "run.json is not the record of a pretraining run"),
        ("run.json", '{"notebook": "01_concepts"}', "is not the record of a pretraining run"),
    ],
)
def test_files_of_other_programs_are_not_overwritten(name, content, message, corpus, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PretrainingError, match=message):
        Trainer(corpus, small(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_what_can_not_work_is_refused_at_once(corpus, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"hold no block of 5,000 .* another block_size"):
        Trainer(corpus, small(block_size=5000), out)
    with pytest.raises(PretrainingError, match="budget: either tokens or minutes"):
        Trainer(corpus, small(tokens=0))
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(PretrainingError, match="out can't be"):
        Trainer(corpus, small(), out)
    assert out.read_text() == "a file"


@pytest.mark.parametrize("changes", [{}, {"tokens": 128}], ids=["training", "validation"])
def test_a_loss_that_is_no_number_names_the_step(changes, corpus, tmp_path):
    recipe = small(family="gpt2", optimizer="adamw", lr=1e30, **changes)
    with pytest.raises(PretrainingError, match=r"loss is nan at step 1\..* halve lr \(1e\+30\)"):
        trained(corpus, recipe, tmp_path, evaluations=1)


def test_more_processes_than_gpus_are_refused_before_they_meet(monkeypatch):
    monkeypatch.setattr(hardware, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PretrainingError, match=r"2 processes here.* has 1 GPUs.*per-node=1"):
        Processes.join()
