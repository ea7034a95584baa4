"""The rungs of the ladder, on tiny random models and made-up reviews: values, files, refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import python
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llmnb import fine_tuning
from llmnb.fine_tuning import FineTuningError, Settings, baselines, contrastive, ladder

LABELS = ("bad", "good")


@pytest.fixture
def settings(tiny_models):
    """For the tiny models."""
    names = {"encoder": str(tiny_models / "encoder"), "decoder": str(tiny_models / "decoder")}
    return Settings(**names, dtype="fp32", lr=3e-3, epochs=3, max_length=32)


def columns(part):
    return part["text"][:], np.array(part["label"][:])


# The test of lora is in test_fine_tuning_encoders.py.
@pytest.mark.parametrize("method", ["tfidf", "frozen", "contrastive", "full", "decoder_lora"])
def test_every_trained_rung_learns_and_comes_back_from_disk(
    method, made_up, settings, tmp_path, monkeypatch
):
    changes = {"full": {"epochs": 6}, "decoder_lora": {"epochs": 8, "lr": 1e-2}}
    settings = dataclasses.replace(settings, **changes.get(method, {}))
    # A random encoder's vectors say little: the penalty of a pretrained one's would hide it.
    monkeypatch.setattr(baselines.Frozen, "penalty", 10.0)
    result = fine_tuning.run(method, made_up, LABELS, settings)
    texts = made_up["test"]["text"][:]
    assert result.accuracy.value > (0.65 if method == "frozen" else 0.95)
    assert result.method == method and result.ms_per_text > 0 and result.bytes_on_disk > 0
    fine_tuning.save(result.classifier, tmp_path / "saved", {"accuracy": "much"}, "made-up | rows")
    loaded = fine_tuning.load(tmp_path / "saved")
    assert loaded.label_names == LABELS and loaded.method == method
    np.testing.assert_allclose(loaded.probabilities(texts), result.probabilities, atol=1e-6)
    assert loaded.predict(texts[:2]) == [LABELS[i] for i in result.predictions[:2]]
    assert loaded.trainable_parameters == result.classifier.trainable_parameters > 0
    assert len(loaded.probabilities([])) == 0


def test_the_majority_gives_the_shares_of_the_training_set(made_up, settings):
    rows = made_up["train"].filter(lambda row: row["label"] == 1 or len(row["text"]) > 15)
    result = fine_tuning.run("majority", {**made_up, "train": rows}, LABELS, settings)
    share = np.mean(rows["label"][:])
    assert share > 0.6 and (result.predictions == 1).all()
    np.testing.assert_allclose(result.probabilities, [[1 - share, share]] * len(made_up["test"]))
    assert result.macro_f1().value == pytest.approx(1 / 3)
    assert result.row()["macro-F1"] == 0.333


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_linear_head_gives_scikit_learns_probabilities(n_classes, made_up, settings):
    texts, labels = columns(made_up["train"])
    labels = (labels + 2 * (np.arange(len(labels)) % 3 == 0)) % n_classes
    ours = baselines.Tfidf([str(n) for n in range(n_classes)], settings).fit(texts, labels)
    model = LogisticRegression(C=ours.penalty, max_iter=300).fit(ours.features(texts), labels)
    theirs = model.predict_proba(ours.features(texts))
    np.testing.assert_allclose(ours.probabilities(texts), theirs, atol=1e-7)


def test_a_words_invisible_characters_make_no_other_feature():
    (word,) = baselines._word_vectorizer().build_analyzer()("Cafe\u0301\u00ad")
    assert word == "café" and f" {word} " in baselines._piece_vectorizer().build_analyzer()("Café")


def test_word_features_are_tfidf_and_pieces_of_words(made_up, settings):
    texts, labels = columns(made_up["train"])
    ours = baselines.Tfidf(LABELS, settings).fit(texts, labels).features(texts[:5]).toarray()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+").fit(texts)
    theirs = words.transform(texts[:5]).toarray()
    n_words = theirs.shape[1]
    np.testing.assert_allclose(ours[:, :n_words], theirs, atol=1e-12)
    assert ours.shape[1] > n_words
    long_texts = [" ".join([text] * 60) for text in texts]
    assert len(baselines.Tfidf(LABELS, settings).fit(long_texts, labels).vectorizers) == 1


def test_scripts_without_spaces_are_counted_by_characters(settings):
    texts = ["这部电影很好", "这部电影很差", "我喜欢看它好", "我不喜欢它差"] * 5
    classifier = baselines.Tfidf(("差", "好"), settings).fit(texts, np.array([1, 0, 1, 0] * 5))
    vocabulary = classifier.vectorizers[0].vocabulary_
    assert {"好", "电影", "电 影"} & set(vocabulary) == {"好", "电 影"}
    assert classifier.predict(["很好", "很差"]) == ["好", "差"]


def test_a_class_without_a_training_text_gets_no_probability(made_up, settings):
    texts, labels = columns(made_up["train"])
    classifier = baselines.Tfidf(("bad", "good", "never"), settings).fit(texts, labels)
    assert (classifier.probabilities(texts[:9])[:, 2] == 0).all()


def test_the_contrastive_loss_is_the_mean_over_all_pairs():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss = contrastive.pair_loss(vectors, torch.tensor([0, 1, 1]))
    assert loss.item() == pytest.approx((0 + 1 + 1) / 3)  # cosines 0, 1, 0; targets 0, 0, 1


def test_frozen_features_have_one_length(made_up, settings):
    features = baselines.Frozen(LABELS, settings).features(made_up["test"]["text"][:7])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 32**0.5)  # √d_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 3.0}, "too high: use"),
        ({"max_length": 2}, "max_length is 2"),
        ({"lora_rank": "8"}, "lora_rank is '8'"),
        ({"keep": "tail"}, "keep is 'tail'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(FineTuningError, match=message):
        Settings(**changes)


def test_what_cant_be_run_is_refused_before_any_work(made_up, monkeypatch):
    monkeypatch.setattr(ladder, "_train", None)
    one_class = made_up["train"].filter(lambda row: row["label"] == 1)
    without_validation = {"train": made_up["train"], "test": made_up["test"]}
    refused = {
        "Did you mean 'lora'": ("lorra", made_up, LABELS),
        "lack validation": ("tfidf", without_validation, LABELS),
        "all of one class": ("tfidf", {**made_up, "train": one_class}, LABELS),
        "needs two labels": ("tfidf", made_up, ("good",)),
    }
    for message, arguments in refused.items():
        with pytest.raises(FineTuningError, match=message):
            fine_tuning.run(*arguments)


def test_a_classifier_can_be_saved_into_the_working_folder(
    made_up, settings, tmp_path, monkeypatch
):
    classifier = fine_tuning.run("majority", made_up, LABELS, settings).classifier
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        fine_tuning.save(classifier, ".")
    assert fine_tuning.load(tmp_path / "here").label_names == LABELS
    assert "fine_tuning.load('here')" in (tmp_path / "here" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_missing_or_damaged_classifier_is_not_loaded(made_up, settings, tmp_path):
    with pytest.raises(FineTuningError, match=r"no classifier that llmnb saved \(llmnb.json"):
        fine_tuning.load(tmp_path)
    classifier = fine_tuning.run("majority", made_up, LABELS, settings).classifier
    facts_file = fine_tuning.save(classifier, tmp_path / "saved") / fine_tuning.FACTS
    facts = json.loads(facts_file.read_text())
    wrong_kind = json.dumps(facts | {"kind": "Oracle"})
    wrong_settings = json.dumps(facts | {"settings": {"x": 1}})
    for text in ("{", wrong_kind, wrong_settings):
        facts_file.write_text(text)
        with pytest.raises(FineTuningError, match="is damaged"):
            fine_tuning.load(facts_file.parent)


@pytest.fixture
def retrained(tiny_models, tmp_path):
    """A copy of the tiny models, and a function that changes the weights of one in its folder."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_models, folder)

    def retrain(name):
        weights = load_file(folder / name / "model.safetensors")
        for number, tensor in enumerate(weights.values()):
            tensor += 0.3 * torch.randn(tensor.shape, generator=torch.manual_seed(number))
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})

    return folder, retrain


@pytest.mark.parametrize(("method", "base"), [("frozen", "encoder"), ("few_shot", "decoder")])
def test_a_model_retrained_in_its_folder_gives_another_classifier(
    method, base, made_up, settings, cache, retrained
):
    folder, retrain = retrained
    settings = dataclasses.replace(settings, **{base: str(folder / base)})
    texts = made_up["test"]["text"][:]
    old_classifier = fine_tuning.trained(method, made_up, LABELS, settings)
    old = old_classifier.probabilities(texts)
    retrain(base)
    new = fine_tuning.trained(method, made_up, LABELS, settings).probabilities(texts)
    expected = fine_tuning.run(method, made_up, LABELS, settings).probabilities
    np.testing.assert_allclose(new, expected, atol=1e-6)
    assert np.abs(new - old).max() > 0.01


def test_what_other_notebooks_build_on_is_trained_once_until_something_changes(
    made_up, settings, cache, retrained, monkeypatch
):
    folder, _ = retrained
    settings = dataclasses.replace(settings, encoder=str(folder / "encoder"), dtype="auto")
    monkeypatch.setenv("LLMNB_DTYPE", "fp32")
    texts = made_up["test"]["text"][:]
    first = fine_tuning.trained("frozen", made_up, LABELS, settings)
    kept = fine_tuning.run("tfidf", made_up, LABELS, settings, keep=True).classifier
    monkeypatch.setattr(ladder, "run", None)  # a second training would fail
    others = {**made_up, "test": made_up["test"].select([0])}
    for classifier in (first, kept):
        again = fine_tuning.trained(classifier.method, others, LABELS, settings)
        probabilities = classifier.probabilities(texts), again.probabilities(texts)
        np.testing.assert_allclose(*probabilities, atol=1e-6)

    def assert_trained_again(settings=settings):
        with pytest.raises(TypeError):
            fine_tuning.trained("frozen", made_up, LABELS, settings)

    assert_trained_again(dataclasses.replace(settings, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "code_digests", dict)
        assert_trained_again()
    with monkeypatch.context() as patch:
        patch.setenv("LLMNB_DTYPE", "bf16")
        assert_trained_again()
    file = folder / "encoder" / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"fine?"'))
    assert_trained_again()


def test_a_saved_head_is_not_put_on_a_retrained_encoder(made_up, settings, retrained, tmp_path):
    folder, retrain = retrained
    settings = dataclasses.replace(settings, encoder=str(folder / "encoder"))
    classifier = fine_tuning.run("frozen", made_up, LABELS, settings).classifier
    saved = fine_tuning.save(classifier, tmp_path / "saved")
    fine_tuning.load(saved)
    retrain("encoder")
    with pytest.raises(FineTuningError, match=r"trained on another .*encoder'.* train it again"):
        fine_tuning.load(saved)


def test_every_module_that_decides_a_result_is_in_the_digest_of_the_code():
    code = "import sys; from llmnb.fine_tuning import contrastive, prompting; "
    process = python(code + "print(*(name for name in sys.modules if name.startswith('llmnb.')))")
    assert process.returncode == 0, process.stderr
    paths = {name.split(".", 1)[1].replace(".", "/") + ".py" for name in process.stdout.split()}
    paths.remove("fine_tuning.py")  # it is a package
    deciding = set(ladder.code_digests())
    # These only save, describe and measure a classifier.
    others = {path for path in paths if path.startswith(("evaluation", "files.", "card."))}
    assert {"embedding.py", "text.py", "fine_tuning/prompting.py"} <= paths
    assert paths - others <= deciding, paths - others - deciding
