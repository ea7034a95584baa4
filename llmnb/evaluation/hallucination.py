"""Closed book and open book: what a decoder knows, what it invents, and when it abstains.

A hallucination is a wrong answer, or any answer to a question that can't be answered.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from llmnb import generation
from llmnb.evaluation.scores import contains_answer
from llmnb.handbook import Passage, Question
from llmnb.hosted import HostedModel
from llmnb.text import normalize_answer

# Of the wordings tried on the first half of the handbook, the best ones for SmolLM2-135M.
CLOSED = 'Question: {question}\n\nGive a short answer. If you do not know it, say "I don\'t know".'
OPEN = (
    "{passage.title}: {passage.heading}\n{passage.text}\n\nAnswer from the text above, in a few "
    "words. If the text doesn't say, say \"I don't know\".\n\nQuestion: {question}"
)
PROMPTS_PER_BATCH = 32

_ABSTAINS = re.compile(
    r"\b((dont|do not) know|(doesnt|does not) (\w+ )?(know|say|mention|state|specify|provide)"
    r"|(text|passage) (doesnt|does not) contain|answer (to \w+ question )?is not (provided|given)"
    r"|not (sure|certain|mentioned|stated|specified|in text)|no (information|mention)"
    r"|(cannot|cant|unable to) (answer|say|tell|determine))\b|^(unknown|unanswerable)$"
)


def abstains(text: str) -> bool:
    """Whether the answer is empty or holds a phrase such as "I don't know"."""
    return not text.strip() or bool(_ABSTAINS.search(normalize_answer(text.replace("’", "'"))))


def nearest(question: str, passages: Sequence[Passage]) -> Passage:
    """The passage that shares most words with the question; rare words count more."""
    words = [set(normalize_answer(f"{p.title} {p.heading} {p.text}").split()) for p in passages]
    n_passages_with = Counter(itertools.chain(*words))
    question_words = set(normalize_answer(question).split())
    scores = []
    for passage_words in words:
        shared = question_words & passage_words
        scores.append(sum(np.log(len(passages) / n_passages_with[word]) for word in shared))
    return passages[int(np.argmax(scores))]


def prompts(
    tokenizer, questions: Sequence[Question], passages: Sequence[Passage] | None = None
) -> list[str]:
    """A prompt for each question, in the tokenizer's chat template: closed book, or with a passage.

    tokenizer: None for the bare request, as a hosted model gets it. The passage is the question's
    evidence; for an unanswerable question the nearest passage, which does not hold the answer
    either. Raises ValueError for a tokenizer without a template, or if the evidence is not among
    the passages.
    """
    if tokenizer and not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template: take a model tuned to instructions.")
    by_id = {passage.id: passage for passage in passages or ()}
    texts = []
    for question in questions:
        text = CLOSED.format(question=question.question)
        if passages is not None:
            passage = by_id.get(question.evidence)
            if passage is None and (question.answerable or not by_id):
                raise ValueError(f"{question.id}: there is no passage {question.evidence!r}.")
            passage = passage or nearest(question.question, passages)
            text = OPEN.format(question=question.question, passage=passage)
        if tokenizer:
            chat = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        texts.append(text)
    return texts


def answer(
    decoder,
    tokenizer,
    questions: Sequence[Question],
    passages: Sequence[Passage] | None = None,
    new_tokens: int = 24,
) -> pd.DataFrame:
    """What a transformer.Decoder, or a HostedModel, answers: one row for each question, scored.

    answer: greedy, its first line; abstained: see `abstains`; right: it holds an acceptable answer,
    or abstained where there is none (Mallen et al. 2023). passages: open book. tokenizer: None for
    a HostedModel. Raises ValueError for no questions.
    """
    if not questions:
        raise ValueError("There are no questions: give one or more.")
    texts = prompts(tokenizer, questions, passages)
    answers = _first_lines(decoder, tokenizer, texts, new_tokens)
    return pd.DataFrame(map(_scored, questions, answers))


def _first_lines(decoder, tokenizer, prompts, new_tokens) -> list[str]:
    """The first line that follows each prompt; prompts of similar length share a batch."""
    if isinstance(decoder, HostedModel):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = [decoder.answer(chat, max_tokens=new_tokens).text for chat in chats]
        return [text.strip().split("\n")[0].strip() for text in texts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    lines = {}
    for start in range(0, len(order), PROMPTS_PER_BATCH):
        rows = order[start : start + PROMPTS_PER_BATCH]
        batch = [prompts[row] for row in rows]
        texts = generation.complete(decoder, tokenizer, batch, new_tokens, stop="\n")
        lines |= zip(rows, texts, strict=True)
    return [lines[index].strip() for index in range(len(prompts))]


def _scored(question: Question, text: str) -> dict:
    abstained = right = abstains(text)
    if question.answerable:
        right = not abstained and contains_answer(text, question.answers)
    row = {"id": question.id, "answerable": question.answerable, "answer": text}
    return row | {"abstained": abstained, "right": right}
