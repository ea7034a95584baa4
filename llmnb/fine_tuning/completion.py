"""Texts continued by a model of transformers, with a JSON schema or without.

structured.py does this for our own decoder; here is every other architecture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from llmnb import generation
from llmnb.structured import Grammar, json_grammar

ROWS_PER_BATCH = 32  # prompts that are answered together


class _Constraint(transformers.LogitsProcessor):
    """A grammar, as transformers' generate calls it before each choice."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.is_first:
            self.grammar.accept(input_ids[:, -1])
        self.is_first = False
        return self.grammar.restrict(scores)


@torch.inference_mode()
def complete(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    schema: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    max_new_tokens: int = 80,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_line_end: bool = False,
) -> list[str]:
    """The continuation of each prompt by a model of transformers, of any architecture.

    schema: the answers must match it (see structured.py), or each its own of a list; one that
    isn't complete after max_new_tokens is returned as it is. stop_at_line_end: for prompts that
    are no chat.
    """
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_stop_ids(model, tokenizer, stop_at_line_end),
    )
    # Some models, Gemma among them, need the token that begins a text; chat templates write it.
    begin = tokenizer.decode(tokenizer("")["input_ids"])
    prompts = [text if text.startswith(begin) else begin + text for text in prompts]
    schemas = [schema] * len(prompts) if isinstance(schema, Mapping) else schema
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), ROWS_PER_BATCH):
            rows = slice(start, start + ROWS_PER_BATCH)
            batch = prompts[rows]
            ids, mask = generation.padded(tokenizer, batch, model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_constraints(model, tokenizer, schemas and schemas[rows]),
            )
            texts += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def _stop_ids(model: nn.Module, tokenizer, stop_at_line_end: bool) -> list[int]:
    """The ids that end a turn, a text (as in pretraining) and, if asked for, a line."""
    stop_ids = generation.stop_ids_of(tokenizer)
    ends = model.config.eos_token_id
    stop_ids += ends if isinstance(ends, list) else [ends] if ends is not None else []
    if stop_at_line_end:
        vocabulary = tokenizer.get_vocab().items()
        stop_ids += [number for token, number in vocabulary if token[:1] in ("\n", "Ċ")]
    return stop_ids


def _constraints(model: nn.Module, tokenizer, schemas) -> list[_Constraint]:
    """One for a batch with schemas, none without."""
    if schemas is None:
        return []
    n_tokens = model.get_output_embeddings().weight.shape[0]
    return [_Constraint(Grammar(tokenizer, n_tokens, list(map(json_grammar, schemas))))]
