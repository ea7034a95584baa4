"""What a run writes: the state that a killed run resumes from, its log, and the finished model."""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmnb import card, checkpoints, files
from llmnb.pretraining.recipe import PretrainingError, Recipe

RUN_FILES = ("log.jsonl", "checkpoint.safetensors")  # beside run.json
FACTS = "pretraining.json"  # a file beside the weights: the recipe, the text, and what was written

_CAVEATS = """It knows only its training text, and repeats what that says, errors and prejudice
included. Before you share it, check the licence of that text. To upload:
`hf upload NAME {folder}`."""


def save_state(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write weights, optimizer states and facts (plain JSON) into one safetensors file.

    The file is replaced in one step: a kill leaves the old one or the new one, never half of one.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())  # the content must be on the disk before the name is
    os.replace(partial, path)


def load_state(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Put weights and optimizer states back in place; returns the facts of `save_state`."""
    from safetensors import safe_open

    parameters = dict(model.named_parameters())
    optimizer_of = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            optimizer_of |= dict.fromkeys(group["params"], optimizer)
    with safe_open(path, "pt") as file, torch.no_grad():
        for full_name in file.keys():  # noqa: SIM118 (not a mapping)
            key, name = full_name.split("/", 1)
            parameter = parameters[name]
            tensor = file.get_tensor(full_name)
            if key == "model":
                parameter.copy_(tensor)
                continue
            optimizer = optimizer_of[parameter]
            if tensor.dim() or optimizer.defaults.get("fused"):
                tensor = tensor.to(parameter.device)  # an unfused step counter stays on the CPU
            optimizer.state[parameter][key] = tensor
        return json.loads(file.metadata()["facts"])


def make_folder(folder: Path) -> None:
    """Make the folder of a new run; it may hold other files, but none that a run writes.

    Raises PretrainingError.
    """
    if others := [name for name in RUN_FILES if (folder / name).exists()]:
        raise PretrainingError(f"{folder} holds another {others[0]}; name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PretrainingError(f"out can't be {folder}: {error}") from error


def read_facts(file: Path) -> dict[str, Any]:
    """A run's settings, from its run.json. Raises PretrainingError for a file of something else."""
    with contextlib.suppress(ValueError):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and isinstance(facts.get("recipe"), dict):
            return facts
    raise PretrainingError(f"{file} is not the record of a pretraining run: name another folder.")


def need_same_run(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises PretrainingError if the settings of two runs differ, naming the first."""
    before = before["recipe"] | before
    for key, value in (now["recipe"] | now).items():
        if before.get(key) != value:
            raise PretrainingError(
                f"{folder} holds another run: its {key} is {before.get(key)!r}, not {value!r}. "
                f"Name another folder, or give the settings in its run.json."
            )


def append_log(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a log, as one line of JSON."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a log, one line of JSON per row."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    files.write_text(path, "".join(lines))


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The log's rows up to a step; a resumed run computes the later ones again."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):  # splitlines would also split at a U+2028 in a sample
        with contextlib.suppress(json.JSONDecodeError):  # a kill may cut the last line
            rows.append(json.loads(line))
    return [row for row in rows if row["step"] <= last_step]


def turned_up(rows: list[dict[str, Any]], margin: float = 0.01) -> str:
    """A warning if the last two validation losses of a log are above its lowest by the margin.

    margin: a share of the lowest loss. One higher loss may be noise. So may two, while the
    training loss is still above the lowest one. Empty if all is well.
    """
    losses = [row["validation_loss"] for row in rows]
    best = losses.index(min(losses))
    if min(losses[-2:]) <= (1 + margin) * losses[best] or rows[-1]["loss"] >= losses[best]:
        return ""
    return (
        f"warning: the validation loss has turned up: {losses[best]:.3f} after "
        f"{rows[best]['tokens']:,} tokens, now {losses[-1]:.3f}.\nThe model learns the training "
        f"text by heart: take fewer tokens, a smaller model, or more text."
    )


def check_publishable(recipe: Recipe, folder: Path) -> None:
    """Fail before hours of training where `publish` would fail after them.

    Raises PretrainingError for a model that transformers can't express, CardError for the folder.
    """
    try:
        checkpoints.entries(recipe.config(vocab_size=1))
    except ValueError as error:
        raise PretrainingError(f"This model can't be published: {error}") from error
    card.check_folder(folder, replaces=FACTS)


def publish(trainer: Any, folder: str | Path, corpus: str = "a local text") -> Path:
    """Write weights, tokenizer and model card as a folder that transformers loads; returns it.

    trainer: a `loop.Trainer` that has run; corpus: what the card calls the training text. The files
    of a model that was published there before are replaced, and others stay. Raises
    PretrainingError and CardError as `check_publishable` does.
    """
    folder = Path(folder).expanduser()
    check_publishable(trainer.recipe, folder)

    def write(partial: Path) -> None:
        tokenizer = trainer.corpus.tokenizer
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        checkpoints.save(trainer.model, partial, {name: getattr(tokenizer, name) for name in names})
        tokenizer.save_pretrained(partial)
        page = _model_card(trainer, folder.resolve().name, corpus)
        files.write_text(partial / "README.md", page)

    facts = {"recipe": trainer.recipe.as_dict(), "corpus": corpus, "steps": trainer.step}
    return card.write_result(folder, FACTS, facts, write)


def _model_card(trainer: Any, folder: str, corpus: str) -> str:
    recipe = trainer.recipe
    loss = trainer.log[-1]["validation_loss"]
    if recipe.objective == "causal":
        task = "text-generation"
        auto_class = "AutoModelForCausalLM"
        bits_per_byte = loss / math.log(2) / trainer.corpus.bytes_per_token
        loss_text = f"{loss:.4f} nats per token, {bits_per_byte:.4f} bits per byte"
    else:
        task = "fill-mask"
        auto_class = "AutoModelForMaskedLM"
        loss_text = f"{loss:.4f} nats per hidden token"
    return card.model_card(
        f"A small {recipe.family} model, pretrained from scratch",
        {
            "objective": recipe.objective,
            "validation loss": loss_text,
            "optimizer": f"{recipe.optimizer}, learning rate {recipe.lr:g}, "
            f"batch of {recipe.step_tokens:,} tokens",
            "seed": recipe.seed,
        },
        intro=f"{trainer.n_parameters:,} parameters, {recipe.n_layers} layers, {recipe.d_model} "
        f"wide, {recipe.block_size} tokens of context;\ntrained on "
        f"{trainer.step * recipe.step_tokens:,} tokens of `{card.plain(corpus)}` in "
        f"{trainer.seconds:,.0f} seconds ({trainer.processes.description}).",
        usage=f"from transformers import AutoTokenizer, {auto_class}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        f"model = {auto_class}.from_pretrained({folder!r})",
        caveats=_CAVEATS.format(folder=folder),
        tags={"library_name": "transformers", "pipeline_tag": task},
    )
