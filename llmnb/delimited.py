"""Delimited text (CSV and its relatives) to rows, however the file separates and quotes cells."""

import csv
import io
import itertools
import re
from collections import Counter
from typing import TYPE_CHECKING

from llmnb.text_files import DataError

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = "\t;|,"  # in order of preference, where several fit equally well
SAMPLE_CHARACTERS = 1_000_000  # which decide what separates the cells
SAMPLE_ROWS = 200

# The first line that Excel writes and reads, which names the delimiter.
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?[;,\t]*(\r\n?|\n)', re.IGNORECASE)
_BACKSLASH_QUOTE = re.compile(r'(?<!\\)\\"')

Row = tuple[int, list[str]]  # the line where the row begins, and its cells


def read_delimited(text: str, name: str, notes: list[str], min_columns: int) -> "pd.DataFrame":
    """The rows below the header, each cell as text, without blank rows; numbered from row 1.

    The rows are parsed with each possible delimiter; the one that gives most rows as many cells
    as the header is used. Where the quotes don't follow the rules of CSV (RFC 4180), two other
    readings are tried: quotes with a backslash before them, and quotes that are part of a text.
    Raises DataError with the line where no reading gives a table.
    """
    import pandas as pd

    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    if line := _SEPARATOR_LINE.match(text):
        delimiter = line[1]
        text = (
            line[2] + text[line.end() :]
        )  # the line break stays, so that lines keep their numbers
    else:
        delimiter = _delimiter(text)
    if not delimiter and min_columns > 1:
        start = text.strip().splitlines()[0][:40]
        raise DataError(f"{name} has only one column, {start!r}: put a comma or tab between two.")
    delimiter = delimiter or ","
    problem = ""
    for read_rows, note in _READINGS.items():
        try:
            rows = read_rows(text, delimiter)
            header, numbers, cells = _rectangle(rows, min_columns, notes)
        except ValueError as error:
            problem = problem or str(error)  # that of the first reading
            continue
        if note:
            notes.append(note)
        return pd.DataFrame(cells, index=numbers, columns=header, dtype=object)
    raise DataError(
        f"{name} is no clear table: {problem}. Put a text with {delimiter!r} in it into double "
        "quotes, and double each quote inside it."
    )


def _delimiter(text: str) -> str:
    """The delimiter with which most of the first rows have as many cells as the header.

    Empty where none gives the header two cells or more.
    """
    best, best_share = "", 0
    for sign in DELIMITERS:
        lines = io.StringIO(text[:SAMPLE_CHARACTERS], newline="")
        reader = csv.reader(lines, delimiter=sign, skipinitialspace=True)
        rows = list(itertools.islice(reader, SAMPLE_ROWS))
        header = _header_index(rows, min_columns=2)
        if header is None:
            continue
        n_columns = len(rows[header])
        filled = list(filter(any, rows))
        share = sum(len(_trimmed(row, n_columns)) == n_columns for row in filled) / len(filled)
        if share > best_share:
            best, best_share = sign, share
    return best


def _header_index(rows: list[list[str]], min_columns: int) -> int | None:
    """The index of the first row with enough filled cells, if all before it are titles.

    A title has empty cells beside it, a # before it, or a blank line between it and the header.
    """
    for index, row in enumerate(rows):
        if sum(map(bool, row)) >= min_columns:
            lines = [row[0] for row in rows[:index] if len(row) == 1]
            is_apart = index > 0 and not any(rows[index - 1])
            are_titles = is_apart or all(line.startswith("#") for line in lines)
            return index if are_titles else None
    return None


def _trimmed(row: list[str], n_columns: int) -> list[str]:
    """The row without empty cells behind the last column; every row may end in a delimiter."""
    return row if any(row[n_columns:]) else row[:n_columns]


def _parsed(text: str, delimiter: str) -> list[Row]:
    """All rows by the rules of CSV. Raises ValueError where quotes don't pair up."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    rows = []
    line = 1
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"from line {line} on, its quotes don't pair up") from error
    _refuse_swallowed_rows(rows, delimiter)
    return rows


def _refuse_swallowed_rows(rows: list[Row], delimiter: str) -> None:
    """Raise ValueError for a cell that holds whole rows, which stood between two stray quotes.

    In such a cell, all lines but the last end in the last cell of another row, or all but the first
    begin with a first cell. In a cell of a few lines that is evidence only if it has a letter (a
    text may end a line with 3,50), and in one of two lines only if several rows have that cell.
    """
    first_cells = Counter(row[0] + delimiter for _, row in rows if row and row[0])
    last_cells = Counter(delimiter + row[-1] for _, row in rows if row and row[-1])
    for number, row in rows:
        for cell in row:
            lines = cell.splitlines()
            starts = {"".join(line.partition(delimiter)[:2]) for line in lines[1:]}
            ends = {"".join(line.rpartition(delimiter)[1:]) for line in lines[:-1]}
            for line_edges, known in ((starts, first_cells), (ends, last_cells)):
                has_letters = any(map(str.isalpha, "".join(line_edges)))
                is_usual = len(lines) > 2 or all(known[edge] > 1 for edge in line_edges)
                is_evidence = len(lines) > 4 or (has_letters and is_usual)
                if len(lines) > 1 and line_edges <= known.keys() and is_evidence:
                    raise ValueError(f"from line {number} on, a pair of quotes holds several rows")


def _parsed_with_backslashes(text: str, delimiter: str) -> list[Row]:
    """The rows where \\" stands for a quote inside a text, as MySQL and Spark write it."""
    return _parsed(_BACKSLASH_QUOTE.sub('""', text), delimiter)


def _parsed_line_by_line(text: str, delimiter: str) -> list[Row]:
    """A row per line, where a quote ends a cell only in front of a delimiter or the line's end.

    Raises ValueError where two lines that aren't blank differ in their number of cells.
    """
    sign = re.escape(delimiter)
    space = rf"[^\S{sign}]*"  # a tab may be the delimiter
    cell = re.compile(rf'(?:^|{sign}){space}(?:"(.*?)"{space}(?={sign}|$)|([^{sign}]*))')
    rows = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        line = line.rstrip("\n")
        row = [quoted.replace('""', '"') or plain for quoted, plain in cell.findall(line)]
        rows.append((number, row if line else []))
    lengths = {len(row) for _, row in rows if any(row)}
    if len(lengths) > 1:
        raise ValueError("its lines differ in their number of cells")
    return rows


_READINGS = {  # each way to parse, with a note for the reader
    _parsed: "",
    _parsed_with_backslashes: 'the quotes in its texts are written \\": read as quotes.',
    _parsed_line_by_line: "its quotes don't pair up: read as part of the texts.",
}


def _rectangle(
    rows: list[Row], min_columns: int, notes: list[str]
) -> tuple[list[str], list[int], list[list[str]]]:
    """The header, the other rows' numbers, and their cells, padded to the header's length.

    Lines above the header, where only one cell is filled, are left out with a note.
    """
    start = _header_index([row for _, row in rows], min_columns)
    if start is None:
        raise ValueError("its first line has only one cell")
    header_line, header = rows[start]
    numbers, cells = [], []
    for number, (line, row) in enumerate(rows[start + 1 :], start + 2):
        if not any(row):
            continue
        row = _trimmed(row, len(header))
        if len(row) > len(header):
            raise ValueError(
                f"line {line} has {len(row)} cells, line {header_line} has {len(header)}"
            )
        numbers.append(number)
        cells.append(row + [""] * (len(header) - len(row)))
    if titles := [" ".join(filter(None, row)) for _, row in rows[:start] if any(row)]:
        notes.append(f"lines above its header are left out: {len(titles)}, {titles[0]!r:.60}.")
    return header, numbers, cells
