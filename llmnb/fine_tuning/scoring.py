"""A file of new texts, scored: a label, its probability, and whether the classifier is unsure."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmnb import files, tables
from llmnb.fine_tuning.base import Classifier, FineTuningError

COLUMNS = ("label", "probability", "unsure")


def unsure_below(probabilities: ArrayLike, labels: ArrayLike, accuracy: float = 0.9) -> float:
    """The lowest threshold whose predictions are right often enough; above 1 if there is none.

    probabilities: (texts, classes) and labels: (texts,), of texts that the classifier hasn't been
    trained on. accuracy: the share of right predictions that is wanted among those whose
    probability is at least the threshold. Source: El-Yaniv & Wiener 2010.
    """
    probabilities = np.asarray(probabilities)
    top = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == np.asarray(labels)
    thresholds = np.unique(top)
    reached = [is_right[top >= threshold].mean() >= accuracy for threshold in thresholds]
    return float(thresholds[reached][0]) if any(reached) else float(np.nextafter(1.0, 2.0))


def destination(model: str | Path, source: str | Path) -> Path:
    """Where the scores go: beside the model's folder, named after the folder and the file.

    Raises FineTuningError where another file has that name.
    """
    folder = Path(model).expanduser().resolve()
    file = folder.with_name(f"{folder.name}-{Path(source).stem}.csv")
    if file.exists():
        first_line = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        if not first_line.endswith(",".join(COLUMNS)):
            raise FineTuningError(f"{file} exists and holds no scores: move or rename it.")
    return file


def score_file(
    classifier: Classifier, source: str | Path, file: Path, text_column: str = ""
) -> NDArray[np.bool_]:
    """Write the rows of a table with three more columns; returns which rows are marked unsure.

    label is the likeliest one and probability its own; unsure is true below the classifier's
    `unsure_below`. A row without a text has neither label nor probability, and is unsure. Columns
    of the table with one of these names are renamed. source: a file as for tables.load_texts.
    Raises DataError.
    """
    frame, texts = tables.load_texts(source, text_column)
    rows = [row for row, text in enumerate(texts) if text]
    probabilities = classifier.probabilities([texts[row] for row in rows])
    labels = np.full(len(texts), "", dtype=object)
    top = np.full(len(texts), np.nan)
    labels[rows] = [classifier.label_names[number] for number in probabilities.argmax(axis=1)]
    top[rows] = probabilities.max(axis=1)
    unsure = ~(top >= classifier.unsure_below)
    frame = frame.rename(columns={name: f"{name} (given)" for name in COLUMNS})
    scores = dict(zip(COLUMNS, (labels, top.round(4), unsure), strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, frame.assign(**scores).to_csv(index=False, lineterminator="\n"))
    return unsure
