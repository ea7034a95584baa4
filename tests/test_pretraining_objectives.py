"""Masked models with tokenizers of others: which tokens can be hidden behind a random one."""

import json

import pytest
import torch
from conftest import small
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.tokens import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def with_ids(tokenizer, ids_of):
    """The characters' tokenizer with other ids for its special tokens, as published ones have."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(settings["model"]["vocab"], key=settings["model"]["vocab"].get)
    vocabulary = ids_of(vocabulary)
    settings["model"]["vocab"] = {token: number for number, token in enumerate(vocabulary)}
    for token in settings["added_tokens"]:
        token["id"] = vocabulary.index(token["content"])
    raw = Tokenizer.from_str(json.dumps(settings))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **tokenizer.special_tokens_map)


@pytest.mark.parametrize(
    "ids_of",
    [
        lambda tokens: [tokens[0], *tokens[2:], tokens[1]],  # the mask last, as RoBERTa's
        lambda tokens: [*tokens[3:-1], *tokens[:3], tokens[-1]],  # one ordinary token behind them
    ],
)
def test_random_tokens_are_ordinary_ones_wherever_the_special_ones_stand(ids_of, corpus, text):
    tokenizer = with_ids(corpus.tokenizer, ids_of)
    trainer = Trainer(prepare(text, tokenizer=tokenizer), small(objective="masked"))
    blocks = torch.zeros(4000, 17, dtype=torch.long)
    blocks[:] = tokenizer.convert_tokens_to_ids("a")
    _, corrupted, _ = trainer.examples(blocks, [0])
    drawn = set(corrupted.unique().tolist())
    special = set(tokenizer.all_special_ids)
    assert drawn == set(range(len(tokenizer))) - special | {tokenizer.mask_token_id}
    trainer.run()


def test_a_masked_model_needs_a_mask(corpus, text):
    tokenizer = with_ids(corpus.tokenizer, list)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        Trainer(prepare(text, tokenizer=tokenizer), small(objective="masked"))
