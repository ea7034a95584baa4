"""python -m llmnb.pretraining --config run.yaml: a training run without a notebook."""
# ruff: noqa: E402 (the imports below load torch)

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import yaml

from llmnb import LlmnbError, files, hardware

hardware.share_the_cpu()  # torch reads the environment variable when it is loaded

import torch

from llmnb.pretraining.checkpoint import check_publishable, publish
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.processes import leave_processes
from llmnb.pretraining.recipe import PretrainingError, Recipe, checked_settings
from llmnb.pretraining.tokens import prepare

_CORPUS_DEFAULTS = {
    "corpus": "imdb",
    "tokenizer": "bpe",
    "vocab_size": 4096,
    "column": "text",
    "train_bytes": None,
    "validation_bytes": None,
}
_RUN_DEFAULTS = {
    "out": "pretrained",
    "evaluations": 20,
    "samples": 0,
    "prompt": "",
    "checkpoint_seconds": 60.0,
}
_say = functools.partial(print, flush=True)
_HELP = """The settings are the fields of llmnb.pretraining.recipe.Recipe, and:
corpus (imdb, or a file or folder), column, tokenizer (bpe, bytes, characters), vocab_size,
train_bytes, validation_bytes, out, evaluations, samples, prompt, checkpoint_seconds.
A killed run continues from its last checkpoint when the same command is given again.
Several processes: torchrun --nproc-per-node 2 -m llmnb.pretraining --config run.yaml"""


def main(arguments: list[str] | None = None) -> int:
    """Train, and save the model in out/model. Returns the exit code."""
    parser = argparse.ArgumentParser(
        "llmnb.pretraining", epilog=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="settings, as YAML")
    parser.add_argument("pairs", nargs="*", metavar="name=value", help="further settings")
    options = parser.parse_intermixed_args(arguments)
    exit_code = 0
    try:
        _train(_settings(options.config, options.pairs))
    except LlmnbError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_code = 2
    leave_processes()
    return exit_code


def _settings(file: str | None, pairs: list[str]) -> dict[str, Any]:
    """The file's settings, overridden by the command line's. Raises LlmnbError."""
    defaults = Recipe().as_dict() | _CORPUS_DEFAULTS | _RUN_DEFAULTS
    settings = files.read_settings(file) if file else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise PretrainingError(f"{pair!r} is not of the form name=value.")
        if isinstance(defaults.get(name), str):
            settings[name] = value  # text is taken literally, whatever YAML would make of it
            continue
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PretrainingError(f"The value of {pair!r} can't be read: {error}") from error
    return checked_settings(settings, defaults)


def _train(settings: dict[str, Any]) -> None:
    """Train and publish. What can be refused at once is refused before the corpus is prepared."""
    corpus_settings = {k: settings.pop(k, v) for k, v in _CORPUS_DEFAULTS.items()}
    run_settings = {k: settings.pop(k, v) for k, v in _RUN_DEFAULTS.items()}
    recipe = Recipe.of(settings)
    source = corpus_settings.pop("corpus")
    kind = corpus_settings.pop("tokenizer")
    recipe.steps()  # raises for a wrong budget
    with torch.device("meta"):
        recipe.build(vocab_size=1)
    model_folder = Path(run_settings["out"]).expanduser() / "model"
    check_publishable(recipe, model_folder)
    try:
        corpus = prepare(source, kind, **corpus_settings)
    except ValueError as error:
        raise PretrainingError(str(error)) from error
    trainer = Trainer(corpus, recipe, say=_say, **run_settings)
    is_first = trainer.processes.rank == 0
    if is_first:
        _say(f"{corpus.summary()}\n{trainer.n_parameters:,} parameters, {trainer.steps:,} steps")
        _say(f"{trainer.processes.description}, {trainer.device}, {trainer.dtype}")
    trainer.run()
    if is_first:
        publish(trainer, model_folder, Path(source).name)


if __name__ == "__main__":
    sys.exit(main())
