"""Fine-tuning and LoRA on a tiny random encoder: what is trained, saved, stopped and resumed."""

import dataclasses
import gc
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT

from llmnb import embedding, fine_tuning
from llmnb.assets import AssetError
from llmnb.fine_tuning import FineTuningError, Settings, encoders

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("bad", "good")


@pytest.fixture
def settings(tiny_models):
    encoder = str(tiny_models / "encoder")
    return Settings(encoder=encoder, dtype="fp32", lr=3e-3, epochs=1, max_length=32)


@pytest.fixture(scope="module")
def parts(made_up):
    return {name: (part["text"][:], np.array(part["label"][:])) for name, part in made_up.items()}


def train(method, parts, settings, **options):
    return encoders.train(method, settings.encoder, parts, LABELS, settings, **options)


def test_lora_learns_with_few_weights_and_merges_exactly(parts, settings, tmp_path):
    import peft

    settings = dataclasses.replace(settings, lr=1e-2, epochs=15)
    classifier = train("lora", parts, settings)
    texts, labels = parts["test"]
    assert np.mean(classifier.probabilities(texts).argmax(1) == labels) > 0.95
    n_weights = sum(p.numel() for p in classifier.model.parameters())
    assert classifier.trainable_parameters < 0.5 * n_weights
    fine_tuning.save(classifier, tmp_path / "saved")
    adapter = tmp_path / "saved" / "adapter"
    assert classifier.bytes_on_disk() == sum(f.stat().st_size for f in adapter.iterdir()) > 0
    device = classifier.model.device
    base = encoders.load_with_head(settings.encoder, LABELS)
    unmerged = peft.PeftModel.from_pretrained(base, adapter).to(device).eval()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    plain = plain.to(device).eval()
    assert plain.config.id2label == {0: "bad", 1: "good"}
    ids, _ = embedding.encode(classifier.tokenizer, texts[:8], settings.max_length)
    for _, inputs in embedding.batches(classifier.tokenizer, ids, device=device):
        with torch.inference_mode():
            logits = classifier.model.eval()(**inputs).logits
            torch.testing.assert_close(unmerged(**inputs).logits, logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(plain(**inputs).logits, logits, atol=1e-6, rtol=0)


def test_a_lora_that_learned_nothing_is_told_from_one_that_did(parts, settings):
    """On the smoke run's 64 real texts it isn't; there the accuracies are alike."""
    classifier = train("lora", parts, dataclasses.replace(settings, lr=1e-12, epochs=15))
    texts, labels = parts["test"]
    assert np.mean(classifier.probabilities(texts).argmax(1) == labels) < 0.8


def test_lora_changes_the_encoder_and_not_only_the_head(parts, settings):
    pretrained = encoders.load_with_head(settings.encoder, LABELS).state_dict()
    classifier = train("lora", parts, dataclasses.replace(settings, lr=1e-2))
    for name, weight in classifier.model.state_dict().items():
        is_linear = weight.ndim == 2 and ".layer." in name
        if name.startswith("bert.encoder"):
            assert weight.cpu().equal(pretrained[name]) != is_linear, name


def test_the_same_seed_gives_the_same_classifier(parts, settings):
    texts, _ = parts["test"]
    seeds = {"first": 0, "again": 0, "other": 1}
    probabilities = {}
    for name, seed in seeds.items():
        classifier = train("full", parts, dataclasses.replace(settings, seed=seed))
        probabilities[name] = classifier.probabilities(texts)
    assert np.array_equal(probabilities["first"], probabilities["again"])
    assert not np.allclose(probabilities["first"], probabilities["other"])


def test_balanced_gives_rare_classes_more_weight():
    rows = [{"labels": 0}] * 30 + [{"labels": 1}] * 10
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    labels = torch.tensor([0, 1])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    plain = encoders._loss(rows, 2, balanced=False)({"logits": logits}, labels)
    torch.testing.assert_close(plain, losses.mean())
    weights = torch.tensor([40 / 60, 40 / 20])
    weighted = encoders._loss(rows, 2, balanced=True)({"logits": logits}, labels)
    torch.testing.assert_close(weighted, (weights * losses).sum() / weights.sum())


def test_a_loss_that_is_not_finite_ends_the_training(parts, settings, monkeypatch):
    load = encoders.load_with_head

    def load_broken(*args, **options):
        model = load(*args, **options)
        model.classifier.weight.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(encoders, "load_with_head", load_broken)
    with pytest.raises(FineTuningError, match="not finite any more: lower lr"):
        train("full", parts, settings)


@pytest.mark.parametrize(("epochs", "keeps_the_best"), [(2.0, False), (3.0, True)])
def test_a_training_too_short_to_be_stopped_keeps_its_last_weights(
    tmp_path, epochs, keeps_the_best
):
    arguments = encoders._arguments("full", 100, Settings(epochs=epochs), tmp_path)
    assert arguments.load_best_model_at_end == keeps_the_best


def test_training_stops_early_and_keeps_the_best(parts, settings):
    lines = []
    settings = dataclasses.replace(settings, epochs=30, patience=2)
    classifier = train("full", parts, settings, say=lines.append)
    scores = [float(line.split()[-1]) for line in lines]
    assert len(scores) < 30 and max(scores[:-2]) == max(scores)
    texts, labels = parts["validation"]
    assert np.mean(classifier.probabilities(texts).argmax(1) == labels) > 0.95


def test_a_classifier_of_plain_transformers_is_loaded(
    parts, settings, tiny_models, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLMNB_DTYPE", "fp32")
    classifier = train("full", parts, settings)
    folder = fine_tuning.save(classifier, tmp_path / "saved")
    (folder / fine_tuning.FACTS).unlink()
    loaded = fine_tuning.load(folder)
    texts = parts["test"][0][:8]
    expected = classifier.probabilities(texts)
    np.testing.assert_allclose(loaded.probabilities(texts), expected, atol=1e-6)
    assert loaded.label_names == LABELS and loaded.method == "pretrained"
    with pytest.raises(AssetError, match="lacks 2 weights"):  # its head would be random numbers
        fine_tuning.load(tiny_models / "encoder")


def test_broken_weights_of_a_classifier_are_explained(tiny_models, tmp_path):
    shutil.copytree(tiny_models / "encoder", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(AssetError, match="can't be loaded"):
        fine_tuning.load(tmp_path)


TRAIN = """
import sys
import datasets
import numpy as np
import torch
from pathlib import Path
from llmnb.fine_tuning import Settings, encoders
torch.set_num_threads(1)
rows, base, folder, out = sys.argv[1:]
splits = datasets.load_from_disk(rows)
parts = {name: (part["text"][:], np.array(part["label"][:])) for name, part in splits.items()}
settings = Settings(dtype="fp32", lr=1e-3, epochs=12, max_length=32, patience=12, batch_size=8)
made = encoders.train("full", base, parts, ("bad", "good"), settings, Path(folder), say=print)
np.save(out, made.probabilities(parts["test"][0]))
"""


def start_training(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", TRAIN, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_training_ends_as_the_unbroken_one(made_up, tiny_models, tmp_path):
    made_up.save_to_disk(tmp_path / "rows")
    inputs = (tmp_path / "rows", tiny_models / "encoder")
    unbroken = start_training(*inputs, tmp_path / "whole", tmp_path / "whole.npy")
    assert unbroken.wait(200) == 0
    checkpoints = tmp_path / "broken"
    for evaluation in (2, 5):  # a checkpoint is written after each evaluation
        process = start_training(*inputs, checkpoints, tmp_path / "broken.npy")
        for line in process.stdout:
            evaluation -= "macro-F1" in line
            if evaluation == 0:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
        assert list(checkpoints.rglob("checkpoint-*"))
    process = start_training(*inputs, checkpoints, tmp_path / "broken.npy")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "goes on from step" in output
    np.testing.assert_array_equal(np.load(tmp_path / "broken.npy"), np.load(tmp_path / "whole.npy"))
    assert not checkpoints.exists()


def test_a_torn_checkpoint_is_removed(tmp_path):
    for step, name in ((9, "trainer_state.json"), (10, "optimizer.pt")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / name).write_text("x")
    assert encoders._last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_other_settings_or_another_model_use_another_folder(tiny_models, tmp_path):
    base = shutil.copytree(tiny_models / "encoder", tmp_path / "base")
    rows = {"train": [{"input_ids": [1], "labels": 0}]}
    names = []
    for seed in (0, 1, 0, 0):
        options = ("full", str(base), rows, Settings(seed=seed))
        with encoders._training_folder(tmp_path / "new", *options) as folder:
            folder.mkdir(parents=True)
            names.append(folder.name)
        if len(names) == 3:  # the same name now stands for other weights
            (base / "model.safetensors").write_bytes(b"retrained")
    assert names[0] == names[2] and len(set(names)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_lora_training_leaves_no_temporary_folder(parts, settings, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    classifier = train("lora", parts, settings)
    saved = fine_tuning.save(classifier, tmp_path / "saved")
    assert classifier.bytes_on_disk() > 0 and list((saved / "adapter").iterdir())
    del classifier
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
