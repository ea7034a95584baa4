"""Splitting, baselines and checks by hand; map-reduce with a scripted model; the real model."""

import importlib.metadata
import json
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmnb import applications, assets, generation
from llmnb.applications.base import ApplicationError
from llmnb.applications.summarization import Summarizer, centroid, lead, package_pairs, sentences
from llmnb.applications.summarization import unsupported as missing
from llmnb.applications.text_generation import TextGenerator
from llmnb.transformer import Decoder, TransformerConfig

ASSET = "SmolLM2-135M-Instruct-q4_1"
TEXTS = json.loads(
    (Path(applications.__file__).parents[1] / "resources" / "summaries.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    "marked",
    [
        "The bridge costs 3.8 million.|It was Mr. B. Olm who said so, at 10 a.m. on Monday.",
        "We met Dr. Sefa Lind and Prof. Anders.|See Fig. 3 and No. 5, e.g. the red one.",
        'He said no.|Then he left.|"Is it true? I doubt it," she said.|"Who?" asked the boy.',
        "“We knew. We said so,” she said.|It rained!|Really?!|Yes… perhaps.|It was I.|Éva left.",
        "It closed in 2016.|Version 5.2.1 is out.|5 people came.|(Nobody left.)|«Enfin.»|End",
        "今天下雨。|明天是晴天！|“你来吗？”|好。",
        'A screen of 5" is small.|One of 6" or 7" is large.',  # no quotation: they don't pair
    ],
)
def test_sentences_end_where_they_end(marked):
    joined = marked.replace("|", "" if "。" in marked else " ")
    assert sentences(joined) == marked.split("|")


def test_items_headings_greetings_and_empty_lines():
    text = (
        "# Minutes\nHeld in May.\n\n1. The minutes were\r\n   approved.\n2. Water. It is dear.\n"
        "- one\n* two\n"
        "\n \n\nDear Ada,\n\nthanks for the tea.\t Come soon.\n\nYours\n"
    )
    found = [
        "# Minutes",
        "Held in May.",
        "1. The minutes were approved.",
        "2. Water.",
        "It is dear.",
        "- one",
    ]
    found += ["* two", "Dear Ada, thanks for the tea.", "Come soon.", "Yours"]
    assert sentences(text) == found
    assert sentences("") == sentences(" \n\n ") == []
    assert sentences("Dear Ada,\n\n") == ["Dear Ada,"]


def test_no_word_is_lost_and_a_huge_text_is_quick():
    for row in TEXTS:
        assert " ".join(sentences(row["text"])).split() == row["text"].split()
    for text in ("a. " * 100_000, "." * 300_000, '"' * 300_001, " \n" * 100_000, "x" * 1_000_000):
        assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_lead_takes_sentences_and_passes_headings_over():
    text = "Title\n\nFirst one. Second one. Third one."
    assert lead(text) == "First one." and lead(text, 2) == "First one. Second one."
    assert lead(text, 99) == "First one. Second one. Third one."
    assert lead("no mark at all") == "no mark at all"


def test_the_centroid_is_the_sentence_that_shares_most():
    text = "The boat left. The red boat left the harbour. A cat slept. The harbour is red."
    assert centroid(text) == "The red boat left the harbour."
    assert centroid("Only one.") == "Only one."
    assert centroid("?! …") == "?!"


def test_the_centroid_by_hand():
    rows = ["b c.", "a b.", "a c c."]
    counts = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 1 + np.log(2)]], float)
    vectors = counts * (np.log(4 / 3) + 1)  # each word stands in 2 of 3 sentences: one idf
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    best = int((vectors @ vectors.mean(0)).argmax())
    assert centroid(" ".join(row.capitalize() for row in rows)).lower() == rows[best]


@pytest.mark.parametrize("baseline", [lead, centroid])
@pytest.mark.parametrize("text", ["", " \n", None, 3])
def test_baselines_refuse_what_is_no_text(baseline, text):
    with pytest.raises(ApplicationError, match="empty or no text"):
        baseline(text)


def test_lead_refuses_no_sentences():
    with pytest.raises(ApplicationError, match="k is 0"):
        lead("A text.", 0)


SOURCE = (
    "On 2024-05-02 Zoë O'Brien of Port Emmer sold 3,800,000 boats for 24,50 crowns each; 60 % of "
    "them were red. Three companies, Tarrow's among them, open at 06:30. The 1,500 clerks use "
    "version 5.2.1, and 2.3 million people know."
)


@pytest.mark.parametrize(
    ("summary", "found"),
    [
        ("Zoe O'Brien sold 3.8 million boats at 24.50 on 2 May 2024.", ()),
        ("In 2024, 60 percent; 3 companies; at 6:30; 1500 clerks; 2,300,000; 5.2.1.", ()),
        ("The boats of Tarrow, a Company in Ports, Emmer's own.", ()),
        ("It was 3.8 billion, 38 or 3.80.", ("3.8 billion", "38", "3.80")),
        ("Version 5.2.2 costs 2450, not 24.5 or 2,300.", ("5.2.2", "2450", "2,300")),
        ("It opens at 7:30 with seven clerks, in 2023.", ("7:30", "seven", "2023")),
        ("The boats of Ada Olm were sold in June.", ("Ada", "Olm", "June")),
        ("No one knows. This is theirs, and I'm sure. Nobody did.", ()),
        ("Ada Olm sold boats.", ("Ada", "Olm")),
        ("", ()),
    ],
)
def test_numbers_and_names_from_nowhere(summary, found):
    assert missing(SOURCE, summary) == found


def test_at_a_sentences_beginning_a_capital_says_little():
    assert missing("Biologists met.", "Thanks to them it works. Researchers met.") == ()
    assert missing("Biologists met.", "Ada's group met. Bo met; later Bo left.") == ("Ada's", "Bo")


def test_the_references_are_faithful():
    found = [missing(row["text"], row["summary"]) for row in TEXTS]
    assert len(found) == 24 and not any(found)


def test_another_texts_summary_is_seen_to_be_false():
    others = [row["text"] for row in TEXTS[1:]] + [TEXTS[0]["text"]]
    found = [missing(text, row["summary"]) for text, row in zip(others, TEXTS, strict=True)]
    assert sum(map(bool, found)) >= 22


@pytest.fixture(scope="module")
def tokenizer():
    return assets.load_tokenizer(ASSET)


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


def package(name, summary, description):
    facts = Message()
    facts["Name"] = name
    if summary is not None:
        facts["Summary"] = summary
    facts.set_payload(description)
    return SimpleNamespace(metadata=facts)


PROSE = "This library reads the tables of old files, page by page, and keeps what it can read. "


@pytest.fixture
def installed(monkeypatch):
    def install(*packages):
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(packages))

    return install


def many(n=8):
    return [package(f"p{n}", f"Reader number {n} for tables", PROSE * 5) for n in range(n)]


def test_packages_give_prose_without_markup(installed):
    markup = (
        "[![badge](https://x.y/b.svg)](https://x.y)\n\nTitle\n=====\n\n```python\nimport it. Now.\n"
        "```\n\n    indented code. It runs.\n\n- an item of a list that is long enough to stay.\n\n"
        "<b>See</b> [the docs](https://x.y) and `the code`_, **all** of it, before you begin.\n\n"
    )
    installed(package("Odd", "What the others never do", markup + PROSE * 4), *many())
    text = {summary: text for text, summary in package_pairs(99)}["What the others never do"]
    kept = "See the docs and the code, all of it, before you begin. " + PROSE * 4
    assert text.split() == kept.split()


def test_packages_that_say_little_or_the_same_are_left_out(installed):
    said = "Reads the tables of old files"
    out = [
        package("same", said, PROSE * 5),  # all its words stand in one sentence
        package("none", None, PROSE * 5),
        package("short", "Reads all that is old", PROSE),
        package("brief", "Old tables", PROSE * 5),
        package("twice", "Reader number 1 for tables", PROSE * 5),
        package("empty", "Reads all that is old", ""),
    ]
    installed(*out, *many())
    kept = {f"Reader number {n} for tables" for n in range(8)}
    found = [summary for _, summary in package_pairs(99)]
    assert set(found) == kept and len(found) == 8


def test_a_sample_of_packages_follows_from_the_seed_alone(installed):
    installed(*many(30))
    first = package_pairs(6, seed=1)
    installed(*many(30)[::-1])
    assert package_pairs(6, seed=1) == first != package_pairs(6, seed=2)
    names = [f"p{summary.split()[2]}" for _, summary in first]
    assert names == sorted(set(names)) and len(names) == 6


def test_too_few_packages_are_refused(installed):
    installed(*many(4))
    with pytest.raises(ApplicationError, match="4 installed packages"):
        package_pairs()
    installed(*many(30))
    with pytest.raises(ApplicationError, match="n is 4"):
        package_pairs(4)


def test_this_machine_has_pairs():
    pairs = package_pairs(20)
    assert len(pairs) == 20 == len(set(pairs))
    for text, summary in pairs:
        assert 60 <= len(text.split()) <= 250 and summary not in text


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
