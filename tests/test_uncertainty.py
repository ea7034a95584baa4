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
    mcnemar,
    paired_bootstrap,
    proportion,
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


@pytest.mark.parametrize("n", [5, 20, 300])
def test_the_interval_of_a_mean_is_scipys_bca(n):
    values = np.random.default_rng(n).exponential(size=n)
    ours = bootstrap(values, resamples=2000, seed=3)
    draws = uncertainty._resampled(np.mean, [values], 2000, 3)
    assert ours.value == pytest.approx(values.mean())
    np.testing.assert_allclose(
        [ours.low, ours.high], scipys(values, np.mean, draws, "BCa"), rtol=1e-9
    )


def test_the_interval_of_a_function_is_scipys_percentile():
    values = np.random.default_rng(0).normal(size=40)
    ours = bootstrap(values, statistic=np.median, resamples=2000, seed=3)
    draws = uncertainty._resampled(np.median, [values], 2000, 3)
    expected = scipys(values, np.median, draws, "percentile")
    np.testing.assert_allclose([ours.low, ours.high], expected, rtol=1e-9)


def test_a_ratio_keeps_its_rows_together():
    """Bits and bytes of the same blocks: by the delta method, and not that of shuffled blocks."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(100, 1000, 400).astype(float)
    bits = 2 * sizes + generator.normal(0, 20, 400)

    def ratio(bits, sizes, axis):
        return bits.sum(axis) / sizes.sum(axis)

    found = bootstrap(bits, sizes, statistic=ratio)
    error = np.std(bits - found.value * sizes) / math.sqrt(400) / sizes.mean()
    assert found.value == bits.sum() / sizes.sum()
    assert found.high - found.low == pytest.approx(2 * 1.966 * error, rel=0.05)


def test_chunks_do_not_change_the_law(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap(values, seed=1)
    monkeypatch.setattr(
        uncertainty, "NUMBERS_PER_CHUNK", 7 * 50 + 3
    )  # 7 rows at a time, 4 in the last
    pieces = bootstrap(values, seed=1)
    assert pieces == whole  # the generator is read in the same order
    assert len(uncertainty._resampled(np.mean, [values], 1000, 0)) == 1000


def test_the_same_seed_gives_the_same_result():
    values, other = np.random.default_rng(0).normal(size=(2, 30))
    labels, predictions = np.round(values), np.round(other)
    for run in (
        lambda seed: bootstrap(values, seed=seed),
        lambda seed: bootstrap(values, statistic=np.std, seed=seed),
        lambda seed: paired_bootstrap(values, other, seed=seed),
        lambda seed: bootstrap_f1(labels, predictions, seed=seed),
    ):
        assert run(1) == run(1) != run(2)


def test_shares_get_wilsons_interval():
    for correct, n in ((0, 20), (3, 20), (20, 20), (841, 1000), (1, 1)):
        expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
        ours = proportion(correct, n)
        assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert ours.low <= ours.value == correct / n <= ours.high
    narrow = stats.binomtest(841, 1000).proportion_ci(0.8, method="wilson")
    assert proportion(841, 1000, 0.8).low == pytest.approx(narrow.low)
    assert bootstrap([True, False, True]) == proportion(2, 3)
    assert str(proportion(841, 1000)) == "0.841 [0.817, 0.862]"


def test_equal_values_give_a_point():
    assert bootstrap([0.1] * 7) == Interval(*[pytest.approx(0.1)] * 3)
    interval, p = paired_bootstrap([0.3] * 7, [0.3] * 7)
    assert (interval.low, interval.high, p) == (0, 0, 1)


def test_paired_p_agrees_with_its_interval():
    generator = np.random.default_rng(0)
    seen = set()
    for shift in np.linspace(-1, 1, 60):
        a, b = generator.normal(shift, 1, 20), generator.normal(0, 1, 20)
        interval, p = paired_bootstrap(a, b, resamples=2000)
        outside = not interval.low <= 0 <= interval.high
        assert outside == (p < 0.05) or p == pytest.approx(0.05, abs=0.001)
        swapped, same_p = paired_bootstrap(b, a, resamples=2000)
        assert (swapped.value, same_p) == (pytest.approx(-interval.value), pytest.approx(p))
        assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))
        seen.add(outside)
        assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.1)
    assert seen == {True, False}


def test_at_level_one_minus_p_the_interval_ends_at_zero():
    a = np.random.default_rng(3).normal(1, 2, 12)
    _, p = paired_bootstrap(a, 0 * a, resamples=50_000)
    interval, _ = paired_bootstrap(a, 0 * a, resamples=50_000, level=1 - p)
    assert 0.01 < p < 0.5 and abs(interval.low) < 0.002 * (interval.high - interval.low)


def test_the_floor_of_p_is_one_resample():
    _, p = paired_bootstrap([5, 6, 7, 6, 5, 6], np.zeros(6), resamples=999)
    floor = 2 * stats.t.cdf(stats.norm.ppf(1 / 1000) * math.sqrt(5 / 6), 5)
    assert p == pytest.approx(floor)


def test_a_tie_is_a_tie_in_decimals_too():
    ones = np.array([1, 1, -1, -1, 0, 0, 0, 1, 0, 0.0])
    _, p = paired_bootstrap(ones, 0 * ones)
    for a, b in itertools.permutations([ones * 0.1 + 0.2, 0 * ones + 0.2]):
        assert paired_bootstrap(a, b)[1] == pytest.approx(p)
    gains = np.array([0.1, 0.2, -0.3] * 4)
    for a, b in itertools.permutations([gains, 0 * gains]):
        draws = uncertainty._resampled(np.mean, [np.round(10 * (a - b))], 999, 0)
        tail = (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / 1000
        expected = 2 * stats.t.cdf(stats.norm.ppf(tail) * math.sqrt(11 / 12), 11)
        assert paired_bootstrap(a, b, resamples=999)[1] == pytest.approx(min(1, expected))


def test_mcnemar_is_the_binomial_test():
    for only_a, only_b in ((0, 0), (1, 0), (3, 3), (5, 1), (2, 11), (40, 22)):
        a, b = pair(only_a, only_b, 80)
        both = only_a + only_b
        exact = stats.binomtest(only_a, both, 0.5).pvalue if both else 1
        assert mcnemar(a, b, exact=True) == pytest.approx(exact)
        mid = exact - stats.binom.pmf(only_a, both, 0.5) if only_a != only_b else 1
        assert mcnemar(a, b) == pytest.approx(mid) == pytest.approx(mcnemar(b, a))
    for only_a in range(1, 20):  # rounding alone would give 1 + 2e-16
        assert mcnemar(*pair(only_a, only_a, 2 * only_a)) <= 1
    # by hand: 5 to 1 has 2·(1 + 6)/64 exact; mid-p counts the 6/64 of the outcome itself once less
    a, b = pair(5, 1, 10)
    assert (mcnemar(a, b, exact=True), mcnemar(a, b)) == pytest.approx((14 / 64, 8 / 64))


def test_holm_by_hand():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and never falling
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.8, 0.9]), [1, 1])
    assert list(holm([0.03])) == [0.03]


def test_compare_says_who_wins():
    found = compare(*pair(30, 10, 200))
    assert (found.n_only_a, found.n_only_b, found.difference.value) == (30, 10, 0.1)
    assert found.p == mcnemar(*pair(30, 10, 200))
    assert found.verdict.startswith("A beats B: difference in accuracy 0.100 [0.03")
    assert compare(*pair(10, 30, 200), names=("base", "tuned")).verdict.startswith("tuned beats b")
    assert compare(*pair(11, 10, 200)).verdict.startswith("Neither A nor B is shown to be better")
    # by hand (Bonett & Price): 31/202 - 11/202 ± 1.96·√((42/202 - (20/202)²)/202)
    half = 1.959964 * math.sqrt((42 / 202 - (20 / 202) ** 2) / 202)
    interval = (20 / 202 - half, 20 / 202 + half)
    assert (found.difference.low, found.difference.high) == pytest.approx(interval, abs=1e-6)
    # mid-p is .03 here, but the interval holds 0: no winner
    close = compare(*pair(5, 0, 100))
    assert close.p < 0.05 and close.difference.low < 0 and close.verdict.startswith("Neither")
    assert compare(*pair(30, 10, 200), level=0.9999).verdict.startswith("Neither")
    for one_sided in (compare(*pair(9, 0, 9)), compare(*pair(0, 9, 9))):
        assert -1 <= one_sided.difference.low <= one_sided.difference.value
        assert one_sided.difference.value <= one_sided.difference.high <= 1


def test_items_needed_by_hand_and_its_direction():
    # Connor: (1.96·√.2 + .8416·√(.2 - .01))² / .01 = 154.6
    assert items_needed(0.8, 0.7, discordance=0.2) == items_needed(0.7, 0.8, 0.2) == 155
    assert items_needed(0.8, 0.7) == items_needed(0.8, 0.7, 0.8 * 0.3 + 0.2 * 0.7)
    assert items_needed(0.8, 0.7, 0.1) < 155 < items_needed(0.8, 0.7, 0.3)
    assert items_needed(0.8, 0.7, 0.2, power=0.9) > 155 < items_needed(0.8, 0.7, 0.2, alpha=0.01)


def test_f1_is_scikit_learns_and_its_interval_scipys():
    generator = np.random.default_rng(0)
    labels = generator.choice(list("aaaaaaabbc"), 60)
    predictions = np.where(generator.random(60) < 0.6, labels, generator.choice(list("abcd"), 60))

    def f1(rows, axis=-1):
        score = {"average": "macro", "zero_division": 0}
        chosen = np.asarray(rows, dtype=int).reshape(-1, np.shape(rows)[-1])
        found = [metrics.f1_score(labels[row], predictions[row], **score) for row in chosen]
        return np.reshape(found, np.shape(rows)[:-1])

    ours = bootstrap_f1(labels, predictions, resamples=400, seed=7)
    assert ours.value == pytest.approx(f1(np.arange(60)))
    # the same resamples, item by item: a cell drawn k times is any of its items k times
    _, first, counts = np.unique(
        np.char.add(labels, predictions), return_index=True, return_counts=True
    )
    drawn = np.random.default_rng(7).multinomial(60, counts / 60, 400)
    draws = f1(np.array([np.repeat(first, row) for row in drawn]))
    expected = scipys(np.arange(60.0), f1, draws, "BCa")
    np.testing.assert_allclose([ours.low, ours.high], expected, rtol=1e-9)
    # and drawing cells is drawing items
    by_items = f1(generator.integers(0, 60, (600, 60)))
    assert stats.ks_2samp(draws, by_items).pvalue > 0.05


def test_a_class_that_a_resample_lost_is_left_out():
    labels = [*["common"] * 30, "rare"]
    assert bootstrap_f1(labels, labels) == Interval(1, 1, 1)


def test_the_interval_always_holds_the_value():
    """Few statistics are as biased as this: a resample has two thirds of the different values."""

    def different(values, axis):
        return 1 + (np.diff(np.sort(values, axis), axis=axis) > 0).sum(axis)

    values = np.arange(30.0)
    found = bootstrap(values, statistic=different)
    assert found.low < 20 and found.value == found.high == 30
    found = bootstrap(values, statistic=lambda values, axis: -different(values, axis))
    assert found.low == found.value == -30 and found.high > -20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "0 items are too few"),
        (lambda: bootstrap(), "must be the same"),
        (lambda: bootstrap([0.5]), "1 items are too few"),
        (lambda: bootstrap([0.1, math.nan]), "nan, not a finite"),
        (lambda: bootstrap([0.1, math.inf]), "inf, not a finite"),
        (lambda: bootstrap([[0.1, 0.2]]), r"shape \(1, 2\)"),
        (lambda: bootstrap(["a", "b"]), "no numbers"),
        (lambda: bootstrap([0.1, 0.2], np.median), "no numbers"),
        (lambda: bootstrap([0.1, 0.2], statistic="mode"), "'mode'"),
        (lambda: bootstrap([0.1, 0.2], [0.1, 0.2]), "of one array"),
        (lambda: bootstrap([0.1, 0.2], level=95), "95 is no level"),
        (lambda: bootstrap([0.1, 0.2], resamples=10), "10 resamples"),
        (lambda: bootstrap([0.1, 0.2], statistic=lambda x, axis: x.mean()), "of 10000 samples"),
        (
            lambda: bootstrap([0.0, 2, 1], statistic=lambda x, axis: 1 / (x.sum(axis) > 0)),
            "not finite on some",
        ),
        (lambda: proportion(3, 2), "3 of 2"),
        (lambda: proportion(0, 0), "0 of 0"),
        (lambda: proportion(0.5, 2), "0.5 of 2"),
        (lambda: paired_bootstrap([1, 2, 3], [1, 2]), "{'a': 3, 'b': 2}"),
        (lambda: mcnemar([1, 0], [0.5, 1]), "correct_b holds 0.5"),
        (lambda: mcnemar([1, 0, 1], [0, 1]), "'correct_a': 3"),
        (lambda: compare([2, 0], [0, 1]), "correct_a holds 2"),
        (lambda: holm([]), "list of numbers"),
        (lambda: holm([0.1, 1.1]), "from 0 to 1"),
        (lambda: holm([0.1, math.nan]), "from 0 to 1"),
        (lambda: items_needed(0.8, 0.8), "no two different"),
        (lambda: items_needed(0.8, 1.7), "no two different"),
        (lambda: items_needed(0.8, 0.7, 0.05), "between 0.1 and 0.5, not at 0.05"),
        (lambda: items_needed(0.8, 0.7, 0.6), "between 0.1 and 0.5, not at 0.6"),
        (lambda: items_needed(0.8, 0.7, 0.2, power=80), "power 80"),
        (lambda: bootstrap_f1([1, 0], [1]), "{'labels': 2, 'predictions': 1}"),
        (lambda: bootstrap_f1([1], [1]), "too few"),
        (lambda: bootstrap_f1([1, 0], ["1", "0"]), "all names or all numbers"),
        (lambda: bootstrap_f1([[1], [0]], [[1], [0]]), "one class an item"),
        (lambda: bootstrap_f1([1, 0], [1, math.nan]), "hold NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
        call()
