"""What a model costs: by formula, by its own parameters and tensors, and as published."""

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmnb import cost, hardware
from llmnb.fast_linear import optimize_for_cpu
from llmnb.transformer import Decoder, Encoder, TransformerConfig

SIZES = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "n_positions": 9}
TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = TINY | {"intermediate_size": 37}
GPT2 = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=17)
SCALED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}  # adds no parameters
GROUPED = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
MODELS = [
    (transformers.BertModel, transformers.BertConfig(**WIDE, max_position_embeddings=17)),
    (transformers.GPT2LMHeadModel, GPT2),
    (transformers.LlamaForCausalLM, transformers.LlamaConfig(**WIDE, rope_parameters=SCALED)),
    (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**WIDE, **GROUPED)),
]


@pytest.mark.parametrize(("architecture", "config"), MODELS)
def test_parameters_are_as_many_as_the_models_own(architecture, config):
    count = cost.total_parameters(cost.shape_of(config), pooler=True)
    assert count == architecture(config).num_parameters()
    if architecture is transformers.BertModel:
        model = architecture(config, add_pooling_layer=False)
        assert cost.total_parameters(cost.shape_of(config)) == model.num_parameters()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"norm_first": True, "tied": False, "n_token_types": 0}),
        ("gpt2", {"tied": False, "norm_first": False, "head_dim": 16}),
        ("gpt2", {"positions": "sinusoidal", "activation": "swiglu", "norm": "rms"}),
        ("llama", {"n_kv_heads": 2, "tied": True, "bias": True}),
        ("qwen3", {"positions": "learned", "activation": "relu", "norm": "layer"}),
    ],
)
def test_every_field_of_the_shape_counts_as_in_our_models(family, options):
    config = TransformerConfig.of(family, **SIZES | options)
    model = (Encoder if family == "bert" else Decoder)(config)
    assert cost.total_parameters(config) == sum(p.numel() for p in model.parameters())


def test_the_parts_are_where_the_model_has_them():
    parts = cost.count_parameters(cost.shape_of(GPT2))
    named = dict(transformers.GPT2LMHeadModel(GPT2).named_parameters())
    for part, name in {"attention": ".attn.", "feed_forward": ".mlp.", "norms": "ln_"}.items():
        assert parts[part] == sum(p.numel() for n, p in named.items() if name in n)


@pytest.mark.parametrize("name", cost.PUBLISHED)
def test_published_checkpoints(name):
    shape, millions = cost.PUBLISHED[name]
    assert round(cost.total_parameters(shape, pooler=True) / 1e6, 2) == millions


def test_gpt3_table_d1():
    shape, millions = cost.GPT3
    assert round(cost.total_parameters(shape) / 1e8) * 100 == millions


SMALL = {"vocab_size": 2003, "d_model": 128, "n_layers": 4, "n_heads": 4, "n_positions": 264}
RELU = {"activation": "relu", "tied": False}
SMALL_MODELS = {
    "bert": TransformerConfig.of("bert", **SMALL, d_ff=512),
    "gpt2, relu, untied": TransformerConfig.of("gpt2", **SMALL, **RELU, d_ff=512),
    "llama": TransformerConfig.of("llama", **SMALL, d_ff=344),
    "qwen3": TransformerConfig.of("qwen3", **SMALL, d_ff=344, n_kv_heads=2, head_dim=64),
}
DECODERS = [SMALL_MODELS[name] for name in SMALL_MODELS if name != "bert"]
every_decoder = pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.family)


@pytest.mark.parametrize("kind", SMALL_MODELS)
def test_flops_are_those_that_torch_counts(kind):
    config, ids = SMALL_MODELS[kind], torch.randint(2003, (2, 24))
    model = Encoder(config) if kind == "bert" else Decoder(config)
    with sdpa_kernel(SDPBackend.MATH):  # plain products, which the counter sees
        with FlopCounterMode(display=False) as forward:
            output = model(ids)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
    one_way = ids.numel() * cost.flops_per_token(config, 24, backward=False)
    assert [forward.get_total_flops(), backward.get_total_flops()] == [one_way, 2 * one_way]
    assert 3 * one_way == ids.numel() * cost.flops_per_token(config, 24)


def test_published_training_runs():
    # Brown et al. 2020, table D.1; Hoffmann et al. 2022, table 3 (Gopher's and Chinchilla's budget)
    gpt3 = cost.total_parameters(cost.GPT3[0])
    assert cost.training_flops(gpt3, 300e9) == pytest.approx(3.14e23, rel=0.02)
    assert cost.training_flops(70e9, 1.4e12) == pytest.approx(5.76e23, rel=0.05)


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [  # Hoffmann et al. 2022, table 3
        (1.92e19, 400e6, 8.0e9),
        (5.76e23, 67e9, 1.5e12),
        (1.27e26, 1e12, 21.2e12),
    ],
)
def test_compute_optimal_is_chinchillas_table(flops, parameters, tokens):
    n_parameters, n_tokens = cost.compute_optimal(flops)
    assert (n_parameters, n_tokens) == pytest.approx((parameters, tokens), rel=0.08)
    assert cost.training_flops(n_parameters, n_tokens) == pytest.approx(flops)
    assert cost.compute_optimal(flops, 80) == pytest.approx((n_parameters / 2, n_tokens * 2))


def saved_for_backward(model, ids, dtype) -> int:
    """Bytes that a training step's forward pass saves, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten())
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@every_decoder
def test_activations_are_what_the_forward_pass_saves(config, dtype):
    """Of more than 256 tokens: shorter ones in bf16 on a CPU save attention's weights as well."""
    model = optimize_for_cpu(Decoder(config)).train()  # as in pretraining
    estimate = cost.training_memory(config, 2, 264, dtype=dtype)
    matrices = (*model.blocks.parameters(), model.head.weight)
    copies = 2 * sum(p.numel() for p in matrices if p.dim() == 2) if dtype == "bf16" else 0
    assert estimate["weights"] == 4 * cost.total_parameters(config) + copies
    saved = saved_for_backward(model, torch.randint(2003, (2, 264)), hardware.dtype(dtype))
    assert estimate["activations"] == pytest.approx(saved - copies, rel=0.05)


def test_gpt2_keeps_what_korthikanti_et_al_count():
    deep = cost.training_memory(cost.gpt(768, 13, 12), 1, 1)["activations"]
    layer = deep - cost.training_memory(cost.gpt(768, 12, 12), 1, 1)["activations"]
    assert layer / 768 / 4 == (34 - 2) / 2  # numbers; of their bytes two are dropout masks


@every_decoder
def test_the_optimizers_states(config):
    model = Decoder(config)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    n_parameters = sum(p.numel() for p in model.parameters())
    adamw = cost.training_memory(config, 1, 8)
    muon = cost.training_memory(config, 1, 8, optimizer="muon")
    assert adamw["optimizer"] == 2 * adamw["gradients"] == 8 * n_parameters
    assert muon == adamw | {"optimizer": 8 * n_parameters - 4 * matrices}


def test_llama_65bs_training_run():
    # Touvron et al. 2023, section 2.4: "380 tokens/sec/GPU on 2048 A100", 1.4T tokens, 21 days.
    sizes = {"vocab_size": 32000, "d_model": 8192, "n_layers": 80, "n_heads": 64}
    config = TransformerConfig.of("llama", **sizes, d_ff=22016, n_positions=2048)
    n_parameters, a100 = cost.total_parameters(config), cost.HARDWARE["A100"]
    assert n_parameters // 1e8 == 652  # table 2: 65.2B
    seconds = 1.4e12 / (380 * 2048)
    assert round(seconds / 86400) == 21
    flops = cost.training_flops(n_parameters, 1.4e12)
    share = cost.utilization(flops, seconds, a100, 2048)
    assert share == pytest.approx(0.47, abs=0.01)
    with_attention = 1.4e12 * cost.flops_per_token(config, 2048)
    assert cost.utilization(with_attention, seconds, a100, 2048) == pytest.approx(0.49, abs=0.01)
    assert cost.training_seconds(flops, a100, 2048, share) == pytest.approx(seconds)
    # Table 15: 1,022,362 GPU-hours, 449 MWh with a power usage effectiveness of 1.1.
    assert 1.1 * cost.energy_kwh(1_022_362 * 3600, a100) == pytest.approx(449e3, rel=0.005)
    assert cost.energy_kwh(3600, a100, 10) == pytest.approx(4)


def test_seconds_and_dollars():
    t4 = cost.HARDWARE["T4"]
    assert cost.training_seconds(65e12 * 100, t4) == pytest.approx(250)  # at 40 %
    assert cost.training_seconds(65e12 * 100, t4, 4, 0.5) == pytest.approx(50)
    assert cost.dollars(24 * 3600, 2.5, 8) == pytest.approx(480)
    assert cost.dollars(1800, 3.0) == pytest.approx(1.5)


def test_this_machine_has_its_own_memory():
    import psutil

    memory = cost.machine_memory()
    here = cost.this_machine(1e12, watts=45)
    assert memory["memory"] == psutil.virtual_memory().total
    assert (here.peak_flops, here.watts, here.dollars_per_hour) == (1e12, 45, 0)
    assert here.memory_bytes == memory.get("gpu", memory["memory"])


def test_the_best_product_counts(monkeypatch):
    clock = iter((0, 0, 2, 3, 3.5, 4, 5, 5.5, 6, 6.75, 7))  # 3 products, 1 more, the end
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.measure_flops("fp32", seconds=6, size=10) == 2000 / 0.5


A100 = cost.HARDWARE["A100"]
LAYER = cost.gpt(64, 1, 2)
WRONG = {
    "no formula for 't5'": lambda: cost.shape_of(transformers.T5Config()),
    "no formula for None": lambda: cost.count_parameters(TransformerConfig.of("original", **SIZES)),
    "not divisible by 3 heads": lambda: cost.count_parameters(cost.gpt(100, 1, 3)),
    "seq is 0": lambda: cost.flops_per_token(LAYER, 0),
    "batch_size is 0": lambda: cost.training_memory(LAYER, 0, 8),
    "optimizer is 'sgd'; choose one of adamw": lambda: cost.training_memory(LAYER, 1, 8, "sgd"),
    "dtype is 'int8'; choose one of": lambda: cost.training_memory(LAYER, 1, 8, dtype="int8"),
    "peak_flops is 0": lambda: cost.training_seconds(1e18, cost.Hardware("none", 0, 10)),
    "seconds is 0": lambda: cost.measure_flops("fp32", seconds=0),
    "utilization is 1.1": lambda: cost.training_seconds(1e18, A100, utilization=1.1),
    "seconds is -10": lambda: cost.utilization(1e18, -10, A100),
    "watts is 0": lambda: cost.energy_kwh(10, cost.Hardware("unknown", 1e12, 10)),
    "price_per_hour is 0": lambda: cost.dollars(3600, A100.dollars_per_hour),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
