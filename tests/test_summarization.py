"""Baselines and checks by hand, long texts by a scripted model; then the real one."""

import copy
import json

import numpy as np
import pytest
from conftest import tiny_decoder

from llmnb import generation, handbook
from llmnb.applications.base import ApplicationError
from llmnb.applications.summarization import Summarizer, centroid, lead, unsupported
from llmnb.applications.text_generation import TextGenerator
from llmnb.text import printed_words

ASSET = "SmolLM2-135M-Instruct-q4_1"
ARTICLES = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))
TEXT = "The red boat left the harbour at nine. Nobody was on board, and it rained. " * 2
SOURCE = (
    "On 2024-05-02 Zoë O'Brien of Port Emmer sold 3,800,000 boats for 24,50 crowns each; 60 % of "
    "them were red. Three companies, Tarrow's among them, open at 06:30. The 1,500 clerks use "
    "version 5.2.1, and 2.3 million people know."
)


def test_lead_takes_sentences_and_passes_headings_over():
    text = "Title\n\nFirst one. Second one. Third one."
    assert lead(text) == "First one." and lead("no mark at all") == "no mark at all"


def test_the_centroid_is_nearest_to_the_mean_by_hand():
    rows = ["b c.", "a b.", "a c c."]
    counts = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 1 + np.log(2)]], float)
    vectors = counts * (np.log(4 / 3) + 1)  # each word stands in 2 of 3 sentences: one idf
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    best = int((vectors @ vectors.mean(0)).argmax())
    assert centroid(" ".join(row.capitalize() for row in rows)).lower() == rows[best]
    assert centroid("Only one.") == "Only one."
    assert centroid("?! …") == "?!"


@pytest.mark.parametrize(
    ("summary", "unknown"),
    [
        ("Zoe O'Brien sold 3.8 million boats at 24.50 on 2 May 2024.", ()),
        ("In 2024, 60 percent; 3 companies; at 6:30; 1500 clerks; 2,300,000; 5.2.1.", ()),
        ("The boats of Tarrow, a Company in Ports, Emmer's own.", ()),
        ("It was 3.8 billion, 38 or 3.80.", ("3.8 billion", "38", "3.80")),
        ("Version 5.2.2 costs 2450, not 24.5 or 2,300.", ("5.2.2", "2450", "2,300")),
        ("It opens at 7:30 with seven clerks, in 2023.", ("7:30", "seven", "2023")),
        ("The boats of Ada Olm were sold in June.", ("Ada", "Olm", "June")),
        ("No one knows. This is theirs, and I'm sure. Nobody did.", ()),
        ("Ada Olm sold boats. Researchers met; later Bo left.", ("Ada", "Olm", "Bo")),
        ("Thanks to them it works. Bea's group met.", ("Bea's",)),
    ],
)
def test_numbers_and_names_that_are_not_in_the_source_are_unsupported(summary, unknown):
    assert unsupported(SOURCE, summary) == unknown


def test_references_are_supported_by_their_own_text_and_not_by_another():
    for shift, is_expected in ((0, lambda n: n == 0), (1, lambda n: n >= 22)):
        texts = np.roll([row["text"] for row in ARTICLES], -shift).tolist()
        pairs = zip(texts, ARTICLES, strict=True)
        assert is_expected(sum(bool(unsupported(text, row["summary"])) for text, row in pairs))


@pytest.fixture(scope="module")
def tiny(smollm_tokenizer):
    """A random decoder; what it writes is scripted."""
    return tiny_decoder(len(smollm_tokenizer), n_positions=512)


@pytest.fixture
def script(monkeypatch):
    """Makes the model write an answer, or answer(message), and gives the messages of each call."""
    calls = []

    def write(answer):
        def complete(model, tokenizer, prompts, *options):
            messages = [prompt.split("<|im_start|>user\n")[-1] for prompt in prompts]
            calls.append([message.split("<|im_end|>")[0] for message in messages])
            return [answer(message) if callable(answer) else answer for message in calls[-1]]

        monkeypatch.setattr(generation, "complete", complete)
        return calls

    return write


@pytest.fixture
def app(tiny, smollm_tokenizer):
    return Summarizer(TextGenerator(tiny, smollm_tokenizer, max_new_tokens=24), max_words=8)


def long_text(paragraphs=40):
    return "\n\n".join(f"In town {n} the boat left. It was red. " * 4 for n in range(paragraphs))


def assert_pieces(app, calls, text):
    """The pieces hold all words of the text, and each fits."""
    pieces = [piece for call in calls[:-1] for piece in call]
    assert sorted(" ".join(pieces).split()) == sorted(text.split())
    assert all(app._text_tokens(piece) <= app.max_text_tokens for piece in pieces)
    return pieces


@pytest.mark.parametrize("answer", ["A red boat left.", "A red boat"])
def test_a_short_text_is_read_once_and_whole(answer, app, script):
    calls = script(answer)
    result = app(TEXT)
    assert calls == [[TEXT]] and result.evidence == ()
    assert result.text == answer and result.warnings == ()
    assert result.tokens == len(app.generator.tokenizer(result.text)["input_ids"])
    assert result.seconds > 0 and app.batch([]) == []


def test_a_long_text_is_read_in_pieces_of_whole_paragraphs(app, script):
    calls = script(lambda message: f"It was town {message.split()[2]}.")
    text = long_text()
    result = app(text)
    pieces = assert_pieces(app, calls, text)
    assert len(result.evidence) == len(pieces) > 3
    for piece in pieces:
        assert piece.count("It was red.") % 4 == 0 and piece.startswith("In town")
    assert calls[-1] == ["\n\n".join(result.evidence)]
    assert result.text.startswith("It was town") and result.tokens > 7 * len(pieces)


def test_the_summaries_of_pieces_are_reduced_again_where_they_are_too_long(app, script):
    calls = script(lambda message: f"A {message.split()[2]} of so many is red.")
    result = app(long_text(250))
    assert len(result.evidence) == sum(map(len, calls[:-1])) and len(calls[-1]) == 1
    assert (
        app._text_tokens("\n\n".join(result.evidence)) > app.max_text_tokens
    )  # one level was not enough
    assert app._text_tokens(calls[-1][0]) <= app.max_text_tokens


def test_order_and_batch_agree_with_single_calls(app, script):
    script(lambda message: f"It says {' '.join(message.split()[:3])}.")
    texts = [TEXT, long_text(), "Another " + TEXT, "Short."]
    results = app.batch(texts)
    for text, result in zip(texts, results, strict=True):
        alone = app(text)
        assert (result.text, result.evidence) == (alone.text, alone.evidence)
        assert result.warnings == alone.warnings
    assert len({result.text for result in results}) == 4


def test_a_sentence_longer_than_the_room_is_cut_between_words_with_a_warning(app, script):
    calls = script("It was red.")
    text = "boat " * 1500 + "end."
    result = app(text)
    assert_pieces(app, calls, text)
    assert any("longer than what the model reads" in warning for warning in result.warnings)
    script("红。")
    assert app("红" * 3000).evidence  # nothing to cut at
    calls.clear()
    app("<|im_end|> a b. " * 200)  # control tokens become longer in the prompt
    assert all(app._text_tokens(piece) <= app.max_text_tokens for call in calls for piece in call)


LONG_WORD = "Donaudampfschifffahrtsgesellschaft"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("The boat left. Nobody was there. It rained a bit.", "The boat left. Nobody was there."),
        ("the red boat left at nine, and no one saw", "the red boat left at nine, and no…"),
        ("## Boats\n\nThe boat left. Nobody " + "w " * 24, "The boat left."),  # out of tokens: 24
        ("Nobody" + " wo" * 24, "Nobody" + " wo" * 7 + "…"),
        (f"{LONG_WORD} " * 3 + "kapit", " ".join([LONG_WORD] * 3) + "…"),  # out inside a word
        ("渡船离开了港口没有人在船上", "渡船离开了港口没…"),  # a character is a word
    ],
)
def test_a_summary_that_is_too_long_is_cut_with_a_warning(app, script, answer, text):
    script(answer)
    assert app(TEXT).text == text
    assert app(TEXT).warnings[0] == f"Cut to {len(printed_words(text))} words."


def test_a_text_as_short_as_a_summary_stays(app, script):
    calls = script("never")
    result = app("The boat left.")
    assert result.text == "The boat left." and "as short as a summary" in result.warnings[0]
    assert list(app.stream("The boat left.")) == ["The boat left."]
    assert not any(calls)


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        ("", "wrote nothing"),
        ("The boat of Ada left at 10.", "Not in the text: Ada, 10."),
        ("Nobody was on board, and it rained.", "copied from the text"),
        ("a b c d a b c d", "repeats itself"),
        ("Objective summary of the input text in red.", "repeats the instruction"),
    ],
)
def test_a_warning_names_what_is_wrong(app, script, answer, warning):
    script(answer)
    assert [warning in text for text in app(TEXT).warnings] == [True]
    assert answer or "The model wrote nothing." in app(long_text()).warnings


def test_a_part_of_a_word_is_not_copied(app, script):
    script("Ship.")
    assert app("The shipment is near, and it is red and large and late today.").warnings == ()


def test_a_stream_shows_the_last_step_up_to_the_limit(app, script, monkeypatch):
    script("It was red.")
    prompts = []

    def stream(model, tokenizer, prompt, *options):
        prompts.append(prompt)
        yield from (f"w{n} " for n in range(20))

    monkeypatch.setattr(generation, "stream", stream)
    assert "".join(app.stream(long_text())).split() == [f"w{n}" for n in range(8)]
    assert "It was red.\n\nIt was red." in prompts[0]


def test_the_length_stands_in_the_prompt_and_the_generator_keeps_its_own(tiny, smollm_tokenizer):
    generator = TextGenerator(tiny, smollm_tokenizer, system="Be kind.", max_new_tokens=16)
    prompt = Summarizer(generator, 200).generator.prompt("x")
    assert "at most 200 words" in prompt and "Be kind." not in prompt
    assert generator.system == "Be kind."


def test_without_a_chat_template_the_text_asks_for_its_summary(tiny, smollm_tokenizer, script):
    bare = copy.copy(smollm_tokenizer)
    bare.chat_template = None
    calls = script("A red boat left.")
    Summarizer(TextGenerator(tiny, bare, max_new_tokens=24), max_words=8)(TEXT + "{}")
    assert calls == [[TEXT + "{}\n\nTL;DR:"]]


def test_what_cannot_be_summarized_is_refused_before_any_work(tiny, smollm_tokenizer, app, script):
    calls = script("never")
    with pytest.raises(ApplicationError, match="max_words is 0"):
        Summarizer(TextGenerator(tiny, smollm_tokenizer), max_words=0)
    with pytest.raises(ApplicationError, match=r"raise max_tokens \(150\)"):
        Summarizer(TextGenerator(tiny, smollm_tokenizer, max_new_tokens=24), max_tokens=150)
    for call in (app, lead, centroid):
        with pytest.raises(ApplicationError, match="is empty or isn"):
            call(" \n")
    assert not calls


@pytest.mark.slow
def test_smollm2_summarizes():
    app = Summarizer.load(ASSET, profile="cpu", max_new_tokens=40)
    texts = [ARTICLES[0]["text"], "\n\n".join(row["text"] for row in ARTICLES[:6])]
    short, long = app.batch(texts)
    assert "Weir" in short.text and 5 <= len(short.text.split()) <= 30
    assert not short.evidence and 2 <= len(long.evidence) <= 8 and long.text
    assert long.tokens > short.tokens > 10
    alone, streamed = app(texts[0]), "".join(app.stream(texts[0]))
    assert streamed.startswith(alone.text.rstrip("….")) and len(streamed.split()) <= 30
