"""A recipe: every setting of a training run except its text.

`loop.Trainer` trains by a recipe; `BASELINE` is the tutorials' recipe that ours is compared with.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
_NOT_NEGATIVE = ("tokens", "minutes", "weight_decay", "clip", "d_ff", "seed")
_RANGES = [  # names of settings, what their values must be, and whether a value is that
    (("block_size", "batch_size", "accumulation"), "at least 1", lambda value: value >= 1),
    (_NOT_NEGATIVE, "at least 0", lambda value: value >= 0),
    (("lr", "matrix_lr"), "above 0", lambda value: value > 0),
    (("warmup", "decay"), "a share of the steps, 0 to 1", lambda value: 0 <= value <= 1),
]
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class PretrainingError(LlmnbError, ValueError):
    """A run can't start or continue; the message says what is wrong, and what to do."""


@dataclass(frozen=True)
class Recipe:
    """Sizes, optimizer, schedule and budget of one run.

    The default is the series' own: Qwen3's architecture, Muon, and a short warm-up. BASELINE is
    the small GPT-2 that the field's tutorials train.
    """

    objective: str = "causal"  # causal | masked
    family: str = ""  # qwen3 | llama | gpt2 | bert; empty: bert if masked, else qwen3
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 0  # 0: 4 d_model, or 8/3 d_model with a gate, which needs a third matrix
    model: Mapping[str, Any] = field(default_factory=dict)  # further fields of TransformerConfig
    zero_init: bool = True  # at first, every layer adds zeros to the residual stream
    block_size: int = 128  # tokens of context
    batch_size: int = 16  # blocks per step, over all processes
    accumulation: int = 1  # parts that a batch is computed in: more parts need less memory
    tokens: int = 0  # the budget: how many tokens to train on
    minutes: float = 0.0  # or, instead of tokens: how long to train on this machine
    optimizer: str = "muon"  # muon | adamw
    lr: float = 8e-3  # AdamW's
    matrix_lr: float = 0.02  # Muon's
    weight_decay: float = 0.0
    warmup: float = 0.02  # share of the steps
    decay: float = 1.0  # share of the steps, counted from the end
    clip: float = 1.0  # the largest norm of the gradient; 0: no limit
    dtype: str = "auto"  # auto | bf16 | fp16 | fp32: what the products are computed in
    seed: int = 0

    def __post_init__(self) -> None:
        """Fill in the family. Raises PretrainingError for a value that makes no sense."""
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise PretrainingError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        if not self.family:
            family = "bert" if self.objective == "masked" else "qwen3"
            object.__setattr__(self, "family", family)
        if (self.family == "bert") != (self.objective == "masked"):
            raise PretrainingError(
                f"family {self.family!r} does not go with objective {self.objective!r}: only a "
                f"BERT sees both sides of a masked token; the others predict the next one."
            )
        for names, requirement, is_valid in _RANGES:
            for name in names:
                value = getattr(self, name)
                if not is_valid(value):
                    raise PretrainingError(f"{name} is {value}; it must be {requirement}.")
        if self.batch_size % self.accumulation:
            raise PretrainingError(
                f"batch_size {self.batch_size} can't be cut into {self.accumulation} equal parts."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """A recipe from a file's settings. Raises PretrainingError for a wrong name or type."""
        return cls(**checked_settings(settings, cls().as_dict()))

    @property
    def step_tokens(self) -> int:
        """Tokens in one batch."""
        return self.batch_size * self.block_size

    def config(self, vocab_size: int) -> TransformerConfig:
        """The model's configuration. Raises PretrainingError if there is no such model."""
        sizes = {name: getattr(self, name) for name in ("d_model", "n_layers", "n_heads")}
        sizes |= {"vocab_size": vocab_size, "n_positions": self.block_size}
        sizes["d_ff"] = self.d_ff or 4 * self.d_model
        try:
            config = TransformerConfig.of(self.family, **sizes | dict(self.model))
        except (TypeError, ValueError) as error:
            raise PretrainingError(f"There is no such model: {error}") from error
        if config.activation == "swiglu" and not self.d_ff and "d_ff" not in self.model:
            multiples_of_16 = math.ceil(8 * self.d_model / 3 / 16)
            config = replace(config, d_ff=16 * multiples_of_16)
        return config

    def build(self, vocab_size: int) -> nn.Module:
        """The model, with random weights that depend on the seed alone."""
        config = self.config(vocab_size)
        model_class = MaskedModel if self.objective == "masked" else Decoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                model = model_class(config)
            except ValueError as error:  # for example, heads that don't divide d_model
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
        """Steps for a budget in tokens; 0 if the budget is in minutes.

        Raises PretrainingError unless the budget is one of the two.
        """
        if (self.tokens > 0) == (self.minutes > 0):
            raise PretrainingError("Give a budget: either tokens or minutes.")
        return max(1, round(self.tokens / self.step_tokens)) if self.tokens else 0

    @contextlib.contextmanager
    def explaining_memory_errors(self) -> Iterator[None]:
        """Turn an out-of-memory error into a PretrainingError that names the settings to change."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            message = str(error).lower()
            is_memory = isinstance(error, MemoryError) or any(
                words in message for words in _OUT_OF_MEMORY
            )
            if not is_memory:
                raise
            raise PretrainingError(
                f"There is not enough memory for a step. Compute it in more parts: accumulation "
                f"{2 * self.accumulation} (now {self.accumulation}, of batch_size "
                f"{self.batch_size}) gives the same result; or lower block_size "
                f"({self.block_size}), then d_model ({self.d_model})."
            ) from error


def checked_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each converted to its default's type; if that is None, to an int or None.

    Text that spells a number is taken for one where a number is needed, because YAML reads 1e-3 as
    text. Raises PretrainingError for an unknown name or a wrong type.
    """
    result = {}
    for name, value in settings.items():
        if name not in defaults:
            raise PretrainingError(
                f"There is no setting {name!r}.{files.did_you_mean(str(name), defaults)}"
            )
        default = defaults[name]
        expected = int if default is None else type(default)
        is_bool = isinstance(value, bool)
        if expected is float and not is_bool:
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)
        elif expected is int and isinstance(value, str):
            with contextlib.suppress(ValueError):
                number = float(value)
                value = int(number) if number.is_integer() else number
        is_right_type = isinstance(value, expected) and is_bool == (expected is bool)
        is_allowed_none = value is None and default is None
        if not is_right_type and not is_allowed_none:
            raise PretrainingError(f"{name} is {value!r}; it must be of type {expected.__name__}.")
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
