"""JSON by schema: the share of valid records with and without the constraint, and what it costs.

The same prompts name a schema and ask for a record of it; each answer is checked by jsonschema.
The cost is the time for the same number of tokens with the constraint and without it.
"""

import collections
import json
import re

import jsonschema
import torch
from _common import finish, options, pairs, summary

from llmnb import data, fast_linear, generation, models, profiles, structured
from llmnb.structured import Grammar
from llmnb.transformer import Decoder

TARGET = 1.15  # times as long as without the constraint
PROMPTS_PER_BATCH = 16
MAX_NEW_TOKENS = 200
SAMPLING = generation.Sampling(temperature=0.7, seed=1)
NAME = {"type": "string", "maxLength": 24}
SCHEMAS = {
    "an object": {
        "type": "object",
        "properties": {
            "verdict": {"enum": ["positive", "negative"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "why": {"type": "string", "maxLength": 60},
        },
        "required": ["verdict", "stars", "why"],
        "additionalProperties": False,
    },
    "a list": {"type": "array", "items": NAME, "minItems": 1, "maxItems": 4},
    "objects in an object": {
        "type": "object",
        "properties": {
            "film": {
                "type": "object",
                "properties": {"genre": NAME, "is_old": {"type": "boolean"}},
                "required": ["genre", "is_old"],
                "additionalProperties": False,
            },
            "people": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": NAME},
                    "required": ["name"],
                    "additionalProperties": False,
                },
                "maxItems": 2,
            },
        },
        "required": ["film", "people"],
        "additionalProperties": False,
    },
}


def is_valid(text: str, schema: dict) -> bool:
    """Whether the whole text, or a fenced block around it, is one value that matches the schema."""
    fenced = re.fullmatch(r"\s*```(?:json)?\n(.*)\n```\s*", text, re.DOTALL)
    try:
        jsonschema.validate(json.loads(fenced[1] if fenced else text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def prompts_for(tokenizer, reviews: list[str], schema: dict) -> list[str]:
    """A review each, and the request for a record of it."""
    prompts = []
    for review in reviews:
        request = (
            f"Review: {review[:300]}\n\nReply with JSON, matching this schema, and nothing else:"
        )
        turns = [{"role": "user", "content": f"{request}\n{json.dumps(schema)}"}]
        prompts.append(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
    return prompts


def n_valid(decoder, tokenizer, prompts: list[str], schema: dict) -> tuple[int, int]:
    """How many answers are valid: with the constraint, and without it."""
    constrained = free = 0
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        batch = prompts[start : start + PROMPTS_PER_BATCH]
        arguments = (decoder, tokenizer, batch)
        records = structured.generate_json(*arguments, schema, MAX_NEW_TOKENS, SAMPLING)
        constrained += sum(is_valid(json.dumps(record), schema) for record in records)
        texts = generation.complete(*arguments, MAX_NEW_TOKENS, SAMPLING)
        free += sum(is_valid(text, schema) for text in texts)
    return constrained, free


def decode(decoder, tokenizer, ids, n_tokens: int, is_constrained: bool) -> None:
    """Generate n_tokens, inside one long JSON string where constrained."""
    import llguidance

    constraint = None
    if is_constrained:
        grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "string"})
        constraint = Grammar(tokenizer, decoder.config.vocab_size, [grammar])
    steps = generation.steps(decoder, ids, max_new_tokens=n_tokens, constraint=constraint)
    collections.deque(steps, maxlen=0)


def main() -> None:
    """Count valid records, time pairs, print both."""
    chosen = options(__doc__)
    n_prompts, n_pairs, n_tokens = (16, 3, 32) if chosen.quick else (200, 9, 100)
    name = profiles.resolve("cpu").decoder
    decoder = Decoder.from_pretrained(name, "bf16")
    if not fast_linear.unavailable("bf16", decoder):
        decoder = fast_linear.pack(decoder)
    tokenizer = models.load_tokenizer(name)
    reviews = data.load_reviews("imdb")["test"]["text"][:n_prompts]
    rows = []
    for number, (kind, schema) in enumerate(SCHEMAS.items()):
        prompts = prompts_for(tokenizer, reviews[number :: len(SCHEMAS)], schema)
        constrained, free = n_valid(decoder, tokenizer, prompts, schema)
        rows.append({"schema": kind, "prompts": len(prompts), "valid": constrained, "free": free})
        print(
            f"{kind}: {constrained} of {len(prompts)} valid; without the constraint {free}",
            flush=True,
        )
    ids = torch.tensor([tokenizer("The best films are")["input_ids"]])
    arguments = (decoder, tokenizer, ids, n_tokens)
    timed = pairs(lambda: decode(*arguments, True), lambda: decode(*arguments, False), n_pairs)
    finish(summary("structured", timed, TARGET, rows), chosen.json)


if __name__ == "__main__":
    main()
