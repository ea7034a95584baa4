"""The result of a run as a folder that transformers loads: weights, tokenizer, model card."""

import math
from pathlib import Path

from llmnb import card, checkpoints, files
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError, Recipe

_CAVEATS = """It knows nothing but its training text, and repeats what stands there, errors and
prejudice included. Before you pass it on, see to the licence of that text. To upload:
`hf upload NAME {folder}`."""


def check(recipe: Recipe, folder: Path) -> None:
    """Fail early, before hours of training, where `publish` would fail at the end.

    Raises PretrainingError for a model that transformers can't express, CardError for the folder.
    """
    config = recipe.config(vocab_size=1)
    try:
        checkpoints.entries(config)
    except ValueError as error:
        raise PretrainingError(f"This model can't be published: {error}") from error
    card.check_folder(folder, replaces="config.json")


def publish(trainer: Trainer, folder: str | Path, corpus: str = "a local text") -> Path:
    """Write the folder; returns it. Raises CardError for one with other files in it.

    Also for a model that transformers can't express, and for a sharded one, of which no process
    has the whole. corpus: what the card calls the training text.
    """
    folder, recipe = Path(folder).expanduser(), trainer.recipe
    check(recipe, folder)
    if trainer.sharded:
        raise PretrainingError("No process has the whole model: take the run up in one process.")
    tokenizer = trainer.corpus.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    checkpoints.save(trainer.model, folder, ids | {"pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(folder)
    files.write_text(folder / "README.md", _model_card(trainer, folder.name, corpus))
    return folder


def _model_card(trainer: Trainer, folder: str, corpus: str) -> str:
    recipe, loss = trainer.recipe, trainer.log[-1]["validation_loss"]
    is_causal = recipe.objective == "causal"
    auto_class = "AutoModelForCausalLM" if is_causal else "AutoModelForMaskedLM"
    bits_per_byte = loss / math.log(2) / trainer.corpus.bytes_per_token
    per = f"token, {bits_per_byte:.4f} bits a byte" if is_causal else "hidden token"
    return card.model_card(
        f"A small {recipe.family} model, pretrained from scratch",
        {
            "objective": recipe.objective,
            "validation loss": f"{loss:.4f} nats a {per}",
            "optimizer": f"{recipe.optimizer}, learning rate {recipe.lr:g}, "
            f"batch of {recipe.step_tokens:,} tokens",
            "seed": recipe.seed,
        },
        intro=f"{trainer.n_parameters:,} parameters, {recipe.n_layers} layers, {recipe.d_model} "
        f"wide, {recipe.block_size} tokens of context;\ntrained on "
        f"{trainer.step * recipe.step_tokens:,} tokens of `{card.plain(corpus)}` in "
        f"{trainer.seconds:,.0f} seconds ({trainer.processes.engine}).",
        usage=f"from transformers import AutoTokenizer, {auto_class}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        f"model = {auto_class}.from_pretrained({folder!r})",
        caveats=_CAVEATS.format(folder=folder),
        tags={
            "library_name": "transformers",
            "pipeline_tag": "text-generation" if is_causal else "fill-mask",
        },
    )
