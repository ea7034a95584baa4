"""Parameters counted by formula: equal to the models' own count, and to the published ones."""

import pytest
import transformers

from llmnb import cost
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


def test_weight_bytes():
    assert [cost.weight_bytes(1000, p) for p in cost.BITS] == [4000, 2000, 1000, 500]
    with pytest.raises(ValueError, match="fp32, bf16"):
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
    assert cost.total_parameters(cost.gpt(100, 1, 3, head_dim=32)) > 0


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
