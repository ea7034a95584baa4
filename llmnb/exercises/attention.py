"""The exercises of notebook 02."""

import numpy as np
import torch

from llmnb.attention import causal_mask, scaled_dot_product_attention
from llmnb.exercises import check


def _random(*shape: int, n: int = 3) -> tuple[torch.Tensor, ...]:
    """n random tensors of one shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return tuple(torch.randn(n, *shape, generator=generator))


def check_attention(attempt) -> str:
    """Exercise 1: attempt(query, key, value) is softmax(QKᵀ/√d_k)·V."""

    def attention(query, key, value, exponent=0.5, axis=-1, softmax=torch.softmax):
        scores = query @ key.mT / query.shape[-1] ** exponent
        return softmax(scores, axis) @ value

    def weights(query, key, value):
        return scaled_dot_product_attention(query, key, value)[1]

    mistakes = {
        "Nearly: the scores are not divided by √d_k.": {"exponent": 0},
        "You divide by d_k; the scores grow with √d_k only.": {"exponent": 1},
        "Your weights sum to 1 over the queries; each query spreads 1 over the keys (dim=-1).": {
            "axis": -2
        },
        "Those are the scores times V: the softmax is missing.": {"softmax": lambda x, _: x},
        "You return the weights; multiply them by the values.": weights,
    }
    return check(attempt, attention, [_random(5, 4), _random(3, 8)], mistakes)


def check_sliding_mask(attempt) -> str:
    """Exercise 2: attempt(n, window) is a mask: position i sees i and window-1 before it."""

    def mask(n, window, behind=0):
        distance = torch.arange(n)[:, None] - torch.arange(n)  # query minus key
        return (distance >= 0) & (distance < window + behind)

    mistakes = {
        "One too many: with a window of 3 a position sees itself and two others.": {"behind": 1},
        "That looks both ways: a position may not see what comes after it.": (
            lambda *case: mask(*case) | mask(*case).mT
        ),
        "That is the causal mask: the window is missing.": lambda n, _: causal_mask(n),
        "The other way round: True lets a key be seen.": lambda *case: ~mask(*case),
        "Rows and columns are exchanged: rows are queries.": lambda *case: mask(*case).mT,
    }
    return check(attempt, mask, [(5, 2), (6, 3), (4, 1)], mistakes)


def check_grouped(attempt) -> str:
    """Exercise 3: attempt(query, key, value); fewer key/value heads; (heads, seq, d)."""

    def grouped(query, key, value, spread=torch.repeat_interleave, causal=True):
        group = len(query) // len(key)
        mask = causal_mask(query.shape[1]) if causal else None
        key, value = (spread(heads, group, 0) for heads in (key, value))
        return scaled_dot_product_attention(query, key, value, mask)[0]

    mistakes = {
        "The heads are dealt out in turn (0, 1, 0, 1); neighbours share: 0, 0, 1, 1. See "
        "repeat_interleave.": {"spread": lambda x, group, _: x.repeat(group, 1, 1)},
        "The mask is missing: a position sees what comes after it.": {"causal": False},
        "All heads use the first key/value head, by broadcasting.": {
            "spread": lambda heads, *_: heads[:1]
        },
        "The heads stand side by side; leave them apart: (heads, seq, d).": (
            lambda *case: np.concatenate(list(grouped(*case)), axis=-1)
        ),
    }
    cases = [
        (*_random(4, 3, 6, n=1), *_random(2, 3, 6, n=2)),
        (*_random(6, 4, 2, n=1), *_random(3, 4, 2, n=2)),
    ]
    return check(attempt, grouped, cases, mistakes)
