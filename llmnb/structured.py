"""Structured output: JSON that matches a schema, or one of several given strings, from any decoder.

At each step a grammar says which tokens may come next; all others get probability zero, and the
model chooses among the rest. So the form is certain. The content isn't: a record can match its
schema and hold a wrong number, and a choice is made even where none of the options fits. Where
the model is far from the form, the constraint can also make its answers worse than free text.

Source: Willard & Louf 2023 (guided generation); the grammars are llguidance's.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmnb import LlmnbError, generation
from llmnb.generation import GREEDY, Sampling
from llmnb.transformer import Decoder


class StructuredError(LlmnbError, ValueError):
    """A schema or a choice can't be used, or a record didn't fit into the tokens allowed."""


class Grammar:
    """Which tokens may come next, for each row of a batch."""

    def __init__(self, tokenizer, vocab_size: int, grammars: Sequence[str]) -> None:
        """grammars: one a row. vocab_size: the width of the logits, often padded."""
        import llguidance
        import llguidance.numpy

        ids = _llguidance_tokenizer(tokenizer, vocab_size)
        self.matchers = [llguidance.LLMatcher(ids, grammar) for grammar in grammars]
        for matcher in self.matchers:
            if error := matcher.get_error():
                raise StructuredError(f"The schema can't be used: {error.splitlines()[0]}")
        self.bitmask = llguidance.numpy.allocate_token_bitmask(len(grammars), vocab_size)
        self.vocab_size = vocab_size

    def restrict(self, logits: Tensor) -> Tensor:
        """The logits, (rows, vocab), with minus infinity for every token that can't come next."""
        import llguidance.numpy

        for row, matcher in enumerate(self.matchers):
            llguidance.numpy.fill_next_token_bitmask(matcher, self.bitmask, row)
        # (rows, vocab / 32) words with a bit for each token, the first one in the lowest bit
        bits = np.unpackbits(self.bitmask.view(np.uint8), axis=1, bitorder="little")
        is_allowed = torch.from_numpy(bits[:, : self.vocab_size]).bool().to(logits.device)
        return logits.masked_fill(~is_allowed, -torch.inf)

    def accept(self, tokens: Tensor) -> None:
        """Advance each row's grammar by the token that was chosen for it."""
        for matcher, token in zip(self.matchers, tokens.tolist(), strict=True):
            if not matcher.is_stopped():
                matcher.consume_token(token)

    def is_complete(self) -> list[bool]:
        """For each row, whether the text so far is a whole record."""
        return [matcher.is_accepting() for matcher in self.matchers]


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON that matches a schema, without white space between its parts."""
    import llguidance

    options = {"whitespace_flexible": False}
    return llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides=options)


@functools.lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer, vocab_size: int):
    """llguidance's view of a tokenizer: about a second to make, so it is kept."""
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)


def generate_json(
    model: Decoder,
    tokenizer,
    prompts: Sequence[str],
    schema: Mapping[str, Any],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> list[Any]:
    """One value for each prompt that matches the JSON schema, as Python objects.

    Raises StructuredError for a schema that can't be used, and where a record isn't complete
    after max_new_tokens, naming the prompt.
    """
    texts = _constrained(model, tokenizer, prompts, json_grammar(schema), max_new_tokens, sampling)
    return [json.loads(text) for text in texts]


def choose(
    model: Decoder,
    tokenizer,
    prompts: Sequence[str],
    options: Sequence[str],
    sampling: Sampling = GREEDY,
) -> list[str]:
    """One of the options for each prompt, token by token: the likeliest beginning decides.

    An option that shares its first tokens with others is reached through them, so this is not
    the option with the highest probability as a whole; fine_tuning's zero-shot rung compares
    those. Raises StructuredError for fewer than two different options.
    """
    if isinstance(options, str) or len(set(options)) < 2 or "" in options:
        raise StructuredError(f"options is {options!r}; give two or more different texts.")
    import llguidance

    alternatives = " | ".join(json.dumps(option) for option in options)
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {alternatives}")
    longest = max(len(option.encode()) for option in options)  # a token is a byte or more
    return _constrained(model, tokenizer, prompts, grammar, longest + 1, sampling)


def _constrained(model, tokenizer, prompts, grammar, max_new_tokens, sampling) -> list[str]:
    if isinstance(prompts, str):
        raise StructuredError("prompts is one string; give a list of them.")
    if not prompts:
        return []
    constraint = Grammar(tokenizer, model.config.vocab_size, [grammar] * len(prompts))
    texts = generation.complete(
        model, tokenizer, prompts, max_new_tokens, sampling, constraint=constraint
    )
    for row, is_complete in enumerate(constraint.is_complete()):
        if not is_complete:
            raise StructuredError(
                f"The answer to prompt {row} is not complete after {max_new_tokens} tokens: raise "
                "max_new_tokens, or limit lengths in the schema (maxLength, maxItems)."
            )
    return texts
