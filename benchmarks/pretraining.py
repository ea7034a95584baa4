"""Pretraining on the characters of film reviews: seconds until a validation loss is reached.

A. Our recipe, until it has the loss of the tutorials' baseline after its 2,000 steps.
B. The same baseline, tuned as hard as ours: learning rate, batch and budget (see --sweep).
C. Notebook 03's network, with several seeds, against n-grams that counted the same documents.
D. Several sizes at each of four compute budgets: which size is best, and does a line through the
   best of three budgets predict the fourth? (Hoffmann et al. 2022, approach 2.)
At last each ingredient: our recipe without it, or with another one, until the same loss.

In A and B only training is timed, not evaluation. A loss counts as reached when three evaluations
in a row are at most as high.
"""

import itertools
import json
import math
import statistics
import sys
from dataclasses import replace

import _common
import torch
import torch.nn.functional as F

from llmnb import concepts, cost, data, profiles
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import BASELINE, Recipe
from llmnb.pretraining.tokens import TokenCorpus, prepare

# Our recipe for this text, with at most the baseline's parameters; `sweep` chose it and TUNED.
OURS = Recipe(
    n_layers=3,
    d_model=144,
    n_heads=3,
    model={"tied": False},
    batch_size=8,
    tokens=180_000,
    lr=16e-3,
    decay=1.0,
    dtype="bf16",
)
TUNED = replace(BASELINE, dtype="bf16", lr=3e-3, tokens=1_050_000)


def changed(**changes) -> Recipe:
    """Our recipe with some settings changed."""
    return replace(OURS, **changes)


def crossing(log: list[dict], target: float) -> float:
    """Training seconds until three evaluations in a row are at the target; else inf."""
    is_below = [row["validation_loss"] <= target for row in log]
    for number, row in enumerate(log[:-2]):
        if all(is_below[number : number + 3]):
            return row["seconds"]
    return math.inf


def trained(corpus: TokenCorpus, recipe: Recipe, alter=None, evaluations: int = 24) -> Trainer:
    """A whole run; alter: a function that changes the model before it."""
    trainer = Trainer(corpus, recipe, evaluations=evaluations)
    if alter:
        alter(trainer.model)
    trainer.run()
    return trainer


def seconds_to(corpus: TokenCorpus, recipe: Recipe, target: float, alter=None) -> float:
    """The crossing of the shortest run that has one, up to six times the recipe's tokens."""
    for factor in (1.0, 1.25, 1.5, 2.0, 3.0, 4.5, 6.0):
        longer = replace(recipe, tokens=int(factor * recipe.tokens))
        seconds = crossing(trained(corpus, longer, alter).log, target)
        if seconds < math.inf:
            return seconds
    return math.inf


def relu_squared(model) -> None:
    """So et al. 2021, Primer: ReLU² in a feed-forward layer without a gate."""
    for block in model.blocks:
        block.feed_forward.activation = lambda x: F.relu(x).square()


def soft_cap(model) -> None:
    """Gemma 2: logits within ±15."""
    model.head.register_forward_hook(lambda head, _, logits: 15 * torch.tanh(logits / 15))


MODEL = dict(OURS.model)
GELU = MODEL | {"activation": "gelu_tanh"}
LEARNED = MODEL | {"positions": "learned"}
TWO_BATCHES = 2 * OURS.batch_size
INGREDIENTS = {  # a changed ingredient: the recipe with it, and a function that alters the model
    "AdamW instead of Muon": (changed(optimizer="adamw", lr=4e-3), None),
    "learned positions instead of rotary": (changed(model=LEARNED), None),
    "no norm of queries and keys": (changed(family="llama"), None),
    "LayerNorm instead of RMSNorm": (changed(model=MODEL | {"norm": "layer"}), None),
    "GELU instead of SwiGLU": (changed(model=GELU), None),
    "ReLU² instead of SwiGLU": (changed(model=GELU), relu_squared),
    "logits capped at 15": (OURS, soft_cap),
    "output matrix tied to the embedding": (changed(model=MODEL | {"tied": True}), None),
    "no projections that start at zero": (changed(zero_init=False), None),
    "4 layers of 128 instead of 3 of 144": (changed(n_layers=4, d_model=128, n_heads=4), None),
    "blocks of 64 instead of 128": (changed(block_size=64, batch_size=TWO_BATCHES), None),
    "twice the batch": (changed(batch_size=TWO_BATCHES), None),
    "fp32 instead of bf16": (changed(dtype="fp32"), None),
    "no clipping": (changed(clip=0.0), None),
    "no decay of the learning rate": (changed(decay=0.0), None),
}


def against_counting(seeds: int) -> dict:
    """C: bits per byte of the network that notebook 03 trains, by seed, and of the n-grams."""
    profile = profiles.PROFILES["cpu"]
    n_bytes = {"train": profile.train_bytes, "validation": profile.train_bytes // 80}
    corpus = prepare(profile.corpus, "bpe", 2048, *n_bytes.values())
    texts = {}
    for name, rows in data.load_corpus(profile.corpus).items():
        if name in n_bytes:
            texts[name] = data.joined(rows, corpus.n_bytes[name])
    result = {"networks": [], "ngrams": {}, "tokens": profile.train_tokens}
    for order in (5, 8):
        model = concepts.NgramModel(concepts.to_bytes(texts["train"]), order, 256)
        held_out = concepts.to_bytes(texts["validation"], context=order - 1)
        bits = -model.log2_probs(held_out)
        result["ngrams"][str(order)] = concepts.bits_per_byte(bits, len(texts["validation"]))
    d_model, n_layers, n_heads, block_size = profile.pretraining
    recipe = Recipe(d_model=d_model, n_layers=n_layers, n_heads=n_heads, block_size=block_size)
    recipe = replace(recipe, model={"tied": False}, lr=16e-3, tokens=profile.train_tokens)
    for seed in range(seeds):
        loss = trained(corpus, replace(recipe, seed=seed), evaluations=1).log[-1]["validation_loss"]
        result["networks"].append(loss / math.log(2) / corpus.bytes_per_token)
        print(f"seed {seed}: {result['networks'][-1]:.4f}, n-grams {result['ngrams']}", flush=True)
    return result


# For D: the widths tried at each budget in FLOPs. The learning rates are not tuned again.
ISO_FLOPS = {
    1.25e10: (8, 12, 16, 24, 32),
    5e10: (16, 24, 32, 48, 64),
    2e11: (24, 32, 48, 64, 96),
    8e11: (32, 48, 64),
}


def scaling(budgets: dict[float, tuple[int, ...]] = ISO_FLOPS, seed: int = 0) -> list[dict]:
    """D: one run for each budget and width, on characters that are not repeated."""
    corpus = prepare("imdb", "characters", 512, 20_000_000, 100_000)
    rows = []
    for flops, d_model in ((flops, d) for flops, widths in budgets.items() for d in widths):
        recipe = replace(OURS, d_model=d_model, n_layers=2, n_heads=2, block_size=64, seed=seed)
        recipe = replace(recipe, batch_size=16, model={})
        per_token = cost.flops_per_token(recipe.config(len(corpus.tokenizer)), recipe.block_size)
        recipe = replace(recipe, tokens=int(flops / per_token))
        run = trained(corpus, recipe, evaluations=1)
        row = {"flops": flops, "d_model": d_model, "parameters": run.n_parameters, "seed": seed}
        rows.append(row | {"tokens": recipe.tokens, "loss": run.log[-1]["validation_loss"]})
        print(rows[-1], f"{run.seconds:.0f} s", flush=True)
    return rows


def races(corpus: TokenCorpus, seeds: int) -> dict[str, list[float]]:
    """Seconds of the baseline, the tuned baseline and ours, seed by seed, and the target."""
    result = {"baseline": [], "tuned": [], "ours": [], "target": []}
    for seed in range(seeds):
        baseline = trained(corpus, replace(BASELINE, seed=seed), evaluations=20)
        target = baseline.log[-1]["validation_loss"]
        result["target"].append(target)
        result["baseline"].append(baseline.seconds)
        result["ours"].append(seconds_to(corpus, replace(OURS, seed=seed), target))
        result["tuned"].append(seconds_to(corpus, replace(TUNED, seed=seed), target))
        latest = {name: round(values[-1], 3) for name, values in result.items()}
        print(f"  seed {seed}:", latest, file=sys.stderr)
    return result


def sweep(corpus: TokenCorpus, target: float) -> None:
    """Choose OURS and TUNED alike: a grid of rates and batches, then the shortest budget."""
    grids = {
        "ours": (OURS, (8e-3, 16e-3, 32e-3), (8, 12, 16)),
        "tuned": (TUNED, (1.5e-3, 2e-3, 3e-3), (8, 12, 24)),
    }
    for name, (recipe, rates, batches) in grids.items():
        runs = []
        for lr, batch in itertools.product(rates, batches):
            run = trained(corpus, replace(recipe, lr=lr, batch_size=batch), evaluations=1)
            runs.append((run.log[-1]["validation_loss"], run.seconds, run.recipe))
            print(f"{name}: lr {lr:g}, batch {batch}: {runs[-1][:2]}", flush=True)
        best = min(runs, key=lambda run: run[0])[2]
        for factor in (0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.4):
            recipe = replace(best, tokens=int(factor * best.tokens))
            run = trained(corpus, recipe, evaluations=1)
            loss = run.log[-1]["validation_loss"]
            print(f"{name}: {recipe.tokens:,} tokens: {loss:.4f}, {run.seconds:.1f} s", flush=True)
            if loss < target - 0.004:  # a crossing must hold
                break


def main() -> None:
    """Run it all; --quick: one seed, no ingredients."""
    flags = {"sweep": "choose learning rates and batches again"}
    flags |= {"counting": "only C", "scaling": "only D"}
    options = _common.options(__doc__, **flags)
    corpus = prepare("imdb", "characters", 512, 1_000_000, 100_000)
    print(corpus.summary())
    if options.sweep:
        return sweep(corpus, target=1.814)
    parts = {"counting": lambda: against_counting(5), "scaling": scaling}
    for name, part in parts.items():
        if getattr(options, name):
            result = json.loads(options.json.read_text()) if options.json else {}
            return _common.finish(result | {name: part()}, options.json)
    times = races(corpus, 1 if options.quick else 3)
    pairs = list(zip(times["ours"], times["baseline"], strict=True))
    result = _common.summary("pretraining", pairs, target=1 / 5, rows=[])
    tuned = [a / b for a, b in zip(times["ours"], times["tuned"], strict=True)]
    print(
        f"against the tuned baseline: {statistics.median(tuned):.3f} ({min(tuned):.3f} … "
        f"{max(tuned):.3f}), target < {1 / 2.5:g}"
    )
    result |= {"seconds": times, "against_tuned": sorted(tuned)}
    recipes = {"ours": OURS, "baseline": BASELINE, "tuned": TUNED}
    result["recipes"] = {name: recipe.as_dict() for name, recipe in recipes.items()}
    if not options.quick:
        result |= {name: part() for name, part in parts.items()}
    target = times["target"][0]
    for name, (recipe, alter) in INGREDIENTS.items() if not options.quick else ():
        ours = seconds_to(corpus, OURS, target)
        other = seconds_to(corpus, recipe, target, alter)
        print(f"{name}: {other:.1f} s, ours {ours:.1f} s: {other / ours:.2f} times", flush=True)
        row = {"name": name, "seconds": other, "ours": ours, "factor": other / ours}
        if other == math.inf:  # not within six times the tokens; JSON has no infinity
            row |= {"seconds": None, "factor": None}
        result["rows"].append(row)
    _common.finish(result, options.json)


if __name__ == "__main__":
    main()
