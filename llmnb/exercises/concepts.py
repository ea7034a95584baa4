"""The exercises of notebook 01."""

import math

import numpy as np

from llmnb.exercises import check

_COUNTS = {("the", "cat"): 3, ("the", "dog"): 1, ("a", "cat"): 2, ("cat", "sat"): 4}


def check_bigram(attempt) -> str:
    """Exercise 1: attempt(pairs, previous, word) is p(word | previous), from counts."""

    def beginning(pairs, previous, word):
        return sum(count for pair, count in pairs.items() if pair[0] == previous)

    def ending(pairs, previous, word):
        return sum(count for pair, count in pairs.items() if pair[1] == word) or 1

    def probability(pairs, previous, word, total=beginning):
        return pairs.get((previous, word), 0) / total(pairs, previous, word)

    mistakes = {
        "That is p(previous, word), among all pairs: divide by the pairs that begin with "
        "`previous` only.": {"total": lambda pairs, *_: sum(pairs.values())},
        "That is p(previous | word), the other way round: divide by the pairs that begin "
        "with `previous`.": {"total": ending},
        "That is a count, not yet a probability: divide by the pairs that begin with `previous`.": {
            "total": lambda *_: 1
        },
        "You divide by how many different words follow `previous`; divide by how often they do.": {
            "total": lambda pairs, previous, _: sum(p == previous for p, _ in pairs)
        },
    }
    cases = [(_COUNTS, "the", "cat"), (_COUNTS, "a", "cat"), (_COUNTS, "the", "sat")]
    return check(attempt, probability, cases, mistakes)


def check_bits_per_byte(attempt) -> str:
    """Exercise 2: attempt(log_probs, text) is bits per byte, from natural logarithms."""

    def bits(logs, text, base=2, length=lambda logs, text: len(text.encode())):
        return -sum(logs) / math.log(base) / length(logs, text)

    mistakes = {
        "Those are nats per byte: the logarithms are natural. Divide by ln 2.": {"base": math.e},
        "You divide by characters: é has two bytes, 你 three. Use len(text.encode()).": {
            "length": lambda logs, text: len(text)
        },
        "You divide by tokens, so the tokenizer decides: divide by the bytes.": {
            "length": lambda logs, text: len(logs)
        },
        "The sign: a log-probability is negative, the bits it costs are positive.": {"base": 1 / 2},
        "That is the perplexity per token, not the bits per byte.": (
            lambda logs, text: math.exp(-sum(logs) / len(logs))
        ),
    }
    cases = [([-1.2, -2.0], "Où ça ?"), ([-2.0], "a"), ([-0.5, -3.0, -0.1], "你好, world")]
    return check(attempt, bits, cases, mistakes)


def check_top_p(attempt) -> str:
    """Exercise 3: attempt(probs, p) is the filtered distribution, in order."""

    def filtered(probs, p, crossing=True, by_size=True, normalized=True):
        probs = np.asarray(probs, dtype=float)
        order = np.argsort(-probs, kind="stable") if by_size else np.arange(len(probs))
        sums = np.cumsum(probs[order])
        is_inside = sums - probs[order] < p - 1e-12 if crossing else sums <= p + 1e-12
        result = np.zeros_like(probs)
        result[order[is_inside]] = probs[order[is_inside]]
        return result / (result.sum() or 1) if normalized else result

    mistakes = {
        "The right tokens, but they no longer sum to 1: divide by their sum.": {
            "normalized": False
        },
        "You drop the token that crosses p: those that stay have at least p together.": {
            "crossing": False
        },
        "You add up in the vocabulary's order: sort the tokens by probability.": {"by_size": False},
        "The right values in the wrong places: put each back at its own index.": (
            lambda probs, p: np.sort(filtered(probs, p))[::-1]
        ),
    }
    cases = [([0.05, 0.5, 0.15, 0.3], 0.7), ([0.4, 0.1, 0.3, 0.2], 0.75)]
    cases += [([0.2, 0.6, 0.05, 0.15], 0.7), ([0.25, 0.15, 0.25, 0.35], 0.9)]
    return check(attempt, filtered, cases, mistakes)
