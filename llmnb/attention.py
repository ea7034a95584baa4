"""Attention: from softmax(QKᵀ/√d_k)·V to the layer that real Transformers use (notebook 02).

Tensors hold heads as (batch, heads, seq, head_dim). A mask is boolean; True means "may attend".
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

    query: (..., queries, d_k); key: (..., keys, d_k); value: (..., keys, d_v); mask: broadcastable
    to (..., queries, keys). Returns the output (..., queries, d_v) and the weights
    (..., queries, keys); a query that may attend to nothing gets zeros.
    Source: Vaswani et al. 2017, equation 1.
    """
    precise = torch.promote_types(query.dtype, torch.float32)  # half precision would lose digits
    scores = query.to(precise) @ key.to(precise).mT / math.sqrt(query.shape[-1])
    if mask is not None:  # the lowest number: with -inf, a row without keys would be 0/0
        scores = scores.masked_fill(~mask, torch.finfo(precise).min)
    weights = torch.softmax(scores, dim=-1)  # (..., queries, keys)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    return (weights @ value.to(precise)).to(value.dtype), weights.to(value.dtype)


def causal_mask(n_queries: int, n_keys: int | None = None, device=None) -> Tensor:
    """Each query sees the keys up to its own position: (n_queries, n_keys).

    The queries are the last of the keys, as in generation with a cache.
    """
    n_keys = n_queries if n_keys is None else n_keys
    every = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return every.tril(diagonal=n_keys - n_queries)


def padding_mask(attention_mask: Tensor | None) -> Tensor | None:
    """From a tokenizer's attention_mask, (batch, keys): real tokens only, (batch, 1, 1, keys)."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The output of scaled_dot_product_attention by PyTorch's fused kernel: no weights are stored.

    query: (batch, heads, queries, d_k); key, value: (batch, kv_heads, keys, d). Each key/value head
    serves heads/kv_heads query heads in a row (Ainslie et al. 2023, section 2.2). causal: as if
    causal_mask were given, too.
    """
    batch, heads, queries, d_k = query.shape
    if mask is None and query.shape == key.shape and _products_are_faster(query):
        return _by_products(query, key, value, causal)
    if causal and (mask is not None or queries != key.shape[2]):  # the kernel can't do both
        mask, causal = _with_causal(mask, queries, key), False
    shared = mask is None or mask.dim() < 3 or mask.shape[-3] == 1  # one mask for all heads
    if queries == 1 and shared:  # the query heads of a key/value head are its queries: no copies
        grouped = query.reshape(batch, key.shape[1], -1, d_k)
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
        return output.reshape(batch, heads, 1, -1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=heads != key.shape[1]
    )


def _products_are_faster(query: Tensor) -> bool:
    """In bf16 on a CPU the fused kernel is slow on short sequences, its backward pass above all."""
    short = 1 < query.shape[2] <= 256
    return short and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def _by_products(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(QKᵀ/√d_k)·V in two products, what is masked by an addition."""
    batch, heads, seq, d_k = query.shape
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scores = query.new_zeros(1, seq, seq)
    if causal:
        scores = scores.fill_(-torch.inf).triu_(1)
    scores = torch.baddbmm(scores.expand(len(query), -1, -1), query, key.mT, alpha=d_k**-0.5)
    return torch.bmm(scores.softmax(dim=-1), value).unflatten(0, (batch, heads))


def _with_causal(mask: Tensor | None, queries: int, key: Tensor) -> Tensor:
    causal = causal_mask(queries, key.shape[2], key.device)
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
    """How far each pair of dimensions turns at each position: (…, seq) to (…, 1, seq, head_dim).

    Source: Su et al. 2021, equation 34, with the pairs (i, i + head_dim/2) of Llama's checkpoints.
    """
    angles = _angles(positions, head_dim, theta)
    cos = torch.cat((angles.cos(), angles.cos()), dim=-1)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    return cos.to(dtype).unsqueeze(-3), sin.to(dtype).unsqueeze(-3)  # the same for every head


def _angles(positions: Tensor, width: int, theta: float) -> Tensor:
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    return positions[..., None].float() / theta**steps  # (…, seq, width / 2)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of dimensions by its angle: (batch, heads, seq, head_dim) to the same."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · w. Source: Zhang & Sennrich 2019, equation 4."""

    def __init__(self, width: int, eps: float) -> None:
        """width: of the last dimension."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same."""
        width = x.shape[-1]
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # The mean of [x, -x] is 0, so its LayerNorm is the RMSNorm of x, and LayerNorm has a
            # kernel of its own: a third of the time.
            both = torch.cat((x, -x), dim=-1)
            weight = torch.cat((self.weight, self.weight))
            return F.layer_norm(both, (2 * width,), weight, None, self.eps)[..., :width]
        return F.rms_norm(x, (width,), self.weight, self.eps)


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
        """qk_norm_eps: the ε of an RMSNorm on each head's queries and keys; None: no such norm.

        Raises ValueError for heads that don't divide.
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
            norms = [RMSNorm(self.head_dim, qk_norm_eps) for _ in range(2)]
            self.norms = nn.ModuleDict(zip(("query", "key"), norms, strict=True))
        self.packed: nn.Module | None = None  # query, key and value in one product: fast_linear
        self.recorder: list[Tensor] | None = None  # see `recording`

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache=None,
    ) -> Tensor:
        """x: (batch, seq, d_model) to the same.

        context: what keys and values are made of (default: x); mask: broadcastable to
        (batch, heads, seq, keys); cache: keeps keys and values between calls, see generation.
        """
        query, key, value = self._heads(x, x if context is None else context)
        if self.norms is not None:
            query, key = self.norms["query"](query), self.norms["key"](key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.append(key, value)
        if self.recorder is None:
            heads = attend(query, key, value, mask, causal)
        else:
            heads = self._recorded(query, key, value, mask, causal)
        return self.output(heads.transpose(1, 2).flatten(2))  # (batch, seq, d_model)

    def _heads(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values: (batch, heads, seq, head_dim) each."""
        if self.packed is not None:
            heads = self.packed(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            return heads.split(self.sizes, dim=1)
        layers = (self.query, self.key, self.value)
        # In training one product is quicker; where norms keep their input, it takes no more memory.
        if x.requires_grad and context is x and self.norms and self.query.bias is None:
            heads = F.linear(x, torch.cat([layer.weight for layer in layers]))
            heads = heads.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            return heads.split(self.sizes, dim=1)
        parts = self.query(x), self.key(context), self.value(context)
        return tuple(part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)

    def _recorded(self, query, key, value, mask, causal) -> Tensor:
        """By the formula, and the weights kept."""
        if causal:
            mask = _with_causal(mask, query.shape[2], key)
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        heads, weights = scaled_dot_product_attention(query, key, value, mask)
        self.recorder.append(weights.detach())
        return heads


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every attention of the model adds its weights, (batch, heads, seq, keys), to a list.

    In the order in which they are computed; and by the formula, so more slowly.
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
