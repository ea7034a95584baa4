"""The Transformer in its three shapes: encoder, decoder, encoder-decoder (notebook 02).

One set of parts; a configuration says which of them a family takes. The same code runs published
BERT, GPT-2, Llama and Qwen3 weights.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmnb import assets, checkpoints, profiles
from llmnb.attention import (
    MultiHeadAttention,
    RMSNorm,
    Rotation,
    causal_mask,
    padding_mask,
    rotary_positions,
    sinusoidal_positions,
)

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # not the same: GPT-2 learned with it
    "relu": F.relu,
    "swiglu": F.silu,  # on a gate that multiplies
}


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides what a Transformer computes, weights apart."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_positions: int  # the longest sequence it is made for
    positions: str = "learned"  # learned | sinusoidal | rotary
    norm: str = "layer"  # layer | rms
    norm_first: bool = True  # normalise what goes into a layer, not what comes out
    activation: str = "gelu_tanh"  # gelu | gelu_tanh | relu | swiglu
    bias: bool = True
    norm_eps: float = 1e-5
    n_kv_heads: int | None = None  # None: as many as n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    n_token_types: int = 0
    tied: bool = True  # the output matrix is the embedding matrix
    family: str | None = None  # bert | gpt2 | llama | qwen3: whose checkpoints fit

    def __post_init__(self) -> None:
        """Raises ValueError for a choice that doesn't exist, or sizes that can't be."""
        choices = {"positions": ("learned", "sinusoidal", "rotary"), "norm": ("layer", "rms")}
        for name, known in (choices | {"activation": tuple(ACTIVATIONS)}).items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "n_positions"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it is at least 1.")
        head_dim = self.head_dim or self.d_model // self.n_heads
        if self.positions == "rotary" and head_dim % 2:
            raise ValueError(f"Rotary positions turn pairs; a head of {head_dim} has an odd one.")

    @classmethod
    def of(cls, family: str, **sizes: Any) -> Self:
        """A configuration in the manner of a family: bert, gpt2, llama, qwen3, original."""
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}; choose one of {', '.join(FAMILIES)}.")
        named = {} if family == "original" else {"family": family}
        return cls(**(FAMILIES[family] | named | sizes))


_MODERN = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False}
FAMILIES: dict[str, dict[str, Any]] = {
    # Vaswani et al. 2017
    "original": {"positions": "sinusoidal", "norm_first": False, "activation": "relu"},
    # Devlin et al. 2019
    "bert": {"norm_first": False, "activation": "gelu", "norm_eps": 1e-12, "n_token_types": 2},
    "gpt2": {},  # Radford et al. 2019
    "llama": _MODERN | {"tied": False},  # Touvron et al. 2023
    "qwen3": _MODERN | {"qk_norm": True, "norm_eps": 1e-6},  # Yang et al. 2025
}


def _norm(config: TransformerConfig) -> nn.Module:
    kinds = {"layer": nn.LayerNorm, "rms": RMSNorm}
    return kinds[config.norm](config.d_model, eps=config.norm_eps)


class FeedForward(nn.Module):
    """Each position by itself: wider, through a non-linearity, and back.

    Source: Vaswani et al. 2017, equation 2; gated: Shazeer 2020, equation 6.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """The gate is there for swiglu alone."""
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.d_model, config.d_ff, config.bias)
        gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.d_model, config.d_ff, config.bias) if gated else None
        self.down = nn.Linear(config.d_ff, config.d_model, config.bias)
        self.packed: nn.Module | None = None  # gate and up in one product: fast_linear

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, d_model) to the same."""
        if self.packed is not None:
            gate, up = self.packed(x).chunk(2, dim=-1)
            return self.down(self.activation(gate) * up)
        if self.gate is not None:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention, then feed-forward; each is added to its input, with a norm before or after.

    Source: Vaswani et al. 2017, figure 1; the norm first: Xiong et al. 2020, figure 1b.
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False) -> None:
        """cross_attention: between the two, a look at another sequence."""
        super().__init__()
        sizes = (config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.bias)
        self.norm_first = config.norm_first
        self.attention = MultiHeadAttention(*sizes, config.norm_eps if config.qk_norm else None)
        self.attention_norm = _norm(config)
        self.cross_attention = MultiHeadAttention(*sizes) if cross_attention else None
        self.cross_norm = _norm(config) if cross_attention else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = _norm(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache=None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x: (batch, seq, d_model) to the same; context: (batch, other seq, d_model)."""

        def attend(h: Tensor) -> Tensor:
            return self.attention(h, None, mask, causal, rotation, cache)

        def look(h: Tensor) -> Tensor:
            return self.cross_attention(h, context, context_mask)

        x = self._add(x, attend, self.attention_norm)
        if self.cross_attention is not None:
            x = self._add(x, look, self.cross_norm)
        return self._add(x, self.feed_forward, self.feed_forward_norm)

    def _add(self, x: Tensor, layer, norm: nn.Module) -> Tensor:
        return x + layer(norm(x)) if self.norm_first else norm(x + layer(x))


class _Model(nn.Module):
    """What the shapes share: embeddings, positions, initial and published weights."""

    families: tuple[str, ...] = ()

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.n_positions, config.d_model)

    def initialise(self) -> None:
        """Small random matrices, no biases. Source: Radford et al. 2018, section 4.1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, input_ids: Tensor, positions: Tensor, before: int = 0) -> Tensor:
        """(batch, seq) to (batch, seq, d_model); positions: (seq,) or (batch, seq).

        before: how many tokens are in the cache. Raises ValueError for none or too many.
        """
        if not input_ids.numel():
            raise ValueError("There are no tokens: input_ids is empty.")
        if (total := before + input_ids.shape[1]) > self.config.n_positions:
            raise ValueError(
                f"{total} tokens are more than this model's {self.config.n_positions} positions."
            )
        x = self.embedding(input_ids)
        if self.config.positions == "learned":
            return x + self.position_embedding(positions)
        if self.config.positions == "sinusoidal":  # section 3.4: embeddings grow to match
            added = sinusoidal_positions(positions, self.config.d_model)
            return x * math.sqrt(self.config.d_model) + added.to(x.dtype)
        return x

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """Cosines and sines for rotary positions, (…, seq, head_dim); None for other ones."""
        if self.config.positions != "rotary":
            return None
        head_dim = self.config.head_dim or self.config.d_model // self.config.n_heads
        cos, sin = rotary_positions(positions, head_dim, self.config.rope_theta, dtype)
        return (cos[:, None], sin[:, None]) if positions.dim() == 2 else (cos, sin)

    @classmethod
    def from_pretrained(cls, name: str, dtype: str = "auto", device: str | None = None) -> Self:
        """Published weights: a known asset's name, a local folder, or a Hub id; in eval mode.

        dtype: auto | bf16 | fp16 | fp32. Raises AssetError for another architecture.
        """
        family, settings, state = checkpoints.read(name, cls.families)
        device = device or profiles.device()
        with torch.device("meta"):  # no memory and no random numbers for what is replaced
            model = cls(TransformerConfig.of(family, **settings))
        wanted = profiles.dtype(dtype, device)
        state = {key: tensor.to(device, wanted) for key, tensor in state.items()}
        if model.config.tied and hasattr(model, "head"):
            state["head.weight"] = state["embedding.weight"]
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise assets.AssetError(f"{name!r} can't be loaded: {error}") from error
        if model.config.tied and hasattr(model, "head"):
            model.head.weight = model.embedding.weight
        return model.eval().requires_grad_(False)


class Encoder(_Model):
    """Every position sees every other: text to vectors. BERT. Source: Devlin et al. 2019."""

    families = ("bert",)

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialise`."""
        super().__init__(config)
        if config.n_token_types:
            self.token_type_embedding = nn.Embedding(config.n_token_types, config.d_model)
        # BERT normalises what goes into the stack; with the norm first, what comes out of it.
        self.embedding_norm = _norm(config) if config.family == "bert" else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config) if config.norm_first else nn.Identity()
        self.initialise()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids: (batch, seq) to hidden states: (batch, seq, d_model).

        attention_mask: (batch, seq), 1 for tokens and 0 for padding; token_type_ids: (batch, seq).
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids, positions)
        if self.config.n_token_types:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embedding(types)
        x = self.embedding_norm(x)
        mask = None if attention_mask is None else padding_mask(attention_mask)
        rotation = self.rotation(positions, x.dtype)
        for block in self.blocks:
            x = block(x, mask, rotation=rotation)
        return self.norm(x)


class Decoder(_Model):
    """Every position sees those before it: text to the scores of the next token. GPT, Llama.

    Source: Radford et al. 2019, section 2.3; Touvron et al. 2023, section 2.2.
    """

    families = ("gpt2", "llama", "qwen3")

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialise`."""
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config) if config.norm_first else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.initialise()
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache=None,
        last_only: bool = False,
    ) -> Tensor:
        """input_ids: (batch, seq) to logits: (batch, seq, vocab); last_only: (batch, 1, vocab).

        attention_mask: (batch, cached + seq), 0 for padding on the left; cache: a
        generation.KeyValueCache that holds the tokens before these, and takes these in.
        """
        seq = input_ids.shape[1]
        start = cache.length if cache is not None else 0
        mask, causal = None, seq > 1 and start == 0
        if attention_mask is None:
            positions = torch.arange(start, start + seq, device=input_ids.device)
            if seq > 1 and start:
                mask = causal_mask(seq, start + seq, input_ids.device)
        else:  # counted from each row's first token
            positions = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)[:, start:]
            mask = padding_mask(attention_mask)
            mask = mask & causal_mask(seq, start + seq, input_ids.device)
            causal = False
        x = self.embed(input_ids, positions, start)
        rotation = self.rotation(positions, x.dtype)
        for number, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[number]
            x = block(x, mask, causal, rotation, layer)
        if cache is not None:
            cache.length += seq
        x = self.norm(x[:, -1:] if last_only else x)
        return self.head(x)


class EncoderDecoder(_Model):
    """One text in, another out: the decoder's blocks also look at what the encoder made.

    Source: Vaswani et al. 2017, section 3.1. One vocabulary serves both sides (section 3.4).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialise`; n_layers on each side."""
        super().__init__(config)
        layers = range(config.n_layers)
        self.encoder = nn.ModuleList(Block(config) for _ in layers)
        self.decoder = nn.ModuleList(Block(config, cross_attention=True) for _ in layers)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.initialise()
        if config.tied:
            self.head.weight = self.embedding.weight

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source: (batch, seq) to (batch, seq, d_model); source_mask: 1 token, 0 padding."""
        positions = torch.arange(source.shape[1], device=source.device)
        x, mask = self.embed(source, positions), None
        if source_mask is not None:
            mask = padding_mask(source_mask)
        for block in self.encoder:
            x = block(x, mask, rotation=self.rotation(positions, x.dtype))
        return x

    def decode(self, target: Tensor, encoded: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """target: (batch, seq) to the next tokens' logits: (batch, seq, vocab)."""
        positions = torch.arange(target.shape[1], device=target.device)
        x = self.embed(target, positions)
        context_mask = None if source_mask is None else padding_mask(source_mask)
        rotation = self.rotation(positions, x.dtype)
        for block in self.decoder:
            x = block(x, None, True, rotation, None, encoded, context_mask)
        return self.head(x)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Logits of each target token's successor: (batch, target seq, vocab)."""
        return self.decode(target, self.encode(source, source_mask), source_mask)
