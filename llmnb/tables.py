"""A table of texts and labels that someone else made: its columns found, its rows checked.

Where two columns could be meant, nothing is guessed. Rows that can't be used are left out, and
their numbers are listed. table_files.py reads the files; data.py has the split rule.
"""

import collections
import hashlib
import json
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import data, files
from llmnb.data import DataError
from llmnb.labels import NUMBER, fold_labels, sort_labels
from llmnb.table_files import SUFFIXES, name_classes, read_table_file

if TYPE_CHECKING:
    import datasets
    import pandas as pd

REVIEWS = ("imdb", "rotten_tomatoes")
COLUMN_NAMES = {  # what the two columns are often called
    "text": "text texts sentence review content comment message tweet body question document post",
    "label": "label labels class category sentiment target rating stars intent topic emotion y",
}
MAX_CLASSES = 200
MIN_ROWS_PER_LABEL = 18  # with fewer, data.split could leave a label out of the validation split
MIN_TEXT_BYTES = 12  # on average, in a column that is taken for the texts without its name

_INDEX_NAME = re.compile(r"|id|index|unnamed: ?\d+|__index_level_\d+__", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Texts and labels, ready for training. Row numbers are those of a spreadsheet.

    That is, they start at 1 and count the header, if there is one.
    """

    rows: "datasets.Dataset"  # columns: text, and label, an index into label_names
    label_names: tuple[str, ...]
    name: str
    text_column: str
    label_column: str
    dropped: dict[str, list[int]]  # why rows were left out: their numbers
    notes: tuple[str, ...]  # what else a reader must know
    given_splits: "datasets.DatasetDict | None" = None  # of a source that comes split already

    def splits(self) -> "datasets.DatasetDict":
        """train, validation and test, by data.split within each label."""
        return self.given_splits or data.split(self.rows, label="label")

    def counts(self) -> dict[str, int]:
        """The number of rows of each label, in the order of label_names."""
        counts = collections.Counter(self.rows["label"][:])
        return {name: counts[code] for code, name in enumerate(self.label_names)}

    def fingerprint(self) -> str:
        """12 hex digits that depend on the texts and labels, but not on their order or file."""
        digests = []
        for row in self.rows:
            content = json.dumps([self.label_names[row["label"]], row["text"]])
            digests.append(hashlib.sha256(content.encode()).digest())
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:12]

    def summary(self) -> str:
        """The table in words: its source, columns, classes and lengths, and what was left out."""
        counts = self.counts()
        lengths = sorted(len(text) for text in self.rows["text"][:])
        lines = [
            f"{self.name}: {len(lengths):,} rows in {len(counts)} classes.",
            f"The text is in the column {self.text_column!r}, the label in {self.label_column!r}.",
            f"Characters in a text: {lengths[len(lengths) // 2]:,} (median), "
            f"{lengths[-1]:,} (longest).",
        ]
        for name, count in counts.items():
            printable = repr(name)[1:-1][:40]
            lines.append(f"  {printable:40} {count:9,} rows {count / len(lengths):6.1%}")
        for reason, numbers in self.dropped.items():
            lines.append(f"Rows left out: {len(numbers):,} ({_first_few(numbers)}), {reason}.")
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)


def load_table(source: str | Path, text_column: str = "", label_column: str = "") -> Table:
    """A table of texts and labels, for classification.

    source: a .csv, .tsv, .txt (delimited), .json, .jsonl (all also as .gz) or .parquet file; a
    name in REVIEWS; or owner/name of a data set on the Hub, of which the train split is used.
    text_column, label_column: only needed where names and cells leave a doubt. Raises DataError,
    AssetError.
    """
    if source in REVIEWS:
        return _load_reviews(str(source))
    path = Path(source).expanduser()
    notes = []
    is_hub_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)) and not path.exists()
    if is_hub_name and path.suffix not in (*SUFFIXES, ".gz"):
        name = str(source)
        frame = _load_from_hub(name, notes)
    else:
        name = path.name
        frame = read_table_file(path, notes)
    frame = _with_rows(frame, name)
    if frame.index[0] == 0:  # without a header, the first row is row 1
        frame.index += 1
    positions = _find_columns(frame, name, {"text": text_column, "label": label_column})
    return _checked_table(frame, name, positions, notes)


def load_texts(source: str | Path, text_column: str = "") -> "tuple[pd.DataFrame, list[str]]":
    """The rows of a file that has no labels, or whose labels don't count; and the text of each.

    The rows are as in the file, also those whose text is empty. source: a file, as for load_table;
    text_column: only needed where names and cells leave a doubt; what had to be assumed about
    the file is printed. Raises DataError.
    """
    path = Path(source).expanduser()
    notes: list[str] = []
    frame = _with_rows(read_table_file(path, notes, min_columns=1), path.name)
    position = 0
    if text_column or len(frame.columns) > 1:
        position = _find_columns(frame, path.name, {"text": text_column})["text"]
    texts = [data.clean(t) for t in _as_strings(frame.iloc[:, position], path.name, notes)]
    header = frame.columns[position]
    is_known = text_column or header.casefold() in COLUMN_NAMES["text"].split()
    has_header = frame.index[0] > 0  # it is delimited
    length = statistics.median([len(text) for text in texts if text] or [0])
    if has_header and not is_known and 2 * len(header) >= length:
        raise DataError(
            f"{path.name}: is its first line, {header[:60]!r}, a text or the name of the column? "
            "Write the word text into a line above it, or give that name as text_column."
        )
    print("".join(f"{path.name}: {note}\n" for note in notes), end="")
    return frame, texts


def _with_rows(frame: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """The frame with its columns' names as plain text. Raises DataError where it has no row."""
    if frame.empty:
        raise DataError(f"{name} has no rows of data.")
    return frame.rename(columns=lambda column: str(column).strip())


def _load_reviews(source: str) -> Table:
    import datasets

    splits = data.load_reviews(source)
    return Table(
        rows=datasets.concatenate_datasets(list(splits.values())),
        label_names=("negative", "positive"),
        name=source,
        text_column="text",
        label_column="label",
        dropped={},
        notes=("the project's own reviews come cleaned and without duplicates.",),
        given_splits=splits,
    )


def _load_from_hub(name: str, notes: list[str]) -> "pd.DataFrame":
    import datasets
    from huggingface_hub import HfApi

    try:
        if not datasets.config.HF_HUB_OFFLINE:  # it fails at once; load_dataset tries for 30 s
            HfApi().dataset_info(name, timeout=10)
        datasets.disable_progress_bars()
        splits = datasets.load_dataset(name)
    except Exception as error:  # of a dozen kinds, from four libraries
        raise DataError(
            f"There is no file {name!r} (looked in {Path.cwd()}), and the Hub's data set {name!r} "
            f"can't be fetched ({type(error).__name__}: {str(error)[:200]}). Check the name and "
            "the connection (with HF_HUB_OFFLINE=1 one fetched before is used), or name a file."
        ) from error
    split = "train" if "train" in splits else next(iter(splits))
    notes.append(f"of the Hub's splits ({', '.join(splits)}) only {split!r} is used.")
    frame = splits[split].to_pandas()
    name_classes(frame, splits[split].features)
    return frame


def _first_few(values: Sequence) -> str:
    return ", ".join(map(repr, values[:5])) + (", …" if len(values) > 5 else "")


def _find_columns(frame: "pd.DataFrame", name: str, column_names: dict[str, str]) -> dict[str, int]:
    """The positions of the text and the label column.

    A column that was named is found first, so that it isn't a candidate for the other role.
    """
    columns = list(frame.columns)
    positions = {}
    for role in sorted(column_names, key=lambda role: not column_names[role]):
        column = column_names[role]
        if column:
            candidates = [i for i in range(len(columns)) if columns[i] == column]
        else:
            candidates = _likely_columns(frame, role, taken=positions.values())
        names = [columns[i] for i in candidates] or columns
        listed = ", ".join(repr(heading[:60]) for heading in names[:20]) + ", …" * (len(names) > 20)
        problem = ""
        if not candidates and column:
            problem = f"has no column {column!r}.{files.did_you_mean(column, columns)}"
            problem += f" It has {listed}."
        elif not candidates:
            problem = f"has no column that is clearly the {role}. In its first row: {listed}."
            problem += f" Name one with {role}_column."
        elif columns.count(names[0]) > 1:
            problem = f"has several columns {names[0]!r}: rename all but one."
        elif len(candidates) > 1:
            problem = f"has several columns that could be the {role}: {listed}."
            problem += f" Name one with {role}_column."
        elif candidates[0] in positions.values():
            problem = f"can't have {column!r} as both text and label."
        if problem:
            raise DataError(f"{name} {problem}")
        positions[role] = candidates[0]
    return positions


def _likely_columns(frame: "pd.DataFrame", role: str, taken: Collection[int]) -> list[int]:
    """The columns that could be the text or the label by their names, or else by their cells."""
    names = [column.casefold() for column in frame.columns]
    free = [i for i in range(len(names)) if i not in taken and not _INDEX_NAME.fullmatch(names[i])]
    by_name = [i for i in free if names[i] in COLUMN_NAMES[role].split()]
    looks_right = _looks_like_texts if role == "text" else _looks_like_labels
    return by_name or [i for i in free if looks_right(frame.iloc[:, i])]


def _looks_like_texts(column: "pd.Series") -> bool:
    """Long cells, mostly different ones, and not only numbers."""
    values = _distinct_values(column)
    n_bytes = sum(len(value.encode("utf-8", "replace")) for value in values)
    is_long = n_bytes >= MIN_TEXT_BYTES * len(values)
    is_varied = len(values) > len(column) / 2
    return is_varied and is_long and not all(map(NUMBER.fullmatch, values))


def _looks_like_labels(column: "pd.Series") -> bool:
    """Few different cells. If the column's name is one of them, there is no header."""
    values = _distinct_values(column)
    return column.name not in values and 2 <= len(values) <= min(MAX_CLASSES, len(column) / 2)


def _distinct_values(column: "pd.Series") -> set[str]:
    """The different cells as text; none where a cell is a list or record."""
    return set() if any(map(_is_nested, column)) else {str(cell) for cell in column}


def _is_nested(cell: object) -> bool:
    return hasattr(cell, "__len__") and not isinstance(cell, str)


def _as_strings(column: "pd.Series", name: str, notes: list[str]) -> list[str]:
    """The cells as text; a missing one is empty."""
    for row, cell in column.items():
        if _is_nested(cell):
            content = "bytes that are" if isinstance(cell, bytes) else "a list or record,"
            raise DataError(f"{name} holds {content} not text, in {column.name!r}, row {row}.")
    cells = column.astype(object).mask(column.isna(), "").tolist()
    types = sorted({type(cell).__name__ for cell in cells if cell != ""})
    if len(types) > 1:
        notes.append(f"the column {column.name!r} mixes {', '.join(types)}: all read as text.")
    return [str(cell).encode("utf-8", "replace").decode() for cell in cells]


def _checked_table(
    frame: "pd.DataFrame", name: str, positions: dict[str, int], notes: list[str]
) -> Table:
    """The rows that can be used, and the numbers of those that can't."""
    import datasets
    import pandas as pd

    text_cells = frame.iloc[:, positions["text"]]
    label_cells = frame.iloc[:, positions["label"]]
    texts = [data.clean(text) for text in _as_strings(text_cells, name, notes)]
    labels = fold_labels(_as_strings(label_cells, name, notes), notes)
    prints = [data.fingerprint(text) for text in texts]
    columns = {"text": texts, "label": labels, "print": prints}
    rows = pd.DataFrame(columns, index=frame.index, dtype=object)
    dropped = {}
    is_header = (rows.text == text_cells.name) & (rows.label == label_cells.name)
    rows = _drop(rows, is_header, "the header once more", dropped)
    rows = _drop(rows, rows.text == "", "no text", dropped)
    rows = _drop(rows, rows.label == "", "no label (empty, NaN or null)", dropped)
    is_repeated = rows.duplicated(["print", "label"])
    rows = _drop(rows, is_repeated, "the text and label of an earlier row", dropped)
    is_contradicted = rows.duplicated("print", keep=False)
    rows = _drop(rows, is_contradicted, "the same text with different labels", dropped)

    usable = f"only {len(rows)} of {len(frame)} rows can be used"
    for reason, numbers in dropped.items():
        usable += f"; {reason}: {len(numbers)}"
    where = f"{name}, column {label_cells.name!r}"
    rare = _rare_labels(rows.label.value_counts(), where, usable)
    reason = f"labels on fewer than {MIN_ROWS_PER_LABEL} rows: {_first_few(rare)}"
    rows = _drop(rows, rows.label.isin(rare), reason, dropped)
    label_names = sort_labels(set(rows.label))
    codes = rows.label.map({label: code for code, label in enumerate(label_names)})
    return Table(
        rows=datasets.Dataset.from_dict({"text": rows.text.tolist(), "label": codes.tolist()}),
        label_names=tuple(label_names),
        name=name,
        text_column=text_cells.name,
        label_column=label_cells.name,
        dropped=dropped,
        notes=tuple(notes),
    )


def _drop(
    rows: "pd.DataFrame", is_bad: "pd.Series", reason: str, dropped: dict[str, list[int]]
) -> "pd.DataFrame":
    """The other rows; the numbers of the bad ones are added to dropped."""
    if is_bad.any():
        dropped[reason] = rows.index[is_bad].tolist()
    return rows[~is_bad]


def _rare_labels(sizes: "pd.Series", where: str, usable: str) -> list[str]:
    """The labels on too few rows. Raises DataError if fewer than two others are left.

    sizes: the number of rows by label; usable: how many rows there are to use, in words.
    """
    n_rows = sizes.sum()
    rare = sizes[sizes < MIN_ROWS_PER_LABEL].index.tolist()
    rule = f"each label needs {MIN_ROWS_PER_LABEL} different texts, so that every split has one"
    max_classes = min(MAX_CLASSES, n_rows // 2)
    problem = ""
    if n_rows < 2 * MIN_ROWS_PER_LABEL:
        problem = f"{usable}. At least {2 * MIN_ROWS_PER_LABEL} are needed: {rule}."
    elif len(sizes) == 1:
        problem = f"all {n_rows} rows have one label, {sizes.index[0]!r}: add rows."
    elif len(sizes) > max_classes:
        are_numbers = all(map(NUMBER.fullmatch, sizes.index))
        content = "numbers to predict" if are_numbers else "free text"
        problem = f"{len(sizes)} different labels, and {max_classes} are allowed: {content}, not "
        problem += "classes."
    elif len(sizes) - len(rare) < 2:
        problem = f"{rule}, but {_first_few(rare)} have fewer: add rows to them."
    if problem:
        raise DataError(f"{where} (label_column names another): {problem}")
    return rare
