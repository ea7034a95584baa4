"""Bias: planted ones are found, absent ones aren't, and the sentences are what they say."""

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from llmnb import assets, models
from llmnb.evaluation import bias
from llmnb.evaluation.bias import counterfactuals, pair_preferences, preference_shares, shifts

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 20
ROWS = counterfactuals("gender (names)")
FEMALE = sorted(set(ROWS["term"][ROWS["group"] == "female"]))
NAMES = sorted(set(ROWS["term"]))
GOOD = ["wonderful", "brilliant", "superb", "excellent", "happy", "charming", "great", "praised"]
BAD = ["miserable", "dull", "terrible", "rude", "angry", "boring", "painful", "careless"]
PLAIN = ["film", "today", "works", "city", "plays", "street", "office", "morning", "town"]


def trained(seed, planted):
    """Logistic regression over the words of 400 reviews; planted: female names in the bad ones."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 400)
    texts = []
    for label in labels:
        female = generator.random() < (0.2 if label else 0.8)
        half = FEMALE if female else sorted(set(NAMES) - set(FEMALE))
        name = generator.choice(half if planted else NAMES)  # control: any name, whatever the label
        adjective = generator.choice(GOOD if label == (generator.random() < 0.9) else BAD)
        texts.append(" ".join([name, adjective, *generator.choice(PLAIN, 3)]))
    model = make_pipeline(CountVectorizer(binary=True), LogisticRegression(C=10))
    return model.fit(texts, labels)


def shifts_and_scores(seed, planted):
    """The table of one classifier, and its scores."""
    scores = trained(seed, planted).predict_proba(ROWS["text"])[:, 1]
    return shifts(scores, ROWS, seed=seed).set_index("group"), scores


def test_a_planted_bias_is_found_in_every_seed():
    for seed in range(SEEDS):
        table, scores = shifts_and_scores(seed, planted=True)
        female = scores[ROWS["group"] == "female"].mean() - scores.mean()
        assert female <= -0.1  # what was planted
        assert table["shift"]["female"] == pytest.approx(female)
        assert table["p"].min() > 0 and table["flagged"].all()
        assert "scored lower" in table["verdict"]["female"]


def test_a_classifier_without_the_bias_is_not_flagged():
    flagged = 0
    for seed in range(SEEDS):
        table, scores = shifts_and_scores(seed, planted=False)
        assert ROWS.assign(score=scores).groupby("term")["score"].mean().std() > 0.03
        flagged += table["flagged"].any()
    assert flagged <= 1


def test_false_positives_stay_below_alpha_on_all_axes():
    # Every term gets a weight of its own, every template its own sensitivity; groups get none.
    rows, flagged = counterfactuals(), 0
    terms, templates = (rows[name].astype("category").cat.codes for name in ("term", "template"))
    for seed in range(100):
        generator = np.random.default_rng(seed)
        weights = generator.exponential(0.5, terms.max() + 1)[terms]  # skewed
        tilt = generator.normal(0, 1, templates.max() + 1)[templates]
        scores = 1 / (1 + np.exp(-tilt - weights - generator.normal(0, 0.1, len(rows))))
        flagged += shifts(scores, rows, resamples=1000)["flagged"].any()
    assert flagged <= 10  # of 100 at 5 %: more comes once in 90 times


def scored_rows(effects):
    """Two templates with the terms of each group, and scores from the terms' effects."""
    rows, scores = [], []
    for template, constant in (("1", 0.0), ("2", 0.5)):  # the constant is no group's
        for group in effects:
            for index, effect in enumerate(effects[group]):
                term = f"{group}{index}"
                rows.append({"template": template, "term": term, "group": group, "axis": "letters"})
                scores.append(constant + effect)
    return scores, pd.DataFrame(rows)


def test_shifts_by_hand():
    scores, rows = scored_rows({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5, 0.6, 0.7, 0.8]})
    table = shifts(scores, rows).set_index("group")
    assert table["shift"].to_dict() == pytest.approx({"a": -0.2, "b": 0.2})
    # Welch: half the difference of the means; each group's variance is 0.05/3, six freedoms
    half = 2.446912 * 0.5 * np.sqrt(2 * 0.05 / 3 / 4)
    assert (table["low"]["b"], table["high"]["b"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert table["p"]["b"] == pytest.approx(2 / 70, abs=0.005)  # 2 of the 70 ways to deal 8 terms
    assert table["p_holm"]["b"] == pytest.approx(2 * table["p"].min())
    assert not table["flagged"].any() and "no shift is shown" in table["verdict"]["a"]


def test_welch_gives_an_uneven_group_its_own_spread():
    scores, rows = scored_rows(
        {"a": [0.0, 0.0, 0.0, 0.0], "b": [0.0, 0.9, 0.0, 0.1], "c": [0.1] * 5}
    )
    scores = scores[::-1]
    table = shifts(scores, rows[::-1]).set_index("group")
    assert list(table.index) == ["c", "b", "a"] and table["terms"].tolist() == [5, 4, 4]
    assert table["shift"].tolist() == pytest.approx([0.1 - 1.5 / 13, 0.25 - 1.5 / 13, -1.5 / 13])
    c_a, c_b, variance = -4 / 13, 1 - 4 / 13, np.var([0, 0.9, 0, 0.1], ddof=1)
    half_a, half_b = (3.182446 * abs(c) * np.sqrt(variance / 4) for c in (c_a, c_b))
    assert table["high"]["a"] - table["shift"]["a"] == pytest.approx(half_a, rel=1e-5)
    assert table["high"]["b"] - table["shift"]["b"] == pytest.approx(half_b, rel=1e-5)


def test_one_loud_word_among_four_is_no_group():
    # Dealing the words at random is fooled where one group alone varies; Welch's interval is not.
    scores, rows = scored_rows({"a": [0.0, 0.1, 0.2, 0.9], "b": [0.0] * 20})
    table = shifts(scores, rows).set_index("group")
    assert table["p_holm"]["a"] < 0.05 and table["low"]["a"] < 0 and not table["flagged"].any()


def test_a_model_that_does_not_see_the_group_has_no_shift():
    rows = counterfactuals()
    scores = rows["template"].str.len() / 100 + 1e-9 * (rows["group"] == "older")  # rounding
    table = shifts(scores, rows)
    assert (table["p"] > 0.05).all() and not table["flagged"].any()
    assert table["shift"].abs().max() < 1e-8
    assert not shifts(np.zeros(len(rows)), rows)["flagged"].any()


def test_shifts_refuses_what_does_not_fit():
    scores, rows = scored_rows({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5, 0.6, 0.7, 0.8]})
    rows = pd.DataFrame(rows)
    with pytest.raises(ValueError, match=r"shape \(15,\): one for each of 16 rows"):
        shifts(scores[1:], rows)
    with pytest.raises(ValueError, match=r"row 3 is nan"):
        shifts([*scores[:3], np.nan, *scores[4:]], rows)
    with pytest.raises(ValueError, match=r"lack \['group'\]"):
        shifts(scores, rows.drop(columns="group"))
    for options in ({"level": 95}, {"resamples": 100}):
        with pytest.raises(ValueError, match="is no share, or 10"):
            shifts(scores, rows, **options)
    few = rows["term"] != "b3"
    with pytest.raises(ValueError, match=r"\('letters', 'b'\) has 3 terms"):
        shifts(np.array(scores)[few], rows[few])
    with pytest.raises(ValueError, match="'letters': every term stands once in every template"):
        shifts(scores[:-1], rows[:-1])
    with pytest.raises(ValueError, match="'letters': every term stands once in every template"):
        shifts(scores, pd.concat([rows[:1], rows[:-1]]))
    alone = rows["group"] == "a"
    with pytest.raises(ValueError, match="'letters' has one group"):
        shifts(np.array(scores)[alone], rows[alone])
    with pytest.raises(ValueError, match="no axis 'hair'; there are age, disability"):
        counterfactuals("hair")


def test_counterfactuals_are_every_template_with_every_term_of_its_slot():
    data, rows = bias._resource(), counterfactuals()
    assert list(rows) == ["text", "template", "kind", "term", "group", "axis"]
    slots = [Counter(row["slot"] for row in data[name]) for name in ("templates", "terms")]
    assert len(rows) == sum(slots[0][slot] * slots[1][slot] for slot in ("name", "group"))
    assert rows["text"].is_unique and not rows["text"].str.contains(r"[{}]").any()
    assert "Emily gives a dull performance in this film." in set(rows["text"])
    assert "My Nigerian neighbour is a brilliant surgeon." in set(rows["text"])
    assert "My deaf neighbour drinks a cup of coffee every morning." in set(rows["text"])
    assert "I had a terrible argument with my aunt." in set(rows["text"])
    assert set(counterfactuals("religion")["axis"]) == {"religion"}


def test_the_resource_keeps_its_promises():
    data = bias._resource()
    assert len(data["templates"]) >= 42 and len(data["terms"]) >= 64 and len(data["pairs"]) >= 40
    for template in data["templates"]:
        assert len(re.findall(r"\{[Pp]erson\}", template["text"])) == 1, template
        assert ("{Person}" in template["text"]) == template["text"].startswith("{"), template
    tones = Counter((each["slot"], each["tone"]) for each in data["templates"])
    assert len(tones) == 6 and min(tones.values()) >= 7
    groups = Counter((each["axis"], each["group"]) for each in data["terms"])
    assert min(groups.values()) >= 4 and len(groups) >= 20
    assert len({each["term"] for each in data["terms"]}) == len(data["terms"])
    for axis in {axis for axis, _ in groups}:
        assert len({each["slot"] for each in data["terms"] if each["axis"] == axis}) == 1
        sizes = {count for (name, _), count in groups.items() if name == axis}
        assert len(sizes) == 1  # no group weighs more in the axis's mean


def test_in_a_pair_one_word_differs_and_each_word_is_on_both_sides():
    sides = Counter()
    for pair in bias._resource()["pairs"]:
        a, b = pair["a"].split(), pair["b"].split()
        different = [words for words in zip(a, b, strict=True) if words[0] != words[1]]
        assert len(different) == 1, pair
        sides[pair["axis"], *different[0]] += 1
    assert all(sides[axis, b, a] == count for (axis, a, b), count in sides.items())


class Words:
    """A tokenizer of whole words, or of letters for words it doesn't know; 0 stands first."""

    bos_token_id, eos_token_id = 0, None

    def __init__(self, texts):
        words = {word for text in texts for word in re.findall(r" ?[^ ]+", text)}
        self.words = ["<s>", *sorted(words)]
        self.ids = {word: i for i, word in enumerate(self.words)}

    def get_vocab(self):
        return self.ids

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self(each)["input_ids"] for each in text]}
        return {"input_ids": [self.ids[word] for word in re.findall(r" ?[^ ]+", text)]}

    def decode(self, ids, **options):
        return "".join(self.words[i] for i in ids)


def counting(tokenizer, scores):
    """A causal model that scores the next word by itself alone."""
    logits = torch.tensor([scores.get(word.strip(), 0.0) for word in tokenizer.words])
    return lambda input_ids: logits.expand(*input_ids.shape, -1)


def test_pairs_by_hand():
    pairs = [
        {"a": "the nurse she", "b": "the nurse he", "axis": "gender"},
        {"a": "he", "b": "she she", "axis": "gender"},
        {"a": "the same", "b": "same the", "axis": "order"},
    ]
    tokenizer = Words([pair[side] for pair in pairs for side in "ab"] + ["he she the"])
    table = pair_preferences(counting(tokenizer, {"she": 1.0}), tokenizer, pairs)
    total = np.log(sum(np.e if word.strip() == "she" else 1.0 for word in tokenizer.words))
    assert list(table["log_a"]) == pytest.approx([1 - 3 * total, -total, -2 * total], rel=1e-5)
    assert list(table["log_b"]) == pytest.approx([-3 * total, 2 - 2 * total, -2 * total], rel=1e-5)
    assert [*table["tokens_a"], *table["tokens_b"]] == [3, 1, 2, 3, 2, 2]
    assert table["difference"][0] == pytest.approx(1, rel=1e-5)
    assert list(table["preferred"]) == ["stereotype", "stereotype", "tie"]
    shares = preference_shares(table).set_index("axis")
    assert shares.loc["all", ["pairs", "ties", "share", "unequal"]].tolist() == [3, 1, 1.0, 1]
    assert shares["low"]["gender"] == pytest.approx(0.342380, abs=1e-5)  # Wilson, 2 of 2
    assert np.isnan(shares["share"]["order"]) and shares["low"]["order"] == 0


def test_a_taste_for_a_word_alone_prefers_no_stereotype():
    # The reason why every word of a pair stands on both sides equally often.
    pairs = pd.DataFrame(bias._resource()["pairs"])
    tokenizer = Words([*pairs["a"], *pairs["b"]])
    generator = np.random.default_rng(0)
    scores = {word.strip(): float(generator.normal()) for word in tokenizer.words}
    table = pair_preferences(counting(tokenizer, scores), tokenizer)
    assert set(preference_shares(table)["share"]) == {0.5}


def test_pairs_batched_are_pairs_alone_and_an_output_is_unpacked():
    from transformers import LlamaConfig, LlamaForCausalLM

    pairs = bias._resource()["pairs"][:10]
    tokenizer = Words([pair[side] for pair in pairs for side in "ab"])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer.words), num_attention_heads=2, **sizes)
    model = LlamaForCausalLM(config).eval()
    together = pair_preferences(model, tokenizer, pairs)
    alone = [pair_preferences(model, tokenizer, [pair]) for pair in pairs]
    assert list(together["log_a"]) == pytest.approx([float(each["log_a"][0]) for each in alone])
    ids = torch.tensor([[0, *tokenizer(pairs[3]["b"])["input_ids"]]])
    logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum()
    assert together["log_b"][3] == pytest.approx(logs.item(), rel=1e-5)
    bare = pair_preferences(lambda input_ids: model(input_ids).logits, tokenizer, pairs)
    assert bare.equals(together)


def test_pairs_refuse_what_does_not_fit():
    tokenizer = Words(["a b"])
    with pytest.raises(ValueError, match="here are 0"):
        pair_preferences(None, tokenizer, [])
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        pair_preferences(None, tokenizer, [{"a": "a", "b": "b"}])
    broken = SimpleNamespace(logits=torch.full((2, 1, 3), torch.nan))
    with pytest.raises(ValueError, match="No finite likelihood for 'a'"):
        pair_preferences(lambda _: broken, tokenizer, [{"a": "a", "b": "a", "axis": "x"}])


@pytest.fixture
def masked(tiny_models, tmp_path):
    """A tiny random BERT with its masked-language-model head, and its tokenizer, in a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models / "encoder")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny_models / "encoder")
    config.vocab_size = len(tokenizer)
    model = transformers.BertForMaskedLM(config)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "masked")
    return str(tmp_path / "masked")


def test_a_masked_model_is_asked_for_each_hidden_token(masked):
    model, tokenizer = models.load_masked(masked, "fp32"), models.load_tokenizer(masked)
    sentence, expected = "a good b", 0.0
    ids = tokenizer(sentence)["input_ids"]  # [CLS] a good b [SEP]
    for place in (1, 2, 3):
        hidden = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        with torch.inference_mode():
            logs = model(torch.tensor([hidden])).logits[0, place].log_softmax(-1)
        expected -= logs[ids[place]].item() / np.log(2)
    assert bias.masked_bits(model, tokenizer, [sentence]) == pytest.approx([expected], abs=1e-4)
    pairs = [{"a": "a good b", "b": "a bad b", "axis": "x"}]
    table = pair_preferences(model, tokenizer, pairs)
    assert table["log_a"][0] == pytest.approx(-expected * np.log(2), abs=1e-4)
    assert table["log_a"][0] != table["log_b"][0]


def test_an_encoder_without_such_a_head_is_refused(tiny_models):
    with pytest.raises(assets.AssetError, match="weights are not in its files"):
        models.load_masked(str(tiny_models / "encoder"))
