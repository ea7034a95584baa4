"""Counting n-grams: llmnb's arrays against dictionaries, both from bytes to a model that can score.

The reference counts with collections.Counter over zipped windows, as fast as plain Python gets, and
does less: it counts, and sums the contexts, but smooths nothing.
"""

from collections import Counter

from _common import finish, options, pairs, summary

from llmnb import concepts, data

ORDER = 5


def dictionaries(train: bytes) -> list[tuple[Counter, Counter]]:
    """Counts and context sums of every order."""
    levels = []
    for order in range(1, ORDER + 1):
        counts = Counter(zip(*(train[start:] for start in range(order)), strict=False))
        contexts: Counter = Counter()
        for gram, times in counts.items():
            contexts[gram[:-1]] += times
        levels.append((counts, contexts))
    return levels


def main() -> None:
    """Time both on real reviews, and print the models' bits per byte."""
    chosen = options(__doc__)
    reviews = data.load_reviews("imdb")
    train = data.joined(reviews["train"], 400_000 if chosen.quick else 4_000_000)
    symbols = concepts.to_bytes(train)
    timed = pairs(
        lambda: concepts.NgramModel(symbols, ORDER, 256),
        lambda: dictionaries(train),
        3 if chosen.quick else 7,
    )
    blocks = data.first_blocks(reviews["test"], 64)
    sizes, rows = concepts.block_sizes(blocks), []
    for order in (1, 2, 3, 5, 8):
        model = concepts.NgramModel(symbols, order, 256)
        bits = concepts.bits_per_byte(concepts.ngram_bits(model, blocks), sizes)
        rows.append({"order": order, "counts": len(model), "bits_per_byte": round(bits, 4)})
        print(f"{order}-gram  {len(model):>10,} counts  {bits:.3f} bits per byte")
    finish(summary("concepts", timed, 0.5, rows), chosen.json)


if __name__ == "__main__":
    main()
