"""Closed book and open book: what a decoder knows, what it invents, and when it says so.

A hallucination is an answer where none is to be had, or a wrong one, said as if it were known.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from llmnb import generation
from llmnb.evaluation.scores import exact_match, token_f1
from llmnb.evaluation.uncertainty import bootstrap
from llmnb.handbook import Passage, Question
from llmnb.text import normalize_answer

# Of the wordings tried on the first half of the handbook, the best ones for SmolLM2-135M.
CLOSED = 'Question: {question}\n\nGive a short answer. If you do not know it, say "I don\'t know".'
OPEN = (
    "{passage.title}: {passage.heading}\n{passage.text}\n\nAnswer from the text above, in a few "
    "words. If the text doesn't say, say \"I don't know\".\n\nQuestion: {question}"
)
SAMPLING = generation.Sampling(temperature=0.7)
_BATCH = 16  # prompts computed together
_FEWEST = 5  # right answers, and wrong ones, from which on an AUC says something

_ABSTAINS = re.compile(
    r"\b((dont|do not) know|(doesnt|does not) (\w+ )?(know|say|mention|state|specify|provide)"
    r"|(text|passage) (doesnt|does not) contain|answer (to \w+ question )?is not (provided|given)"
    r"|not (sure|certain|mentioned|stated|specified|in text)|no (information|mention)"
    r"|(cannot|cant|unable to) (answer|say|tell|determine))\b|^(unknown|unanswerable)$"
)


def abstains(text: str) -> bool:
    """Does the answer say that it has none? By a set of phrases; an empty one does too."""
    return not text.strip() or bool(_ABSTAINS.search(normalize_answer(text.replace("’", "'"))))


def nearest(question: str, passages: Sequence[Passage]) -> Passage:
    """The passage that shares most words with the question; rare words count more."""
    words = [set(normalize_answer(f"{p.title} {p.heading} {p.text}").split()) for p in passages]
    spread = Counter(itertools.chain(*words))
    asked = set(normalize_answer(question).split())
    scores = [sum(np.log(len(words) / spread[word]) for word in asked & own) for own in words]
    return passages[int(np.argmax(scores))]


def prompts(
    tokenizer, questions: Sequence[Question], passages: Sequence[Passage] | None = None
) -> list[str]:
    """One prompt a question, in the tokenizer's chat template: closed book, or with a passage.

    The passage is the question's evidence; for an unanswerable one the nearest, which does not hold
    the answer either. Raises ValueError for no template, or evidence that is not there.
    """
    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template: take a model tuned to instructions.")
    by_id = {passage.id: passage for passage in passages or ()}
    made = []
    for question in questions:
        text = CLOSED.format(question=question.question)
        if passages is not None:
            own = by_id.get(question.evidence)
            if own is None and (question.answerable or not by_id):
                raise ValueError(f"{question.id}: there is no passage {question.evidence!r}.")
            own = own or nearest(question.question, passages)
            text = OPEN.format(question=question.question, passage=own)
        turn = [{"role": "user", "content": text}]
        made.append(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    return made


def answer(
    decoder,
    tokenizer,
    questions: Sequence[Question],
    passages: Sequence[Passage] | None = None,
    samples: int = 0,
    new_tokens: int = 24,
    seed: int = 0,
) -> pd.DataFrame:
    """What a transformer.Decoder answers, scored: one row a question.

    answer: greedy, its first line; abstained: see `abstains`; exact_match and f1: SQuAD 2.0's, the
    best over the acceptable answers, 0 where it abstained, and for an unanswerable question 1
    exactly if it did; right: it holds an acceptable answer, or abstained where there is none
    (Mallen et al. 2023); agreement: mean F1 of the pairs among `samples` drawn answers, else NaN
    (Manakul et al. 2023). passages: open book. Raises ValueError for no questions or one sample.
    """
    if not questions or samples < 0 or samples == 1:
        raise ValueError(f"{len(questions)} questions, {samples} samples: 1 or more; 0, 2 or more.")
    asked = prompts(tokenizer, questions, passages)
    said = _said(decoder, tokenizer, asked, new_tokens, generation.GREEDY)
    draws = [replace(SAMPLING, seed=seed + i * len(asked)) for i in range(samples)]
    drawn = [_said(decoder, tokenizer, asked, new_tokens, sampling) for sampling in draws]
    agreed = map(agreement, zip(*drawn, strict=True)) if drawn else [math.nan] * len(asked)
    rows = zip(questions, said, agreed, strict=True)
    return pd.DataFrame([_scored(q, text) | {"agreement": mean} for q, text, mean in rows])


def _said(decoder, tokenizer, asked, new_tokens, sampling) -> list[str]:
    """The first line that follows each prompt; prompts of similar length are computed together."""
    order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
    said = {}
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        own = replace(sampling, seed=sampling.seed + start)  # each prompt has its random numbers
        given = [asked[row] for row in rows]
        texts = generation.complete(decoder, tokenizer, given, new_tokens, own, stop="\n")
        said |= zip(rows, texts, strict=True)
    return [said[index].strip() for index in range(len(asked))]


def _scored(question: Question, text: str) -> dict:
    abstained = abstains(text)
    row = {"id": question.id, "answerable": question.answerable, "answer": text}
    exact = f1 = right = abstained
    if question.answerable:
        whole = f" {normalize_answer(text)} "
        held = any(f" {normalize_answer(known)} " in whole for known in question.answers)
        right = held and not abstained
        scores = (exact_match, token_f1)
        exact, f1 = (0 if abstained else score(text, question.answers) for score in scores)
    row |= {"abstained": abstained, "right": right}
    return row | {"exact_match": float(exact), "f1": float(f1)}


def agreement(texts: Sequence[str]) -> float:
    """Mean token F1 of all pairs of answers to one question, 0 to 1."""
    return float(np.mean([token_f1(a, [b]) for a, b in itertools.combinations(texts, 2)]))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What `answer` found, with 95 % intervals: a row a measure; value, low, high, items, note.

    hallucinated: the share with an answer that is not right and no abstention. What the passages
    don't hold may be known all the same: of a closed book read hallucinated_answerable.
    agreement_auc: how often a right answer had more agreement than a wrong one, ties half, among
    those not abstained. note: why a measure can't be had.
    """
    answerable, abstained = table["answerable"], table["abstained"]
    invented = ~abstained & ~table["right"]
    parts = {
        "f1_answerable": table["f1"][answerable],
        "right_answerable": table["right"][answerable],
        "abstained_answerable": abstained[answerable],
        "abstained_unanswerable": abstained[~answerable],
        "hallucinated_answerable": invented[answerable],
        "hallucinated": invented,
    }
    rows = {}
    for name, values in parts.items():
        found = vars(bootstrap(values)) if len(values) > 1 else {"note": "fewer than two items"}
        rows[name] = {"items": len(values)} | found
    given = table[~abstained]
    rows["agreement_auc"] = {"items": len(given)} | _separation(given["agreement"], given["right"])
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.reindex(columns=["value", "low", "high", "items", "note"]).fillna({"note": ""})


def _separation(scores: pd.Series, right: pd.Series) -> dict:
    if scores.isna().any():
        return {"note": "no samples were drawn"}
    if min(counts := (int(right.sum()), int((~right).sum()))) < _FEWEST:
        note = "{} right and {} wrong answers: {} of each are needed"
        return {"note": note.format(*counts, _FEWEST)}
    found = bootstrap(scores, right, statistic=_auc)
    narrow = "no wrong answer among the right ones: the interval is too narrow"
    return vars(found) | ({"note": narrow} if found.low == found.high else {})


def _auc(scores: NDArray, right: NDArray, axis: int = -1) -> NDArray:
    """The share of pairs, a right and a wrong one, where the right one scores more; (..., n)."""
    n_right, n = right.sum(axis), right.shape[axis]
    wins = (rankdata(scores, axis=axis) * right).sum(axis) - n_right * (n_right + 1) / 2
    pairs = n_right * (n - n_right)  # 0 where a resample has one kind alone
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)
