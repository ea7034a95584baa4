"""What a model costs, from its shape: parameters, arithmetic, memory, time (notebook 03)."""

import math
from collections.abc import Mapping

from llmnb import checkpoints
from llmnb.transformer import TransformerConfig

FAMILIES = ("bert", "gpt2", "llama", "qwen3")
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "4 bits": 4}


def shape_of(config) -> TransformerConfig:
    """The shape of a model, from its transformers config.

    Rotary positions have no parameters, whatever their kind, so their kind is left out. Raises
    ValueError for a family without a formula, and for options that TransformerConfig doesn't have.
    """
    family = config.model_type
    _need_formula(family)
    shape = config.to_dict() | dict.fromkeys(("rope_parameters", "rope_scaling"))
    return TransformerConfig.of(family, **checkpoints.settings(family, shape))


def _need_formula(family: str | None) -> None:
    if family not in FAMILIES:
        raise ValueError(f"There is no formula for {family!r}; there is for {', '.join(FAMILIES)}.")


def gpt(
    d_model: int, n_layers: int, n_heads: int, n_positions: int = 1024, head_dim: int | None = None
) -> TransformerConfig:
    """GPT-2's and GPT-3's shape: 50,257 tokens, a feed-forward layer four times as wide.

    Source: Radford et al. 2019, section 2.3; Brown et al. 2020, table 2.1.
    """
    return TransformerConfig.of(
        "gpt2",
        vocab_size=50257,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=4 * d_model,
        n_positions=n_positions,
        head_dim=head_dim,
    )


def _bert(d_model: int, n_layers: int, n_heads: int) -> TransformerConfig:
    sizes = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_ff": 4 * d_model}
    return TransformerConfig.of("bert", vocab_size=30522, n_positions=512, **sizes)


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
    "BERT-base": (_bert(768, 12, 12), 109.48),
    "BERT-large": (_bert(1024, 24, 16), 335.14),
    "GPT-2": (gpt(768, 12, 12), 124.44),
    "GPT-2 Medium": (gpt(1024, 24, 16), 354.82),
    "GPT-2 Large": (gpt(1280, 36, 20), 774.03),
    "GPT-2 XL": (gpt(1600, 48, 25), 1_557.61),
}


def _widths(config: TransformerConfig) -> tuple[int, int]:
    """All heads side by side: of the queries, and of the keys (or values)."""
    n_heads, n_kv_heads, head_dim = config.heads
    return n_heads * head_dim, n_kv_heads * head_dim


def _matrices(config: TransformerConfig) -> tuple[int, int, int]:
    """Weights that multiply: in one layer's attention and feed-forward part, and in the head.

    Raises ValueError for a family without a formula, or heads that don't divide d_model.
    """
    _need_formula(config.family)
    d = config.d_model
    if config.head_dim is None and d % config.n_heads:
        raise ValueError(
            f"d_model {d} is not divisible by {config.n_heads} heads; "
            f"give head_dim if the heads are of another width."
        )
    query, key = _widths(config)
    gated = config.activation == "swiglu"
    head = 0 if config.family == "bert" else config.vocab_size * d  # an Encoder ends before it
    return d * (2 * query + 2 * key), (3 if gated else 2) * d * config.d_ff, head


def count_parameters(config: TransformerConfig, pooler: bool = False) -> dict[str, int]:
    """Parameters by part: embeddings, attention, feed_forward, norms, pooler, head.

    The sum of the values is the model's number of parameters; tied weights count once. pooler:
    whether a BERT carries transformers' pooling layer; the other families have none. Raises
    ValueError for a family without a formula, or heads that don't divide d_model.
    """
    d, n_layers = config.d_model, config.n_layers
    attention, feed_forward, head = _matrices(config)
    if config.bias:
        query, key = _widths(config)
        attention += query + 2 * key + d
        feed_forward += config.d_ff * (2 if config.activation == "swiglu" else 1) + d
    bert = config.family == "bert"
    positions = config.n_positions if config.positions == "learned" else 0
    # two in a layer, one after the embeddings (BERT), one before the output (where norms go first)
    n_norms = 2 * n_layers + bert + config.norm_first
    qk_norm = 2 * config.heads[2] if config.qk_norm else 0
    return {
        "embeddings": (config.vocab_size + positions + config.n_token_types) * d,
        "attention": n_layers * attention,
        "feed_forward": n_layers * feed_forward,
        "norms": n_norms * (d if config.norm == "rms" else 2 * d) + n_layers * qk_norm,
        "pooler": d * d + d if pooler and bert else 0,
        "head": 0 if config.tied else head,
    }


def total_parameters(config: TransformerConfig, pooler: bool = False) -> int:
    """All parameters of a model of this shape; see `count_parameters`."""
    return sum(count_parameters(config, pooler).values())


def flops_per_token(config: TransformerConfig, seq: int, backward: bool = True) -> int:
    """Floating-point operations of the matrix products for one token, 2 for a multiply-add.

    Every weight that multiplies counts once: the layers' matrices and a decoder's head, tied or
    not; looking up an embedding costs nothing. Attention multiplies each query with seq keys, and
    the weights with seq values: the full square, though a causal kernel may skip half of it.
    backward: with the backward pass, which has two such products for each one; what a kernel
    computes a second time to save memory doesn't count. Without norms, softmax, activations and
    the optimizer. Raises ValueError as count_parameters does, and for a seq below 1.
    Source: Chowdhery et al. 2022, appendix B (6N + 12·L·H·Q·T); Kaplan et al. 2020, table 1.
    """
    _positive(seq=seq)
    attention, feed_forward, head = _matrices(config)
    context = 2 * seq * _widths(config)[0]  # QKᵀ, and the weights times V
    products = config.n_layers * (attention + feed_forward + context) + head
    return 2 * products * (3 if backward else 1)


def training_flops(n_parameters: float, n_tokens: float) -> float:
    """C ≈ 6ND: FLOPs of training N parameters on D tokens, forward and backward.

    2 for each parameter and token forward, 4 backward; attention's own products are left out, which
    `flops_per_token` has. Raises ValueError for a number that isn't above 0.
    Source: Kaplan et al. 2020, section 2.1 (who leave the embeddings out of N, as few do since).
    """
    _positive(n_parameters=n_parameters, n_tokens=n_tokens)
    return 6.0 * n_parameters * n_tokens


def compute_optimal(flops: float, tokens_per_parameter: float = 20.0) -> tuple[float, float]:
    """Parameters and tokens that make the best of a number of FLOPs, through C = 6ND.

    About 20 tokens a parameter are in the authors' table. Raises ValueError for a number that isn't
    above 0. Source: Hoffmann et al. 2022, section 3, table 3.
    """
    _positive(flops=flops, tokens_per_parameter=tokens_per_parameter)
    n_parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    return n_parameters, tokens_per_parameter * n_parameters


def training_memory(
    config: TransformerConfig,
    batch_size: int,
    seq: int,
    optimizer: str = "adamw",
    dtype: str = "fp32",
) -> dict[str, int]:
    """Bytes of training by part: weights, gradients, optimizer, activations.

    Weights, gradients and optimizer states are fp32. dtype: fp32, or bf16 | fp16 for autocast,
    which keeps a 16-bit copy of each matrix, counted with the weights. optimizer: adamw (two states
    a parameter) or muon (one for the matrices in the layers, two for the rest). Activations: what
    the forward pass keeps for the backward pass, with fused attention, no dropout and nothing
    computed twice; the log-probabilities in the loss are part of it. An estimate: it counts the
    large tensors. The backward pass begins with the logits' gradients, up to 8 bytes for each token
    and word of the vocabulary, on top of the sum and without the gradients in it. Raises ValueError
    as count_parameters does, and for an unknown choice or a size below 1.
    Source: Korthikanti et al. 2022, section 4.1, without the 5·a·s²·b; Jordan 2024 (Muon).
    """
    _positive(batch_size=batch_size, seq=seq)
    for name, value, known in (
        ("optimizer", optimizer, ("adamw", "muon")),
        ("dtype", dtype, ("fp32", "bf16", "fp16")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
    autocast = dtype != "fp32"
    n_parameters, (*layer, head) = total_parameters(config), _matrices(config)
    in_layers = config.n_layers * sum(layer)
    states = 2 * n_parameters - (in_layers if optimizer == "muon" else 0)
    return {
        "weights": 4 * n_parameters + (2 * (in_layers + head) if autocast else 0),
        "gradients": 4 * n_parameters,
        "optimizer": 4 * states,
        "activations": batch_size * seq * _activation_bytes(config, autocast),
    }


def _activation_bytes(config: TransformerConfig, autocast: bool) -> int:
    """Kept for the backward pass for each token, by what llmnb.transformer does.

    For GPT-2's shape a layer keeps 16 numbers for each of its dimensions, as in Korthikanti et al.:
    their 34 bytes are 16 numbers of 2 bytes and two dropout masks, which aren't here.
    """
    d, gated, (query, key) = config.d_model, config.activation == "swiglu", _widths(config)
    size = 2 if autocast else 4
    # A norm keeps its input, always in fp32; RMSNorm also the normalised (not if fused, on CUDA).
    norm = 4 * d * (2 if config.norm == "rms" else 1)
    # Products share their input, but autocast makes a copy for each: of Q, K, V, and of (gate,) up.
    inputs = d * ((5 if gated else 4) if autocast else 2)
    heads = 2 * query + 2 * key  # queries, keys, values, and what attention gives
    if config.qk_norm:  # before and after the norm; and attention's output in two layouts
        heads += 2 * (query + key) + query
    # Up and its activation; of relu one is enough; gated: the gate, its activation, up, the product
    wide = config.d_ff * {"relu": 1, "swiglu": 4}.get(config.activation, 2)
    layer = 2 * norm + size * (inputs + heads + wide)
    loss = 0 if config.family == "bert" else size * d + 4 * config.vocab_size
    return config.n_layers * layer + norm + loss


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:  # nor NaN
            raise ValueError(f"{name} is {value!r}; it must be a number above 0.")


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
