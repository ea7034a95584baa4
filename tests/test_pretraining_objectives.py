"""Masked models with tokenizers of others, whose special tokens can have any ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.tokens import TokenCorpus


def trainer(end_id, mask_id, mask_token="<mask>"):
    """Of a masked model with 50 tokens, "<end>" and "<mask>" among them."""
    vocabulary = {f"t{n}": n for n in range(50) if n not in (end_id, mask_id)}
    raw = Tokenizer(WordLevel(vocabulary | {"<end>": end_id, "<mask>": mask_id}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", mask_token=mask_token
    )
    tokens = np.full(200, 20, dtype="<u2")
    corpus = TokenCorpus(tokenizer, tokens, tokens, {"validation": 200}, Path("corpus"))
    return Trainer(corpus, small(objective="masked"))


@pytest.mark.parametrize("special_ids", [(0, 1), (2, 49), (45, 46)])  # RoBERTa's mask is last
def test_random_tokens_are_ordinary_ones_wherever_the_special_ones_stand(special_ids):
    blocks = torch.full((4000, 17), 20)
    _, corrupted, _ = trainer(*special_ids).examples(blocks, [0])
    end_id, mask_id = special_ids
    assert set(corrupted.unique().tolist()) == set(range(50)) - {end_id}
    assert (corrupted == mask_id).sum() > 10 * (corrupted == 5).sum()


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="has no mask token"):
        trainer(0, 1, mask_token=None)
