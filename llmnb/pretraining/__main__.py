"""python -m llmnb.pretraining --config run.yaml: a training run without a notebook."""

import argparse
import sys
from pathlib import Path

import torch
import yaml

from llmnb import LlmnbError
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.processes import leave
from llmnb.pretraining.publish import check, publish
from llmnb.pretraining.recipe import PretrainingError, Recipe, checked
from llmnb.pretraining.tokens import LEAST, prepare

_DATA = {"corpus": "imdb", "tokenizer": "bpe", "vocab_size": 4096, "column": "text"}
_DATA |= {"train_bytes": None, "validation_bytes": None}
_RUN = {"out": "pretrained", "evaluations": 20, "samples": 0, "prompt": ""}
_RUN |= {"checkpoint_seconds": 60.0, "shard": False}
_HELP = """The file's settings are the fields of llmnb.pretraining.recipe.Recipe, and:
corpus (imdb, or a file or folder), column, tokenizer (bpe, bytes, characters), vocab_size,
train_bytes, validation_bytes, out, evaluations, samples, prompt, checkpoint_seconds, shard.
A killed run goes on from its last checkpoint when the same command is given again.
Several processes: torchrun --nproc-per-node 2 -m llmnb.pretraining --config run.yaml"""


def _settings(file: str | None, pairs: list[str]) -> dict:
    """The file's, then those of the command line. Raises PretrainingError."""
    settings = {}
    if file:
        try:
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PretrainingError(f"{file} can't be read: {error}") from error
        if not isinstance(settings, dict):
            raise PretrainingError(f"{file} must hold lines like `d_model: 128`.")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise PretrainingError(f"{pair!r} is not of the form name=value.")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PretrainingError(f"The value of {pair!r} can't be read: {error}") from error
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Train, and save the model in out/model. Returns the exit code."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("llmnb.pretraining", epilog=_HELP, formatter_class=form)
    parser.add_argument("--config", metavar="FILE", help="settings, as YAML")
    parser.add_argument("pairs", nargs="*", metavar="name=value", help="further settings")
    options = parser.parse_intermixed_args(arguments)
    code = 0
    try:
        given = _settings(options.config, options.pairs)
        _train(checked(given, Recipe().as_dict() | _DATA | _RUN))
    except LlmnbError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    leave()
    return code


def _train(given: dict) -> None:
    """Everything, what can be refused at once before the corpus is made."""
    data, run = ({k: given.pop(k, v) for k, v in part.items()} for part in (_DATA, _RUN))
    recipe, folder = Recipe.of(given), Path(run["out"]).expanduser() / "model"
    source, kind = data.pop("corpus"), data.pop("tokenizer")
    if kind not in LEAST:
        raise PretrainingError(f"tokenizer is {kind!r}; choose one of {', '.join(LEAST)}.")
    recipe.steps()
    with torch.device("meta"):
        recipe.build(vocab_size=1)
    check(recipe, folder)
    try:
        corpus = prepare(source, kind, **data)
    except ValueError as error:
        raise PretrainingError(str(error)) from error
    trainer = Trainer(corpus, recipe, say=_say, **run)
    say = _say if trainer.processes.rank == 0 else lambda line: None
    say(f"{corpus.summary()}\n{trainer.n_parameters:,} parameters, {trainer.steps:,} steps")
    say(f"{trainer.processes.engine}, {trainer.device}, {trainer.dtype}")
    trainer.run()
    if trainer.sharded:
        say("No process has the whole model: run this again in one process to publish it.")
    elif trainer.processes.rank == 0:
        publish(trainer, folder, Path(source).name)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
