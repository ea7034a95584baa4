"""Models by name: where their files are, and how transformers loads them.

A name is that of a known asset, a local folder, or a model on the Hub. Hosted models, which have no
files here, are in hosted.py.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from llmnb import LlmnbError, files, hardware, hosted
from llmnb.assets import ASSETS, HUB_REVISIONS, AssetError, fetch

PROBE_TOKENS = 4  # read once after loading in fp16
OVERFLOW = "{} overflows in fp16, which ends at 65,504: it runs in fp32, slower and larger."
# The files of a model that decide what it computes.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja")


def locate(name: str) -> Path:
    """The folder of a model: a known asset's name, a local folder, or a Hub id, in this order.

    Raises AssetError if none of them exists.
    """
    if hosted.is_hosted(name):
        raise AssetError(
            f"{name} is a hosted model: it answers in text and shows no weights or probabilities, "
            "which are needed here. Name a model that runs on this machine."
        )
    if name in ASSETS:
        return fetch(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise AssetError(f"The folder {name!r} holds no config.json, so no model is in it.")
        return folder
    return _from_hub(name)


@functools.cache
def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    revision = HUB_REVISIONS.get(name)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AssetError(
            f"{name!r} is no known asset and no folder here, and the Hub has no such model or "
            f"can't be reached ({type(error).__name__}).{files.did_you_mean(name, ASSETS)} "
            f"Known assets: {', '.join(ASSETS)}. Without a network, profile 'cpu' runs on those."
        ) from error
    return Path(folder)


def digest(name: str) -> str:
    """Twelve hex digits that say which model a name stands for now.

    They cover an asset's pin, or else the content of the folder's MODEL_FILES (config, weights,
    tokenizer): a model that is trained again in the same folder has another digest. Raises
    AssetError.
    """
    if name in ASSETS:
        facts = [name, ASSETS[name].pin]
    else:
        folder = locate(name)
        paths = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
        facts = [[path.name, files.sha256_of(path)] for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def load_encoder(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers encoder (AutoModel) in eval mode. Raises AssetError."""
    return _load("AutoModel", "an encoder", name, dtype, device)


def load_decoder(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers causal language model in eval mode. Raises AssetError."""
    model = _load("AutoModelForCausalLM", "a decoder", name, dtype, device)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model


def _contiguous(head, inputs):
    """Copies what goes into the output layer, if it is a slice of a larger tensor.

    transformers' generate cuts the last position out of the hidden states. On a CPU, torch then
    copies the layer's whole matrix for every row of the batch: gigabytes, and seconds a row.
    """
    return (inputs[0].contiguous(), *inputs[1:])


def load_masked(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers masked language model in eval mode.

    Raises AssetError, also if the checkpoint has no masked-language-model head.
    """
    return _load("AutoModelForMaskedLM", "an encoder", name, dtype, device)


def load_tokenizer(name: str):
    """The transformers tokenizer of a model. Raises AssetError."""
    import transformers

    folder = locate(name)
    with load_errors(name, folder):
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )


def _load(auto_class: str, expected_kind: str, name: str, dtype: str, device: str | None):
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folder = locate(name)
    device = device or hardware.device()
    torch_dtype = hardware.dtype(dtype, device)
    transformers.utils.logging.disable_progress_bar()
    with load_errors(name, folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        decoders = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        architectures = config.architectures or []
        is_decoder = any(architecture in decoders for architecture in architectures)
        if is_decoder != (expected_kind == "a decoder"):
            names = ", ".join(architectures) or "of an architecture that its config doesn't name"
            raise ValueError(f"it is {names}, but {expected_kind} is wanted here; choose another.")
        model, loading_info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = [key for key in loading_info["missing_keys"] if not key.startswith("pooler.")]
        if missing:  # transformers would fill them with random numbers
            raise ValueError(
                f"{len(missing)} weights are not in its files, {missing[0]} among them. "
                f"Use a checkpoint that was saved with them."
            )
    model = model.to(device).eval()
    if torch_dtype == torch.float16 and not is_finite(model, config.get_text_config().vocab_size):
        print(OVERFLOW.format(name))
        return _load(auto_class, expected_kind, name, "fp32", device)
    return model


def is_finite(model, vocab_size: int) -> bool:
    """Whether the model's output for a few tokens has no infinity and no NaN.

    In fp16 numbers end at 65,504. Hidden states of Gemma 3 reach more, and every answer after
    that is empty.
    """
    import torch

    device = next(model.parameters()).device
    ids = torch.arange(PROBE_TOKENS, device=device)[None] % vocab_size  # (1, seq)
    with torch.inference_mode():
        output = model(ids)
    return bool(torch.isfinite(output if isinstance(output, torch.Tensor) else output[0]).all())


@contextlib.contextmanager
def load_errors(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever loading a model raises into an AssetError that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except LlmnbError:  # it says itself what is wrong
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise AssetError(
            f"{name!r} in {folder} can't be loaded: {reason} "
            f"Weights must be safetensors, and code that comes with a model is never run."
        ) from error
