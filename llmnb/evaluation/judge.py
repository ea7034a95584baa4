"""Pairs of answers with a known better one, to measure a model that judges answers.

The pairs in resources/judge.json were written for this project: general questions, a right answer,
and one with a planted defect. In half of them the defective answer is the longer one, so a judge
that takes the longer answer is right on half. What this can't show: whether a judge agrees with
people where both answers are good; that takes pairs that people have judged.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmnb import handbook
from llmnb.evaluation.uncertainty import Interval, proportion


@dataclass(frozen=True)
class Pair:
    """A question with a right answer, and with one that has the named defect."""

    question: str
    right: str
    wrong: str
    defect: str


def pairs() -> list[Pair]:
    """All pairs, ordered so that the first n hold each kind of defect about equally often."""
    return [Pair(**row) for row in handbook.resource("judge")]


def outcomes(first: ArrayLike, second: ArrayLike) -> dict[str, Interval]:
    """What a judge does with pairs that it sees in both orders, as shares with 95 % intervals.

    first: its probability of the answer of interest (the right one, say) where that stands first;
    second: its probability of the other answer, where that stands first; (n,) each. A judge that
    gives letters has 1 or 0, and 0.5 for neither. "first": the first answer wins in both orders;
    "consistent": the answer of interest does (a coin: a quarter of the pairs each); "averaged": it
    wins when the orders are averaged (a coin: half), a tie counts one half.
    Raises ValueError for arrays of different lengths, or none.
    """
    first, second = (np.asarray(array, dtype=float) for array in (first, second))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"Shapes {first.shape} and {second.shape}: one number for each pair.")
    n = len(first)
    average = np.sign(first - second)  # of p and 1 - q, against one half: 1, 0 for a tie, or -1
    wins = float((average + 1).sum() / 2)
    low, high = proportion(math.floor(wins), n).low, proportion(math.ceil(wins), n).high
    return {
        "first": proportion(int(((first > 0.5) & (second > 0.5)).sum()), n),
        "consistent": proportion(int(((first > 0.5) & (second < 0.5)).sum()), n),
        "averaged": Interval(wins / n, low, high),
    }
