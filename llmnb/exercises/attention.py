"""The exercises of notebook 02."""

import numpy as np
import torch

from llmnb.attention import causal_mask, scaled_dot_product_attention
from llmnb.exercises import check


def _numbers(*shape: int, parts: int = 3) -> tuple[torch.Tensor, ...]:
    """As many different tensors."""
    generator = torch.Generator().manual_seed(sum(shape))
    return tuple(torch.randn(parts, *shape, generator=generator))


def check_attention(attempt) -> str:
    """Exercise 1: attempt(query, key, value) is softmax(QKᵀ/√d_k)·V."""

    def wrong(scale: float = 0.5, axis: int = -1, softmax: bool = True):
        def attention(query, key, value):
            scores = query @ key.mT * query.shape[-1] ** -scale
            return (torch.softmax(scores, axis) if softmax else scores) @ value

        return attention

    return check(
        attempt,
        lambda query, key, value: scaled_dot_product_attention(query, key, value)[0],
        [_numbers(5, 4), _numbers(3, 8)],
        {
            "Nearly: the scores are not divided by √d_k.": wrong(scale=0),
            "You divide by d_k; the variance grows with d_k, so the scores do with √d_k.": wrong(1),
            "Your weights sum to 1 over the queries; each query should spread 1 over the keys "
            "(dim=-1).": wrong(axis=-2),
            "Those are the scores times V: the softmax is missing.": wrong(softmax=False),
            "You return the weights; multiply them by the values.": (
                lambda query, key, value: scaled_dot_product_attention(query, key, value)[1]
            ),
        },
    )


def check_sliding_mask(attempt) -> str:
    """Exercise 2: attempt(n, window) is a mask: each position sees itself and window-1 before."""

    def mask(n, window, ahead=0, behind=0):
        distance = torch.arange(n)[:, None] - torch.arange(n)  # query minus key
        return (distance >= -ahead) & (distance < window + behind)

    return check(
        attempt,
        mask,
        [(5, 2), (6, 3), (4, 1)],
        {
            "One too many: with a window of 3 a position sees itself and two before it.": (
                lambda n, window: mask(n, window, behind=1)
            ),
            "That looks both ways: a position may not see what comes after it.": (
                lambda n, window: mask(n, window, ahead=window - 1)
            ),
            "That is the plain causal mask: the window is missing.": (
                lambda n, window: causal_mask(n)
            ),
            "The other way round: True must mean that a key may be seen.": (
                lambda n, window: ~mask(n, window)
            ),
            "Rows and columns are exchanged: rows are queries, columns are keys.": (
                lambda n, window: mask(n, window).mT
            ),
        },
    )


def check_grouped(attempt) -> str:
    """Exercise 3: attempt(query, key, value) with fewer key/value heads: (heads, seq, d) each."""

    def grouped(query, key, value, spread=torch.repeat_interleave, causal=True):
        groups = len(query) // len(key)
        mask = causal_mask(query.shape[1]) if causal else None
        key, value = (spread(part, groups, 0) for part in (key, value))
        return scaled_dot_product_attention(query, key, value, mask)[0]

    def tiled(part, groups, dim):
        return part.repeat(groups, 1, 1)

    def first_only(part, groups, dim):
        return part[:1].expand(groups * len(part), -1, -1)

    return check(
        attempt,
        grouped,
        [
            (*_numbers(4, 3, 6, parts=1), *_numbers(2, 3, 6, parts=2)),
            (*_numbers(6, 4, 2, parts=1), *_numbers(3, 4, 2, parts=2)),
        ],
        {
            "The heads are dealt out in turn (0, 1, 0, 1); neighbours share: 0, 0, 1, 1. See "
            "repeat_interleave.": lambda q, k, v: grouped(q, k, v, tiled),
            "Right but for the mask: a position sees what comes after it.": (
                lambda q, k, v: grouped(q, k, v, causal=False)
            ),
            "All heads use the first key/value head: broadcasting did that.": (
                lambda q, k, v: grouped(q, k, v, first_only)
            ),
            "The heads stand side by side in your answer; leave them apart: (heads, seq, d).": (
                lambda q, k, v: np.concatenate(list(grouped(q, k, v)), axis=-1)
            ),
        },
    )
