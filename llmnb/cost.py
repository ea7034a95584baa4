"""What a model costs before it is trained or loaded: parameters and memory, from its shape."""

from collections.abc import Mapping
from dataclasses import dataclass

FAMILIES = ("bert", "gpt2", "llama", "qwen3")
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "4 bits": 4}


@dataclass(frozen=True)
class Shape:
    """The numbers that fix how many parameters a Transformer has."""

    family: str  # bert | gpt2 | llama | qwen3
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_positions: int = 0  # learned positions; 0 for rotary ones
    n_kv_heads: int | None = None  # None: as many as n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    n_token_types: int = 0
    pooler: bool = False
    tied: bool = True  # the output matrix is the embedding matrix

    def __post_init__(self) -> None:
        """Raises ValueError for a family without a formula, or heads that don't divide d_model."""
        _need_formula(self.family)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by {self.n_heads} heads; "
                f"give head_dim if the heads are of another width."
            )

    @classmethod
    def from_config(cls, config, pooler: bool = True) -> "Shape":
        """From a transformers config. pooler: whether a BERT carries BertModel's pooling layer."""
        family = config.model_type
        _need_formula(family)
        if family == "gpt2":
            return cls(
                family,
                config.vocab_size,
                config.n_embd,
                config.n_layer,
                config.n_head,
                config.n_inner or 4 * config.n_embd,
                n_positions=config.n_positions,
            )
        rotary = family != "bert"
        return cls(
            family,
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
            n_positions=0 if rotary else config.max_position_embeddings,
            n_kv_heads=getattr(config, "num_key_value_heads", None),
            head_dim=getattr(config, "head_dim", None),
            n_token_types=0 if rotary else config.type_vocab_size,
            pooler=pooler and not rotary,
            tied=config.tie_word_embeddings,
        )


def _need_formula(family: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"There is no formula for {family!r}; there is for {', '.join(FAMILIES)}.")


def gpt(d_model: int, n_layers: int, n_heads: int, n_positions: int = 1024) -> Shape:
    """GPT-2's and GPT-3's shape: 50,257 tokens, a feed-forward layer four times as wide.

    Source: Radford et al. 2019, section 2.3; Brown et al. 2020, table 2.1.
    """
    return Shape("gpt2", 50257, d_model, n_layers, n_heads, 4 * d_model, n_positions)


# Brown et al. 2020. The shape from table 2.1, the count (in millions) from table D.1. Table 2.1
# gives the 1.3B model 24 heads of 128, which is not its d_model of 2048 (16 heads of 128 are), and
# the 13B model d_model 5140, which is not its 40 heads of 128 (5120 is).
GPT3 = {
    "GPT-3 Small": (gpt(768, 12, 12, 2048), 125),
    "GPT-3 Medium": (gpt(1024, 24, 16, 2048), 356),
    "GPT-3 Large": (gpt(1536, 24, 16, 2048), 760),
    "GPT-3 XL": (gpt(2048, 24, 16, 2048), 1_320),
    "GPT-3 2.7B": (gpt(2560, 32, 32, 2048), 2_650),
    "GPT-3 6.7B": (gpt(4096, 32, 32, 2048), 6_660),
    "GPT-3 13B": (gpt(5120, 40, 40, 2048), 12_850),
    "GPT-3 175B": (gpt(12288, 96, 96, 2048), 174_600),
}
# Devlin et al. 2019 and Radford et al. 2019, with the counts of the released checkpoints (millions;
# BERT with its pooler).
PUBLISHED = {
    "BERT-base": (Shape("bert", 30522, 768, 12, 12, 3072, 512, None, None, 2, True), 109.48),
    "BERT-large": (Shape("bert", 30522, 1024, 24, 16, 4096, 512, None, None, 2, True), 335.14),
    "GPT-2": (gpt(768, 12, 12), 124.44),
    "GPT-2 Medium": (gpt(1024, 24, 16), 354.82),
    "GPT-2 Large": (gpt(1280, 36, 20), 774.03),
    "GPT-2 XL": (gpt(1600, 48, 25), 1_557.61),
}


def count_parameters(shape: Shape) -> dict[str, int]:
    """Parameters by part: embeddings, attention, feed_forward, norms, pooler, head.

    The sum of the values is the model's number of parameters; tied weights count once.
    """
    d, n_layers, d_ff = shape.d_model, shape.n_layers, shape.d_ff
    head_dim = shape.head_dim or d // shape.n_heads
    query, key = shape.n_heads * head_dim, (shape.n_kv_heads or shape.n_heads) * head_dim
    modern = shape.family in ("llama", "qwen3")  # RMSNorm (no bias), SwiGLU, no other biases
    attention = d * query + 2 * d * key + query * d  # Q, K and V, and the output
    feed_forward = (3 if modern else 2) * d * d_ff
    norm = d if modern else 2 * d
    if not modern:
        attention += query + 2 * key + d
        feed_forward += d_ff + d
    qk_norm = 2 * head_dim if shape.family == "qwen3" else 0
    return {
        "embeddings": (shape.vocab_size + shape.n_positions + shape.n_token_types) * d,
        "attention": n_layers * attention,
        "feed_forward": n_layers * feed_forward,
        # two in a layer, one after the embeddings (BERT) or before the output (the others)
        "norms": (2 * n_layers + 1) * norm + n_layers * qk_norm,
        "pooler": d * d + d if shape.pooler else 0,
        "head": 0 if shape.tied else shape.vocab_size * d,
    }


def total_parameters(shape: Shape) -> int:
    """All parameters of a model of this shape."""
    return sum(count_parameters(shape).values())


def weight_bytes(n_parameters: int, precision: str = "fp32") -> int:
    """Bytes of the weights alone. Raises ValueError for an unknown precision."""
    if precision not in BITS:
        raise ValueError(f"Precision {precision!r} is unknown; choose one of {', '.join(BITS)}.")
    return n_parameters * BITS[precision] // 8


def machine_memory() -> Mapping[str, int]:
    """Bytes that this machine has, by place: "memory", and "gpu" where CUDA is."""
    import psutil

    places = {"memory": psutil.virtual_memory().total}
    from llmnb import profiles

    if profiles.has_cuda():
        import torch

        places["gpu"] = torch.cuda.mem_get_info()[1]
    return places
