"""The exercises of notebook 01."""

import math

import numpy as np

from llmnb.exercises import Exercise

# 1. p(word | previous) from counts of pairs, {(previous, word): times}.
_PAIRS = {("the", "cat"): 3, ("the", "dog"): 1, ("a", "cat"): 2, ("cat", "sat"): 4}


def _bigram(pairs, previous, word):
    of_context = sum(times for (first, _), times in pairs.items() if first == previous)
    return pairs.get((previous, word), 0) / of_context


def _joint(pairs, previous, word):
    return pairs.get((previous, word), 0) / sum(pairs.values())


def _reversed(pairs, previous, word):
    of_word = sum(times for (_, second), times in pairs.items() if second == word)
    return pairs.get((previous, word), 0) / max(of_word, 1)


def _count(pairs, previous, word):
    return pairs.get((previous, word), 0)


def _of_kinds(pairs, previous, word):
    return pairs.get((previous, word), 0) / sum(first == previous for first, _ in pairs)


_BIGRAM = Exercise(
    reference=_bigram,
    cases=[(_PAIRS, "the", "cat"), (_PAIRS, "a", "cat"), (_PAIRS, "the", "sat")],
    mistakes=[
        (
            _joint,
            "That is how often the pair occurs among all pairs, p(previous, word): "
            "divide by the pairs that begin with `previous` only.",
        ),
        (
            _reversed,
            "That is p(previous | word), what stood before: the condition is the other "
            "way round. Divide by the pairs that begin with `previous`.",
        ),
        (
            _count,
            "That is a count, not yet a probability: divide by the pairs that begin with "
            "`previous`.",
        ),
        (
            _of_kinds,
            "You divide by how many different words follow `previous`; divide by how "
            "often they do.",
        ),
    ],
)


def check_bigram(attempt) -> str:
    """Exercise 1: attempt(pairs, previous, word) is p(word | previous)."""
    return _BIGRAM.check(attempt)


# 2. Bits per byte, from each token's natural-log probability and the text.
_TEXTS = [([-1.2, -0.3, -2.0], "Où ça ?"), ([-0.5, -3.0, -0.1, -1.4], "你好, world"), ([-2.0], "a")]


def _bits(log_probs, text):
    return -sum(log_probs) / math.log(2) / len(text.encode())


def _nats(log_probs, text):
    return -sum(log_probs) / len(text.encode())


def _per_character(log_probs, text):
    return -sum(log_probs) / math.log(2) / len(text)


def _per_token(log_probs, text):
    return -sum(log_probs) / math.log(2) / len(log_probs)


def _negative(log_probs, text):
    return -_bits(log_probs, text)


def _perplexity(log_probs, text):
    return math.exp(-sum(log_probs) / len(log_probs))


_BITS = Exercise(
    reference=_bits,
    cases=_TEXTS,
    mistakes=[
        (
            _nats,
            "Those are nats per byte: the log-probabilities are natural logarithms. Divide by "
            "ln 2 for bits.",
        ),
        (
            _per_character,
            "You divide by characters. An é has two bytes and 你 three: divide by "
            "len(text.encode()).",
        ),
        (
            _per_token,
            "You divide by tokens, so the number depends on the tokenizer: divide by the "
            "text's bytes.",
        ),
        (_negative, "The sign: a log-probability is negative, the bits it costs are positive."),
        (_perplexity, "That is the perplexity per token. Wanted are bits, per byte."),
    ],
)


def check_bits_per_byte(attempt) -> str:
    """Exercise 2: attempt(log_probs, text) is the bits per byte."""
    return _BITS.check(attempt)


# 3. Top-p: keep the fewest tokens that together have at least p, and share 1 among them.
_PROBS = [
    ([0.05, 0.5, 0.15, 0.3], 0.7),
    ([0.4, 0.1, 0.3, 0.2], 0.75),
    ([0.2, 0.6, 0.05, 0.15], 0.5),
    ([0.25, 0.15, 0.25, 0.35], 1.0),
]


def _kept(probs, p, crossing=True, by_size=True):
    probs = np.asarray(probs, dtype=float)
    order = np.argsort(-probs, kind="stable") if by_size else np.arange(len(probs))
    before = np.cumsum(probs[order]) - probs[order]
    inside = before < p - 1e-12 if crossing else before + probs[order] <= p + 1e-12
    kept = np.zeros_like(probs)
    kept[order[inside]] = probs[order[inside]]
    return kept


def _shared(kept):
    return kept / kept.sum() if kept.sum() else kept


def _threshold(probs, p):
    probs = np.asarray(probs, dtype=float)
    return _shared(np.where(probs >= 1 - p, probs, 0))


_TOP_P = Exercise(
    reference=lambda probs, p: _shared(_kept(probs, p)),
    cases=_PROBS,
    mistakes=[
        (
            _kept,
            "The right tokens, but their probabilities no longer sum to 1: divide by what is left.",
        ),
        (
            lambda probs, p: _shared(_kept(probs, p, crossing=False)),
            "You drop the token that crosses p. It belongs to the set: the kept ones must have at "
            "least p together.",
        ),
        (
            lambda probs, p: _shared(_kept(probs, p, by_size=False)),
            "You add up the tokens in the vocabulary's order: sort them by probability first.",
        ),
        (
            _threshold,
            "You compare each probability with a threshold by itself; top-p adds them up, "
            "from the largest.",
        ),
        (
            lambda probs, p: np.sort(_shared(_kept(probs, p)))[::-1],
            "The right values in the wrong places: after sorting, put each back at its own index.",
        ),
    ],
)


def check_top_p(attempt) -> str:
    """Exercise 3: attempt(probs, p) is the filtered distribution, in the vocabulary's order."""
    return _TOP_P.check(attempt)
