"""Film-review sentences (Rotten Tomatoes, all rows): the ladder at full size, and how fast it is.

The headline is the seconds of our full fine-tuning over those of the plain loop that most guides
show (fp32, batches in random order, AdamW as it comes), same model, data, epochs and learning
rate, its accuracy beside it. Then word counts on the long reviews (IMDb), two rungs on random
splits of the same texts, the learning curve from 8 labels on, and LoRA's rank, scale and rate.

The last two take longest, so FILE is written after each of their rows, and rows that it holds
are not measured again: run the same command once more after an interruption, and with --again
after a change of the code.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from _common import finish, options, summary

from llmnb import data, fine_tuning, models
from llmnb.evaluation import uncertainty
from llmnb.fine_tuning import Settings, encoders
from llmnb.fine_tuning.prompting import CALIBRATION_TEXTS

LABELS = ("negative", "positive")
SETTINGS = Settings(max_length=64)
SEEDS = (0, 1, 2)
CURVE_TEST_TEXTS = 400  # the same for every row of the curve and of the sweep
FEW = (8, 16, 32, 64)  # labelled texts, half of them of each class
MANY = (300, 1000, 3000)
CURVE = {  # from how many labelled texts each method learns
    "tfidf": FEW + MANY,
    "frozen": FEW + MANY,
    "few_shot": (2, *FEW),  # all of them stand in the prompt
    "contrastive": FEW,
    "full": MANY,
}
SWEEP_TEXTS = 1000
SWEEP = [  # rank, alpha, learning rate: the default, then one of them changed
    (8, 16, 1e-3),
    (8, 16, 3e-4),
    (8, 16, 3e-3),
    (2, 4, 1e-3),
    (32, 64, 1e-3),
    (8, 8, 1e-3),
    (8, 32, 1e-3),
]


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


def draw(train, n: int, seed: int, unlabelled: int = 0):
    """n training texts at random, as many of either class; then others, whose label isn't used."""
    generator = np.random.default_rng(seed)
    labels = np.array(train["label"][:])
    shuffled = generator.permutation(len(labels))
    rows = [shuffled[labels[shuffled] == label][: n // 2] for label in (0, 1)]
    rows = generator.permutation(np.concatenate(rows))
    others = shuffled[~np.isin(shuffled, rows)][:unlabelled]
    return train.select(np.concatenate([rows, others]))


def short_training(n: int, seed: int) -> Settings:
    """Two epochs and at least 100 steps; small batches where there are few texts."""
    batch_size = 16 if n <= 1000 else 32
    epochs = max(2.0, 100 * batch_size / n)
    shots = n // len(LABELS) if n in FEW else 1
    changes = {"seed": seed, "batch_size": batch_size, "epochs": epochs, "shots": shots}
    return dataclasses.replace(SETTINGS, **changes)


def label_rows(seeds) -> Iterator[tuple[str, dict, Settings]]:
    """The name of a list in the result, what identifies a row of it, and its settings."""
    for seed in seeds:
        identity = {"seed": seed, "test_texts": CURVE_TEST_TEXTS}
        for method, sizes in CURVE.items():
            for n in sizes:
                settings = short_training(n, seed)
                training = {"method": method, "labels": n, "epochs": settings.epochs}
                yield "curve", identity | training, settings
        for rank, alpha, rate in SWEEP:
            changes = {"lora_rank": rank, "lora_alpha": alpha, "lr": rate}
            settings = dataclasses.replace(short_training(SWEEP_TEXTS, seed), **changes)
            training = {"method": "lora", "labels": SWEEP_TEXTS, "epochs": settings.epochs}
            yield "sweep", identity | training | changes, settings


def measure_labels(splits, seeds, result: dict, file) -> None:
    """Add the rows that are missing, and write the file after each; rows of other sizes go."""
    plan = list(label_rows(seeds))
    for part in ("curve", "sweep"):
        identities = [identity for name, identity, _ in plan if name == part]
        rows = result.get(part, [])
        result[part] = [row for row in rows if any(i.items() <= row.items() for i in identities)]
    for part, identity, settings in plan:
        if any(identity.items() <= row.items() for row in result[part]):
            continue
        parts = first(splits, n_test=CURVE_TEST_TEXTS)
        # A prompt's calibration reads texts without their labels.
        unlabelled = CALIBRATION_TEXTS if identity["method"] == "few_shot" else 0
        parts["train"] = draw(splits["train"], identity["labels"], settings.seed, unlabelled)
        row, outcome = rung(identity["method"], parts, settings)
        names = ("accuracy", "low", "high", "train_seconds", "trainable_parameters")
        measured = {name: row[name] for name in names}
        # One character a text, so that rows can be compared text by text.
        correct = "".join(map(str, outcome.correct.astype(int)))
        dated = {"correct": correct, "date": time.strftime("%Y-%m-%d")}
        result[part].append(identity | measured | dated)
        finish(result, file)


def main() -> None:
    """All rows, then the race, then the curve and the sweep."""
    chosen = options(
        __doc__,
        counting="only the rungs that take seconds",
        labels="only the learning curve and LoRA's sweep; the rest of FILE stays",
        again="measure the rows of the curve and the sweep again that FILE holds",
    )
    splits = data.load_reviews("rotten_tomatoes")
    seeds = SEEDS
    if chosen.quick:
        splits, seeds = first(splits, 512, 256), SEEDS[:1]
    stored = {}
    if chosen.json and chosen.json.is_file():
        stored = json.loads(chosen.json.read_text(encoding="utf-8"))
        if chosen.quick and stored.get("curve"):
            raise SystemExit(f"{chosen.json} may hold rows of more texts: name a file for --quick.")
    if chosen.again:
        stored |= {"curve": [], "sweep": []}
    if chosen.labels:
        measure_labels(splits, seeds, stored, chosen.json)
        return
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
    result |= {"lora_minus_full": pairs, "other_splits": on_other_splits(splits, seeds)}
    result |= {part: stored.get(part, []) for part in ("curve", "sweep")}
    measure_labels(splits, seeds, result, chosen.json)
    finish(result, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
