"""Constrained decoding: valid whatever the model wants, the same batched, and honest errors."""

import json
import re

import jsonschema
import llguidance
import pytest
import torch

from llmnb import fast_linear, generation, models, structured
from llmnb.generation import Sampling
from llmnb.structured import StructuredError
from llmnb.transformer import Decoder

NAME = "SmolLM2-135M-Instruct-q4_1"
FILM = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 30},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "verdict": {"enum": ["positive", "negative"]},
    },
    "required": ["title", "year", "verdict"],
    "additionalProperties": False,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def decoder():
    return Decoder.from_pretrained(NAME)


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(NAME)


def ask(tokenizer, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_every_sampled_record_matches_its_schema(decoder, tokenizer):
    """Also at a temperature at which the free text is never JSON."""
    prompts = [ask(tokenizer, f"Describe a film about {word}.") for word in ("boats", "猫", "war")]
    hot = Sampling(temperature=1.5, seed=1)
    records = structured.generate_json(decoder, tokenizer, prompts, FILM, 96, hot)
    for record in records:
        jsonschema.validate(record, FILM)
    assert len({record["title"] for record in records}) == 3
    for text in generation.complete(decoder, tokenizer, prompts, 96, hot):
        with pytest.raises(ValueError, match=r"Expecting|Extra"):
            json.loads(text)


def test_a_seed_repeats_and_a_packed_decoder_answers_alike(decoder, tokenizer):
    prompts = [ask(tokenizer, "A dull film of 1999, called Zork, in JSON.")]
    hot = Sampling(temperature=1.0, seed=3)
    first, again = (
        structured.generate_json(decoder, tokenizer, prompts, FILM, sampling=hot) for _ in range(2)
    )
    assert first == again
    if not fast_linear.unavailable("bf16", decoder):
        packed = fast_linear.pack(Decoder.from_pretrained(NAME))
        jsonschema.validate(structured.generate_json(packed, tokenizer, prompts, FILM)[0], FILM)


def test_a_batch_gives_what_each_prompt_gives_alone(decoder, tokenizer):
    texts = ("A great film of 1972: The Godfather.", "Zork, a bore made in 1999. As JSON, please.")
    prompts = [ask(tokenizer, text) for text in texts]
    exact = Decoder.from_pretrained(NAME, dtype="fp32")
    alone = [structured.generate_json(exact, tokenizer, [prompt], FILM)[0] for prompt in prompts]
    assert structured.generate_json(exact, tokenizer, prompts, FILM) == alone
    assert [record["year"] for record in alone] == [1972, 1999]


def test_a_choice_is_one_of_the_options_and_follows_the_model(decoder, tokenizer):
    prompts = [ask(tokenizer, f"Is {city} in France or in Japan?") for city in ("Paris", "Tokyo")]
    assert structured.choose(decoder, tokenizer, prompts, ["France", "Japan"]) == [
        "France",
        "Japan",
    ]
    odd = ['a "quoted" one', "back\\slash", "Zürich, 猫", "a"]
    for answer in structured.choose(decoder, tokenizer, prompts, odd, Sampling(temperature=2.0)):
        assert answer in odd


def test_the_constraint_decides_only_what_is_possible(decoder, tokenizer):
    """Every token that is left begins an option; its logit is as the model gave it."""
    vocab_size = decoder.config.vocab_size
    lark = llguidance.LLMatcher.grammar_from_lark('start: "apple" | "pear"')
    logits = torch.randn(1, vocab_size)
    restricted = structured.Grammar(tokenizer, vocab_size, [lark]).restrict(logits)
    is_allowed = restricted.isfinite()
    tokens = [tokenizer.decode([index]) for index in is_allowed[0].nonzero()[:, 0].tolist()]
    assert len(tokens) > 2
    assert all("apple".startswith(token) or "pear".startswith(token) for token in tokens)
    torch.testing.assert_close(restricted[is_allowed], logits[is_allowed], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, t: structured.generate_json(d, t, ["x"], {"type": "nothing"}), "can't be used"),
        (lambda d, t: structured.generate_json(d, t, ["x"], FILM, 3), "prompt 0 is not complete"),
        (lambda d, t: structured.generate_json(d, t, "x", FILM), "give a list"),
        (lambda d, t: structured.choose(d, t, ["x"], ["one"]), "two or more"),
        (lambda d, t: structured.choose(d, t, ["x"], "ab"), "two or more"),
    ],
)
def test_what_can_not_work_is_refused(decoder, tokenizer, call, message):
    with pytest.raises(StructuredError, match=re.escape(message)):
        call(decoder, tokenizer)
    assert structured.generate_json(decoder, tokenizer, [], FILM) == []
