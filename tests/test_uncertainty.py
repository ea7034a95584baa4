"""Intervals and tests against scipy, scikit-learn and hand-worked cases."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from llmnb.evaluation import uncertainty
from llmnb.evaluation.uncertainty import (
    Interval,
    bootstrap,
    bootstrap_f1,
    compare,
    holm,
    items_needed,
    paired_bootstrap,
    proportion,
    smallest_difference,
)


def pair(only_a, only_b, n):
    """0/1 per item of two models: A alone right, B alone right, both right on the others."""
    both = np.ones(n - only_a - only_b)
    a = np.concatenate([np.ones(only_a), np.zeros(only_b), both])
    return a, np.concatenate([np.zeros(only_a), np.ones(only_b), both])


def scipys(values, statistic, draws, method):
    """scipy's interval from our resamples, at the level that stands for Student's quantile."""
    n = len(values)
    level = 2 * stats.norm.cdf(stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1))) - 1
    given = stats.bootstrap((values,), statistic, n_resamples=2, method="percentile")
    given.bootstrap_distribution = draws
    options = {"confidence_level": level, "method": method, "bootstrap_result": given}
    return stats.bootstrap((values,), statistic, n_resamples=0, **options).confidence_interval


@pytest.mark.parametrize(("n", "statistic"), [(5, "mean"), (300, "mean"), (40, np.median)])
def test_the_interval_is_scipys_bca_or_percentile(n, statistic):
    values = np.random.default_rng(n).exponential(size=n)
    ours = bootstrap(values, statistic=statistic, resamples=2000, seed=3)
    function, method = (np.mean, "BCa") if statistic == "mean" else (statistic, "percentile")
    draws = uncertainty._resampled(function, [values], 2000, 3)
    expected = scipys(values, function, draws, method)
    assert ours.value == pytest.approx(function(values))
    np.testing.assert_allclose([ours.low, ours.high], expected, rtol=1e-9)


def test_a_ratio_keeps_its_rows_together():
    """Bits and bytes of the same blocks: by the delta method, and not that of shuffled blocks."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(100, 1000, 400).astype(float)
    bits = 2 * sizes + generator.normal(0, 20, 400)

    def ratio(bits, sizes, axis):
        return bits.sum(axis) / sizes.sum(axis)

    interval = bootstrap(bits, sizes, statistic=ratio)
    error = np.std(bits - interval.value * sizes) / math.sqrt(400) / sizes.mean()
    assert interval.value == bits.sum() / sizes.sum()
    assert interval.high - interval.low == pytest.approx(2 * 1.966 * error, rel=0.05)


def test_chunks_do_not_change_the_law(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap(values, resamples=1000, seed=1)
    monkeypatch.setattr(uncertainty, "NUMBERS_PER_CHUNK", 7 * 50 + 3)  # 7 rows, 6 in the last
    assert bootstrap(values, resamples=1000, seed=1) == whole


def test_the_same_seed_gives_the_same_result():
    values, other = np.random.default_rng(0).normal(size=(2, 30))
    labels, predictions = np.round(values), np.round(other)
    for run in (
        lambda seed: bootstrap(values, seed=seed),
        lambda seed: paired_bootstrap(values, other, seed=seed),
        lambda seed: bootstrap_f1(labels, predictions, seed=seed),
    ):
        assert run(1) == run(1) != run(2)


def test_shares_get_wilsons_interval():
    for correct, n in ((0, 20), (20, 20), (841, 1000)):
        expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
        ours = proportion(correct, n)
        assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert ours.low <= ours.value == correct / n <= ours.high
    assert bootstrap([True, False, True]) == proportion(2, 3)
    assert str(proportion(841, 1000)) == "0.841 [0.817, 0.862]"


def test_equal_values_give_a_point():
    assert bootstrap([0.1] * 7) == Interval(*[pytest.approx(0.1)] * 3)
    interval, p = paired_bootstrap([0.3] * 7, [0.3] * 7)
    assert (interval.low, interval.high, p) == (0, 0, 1)


def test_paired_p_agrees_with_its_interval():
    generator = np.random.default_rng(0)
    verdicts = set()
    for shift in np.linspace(-1, 1, 60):
        a, b = generator.normal(shift, 1, 20), generator.normal(0, 1, 20)
        interval, p = paired_bootstrap(a, b, resamples=2000)
        is_outside = not interval.low <= 0 <= interval.high
        assert is_outside == (p < 0.05) or p == pytest.approx(0.05, abs=0.001)
        assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.1)
        swapped, p_swapped = paired_bootstrap(b, a, resamples=2000)
        assert (swapped.value, p_swapped) == pytest.approx((-interval.value, p))
        assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))
        verdicts.add(is_outside)
    assert verdicts == {True, False}


def test_the_floor_of_p_is_one_resample():
    _, p = paired_bootstrap([5, 6, 7, 6, 5, 6], np.zeros(6), resamples=999)
    floor = 2 * stats.t.cdf(stats.norm.ppf(1 / 1000) * math.sqrt(5 / 6), 5)
    assert p == pytest.approx(floor)


def test_a_tie_is_a_tie_in_decimals_too():
    """A mean of 0 in decimals is seldom 0 in floats."""
    whole = np.array([1, 2, -3] * 4)
    _, p = paired_bootstrap(whole, 0 * whole)
    for a, b in itertools.permutations([whole * 0.1, 0 * whole]):
        assert paired_bootstrap(a, b)[1] == pytest.approx(p)


def test_mcnemars_mid_p_is_that_of_the_binomial_test():
    for only_a, only_b in ((0, 0), (3, 3), (2, 11), (40, 22)):
        n = only_a + only_b
        exact = stats.binomtest(only_a, n, 0.5).pvalue if n else 1
        mid_p = exact - stats.binom.pmf(only_a, n, 0.5) if only_a != only_b else 1
        for answers in (pair(only_a, only_b, 80), pair(only_b, only_a, 80)):
            assert compare(*answers).p == pytest.approx(mid_p)
    for only_a in range(1, 20):  # rounding alone would give 1 + 2e-16
        assert compare(*pair(only_a, only_a, 2 * only_a)).p <= 1
    # by hand: 5 to 1 has 2·(1 + 6)/64 exact; mid-p counts the outcome's own 6/64 once less
    assert compare(*pair(5, 1, 10)).p == pytest.approx(8 / 64)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and never falling
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.8, 0.9]), [1, 1])


def test_compare_says_who_wins():
    result = compare(*pair(30, 10, 200))
    assert (result.n_only_a, result.n_only_b, result.difference.value) == (30, 10, 0.1)
    assert result.verdict.startswith("A beats B: difference in accuracy 0.100 [0.03")
    # by hand (Bonett & Price): 31/202 - 11/202 ± 1.96·√((42/202 - (20/202)²)/202)
    half = 1.959964 * math.sqrt((42 / 202 - (20 / 202) ** 2) / 202)
    interval = (20 / 202 - half, 20 / 202 + half)
    assert (result.difference.low, result.difference.high) == pytest.approx(interval, abs=1e-6)
    for answers, verdict in [
        (pair(10, 30, 200), "tuned beats base"),
        (pair(11, 10, 200), "Neither base nor tuned is shown to be better"),
        (pair(5, 0, 200), "Neither"),  # mid-p is 0.03, but the interval holds 0
        (pair(8, 2, 10), "Neither"),  # the interval excludes 0, but mid-p is 0.07
    ]:
        assert compare(*answers, names=("base", "tuned")).verdict.startswith(verdict)
    for one_sided in (compare(*pair(9, 0, 9)), compare(*pair(0, 9, 9))):
        assert -1 <= one_sided.difference.low <= one_sided.difference.value
        assert one_sided.difference.value <= one_sided.difference.high <= 1


def test_the_smallest_difference_is_items_needed_turned_round():
    for n, discordance in ((1280, 0.25), (300, 0.15), (200, 0.4)):
        d = smallest_difference(n, discordance)
        assert items_needed(0.5, 0.5 + 1.0001 * d, discordance) <= n
        assert items_needed(0.5, 0.5 + 0.99 * d, discordance) > n
    assert math.isnan(smallest_difference(20, 0.1))  # two texts, whoever is right on them
    assert math.isnan(smallest_difference(1280, 0.0))  # they never disagree
    with pytest.raises(ValueError, match=r"not 0 and 0\.1"):
        smallest_difference(0, 0.1)


def test_items_needed_by_hand_and_its_direction():
    # Connor: (1.96·√.2 + .8416·√(.2 - .01))² / .01 = 154.6
    assert items_needed(0.8, 0.7, discordance=0.2) == items_needed(0.7, 0.8, 0.2) == 155
    assert items_needed(0.8, 0.7, 0.1) < 155 < items_needed(0.8, 0.7, 0.3)


def test_f1_is_scikit_learns():
    generator = np.random.default_rng(0)
    labels, noise = generator.choice(list("aaaaaaabbc"), (2, 60))
    predictions = np.where(generator.random(60) < 0.6, labels, noise)
    expected = metrics.f1_score(labels, predictions, average="macro")
    interval = bootstrap_f1(labels, predictions, resamples=400)
    assert interval.value == pytest.approx(expected)
    assert interval.low < expected < interval.high


def test_a_class_that_a_resample_lost_is_left_out():
    labels = [*["common"] * 30, "rare"]
    assert bootstrap_f1(labels, labels) == Interval(1, 1, 1)


def test_the_interval_always_holds_the_value():
    """Few statistics are as biased as this: a resample has two thirds of the different values."""

    def different(values, axis):
        return 1 + (np.diff(np.sort(values, axis), axis=axis) > 0).sum(axis)

    values = np.arange(30.0)
    interval = bootstrap(values, statistic=different)
    assert interval.low < 20 and interval.value == interval.high == 30
    interval = bootstrap(values, statistic=lambda values, axis: -different(values, axis))
    assert interval.low == interval.value == -30 and interval.high > -20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "0 sample"),
        (lambda: bootstrap([0.1, math.nan]), "contains NaN"),
        (lambda: bootstrap([[0.1, 0.2]]), "1d array"),
        (lambda: bootstrap([0.1, 0.2], statistic="mode"), "'mode'"),
        (lambda: bootstrap([0.1, 0.2], resamples=10), "10 resamples"),
        (lambda: bootstrap([0.1, 0.2], statistic=lambda x, axis: x.mean()), "of 10000 samples"),
        (lambda: bootstrap([0, 2, 1], statistic=lambda x, axis: 1 / (x.sum(axis) > 0)), "finite"),
        (lambda: proportion(3, 2), "3 of 2"),
        (lambda: paired_bootstrap([1, 2, 3], [1, 2]), r"inconsistent numbers of samples: \[3, 2\]"),
        (lambda: compare([1, 0], [0.5, 1]), "correct_b holds 0.5"),
        (lambda: holm([]), "list of numbers"),
        (lambda: holm([0.1, 1.1]), "from 0 to 1"),
        (lambda: items_needed(0.8, 0.8, 0.1), "two different accuracies"),
        (lambda: items_needed(0.8, 0.7, 0.05), "between 0.1 and 0.5, not at 0.05"),
        (lambda: bootstrap_f1([1, 0], ["1", "0"]), "Mix of"),
    ],
)
def test_bad_input_is_refused(call, message):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
        call()
