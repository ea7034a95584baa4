"""Reading a file with a table (CSV, JSON, parquet) into a data frame. tables.py does the rest."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb.data import DataError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")
DELIMITERS = "\t;|,"  # the first of them that stands in the header separates the cells
GZIP_START = b"\x1f\x8b"


def read_table_file(path: Path, notes: list[str]) -> "pd.DataFrame":
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
    if suffix not in SUFFIXES:
        raise DataError(f"{where} can't be read: save it as one of {suffixes}.")
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_START):
            content = gzip.decompress(content)
        if suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(io.BytesIO(content))
            return table.to_pandas(ignore_metadata=True)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"{error}. Copy or download it again"
        raise DataError(f"{where} can't be read: {reason}.") from error
    text = _decode(content, path.name, notes).strip("\r\n")
    if not text.strip():
        raise DataError(f"{path.name} is empty.")
    if suffix in (".json", ".jsonl"):
        return _read_json(text, path.name, is_per_line=suffix == ".jsonl")
    return _read_delimited(text, path.name, notes)


def _decode(content: bytes, name: str, notes: list[str]) -> str:
    """The text in UTF-8 or UTF-16; in cp1252, with a note, if it can be nothing else."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in content[:4096] and not is_utf16:
        raise DataError(f"{name} is not a text file (is it from Excel?): save it as CSV.")
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
    if is_utf16 or not _is_western(content):
        raise DataError(
            f"{name}, line {line}: a character is neither UTF-8 nor Western European (cp1252): "
            "save the table as CSV (UTF-8)."
        )
    notes.append(f"not UTF-8 (line {line}), so read as cp1252 (Western): look at accented letters.")
    return content.decode("cp1252")


def _is_western(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 are likely to be cp1252.

    In a Western European text at most a quarter of the characters are not ASCII. And if many of
    those are valid UTF-8, the file is UTF-8 with a few broken characters.
    """
    try:
        content.decode("cp1252")  # five of the 256 bytes mean nothing in it
    except UnicodeDecodeError:
        return False
    text = content.decode("utf-8", "replace")
    n_invalid = text.count("\N{REPLACEMENT CHARACTER}")
    n_not_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return n_not_ascii < min(2 * n_invalid, len(text) / 4) + 1


def _read_json(text: str, name: str, is_per_line: bool) -> "pd.DataFrame":
    """A list of records, a record per line, or columns: {"text": [...], "label": [...]}."""
    import pandas as pd

    values = []
    lines_before = 0
    try:
        for line in text.split("\n") if is_per_line else [text]:
            if line.strip():
                values.append(json.loads(line))
            lines_before += 1
        table = values[0] if len(values) == 1 else values
        return pd.DataFrame(table, dtype=object).reset_index(drop=True)
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


def _read_delimited(
    text: str, name: str, notes: list[str], quoting: int = csv.QUOTE_MINIMAL
) -> "pd.DataFrame":
    """The rows below the header, each cell as text."""
    import pandas as pd

    header = re.match("[^\r\n]*", text)[0]
    delimiter = next((sign for sign in DELIMITERS if sign in header), None)
    if delimiter is None:
        raise DataError(
            f"{name} has only one column, {header[:40]!r}: put a comma or tab between two."
        )
    problem = ""
    try:
        cells = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            quoting=quoting,
            header=None,
            dtype=object,
            na_filter=False,
            skip_blank_lines=False,
        )
    except pd.errors.ParserError as error:
        problem = _describe_parser_error(str(error))
    if delimiter == "\t" and quoting == csv.QUOTE_MINIMAL:
        # In many tables with tabs a quote is only a quote: then two of them swallow the tabs.
        has_swallowed_tabs = problem or any("\t" in cell for cell in cells.to_numpy().flat)
        if has_swallowed_tabs:
            notes.append("its quotes don't pair up: read as part of the texts.")
            return _read_delimited(text, name, notes, csv.QUOTE_NONE)
    if problem:
        raise DataError(
            f"{name} is no clear table: {problem}. Put a text with {delimiter!r} in it into "
            "double quotes, and double each quote inside it."
        )
    cells.index += 1
    body = cells[1:].set_axis(cells.iloc[0], axis=1)
    return body[(cells[1:] != "").any(axis=1)]


def _describe_parser_error(message: str) -> str:
    """What pandas says about a malformed row, in plain English."""
    n_cells = r".*Expected (\d+) fields in line (\d+), saw (\d+)\s*"
    message = re.sub(n_cells, r"row \2 has \3 cells, the first \1", message)
    open_quote = r".*EOF.* row (\d+)"
    return re.sub(open_quote, r"a quote opens below row \1, none closes it", message)
