"""Does B win with another seed? Notebook 05's pair, word counts against full fine-tuning.

Both are trained on the `cpu` profile's texts, full fine-tuning with several seeds, and compared on
the same test texts. The classifiers stay in the cache, so that a run that was stopped goes on.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from _common import finish, options

from llmnb import data, fine_tuning, profiles
from llmnb.evaluation import uncertainty
from llmnb.runs import facts

LABELS = ("negative", "positive")
SEEDS = (0, 1, 2)


def main() -> None:
    """One comparison for each seed."""
    chosen = options(__doc__)
    profile = profiles.resolve("smoke" if chosen.quick else "cpu")
    splits = data.at_profile_size(data.load_reviews("rotten_tomatoes"), profile)
    texts, labels = splits["test"]["text"][:], np.array(splits["test"]["label"][:])
    settings = fine_tuning.Settings(encoder=profile.encoder, decoder=profile.decoder)
    counts = fine_tuning.trained("tfidf", splits, LABELS, settings)
    right_a = counts.probabilities(texts).argmax(1) == labels
    rows = []
    for seed in SEEDS[:2] if chosen.quick else SEEDS:
        again = dataclasses.replace(settings, seed=seed)
        full = fine_tuning.trained("full", splits, LABELS, again)
        right_b = full.probabilities(texts).argmax(1) == labels
        result = uncertainty.compare(right_b, right_a, names=("full", "tfidf"))
        row = {"seed": seed, "full": right_b.mean(), "tfidf": right_a.mean(), "p": result.p}
        rows.append(row | dataclasses.asdict(result.difference))
        print(f"seed {seed}: {result.verdict}", flush=True)
    sizes = {"train_texts": len(splits["train"]), "test_texts": len(texts)}
    result = {
        "name": "evaluation",
        "rows": [row | sizes for row in rows],
        "machine": facts.hardware() | {"host": None},
        "versions": facts.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
    }
    finish(result, chosen.json)


if __name__ == "__main__":
    main()
