"""Contrastive tuning: its loss, and what it does to a tiny random encoder."""

import numpy as np
import pytest
import torch

from llmnb import fine_tuning
from llmnb.fine_tuning import Settings, contrastive

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_the_mean_over_all_pairs():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss = contrastive.pair_loss(vectors, torch.tensor([0, 1, 1]))
    assert loss.item() == pytest.approx((0 + 1 + 1) / 3)  # cosines 0, 1, 0; targets 0, 0, 1


def test_tuning_moves_texts_of_one_label_together_and_is_repeatable(made_up, tiny_models):
    encoder = str(tiny_models / "encoder")
    settings = Settings(encoder=encoder, dtype="fp32", lr=1e-3, max_length=32)
    few = {**made_up, "train": made_up["train"].select(range(32))}
    methods = ("frozen", "contrastive", "contrastive")
    frozen, tuned, again = (
        fine_tuning.run(name, few, ("bad", "good"), settings) for name in methods
    )
    texts, labels = made_up["test"]["text"][:], torch.tensor(made_up["test"]["label"][:])
    before, after = (
        contrastive.pair_loss(torch.tensor(result.classifier.features(texts)), labels)
        for result in (frozen, tuned)
    )
    assert after < 0.7 * before and tuned.accuracy.value > frozen.accuracy.value
    assert tuned.classifier.trainable_parameters > frozen.classifier.trainable_parameters
    np.testing.assert_allclose(again.probabilities, tuned.probabilities, atol=1e-6)
