"""Texts to batches of token ids: cut to a length, and texts of like length together."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from llmnb.fine_tuning.classifier import FineTuningError, Settings


def encode(tokenizer, texts: Sequence[str], settings: Settings) -> tuple[list[list[int]], float]:
    """The token ids of each text, at most max_length, and the share of texts that were cut.

    keep "head": the beginning; "head+tail": half of the ids from either end.
    """
    longest = min(settings.max_length, tokenizer.model_max_length)
    whole = tokenizer(list(texts), verbose=False)["input_ids"] if len(texts) else []
    cut = [number for number, ids in enumerate(whole) if len(ids) > longest]
    if settings.keep == "head+tail":
        half = longest // 2  # special tokens stand at the ends, so they stay
        for number in cut:
            whole[number] = whole[number][: longest - half] + whole[number][-half:]
    elif cut:
        long = [texts[number] for number in cut]
        short = tokenizer(long, truncation=True, max_length=longest)["input_ids"]
        for number, ids in zip(cut, short, strict=True):
            whole[number] = ids
    if empty := [number for number, ids in enumerate(whole) if not ids]:
        raise FineTuningError(f"Text {empty[0]} is empty: no token is left of it.")
    return whole, len(cut) / max(len(whole), 1)


def batches(
    tokenizer, ids: Sequence[Sequence[int]], size: int = 64, device=None
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """The rows' numbers and their padded inputs, the longest first, each batch of like lengths."""
    order = np.argsort([-len(row) for row in ids], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size].tolist()
        inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        yield rows, {name: tensor.to(device) for name, tensor in inputs.items()}
