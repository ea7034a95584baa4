"""Published checkpoints: the names of their settings and tensors, family by family."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmnb import assets, files, hardware, models

# Our setting: its name in config.json.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
_LLAMA = {"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_LLAMA |= {"norm_eps": "rms_norm_eps"}
SETTINGS = {
    "bert": _SIZES | {"n_token_types": "type_vocab_size", "norm_eps": "layer_norm_eps"},
    "gpt2": {
        "vocab_size": "vocab_size",
        "d_model": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_ff": "n_inner",
        "n_positions": "n_positions",
        "norm_eps": "layer_norm_epsilon",
    },
    "llama": _SIZES | _LLAMA,
    "qwen3": _SIZES | _LLAMA,
}

# Our module: its name in the checkpoint; * is the number of a block.
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "blocks.*.attention.query": "model.layers.*.self_attn.q_proj",
    "blocks.*.attention.key": "model.layers.*.self_attn.k_proj",
    "blocks.*.attention.value": "model.layers.*.self_attn.v_proj",
    "blocks.*.attention.output": "model.layers.*.self_attn.o_proj",
    "blocks.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
    "blocks.*.feed_forward.gate": "model.layers.*.mlp.gate_proj",
    "blocks.*.feed_forward.up": "model.layers.*.mlp.up_proj",
    "blocks.*.feed_forward.down": "model.layers.*.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
NAMES = {
    "bert": {
        "embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "token_type_embedding": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "blocks.*.attention.query": "encoder.layer.*.attention.self.query",
        "blocks.*.attention.key": "encoder.layer.*.attention.self.key",
        "blocks.*.attention.value": "encoder.layer.*.attention.self.value",
        "blocks.*.attention.output": "encoder.layer.*.attention.output.dense",
        "blocks.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
        "blocks.*.feed_forward.up": "encoder.layer.*.intermediate.dense",
        "blocks.*.feed_forward.down": "encoder.layer.*.output.dense",
        "blocks.*.feed_forward_norm": "encoder.layer.*.output.LayerNorm",
    },
    "gpt2": {
        "embedding": "wte",
        "position_embedding": "wpe",
        "blocks.*.attention_norm": "h.*.ln_1",
        "blocks.*.attention.query": "h.*.attn.c_attn.query",
        "blocks.*.attention.key": "h.*.attn.c_attn.key",
        "blocks.*.attention.value": "h.*.attn.c_attn.value",
        "blocks.*.attention.output": "h.*.attn.c_proj",
        "blocks.*.feed_forward_norm": "h.*.ln_2",
        "blocks.*.feed_forward.up": "h.*.mlp.c_fc",
        "blocks.*.feed_forward.down": "h.*.mlp.c_proj",
        "norm": "ln_f",
        "head": "lm_head",
    },
    "llama": _LLAMA_NAMES,
    "qwen3": _LLAMA_NAMES
    | {
        "blocks.*.attention.norms.query": "model.layers.*.self_attn.q_norm",
        "blocks.*.attention.norms.key": "model.layers.*.self_attn.k_norm",
    },
}
ARCHITECTURES = {  # transformers' class for each family's language model
    "bert": "BertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PREFIX = {"bert": "bert.", "gpt2": "transformer."}  # of all but the head
_MASKED = {  # the head of a masked language model
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
}
# Tensors that our models don't need: heads for other tasks, stored masks.
_UNUSED = re.compile(
    r"pooler\.|cls\.|classifier\.|embeddings\.position_ids|"
    r"h\.\d+\.attn\.(masked_)?bias$|.*rotary_emb"
)
# Settings that would change the model, with the one value that is implemented here.
_PLAIN = {
    "bert": {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False},
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
}


class _NoInitialValues(TorchFunctionMode):
    """Skips torch.nn.init: "meta" has nothing to fill, and the import takes a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))


def load(
    make: Callable[[str, dict], nn.Module],
    families: Iterable[str],
    name: str,
    dtype: str = "auto",
    device: str | None = None,
) -> nn.Module:
    """The model of make(family, settings), in eval mode, with published weights.

    name: a known asset, a folder, or a Hub id. Raises AssetError for another architecture, or
    for files that don't fit exactly.
    """
    folder = models.locate(name)
    device = device or hardware.device()
    torch_dtype = hardware.dtype(dtype, device)
    try:
        family, settings, state = _read(folder, families)
        with torch.device("meta"), _NoInitialValues():  # the weights are assigned below
            model = make(family, settings)
        state = {key: tensor.to(device, torch_dtype) for key, tensor in state.items()}
        is_tied = model.config.tied and hasattr(model, "head")
        embedding = state.get("embedding.weight")
        if is_tied and embedding is not None:
            if not torch.equal(state.setdefault("head.weight", embedding), embedding):
                raise ValueError("its config ties the head to the embedding; its files do not.")
            state["head.weight"] = embedding
        model.load_state_dict(state, assign=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise assets.AssetError(f"{name!r} in {folder} can't be loaded: {reason}") from error
    if is_tied:
        model.head.weight = model.embedding.weight
    model.eval().requires_grad_(False)
    if torch_dtype == torch.float16 and not models.is_finite(model, model.config.vocab_size):
        print(models.OVERFLOW.format(name))
        return load(make, families, name, "fp32", device)
    return model


def _read(folder: Path, families: Iterable[str]) -> tuple[str, dict, dict[str, Tensor]]:
    """Family, settings and tensors, under our names."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in families:
        raise ValueError(
            f"its architecture is {family!r}, and one of {', '.join(families)} is wanted here."
        )
    return family, settings(family, config), renamed(family, _tensors(folder))


def settings(family: str, config: dict) -> dict:
    """TransformerConfig's fields from a config.json.

    Raises ValueError for an option that isn't implemented, or a size that is missing.
    """
    for key, plain in _PLAIN[family].items():
        if config.get(key, plain) != plain:
            raise ValueError(f"its {key} is {config[key]!r}; only {plain!r} is built here.")
    fields = {ours: config.get(theirs) for ours, theirs in SETTINGS[family].items()}
    if family == "gpt2":
        fields["d_ff"] = fields["d_ff"] or 4 * (fields["d_model"] or 0)
    if family in ("llama", "qwen3"):
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"its rope_parameters are {rope!r}.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"its rotation is of type {kind!r}; 'default' is built here.")
        fields["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta")
    if family != "bert":
        fields["tied"] = config.get("tie_word_embeddings", family == "gpt2")
    for ours in (*_SIZES, "norm_eps"):
        if not isinstance(fields[ours], float if ours == "norm_eps" else int):
            raise ValueError(f"its {SETTINGS[family][ours]} is {fields[ours]!r}: no such number.")
    return {key: value for key, value in fields.items() if value is not None}


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    else:
        names = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing; weights must be safetensors.")
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged: {error}") from error
    return tensors


def renamed(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names. Raises ValueError for an unknown one."""
    ours = {theirs: name for name, theirs in NAMES[family].items()}
    tensors = {re.sub(r"^(bert|transformer)\.", "", name): t for name, t in tensors.items()}
    result = {}
    for name, tensor in (_unfused(tensors) if family == "gpt2" else tensors).items():
        if _UNUSED.match(name):
            continue
        module, _, kind = name.rpartition(".")
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)  # early BERTs
        number = re.search(r"\.(\d+)\.", module)
        our_module = ours.get(re.sub(r"\.\d+\.", ".*.", module, count=1))
        if our_module is None:
            raise ValueError(f"there is no place here for its tensor {name!r}.")
        if number:
            our_module = our_module.replace("*", number[1])
        result[f"{our_module}.{kind}"] = tensor
    return result


def _unfused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's tensors with query, key and value apart, and its matrices transposed."""
    result = {}
    for name, tensor in tensors.items():
        if re.search(r"\.c_\w+\.weight$", name):
            tensor = tensor.t().contiguous()
        if ".c_attn." in name:
            kind = name.rpartition(".")[2]
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            result |= {name.replace(f".{kind}", f".{part}.{kind}"): t for part, t in parts}
        else:
            result[name] = tensor
    return result


def save(model: nn.Module, folder: Path, extra: dict | None = None) -> None:
    """Write config.json and model.safetensors, in fp32, as transformers loads them.

    model: a Decoder, or pretraining's MaskedModel; extra: further entries of config.json,
    such as the ids of special tokens. Raises ValueError for a model that transformers' class
    of the family can't express.
    """
    from safetensors.torch import save_file

    config_entries = entries(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_published(model), folder / "model.safetensors", metadata={"format": "pt"})
    files.write_json(folder / "config.json", config_entries | (extra or {}))


def entries(config) -> dict:
    """The entries of config.json for a TransformerConfig: the reverse of `settings`.

    Raises ValueError for a model that transformers' class of the family can't express.
    """
    family = config.family
    if family not in SETTINGS:
        raise ValueError(f"Its family is {family!r}; transformers has {', '.join(SETTINGS)}.")
    architecture = ARCHITECTURES[family]
    usual = type(config).of(family, **{name: getattr(config, name) for name in _SIZES})
    for name in ("positions", "norm", "norm_first", "activation", "bias", "qk_norm"):
        value = getattr(config, name)
        if value != getattr(usual, name):
            raise ValueError(f"Its {name} is {value!r}: {architecture} has no such thing.")
    if family == "bert" and not config.n_token_types:
        raise ValueError("Its n_token_types is 0: BertForMaskedLM has at least one.")
    n_heads, n_kv_heads, head_dim = config.heads
    result = {theirs: getattr(config, ours) for ours, theirs in SETTINGS[family].items()}
    if family in ("llama", "qwen3"):
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        result |= {"num_key_value_heads": n_kv_heads, "head_dim": head_dim}
        result |= {"rope_theta": config.rope_theta, "rope_parameters": rope}
    elif n_kv_heads != n_heads or head_dim * n_heads != config.d_model:
        raise ValueError(f"Its heads are {config.heads}: {architecture} has no such ones.")
    result |= _PLAIN[family] | {"tie_word_embeddings": config.tied, "dtype": "float32"}
    return result | {"model_type": family, "architectures": [architecture]}


def _published(model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the family's names; a tied one is stored once."""
    family = model.config.family
    prefix = _PREFIX.get(family, "")
    theirs = {ours: prefix + name for ours, name in NAMES[family].items()}
    theirs |= {"head": NAMES[family].get("head")} | (_MASKED if family == "bert" else {})
    result = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.removeprefix("encoder.").rpartition(".")
        number = re.search(r"\.(\d+)\.", module)
        their_module = theirs[re.sub(r"\.\d+\.", ".*.", module, count=1)]
        if number:
            their_module = their_module.replace("*", number[1])
        result[f"{their_module}.{kind}"] = parameter.detach().cpu().float().contiguous()
    return _fused(result) if family == "gpt2" else result


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of _unfused."""
    result = {}
    for name, tensor in tensors.items():
        if ".c_attn." in name:
            if ".query." not in name:
                continue
            names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            tensor = torch.cat([tensors[part] for part in names])
            name = name.replace(".query.", ".")
        is_matrix = re.search(r"\.c_\w+\.weight$", name)
        result[name] = tensor.t().contiguous() if is_matrix else tensor
    return result
