"""Film-review sentences (Rotten Tomatoes, all rows): the ladder at full size, and how fast it is.

The headline is the seconds of our full fine-tuning over those of the plain loop that most guides
show (fp32, batches in random order, AdamW as it comes), same model, data, epochs and learning
rate, its accuracy beside it. Then the learning curve, word counts on the long reviews (IMDb), and
two rungs on random splits of the same texts.
"""

import dataclasses
import statistics
import sys
import time

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from _common import finish, options, summary

from llmnb import data, fine_tuning, models
from llmnb.evaluation import uncertainty
from llmnb.fine_tuning import Settings, encoders

LABELS = ("negative", "positive")
SETTINGS = Settings(max_length=64)
SEEDS = (0, 1, 2)
SIZES = (100, 300, 1000, 3000)
MIN_STEPS = 100  # two epochs of 100 texts would be only 8


def plain_loop(splits, settings: Settings) -> tuple[float, float]:
    """Seconds of training and accuracy on the test split."""
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    tokenizer = models.load_tokenizer(settings.encoder)
    model = encoders.load_with_head(settings.encoder, LABELS).train()
    texts, labels = splits["train"]["text"][:], torch.tensor(splits["train"]["label"][:])
    steps = 2 * -(-len(texts) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=encoders.LEARNING_RATE["full"])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    for _ in range(2):
        for rows in torch.randperm(len(texts)).split(settings.batch_size):
            batch = [texts[row] for row in rows]
            inputs = tokenizer(
                batch,
                truncation=True,
                max_length=settings.max_length,
                padding=True,
                return_tensors="pt",
            )
            loss = F.cross_entropy(model(**inputs).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    classifier = encoders.Encoded(LABELS, dataclasses.replace(settings, dtype="fp32"))
    classifier.model = model
    classifier.tokenizer = tokenizer
    predictions = classifier.probabilities(splits["test"]["text"][:]).argmax(axis=1)
    return seconds, float((predictions == np.array(splits["test"]["label"][:])).mean())


def rung(method: str, splits, settings: Settings) -> tuple[dict, fine_tuning.Result]:
    """A row of the table, and the result behind it."""
    result = fine_tuning.run(method, splits, LABELS, settings)
    row = {
        "method": method,
        "seed": settings.seed,
        "train_texts": len(splits["train"]),
        "test_texts": len(splits["test"]),
        "accuracy": result.accuracy.value,
        "low": result.accuracy.low,
        "high": result.accuracy.high,
        "macro_f1": result.macro_f1().value,
        "train_seconds": result.train_seconds,
        "trainable_parameters": result.classifier.trainable_parameters,
        "ms_per_text": result.ms_per_text,
        "bytes_on_disk": result.bytes_on_disk,
    }
    print(
        f"{method:9} seed {settings.seed} {row['train_texts']:6,} texts: {result.accuracy}, "
        f"{result.train_seconds:.1f} s, {row['ms_per_text']:.2f} ms a text",
        flush=True,
    )
    return row, result


def first(splits, n_train: int | None = None, n_test: int | None = None):
    """The first texts of each split: a random sample of it."""
    sizes = {"train": n_train, "test": n_test}
    return {
        name: part.select(range(min(sizes.get(name) or len(part), len(part))))
        for name, part in splits.items()
    }


def redrawn(splits, seed: int):
    """The same texts split anew, at random: how much of a number is the split's luck?"""
    texts = datasets.concatenate_datasets([*splits.values()]).shuffle(seed=seed)
    train_end = round(0.8 * len(texts))
    validation_end = round(0.85 * len(texts))
    return {
        "train": texts.select(range(train_end)),
        "validation": texts.select(range(train_end, validation_end)),
        "test": texts.select(range(validation_end, len(texts))),
    }


def on_other_splits(splits, seeds) -> list[dict]:
    """Word counts and full fine-tuning on random splits."""
    rows = []
    for seed in seeds:
        settings = dataclasses.replace(SETTINGS, seed=seed)
        new_splits = redrawn(splits, seed)
        rows += [rung(method, new_splits, settings)[0] for method in ("tfidf", "full")]
    return rows


def curve(splits, seeds) -> list[dict]:
    """Accuracy for more and more labelled texts."""
    rows = []
    for n in SIZES:
        epochs = max(2.0, MIN_STEPS * SETTINGS.batch_size / n)
        for method in ("tfidf", "frozen", "lora", "full"):
            for seed in seeds if method in ("lora", "full") else seeds[:1]:
                settings = dataclasses.replace(SETTINGS, seed=seed, epochs=epochs)
                rows.append(rung(method, first(splits, n), settings)[0])
    return rows


def main() -> None:
    """All rows, then the race."""
    chosen = options(__doc__, counting="only the rungs that take seconds")
    splits = data.load_reviews("rotten_tomatoes")
    seeds = SEEDS
    if chosen.quick:
        splits, seeds = first(splits, 512, 256), SEEDS[:1]
    few = first(splits, n_test=200)
    rows = [rung(name, splits, SETTINGS)[0] for name in ("majority", "tfidf", "frozen")]
    rows += [rung(name, few, SETTINGS)[0] for name in ("zero_shot", "few_shot")]
    if not chosen.quick:
        rows.append(rung("tfidf", data.load_reviews("imdb"), SETTINGS)[0] | {"data": "imdb"})
    if chosen.counting:
        return
    timed, pairs, plain = [], [], []
    for seed in seeds:
        settings = dataclasses.replace(SETTINGS, seed=seed)
        plain.append(plain_loop(splits, settings))
        print(f"plain loop seed {seed}: {plain[-1][1]:.3f}, {plain[-1][0]:.1f} s", flush=True)
        full_row, full = rung("full", splits, settings)
        lora_row, lora = rung("lora", splits, settings)
        against = uncertainty.compare(lora.correct, full.correct, names=("lora", "full"))
        print(f"  {against.verdict}", flush=True)
        rows += [full_row, lora_row]
        timed.append((full.train_seconds, plain[-1][0]))
        pairs.append({"seed": seed, "verdict": against.verdict, "p": against.p})
        pairs[-1] |= dataclasses.asdict(against.difference)
    result = summary("fine_tuning", timed, 0.5, rows)
    means = {
        name: statistics.mean(row["accuracy"] for row in rows if row["method"] == name)
        for name in ("full", "lora")
    }
    means["plain loop"] = statistics.mean(accuracy for _, accuracy in plain)
    print("mean accuracy:", {name: round(value, 4) for name, value in means.items()})
    result |= {"plain": [{"seconds": s, "accuracy": a} for s, a in plain], "means": means}
    result |= {"lora_minus_full": pairs, "curve": curve(splits, seeds[:1])}
    result |= {"other_splits": on_other_splits(splits, seeds)}
    finish(result, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
