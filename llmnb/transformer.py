"""The Transformer in its three shapes: encoder, decoder, encoder-decoder (notebook 02).

All families share these parts, and a configuration chooses among them. The same code runs published
BERT, GPT-2, Llama and Qwen3 weights. Attention itself is in attention.py, the names of published
weights are in checkpoints.py, and decoding is in generation.py.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn

from llmnb import checkpoints
from llmnb.attention import (
    MultiHeadAttention,
    Rotation,
    padding_mask,
    rotary_positions,
    sinusoidal_positions,
)
from llmnb.transformer_config import ACTIVATIONS, TransformerConfig


def _norm(config: TransformerConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.d_model, eps=config.norm_eps)


def _final_norm(config: TransformerConfig) -> nn.Module:
    """The norm after the last block, if norms come first; otherwise nothing: it has its own."""
    return _norm(config) if config.norm_first else nn.Identity()


class FeedForward(nn.Module):
    """Each position by itself: wider, through a non-linearity, and back.

    Source: Vaswani et al. 2017, equation 2; gated: Shazeer 2020, equation 6.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Only swiglu has a gate."""
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.d_model, config.d_ff, config.bias)
        gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.d_model, config.d_ff, config.bias) if gated else None
        self.down = nn.Linear(config.d_ff, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, d_model) to the same."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then feed-forward; each is added to its input, with a norm before or after.

    Source: Vaswani et al. 2017, figure 1; the norm first: Xiong et al. 2020, figure 1b.
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False) -> None:
        """cross_attention: add attention to another sequence between the two layers."""
        super().__init__()
        sizes = (config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.bias)
        qk_norm_eps = config.norm_eps if config.qk_norm else None
        self.norm_first = config.norm_first
        self.attention = MultiHeadAttention(*sizes, qk_norm_eps=qk_norm_eps)
        self.attention_norm = _norm(config)
        self.cross_attention = MultiHeadAttention(*sizes) if cross_attention else None
        self.cross_norm = _norm(config) if cross_attention else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = _norm(config)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache=None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """(batch, seq, d_model) to the same; context: (batch, other seq, d_model)."""
        options = {"mask": mask, "causal": causal, "rotation": rotation, "cache": cache}
        x = self._add(x, self.attention_norm, self.attention, **options)
        if self.cross_attention is not None:
            x = self._add(
                x, self.cross_norm, self.cross_attention, context=context, mask=context_mask
            )
        return self._add(x, self.feed_forward_norm, self.feed_forward)

    def _add(self, x: Tensor, norm: nn.Module, layer: nn.Module, **options) -> Tensor:
        """The residual connection around a layer, with its norm inside or outside."""
        if self.norm_first:
            return x + layer(norm(x), **options)
        return norm(x + layer(x, **options))


class _Model(nn.Module):
    """What the shapes share: embeddings, positions, initial and published weights."""

    families: tuple[str, ...] = ()

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.n_positions, config.d_model)

    def initialize(self) -> None:
        """Small random matrices and biases of 0. Source: Radford et al. 2018, section 4.1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.config.tied and hasattr(self, "head"):
            self.head.weight = self.embedding.weight

    def embed(self, input_ids: Tensor, positions: Tensor, before: int = 0) -> Tensor:
        """(batch, seq) to (batch, seq, d_model); positions: (seq,) or (batch, seq).

        before: how many tokens are in the cache. Raises ValueError for none or too many.
        """
        if not input_ids.numel():
            raise ValueError("There are no tokens: input_ids is empty.")
        total = before + input_ids.shape[1]
        limit = self.config.n_positions
        if total > limit:
            raise ValueError(f"{total} tokens are more than this model's {limit} positions.")
        x = self.embedding(input_ids)
        if self.config.positions == "learned":
            return x + self.position_embedding(positions)
        if self.config.positions == "sinusoidal":  # section 3.4: embeddings grow to match
            x = x * math.sqrt(self.config.d_model)
            return x + sinusoidal_positions(positions, self.config.d_model).to(x.dtype)
        return x

    def start(self, input_ids: Tensor) -> tuple[Tensor, Rotation | None]:
        """Embeddings and rotation of whole texts: (batch, seq) to (batch, seq, d_model)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids, positions)
        return x, self.rotation(positions, x.dtype)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """Cosines and sines for rotary positions, (…, 1, seq, head_dim); None for other ones."""
        if self.config.positions != "rotary":
            return None
        return rotary_positions(positions, self.config.heads[2], self.config.rope_theta, dtype)

    @classmethod
    def from_pretrained(cls, name: str, dtype: str = "auto", device: str | None = None) -> Self:
        """Published weights: a known asset's name, a local folder, or a Hub id; in eval mode.

        dtype: auto | bf16 | fp16 | fp32. Raises AssetError for another architecture.
        """
        return checkpoints.load(cls, name, dtype, device)


class Encoder(_Model):
    """Every position sees every other: text to vectors. BERT. Source: Devlin et al. 2019."""

    families = ("bert",)

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialize`."""
        super().__init__(config)
        if config.n_token_types:
            self.token_type_embedding = nn.Embedding(config.n_token_types, config.d_model)
        # BERT normalizes what goes into the stack; with the norm first, what comes out of it.
        self.embedding_norm = _norm(config) if config.family == "bert" else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _final_norm(config)
        self.initialize()

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids: (batch, seq) to hidden states: (batch, seq, d_model).

        attention_mask: (batch, seq), 1 for tokens and 0 for padding. Of BERT's token types, which
        tell the sentences of a pair apart, all are the first.
        """
        x, rotation = self.start(input_ids)
        if self.config.n_token_types:
            x = x + self.token_type_embedding.weight[0]
        x = self.embedding_norm(x)
        mask = padding_mask(attention_mask)
        for block in self.blocks:
            x = block(x, mask=mask, rotation=rotation)
        return self.norm(x)


class Decoder(_Model):
    """Every position sees those before it: text to the scores of the next token. GPT, Llama.

    Source: Radford et al. 2019, section 2.3; Touvron et al. 2023, section 2.2.
    """

    families = ("gpt2", "llama", "qwen3")

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialize`."""
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _final_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.initialize()

    def forward(
        self,
        input_ids: Tensor,
        *,
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
        mask = padding_mask(attention_mask)
        causal = seq > 1  # a single token may see everything before it
        if attention_mask is None:
            positions = torch.arange(start, start + seq, device=input_ids.device)
        else:  # counted from each row's first token
            positions = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)[:, start:]
        x = self.embed(input_ids, positions, start)
        rotation = self.rotation(positions, x.dtype)
        for number, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[number]
            x = block(x, mask=mask, causal=causal, rotation=rotation, cache=layer_cache)
        if cache is not None:
            cache.length += seq
        x = self.norm(x[:, -1:] if last_only else x)
        return self.head(x)


class EncoderDecoder(_Model):
    """One text in, another out: the decoder's blocks also attend to the encoder's output.

    Source: Vaswani et al. 2017, section 3.1. One vocabulary serves both sides (section 3.4).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Random weights, see `initialize`; n_layers on each side."""
        super().__init__(config)
        layers = range(config.n_layers)
        self.encoder = nn.ModuleList(Block(config) for _ in layers)
        self.encoder_norm = _final_norm(config)
        self.decoder = nn.ModuleList(Block(config, cross_attention=True) for _ in layers)
        self.decoder_norm = _final_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.initialize()

    def encode(self, source: Tensor, *, source_mask: Tensor | None = None) -> Tensor:
        """source: (batch, seq) to (batch, seq, d_model); source_mask: 1 token, 0 padding."""
        x, rotation = self.start(source)
        mask = padding_mask(source_mask)
        for block in self.encoder:
            x = block(x, mask=mask, rotation=rotation)
        return self.encoder_norm(x)

    def decode(
        self, target: Tensor, encoded: Tensor, *, source_mask: Tensor | None = None
    ) -> Tensor:
        """target: (batch, seq) to the next tokens' logits: (batch, seq, vocab)."""
        x, rotation = self.start(target)
        mask = padding_mask(source_mask)
        for block in self.decoder:
            x = block(x, causal=True, rotation=rotation, context=encoded, context_mask=mask)
        return self.head(self.decoder_norm(x))

    def forward(
        self, source: Tensor, target: Tensor, *, source_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of each target token's successor: (batch, target seq, vocab)."""
        encoded = self.encode(source, source_mask=source_mask)
        return self.decode(target, encoded, source_mask=source_mask)
