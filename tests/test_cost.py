"""Parameters counted by formula: equal to the models' own count, and to the published ones."""

import time
from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmnb import cost, profiles
from llmnb.transformer import Decoder, Encoder, TransformerConfig

SIZES = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "n_positions": 9}
TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "BertModel": transformers.BertConfig(**TINY, intermediate_size=37, max_position_embeddings=17),
    "GPT2LMHeadModel": transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=17
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(
        **TINY, num_key_value_heads=2, intermediate_size=37, tie_word_embeddings=False
    ),
    "Qwen3ForCausalLM": transformers.Qwen3Config(
        **TINY, num_key_value_heads=2, intermediate_size=37, head_dim=16, tie_word_embeddings=True
    ),
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_equals_the_models_own_count(architecture):
    model = getattr(transformers, architecture)(CONFIGS[architecture])
    shape = cost.shape_of(model.config)
    assert cost.total_parameters(shape, pooler=True) == model.num_parameters()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("bert", {"norm_first": True, "tied": False, "n_token_types": 0}),
        ("gpt2", {"tied": False, "norm_first": False, "head_dim": 16}),
        ("gpt2", {"positions": "sinusoidal", "activation": "swiglu", "norm": "rms"}),
        ("llama", {"n_kv_heads": 2, "tied": True, "bias": True}),
        ("llama", {"positions": "learned", "activation": "relu"}),
        ("qwen3", {"n_kv_heads": 1, "head_dim": 24, "norm": "layer"}),
    ],
)
def test_every_field_of_the_shape_counts_as_in_our_models(family, options):
    config = TransformerConfig.of(family, **SIZES | options)
    model = (Encoder if family == "bert" else Decoder)(config)
    assert cost.total_parameters(config) == sum(p.numel() for p in model.parameters())


def test_the_parts_are_where_the_model_has_them():
    model = transformers.GPT2LMHeadModel(CONFIGS["GPT2LMHeadModel"])
    parts = cost.count_parameters(cost.shape_of(model.config))
    named = dict(model.named_parameters())
    assert parts["attention"] == sum(p.numel() for n, p in named.items() if ".attn." in n)
    assert parts["feed_forward"] == sum(p.numel() for n, p in named.items() if ".mlp." in n)
    assert parts["norms"] == sum(p.numel() for n, p in named.items() if "ln_" in n)


def test_a_bert_without_its_pooler():
    model = transformers.BertModel(CONFIGS["BertModel"], add_pooling_layer=False)
    assert cost.total_parameters(cost.shape_of(model.config)) == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("BERT-base", 109.48),
        ("BERT-large", 335.14),
        ("GPT-2", 124.44),
        ("GPT-2 Medium", 354.82),
        ("GPT-2 Large", 774.03),
        ("GPT-2 XL", 1557.61),
    ],
)
def test_published_checkpoints(name, millions):
    shape, published = cost.PUBLISHED[name]
    assert published == millions
    assert round(cost.total_parameters(shape, pooler=True) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "millions", "unit"),
    [
        ("GPT-3 Small", 125, 1),
        ("GPT-3 Medium", 356, 1),
        ("GPT-3 Large", 760, 1),
        ("GPT-3 XL", 1_320, 10),
        ("GPT-3 2.7B", 2_650, 10),
        ("GPT-3 6.7B", 6_660, 10),
        ("GPT-3 13B", 12_850, 10),
        ("GPT-3 175B", 174_600, 100),
    ],
)
def test_gpt3_table_d1(name, millions, unit):
    shape, published = cost.GPT3[name]
    assert published == millions
    assert round(cost.total_parameters(shape) / 1e6 / unit) * unit == millions


SMALL = {"vocab_size": 2003, "d_model": 128, "n_layers": 4, "n_heads": 4, "n_positions": 264}
SMALL_DECODERS = {
    "gpt2": TransformerConfig.of("gpt2", **SMALL, d_ff=512),
    "gpt2, relu, untied": TransformerConfig.of(
        "gpt2", **SMALL, d_ff=512, activation="relu", tied=False
    ),
    "llama": TransformerConfig.of("llama", **SMALL, d_ff=344),
    "llama, shared heads": TransformerConfig.of("llama", **SMALL, d_ff=344, n_kv_heads=2),
    "qwen3": TransformerConfig.of("qwen3", **SMALL, d_ff=344, n_kv_heads=2, head_dim=64),
}


@pytest.mark.parametrize("kind", SMALL_DECODERS)
def test_flops_are_those_that_torch_counts(kind):
    model, ids = Decoder(SMALL_DECODERS[kind]), torch.randint(2003, (2, 24))
    with sdpa_kernel(SDPBackend.MATH):  # plain products, which the counter sees
        with FlopCounterMode(display=False) as forward:
            logits = model(ids)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    counted = [forward.get_total_flops(), backward.get_total_flops()]
    one_way = ids.numel() * cost.flops_per_token(model.config, 24, backward=False)
    assert counted == [one_way, 2 * one_way]
    assert sum(counted) == ids.numel() * cost.flops_per_token(model.config, 24)


def test_flops_of_an_encoder_have_no_head():
    config = TransformerConfig.of("bert", **SMALL, d_ff=512)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        Encoder(config)(torch.randint(2003, (2, 24)))
    assert forward.get_total_flops() == 48 * cost.flops_per_token(config, 24, backward=False)


def test_attention_is_palms_12lhqt():
    config, _ = cost.GPT3["GPT-3 175B"]
    more = cost.flops_per_token(config, 2048) - cost.flops_per_token(config, 1024)
    assert more == 12 * 96 * 96 * 128 * 1024


def test_published_training_runs():
    # Brown et al. 2020, table D.1; Hoffmann et al. 2022, table 3 (Gopher's and Chinchilla's budget)
    gpt3 = cost.total_parameters(cost.GPT3["GPT-3 175B"][0])
    assert cost.training_flops(gpt3, 300e9) == pytest.approx(3.14e23, rel=0.02)
    assert cost.training_flops(70e9, 1.4e12) == pytest.approx(5.76e23, rel=0.05)


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [  # Hoffmann et al. 2022, table 3
        (1.92e19, 400e6, 8.0e9),
        (1.21e20, 1e9, 20.2e9),
        (1.23e22, 10e9, 205.1e9),
        (5.76e23, 67e9, 1.5e12),
        (3.85e24, 175e9, 3.7e12),
        (1.27e26, 1e12, 21.2e12),
    ],
)
def test_compute_optimal_is_chinchillas_table(flops, parameters, tokens):
    found = cost.compute_optimal(flops)
    assert found == pytest.approx((parameters, tokens), rel=0.08)
    assert cost.training_flops(*found) == pytest.approx(flops)
    assert cost.compute_optimal(flops, 80) == pytest.approx((found[0] / 2, found[1] * 2))


def kept_for_backward(model, ids, dtype) -> int:
    """Bytes that the forward pass of a training step saves, parameters apart, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # kept alive: no address comes twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten())
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", SMALL_DECODERS)
def test_activations_are_what_the_forward_pass_keeps(kind, dtype):
    """Of more than 256 tokens: shorter ones in bf16 on a CPU keep attention's weights as well."""
    model, ids = Decoder(SMALL_DECODERS[kind]).train(), torch.randint(2003, (2, 264))
    estimate = cost.training_memory(model.config, 2, 264, dtype=dtype)
    matrices = (*model.blocks.parameters(), model.head.weight)
    copies = 2 * sum(p.numel() for p in matrices if p.dim() == 2) if dtype == "bf16" else 0
    assert estimate["weights"] == 4 * cost.total_parameters(model.config) + copies
    kept = kept_for_backward(model, ids, profiles.dtype(dtype)) - copies
    assert estimate["activations"] == pytest.approx(kept, rel=0.05)


def test_gpt2_keeps_what_korthikanti_et_al_count():
    config = cost.gpt(768, 12, 12)
    one, two = (
        cost.training_memory(replace(config, n_layers=n), 1, 1)["activations"] for n in (1, 2)
    )
    assert (two - one) / 768 / 4 == (34 - 2) / 2  # numbers; of their bytes two are dropout masks


@pytest.mark.parametrize("kind", SMALL_DECODERS)
def test_the_optimizers_states(kind):
    model = Decoder(SMALL_DECODERS[kind])
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    n_parameters = sum(p.numel() for p in model.parameters())
    adamw = cost.training_memory(model.config, 1, 8)
    muon = cost.training_memory(model.config, 1, 8, optimizer="muon")
    assert adamw["optimizer"] == 2 * adamw["gradients"] == 8 * n_parameters
    assert muon == adamw | {"optimizer": 8 * n_parameters - 4 * matrices}
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert adamw["optimizer"] == sum(t.numel() * t.element_size() for t in states)


def test_weight_bytes():
    assert [cost.weight_bytes(1000, p) for p in cost.BITS] == [4000, 2000, 1000, 500]
    with pytest.raises(ValueError, match=r"precision is 'fp8'; choose one of fp32, bf16"):
        cost.weight_bytes(1, "fp8")


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="no formula for 't5'"):
        cost.shape_of(transformers.T5Config())
    with pytest.raises(ValueError, match="no formula for 'distilbert'"):
        cost.shape_of(transformers.DistilBertConfig())
    with pytest.raises(ValueError, match="no formula for None"):
        cost.count_parameters(TransformerConfig.of("original", **SIZES))
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        cost.count_parameters(cost.gpt(100, 1, 3))
    assert cost.total_parameters(replace(cost.gpt(100, 1, 3), head_dim=32)) > 0


def test_scaled_rotary_positions_have_no_parameters_either():
    config = transformers.LlamaConfig(
        **TINY,
        intermediate_size=37,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    )
    model = transformers.LlamaForCausalLM(config)
    assert cost.total_parameters(cost.shape_of(config)) == model.num_parameters()


def test_the_machines_memory():
    import psutil

    assert cost.machine_memory()["memory"] == psutil.virtual_memory().total


def test_llama_65bs_training_run():
    # Touvron et al. 2023, section 2.4: "380 tokens/sec/GPU on 2048 A100", 1.4T tokens, 21 days.
    config = TransformerConfig.of(
        "llama",
        vocab_size=32000,
        d_model=8192,
        n_layers=80,
        n_heads=64,
        d_ff=22016,
        n_positions=2048,
    )
    n_parameters, a100 = cost.total_parameters(config), cost.HARDWARE["A100"]
    assert n_parameters // 1e8 == 652  # table 2: 65.2B
    seconds = 1.4e12 / (380 * 2048)
    assert round(seconds / 86400) == 21
    flops = cost.training_flops(n_parameters, 1.4e12)
    share = cost.utilisation(flops, seconds, a100, 2048)
    assert share == pytest.approx(0.47, abs=0.01)
    with_attention = 1.4e12 * cost.flops_per_token(config, 2048)
    assert cost.utilisation(with_attention, seconds, a100, 2048) == pytest.approx(0.49, abs=0.01)
    assert cost.training_seconds(flops, a100, 2048, share) == pytest.approx(seconds)
    # Table 15: 1,022,362 GPU-hours, 449 MWh with a power usage effectiveness of 1.1.
    assert 1.1 * cost.energy_kwh(1_022_362 * 3600, a100) == pytest.approx(449e3, rel=0.005)
    assert cost.energy_kwh(3600, a100, 10) == pytest.approx(4)


def test_the_peaks_are_without_sparsity():
    # NVIDIA's sheets, with sparsity: A100 624 and H100 SXM 1,979 TFLOPS in bf16. T4: 65 in fp16.
    peaks = {name: each.peak_flops for name, each in cost.HARDWARE.items()}
    assert peaks == pytest.approx({"T4": 65e12, "A100": 624e12 / 2, "H100": 1979e12 / 2}, rel=1e-3)
    assert [each.watts for each in cost.HARDWARE.values()] == [70, 400, 700]


def test_seconds_and_dollars():
    t4 = cost.HARDWARE["T4"]
    assert cost.training_seconds(65e12 * 100, t4) == pytest.approx(250)  # at 40 %
    assert cost.training_seconds(65e12 * 100, t4, 4, 0.5) == pytest.approx(50)
    assert cost.utilisation(65e12 * 100, 400, t4, 1) == pytest.approx(0.25)
    assert cost.dollars(24 * 3600, 2.5, 8) == pytest.approx(480)
    assert cost.dollars(1800, 3.0) == pytest.approx(1.5)


def test_this_machine(monkeypatch, one_thread):
    monkeypatch.setattr(cost.profiles, "device", lambda: "cpu")
    fast = cost.measure_flops("fp32", seconds=0.02, size=256)
    left, product, times = torch.randn(256, 256), torch.empty(256, 256), []
    for _ in range(50):
        start = time.perf_counter()
        torch.mm(left, left, out=product)
        times.append(time.perf_counter() - start)
    assert fast == pytest.approx(2 * 256**3 / min(times), rel=0.8)  # other work may be beside it
    here = cost.this_machine(fast, watts=45)
    assert (here.peak_flops, here.watts, here.dollars_per_hour) == (fast, 45, 0)
    assert here.memory_bytes in cost.machine_memory().values()


def test_the_best_product_counts(monkeypatch):
    clock = iter((0, 0, 2, 3, 3.5, 4, 5, 5.5, 6, 6.75, 7))  # 3 products, 1 more, the end
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.measure_flops("fp32", seconds=6, size=10) == 2000 / 0.5


A100 = cost.HARDWARE["A100"]
WRONG = {
    "seq is 0": lambda: cost.flops_per_token(cost.gpt(64, 1, 2), 0),
    "n_parameters is -1": lambda: cost.training_flops(-1, 10),
    "n_tokens is 0": lambda: cost.training_flops(10, 0),
    "flops is nan": lambda: cost.compute_optimal(float("nan")),
    "tokens_per_parameter is 0": lambda: cost.compute_optimal(1e18, 0),
    "batch_size is 0": lambda: cost.training_memory(cost.gpt(64, 1, 2), 0, 8),
    "seq is -8": lambda: cost.training_memory(cost.gpt(64, 1, 2), 1, -8),
    "optimizer is 'sgd'; choose one of adamw": lambda: cost.training_memory(
        cost.gpt(64, 1, 2), 1, 8, "sgd"
    ),
    "dtype is 'int8'; choose one of fp32": lambda: cost.training_memory(
        cost.gpt(64, 1, 2), 1, 8, dtype="int8"
    ),
    "peak_flops is 0": lambda: cost.training_seconds(1e18, cost.Hardware("none", 0, 10)),
    "peak_flops is -5": lambda: cost.utilisation(1e18, 10, cost.Hardware("none", -5, 10)),
    "seconds is 0": lambda: cost.measure_flops("fp32", seconds=0),
    "size is 0": lambda: cost.measure_flops("fp32", size=0),
    "flops is 0": lambda: cost.training_seconds(0, A100),
    "n_devices is 0": lambda: cost.training_seconds(1e18, A100, 0),
    "utilisation is 0;": lambda: cost.training_seconds(1e18, A100, utilisation=0),
    "utilisation is 1.1": lambda: cost.training_seconds(1e18, A100, utilisation=1.1),
    "flops is -1": lambda: cost.utilisation(-1, 10, A100),
    "seconds is -10": lambda: cost.utilisation(1e18, -10, A100),
    "n_devices is -2": lambda: cost.utilisation(1e18, 10, A100, -2),
    "seconds is inf": lambda: cost.energy_kwh(float("inf"), A100),
    "watts is 0": lambda: cost.energy_kwh(10, cost.Hardware("unknown", 1e12, 10)),
    "n_devices is -1": lambda: cost.energy_kwh(10, A100, -1),
    "seconds is -1": lambda: cost.dollars(-1, 2),
    "price_per_hour is 0": lambda: cost.dollars(3600, A100.dollars_per_hour),
    "n_devices is -3": lambda: cost.dollars(3600, 2, -3),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
