"""Long texts are read in pieces, and what is wrong is said: a scripted model; the real one."""

import json

import pytest
import torch

from llmnb import assets, generation, handbook, models
from llmnb.applications.base import ApplicationError
from llmnb.applications.summarization import Summarizer
from llmnb.applications.text_generation import TextGenerator
from llmnb.transformer import Decoder, TransformerConfig

ASSET = "SmolLM2-135M-Instruct-q4_1"
TEXTS = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(ASSET)


@pytest.fixture(scope="module")
def tiny(tokenizer):
    """A random decoder; what it says is scripted."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_positions": 512}
    return Decoder(TransformerConfig.of("llama", vocab_size=len(tokenizer), **sizes)).eval()


@pytest.fixture
def script(monkeypatch):
    """An answer for each prompt, by a function of what was asked; all prompts are kept."""
    calls = []

    def say(answer):
        def complete(model, tokenizer, prompts, *options):
            calls.append([prompt.split("<|im_start|>user\n")[-1] for prompt in prompts])
            calls[-1] = [asked.split("<|im_end|>")[0] for asked in calls[-1]]
            return [answer(asked) if callable(answer) else answer for asked in calls[-1]]

        monkeypatch.setattr(generation, "complete", complete)
        return calls

    return say


@pytest.fixture
def app(tiny, tokenizer):
    return Summarizer(TextGenerator(tiny, tokenizer, max_new_tokens=24), max_words=8)


TEXT = "The red boat left the harbour at nine. Nobody was on board, and it rained. " * 2


def test_a_short_text_is_read_once_and_whole(app, script):
    calls = script("A red boat left.")
    result = app(TEXT)
    assert calls == [[TEXT]] and result.evidence == ()
    assert result.text == "A red boat left." and result.warnings == ()
    assert result.tokens == len(app.generator.tokenizer(result.text)["input_ids"])
    assert result.seconds > 0 and app.batch([]) == []


def long_text(paragraphs=40):
    return "\n\n".join(f"In town {n} the boat left. It was red. " * 4 for n in range(paragraphs))


def test_a_long_text_is_read_in_pieces_that_lose_nothing(app, script):
    calls = script(lambda asked: f"It was town {asked.split()[2]}.")
    text = long_text()
    result = app(text)
    pieces = [piece for call in calls[:-1] for piece in call]
    assert sorted(" ".join(pieces).split()) == sorted(text.split())
    assert all(app._size(piece) <= app.room for piece in pieces) and len(pieces) > 3
    for piece in pieces:  # cut between paragraphs
        assert piece.count("It was red.") % 4 == 0 and piece.startswith("In town")
    assert len(result.evidence) == len(pieces)
    assert calls[-1] == ["\n\n".join(result.evidence)]
    assert result.text.startswith("It was town")
    assert result.tokens > 7 * len(pieces)


def test_the_summaries_of_pieces_are_reduced_again_where_they_are_too_long(app, script):
    calls = script(lambda asked: f"A {asked.split()[2]} of so many is red.")
    result = app(long_text(250))
    n_pieces = sum(len(call) for call in calls[:-1])
    assert len(result.evidence) == n_pieces and len(calls[-1]) == 1
    assert app._size("\n\n".join(result.evidence)) > app.room  # one level was not enough
    assert app._size(calls[-1][0]) <= app.room


def test_order_and_batch_agree_with_single_calls(app, script):
    script(lambda asked: f"It says {' '.join(asked.split()[:3])}.")
    texts = [TEXT, long_text(), "Another " + TEXT, "Short."]
    together, alone = app.batch(texts), [app(text) for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.evidence, one.warnings) == (
            other.text,
            other.evidence,
            other.warnings,
        )
    assert len({result.text for result in together}) == 4


def test_a_sentence_longer_than_the_room_is_cut_between_words_and_said(app, script):
    calls = script("It was red.")
    text = "boat " * 1500 + "end."
    result = app(text)
    pieces = [piece for call in calls[:-1] for piece in call]
    assert sorted(" ".join(pieces).split()) == sorted(text.split())
    assert any("longer than what the model reads" in warning for warning in result.warnings)
    script("红。")
    assert app("红" * 3000).evidence  # nothing to cut at


def test_control_tokens_in_a_text_take_no_more_room_than_is_there(app, script):
    calls = script("It was red.")
    app("<|im_end|> a b. " * 200)
    assert all(app._size(piece) <= app.room for call in calls for piece in call)


def test_a_summary_ends_at_a_sentence_and_says_when_it_was_cut(app, script):
    script("The boat left. Nobody was there at all. It rained.")
    result = app(TEXT)
    assert result.text == "The boat left. Nobody was there at all."
    assert result.warnings == ("Cut to 8 words.",)
    script("the red boat left the harbour at nine, and nobody was on board of it")
    assert app(TEXT).text == "the red boat left the harbour at nine…"
    script("## Boats\n\nThe boat left. Nobody " + "w " * 24)  # out of tokens: 24
    assert app(TEXT).text == "The boat left."
    script("Nobody" + " wo" * 24)
    assert app(TEXT).text == "Nobody" + " wo" * 7 + "…"
    script("Donaudampfschifffahrtsgesellschaft " * 3 + "kapit")  # out of tokens inside a word
    assert app(TEXT).text == " ".join(["Donaudampfschifffahrtsgesellschaft"] * 3) + "…"
    script("A red boat")  # a headline that is finished
    assert app(TEXT).text == "A red boat" and not app(TEXT).warnings


def test_a_text_as_short_as_a_summary_stays(app, script):
    calls = script("never")
    result = app("The boat left.")
    assert result.text == "The boat left." and "as short as a summary" in result.warnings[0]
    assert list(app.stream("The boat left.")) == ["The boat left."]
    assert not any(calls)


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        ("", "wrote nothing"),
        ("The boat of Ada left at 10.", "Not in the text: Ada, 10."),
        ("Nobody was on board, and it rained.", "copied from the text"),
        ("a b c d a b c d", "repeats itself"),
        ("Objective summary of the input text in red.", "repeats the instruction"),
    ],
)
def test_what_is_wrong_is_said(app, script, said, warning):
    script(said)
    assert [warning in each for each in app(TEXT).warnings] == [True]


def test_pieces_without_a_summary_end_in_an_empty_result(app, script):
    script("")
    result = app(long_text())
    assert result.text == "" and "The model wrote nothing." in result.warnings


def test_a_stream_shows_the_last_step_up_to_the_limit(app, script, monkeypatch):
    calls = script("It was red.")
    asked = []

    def stream(model, tokenizer, prompt, *options):
        asked.append(prompt)
        yield from (f"w{n} " for n in range(20))

    monkeypatch.setattr(generation, "stream", stream)
    assert "".join(app.stream(long_text())).split() == [f"w{n}" for n in range(8)]
    assert len(calls) >= 1 and "It was red.\n\nIt was red." in asked[0]


def test_the_length_is_said_in_the_prompt_and_the_generator_keeps_its_own(tiny, tokenizer):
    generator = TextGenerator(tiny, tokenizer, system="Be kind.", max_new_tokens=16)
    for n_words in (9, 30, 200):
        prompt = Summarizer(generator, n_words).generator.prompt("x")
        assert f"at most {n_words} words" in prompt and "Be kind." not in prompt
    assert generator.system == "Be kind."


def test_without_a_chat_template_the_text_asks_for_its_summary(tiny, tokenizer, script):
    import copy

    bare = copy.copy(tokenizer)
    bare.chat_template = None
    calls = script("A red boat left.")
    Summarizer(TextGenerator(tiny, bare, max_new_tokens=24), max_words=8)(TEXT + "{}")
    assert calls == [[TEXT + "{}\n\nTL;DR:"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_words": 0}, "max_words is 0"),
        ({"max_tokens": 150}, r"raise max_tokens \(150\)"),
        ({"max_tokens": -1}, "tokens are left"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tiny, tokenizer, options, message):
    with pytest.raises(ApplicationError, match=message):
        Summarizer(TextGenerator(tiny, tokenizer, max_new_tokens=24), **options)


@pytest.mark.parametrize("texts", [["good text", " "], [None], "one text"])
def test_bad_texts_are_refused_before_any_work(app, script, texts):
    calls = script("never")
    with pytest.raises(ApplicationError):
        app.batch(texts)
    assert not calls


def test_an_unknown_model_is_refused():
    with pytest.raises(assets.AssetError):
        Summarizer.load("no-such-model", profile="cpu", max_words=9)


@pytest.mark.slow
def test_smollm2_summarizes():
    app = Summarizer.load(ASSET, profile="cpu", max_new_tokens=40)
    texts = [TEXTS[0]["text"], "\n\n".join(row["text"] for row in TEXTS[:6])]
    short, long = app.batch(texts)
    assert "Weir" in short.text and 5 <= len(short.text.split()) <= 30
    assert not short.evidence and 2 <= len(long.evidence) <= 8 and long.text
    assert long.tokens > short.tokens > 10
    alone, streamed = app(texts[0]), "".join(app.stream(texts[0]))
    assert streamed.startswith(alone.text.rstrip("….")) and len(streamed.split()) <= 30
