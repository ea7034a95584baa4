"""A reader that marks spans, against a search by brute force; what none is, is refused."""

import math

import pytest
import torch
import transformers

from llmnb import assets, models
from llmnb.applications import ApplicationError
from llmnb.applications.question_answering import NOT_FOUND, Extractor, QuestionAnswerer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory, tiny_models):
    """A folder with a random BertForQuestionAnswering."""
    folder = tmp_path_factory.mktemp("extractor")
    tokenizer = models.load_tokenizer(str(tiny_models / "encoder"))
    config = transformers.BertConfig.from_pretrained(tiny_models / "encoder")
    torch.manual_seed(3)
    transformers.BertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def best_span(model, tokenizer, question, text):
    """Over all pairs, one by one: margin over the null span, text."""
    coded = tokenizer(question, text, return_offsets_mapping=True, return_tensors="pt")
    offsets, parts = coded.pop("offset_mapping")[0].tolist(), coded.sequence_ids(0)
    with torch.inference_mode():
        out = model(**coded)
    start, end = out.start_logits[0].float(), out.end_logits[0].float()
    spans = [
        (float(start[a] + end[b] - start[0] - end[0]), text[offsets[a][0] : offsets[b][1]])
        for a in range(len(parts))
        for b in range(a, min(a + 30, len(parts)))
        if parts[a] == parts[b] == 1
    ]
    return max(spans)


def test_the_extractor_finds_the_best_span(extractor, boats):
    reader = Extractor(extractor)
    for question in ("good film", "a b c", "Text : bad", "fine each d", "Label e f g", "h"):
        hits = boats.search(question, k=3)
        spans = [best_span(reader.model, reader.tokenizer, question, h.passage.text) for h in hits]
        best = max(range(len(hits)), key=lambda number: spans[number][0])
        result = reader(question, hits)
        assert (result.text, result.evidence) == (spans[best][1], (hits[best],))
        expected = 1 / (1 + math.exp(-spans[best][0]))
        assert result.score == pytest.approx(expected, abs=1e-3)


def test_an_extractor_answers_in_the_decoders_place(extractor, boats):
    app = QuestionAnswerer(boats, None, Extractor(extractor))
    assert app.threshold == 0.5
    (hit,) = (result := app.read(["good film"], [boats.search("good film")])[0]).evidence
    assert result.text in hit.passage.text
    app.threshold = 1.01
    assert app("good film").text == NOT_FOUND and app("good film").evidence == ()
    with pytest.raises(ApplicationError, match="no decoder"):
        app.closed(["good film"])


def test_a_model_without_that_head_is_refused(tiny_models):
    with pytest.raises(assets.AssetError, match="weights are not in its files"):
        Extractor(str(tiny_models / "encoder"))
    with pytest.raises(assets.AssetError):
        Extractor(str(tiny_models / "decoder"))
