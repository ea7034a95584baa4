"""The result of a run as a folder that transformers loads: weights, tokenizer, model card."""

import math
from pathlib import Path

from llmnb import checkpoints, files
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError

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
| validation loss | {loss:.4f} nats a token, {bits:.4f} bits a byte |
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


def publish(trainer: Trainer, folder: str | Path, corpus: str = "a local text") -> Path:
    """Write the folder; returns it. Raises PretrainingError for one with other files in it.

    corpus: what the card calls the training text. A sharded model can't be published.
    """
    folder, recipe = Path(folder).expanduser(), trainer.recipe
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise PretrainingError(f"{folder} holds other files; name an empty folder.")
    tokenizer = trainer.corpus.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    checkpoints.save(trainer.model, folder, ids | {"pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(folder)
    loss = trainer.log[-1]["validation_loss"]
    causal = recipe.objective == "causal"
    facts = recipe.as_dict() | {"n_parameters": trainer.n_parameters, "loss": loss}
    facts |= {"tokens": trainer.step * recipe.step_tokens, "seconds": trainer.seconds}
    facts |= {"bits": loss / math.log(2) / trainer.corpus.bytes_per_token, "corpus": corpus}
    facts |= {"engine": trainer.processes.engine, "step_tokens": recipe.step_tokens}
    facts |= {"auto": "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"}
    facts |= {"task": "text-generation" if causal else "fill-mask", "folder": folder.name}
    files.write_text(folder / "README.md", _CARD.format(**facts))
    return folder
