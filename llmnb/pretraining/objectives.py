"""What a model learns to predict: the next token (causal) or the hidden tokens (masked)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llmnb.transformer import Decoder, Encoder, TransformerConfig

MASKED_SHARE = 0.15  # of the tokens


class MaskedModel(nn.Module):
    """An Encoder that predicts which token was hidden: BERT's masked language model.

    Source: Devlin et al. 2019, section 3.1; the layers of BertForMaskedLM.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights; the output matrix is the embedding matrix, plus a bias.

        Raises ValueError for a config that isn't tied.
        """
        if not config.tied:
            raise ValueError("tied is False; a masked model's output matrix must be its embedding.")
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

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (batch, seq, vocab), or (batch, n, vocab) at the given positions (batch, n)."""
        states = self.encoder(input_ids)
        if positions is not None:
            index = positions[..., None].expand(-1, -1, states.shape[-1])
            states = states.gather(1, index)
        return self.head(self.transform_norm(F.gelu(self.transform(states))))


def causal_loss(model: Decoder, blocks: Tensor) -> Tensor:
    """The mean of -log P(w_t | w_<t) over all tokens of the blocks but the first, in nats.

    blocks: (batch, seq + 1) token ids.

    Source: Radford et al. 2018, equation 1.
    """
    logits = model(blocks[:, :-1])  # (batch, seq, vocab)
    return F.cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())


def ordinary_ids(tokenizer) -> NDArray[np.int64]:
    """The ids that no special token has, in order: what a hidden token may be replaced by.

    Special tokens can have the first ids (BERT's), the last ones (RoBERTa's mask), or any others.
    Raises ValueError for a tokenizer without a mask, which no masked model can be trained with.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("The tokenizer has no mask token: name another, or set its mask_token.")
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    return np.array(sorted(set(tokenizer.get_vocab().values()) - special))


def hide(
    blocks: Tensor, mask_id: int, random_ids: Sequence[int], seed: list[int]
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: choose 15 % of the tokens in each row, and replace most of them.

    Of the chosen tokens, 80 % become the mask, 10 % become a random token, and 10 % stay as they
    are, so that the model can't trust any token it reads. Every row has the same number of chosen
    tokens, so the mean over several processes' losses is the mean over all tokens.

    blocks: (batch, seq) token ids; random_ids: what a random token is drawn from, see
    `ordinary_ids`. Returns the corrupted blocks, (batch, seq), and the chosen positions,
    (batch, n).
    Source: Devlin et al. 2019, section 3.1, task 1.
    """
    rows, seq = blocks.shape
    generator = np.random.default_rng(seed)
    n = max(1, round(MASKED_SHARE * seq))
    positions = generator.random((rows, seq)).argpartition(n - 1, axis=1)[:, :n]
    dice = torch.from_numpy(generator.random((rows, n))).to(blocks.device)
    drawn_ids = np.asarray(random_ids)[generator.integers(len(random_ids), size=(rows, n))]
    drawn_ids = torch.from_numpy(drawn_ids).to(blocks.device)
    positions = torch.from_numpy(positions).to(blocks.device)
    original = blocks.gather(1, positions)
    random_or_original = torch.where(dice < 0.9, drawn_ids, original)
    replacements = torch.where(dice < 0.8, mask_id, random_or_original)
    return blocks.scatter(1, positions, replacements), positions


def masked_loss(model: MaskedModel, blocks: Tensor, corrupted: Tensor, positions: Tensor) -> Tensor:
    """The mean of -log P(token | corrupted text) over the chosen positions, in nats.

    blocks: (batch, seq) ids; corrupted and positions: as `hide` returns them. The hidden tokens are
    predicted independently of each other, so this is not the probability of a text.
    Source: Devlin et al. 2019, section 3.1.
    """
    logits = model(corrupted, positions)  # (batch, n, vocab)
    targets = blocks.gather(1, positions)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
