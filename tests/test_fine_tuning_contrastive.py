"""Contrastive tuning on a tiny random encoder: its loss, and what it brings with few labels."""

import numpy as np
import pytest
import torch

from llmnb import fine_tuning
from llmnb.fine_tuning import Settings, contrastive

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("bad", "good")


def test_the_loss_is_the_mean_over_all_pairs():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss = contrastive.pair_loss(vectors, torch.tensor([0, 1, 1]))
    expected = (0 + 1 + 1) / 3  # cosines 0, 1, 0 for targets 0, 0, 1
    assert loss.item() == pytest.approx(expected)


def test_tuning_moves_texts_of_one_label_together_and_comes_back_from_disk(
    made_up, tiny_models, tmp_path, monkeypatch
):
    monkeypatch.setattr(contrastive, "LEARNING_RATE", 1e-3)
    settings = Settings(encoder=str(tiny_models / "encoder"), dtype="fp32", max_length=32)
    few = {**made_up, "train": made_up["train"].select(range(32))}
    frozen = fine_tuning.run("frozen", few, LABELS, settings)
    tuned = fine_tuning.run("contrastive", few, LABELS, settings)
    texts, labels = made_up["test"]["text"][:], torch.tensor(made_up["test"]["label"][:])
    vectors = [torch.tensor(result.classifier.features(texts)) for result in (frozen, tuned)]
    losses = [contrastive.pair_loss(x, labels) for x in vectors]
    assert losses[1] < 0.7 * losses[0] and tuned.accuracy.value > frozen.accuracy.value
    assert tuned.classifier.trainable_parameters > frozen.classifier.trainable_parameters
    fine_tuning.save(tuned.classifier, tmp_path / "saved")
    loaded = fine_tuning.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.probabilities(texts), tuned.probabilities, atol=1e-6)
    again = fine_tuning.run("contrastive", few, LABELS, settings)
    np.testing.assert_allclose(again.probabilities, tuned.probabilities, atol=1e-6)
