"""Reading a file with a table (CSV, JSON, parquet) into a data frame. tables.py does the rest."""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import text_files
from llmnb.delimited import read_delimited
from llmnb.text_files import DataError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
ADVICE = "save the table as CSV (UTF-8)"


def read_table_file(path: Path, notes: list[str], min_columns: int = 2) -> "pd.DataFrame":
    """All cells of the file, unchanged; of a delimited file, without its blank rows.

    The index holds the rows' numbers; a header counts as row 0. What had to be assumed, such as
    the encoding, is added to the notes. Raises DataError where the file holds no clear table.
    """
    where = f"{str(path)!r} (looked in {Path.cwd()})"
    suffixes = ", ".join(SUFFIXES)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if path.is_dir():
        raise DataError(f"{where} is a folder: name one file in it ({suffixes}).")
    if not path.exists():
        raise DataError(
            f"{where} isn't there. Name a file, imdb, rotten_tomatoes or owner/name (Hub)."
        )
    content = text_files.read_bytes(path)
    if content.startswith(b"PAR1"):
        return _read_parquet(content, where)
    text = text_files.decode(content, path.name, ADVICE, notes)
    if suffix not in SUFFIXES or suffix == ".parquet":
        raise DataError(f"{where} can't be read: save it as one of {suffixes}.")
    if not text.strip():
        raise DataError(f"{path.name} is empty.")
    if "json" in suffix:
        return _read_json(text, path.name, is_per_line=suffix != ".json")
    return read_delimited(text, path.name, notes, min_columns)


def _read_parquet(content: bytes, where: str) -> "pd.DataFrame":
    """Its columns; the classes of a data set of Hugging Face by their names."""
    import datasets
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{where} can't be read: {error}. Copy it again.") from error
    frame = table.to_pandas(ignore_metadata=True)
    for name, column in frame.items():
        if any(isinstance(cell, bytes) for cell in column):
            with contextlib.suppress(UnicodeDecodeError):  # pictures, for example, stay bytes
                frame[name] = column.astype(object).str.decode("utf-8")
    if b"huggingface" in (table.schema.metadata or {}):
        name_classes(frame, datasets.Features.from_arrow_schema(table.schema))
    return frame


def name_classes(frame: "pd.DataFrame", features: Mapping) -> None:
    """Replace the numbers of classes by their names; -1, which means no label, becomes NaN."""
    import datasets

    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            frame[column] = frame[column].map(dict(enumerate(feature.names)))


def _read_json(text: str, name: str, is_per_line: bool) -> "pd.DataFrame":
    """A list of records, a record per line, or any other table that a program writes as JSON."""
    values = []
    lines_before = 0
    try:
        for line in text.split("\n") if is_per_line else [text]:
            if line.strip():
                values.append(json.loads(line))
            lines_before += 1
        return _frame_of(values[0] if len(values) == 1 else values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if not is_per_line and str(error).startswith("Extra data"):  # after the first record
            return _read_json(text, name, is_per_line=True)
        where = name
        if isinstance(error, json.JSONDecodeError):
            where = f"{name}, line {lines_before + error.lineno}"
        reason = getattr(error, "msg", error)
        raise DataError(
            f"{where}: this is no table in JSON ({reason}). "
            'Write records such as {"text": "…", "label": "…"}.'
        ) from error


def _frame_of(table: list | dict) -> "pd.DataFrame":
    """Records, rows below a header, or a dictionary of columns, of rows, or around one of them."""
    import pandas as pd

    if isinstance(table, dict):
        lists = [value for value in table.values() if isinstance(value, list)]
        if "columns" in table and "data" in table:
            table = [table["columns"], *table["data"]]
        elif len(lists) == 1:  # {"data": [...]}, with what else there is to say about them
            table = lists[0]
        elif not any(isinstance(value, dict | list) for value in table.values()):
            table = [table]  # one record
    if isinstance(table, list) and table and all(isinstance(row, list) for row in table):
        return pd.DataFrame(table[1:], columns=table[0], dtype=object)
    if isinstance(table, list) and all(isinstance(row, str) for row in table):
        return pd.DataFrame({"text": table}, dtype=object)
    frame = pd.DataFrame(table, dtype=object)
    if isinstance(table, dict) and len(frame) < len(frame.columns):
        frame = frame.T  # {"0": {"text": ...}, "1": ...}
    return frame.reset_index(drop=True)
