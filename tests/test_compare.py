"""Which setting is better: known truths, simulated, and what can't be judged."""

import math

import numpy as np
import pytest
from scipy import stats

from llmnb.runs import compare

RNG_SEED = 4
N_SETTINGS = 20
N_SEEDS = 5


def values_of(samples):
    """Rows of settings, columns of seeds, as `compare` takes them."""
    return {
        f"s{number}": {str(seed): float(value) for seed, value in enumerate(row)}
        for number, row in enumerate(samples)
    }


def simulated(random, lead=0.0, noise=1.0):
    """Twenty settings with five shared seeds; the first has a lead in standard deviations."""
    samples = random.normal(size=(N_SETTINGS, N_SEEDS)) + random.normal(size=N_SEEDS)
    samples[0] = samples[0] * noise + lead
    return values_of(samples)


@pytest.mark.parametrize(("n_metrics", "noise"), [(1, 1.0), (3, 1.0), (1, 6.0)])
def test_few_pages_without_differences_call_a_setting_better(n_metrics, noise):
    random = np.random.default_rng(RNG_SEED)
    n_pages = 400
    n_false = 0
    for _ in range(n_pages):
        metrics = [simulated(random, noise=noise) for _ in range(n_metrics)]
        level = compare.ERROR_RATE / n_metrics
        n_false += any(compare.compare(values, "lower", level).beaten for values in metrics)
    margin = 1.7 * math.sqrt(0.05 * 0.95 / n_pages)  # what chance adds to a true 5 %
    assert n_false / n_pages <= 0.05 + margin


def test_three_standard_deviations_are_seen_with_five_seeds():
    random = np.random.default_rng(RNG_SEED)
    n_pages = 300
    n_correct = 0
    for _ in range(n_pages):
        comparison = compare.compare(simulated(random, lead=3.0), "higher")
        n_correct += comparison.best == "s0" and "s7" in comparison.beaten
    assert n_correct / n_pages >= 0.80


def test_two_settings_get_the_t_test():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 6)) + random.normal(size=6)
    (lead,) = compare.compare(values_of([a, b]), "higher").leads.values()
    expected = stats.ttest_rel(a, b).confidence_interval()
    ends = sorted([abs(expected.low), abs(expected.high)])
    assert sorted([abs(lead.low), abs(lead.high)]) == pytest.approx(ends)
    unpaired = {"a": dict(zip("abcdef", a, strict=True)), "b": dict(zip("ghijkl", b, strict=True))}
    comparison = compare.compare(unpaired, "higher")
    expected = stats.ttest_ind(a, b).confidence_interval()
    (lead,) = comparison.leads.values()
    assert not comparison.is_paired
    assert lead.high - lead.low == pytest.approx(expected.high - expected.low)


def test_without_shared_seeds_the_intervals_are_those_of_tukeys_test():
    random = np.random.default_rng(0)
    samples = [random.normal(size=n) for n in (4, 6, 5)]
    values = {
        str(k): {f"{k}{n}": float(v) for n, v in enumerate(row)} for k, row in enumerate(samples)
    }
    comparison = compare.compare(values, "higher")
    intervals = stats.tukey_hsd(*samples).confidence_interval()
    for name, lead in comparison.leads.items():
        best = int(comparison.best)
        assert lead.low == pytest.approx(intervals.low[best, int(name)], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a": {"0": 1.0}, "b": {"0": 2.0}}, None),
        ({"a": {"0": 1.0, "1": 1.1}, "b": {"0": 2.0}}, None),
        ({}, None),
        ({"a": {"0": 1.0, "1": 1.0}, "b": {"0": 2.0, "1": 2.0}}, "chance can't be judged"),
        ({"a": {"0": 1e9, "1": 1e9}, "b": {"0": 2e9, "1": 2e9 + 1e-6}}, "can't be judged"),
    ],
)
def test_without_repeats_or_spread_nothing_is_marked(values, sentence):
    comparison = compare.compare(values, "higher")
    assert compare.is_comparable(values) == (comparison is not None)
    if sentence is None:
        assert comparison is None
    else:
        assert comparison.beaten == [] and sentence in compare.sentence(comparison)


def test_the_sentence_names_winner_difference_interval_and_seeds():
    base = np.array([0.0, 0.01, 0.02])
    noise = np.array([0.0, 0.001, -0.001])
    two = values_of([0.8 + base, 0.9 + base + noise])
    text = compare.sentence(compare.compare(two, "higher"), "points")
    assert text == "s1 beats s0 by 0.1000 points [0.0975, 0.1025] over 3 seeds."
    lower = compare.sentence(compare.compare(two, "lower"))
    assert lower.startswith("s0 beats s1 by 0.1000 [")
    rows = [0.8 + base, 0.91 + base + noise, 0.7 + base - noise, 0.909 + base - noise]
    some = compare.sentence(compare.compare(values_of(rows), "higher"))
    assert "beats 2 of 3 others, s0 by" in some and some.endswith("no difference shown to s3.")
    every = compare.sentence(compare.compare(values_of(rows[:3]), "higher"))
    assert every.startswith("s1 beats all 2 others, s0 by 0.11")
    none = compare.sentence(compare.compare(values_of([base, base + 10 * noise]), "higher"))
    assert none.startswith("No difference shown: the best,")


def test_runs_whose_seed_not_all_have_are_left_out_and_counted():
    values = values_of(np.random.default_rng(0).normal(size=(3, 4)))
    del values["s1"]["3"]
    values["single"] = {"0": 99.0}
    comparison = compare.compare(values, "higher")
    assert comparison.is_paired and comparison.repeats == (3, 3) and comparison.n_left_out == 3
    assert "single" not in comparison.leads and comparison.best != "single"


def test_the_interval_of_a_mean_is_students():
    mean, low, high = compare.mean_interval([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, 7 / 3, stats.sem([1.0, 2.0, 4.0]))
    assert (mean, low, high) == pytest.approx((7 / 3, *expected))
    assert compare.mean_interval([5.0]) == (5.0, 5.0, 5.0)
    assert compare.mean_interval([0.1] * 3) == (0.1, 0.1, 0.1)


def test_an_interval_is_rounded_to_two_of_its_digits():
    assert compare.with_interval(0.9123456, 0.8873456, 0.9373456) == "0.912 [0.887, 0.937]"
    assert compare.with_interval(1234.5, 1000.0, 1469.0) == "1,234 [1,000, 1,469]"
    assert compare.with_interval(1.0, 1.0, 1.0) == "1"
    assert compare.with_interval(1e300, -1e300, 3e300) == "1e+300 [-1e+300, 3e+300]"
