"""Checkpoints: every tensor has its place, and what can't be used is refused with the reason.

The tiny models are transformers' own; test_transformer compares what they compute.
"""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from llmnb import checkpoints
from llmnb.assets import AssetError
from llmnb.transformer import Decoder, Encoder

# No setting has its usual value, so each must be read; no id ends a text, so generation goes on.
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "eos_token_id": None}
ROPE = {"rope_type": "default", "rope_theta": 300.0}
LLAMA = SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 0.01, "rope_parameters": ROPE}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"layer_norm_epsilon": 0.01, "bos_token_id": None, "eos_token_id": None}
MODELS = {  # transformers' class, its settings, our class
    "bert": ("BertModel", SIZES | {"type_vocab_size": 3, "layer_norm_eps": 0.01}, Encoder),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"n_inner": 48}, Decoder),
    "gpt2, 4 times as wide": ("GPT2LMHeadModel", GPT2, Decoder),
    "llama": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": False}, Decoder),
    "llama, tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}, Decoder),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}, Decoder),
    "qwen3, untied": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 12}, Decoder),
}


def scramble(model):
    """Every parameter random, the weights of norms around 1: then each of them matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def theirs(kind, **changes):
    """A tiny model of transformers, with its plainest attention."""
    name, settings, _ = MODELS[kind]
    architecture = getattr(transformers, name)
    config = architecture.config_class(**settings | changes)
    return scramble(architecture._from_config(config, attn_implementation="eager")).eval()


def ours(kind, folder):
    """The same from its checkpoint, in fp32, and ready for gradients."""
    model = MODELS[kind][2].from_pretrained(str(folder), dtype="fp32", device="cpu")
    return model.requires_grad_(True)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def tensors_of(folder):
    """Read, not mapped: the file may be written anew."""
    return load((folder / "model.safetensors").read_bytes())


def written(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


def with_config(folder, **changes):
    """Settings set, or removed where they are None."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def assert_same_weights(model, other):
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return saved(theirs(kind), tmp_path)


def test_weights_are_frozen_in_eval_mode_and_shared_where_tied(kind, folder):
    model = MODELS[kind][2].from_pretrained(str(folder), dtype="fp32", device="cpu")
    modules, parameters = list(model.modules()), list(model.parameters())
    assert not any(module.training for module in modules)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in parameters)
    if kind != "bert":
        tied = model.head.weight is model.embedding.weight
        assert tied == model.config.tied == ("untied" not in kind and kind != "llama")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("fp32", torch.bfloat16), ("bf16", torch.float32), ("fp16", torch.float16)],
)
def test_weights_come_in_the_dtype_that_is_asked_for(dtype, stored, tmp_path):
    reference = theirs("qwen3").to(stored)
    model = Decoder.from_pretrained(str(saved(reference, tmp_path)), dtype, device="cpu")
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.embedding.weight.equal(reference.model.embed_tokens.weight.to(expected))
    assert model(torch.arange(5)[None]).dtype == expected


def test_a_checkpoint_in_shards_is_the_same_and_each_shard_is_needed(kind, folder, tmp_path):
    shards = tmp_path / "shards"
    theirs(kind).save_pretrained(shards, max_shard_size="20KB")
    files = sorted(shards.glob("*.safetensors"))
    assert len(files) > 1
    assert_same_weights(ours(kind, shards), ours(kind, folder))
    files[-1].unlink()
    with pytest.raises(AssetError, match=f"{files[-1].name} is missing"):
        ours(kind, shards)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForSequenceClassification"])
def test_berts_with_heads_for_other_tasks_are_the_encoder_alone(name, tmp_path):
    config = transformers.BertConfig(**MODELS["bert"][1])
    reference = scramble(getattr(transformers, name)(config))
    saved(reference.bert, tmp_path / "plain"), saved(reference, tmp_path / "task")
    assert any(n.startswith("bert.") for n in tensors_of(tmp_path / "task"))
    assert_same_weights(ours("bert", tmp_path / "task"), ours("bert", tmp_path / "plain"))


def test_gpt2_is_read_with_and_without_its_prefix_and_its_stored_masks(tmp_path):
    reference = theirs("gpt2")
    saved(reference, tmp_path / "head"), saved(reference.transformer, tmp_path / "plain")
    assert "h.0.ln_1.weight" in tensors_of(tmp_path / "plain")
    for folder, before in ((tmp_path / "head", "transformer."), (tmp_path / "plain", "")):
        tensors = tensors_of(folder)
        tensors[f"{before}h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        tensors[f"{before}h.1.attn.masked_bias"] = torch.tensor(-1e4)
        written(folder, tensors)
    assert_same_weights(ours("gpt2", tmp_path / "head"), ours("gpt2", tmp_path / "plain"))


def test_berts_old_names_gamma_and_beta_are_weight_and_bias(tmp_path):
    expected = ours("bert", saved(theirs("bert"), tmp_path))

    tensors = {}
    for name, tensor in tensors_of(tmp_path).items():
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        tensors[f"bert.{name}"] = tensor
    written(tmp_path, tensors)
    assert "bert.embeddings.LayerNorm.gamma" in tensors_of(tmp_path)
    assert_same_weights(ours("bert", tmp_path), expected)


@pytest.mark.parametrize("old", [{"rope_theta": 300.0}, {"rope_theta": 300.0, "rope_scaling": {}}])
def test_the_rotary_base_is_also_read_where_it_used_to_stand(old, tmp_path):
    with_config(saved(theirs("llama"), tmp_path), rope_parameters=None, **old)
    assert ours("llama", tmp_path).config.rope_theta == 300


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *((Encoder, name) for name in ("RobertaConfig", "GPT2Config", "LlamaConfig")),
        *((Decoder, name) for name in ("MistralConfig", "Qwen2Config", "BertConfig")),
    ],
)
def test_another_architecture_is_refused(shape, name, tmp_path):
    config = getattr(transformers, name)()
    config.save_pretrained(tmp_path)
    message = f"architecture is '{config.model_type}'; this class reads {', '.join(shape.families)}"
    with pytest.raises(AssetError, match=message):
        shape.from_pretrained(str(tmp_path))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
REFUSED = [
    ("llama", {"rope_parameters": YARN | {"rope_type": "llama3"}}, "of type 'llama3'"),
    ("qwen3", {"rope_parameters": YARN}, "of type 'yarn'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "of type 'linear'"),
    ("llama", {"attention_bias": True}, "attention_bias is True; only False is implemented"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    ("qwen3", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("bert", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only 'gelu'"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function is 'gelu'; only 'gelu_new'"),
    ("bert", {"position_embedding_type": "relative_key"}, "only 'absolute' is implemented"),
    ("bert", {"is_decoder": True}, "is_decoder is True"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
    ("gpt2, 4 times as wide", {"n_embd": None, "n_inner": None}, "n_embd is None"),
    ("bert", {"num_attention_heads": 5}, "5 heads"),
    ("llama", {"num_key_value_heads": 3}, "3 key/value heads"),
    ("llama", {"head_dim": 7}, "pairs of dimensions, not 7"),
    ("bert", {"hidden_size": 0}, "at least 1"),
    ("bert", {"hidden_size": "32"}, "hidden_size is '32'"),
    ("llama", {"rope_parameters": ["default"]}, "rope_parameters are"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED, ids=str)
def test_settings_that_make_another_model_of_it_are_refused(kind, changes, message, tmp_path):
    with_config(saved(theirs(kind), tmp_path), **changes)
    with pytest.raises(AssetError, match=message):
        ours(kind, tmp_path)


def test_every_size_must_be_in_the_config(kind, folder):
    config = (folder / "config.json").read_text()
    settings = checkpoints.SETTINGS[kind.split(",")[0]]
    for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_positions", "norm_eps"):
        with_config(folder, **{settings[name]: None})
        with pytest.raises(AssetError, match=f"its {settings[name]} is None"):
            ours(kind, folder)
        (folder / "config.json").write_text(config)


CONFIGS = [("config.json", text, "can't be loaded") for text in ("", "{", "[]")]
CUT = [("model.safetensors", left, "model.safetensors is damaged") for left in (0, 4, 1000, -1)]


@pytest.mark.parametrize(("name", "content", "message"), CONFIGS + CUT)
def test_a_damaged_file_is_refused(name, content, message, tmp_path):
    file = saved(theirs("bert"), tmp_path) / name
    is_text = isinstance(content, str)
    file.write_bytes(content.encode() if is_text else file.read_bytes()[:content])
    with pytest.raises(AssetError, match=message):
        ours("bert", tmp_path)


def test_missing_files_are_named_and_a_pickle_is_not_opened(tmp_path):
    with pytest.raises(AssetError, match=r"holds no config\.json"):
        Encoder.from_pretrained(str(tmp_path))
    reference = theirs("bert")
    reference.config.save_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(AssetError, match=r"model\.safetensors is missing.* be safetensors"):
            ours("bert", tmp_path)
        torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")


def test_every_tensor_must_be_there_and_in_its_shape(kind, folder):
    family, tensors = kind.split(",")[0], tensors_of(folder)
    for name in tensors.keys() - {"pooler.dense.weight", "pooler.dense.bias"}:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        cut = {name: tensors[name][..., :-1].contiguous()}
        *_, place = checkpoints.renamed(family, cut)
        for changed, problem in ((cut, "size mismatch for "), ({}, "Missing key")):
            written(folder, rest | changed)
            with pytest.raises(AssetError, match=f"(?s){problem}.*{re.escape(place)}"):
                ours(kind, folder)


def test_an_untied_gpt2_keeps_its_head(tmp_path):
    saved(theirs("gpt2", tie_word_embeddings=False), tmp_path)
    assert ours("gpt2", tmp_path).head.weight.equal(tensors_of(tmp_path)["lm_head.weight"])


def test_a_tied_llama_with_another_head_in_its_files_is_refused(tmp_path):
    saved(theirs("llama, tied"), tmp_path)
    tensors = tensors_of(tmp_path)
    other = tensors["model.embed_tokens.weight"] + 1
    written(tmp_path, tensors | {"lm_head.weight": other})
    with pytest.raises(AssetError, match="ties the head"):
        ours("llama, tied", tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("bert", "adapter.weight", "its tensor 'adapter.weight' has no counterpart"),
        ("gpt2", "transformer.h.0.crossattention.c_proj.weight", "has no counterpart"),
        ("llama", "model.layers.0.mlp.router.weight", "has no counterpart"),
        ("llama", "model.layers.0.self_attn.q_norm.weight", "blocks.0.attention.norms.query"),
        ("llama", "model.layers.1.self_attn.q_proj.bias", "blocks.1.attention.query.bias"),
        ("qwen3", "model.layers.2.mlp.up_proj.weight", "blocks.2.feed_forward.up.weight"),
    ],
    indirect=["kind"],
)
def test_a_tensor_without_a_place_is_refused(kind, name, message, folder):
    tensors = tensors_of(folder)
    written(folder, tensors | {name: torch.zeros(32, 32)})
    with pytest.raises(AssetError, match=message):
        ours(kind, folder)
