"""Fine-tuning and LoRA on a tiny random encoder: what is trained, saved and stopped."""

import dataclasses
import gc
import shutil

import numpy as np
import pytest
import torch
import transformers

from llmnb import embedding, fine_tuning
from llmnb.assets import AssetError
from llmnb.fine_tuning import FineTuningError, Settings, encoders

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


def test_lora_tunes_the_encoder_merges_exactly_and_leaves_no_temporary_folder(
    parts, settings, tmp_path, monkeypatch
):
    import peft

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
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
    tuned = {name: value.cpu() for name, value in classifier.model.state_dict().items()}
    for name, weight in base.state_dict().items():
        if name.startswith("bert.encoder"):
            is_linear = weight.ndim == 2 and ".layer." in name
            assert weight.cpu().equal(tuned[name]) != is_linear, name
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
    del classifier
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


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
