"""Coverage of intervals, false positives and power: simulated, or over every outcome."""

import itertools

import numpy as np
import pytest
from scipy import stats
from test_uncertainty import pair

from llmnb.evaluation.uncertainty import (
    bootstrap,
    bootstrap_f1,
    compare,
    items_needed,
    paired_bootstrap,
)


def outcomes(n, p_discordant):
    """Every likely (only_a, only_b) among n items under the null, with its probability."""
    shares = [p_discordant / 2, p_discordant / 2, 1 - p_discordant]
    for a, b in itertools.product(range(n + 1), repeat=2):
        probability = stats.multinomial.pmf([a, b, n - a - b], n, shares)
        if probability > 1e-6:
            yield a, b, probability


def coverage(draw, truth, n, repetitions=4000, **options):
    """How often the interval of n items holds the truth."""
    samples = draw(np.random.default_rng(1), (repetitions, n))
    is_covered = []
    for seed, sample in enumerate(samples):
        interval = bootstrap(sample, resamples=1000, seed=seed, **options)
        is_covered.append(interval.low <= truth <= interval.high)
    return np.mean(is_covered)


def scores(generator, size):
    """Like token-F1: three tenths 0, three tenths 1, the others in between."""
    kind = generator.random(size)
    return np.where(kind < 0.3, 0, np.where(kind < 0.6, 1, generator.beta(2, 2, size)))


LAWS = {
    "normal": (lambda g, size: g.normal(size=size), 0, {}),
    "scores": (scores, 0.5, {}),
    "exponential": (lambda g, size: g.exponential(size=size), 1, {}),
    "median": (lambda g, size: g.normal(size=size), 0, {"statistic": np.median}),
}


@pytest.mark.parametrize(
    ("law", "n"),
    [("normal", 20), ("scores", 20), ("scores", 60), ("exponential", 60), ("median", 20)],
)
def test_intervals_cover_as_often_as_they_say(law, n):
    draw, truth, options = LAWS[law]
    covered = coverage(draw, truth, n, **options)
    assert 0.93 <= covered <= 0.97 or (law == "exponential" and 0.92 <= covered < 0.95)


@pytest.mark.parametrize(("n", "discordance"), [(50, 0.4), (100, 0.1), (200, 0.05)])
def test_false_positives_stay_below_alpha(n, discordance):
    """Under the null, exactly: McNemar's mid-p, the verdict, and the paired bootstrap."""
    wrong = dict.fromkeys(("mid-p", "verdict", "bootstrap"), 0.0)
    for only_a, only_b, probability in outcomes(n, discordance):
        a, b = pair(only_a, only_b, n)
        result = compare(a, b)
        wrong["mid-p"] += probability * (result.p <= 0.05)
        wrong["verdict"] += probability * ("beats" in result.verdict)
        if result.p < 0.3:  # elsewhere the bootstrap is far from 0.05, too
            _, p = paired_bootstrap(a, b, resamples=1000)
            wrong["bootstrap"] += probability * (p <= 0.05)
    assert wrong["verdict"] <= wrong["mid-p"] <= 0.05
    assert 0.03 <= wrong["bootstrap"] <= 0.065


@pytest.mark.parametrize(("n", "rare"), [(80, 0.5), (200, 0.15)])
def test_f1_intervals_cover(n, rare):
    cells = np.array([[1 - rare - 0.04, 0.04], [0.04, rare - 0.04]])
    truth = np.mean(2 * np.diag(cells) / (cells.sum(0) + cells.sum(1)))
    generator, covered = np.random.default_rng(5), 0
    for seed, counts in enumerate(generator.multinomial(n, cells.ravel(), 4000)):
        labels, predictions = np.divmod(np.repeat(np.arange(4), counts), 2)
        interval = bootstrap_f1(labels, predictions, resamples=400, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / 4000 <= 0.97


@pytest.mark.parametrize(
    ("p_a", "p_b", "shared"), [(0.8, 0.7, 0.2), (0.9, 0.85, 0.1), (0.75, 0.7, 0.4)]
)
def test_items_needed_reach_their_power(p_a, p_b, shared):
    n = items_needed(p_a, p_b, shared)
    only_a, only_b = (shared + p_a - p_b) / 2, (shared - p_a + p_b) / 2
    power = 0.0
    table = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - shared], 2000)
    counts, times = np.unique(table[:, :2], axis=0, return_counts=True)
    for (n_only_a, n_only_b), repeats in zip(counts, times, strict=True):
        power += repeats / 2000 * (compare(*pair(n_only_a, n_only_b, n)).p <= 0.05)
    assert 0.77 <= power <= 0.85
