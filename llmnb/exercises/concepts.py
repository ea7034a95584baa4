"""The exercises of notebook 01."""

import math

import numpy as np

from llmnb.exercises import check

_PAIRS = {("the", "cat"): 3, ("the", "dog"): 1, ("a", "cat"): 2, ("cat", "sat"): 4}


def check_bigram(attempt) -> str:
    """Exercise 1: attempt(pairs, previous, word) is p(word | previous), from counts of pairs."""

    def over(total):
        return lambda pairs, before, word: pairs.get((before, word), 0) / total(pairs, before, word)

    return check(
        attempt,
        over(lambda pairs, before, word: sum(n for (a, _), n in pairs.items() if a == before)),
        [(_PAIRS, "the", "cat"), (_PAIRS, "a", "cat"), (_PAIRS, "the", "sat")],
        {
            "That is p(previous, word), among all pairs: divide by the pairs that begin with "
            "`previous` only.": over(lambda pairs, before, word: sum(pairs.values())),
            "That is p(previous | word), the condition the other way round: divide by the pairs "
            "that begin with `previous`.": over(
                lambda pairs, before, word: sum(n for (_, b), n in pairs.items() if b == word) or 1
            ),
            "That is a count, not yet a probability: divide by the pairs that begin with "
            "`previous`.": over(lambda pairs, before, word: 1),
            "You divide by how many different words follow `previous`; divide by how often they "
            "do.": over(lambda pairs, before, word: sum(a == before for a, _ in pairs)),
        },
    )


def check_bits_per_byte(attempt) -> str:
    """Exercise 2: attempt(log_probs, text) is the bits per byte; log_probs are natural logs."""

    def bits(logs, text):
        return -sum(logs) / math.log(2) / len(text.encode())

    return check(
        attempt,
        bits,
        [([-1.2, -0.3, -2.0], "Où ça ?"), ([-0.5, -3.0, -0.1, -1.4], "你好, world"), ([-2.0], "a")],
        {
            "Those are nats per byte: the logarithms are natural. Divide by ln 2.": (
                lambda logs, text: bits(logs, text) * math.log(2)
            ),
            "You divide by characters: é has two bytes and 你 three. Use len(text.encode()).": (
                lambda logs, text: -sum(logs) / math.log(2) / len(text)
            ),
            "You divide by tokens, so the tokenizer decides: divide by the text's bytes.": (
                lambda logs, text: -sum(logs) / math.log(2) / len(logs)
            ),
            "The sign: a log-probability is negative, the bits it costs are positive.": (
                lambda logs, text: -bits(logs, text)
            ),
            "That is the perplexity per token. Wanted are bits, per byte.": (
                lambda logs, text: math.exp(-sum(logs) / len(logs))
            ),
        },
    )


def check_top_p(attempt) -> str:
    """Exercise 3: attempt(probs, p) is the filtered distribution, in the vocabulary's order."""

    def kept(probs, p, crossing=True, by_size=True, shared=True):
        probs = np.asarray(probs, dtype=float)
        order = np.argsort(-probs, kind="stable") if by_size else np.arange(len(probs))
        sums = np.cumsum(probs[order])
        inside = order[sums - probs[order] < p - 1e-12 if crossing else sums <= p + 1e-12]
        result = np.zeros_like(probs)
        result[inside] = probs[inside]
        return result / (result.sum() or 1) if shared else result

    return check(
        attempt,
        kept,
        [
            ([0.05, 0.5, 0.15, 0.3], 0.7),
            ([0.4, 0.1, 0.3, 0.2], 0.75),
            ([0.2, 0.6, 0.05, 0.15], 0.7),
            ([0.25, 0.15, 0.25, 0.35], 0.9),
        ],
        {
            "The right tokens, but they no longer sum to 1: divide by what is left.": (
                lambda probs, p: kept(probs, p, shared=False)
            ),
            "You drop the token that crosses p: the kept ones must have at least p together.": (
                lambda probs, p: kept(probs, p, crossing=False)
            ),
            "You add up in the vocabulary's order: sort the tokens by probability first.": (
                lambda probs, p: kept(probs, p, by_size=False)
            ),
            "The right values in the wrong places: put each back at its own index.": (
                lambda probs, p: np.sort(kept(probs, p))[::-1]
            ),
        },
    )
