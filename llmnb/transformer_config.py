"""What decides the shape of a Transformer, and the choices of each family (see transformer.py)."""

from dataclasses import dataclass
from typing import Any, Self

import torch.nn.functional as F

SIZES = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "n_positions")
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # as GPT-2 was trained
    "relu": F.relu,
    "swiglu": F.silu,  # applied to the gate, see FeedForward
}


@dataclass(frozen=True)
class TransformerConfig:
    """Everything but the weights that decides what a Transformer computes."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_positions: int  # the longest sequence, in tokens
    positions: str = "learned"  # learned | sinusoidal | rotary
    norm: str = "layer"  # layer | rms
    norm_first: bool = True  # normalize the input of each layer instead of its output
    activation: str = "gelu_tanh"  # gelu | gelu_tanh | relu | swiglu
    bias: bool = True
    norm_eps: float = 1e-5
    n_kv_heads: int | None = None  # None: as many as n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    n_token_types: int = 0
    tied: bool = True  # the output matrix is the embedding matrix
    family: str | None = None  # bert | gpt2 | llama | qwen3: whose checkpoints it can load

    def __post_init__(self) -> None:
        """Raises ValueError for a choice that doesn't exist, or impossible sizes."""
        choices = {"positions": ("learned", "sinusoidal", "rotary"), "norm": ("layer", "rms")}
        choices["activation"] = tuple(ACTIVATIONS)
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
        for name in SIZES:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        width = {"rotary": self.heads[2], "sinusoidal": self.d_model}.get(self.positions, 0)
        if width % 2:
            raise ValueError(f"{self.positions} positions need pairs of dimensions, not {width}.")

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key/value heads, and the dimensions of each."""
        head_dim = self.head_dim or self.d_model // self.n_heads
        return self.n_heads, self.n_kv_heads or self.n_heads, head_dim

    @classmethod
    def of(cls, family: str, **sizes: Any) -> Self:
        """A configuration with a family's choices: bert, gpt2, llama, qwen3, original."""
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}; choose one of {', '.join(FAMILIES)}.")
        if family != "original":
            sizes["family"] = family
        return cls(**(FAMILIES[family] | sizes))


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
