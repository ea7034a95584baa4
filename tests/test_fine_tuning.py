"""The rungs of the ladder, on tiny random models and made-up reviews: values, files, refusals."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llmnb import embedding, fine_tuning
from llmnb.assets import AssetError
from llmnb.card import CardError
from llmnb.fine_tuning import FineTuningError, Settings, baselines, encoders, prompting

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("bad", "good")


@pytest.fixture
def small(tiny_models):
    """Settings for the tiny models."""
    names = {"encoder": str(tiny_models / "encoder"), "decoder": str(tiny_models / "decoder")}
    return Settings(**names, dtype="fp32", lr=3e-3, epochs=3, max_length=32)


def columns(part):
    return part["text"][:], np.array(part["label"][:])


@pytest.mark.parametrize("method", ["tfidf", "frozen", "lora", "full", "decoder_lora"])
def test_every_trained_rung_learns_and_comes_back_from_disk(
    method, made_up, small, tmp_path, monkeypatch
):
    steps = {"full": {"epochs": 6}, "lora": {"epochs": 15}, "decoder_lora": {"epochs": 8}}
    rate = {"lr": 1e-2} if method.endswith("lora") else {}
    small = dataclasses.replace(small, **steps.get(method, {}), **rate)
    # A random encoder's vectors say little: the penalty of a pretrained one's would hide it.
    monkeypatch.setattr(baselines.Frozen, "penalty", 10.0)
    result = fine_tuning.run(method, made_up, LABELS, small)
    texts = made_up["test"]["text"][:]
    assert result.accuracy.value > (0.65 if method == "frozen" else 0.95)
    assert result.method == method and result.ms_per_text > 0 and result.bytes_on_disk > 0
    fine_tuning.save(result.classifier, tmp_path / "made", {"accuracy": "much"}, "made-up | rows")
    again = fine_tuning.load(tmp_path / "made")
    assert again.label_names == LABELS and again.method == method
    np.testing.assert_allclose(again.probabilities(texts), result.probabilities, atol=1e-6)
    assert again.predict(texts[:2]) == [LABELS[i] for i in result.predictions[:2]]
    assert again.trainable_parameters == result.classifier.trainable_parameters > 0
    assert len(again.probabilities([])) == 0


def test_the_majority(made_up, small):
    rows = made_up["train"].filter(lambda row: row["label"] == 1 or len(row["text"]) > 15)
    result = fine_tuning.run("majority", {**made_up, "train": rows}, LABELS, small)
    share = np.mean(rows["label"][:])
    assert share > 0.6 and (result.predictions == 1).all()
    np.testing.assert_allclose(result.probabilities, [[1 - share, share]] * len(made_up["test"]))
    assert result.macro_f1.value == pytest.approx(1 / 3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_linear_head_gives_scikit_learns_probabilities(n_classes, made_up, small):
    texts, labels = columns(made_up["train"])
    labels = (labels + 2 * (np.arange(len(labels)) % 3 == 0)) % n_classes
    ours = baselines.Tfidf([str(n) for n in range(n_classes)], small).fit(texts, labels)
    model = LogisticRegression(C=ours.penalty, max_iter=300).fit(ours.features(texts), labels)
    theirs = model.predict_proba(ours.features(texts))
    np.testing.assert_allclose(ours.probabilities(texts), theirs, atol=1e-7)


def test_word_features_are_tfidf_and_pieces_of_words(made_up, small):
    texts, labels = columns(made_up["train"])
    ours = baselines.Tfidf(LABELS, small).fit(texts, labels)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+").fit(texts)
    n = len(words.vocabulary_)
    np.testing.assert_allclose(
        ours.features(texts[:5]).toarray()[:, :n], words.transform(texts[:5]).toarray(), atol=1e-12
    )
    assert ours.features(texts[:5]).shape[1] > n
    long = baselines.Tfidf(LABELS, small).fit([" ".join([text] * 60) for text in texts], labels)
    assert len(long.vectorizers) == 1


def test_scripts_without_spaces_are_counted_by_characters(small):
    texts = ["这部电影很好", "这部电影很差", "我喜欢看它好", "我不喜欢它差"] * 5
    made = baselines.Tfidf(("差", "好"), small).fit(texts, np.array([1, 0, 1, 0] * 5))
    assert {"好", "电影", "电 影"} & set(made.vectorizers[0].vocabulary_) == {"好", "电 影"}
    assert made.predict(["很好", "很差"]) == ["好", "差"]


def test_a_class_without_a_training_text_gets_no_probability(made_up, small):
    texts, labels = columns(made_up["train"])
    made = baselines.Tfidf(("bad", "good", "never"), small).fit(texts, labels)
    assert (made.probabilities(texts[:9])[:, 2] == 0).all()


def test_frozen_features_are_the_mean_of_the_tokens_vectors(made_up, small):
    texts = made_up["test"]["text"][:7]
    made = baselines.Frozen(LABELS, small)
    features = made.features(texts)
    for text, feature in zip(texts, features, strict=True):
        ids = torch.tensor([made._tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            mean = made._model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean) * 32**0.5, atol=1e-4)


def test_long_texts_keep_their_head_or_both_ends(tiny_models, small):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models / "encoder")
    text = " ".join("abcdefghij" * 2)
    whole = tokenizer(text)["input_ids"]
    settings = dataclasses.replace(small, max_length=8)
    (head,), cut = embedding.encode(tokenizer, [text], settings.max_length, settings.keep)
    assert head == whole[:7] + whole[-1:] and cut == 1
    settings = dataclasses.replace(settings, keep="head+tail")
    (both, short), cut = embedding.encode(
        tokenizer, [text, "a b"], settings.max_length, settings.keep
    )
    assert both == whole[:4] + whole[-4:] and len(short) == 4 and cut == 0.5


def test_batches_hold_texts_of_like_length(tiny_models):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models / "encoder")
    ids = [[5] * n for n in (3, 9, 1, 7)]
    found = list(embedding.batches(tokenizer, ids, size=2))
    assert [rows for rows, _ in found] == [[1, 3], [0, 2]]
    assert found[1][1]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_lora_trains_little_and_merges_exactly(made_up, small, tiny_models, tmp_path):
    import peft

    parts = {name: columns(made_up[name]) for name in ("train", "validation")}
    made = encoders.train("lora", small.encoder, parts, LABELS, small)
    assert made.trainable_parameters < 0.5 * sum(p.numel() for p in made.model.parameters())
    fine_tuning.save(made, tmp_path / "made")
    adapter = tmp_path / "made" / "adapter"
    assert made.bytes_on_disk() == sum(f.stat().st_size for f in adapter.iterdir()) > 0
    base = encoders.load_with_head(small.encoder, LABELS)
    unmerged = peft.PeftModel.from_pretrained(base, adapter).eval()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
    ids, _ = embedding.encode(made.tokenizer, made_up["test"]["text"][:8], small.max_length)
    for _, inputs in embedding.batches(made.tokenizer, ids):
        with torch.inference_mode():
            logits = [m(**inputs).logits for m in (made.model.eval(), unmerged, plain.eval())]
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[0], logits[2], atol=1e-6, rtol=0)
    assert plain.config.id2label == {0: "bad", 1: "good"}


def test_the_same_seed_gives_the_same_classifier(made_up, small):
    parts = {name: columns(made_up[name]) for name in ("train", "validation")}
    settings = dataclasses.replace(small, epochs=1)
    texts = made_up["test"]["text"][:]
    first, second = (
        encoders.train("full", small.encoder, parts, LABELS, settings).probabilities(texts)
        for _ in range(2)
    )
    assert np.array_equal(first, second)
    other = dataclasses.replace(settings, seed=1)
    third = encoders.train("full", small.encoder, parts, LABELS, other).probabilities(texts)
    assert not np.allclose(first, third)


def test_balanced_weighs_rare_classes_up():
    rows = [{"labels": 0}] * 30 + [{"labels": 1}] * 10
    logits, labels = torch.tensor([[0.3, -0.2], [1.0, 0.5]]), torch.tensor([0, 1])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    plain = encoders._loss(rows, 2, balanced=False)({"logits": logits}, labels)
    assert plain.item() == pytest.approx(each.mean().item())
    weights = torch.tensor([40 / 60, 40 / 20])
    weighed = encoders._loss(rows, 2, balanced=True)({"logits": logits}, labels)
    assert weighed.item() == pytest.approx(((weights * each).sum() / weights.sum()).item())
    with pytest.raises(FineTuningError, match="no numbers any more: lower lr"):
        encoders._loss(rows, 2, False)({"logits": logits * torch.nan}, labels)


def test_training_stops_early_and_keeps_the_best(made_up, small):
    parts = {name: columns(made_up[name]) for name in ("train", "validation")}
    lines = []
    settings = dataclasses.replace(small, epochs=30, patience=2)
    made = encoders.train("full", small.encoder, parts, LABELS, settings, say=lines.append)
    scores = [float(line.split()[-1]) for line in lines]
    assert len(scores) < 30 and max(scores[:-2]) == max(scores)
    texts, labels = columns(made_up["validation"])
    assert np.mean(made.probabilities(texts).argmax(1) == labels) > 0.95


@pytest.mark.parametrize("shots", [0, 2])
def test_a_prompt_scored_in_batches_is_the_prompt_scored_plainly(shots, made_up, small):
    """The label "good film" has two tokens; the texts differ in length."""
    names = ("bad", "good film", "fine")
    settings = dataclasses.replace(small, shots=shots)
    made = prompting.Prompted(names, settings).fit(*columns(made_up["train"]))
    texts = made_up["test"]["text"][:20]
    expected = np.zeros((len(texts), 3))
    for row, text in enumerate(texts):
        for column, name in enumerate(names):
            prompt = made._ids(made.instruction + f"Text: {text}\nLabel:")
            answer = made._ids(" " + name)
            with torch.inference_mode():
                logs = made.model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
            for place, token in enumerate(answer, start=len(prompt) - 1):
                expected[row, column] += logs[place, token].item()
    assert made.instruction.count("Label:") == 2 * shots
    expected = np.exp(expected - made.usual)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(made.probabilities(texts), expected, atol=1e-5)


def test_a_prompt_too_long_is_refused(made_up, small):
    settings = dataclasses.replace(small, shots=40)
    with pytest.raises(FineTuningError, match="lower shots or max_length"):
        prompting.Prompted(LABELS, settings).fit(*columns(made_up["train"]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 3.0}, "usual are"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 2}, "max_length is 2"),
        ({"lora_rank": "8"}, "lora_rank is '8'"),
        ({"keep": "tail"}, "keep is 'tail'"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_settings_that_cant_be_meant(wrong, message):
    with pytest.raises(FineTuningError, match=message):
        Settings(**wrong)


def test_what_cant_be_run_is_refused_before_any_work(made_up, small):
    with pytest.raises(FineTuningError, match="Did you mean 'lora'"):
        fine_tuning.run("lorra", made_up, LABELS, small)
    with pytest.raises(FineTuningError, match="lack validation"):
        fine_tuning.run("tfidf", {"train": made_up["train"], "test": made_up["test"]}, LABELS)
    one = made_up["train"].filter(lambda row: row["label"] == 1)
    with pytest.raises(FineTuningError, match="all of one class"):
        fine_tuning.run("tfidf", {**made_up, "train": one}, LABELS)
    with pytest.raises(FineTuningError, match="nothing to tell apart"):
        fine_tuning.run("tfidf", made_up, ("good",))


def test_folders(made_up, small, tmp_path):
    made = fine_tuning.run("majority", made_up, LABELS, small).classifier
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CardError, match="holds other files"):
        fine_tuning.save(made, tmp_path / "full")
    with pytest.raises(CardError, match="is a file"):
        fine_tuning.save(made, tmp_path / "full" / "thesis.txt")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    folder = fine_tuning.save(made, tmp_path / "new" / "deep", {"accuracy": 0.5})
    (folder / "stale").write_text("of the older one")
    fine_tuning.save(made, folder)
    assert not (folder / "stale").exists() and (folder / "README.md").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["deep"]
    with pytest.raises(FineTuningError, match=r"no classifier that llmnb saved \(llmnb.json"):
        fine_tuning.load(tmp_path / "nowhere")
    facts = json.loads((folder / "llmnb.json").read_text())
    for broken in (
        "{",
        json.dumps(facts | {"kind": "Oracle"}),
        json.dumps(facts | {"settings": {"x": 1}}),
    ):
        (folder / "llmnb.json").write_text(broken)
        with pytest.raises(FineTuningError, match="is damaged"):
            fine_tuning.load(folder)


@pytest.mark.parametrize("method", ["full", "few_shot"])
def test_a_saved_network_is_loaded_in_a_fresh_process(method, made_up, small, tmp_path):
    made = fine_tuning.run(method, made_up, LABELS, dataclasses.replace(small, epochs=1)).classifier
    fine_tuning.save(made, tmp_path / "made")
    code = "import sys; from llmnb import fine_tuning; made = fine_tuning.load(sys.argv[1]); "
    code += "print(made.predict(['a good b', 'a bad b']))"
    command = [sys.executable, "-c", code, str(tmp_path / "made")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == str(made.predict(["a good b", "a bad b"])), found.stderr


def test_a_classifier_of_plain_transformers_is_loaded(
    made_up, small, tiny_models, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLMNB_DTYPE", "fp32")
    made = fine_tuning.run("full", made_up, LABELS, small).classifier
    fine_tuning.save(made, tmp_path / "made")
    (tmp_path / "made" / "llmnb.json").unlink()
    again = fine_tuning.load(tmp_path / "made")
    texts = made_up["test"]["text"][:8]
    np.testing.assert_allclose(again.probabilities(texts), made.probabilities(texts), atol=1e-6)
    assert again.label_names == LABELS and again.method == "pretrained"
    with pytest.raises(AssetError, match="lacks 2 weights"):  # its head would be random numbers
        fine_tuning.load(tiny_models / "encoder")


def test_a_model_card_takes_any_label(made_up, small, tmp_path):
    made = fine_tuning.run("majority", made_up, ("a | b\n# c", "`<script>`"), small).classifier
    card = (fine_tuning.save(made, tmp_path / "made", {"x": "1 | 2"}) / "README.md").read_text()
    assert "# A classifier: a / b # c, '‹script›'" in card and "| x | 1 / 2 |" in card


def test_what_other_notebooks_build_on_is_made_once(made_up, small, cache, monkeypatch):
    first = fine_tuning.trained("tfidf", made_up, LABELS, small)
    monkeypatch.setattr("llmnb.fine_tuning.ladder.run", None)  # a second training would fail
    again = fine_tuning.trained("tfidf", made_up, LABELS, small)
    texts = made_up["test"]["text"][:]
    np.testing.assert_array_equal(first.probabilities(texts), again.probabilities(texts))
    with pytest.raises(TypeError):
        fine_tuning.trained("tfidf", made_up, LABELS, dataclasses.replace(small, seed=1))
