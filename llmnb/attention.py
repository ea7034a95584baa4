"""Attention: from softmax(QKᵀ/√d_k)·V to the layer that real Transformers use (notebook 02).

The heads of a layer are (batch, heads, seq, head_dim). A mask is boolean; True means "may attend".
Transformer blocks are in transformer.py, faster routes for CPUs in fast_linear.py.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, (…, 1, seq, head_dim) each


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ/√d_k)·V, and the weights.

    query: (..., queries, d_k); key: (..., keys, d_k); value: (..., keys, d_v).
    mask: broadcastable to (..., queries, keys).
    Returns the output (..., queries, d_v) and the weights (..., queries, keys). A query that may
    attend to nothing gets zeros.
    Source: Vaswani et al. 2017, equation 1.
    """
    precise = torch.promote_types(query.dtype, torch.float32)  # half precision would lose digits
    scores = query.to(precise) @ key.to(precise).mT  # (..., queries, keys)
    scores = scores / math.sqrt(query.shape[-1])
    if mask is not None:  # the lowest number, because with -inf an empty row would give 0/0
        scores = scores.masked_fill(~mask, torch.finfo(precise).min)
    weights = torch.softmax(scores, dim=-1)  # (..., queries, keys)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    return (weights @ value.to(precise)).to(value.dtype), weights.to(value.dtype)


def causal_mask(n_queries: int, n_keys: int | None = None, device=None) -> Tensor:
    """True where a key is not after its query: (n_queries, n_keys).

    The queries are the last n_queries positions, as in generation with a cache.
    """
    n_keys = n_queries if n_keys is None else n_keys
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=n_keys - n_queries)


def padding_mask(attention_mask: Tensor | None) -> Tensor | None:
    """A tokenizer's attention_mask, (batch, keys), as a boolean mask: (batch, 1, 1, keys)."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The same output from PyTorch's fused kernel, which doesn't store the attention weights.

    query: (batch, heads, queries, d_k); key, value: (batch, kv_heads, keys, d). Neighbouring query
    heads share a key/value head (Ainslie et al. 2023, section 2.2). causal: apply causal_mask as
    well.
    """
    if causal and (mask is not None or query.shape[2] != key.shape[2]):
        mask = with_causal(mask, query, key)  # the kernel takes a mask or is_causal, not both
        causal = False
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=is_grouped
    )  # (batch, heads, queries, d)


def with_causal(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask, with the causal mask of these queries and keys added to it."""
    causal = causal_mask(query.shape[2], key.shape[2], key.device)  # (queries, keys)
    return causal if mask is None else mask & causal


def sinusoidal_positions(positions: Tensor, d_model: int) -> Tensor:
    """sin and cos at wavelengths from 2π to 20,000π: (seq,) to (seq, d_model).

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(positions, d_model, theta=10_000.0)  # (seq, d_model / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def rotary_positions(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> Rotation:
    """Cosines and sines of each position's angles: (…, seq) to (…, 1, seq, head_dim) each.

    Source: Su et al. 2021, equation 34, with the pairs (i, i + head_dim/2) of Llama's checkpoints.
    """
    angles = _angles(positions, head_dim, theta)
    cos = torch.cat((angles.cos(), angles.cos()), dim=-1)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    return cos.to(dtype).unsqueeze(-3), sin.to(dtype).unsqueeze(-3)  # one for all heads


def _angles(positions: Tensor, width: int, theta: float) -> Tensor:
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    return positions[..., None].float() / theta**steps  # (…, seq, width / 2)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of dimensions by its angle: (batch, heads, seq, head_dim) to the same."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of the input.

    Source: Vaswani et al. 2017, section 3.2.2; shared key/value heads: Ainslie et al. 2023.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm_eps: float | None = None,
    ) -> None:
        """qk_norm_eps: the ε of an RMSNorm (Zhang & Sennrich 2019) on each
        head's queries and keys; None: no such norm.

        Raises ValueError if the heads don't divide evenly.
        """
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by {n_heads} heads.")
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads can't share {n_kv_heads} key/value heads evenly.")
        self.head_dim = head_dim or d_model // n_heads
        self.sizes = (n_heads, n_kv_heads, n_kv_heads)
        self.query = nn.Linear(d_model, n_heads * self.head_dim, bias)
        self.key = nn.Linear(d_model, n_kv_heads * self.head_dim, bias)
        self.value = nn.Linear(d_model, n_kv_heads * self.head_dim, bias)
        self.output = nn.Linear(n_heads * self.head_dim, d_model, bias)
        self.norms = None
        if qk_norm_eps is not None:
            norms = {name: nn.RMSNorm(self.head_dim, qk_norm_eps) for name in ("query", "key")}
            self.norms = nn.ModuleDict(norms)
        self.recorder: list[Tensor] | None = None  # see `recording`

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache=None,
    ) -> Tensor:
        """(batch, seq, d_model) to the same.

        context: (batch, keys, d_model), from which keys and values are computed (default: x).
        mask: broadcastable to (batch, heads, seq, keys). cache: one layer of a
        generation.KeyValueCache, which keeps keys and values between calls.
        """
        query, key, value = self.project(x, x if context is None else context)
        if self.norms is not None:
            query = self.norms["query"](query)
            key = self.norms["key"](key)
        if rotation is not None:
            query = rotate(query, rotation)
            key = rotate(key, rotation)
        if cache is not None:
            key, value = cache.append(key, value)  # (batch, kv_heads, keys so far, head_dim)
        attend = self.attend if self.recorder is None else self._attend_and_record
        heads = attend(query, key, value, mask=mask, causal=causal)
        heads = heads.transpose(1, 2).flatten(2)  # (batch, seq, heads * head_dim)
        return self.output(heads)  # (batch, seq, d_model)

    attend = staticmethod(attend)  # fast_linear puts its own here

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the context: (batch, heads, seq, head_dim) each."""
        query = self.split_heads(self.query(x))
        key = self.split_heads(self.key(context))
        value = self.split_heads(self.value(context))
        return query, key, value

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, seq, heads * head_dim) to (batch, heads, seq, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _attend_and_record(self, query, key, value, mask, causal) -> Tensor:
        """Like `attend`, but by the formula, which gives the weights as well."""
        if causal:
            mask = with_causal(mask, query, key)
        group = query.shape[1] // key.shape[1]  # query heads that share a key/value head
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        heads, weights = scaled_dot_product_attention(query, key, value, mask)
        self.recorder.append(weights.detach())
        return heads


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Tensor]]:
    """While this is open, every attention layer of the model appends its weights to the list.

    They are (batch, heads, seq, keys) each, in the order of computation. The layers then compute by
    the formula, which is slower.
    """
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    weights: list[Tensor] = []
    for layer in layers:
        layer.recorder = weights
    try:
        yield weights
    finally:
        for layer in layers:
            layer.recorder = None
