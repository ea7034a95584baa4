"""For few labels: tune the encoder on pairs of texts, then train a logistic regression.

n labelled texts give n(n-1)/2 pairs, which say far more to an encoder than n labels do.
Source: Tunstall et al. 2022 (SetFit), with all pairs of a batch in place of sampled ones.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llmnb import embedding, hardware
from llmnb.fine_tuning.baselines import Frozen
from llmnb.fine_tuning.encoders import autocast

LEARNING_RATE = 5e-5
STEPS = 25
TEXTS_PER_STEP = 16  # 120 pairs


def pair_loss(vectors: Tensor, labels: Tensor) -> Tensor:
    """Mean of (cos(u, v) - s)² over all pairs of texts; s is 1 for the same label and 0 otherwise.

    vectors: (texts, d_model); labels: (texts,). Source: Reimers & Gurevych 2019, section 3.
    """
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    cosines = F.cosine_similarity(vectors[first], vectors[second])  # (pairs,)
    return F.mse_loss(cosines, (labels[first] == labels[second]).to(cosines.dtype))


class Contrastive(Frozen):
    """Frozen's features and regression, on an encoder that was tuned with `pair_loss` first."""

    needs_base = False  # its encoder is saved with it

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Contrastive":
        """Tune all weights of the encoder for STEPS steps, then train the regression."""
        self._load(self.base, "fp32")
        self._tune(texts, torch.from_numpy(labels).to(self.model.device))
        self.model.to(hardware.dtype(self.settings.dtype)).eval()
        super().fit(texts, labels)
        self.trainable_parameters += sum(weight.numel() for weight in self.model.parameters())
        return self

    def _tune(self, texts: Sequence[str], labels: Tensor) -> None:
        settings = self.settings
        encoded, _ = embedding.encode(self.tokenizer, texts, settings.max_length, settings.keep)
        torch.manual_seed(settings.seed)  # of the dropout
        generator = torch.Generator().manual_seed(settings.seed)
        weights = self.model.train().requires_grad_(True).parameters()
        optimizer = torch.optim.AdamW(weights, lr=settings.lr or LEARNING_RATE)
        for _ in range(STEPS):
            rows = torch.randperm(len(encoded), generator=generator)[:TEXTS_PER_STEP].tolist()
            inputs = self.tokenizer.pad(
                {"input_ids": [encoded[row] for row in rows]}, return_tensors="pt"
            ).to(self.model.device)
            mask = inputs["attention_mask"][:, :, None]  # (batch, seq, 1)
            with autocast(settings.dtype, self.model.device.type):
                hidden = self.model(**inputs).last_hidden_state.float()  # (batch, seq, d_model)
            loss = pair_loss((hidden * mask).sum(1) / mask.sum(1), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def write(self, folder: Path) -> None:
        """The regression, and the tuned encoder with its tokenizer."""
        super().write(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """The regression, the encoder and its tokenizer."""
        super().read(folder)
        self._load(str(folder), self.settings.dtype)
