"""Texts to batches of token ids, and to one vector each: the mean of an encoder's hidden states."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llmnb import LlmnbError

TEXTS_PER_BATCH = 64


class EmbeddingError(LlmnbError, ValueError):
    """A text can't be encoded; the message says which, and why."""


def encode(
    tokenizer, texts: Sequence[str], max_length: int, keep: str = "head"
) -> tuple[list[list[int]], float]:
    """The token ids of each text, at most max_length, and the share of texts that were cut.

    keep: what stays of a longer text. "head" is its beginning; "head+tail" is half of the ids
    from either end. Raises EmbeddingError for a text without a token.
    """
    limit = min(max_length, tokenizer.model_max_length)
    encoded = tokenizer(list(texts), verbose=False)["input_ids"] if len(texts) else []
    too_long = [index for index, ids in enumerate(encoded) if len(ids) > limit]
    if keep == "head+tail":
        half = limit // 2  # special tokens stand at the ends, so they stay
        for index in too_long:
            encoded[index] = encoded[index][: limit - half] + encoded[index][-half:]
    elif too_long:
        long_texts = [texts[index] for index in too_long]
        truncated = tokenizer(long_texts, truncation=True, max_length=limit)["input_ids"]
        for index, ids in zip(too_long, truncated, strict=True):
            encoded[index] = ids
    if empty := [index for index, ids in enumerate(encoded) if not ids]:
        raise EmbeddingError(f"Text {empty[0]} is empty: no token is left of it.")
    return encoded, len(too_long) / max(len(encoded), 1)


def batches(
    tokenizer, encoded: Sequence[Sequence[int]], size: int = TEXTS_PER_BATCH, device=None
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """The rows' indices and their padded inputs: the longest texts first, like lengths together."""
    order = np.argsort([-len(ids) for ids in encoded], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size].tolist()
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
        yield rows, {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.inference_mode()
def mean_pooled(model, tokenizer, encoded: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The mean of the last layer's hidden states over each text's tokens: (texts, d_model).

    Source: Reimers & Gurevych 2019, section 3.
    """
    vectors = np.zeros((len(encoded), model.config.hidden_size))
    for rows, inputs in batches(tokenizer, encoded, device=model.device):
        mask = inputs["attention_mask"][:, :, None]  # (batch, seq, 1)
        hidden = model(**inputs).last_hidden_state.float()  # (batch, seq, d_model)
        vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return vectors
