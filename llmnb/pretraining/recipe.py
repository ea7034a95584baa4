"""A recipe: everything that decides a training run, the text apart."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import nn

from llmnb import LlmnbError, fast_linear, files
from llmnb.pretraining.objectives import MaskedModel
from llmnb.transformer import Decoder, TransformerConfig

_CHOICES = {
    "objective": ("causal", "masked"),
    "optimizer": ("muon", "adamw"),
    "dtype": ("auto", "bf16", "fp16", "fp32"),
}


class PretrainingError(LlmnbError, ValueError):
    """A run can't start or go on; the message says what is wrong, and what to do."""


@dataclass(frozen=True)
class Recipe:
    """Sizes, optimizer, schedule and budget of one run.

    The default is the series' own: Qwen3's architecture, Muon, and a short warm-up. BASELINE is
    the small GPT-2 that the field's tutorials train.
    """

    objective: str = "causal"  # causal | masked
    family: str = ""  # qwen3 | llama | gpt2 | bert; empty: qwen3, for masked bert
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 0  # 0: 4 d_model; with a gate, which needs a third matrix, 8/3
    model: Mapping[str, Any] = field(default_factory=dict)  # further fields of TransformerConfig
    zero_init: bool = True  # what a layer adds is 0 in the beginning
    block_size: int = 128  # tokens that a prediction can see
    batch_size: int = 16  # blocks a step, over all processes
    accumulation: int = 1  # parts that a step's blocks are computed in: more need less memory
    tokens: int = 0  # how many to train on; or
    minutes: float = 0.0  # for how long, on this machine
    optimizer: str = "muon"  # muon | adamw
    lr: float = 8e-3  # AdamW's
    matrix_lr: float = 0.02  # Muon's
    weight_decay: float = 0.0
    warmup: float = 0.02  # share of the steps
    decay: float = 1.0  # share of the steps, at the end
    clip: float = 1.0  # the gradient's norm, at most; 0: unlimited
    dtype: str = "auto"  # auto | bf16 | fp16 | fp32: what the products are computed in
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises PretrainingError for a value that can't be."""
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise PretrainingError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
        if not self.family:
            family = "bert" if self.objective == "masked" else "qwen3"
            object.__setattr__(self, "family", family)
        if (self.family == "bert") != (self.objective == "masked"):
            raise PretrainingError(
                f"family {self.family!r} does not go with objective {self.objective!r}: a BERT "
                f"sees both sides and guesses what is masked, the others guess what comes next."
            )
        for name in ("block_size", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise PretrainingError(f"{name} is {getattr(self, name)}; it is at least 1.")
        for name in ("lr", "matrix_lr"):
            if getattr(self, name) <= 0:
                raise PretrainingError(f"{name} is {getattr(self, name)}; it is above 0.")
        for name in ("tokens", "minutes", "weight_decay", "clip", "d_ff", "seed"):
            if getattr(self, name) < 0:
                raise PretrainingError(f"{name} is {getattr(self, name)}; it is at least 0.")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise PretrainingError(f"{name} is {getattr(self, name)}; it is a share, 0 to 1.")
        if self.batch_size % self.accumulation:
            raise PretrainingError(
                f"batch_size {self.batch_size} can't be cut into {self.accumulation} equal parts."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From a file's settings. Raises PretrainingError for a name or type that is not known."""
        return cls(**checked(settings, cls().as_dict()))

    @property
    def step_tokens(self) -> int:
        """Tokens that one step learns from."""
        return self.batch_size * self.block_size

    @property
    def schedule(self) -> tuple[float, float]:
        """Warm-up and decay, for `learning_rate`."""
        return self.warmup, self.decay

    def config(self, vocab_size: int) -> TransformerConfig:
        """The model's configuration."""
        sizes = {"vocab_size": vocab_size, "d_model": self.d_model, "n_layers": self.n_layers}
        sizes |= {"n_heads": self.n_heads, "n_positions": self.block_size, "d_ff": 1}
        try:
            config = TransformerConfig.of(self.family, **(sizes | dict(self.model)))
            gated = config.activation == "swiglu"
            d_ff = self.d_ff or (
                -(-8 * self.d_model // 3 // 16) * 16 if gated else 4 * self.d_model
            )
            return TransformerConfig.of(self.family, **(sizes | {"d_ff": d_ff} | dict(self.model)))
        except (TypeError, ValueError) as error:
            raise PretrainingError(f"There is no such model: {error}") from error

    def build(self, vocab_size: int) -> nn.Module:
        """The model, with random weights that the seed decides."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            config = self.config(vocab_size)
            try:
                model = (MaskedModel if self.objective == "masked" else Decoder)(config)
            except ValueError as error:  # heads that don't divide
                raise PretrainingError(f"There is no such model: {error}") from error
        if self.zero_init:
            for name, parameter in model.named_parameters():
                if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                    nn.init.zeros_(parameter)
        return fast_linear.optimize_for_cpu(model)

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain JSON."""
        return asdict(self) | {"model": dict(self.model)}

    def steps(self) -> int:
        """Steps for a budget in tokens; 0 where minutes decide. Raises PretrainingError."""
        if (self.tokens > 0) == (self.minutes > 0):
            raise PretrainingError("Give a budget: either tokens or minutes.")
        return max(1, round(self.tokens / self.step_tokens)) if self.tokens else 0


def checked(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each of its default's type; where that is None, an int or None.

    Raises PretrainingError for a name or type that is not known.
    """
    result = {}
    for name, value in settings.items():
        if name not in defaults:
            raise PretrainingError(
                f"There is no setting {name!r}.{files.did_you_mean(str(name), defaults)}"
            )
        kind = int if defaults[name] is None else type(defaults[name])
        if kind is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)  # YAML takes 1e-3 for a text
        right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if not right and (value is not None or defaults[name] is not None):
            raise PretrainingError(f"{name} is {value!r}; it is of type {kind.__name__}.")
        result[name] = value
    return result


# Karpathy's nanoGPT, its settings for a CPU: 0.8M parameters, 2,000 steps of 12 blocks of 64.
BASELINE = Recipe(
    family="gpt2",
    zero_init=False,
    block_size=64,
    batch_size=12,
    tokens=2000 * 12 * 64,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    warmup=0.05,
    decay=0.95,
    dtype="fp32",
)
