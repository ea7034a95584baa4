"""Token ids, batches and mean vectors of texts."""

import numpy as np
import pytest
import torch

from llmnb import embedding, models
from llmnb.embedding import EmbeddingError


@pytest.fixture
def tokenizer(tiny_models):
    return models.load_tokenizer(str(tiny_models / "encoder"))


def test_long_texts_keep_their_head_or_both_ends(tokenizer):
    text = " ".join("abcdefghij" * 2)
    whole = tokenizer(text)["input_ids"]
    (head,), cut_share = embedding.encode(tokenizer, [text], max_length=8)
    assert head == whole[:7] + whole[-1:] and cut_share == 1
    encoded, cut_share = embedding.encode(tokenizer, [text, "a b"], 8, keep="head+tail")
    assert encoded[0] == whole[:4] + whole[-4:]
    assert len(encoded[1]) == 4 and cut_share == 0.5


def test_a_text_without_a_token_is_refused(tiny_models):
    decoder_tokenizer = models.load_tokenizer(str(tiny_models / "decoder"))
    with pytest.raises(EmbeddingError, match="Text 1 is empty"):
        embedding.encode(decoder_tokenizer, ["a", ""], max_length=8)


def test_batches_hold_texts_of_like_length(tokenizer):
    encoded = [[5] * n for n in (3, 9, 1, 7)]
    (first, _), (second, inputs) = embedding.batches(tokenizer, encoded, size=2)
    assert first == [1, 3] and second == [0, 2]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_does_not_count_in_the_mean(tokenizer, tiny_models):
    model = models.load_encoder(str(tiny_models / "encoder"), "fp32")
    encoded, _ = embedding.encode(tokenizer, ["a b c d e f", "good", "b a"], max_length=16)
    vectors = embedding.mean_pooled(model, tokenizer, encoded)
    for ids, vector in zip(encoded, vectors, strict=True):
        with torch.inference_mode():
            inputs = torch.tensor([ids], device=model.device)
            hidden = model(inputs).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).cpu().numpy(), atol=1e-5)
