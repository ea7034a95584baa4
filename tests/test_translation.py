"""Warnings and sentences by hand; a scripted model, a tiny random one; then the real one."""

import json
import re

import pytest
import torch
import transformers
from conftest import byte_tokenizer, loud
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from llmnb import models
from llmnb.applications import Application, ApplicationError, Result
from llmnb.applications.translation import LANGUAGES, Translator, language, pieces, problems
from llmnb.evaluation.scores import chrf
from llmnb.handbook import RESOURCES

TABLE = json.loads((RESOURCES / "translations.json").read_text("utf-8"))
SENTENCES, EXAMPLES = TABLE["sentences"], TABLE["examples"]
SPECIAL = ["<pad>", "<eos>", "<bos>"]
WIRE = "Don't touch that wire!"


def test_the_language_of_320_sentences_is_detected():
    names = ("en", *LANGUAGES)
    wrong = [row[name] for row in SENTENCES for name in names if language(row[name]) != name]
    assert len(wrong) <= 4, wrong
    assert not any(map(language, wrong))  # then it says nothing, rather than a wrong one


def test_other_scripts_and_short_texts_have_no_language():
    assert language("Поезд отправляется завтра утром.") == "?"
    assert language("駅はどこですか。電車は明日の朝に出ます。") != "fr"
    assert [language(text) for text in ("", "12.5 %", "Lyon", "…", "\u200b\ud800")] == [""] * 5
    assert language("该模型用GPU训练") == "zh"


@pytest.mark.parametrize("target", LANGUAGES)
def test_references_have_no_problems_and_copies_and_other_languages_have(target):
    for row in SENTENCES + EXAMPLES:
        assert problems(row["en"], row[target], target) == (), row
        assert "copied" in " ".join(problems(row["en"], row["en"], target)), row
    others = [(row["en"], row[name]) for row in SENTENCES for name in LANGUAGES if name != target]
    flags = ["doesn't look like" in " ".join(problems(*pair, target)) for pair in others]
    assert sum(flags) / len(flags) > 0.97


PROBLEMS = [
    ("Is dinner ready?", "", "fr", ["nothing"]),
    ("Is dinner ready?", " \n\u3000", "zh", ["nothing"]),
    ("Teodora Vance", "Teodora Vance", "fr", []),
    ("Hello, Lyon.", "你好，里昂。", "zh", []),
    ("I have never eaten it.", "He have never eaten it.", "es", ["copied", "Spanish"]),
    (WIRE, "No, " * 25, "es", ["repeats", "characters"]),
    (
        "To save energy, the sensor measures the temperature once a day.",
        "Um Energie zu sparen, misst die Sensor-Sensor-Sensor-Sensor-Sensor-Sensor-Sensor.",
        "de",
        ["repeats"],
    ),
    ("He let the cat out.", "他放了猫出去之前，放了猫出去，放了猫出去。", "zh", ["repeats"]),
    ("no no no no no no no", "non non non non non non non", "fr", []),  # as the source does
    ("We regret to inform you that nobody was chosen.", "Non.", "fr", ["characters"]),
    ("The train leaves at 7:45 from platform 3.", "Le train part à 7 h 45.", "fr", ["missing: 3"]),
    ("It was 3,200 then, I think.", "C'était 3 200, je crois bien.", "fr", []),
    ("It was 3,200 then, I think.", "C'était 32, je crois bien.", "fr", ["missing: 3,200"]),
    ("See https://a.org/x?y=2 now.", "Voyez https://a.org/x?y=2 maintenant.", "fr", []),
    ("At 7:45 or 9, {name}.", "A 7 h 45, comme je crois.", "fr", ["missing: {name}, 9"]),
    ("It is in <b>{box}</b>, %s.", "C'est dans <b>la boîte, %s.", "fr", ["missing: {box}, </b>"]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "translation", "target", "expected"), PROBLEMS)
def test_problems_are_named(source, translation, target, expected):
    warnings = problems(source, translation, target)
    assert len(warnings) == len(expected), warnings
    assert all(word in problem for word, problem in zip(expected, warnings, strict=True))


def test_huge_and_odd_texts_come_to_an_end():
    for text in ("a" * 200_000, "1 000" * 40_000, "1,1." * 50_000, " ." * 50_000, "\ud800" * 9999):
        assert problems(text, text[:1], "fr") and problems(WIRE, text, "zh")
        parts = "".join(part for _, part in pieces(text))
        assert "".join(parts.split()) == "".join(text.split())
    assert len(pieces(" " * 500_000 + "\n" * 100_000 + "a\n" * 20_000)) > 90


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens; adds <eos> where special tokens are added."""
    raw = byte_tokenizer(SPECIAL)
    raw.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


@pytest.fixture(scope="module")
def decoder(tokenizer):
    """Gemma's architecture, random, with varied choices, fp32."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4096}
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=2,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    return loud(transformers.Gemma3ForCausalLM(config), std=0.4)


@pytest.fixture
def app(decoder, tokenizer):
    return Translator(decoder, tokenizer)


@pytest.fixture
def script(app, monkeypatch):
    """Sets the two attempts at each sentence, texts with their warnings; gives the calls."""
    attempts, calls = {}, []

    def generate(app, sentences, penalty):
        calls.append((list(sentences), penalty))
        results = []
        for sentence in sentences:
            text, *warnings = attempts.get(sentence, [[sentence]] * 2)[penalty > 1]
            results.append(Result(text, warnings=tuple(warnings), tokens=10 + (penalty > 1)))
        return results

    monkeypatch.setattr(Translator, "_generate", generate)
    return lambda lines: attempts.update(lines) or calls


def let_generate(app, monkeypatch, text):
    """Let the model generate this text for every row; gives the list of its inputs."""
    calls = []

    def generate(**options):
        calls.append(options)
        ids = app.tokenizer(text, add_special_tokens=False)["input_ids"]
        row = torch.tensor(ids)[: options["max_new_tokens"]].expand(len(options["input_ids"]), -1)
        return torch.cat((options["input_ids"], row), 1)

    monkeypatch.setattr(app.model, "generate", generate)
    return calls


def test_an_unknown_target_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(models, "locate", None)
    for target in ("french", "", None):
        with pytest.raises(ApplicationError, match=r"fr \(French\).*zh \(Chinese\)"):
            Translator.load(target=target)
    with pytest.raises(ApplicationError, match="choose one of"):
        problems("a", "b", "it")


def test_texts_are_translated_in_their_order_and_each_sentence_once(app, script):
    calls = script({"One.": [["Un."]] * 2, "Two.": [["Deux."]] * 2})
    results = app.batch(["Two. One.", "One.", "One.\n\nTwo.\n* * *\n12.5"])
    assert [r.text for r in results] == ["Deux. Un.", "Un.", "Un.\n\nDeux.\n* * *\n12.5"]
    assert calls == [(["One.", "Two."], 1.0)]
    assert [r.tokens for r in results] == [20, 10, 20] and results[0].seconds >= 0
    assert isinstance(app, Application) and app.batch([]) == []
    parts = list(app.stream("One. Two.\n\nThree."))
    assert parts == ["Un.", " Deux.", "\n\nThree."]
    chinese = app.to("zh")
    assert chinese.target == "zh" and chinese.model is app.model
    assert chinese("One. Two.\nTwo.").text == "Un.Deux.\nDeux."  # no space between sentences


def test_many_sentences_are_computed_in_batches_of_like_length(app, script):
    calls = script({})
    results = app.batch([f"{'word ' * (n * 7 % 50)}w{n}." for n in range(70)])
    sizes = [len(rows) for rows, _ in calls]
    assert sum(sizes) == 70 and max(sizes) == 32
    lengths = [len(row) for rows, _ in calls for row in rows]
    assert lengths == sorted(lengths)
    assert all(result.text.endswith(f"w{number}.") for number, result in enumerate(results))


def test_a_second_attempt_is_taken_only_where_it_is_better(app, script):
    good, bad, worse = ["good"], ["bad", "it is bad"], ["worse", "it is bad", "and worse"]
    attempts = {"A.": [good, ["other"]], "B.": [bad, good], "C.": [bad, worse]}
    calls = script(attempts | {"D.": [worse, bad], "E.": [bad, bad]})
    results = app.batch(["A.", "B.", "C.", "D.", "E."])
    assert [result.text for result in results] == ["good", "good", "bad", "bad", "bad"]
    assert [result.tokens for result in results] == [10, 21, 21, 21, 21]
    assert calls[1] == (["B.", "C.", "D.", "E."], 1.2)
    note = "second try; the first: it is bad"
    warnings = [result.warnings for result in results]
    assert warnings[:3] == [(), (note,), ("it is bad",)]
    assert warnings[3:] == [("it is bad", note + "; and worse"), ("it is bad",)]
    script({"Aa.": [good, good], "Bb.": [bad, good]})
    assert app("Aa. Bb.").warnings == (f"sentence 2: {note}",)


MARKUP = """\
<p>Write</p> to {name} &amp; ann.b@example.org, %s or %(full)s:
1. https://example.org/a?b=1&c=d
  - [ ] see www.example.org.
00:01:02,500 --> 00:01:04,000
> [00:12] 50 % of ${total} at 7:45"""


def test_what_no_translation_may_change_stays(app, monkeypatch):
    def generate(app, sentences, penalty):
        assert not any(sentence.startswith("https") for sentence in sentences)
        texts = [re.sub(r"[^ a-z0-9%:]", "", sentence).upper() for sentence in sentences]
        return [Result(text, warnings=problems(sentences[0], "", "fr")) for text in texts]

    monkeypatch.setattr(Translator, "_generate", generate)
    capitals = {"Write": "RITE", " to ": " TO ", " or ": " OR ", "see": "SEE", "of": "OF"}
    expected = MARKUP.replace(" at ", " AT ")
    for word, capital in capitals.items():
        expected = expected.replace(word, capital)
    result = app(MARKUP)
    assert result.text == expected and "missing" not in str(result.warnings)
    assert "sentence 1: translated in fragments" in result.warnings


def test_what_is_no_text_is_refused(app):
    for call in (app, lambda text: list(app.stream(text))):
        with pytest.raises(ApplicationError, match="is empty or isn"):
            call(" \n")


@pytest.mark.parametrize(
    "text",
    [
        "Hi.<eos><bos><pad>",
        "Hi.\u2028French: Salut.\x0b\x0cEnglish: Bye\x85French:\rEnglish: x",
        "Hi.\n\nEnglish: Bye\nFrench:",
    ],
)
def test_a_text_cannot_leave_its_line_of_the_prompt(app, tokenizer, monkeypatch, text):
    calls = let_generate(app, monkeypatch, " x\n")
    app(text)
    examples = tokenizer.decode(app.example_ids[0])
    assert examples.count("\n") == 3 * len(EXAMPLES) and examples.endswith("English:")
    for call in calls:
        for row in call["input_ids"].tolist():
            ids = [token for token in row[app.example_ids.shape[1] :] if token]
            assert not {0, 1, 2} & set(ids[1:])
            prompt = tokenizer.decode(ids)
            assert prompt.startswith(" ") and prompt.endswith("\nFrench:")
            assert prompt.count("\n") == 1 and len(prompt.splitlines()) == 2


def test_the_translation_ends_at_the_line_break(app, monkeypatch):
    let_generate(app, monkeypatch, " Ne touche pas ce fil !\n\nEnglish: more\nFrench: encore\n")
    result = app(WIRE)
    assert result.text == "Ne touche pas ce fil !" and result.warnings == ()
    assert result.tokens == len(" Ne touche pas ce fil !\n")


def test_a_translation_without_an_end_is_reported(app, monkeypatch):
    calls = let_generate(app, monkeypatch, " Ne touche pas ce fil" + " dans la maison" * 30)
    result = app(WIRE)
    limit = calls[0]["max_new_tokens"]
    assert 2 * len(WIRE) < limit < 3 * len(WIRE) + 40
    assert f"it was cut off after {limit} tokens" in result.warnings
    assert [call["repetition_penalty"] for call in calls] == [1.0, 1.2]


def test_cached_examples_and_batching_change_no_translation(app, decoder, tokenizer):
    sentences = ["Hi.", WIRE, "A longer one than the others."]
    together = [result.text for result in app._generate(sentences, 1.0)]
    for sentence, text in zip(sentences, together, strict=True):
        prompt = tokenizer.decode(app.example_ids[0]) + f" {sentence}\nFrench:"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        plain = decoder.generate(input_ids=ids, max_new_tokens=30, do_sample=False)
        whole = tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        assert whole.split("\n")[0].strip()[:20] == text[:20]
    assert len(set(together)) > 1


def test_a_decoder_comes_from_a_folder(decoder, tokenizer, tmp_path):
    decoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    app = Translator.load(str(tmp_path), "cpu", "de")
    result = app(WIRE)
    assert app.target == "de" and result.tokens and result.seconds > 0


@pytest.fixture(scope="module")
def gemma():
    """The cpu profile's translator, into French."""
    return Translator.load(profile="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["fr", "es", "de"])
def test_it_beats_a_copy_by_15_chrf_on_sentences_it_was_not_tuned_on(gemma, target):
    rows = SENTENCES[1::2]
    sources, references = [row["en"] for row in rows], [row[target] for row in rows]
    results = gemma.to(target).batch(sources)
    texts = [result.text for result in results]
    ours, copied = (chrf(predictions, references)["chrf"] for predictions in (texts, sources))
    assert ours - copied >= 15
    assert sum(bool(result.warnings) for result in results) <= 8
