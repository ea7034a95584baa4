"""The files of a stranger's corpus: which of them are read, and their documents one by one."""

import collections
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import text_files
from llmnb.table_files import read_table_file, with_text_columns
from llmnb.text_files import DataError

if TYPE_CHECKING:
    import datasets

KINDS = {
    ".txt": "text",
    ".md": "text",
    ".csv": "table",
    ".tsv": "table",
    ".json": "table",
    ".jsonl": "lines of JSON",
    ".parquet": "parquet",
}
DOCUMENTS_PER_BATCH = 256
ADVICE = "save it as plain text (UTF-8)"


def kind_of(path: Path) -> str:
    """The kind of file that a name promises; empty for one that can't be read."""
    return KINDS.get(Path(path.name.lower().removesuffix(".gz")).suffix, "")


def readable_files(path: Path) -> tuple[list[Path], str, str]:
    """The files to read of a file or folder, their one kind, and a note on those left out.

    Raises DataError where there are none, or several kinds.
    """
    if not path.exists() or not path.name:
        raise DataError(f"There is no file or folder {str(path)!r} (looked in {Path.cwd()}).")
    if path.is_file() and not kind_of(path):
        with path.open("rb") as file:
            text_files.refuse_other_kinds(file.read(4096), path.name, ADVICE)
    paths = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    readable = []
    left_out = collections.Counter()
    for file in paths:
        names = [] if file == path else file.relative_to(path).parts
        if any(map(text_files.is_hidden, names)):
            left_out["hidden"] += 1
        elif not kind_of(file):
            left_out[f"{file.suffix or 'without a suffix'}"] += 1
        elif file.stat().st_size == 0:
            left_out["empty"] += 1
        else:
            readable.append(file)
    if not readable:
        raise DataError(
            f"{str(path)!r} holds no text to read: name non-empty files ({', '.join(KINDS)})."
        )
    kinds = {kind_of(file): file.name for file in readable}
    if len(kinds) > 1:
        names = " and ".join(kinds.values())
        raise DataError(f"{str(path)!r} mixes kinds of files ({names}): name one kind.")
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return (
        readable,
        next(iter(kinds)),
        f"{left_out.total()} files left out ({counts})." if counts else "",
    )


def read_documents(
    paths: list[Path], column: str, whole_files: bool, notes: list[str], file: Path
) -> "datasets.Dataset":
    """All documents, in the column "text", written to the file batch by batch.

    column: where tables have their text; a missing cell is an empty document. whole_files: whether
    a file of text is one document; else a document ends at a blank line or a form feed.
    Raises DataError.
    """
    import datasets
    import pyarrow as pa

    schema = pa.schema([("text", pa.string())])
    texts = itertools.chain.from_iterable(
        _documents(path, column, whole_files, notes) for path in paths
    )
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(itertools.islice(texts, DOCUMENTS_PER_BATCH)):
            encoded = [text.encode("utf-8", "replace") for text in batch]  # no half characters
            writer.write_batch(pa.record_batch([pa.array(encoded, pa.string())], schema))
    return datasets.Dataset.from_file(str(file))


def _documents(path: Path, column: str, whole_files: bool, notes: list[str]) -> Iterator[str]:
    kind = kind_of(path)
    if kind == "text":
        lines = _lines(path)
        return iter(["".join(lines)]) if whole_files else _paragraphs(lines)
    if kind == "parquet":
        cells = _parquet_cells(path, column)
    elif kind == "table":
        cells = _table_cells(path, column, notes)
    else:
        cells = _json_cells(path, column)
    return _texts(cells, f"{path.name}, column {column!r}")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, whatever ends them there, each with a newline."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            head = file.read(4096)
        text_files.refuse_other_kinds(head, path.name, ADVICE)
        with opener(path, "rt", encoding=text_files.encoding_of(head)) as file:
            for line in file:
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}, line {number + 1} or a later one: a character is neither UTF-8 nor "
            f"UTF-16: {ADVICE}."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} can't be read: {error}. Copy it again.") from error


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """What stands between blank lines and form feeds; a line of spaces is blank."""
    paragraph: list[str] = []
    for line in lines:
        for index, part in enumerate(line.split("\f")):
            if paragraph and (index > 0 or not part.strip()):
                yield "".join(paragraph)
                paragraph = []
            if part.strip():
                paragraph.append(part)
    if paragraph:
        yield "".join(paragraph)


def _texts(cells: Iterable[object], where: str) -> Iterator[str]:
    """The cells, empty where they are missing. Raises DataError if one is no text."""
    for number, cell in enumerate(cells, 1):
        if cell is not None and not isinstance(cell, str):
            raise DataError(f"{where}, holds no text in row {number} but {cell!r:.40}.")
        yield cell or ""


def _table_cells(path: Path, column: str, notes: list[str]) -> list[object]:
    """Of a table that is read whole. In a delimited file NA and null are texts like others."""
    file_notes: list[str] = []
    frame = read_table_file(path, file_notes, min_columns=1)
    notes += [f"{path.name}: {note}" for note in file_notes]
    names = [str(name).strip() for name in frame.columns]
    _need_column(column, names, path)
    cells = frame.iloc[:, names.index(column)]
    if cells.astype(str).str.fullmatch(r"[\d.,+-]*").all():
        raise DataError(f"{path.name}, column {column!r}, holds no text, but numbers.")
    return cells.where(cells.notna(), "").tolist()


def _parquet_cells(path: Path, column: str) -> Iterator[object]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _need_column(column, file.schema_arrow.names, path)
            for batch in file.iter_batches(DOCUMENTS_PER_BATCH, columns=[column]):
                yield from with_text_columns(pa.Table.from_batches([batch]))[column].to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name} can't be read: {error}. Copy it again.") from error


def _json_cells(path: Path, column: str) -> Iterator[object]:
    """Of each record; the first one must have the column, in others it may be missing."""
    is_first = True
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise DataError(f"{path.name}, line {number}: this is no JSON ({reason}).") from error
        if not isinstance(record, dict):
            raise DataError(f'{path.name}, line {number}: write records such as {{"text": "…"}}.')
        if is_first:
            _need_column(column, record, path)
            is_first = False
        yield record.get(column)


def _need_column(column: str, columns: Iterable[str], path: Path) -> None:
    if column not in columns:
        raise DataError(
            f"{path.name} has no column {column!r}; its columns are: {', '.join(columns)}."
        )
