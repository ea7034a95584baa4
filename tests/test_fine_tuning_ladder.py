"""Which rung is recommended, from paired tests on the same texts."""

import numpy as np
import pytest

from llmnb import fine_tuning
from llmnb.fine_tuning import FineTuningError, Settings, ladder
from llmnb.fine_tuning.baselines import Majority
from llmnb.fine_tuning.ladder import Result


def results_of(n=200, **n_right):
    """Results on n texts, of which the first n_right are classified correctly."""
    classifier = Majority(("bad", "good"), Settings())
    results = {}
    for method, right in n_right.items():
        probabilities = np.eye(2)[(np.arange(n) < right).astype(int)]
        results[method] = Result(classifier, np.ones(n, dtype=int), probabilities, 1.0, 1.0, 1)
    return results


def test_every_rung_says_how_it_is_trained():
    by_fit, by_encoders = {*ladder.KINDS}, {*ladder.ENCODER_KINDS}
    assert by_fit | by_encoders == {*ladder.METHODS} and not by_fit & by_encoders


def test_the_cheapest_rung_that_isnt_shown_to_be_worse_is_recommended():
    advice = fine_tuning.recommend(results_of(full=160, tfidf=120, lora=158, majority=100))
    assert (advice.best, advice.method) == ("full", "lora")
    pairs = {(d.method, d.other): d for d in advice.differences}
    against_full = {("full", other) for other in ("majority", "tfidf", "lora")}
    assert set(pairs) == against_full | {("majority", "tfidf"), ("lora", "tfidf")}
    assert pairs["full", "tfidf"].is_shown and not pairs["full", "lora"].is_shown
    assert pairs["full", "lora"].interval.value == pytest.approx(0.01)
    assert pairs["full", "lora"].p == pytest.approx(0.25)  # Holm leaves the largest p as it is
    assert fine_tuning.recommend(results_of(full=160, tfidf=160)).method == "tfidf"


def test_the_majority_is_not_recommended_where_too_few_texts_show_a_difference():
    advice = fine_tuning.recommend(results_of(majority=104, frozen=103, lora=102))
    assert (advice.best, advice.method) == ("frozen", "frozen")
    assert not advice.differences[0].is_shown
    assert fine_tuning.recommend(results_of(majority=100)).method == "majority"


def test_several_differences_are_held_to_a_higher_standard_than_one():
    assert fine_tuning.recommend(results_of(full=110, tfidf=103)).method == "full"  # p = 0.008
    many = results_of(full=110, tfidf=103, frozen=104, lora=105, zero_shot=104)
    assert fine_tuning.recommend(many).method == "tfidf"


def test_rungs_tested_on_different_texts_are_not_compared():
    for wrong in (results_of(full=160) | results_of(n=20, tfidf=12), {}):
        with pytest.raises(FineTuningError, match="all on the same texts"):
            fine_tuning.recommend(wrong)
