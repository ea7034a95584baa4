"""Where a hosted model may be named: the ladder, evaluation, applications, and a notebook."""

from pathlib import Path

import numpy as np
import pytest
from conftest import HOSTED_KEY, hosted_name
from datasets import Dataset

from llmnb import assets, fine_tuning, handbook, models
from llmnb.applications import ApplicationError
from llmnb.applications.question_answering import QuestionAnswerer
from llmnb.applications.summarization import Summarizer
from llmnb.applications.text_generation import HostedGenerator, TextGenerator
from llmnb.evaluation import hallucination
from llmnb.hosted import choose, connect
from llmnb.runs import runner

OPTIONS = ["Paris", "London", "white", "black"]
pytestmark = pytest.mark.slow


@pytest.fixture
def name(proxy):
    return f"openai:{hosted_name()}"


def test_a_choice_is_read_from_the_answer(name, proxy):
    prompts = ["What is the capital of France?", "Is snow white or black?", "Name three animals."]
    answers = choose(connect(name), [f"{p} Reply with one word." for p in prompts], OPTIONS)
    assert answers[:2] == ["Paris", "white"]
    assert proxy.requests == 3


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("Positive.", "positive"),
        ("The label is positive", "positive"),
        ("not positive", "not positive"),
        ("It is positive, not negative", None),
        ("Neither", None),
        ("Answer B", "B"),
        ("a", "A"),
        ("a better answer is B", "B"),
    ],
)
def test_which_option_an_answer_names(answer, option):
    from llmnb.hosted import _named_option

    options = ["A", "B"] if len(option or "AB") == 1 else ["positive", "not positive", "negative"]
    assert _named_option(answer, options) == option


def test_the_rung_of_the_ladder(name, proxy, tmp_path):
    texts = ["A warm, clever, wonderful film.", "A dull, empty waste of two hours."] * 4
    rows = Dataset.from_dict({"text": texts, "label": [1, 0] * 4})
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    settings = fine_tuning.Settings(hosted=name)
    result = fine_tuning.run("hosted", splits, ["negative", "positive"], settings)
    assert result.probabilities.shape == (8, 2) and np.allclose(result.probabilities.sum(1), 1)
    assert proxy.requests == 2  # equal texts are asked once
    fine_tuning.save(result.classifier, tmp_path / "saved")
    loaded = fine_tuning.load(tmp_path / "saved")
    assert (loaded.probabilities(texts) == result.probabilities).all() and proxy.requests == 2
    with pytest.raises(fine_tuning.FineTuningError, match="set hosted to openai:NAME"):
        fine_tuning.run("hosted", splits, ["negative", "positive"])


def test_the_hallucination_probe(name):
    questions = handbook.questions()[:2]
    table = hallucination.answer(connect(name), None, questions, handbook.passages(), new_tokens=8)
    assert len(table) == 2 and table["answer"].str.len().gt(0).any()


def test_the_applications(name, tmp_path):
    writer = TextGenerator.load(name, "smoke", max_new_tokens=12, stop=["."])
    assert isinstance(writer, HostedGenerator)
    (result,) = writer.batch(["What is the capital of France?"])
    assert "Paris" in result.text and "." not in result.text
    assert 0 < result.tokens <= 12 and isinstance(result.tokens, int)
    assert "".join(writer.stream("What is the capital of France?")).strip() == result.text
    with pytest.raises(ApplicationError, match="room for 1 to"):
        writer("word " * 20_000)
    summary = Summarizer.load(name, "smoke", max_words=20, max_new_tokens=40)
    (short,) = summary.batch(["The ferry carries 38 cars. It leaves at noon. " * 12])
    assert 0 < len(short.text.split()) <= 20
    (tmp_path / "note.md").write_text("# Rent\n\nThe landlord pays the deposit back in May.\n")
    librarian = QuestionAnswerer.load(name, "smoke", folder=tmp_path, threshold=0.0)
    result = librarian("When is the deposit paid back?")
    assert result.text and result.evidence[0].passage.file == "note.md"
    with pytest.raises(ApplicationError, match="copy=False"):
        QuestionAnswerer.load(name, "smoke", folder=tmp_path, copy=True)


def test_where_probabilities_are_needed_it_is_refused(name):
    for load in (models.load_decoder, models.load_tokenizer):
        with pytest.raises(assets.AssetError, match="hosted model: it answers in text"):
            load(name)


def test_a_run_that_its_budget_stopped_goes_on_without_asking_twice(name, proxy, cache, tmp_path):
    """And no key is in anything that the two runs wrote."""
    cache.mkdir()
    (cache / "assets").symlink_to(Path(hosted_name()).parent)
    parameters = {"profile": "smoke", "methods": "majority", "hosted": name}
    limit = {"prices": "1000 1000", "max_dollars": 2.0}
    job = runner.Job("04", parameters | limit, str(tmp_path))
    stopped = runner.run(job)
    assert stopped["status"] == "failed" and "budget ends here" in stopped["error"]["message"]
    n_before = proxy.requests
    assert n_before > 2
    finished = runner.run(runner.Job("04", parameters, str(tmp_path)))
    assert finished["status"] == "ok" and "hosted.accuracy" in finished["metrics"]
    n_answers = len(list((cache / "hosted").rglob("*.json")))
    assert proxy.requests == n_answers > n_before
    written = [p for folder in (tmp_path, cache) for p in folder.rglob("*") if p.is_file()]
    assert not [path for path in written if HOSTED_KEY.encode() in path.read_bytes()]
