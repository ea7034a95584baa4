"""Wrong answers to the exercises of notebook 04, as readers write them, are refused by name."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llmnb import exercises
from llmnb.exercises import fine_tuning


def log_softmax(rows):
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


def scores(logits, options, total=sum):
    return np.array(
        [
            total([log_softmax(row)[token] for row, token in zip(rows, ids, strict=True)])
            for rows, ids in zip(logits, options, strict=True)
        ]
    )


MACRO_F1 = [
    (lambda y, p, n: (y == p).mean(), "That is the accuracy"),
    (lambda y, p, n: f1_score(y, p, average="micro"), "That is the accuracy"),
    (lambda y, p, n: f1_score(y, p, average="weighted"), "weigh the classes by their size"),
    (lambda y, p, n: f1_score(y, p, labels=[1], average="macro"), "class 1 alone"),
    (lambda y, p, n: np.mean([(p[y == c] == c).mean() for c in range(n)]), "mean recall"),
    (lambda y, p, n: np.mean([(y[p == c] == c).mean() for c in range(n)]), "mean precision"),
]
MERGE = [
    (lambda w, a, b, alpha: w + b @ a, "scale is missing"),
    (lambda w, a, b, alpha: w + alpha * b @ a, "divide by the rank"),
    (lambda w, a, b, alpha: w + alpha / len(a) * (a.T @ b.T), "transposed"),
    (lambda w, a, b, alpha: alpha / len(a) * b @ a, "change alone"),
    (lambda w, a, b, alpha: w + len(a) / alpha * b @ a, "upside down"),
    (lambda w, a, b, alpha: w + a @ b, "Expected the shape|raised ValueError"),
]
CHOOSE = [
    (lambda logits, options, usual: softmax(scores(logits, options)), "usual scores are missing"),
    (lambda logits, options, usual: softmax(scores(logits, options) + usual), "subtract them"),
    (
        lambda logits, options, usual: softmax(scores(logits, options, np.mean) - usual),
        "not its log-probability",
    ),
    (
        lambda logits, options, usual: softmax(scores(logits, options, lambda x: x[0]) - usual),
        "Only the first token",
    ),
    (lambda logits, options, usual: scores(logits, options) - usual, "Those are scores"),
    (lambda logits, options, usual: np.exp(scores(logits, options) - usual), "doesn't sum to 1"),
    (
        lambda logits, options, usual: softmax(
            np.array(
                [
                    sum(r[t] for r, t in zip(*each, strict=True))
                    for each in zip(logits, options, strict=True)
                ]
            )
            - usual
        ),
        "log-softmax is missing",
    ),
]


@pytest.mark.parametrize(
    ("name", "attempt", "message"),
    [
        (name, *case)
        for name, cases in (("macro_f1", MACRO_F1), ("merge", MERGE), ("choose", CHOOSE))
        for case in cases
    ],
)
def test_a_wrong_answer_is_refused_by_name(name, attempt, message):
    import re

    said = getattr(fine_tuning, f"check_{name}")(attempt)
    assert re.search(message, said), said


def test_right_answers_by_another_way():
    assert (
        fine_tuning.check_macro_f1(lambda y, p, n: f1_score(y, p, average="macro"))
        == exercises.RIGHT
    )
    assert (
        fine_tuning.check_choose(
            lambda logits, options, usual: softmax(scores(logits, options) - usual)
        )
        == exercises.RIGHT
    )
    assert fine_tuning.check_merge(lambda *case: None) == exercises.NOT_ATTEMPTED
