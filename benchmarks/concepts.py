"""Counting n-grams: llmnb's arrays against dictionaries, both from bytes to counts.

The reference uses collections.Counter over zipped windows, the fastest way in plain Python. It
does less than ours: it counts n-grams and sums the counts of contexts, but doesn't smooth.
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
        for ngram, count in counts.items():
            contexts[ngram[:-1]] += count
        levels.append((counts, contexts))
    return levels


def main() -> None:
    """Time both on real reviews, and print the models' bits per byte."""
    arguments = options(__doc__)
    reviews = data.load_reviews("imdb")
    train = data.joined(reviews["train"], 400_000 if arguments.quick else 4_000_000)
    symbols = concepts.to_bytes(train)
    timed = pairs(
        lambda: concepts.NgramModel(symbols, ORDER, 256),
        lambda: dictionaries(train),
        3 if arguments.quick else 7,
    )
    blocks = data.first_blocks(reviews["test"], 64)
    sizes, rows = concepts.block_sizes(blocks), []
    for order in (1, 2, 3, 5, 8):
        model = concepts.NgramModel(symbols, order, 256)
        bits = concepts.bits_per_byte(concepts.ngram_bits(model, blocks), sizes)
        row = {"order": order, "counts": len(model), "bits_per_byte": round(bits, 4)}
        rows.append(row)
        print(f"{order}-gram  {len(model):>10,} counts  {bits:.3f} bits per byte")
    finish(summary("concepts", timed, 0.5, rows), arguments.json)


if __name__ == "__main__":
    main()
