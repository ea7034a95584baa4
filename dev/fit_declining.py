"""Fit the weights by which question answering answers or declines, and show what they do.

python dev/fit_declining.py [FOLDER QUESTIONS.json ...]

The questions are those of dev/notes.json, about the notes alone and beside the handbook, and those
at the even positions of the handbook. Folders of your own can be added: QUESTIONS.json is a list
of [question, whether the folder answers it].
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from llmnb import handbook
from llmnb.applications.question_answering import PASSAGES_READ, QuestionAnswerer
from llmnb.applications.retrieval import Index

PENALTY = 0.3  # scikit-learn's C
WEIGHT_OF_A_FOLDER = 50  # of its answerable questions, and of the others


def features(folder: str | Path, questions: list[tuple[str, bool]]) -> np.ndarray:
    """Of the sentence that fits each question best: (questions, features), NaN if it's declined."""
    app = QuestionAnswerer(Index.build(folder, say=lambda line: None), generator=None)
    texts = [question for question, _ in questions]
    rankings = app.index.search_all(texts, PASSAGES_READ)
    app._embed_sentences([hit.passage for ranking in rankings for hit in ranking])
    rows = []
    for text, vector, ranking in zip(texts, app.index.embed(texts), rankings, strict=True):
        best = max(app._candidates(text, vector, ranking), key=lambda candidate: candidate.fit)
        is_declined = bool(app.index.bm25.missing(text))  # a name or number that it doesn't have
        rows.append(np.full(len(best.features), np.nan) if is_declined else best.features)
    return np.array(rows)


def main() -> None:
    """Collect the features of every folder, fit, and print the weights and two shares a folder."""
    notes = json.loads(Path(__file__).with_name("notes.json").read_text(encoding="utf-8"))
    book = [(question.question, question.answerable) for question in handbook.questions()[::2]]
    with tempfile.TemporaryDirectory() as parent:
        folders = {name: Path(parent, name) for name in ("notes", "notes and handbook")}
        for folder in folders.values():
            folder.mkdir()
            for name, contents in notes["documents"].items():
                (folder / name).write_text(contents, encoding="utf-8")
        for file in handbook.FOLDER.glob("*.md"):
            (folders["notes and handbook"] / file.name).write_bytes(file.read_bytes())
        sets = [(name, folder, notes["questions"]) for name, folder in folders.items()]
        sets.append(("handbook", handbook.FOLDER, book))
        for folder, questions in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
            sets.append((folder, folder, json.loads(Path(questions).read_text(encoding="utf-8"))))
        x = [features(folder, questions) for _, folder, questions in sets]
    y = [np.array([is_answerable for _, is_answerable in questions]) for *_, questions in sets]
    weights = [WEIGHT_OF_A_FOLDER / np.where(kind, kind.sum(), (~kind).sum()) for kind in y]
    all_x, all_y, all_weights = map(np.concatenate, (x, y, weights))
    is_fitted = ~np.isnan(all_x).any(axis=1)
    model = LogisticRegression(C=PENALTY, max_iter=2000)
    model.fit(all_x[is_fitted], all_y[is_fitted], sample_weight=all_weights[is_fitted])
    print("coefficients", model.coef_[0].round(2), "intercept", model.intercept_.round(2))
    for (name, *_), rows, is_answerable in zip(sets, x, y, strict=True):
        is_answered = rows @ model.coef_[0] + model.intercept_ >= 0  # never where it's NaN
        kept, declined = is_answered[is_answerable].mean(), (~is_answered)[~is_answerable].mean()
        print(f"{name}: {kept:.0%} of the answerable answered, {declined:.0%} of the rest declined")


if __name__ == "__main__":
    main()
