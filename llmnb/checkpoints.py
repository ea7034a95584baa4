"""Published checkpoints: the names of their settings and tensors, family by family."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmnb import files, hardware, models
from llmnb.transformer_config import SIZES, TransformerConfig

# Our setting, and its name in config.json: BERT's, GPT-2's, Llama's and Qwen3's; -: it has none.
_SETTINGS = """
vocab_size    vocab_size              vocab_size         vocab_size
d_model       hidden_size             n_embd             hidden_size
n_layers      num_hidden_layers       n_layer            num_hidden_layers
n_heads       num_attention_heads     n_head             num_attention_heads
d_ff          intermediate_size       n_inner            intermediate_size
n_positions   max_position_embeddings n_positions        max_position_embeddings
n_token_types type_vocab_size         -                  -
n_kv_heads    -                       -                  num_key_value_heads
head_dim      -                       -                  head_dim
norm_eps      layer_norm_eps          layer_norm_epsilon rms_norm_eps
"""
# Our module, and its name in the checkpoints. A name that begins with a dot is inside a block.
_MODULES = """
embedding            embeddings.word_embeddings         wte     model.embed_tokens
position_embedding   embeddings.position_embeddings     wpe     -
token_type_embedding embeddings.token_type_embeddings   -       -
embedding_norm       embeddings.LayerNorm               -       -
norm                 -                                  ln_f    model.norm
transform            cls.predictions.transform.dense    -       -
transform_norm       cls.predictions.transform.LayerNorm -      -
head                 cls.predictions                    lm_head lm_head
.attention_norm     .attention.output.LayerNorm .ln_1              .input_layernorm
.attention.query    .attention.self.query       .attn.c_attn.query .self_attn.q_proj
.attention.key      .attention.self.key         .attn.c_attn.key   .self_attn.k_proj
.attention.value    .attention.self.value       .attn.c_attn.value .self_attn.v_proj
.attention.output   .attention.output.dense     .attn.c_proj       .self_attn.o_proj
.attention.norms.query -                        -                  .self_attn.q_norm
.attention.norms.key   -                        -                  .self_attn.k_norm
.feed_forward_norm  .output.LayerNorm           .ln_2              .post_attention_layernorm
.feed_forward.gate  -                           -                  .mlp.gate_proj
.feed_forward.up    .intermediate.dense         .mlp.c_fc          .mlp.up_proj
.feed_forward.down  .output.dense               .mlp.c_proj        .mlp.down_proj
"""
_BLOCKS = {"bert": "encoder.layer.*", "gpt2": "h.*", "llama": "model.layers.*"}  # * is a number


def _by_family(table: str) -> dict[str, dict[str, str]]:
    """For each family, our names and what its checkpoints call them."""
    names = {family: {} for family in _BLOCKS}
    for line in table.strip().split("\n"):
        ours, *theirs = line.split()
        for family, name in zip(_BLOCKS, theirs, strict=True):
            if name.startswith("."):
                names[family]["blocks.*" + ours] = _BLOCKS[family] + name
            elif name != "-":
                names[family][ours] = name
    return names | {"qwen3": names["llama"]}


SETTINGS = _by_family(_SETTINGS)
NAMES = _by_family(_MODULES)
ARCHITECTURES = {  # transformers' class for each family's language model
    "bert": "BertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PREFIX = {"bert": "bert.", "gpt2": "transformer."}  # of all but the head
# Tensors that our models don't need: heads for other tasks, stored masks.
_UNUSED = re.compile(
    r"pooler\.|cls\.|classifier\.|embeddings\.position_ids|"
    r"h\.\d+\.attn\.(masked_)?bias$|.*rotary_emb"
)
# Settings that would change the model, with the one value that is implemented here.
_IMPLEMENTED = {
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
    """Skips torch.nn.init: on "meta" there is nothing to fill, and filling imports for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))


def load(cls: type, name: str, dtype: str = "auto", device: str | None = None) -> nn.Module:
    """A model of a class of transformer.py, in eval mode, with published weights.

    name: a known asset, a folder, or a Hub id. Raises AssetError for another architecture, or
    for files that don't fit exactly.
    """
    folder = models.locate(name)
    device = device or hardware.device()
    torch_dtype = hardware.dtype(dtype, device)
    with models.load_errors(name, folder):
        config, state = _read(folder, cls.families)
        with torch.device("meta"), _NoInitialValues():  # the weights are assigned below
            model = cls(config)
        state = {key: tensor.to(device, torch_dtype) for key, tensor in state.items()}
        is_tied = config.tied and hasattr(model, "head")
        if is_tied and "embedding.weight" in state:
            head = state.setdefault("head.weight", state["embedding.weight"])
            if not torch.equal(head, state["embedding.weight"]):
                raise ValueError("its config ties the head to the embedding; its files do not.")
        model.load_state_dict(state, assign=True)
    if is_tied:
        model.head.weight = model.embedding.weight
    model.eval().requires_grad_(False)
    if torch_dtype == torch.float16 and not models.is_finite(model, config.vocab_size):
        print(models.OVERFLOW.format(name))
        return load(cls, name, "fp32", device)
    return model


def _read(folder: Path, families: Iterable[str]) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """The model's configuration, and its tensors under our names."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in families:
        raise ValueError(f"its architecture is {family!r}; this class reads {', '.join(families)}.")
    ours = TransformerConfig.of(family, **settings(family, config))
    return ours, renamed(family, _tensors(folder))


def settings(family: str, config: dict) -> dict:
    """TransformerConfig's fields from a config.json.

    Raises ValueError for an option that isn't implemented, or a size that is missing.
    """
    for key, plain in _IMPLEMENTED[family].items():
        if config.get(key, plain) != plain:
            raise ValueError(f"its {key} is {config[key]!r}; only {plain!r} is implemented.")
    fields = {ours: config.get(theirs) for ours, theirs in SETTINGS[family].items()}
    if family == "gpt2":
        fields["d_ff"] = fields["d_ff"] or 4 * (fields["d_model"] or 0)
    if family in ("llama", "qwen3"):
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"its rope_parameters are {rope!r}.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"its rotation is of type {kind!r}; only 'default' is implemented.")
        fields["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta")
    if family != "bert":
        fields["tied"] = config.get("tie_word_embeddings", family == "gpt2")
    for ours in (*SIZES, "norm_eps"):
        if not isinstance(fields[ours], float if ours == "norm_eps" else int):
            raise ValueError(f"its {SETTINGS[family][ours]} is {fields[ours]!r}, not a number.")
    return {key: value for key, value in fields.items() if value is not None}


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing.")
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged: {error}.") from error
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
        our_module = _translated(module, ours)
        if our_module is None:
            raise ValueError(f"its tensor {name!r} has no counterpart in this model.")
        result[f"{our_module}.{kind}"] = tensor
    return result


def _translated(module: str, names: dict[str, str]) -> str | None:
    """The other name of a module, with the number of its block."""
    number = re.search(r"\.(\d+)\.", module)
    if number is None:
        return names.get(module)
    other = names.get(module.replace(number[0], ".*.", 1))
    return other and other.replace("*", number[1])


def _unfused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's tensors with query, key and value apart, and its matrices transposed."""
    result = {}
    for name, tensor in tensors.items():
        if re.search(r"\.c_\w+\.weight$", name):
            tensor = tensor.t().contiguous()
        if ".c_attn." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[name.replace(".c_attn.", f".c_attn.{part}.")] = rows
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


def entries(config: TransformerConfig) -> dict:
    """The entries of config.json for a model: the reverse of `settings`.

    Raises ValueError for a model that transformers' class of the family can't express.
    """
    family = config.family
    if family not in SETTINGS:
        raise ValueError(f"Its family is {family!r}; transformers has {', '.join(SETTINGS)}.")
    architecture = ARCHITECTURES[family]
    usual = TransformerConfig.of(family, **{name: getattr(config, name) for name in SIZES})
    for name in ("positions", "norm", "norm_first", "activation", "bias", "qk_norm"):
        value = getattr(config, name)
        if value != getattr(usual, name):
            raise ValueError(f"Its {name} is {value!r}: {architecture} can't express that.")
    if family == "bert" and not config.n_token_types:
        raise ValueError("Its n_token_types is 0: BertForMaskedLM has at least one.")
    n_heads, n_kv_heads, head_dim = config.heads
    result = {theirs: getattr(config, ours) for ours, theirs in SETTINGS[family].items()}
    if family in ("llama", "qwen3"):
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        result |= {"num_key_value_heads": n_kv_heads, "head_dim": head_dim}
        result |= {"rope_theta": config.rope_theta, "rope_parameters": rope}
    elif n_kv_heads != n_heads or head_dim * n_heads != config.d_model:
        raise ValueError(f"Its heads are {config.heads}: {architecture} can't express them.")
    result |= _IMPLEMENTED[family] | {"tie_word_embeddings": config.tied, "dtype": "float32"}
    return result | {"model_type": family, "architectures": [architecture]}


def _published(model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the family's names; a tied one is stored once."""
    family = model.config.family
    result = defaultdict(list)  # in GPT-2, query, key and value are parts of one tensor
    for name, parameter in model.named_parameters():
        module, _, kind = name.removeprefix("encoder.").rpartition(".")
        their_module = _translated(module, NAMES[family])
        if not their_module.startswith(("cls.", "lm_head")):
            their_module = _PREFIX.get(family, "") + their_module
        their_name = re.sub(r"\.c_attn\.\w+$", ".c_attn", their_module) + f".{kind}"
        result[their_name].append(parameter.detach().cpu().float())
    tensors = {}
    for name, parts in result.items():
        tensor = torch.cat(parts)
        is_transposed = re.search(r"\.c_\w+\.weight$", name)  # in GPT-2
        tensors[name] = (tensor.t() if is_transposed else tensor).contiguous()
    return tensors
