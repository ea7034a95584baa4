"""The result of a run as a folder that transformers loads: weights, tokenizer, model card."""

import math
from pathlib import Path

from llmnb import checkpoints, files
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError, Recipe

_CARD = """---
library_name: transformers
pipeline_tag: {task}
---
# A small {family} model, pretrained from scratch

{n_parameters:,} parameters, {n_layers} layers, {d_model} wide, {block_size} tokens of context;
trained on {tokens:,} tokens of `{corpus}` in {seconds:,.0f} seconds ({engine}).

| | |
|---|---|
| objective | {objective} |
| validation loss | {loss:.4f} nats a {measure} |
| optimizer | {optimizer}, learning rate {lr:g}, batch of {step_tokens:,} tokens |
| seed | {seed} |

```python
from transformers import AutoTokenizer, {auto}
tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = {auto}.from_pretrained("{folder}")
```

It knows nothing but its training text, and repeats what stands there, errors and prejudice
included. Before you pass it on, see to the licence of that text. To upload:
`hf upload NAME {folder}`.
"""


def check(recipe: Recipe, folder: Path) -> None:
    """Raises PretrainingError where `publish` would, so that nobody trains for hours before."""
    config = recipe.config(vocab_size=1)
    try:
        checkpoints.entries(config)
    except ValueError as error:
        raise PretrainingError(f"This model can't be published: {error}") from error
    if folder.is_file():
        raise PretrainingError(f"{folder} is a file; name a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise PretrainingError(f"{folder} holds other files; name an empty folder.")


def publish(trainer: Trainer, folder: str | Path, corpus: str = "a local text") -> Path:
    """Write the folder; returns it. Raises PretrainingError for one with other files in it.

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
    loss = trainer.log[-1]["validation_loss"]
    causal = recipe.objective == "causal"
    facts = recipe.as_dict() | {"n_parameters": trainer.n_parameters, "loss": loss}
    facts |= {"tokens": trainer.step * recipe.step_tokens, "seconds": trainer.seconds}
    bits = loss / math.log(2) / trainer.corpus.bytes_per_token
    facts |= {"measure": f"token, {bits:.4f} bits a byte" if causal else "hidden token"}
    facts |= {"corpus": corpus, "step_tokens": recipe.step_tokens}
    facts |= {"engine": trainer.processes.engine}
    facts |= {"auto": "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"}
    facts |= {"task": "text-generation" if causal else "fill-mask", "folder": folder.name}
    files.write_text(folder / "README.md", _CARD.format(**facts))
    return folder
