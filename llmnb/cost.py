"""What a model costs: parameters, arithmetic, memory and time, from its configuration."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from llmnb import checkpoints, hardware
from llmnb.transformer import TransformerConfig

FAMILIES = tuple(checkpoints.SETTINGS)


def _need_formula(family: str | None) -> None:
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"There is no formula for {family!r}; there is for {known}.")


def _need_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")


def _need_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:  # False for NaN, too
            raise ValueError(f"{name} is {value!r}; it must be a number above 0.")


def shape_of(config) -> TransformerConfig:
    """Our configuration of a model, from its transformers config.

    The kind of rotary positions is left out, because they have no parameters. Raises
    ValueError for a family without a formula, or an option that TransformerConfig lacks.
    """
    family = config.model_type
    _need_formula(family)
    shape = config.to_dict() | dict.fromkeys(("rope_parameters", "rope_scaling"))
    return TransformerConfig.of(family, **checkpoints.settings(family, shape))


def _classic(family: str, *sizes: int) -> TransformerConfig:
    names = ("vocab_size", "n_positions", "d_model", "n_layers", "n_heads")
    named = dict(zip(names, sizes, strict=True))
    return TransformerConfig.of(family, **named, d_ff=4 * named["d_model"])


def gpt(d_model: int, n_layers: int, n_heads: int, n_positions: int = 1024) -> TransformerConfig:
    """GPT-2's and GPT-3's shape: 50,257 tokens, a feed-forward layer four times as wide.

    Source: Radford et al. 2019, section 2.3; Brown et al. 2020, table 2.1.
    """
    return _classic("gpt2", 50257, n_positions, d_model, n_layers, n_heads)


# Its shape, and the parameters (in millions). Source: Brown et al. 2020, tables 2.1 and D.1.
GPT3 = gpt(12288, 96, 96, 2048), 174_600
# Devlin et al. 2019 and Radford et al. 2019, with the counts of the released checkpoints
# (in millions; BERT with its pooler).
PUBLISHED = {
    "BERT-base": (_classic("bert", 30522, 512, 768, 12, 12), 109.48),
    "BERT-large": (_classic("bert", 30522, 512, 1024, 24, 16), 335.14),
    "GPT-2": (gpt(768, 12, 12), 124.44),
    "GPT-2 Medium": (gpt(1024, 24, 16), 354.82),
    "GPT-2 Large": (gpt(1280, 36, 20), 774.03),
    "GPT-2 XL": (gpt(1600, 48, 25), 1_557.61),
}


def _widths(config: TransformerConfig) -> tuple[int, int]:
    """The width of all heads together: of the queries, and of the keys (or values)."""
    n_heads, n_kv_heads, head_dim = config.heads
    return n_heads * head_dim, n_kv_heads * head_dim


def _matrices(config: TransformerConfig) -> tuple[int, int, int]:
    """Weights of the matrices: in a layer's attention, its feed-forward part, the head."""
    _need_formula(config.family)
    d, n_heads = config.d_model, config.n_heads
    if config.head_dim is None and d % n_heads:
        raise ValueError(f"d_model {d} is not divisible by {n_heads} heads; give head_dim.")
    query, key = _widths(config)
    gated = config.activation == "swiglu"
    head = 0 if config.family == "bert" else config.vocab_size * d  # an Encoder has none
    return d * (2 * query + 2 * key), (3 if gated else 2) * d * config.d_ff, head


def count_parameters(config: TransformerConfig, pooler: bool = False) -> dict[str, int]:
    """Parameters by part: embeddings, attention, feed_forward, norms, pooler, head.

    The values add up to the model's number of parameters; tied weights count once. pooler:
    whether a BERT has transformers' pooling layer; the other families never have one. Raises
    ValueError for a family without a formula, or heads that don't divide d_model.
    """
    d, n_layers, bert = config.d_model, config.n_layers, config.family == "bert"
    attention, feed_forward, head = _matrices(config)
    if config.bias:
        query, key = _widths(config)
        attention += query + 2 * key + d
        feed_forward += config.d_ff * (2 if config.activation == "swiglu" else 1) + d
    positions = config.n_positions if config.positions == "learned" else 0
    # Two in a layer, one after BERT's embeddings, one at the end where norms come first.
    n_norms = 2 * n_layers + bert + config.norm_first
    norms = n_norms * (d if config.norm == "rms" else 2 * d)
    return {
        "embeddings": (config.vocab_size + positions + config.n_token_types) * d,
        "attention": n_layers * attention,
        "feed_forward": n_layers * feed_forward,
        "norms": norms + (2 * n_layers * config.heads[2] if config.qk_norm else 0),
        "pooler": d * d + d if pooler and bert else 0,
        "head": 0 if config.tied else head,
    }


def total_parameters(config: TransformerConfig, pooler: bool = False) -> int:
    """All parameters of a model of this shape; see `count_parameters`."""
    return sum(count_parameters(config, pooler).values())


def flops_per_token(config: TransformerConfig, seq: int, backward: bool = True) -> int:
    """Floating-point operations of the matrix products for one token.

    A multiplication and an addition count as 2. Every weight of a matrix is used once: the
    layers' matrices, and a decoder's head, tied or not; looking up an embedding costs nothing.
    Attention multiplies each query with seq keys and its weights with seq values: the full
    square, though a causal kernel may skip half of it. backward: whether to add the backward
    pass, which has two products for each one of the forward pass; what a kernel computes again
    doesn't count. Raises ValueError for a seq below 1, and as count_parameters does.
    Source: Chowdhery et al. 2022, appendix B.
    """
    _need_positive(seq=seq)
    attention, feed_forward, head = _matrices(config)
    context = 2 * seq * _widths(config)[0]  # QKᵀ and weights times V: 12·L·H·Q·T in all
    products = config.n_layers * (attention + feed_forward + context) + head
    return 2 * products * (3 if backward else 1)


def training_flops(n_parameters: float, n_tokens: float) -> float:
    """C ≈ 6ND, the FLOPs of training N parameters on D tokens: 2ND forward, 4ND backward.

    Attention's own products are left out; `flops_per_token` has them. Raises ValueError for
    a number that isn't above 0. Source: Kaplan et al. 2020, section 2.1, where N is without
    the embeddings.
    """
    _need_positive(n_parameters=n_parameters, n_tokens=n_tokens)
    return 6.0 * n_parameters * n_tokens


def compute_optimal(flops: float, tokens_per_parameter: float = 20.0) -> tuple[float, float]:
    """Parameters and tokens that give the lowest loss for a number of FLOPs, by C = 6ND.

    The authors' table has about 20 tokens for each parameter. Raises ValueError for a number
    that isn't above 0. Source: Hoffmann et al. 2022, section 3, table 3.
    """
    _need_positive(flops=flops, tokens_per_parameter=tokens_per_parameter)
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

    Weights, gradients and optimizer states are fp32. dtype: fp32, or bf16 or fp16 for
    autocast, which stores a 16-bit copy of each matrix, counted with the weights. optimizer:
    adamw (two states for each parameter) or muon (one for the layers' matrices, two for the
    rest). Activations are the large tensors that the forward pass stores for the backward
    pass, log-probabilities included, with fused attention and no dropout, when nothing is
    computed again. The gradients of the logits, up to 8 bytes for each token and entry of the
    vocabulary, are not included: they come at the start of the backward pass, when there are no
    other gradients yet. Raises ValueError as count_parameters does, and for an unknown choice
    or a size below 1. Source: Korthikanti et al. 2022, section 4.1, without the term 5·a·s²·b
    of attention that isn't fused; Jordan 2024 (Muon).
    """
    _need_positive(batch_size=batch_size, seq=seq)
    _need_known("optimizer", optimizer, ("adamw", "muon"))
    _need_known("dtype", dtype, ("fp32", "bf16", "fp16"))
    autocast = dtype != "fp32"
    n_parameters, (*layer, head) = total_parameters(config), _matrices(config)
    in_layers = config.n_layers * sum(layer)
    return {
        "weights": 4 * n_parameters + (2 * (in_layers + head) if autocast else 0),
        "gradients": 4 * n_parameters,
        "optimizer": 8 * n_parameters - (4 * in_layers if optimizer == "muon" else 0),
        "activations": batch_size * seq * _activation_bytes(config, autocast),
    }


def _activation_bytes(config: TransformerConfig, autocast: bool) -> int:
    """Bytes for each token that llmnb.transformer stores for the backward pass.

    With GPT-2's shape a layer stores 16 numbers for each dimension of d_model. Korthikanti et
    al. count 34 bytes: 16 numbers of 2 bytes, and two dropout masks, which aren't here.
    """
    d, is_gated = config.d_model, config.activation == "swiglu"
    query, key = _widths(config)
    size = 2 if autocast else 4
    # A norm stores its input in fp32; RMSNorm its output, too (unless it is fused, on CUDA).
    norm = 4 * d * (2 if config.norm == "rms" else 1)
    # Q, K and V share their input, as up and gate do; autocast makes a copy for each product.
    inputs = d * ((5 if is_gated else 4) if autocast else 2)
    heads = 2 * query + 2 * key  # queries, keys, values, and the output of attention
    if config.qk_norm:  # before and after the norm; and attention's output in two layouts
        heads += 2 * (query + key) + query
    # The result of up and its activation; for relu one of them is enough. With a gate: the
    # gate, its activation, the result of up, and their product.
    feed_forward = config.d_ff * {"relu": 1, "swiglu": 4}.get(config.activation, 2)
    layer = 2 * norm + size * (inputs + heads + feed_forward)
    loss = 0 if config.family == "bert" else size * d + 4 * config.vocab_size
    return config.n_layers * layer + norm + loss


def machine_memory() -> Mapping[str, int]:
    """Bytes of this machine's "memory", and of its "gpu" where there is CUDA."""
    import psutil

    sizes = {"memory": psutil.virtual_memory().total}
    if hardware.has_cuda():
        import torch

        sizes["gpu"] = torch.cuda.mem_get_info()[1]
    return sizes


@dataclass(frozen=True)
class Hardware:
    """One device to train on."""

    name: str
    peak_flops: float  # FLOP/s of dense matrix products, in the dtype that it trains in
    memory_bytes: int  # that a model can use
    watts: float = 0  # under full load; 0: not known
    dollars_per_hour: float = 0  # your price; 0: not known


# NVIDIA's data sheets: fp16 on a T4, bf16 on the others, without sparsity. Colab leaves 15 of
# the T4's 16 GB. Prices change: set your own, replace(HARDWARE["H100"], dollars_per_hour=2.5).
HARDWARE = {
    "T4": Hardware("NVIDIA T4 (free in Colab)", 65e12, 15_000_000_000, 70),
    "A100": Hardware("NVIDIA A100 SXM 80 GB", 312e12, 80_000_000_000, 400),
    "H100": Hardware("NVIDIA H100 SXM 80 GB", 989e12, 80_000_000_000, 700),
}


def this_machine(flops: float, watts: float = 0) -> Hardware:
    """This machine, with flops from `measure_flops` and the memory that a model can use."""
    sizes = machine_memory()
    return Hardware("this machine", flops, sizes.get("gpu", sizes["memory"]), watts)


def measure_flops(dtype: str = "auto", seconds: float = 0.5, size: int | None = None) -> float:
    """FLOP/s of this machine's matrix products: the fastest of those that fit into seconds.

    The matrices are (size, size), by default 1,024 on a CPU and 8,192 elsewhere, on the device
    that models run on. dtype: as in hardware.dtype. Raises ValueError for an unknown dtype, or
    a number that isn't above 0.
    """
    import torch

    device = hardware.device()
    size = (1024 if device == "cpu" else 8192) if size is None else size
    _need_positive(seconds=seconds, size=size)
    options = {"device": device, "dtype": hardware.dtype(dtype, device)}
    left, right, product = (torch.randn(size, size, **options) for _ in range(3))
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def training_seconds(
    flops: float, hardware: Hardware, n_devices: int = 1, utilization: float = 0.4
) -> float:
    """Seconds for a number of FLOPs at a share of the peak.

    Raises ValueError for a number that isn't above 0, or a utilization above 1.
    Source: Chowdhery et al. 2022, appendix B, solved for the time.
    """
    _need_positive(flops=flops, n_devices=n_devices, peak_flops=hardware.peak_flops)
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization is {utilization!r}; it must be above 0, at most 1.")
    return flops / (n_devices * hardware.peak_flops * utilization)


def utilization(flops: float, seconds: float, hardware: Hardware, n_devices: int = 1) -> float:
    """Model FLOPs utilization (MFU): the share of the peak that a run reached, 0 to 1.

    flops: those that the model needs, even if more were computed. Raises ValueError for a
    number that isn't above 0. Source: Chowdhery et al. 2022, section 4.1 and appendix B.
    """
    peak_flops = hardware.peak_flops
    _need_positive(flops=flops, seconds=seconds, n_devices=n_devices, peak_flops=peak_flops)
    return flops / (seconds * n_devices * peak_flops)


def energy_kwh(seconds: float, hardware: Hardware, n_devices: int = 1) -> float:
    """Kilowatt-hours of the devices under full load, without cooling and host computers.

    Raises ValueError for a number that isn't above 0, such as watts that aren't known.
    Source: Touvron et al. 2023, section 6, who multiply by 1.1 for the rest of the building.
    """
    _need_positive(seconds=seconds, watts=hardware.watts, n_devices=n_devices)
    return seconds / 3600 * n_devices * hardware.watts / 1000


def dollars(seconds: float, price_per_hour: float, n_devices: int = 1) -> float:
    """The rent, at a price for one device and hour: dollars(24 * 3600, 2.5, 8) is 480.

    Raises ValueError for a number that isn't above 0.
    """
    _need_positive(seconds=seconds, price_per_hour=price_per_hour, n_devices=n_devices)
    return seconds / 3600 * price_per_hour * n_devices
