"""BM25 by hand; what a question's words weigh, and what no text has."""

import numpy as np
import pytest

from llmnb.applications.bm25 import Bm25, coverage, stems


def test_bm25_by_hand():
    bm25 = Bm25(["red boat", "red red sea and sky", "blue"], k1=1.2, b=0.75)
    mean = 8 / 3
    idf = {"red": np.log(1 + 1.5 / 2.5), "boat": np.log(1 + 2.5 / 1.5)}

    def part(word, often, length):
        return idf[word] * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length / mean))

    expected = [part("red", 1, 2) + part("boat", 1, 2), part("red", 2, 5), 0]
    np.testing.assert_allclose(bm25.scores(["A red RED boat?"])[0], expected)
    assert bm25.scores(["?", "zebra"]).sum() == 0
    rare = Bm25(["a-17 boat", "a-18 boat"])
    n17, boat = (rare.vectorizer.vocabulary_[term] for term in ("a-17", "boat"))
    assert rare.idf[n17] == pytest.approx(2 * np.log(2)) and rare.idf[boat] < 0.2


def test_words_are_cut_to_stems_and_identifiers_never():
    words = "pretraining pretrained pays pay classes class stopping stop policies policy uses used"
    pairs = stems(words)
    assert pairs[::2] == pairs[1::2] and len(set(pairs)) == 6 and max(map(len, pairs)) == 6
    identifiers = ["202400037", "llmnb_cache", "1e-4", "v2.1.3", "a-17", "c#"]
    assert [term for term in stems(", ".join(identifiers)) if term in identifiers] == identifiers
    assert stems("猫在") == ["猫", "在"]


def test_a_words_weight_is_the_same_in_a_small_folder_and_a_large_one():
    small = Bm25(["The tenant pays the deposit."])
    large = Bm25(["The tenant pays the deposit."] + ["The sea is blue."] * 999)
    question = "How much is the deposit that a tenant named Oyl pays?"
    for bm25 in (small, large):
        weights = bm25.term_weights(question)
        assert set(weights) == {"deposi", "tenant", "pai", "oyl", "nam"}
        assert weights["pai"] < weights["deposi"] <= weights["oyl"] < 1.5 * weights["pai"]
        share = coverage(weights, set(stems("A tenant has to pay a deposit.")))
        assert share == pytest.approx(0.64, abs=0.02)
    assert coverage({}, {"deposi"}) == 0
    weights = small.term_weights("a 24-month lease of A-17")
    assert set(weights) == {"24-month", "leas", "a-17"}
    assert coverage(weights, {"24", "month", "leas"}) == coverage(weights, {"24-month", "leas"})


def test_identifiers_and_names_that_no_text_has_are_missing():
    bm25 = Bm25(["Invoice 202400037 was paid by Ines Vogt, 24 months ago, for A-17."])
    assert bm25.missing("Who paid invoice 202400037 for Ines in the 24-month term?") == []
    assert bm25.missing("Who paid invoice 202400999?") == ["202400999"]
    assert bm25.missing("When did Olga pay 12 euros for A-18?") == ["a-18", "Olga"]
    assert bm25.missing("Wann war in Bonn die Rechnung bezahlt?") == []  # German nouns
