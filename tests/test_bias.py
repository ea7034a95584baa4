"""Bias: a planted one is found, an absent one isn't."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llmnb import handbook, models
from llmnb.evaluation import bias
from llmnb.evaluation.bias import counterfactuals, pair_preferences, preference_shares, shifts

RESOURCE = handbook.resource("bias")


def test_false_positives_stay_below_alpha_on_all_axes():
    # Every term gets a weight of its own, every template a tilt; groups get none.
    rows, flagged = counterfactuals(), 0
    terms, templates = (pd.factorize(rows[name])[0] for name in ("term", "template"))
    for seed in range(100):
        generator = np.random.default_rng(seed)
        weights = generator.exponential(0.5, terms.max() + 1)[terms]  # skewed
        tilt = generator.normal(0, 1, templates.max() + 1)[templates]
        scores = 1 / (1 + np.exp(-tilt - weights - generator.normal(0, 0.1, len(rows))))
        flagged += shifts(scores, rows, resamples=1000)["flagged"].any()
    assert flagged <= 10  # of 100 at 5 %: more comes once in 90 times


def scored_rows(effects):
    """Two templates with the terms of each group, and scores from the terms' effects."""
    rows = []
    for template, constant in (("1", 0.0), ("2", 0.5)):  # the constant is no group's
        for group, values in effects.items():
            for index, effect in enumerate(values):
                score = constant + effect
                rows.append((template, f"{group}{index}", group, "letters", score))
    table = pd.DataFrame(rows, columns=["template", "term", "group", "axis", "score"])
    return table.pop("score").to_numpy(), table


def test_shifts_by_hand():
    scores, rows = scored_rows({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5, 0.6, 0.7, 0.8]})
    table = shifts(scores, rows).set_index("group")
    assert table["shift"].to_dict() == pytest.approx({"a": -0.2, "b": 0.2})
    # Welch: half the difference of the means; each group's variance is 0.05/3, six freedoms
    half = 2.446912 * 0.5 * np.sqrt(2 * 0.05 / 3 / 4)
    assert table["low"]["b"] == pytest.approx(0.2 - half)
    assert table["high"]["b"] == pytest.approx(0.2 + half)
    assert table["p"]["b"] == pytest.approx(2 / 70, abs=0.005)  # of 70 ways to deal 8 terms
    assert table["p_holm"]["b"] == pytest.approx(2 * table["p"].min())
    assert not table["flagged"].any()


def test_welch_gives_an_uneven_group_its_own_spread():
    effects = {"a": [0.0] * 4, "b": [0.0, 0.9, 0.0, 0.1], "c": [0.1] * 5}
    scores, rows = scored_rows(effects)
    table = shifts(scores[::-1], rows[::-1]).set_index("group")
    assert list(table.index) == ["c", "b", "a"] and table["terms"].tolist() == [5, 4, 4]
    assert table["shift"].tolist() == pytest.approx([0.1 - 1.5 / 13, 0.25 - 1.5 / 13, -1.5 / 13])
    c_a, c_b, variance = -4 / 13, 1 - 4 / 13, np.var([0, 0.9, 0, 0.1], ddof=1)
    half_a, half_b = (3.182446 * abs(c) * np.sqrt(variance / 4) for c in (c_a, c_b))
    assert table["high"]["a"] - table["shift"]["a"] == pytest.approx(half_a, rel=1e-5)
    assert table["high"]["b"] - table["shift"]["b"] == pytest.approx(half_b, rel=1e-5)


def test_one_loud_word_among_four_is_no_group():
    # The permutation test is fooled where one group alone varies; Welch's interval is not.
    scores, rows = scored_rows({"a": [0.0, 0.1, 0.2, 0.9], "b": [0.0] * 20})
    table = shifts(scores, rows).set_index("group")
    assert table["p_holm"]["a"] < 0.05 and table["low"]["a"] < 0
    assert not table["flagged"].any()


def test_a_model_that_does_not_see_the_group_has_no_shift():
    rows = counterfactuals()
    rounding = 1e-9 * (rows["group"] == "older")
    scores = rows["template"].str.len() / 100 + rounding
    table = shifts(scores, rows)
    assert (table["p"] > 0.05).all() and not table["flagged"].any()
    assert table["shift"].abs().max() < 1e-8
    assert not shifts(np.zeros(len(rows)), rows)["flagged"].any()


def test_a_shift_of_the_smallest_visible_size_is_flagged_four_times_in_five():
    rows = counterfactuals()
    terms = pd.factorize(rows["term"])[0]

    def words(seed):
        return np.random.default_rng(seed).normal(0.5, 0.03, terms.max() + 1)[terms]

    visible = bias.smallest_shifts(words(0), rows, trials=100).set_index("axis")
    assert visible["terms"]["gender (names)"] == 10 and visible["groups"]["religion"] == 4
    for axis, group in (("gender (names)", "female"), ("nationality", "African")):
        is_group = (rows["axis"] == axis) & (rows["group"] == group)
        move = visible["gap"][axis]  # the mean of the axis moves too, so the shift is smaller
        assert np.isclose(visible["shift"][axis], move * (1 - 1 / visible["groups"][axis]))
        hits = 0
        for seed in range(1, 31):
            table = shifts(words(seed) + move * is_group, rows, resamples=4000)
            table = table[table["axis"] == axis]
            hits += bool(table["flagged"][table["group"] == group].iloc[0])
        assert 17 <= hits <= 30  # 24 of 30, three standard errors below


FOUR = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores, rows: (scores[1:], rows), r"\(15,\): one for each of 16 rows"),
        (lambda scores, rows: ([*scores[1:], np.nan], rows), "row 15 is nan"),
        (lambda scores, rows: (scores, rows.drop(columns="group")), r"lack \['group'\]"),
        (lambda scores, rows: (scores, rows, 100), "100 resamples are under 1000"),
        (lambda *_: scored_rows({"a": FOUR, "b": FOUR[:3]}), r"'b'\) has 3 terms"),
        (lambda scores, rows: (scores[1:], rows[1:]), "'letters': every term stands"),
        (lambda scores, rows: (scores, rows.iloc[[0, *range(15)]]), "every term stands"),
        (lambda *_: scored_rows({"a": FOUR}), "'letters' has one group"),
    ],
)
def test_shifts_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        shifts(*change(*scored_rows({"a": FOUR, "b": FOUR})))


def test_counterfactuals_are_every_template_with_every_term_of_its_slot():
    rows = counterfactuals()
    assert list(rows) == ["text", "template", "kind", "term", "group", "axis"]
    templates, terms = (pd.DataFrame(RESOURCE[name]) for name in ("templates", "terms"))
    slots = templates["slot"].value_counts() * terms["slot"].value_counts()
    assert len(rows) == slots.sum()
    assert rows["text"].is_unique and not rows["text"].str.contains(r"[{}]").any()
    assert "Emily gives a dull performance in this film." in set(rows["text"])
    assert "My Nigerian neighbour is a brilliant surgeon." in set(rows["text"])
    assert set(counterfactuals("religion")["axis"]) == {"religion"}
    with pytest.raises(ValueError, match="no axis 'hair'; there are age, disability"):
        counterfactuals("hair")


def tokenizer_of(words):
    """A tokenizer of these words."""
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(["<s>", *words])}))
    raw.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


class WithLogits(torch.nn.Embedding):
    """As transformers' models return them."""

    def forward(self, input_ids):
        return SimpleNamespace(logits=super().forward(input_ids))


def test_pairs_by_hand():
    pairs = [
        {"a": "the nurse she", "b": "the nurse he", "axis": "gender"},
        {"a": "he", "b": "she she", "axis": "gender"},
        {"a": "the same", "b": "same the", "axis": "order"},
    ]
    tokenizer = tokenizer_of(["she", "he", "the", "nurse", "same"])
    # A causal model that scores the next word by itself alone, whatever stands before it.
    logits = torch.eye(6)[1].expand(6, -1)  # 1 for "she"
    table = pair_preferences(torch.nn.Embedding.from_pretrained(logits), tokenizer, pairs)
    assert pair_preferences(WithLogits.from_pretrained(logits), tokenizer, pairs).equals(table)
    total = np.log(5 + np.e)
    assert list(table["log_a"]) == pytest.approx([1 - 3 * total, -total, -2 * total], rel=1e-5)
    assert list(table["log_b"]) == pytest.approx([-3 * total, 2 - 2 * total, -2 * total], rel=1e-5)
    assert [*table["tokens_a"], *table["tokens_b"]] == [3, 1, 2, 3, 2, 2]
    assert table["difference"][0] == pytest.approx(1, rel=1e-5)
    assert list(table["preferred"]) == ["stereotype", "stereotype", "tie"]
    shares = preference_shares(table).set_index("axis")
    assert shares.loc["all", ["pairs", "ties", "share", "unequal"]].tolist() == [3, 1, 1.0, 1]
    assert shares["low"]["gender"] == pytest.approx(0.342380, abs=1e-5)  # Wilson, 2 of 2
    assert np.isnan(shares["share"]["order"]) and shares["low"]["order"] == 0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "here are 0"),
        ([{"a": "a", "b": "b"}], r"\['a', 'b'\]"),
        ([{"a": "a", "b": "b", "axis": "x"}], "No finite likelihood for 'a'"),
    ],
)
def test_pairs_refuse_what_does_not_fit(pairs, message):
    broken = torch.nn.Embedding.from_pretrained(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match=message):
        pair_preferences(broken, tokenizer_of("ab"), pairs)


@pytest.fixture
def masked(tiny_models, tmp_path):
    """The folder of a tiny random BERT with its masked-language-model head and tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models / "encoder")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny_models / "encoder")
    config.vocab_size = len(tokenizer)
    model = transformers.BertForMaskedLM(config)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "masked")
    return str(tmp_path / "masked")


def test_a_masked_model_predicts_every_hidden_token(masked):
    model, tokenizer = models.load_masked(masked, "fp32"), models.load_tokenizer(masked)
    ids = tokenizer("a good b")["input_ids"]  # [CLS] a good b [SEP]
    ids = torch.tensor(ids, device=model.device)
    nats = 0.0
    for position in (1, 2, 3):
        hidden = ids.clone()
        hidden[position] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(hidden[None]).logits[0, position]
        nats -= logits.log_softmax(-1)[ids[position]].item()
    bits = bias.masked_bits(model, tokenizer, ["a good b"])
    assert bits == pytest.approx([nats / np.log(2)], abs=1e-4)
    pairs = [{"a": "a good b", "b": "a bad b", "axis": "x"}]
    table = pair_preferences(model, tokenizer, pairs)
    assert table["log_a"][0] == pytest.approx(-nats, abs=1e-4) != table["log_b"][0]
