"""Parameters counted by formula: equal to the models' own count, and to the published ones."""

import pytest
import transformers

from llmnb import cost

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
    shape = cost.Shape.from_config(model.config)
    assert cost.total_parameters(shape) == model.num_parameters()


def test_the_parts_are_where_the_model_has_them():
    model = transformers.GPT2LMHeadModel(CONFIGS["GPT2LMHeadModel"])
    parts = cost.count_parameters(cost.Shape.from_config(model.config))
    named = dict(model.named_parameters())
    assert parts["attention"] == sum(p.numel() for n, p in named.items() if ".attn." in n)
    assert parts["feed_forward"] == sum(p.numel() for n, p in named.items() if ".mlp." in n)
    assert parts["norms"] == sum(p.numel() for n, p in named.items() if "ln_" in n)


def test_a_bert_without_its_pooler():
    model = transformers.BertModel(CONFIGS["BertModel"], add_pooling_layer=False)
    shape = cost.Shape.from_config(model.config, pooler=False)
    assert cost.total_parameters(shape) == model.num_parameters()


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
    assert round(cost.total_parameters(shape) / 1e6, 2) == millions


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
        cost.Shape("t5", 10, 8, 1, 2, 16)
    with pytest.raises(ValueError, match="no formula for 'distilbert'"):
        cost.Shape.from_config(transformers.DistilBertConfig())
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        cost.gpt(100, 1, 3)


def test_the_machines_memory():
    import psutil

    assert cost.machine_memory()["memory"] == psutil.virtual_memory().total
