"""Parameters counted by formula: equal to the models' own count, and to the published ones."""

from dataclasses import replace

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
    model = optimize_for_cpu(Decoder(SMALL_DECODERS[kind])).train()  # as in pretraining
    ids = torch.randint(2003, (2, 264))
    estimate = cost.training_memory(model.config, 2, 264, dtype=dtype)
    matrices = (*model.blocks.parameters(), model.head.weight)
    copies = 2 * sum(p.numel() for p in matrices if p.dim() == 2) if dtype == "bf16" else 0
    assert estimate["weights"] == 4 * cost.total_parameters(model.config) + copies
    kept = kept_for_backward(model, ids, hardware.dtype(dtype)) - copies
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
