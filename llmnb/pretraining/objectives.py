"""What a model is asked to predict: the next token, or tokens that were hidden."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmnb.transformer import Decoder, Encoder, TransformerConfig

HIDDEN = 0.15  # of the tokens


class MaskedModel(nn.Module):
    """An Encoder that says which token was at a position: BERT's masked language model.

    Source: Devlin et al. 2019, section 3.1; the layers of BertForMaskedLM.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights; the output matrix is the embedding matrix, with a bias of its own.

        Raises ValueError for a config with another output matrix.
        """
        if not config.tied:
            raise ValueError("tied is False; a masked model's output matrix is its embedding.")
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.transform_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)
        nn.init.zeros_(self.head.bias)
        self.head.weight = self.encoder.embedding.weight

    def forward(self, input_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits (batch, seq, vocab); at positions at, (batch, n), alone: (batch, n, vocab)."""
        states = self.encoder(input_ids)
        if at is not None:
            states = states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))
        return self.head(self.transform_norm(F.gelu(self.transform(states))))


def causal_loss(model: Decoder, blocks: Tensor) -> Tensor:
    """Mean of -log P(w_t | w_<t) over the blocks, (batch, seq + 1), each token's in nats.

    Source: Radford et al. 2018, equation 1.
    """
    logits = model(blocks[:, :-1])  # (batch, seq, vocab)
    return F.cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())


def hide(
    blocks: Tensor, mask_id: int, vocab_size: int, first_id: int, seed: list[int]
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: 15 % of each row's tokens; of them 80 % become the mask, 10 % another one.

    The last 10 % stay, so that the model can't trust what it reads. blocks: (batch, seq) to the
    corrupted blocks and the chosen positions, (batch, n). first_id: the smallest ordinary token.
    The number is the same in each row, so that a mean over processes is the mean over all.
    Source: Devlin et al. 2019, section 3.1, task 1.
    """
    rows, seq = blocks.shape
    generator = np.random.default_rng(seed)
    n = max(1, round(HIDDEN * seq))
    at = generator.random((rows, seq)).argpartition(n - 1, axis=1)[:, :n]
    dice = torch.from_numpy(generator.random((rows, n)))
    others = torch.from_numpy(generator.integers(first_id, vocab_size, (rows, n)))
    at = torch.from_numpy(at)
    dice, others, at = (each.to(blocks.device) for each in (dice, others, at))
    kept = blocks.gather(1, at)
    shown = torch.where(dice < 0.8, mask_id, torch.where(dice < 0.9, others, kept))
    return blocks.scatter(1, at, shown), at


def masked_loss(model: MaskedModel, blocks: Tensor, corrupted: Tensor, at: Tensor) -> Tensor:
    """Mean of -log P(token | the corrupted text) over the hidden positions, in nats.

    No factorization: the hidden tokens are guessed independently, from both sides, so this is not
    the probability of a text. Source: Devlin et al. 2019, section 3.1.
    """
    logits = model(corrupted, at)  # (batch, n, vocab)
    return F.cross_entropy(logits.flatten(0, 1).float(), blocks.gather(1, at).flatten())
