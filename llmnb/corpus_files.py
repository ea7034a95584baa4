"""The files of a stranger's corpus: which of them are read, and their documents."""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import text_files
from llmnb.table_files import read_table_file
from llmnb.text_files import DataError

if TYPE_CHECKING:
    import datasets

# The library datasets reads these batch by batch.
KINDS = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
KINDS |= dict.fromkeys((".txt", ".md"), "text") | dict.fromkeys((".csv", ".tsv", ".json"), "table")
TEXT_TYPES = ("string", "large_string", "binary", "large_binary")
ADVICE = "save it as plain text (UTF-8)"
_DOCUMENT_END = re.compile(r"\f|\n\s*\n")  # a line of spaces is blank


def kind_of(path: Path) -> str:
    """The kind of file that a name promises; empty for one that can't be read."""
    return KINDS.get(Path(path.name.lower().removesuffix(".gz")).suffix, "")


def readable_files(path: Path) -> tuple[list[Path], str]:
    """The files to read of a file or folder, all of one kind, and a note on those left out.

    Raises DataError where there are none, or several kinds.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {str(path)!r} (looked in {Path.cwd()}).")
    paths = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    visible = [f for f in paths if not any(map(text_files.is_hidden, f.relative_to(path).parts))]
    readable = [f for f in visible if kind_of(f) and f.stat().st_size > 0]
    if not readable:
        if path.is_file() and path.stat().st_size:
            text_files.refuse_other_kinds(text_files.read_bytes(path), path.name, ADVICE)
            raise DataError(f"{path.name} is of a kind that isn't read: {ADVICE}, as .txt.")
        kinds = f"of a kind that is read ({', '.join(KINDS)})"
        raise DataError(f"{str(path)!r} holds no text: it is empty, or nothing in it is {kinds}.")
    kinds = {kind_of(file): file.name for file in readable}
    if len(kinds) > 1:
        names = " and ".join(kinds.values())
        raise DataError(f"{str(path)!r} mixes kinds of files ({names}): keep one, or name a file.")
    note = f"files left out: {len(paths) - len(visible)} hidden, "
    note += f"{len(visible) - len(readable)} empty or of another kind."
    return readable, note if len(readable) < len(paths) else ""


def read_documents(
    paths: list[Path], column: str, is_folder: bool, notes: list[str], cache: Path
) -> "datasets.Dataset":
    """All documents, in the column "text"; a missing one is empty or None.

    column: where a table has them. A text file of a folder is one document; in a single file a
    document ends at a blank line or a form feed. Raises DataError.
    """
    import datasets

    def records() -> Iterator[dict[str, str]]:
        for path in paths:
            for text in _texts(path, column, is_folder, notes):
                yield {column: text}

    kind = kind_of(paths[0])
    try:
        if kind in ("json", "parquet"):
            names = [glob.escape(str(path)) for path in paths]  # not read as patterns
            rows = datasets.load_dataset(
                kind, data_files=names, split="train", cache_dir=str(cache)
            )
        else:
            rows = datasets.Dataset.from_generator(records, cache_dir=str(cache))
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, DataError):
            raise cause from None
        reason = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise DataError(f"{paths[0].name} can't be read as {kind} (UTF-8): {reason}.") from error
    _need_column(column, rows.column_names, paths[0])
    rows = rows.select_columns([column]).rename_columns({column: "text"})
    if getattr(rows.features["text"], "dtype", "") not in TEXT_TYPES:
        raise DataError(f"{paths[0].name}, column {column!r}, holds no text.")
    return rows.cast_column("text", datasets.Value("string"))


def _texts(path: Path, column: str, is_folder: bool, notes: list[str]) -> Iterable[str]:
    """The documents of a text file or a table; of a table, NA and null are texts like others."""
    file_notes: list[str] = []
    if kind_of(path) == "text":
        try:
            text = text_files.decode(text_files.read_bytes(path), path.name, ADVICE, file_notes)
        except DataError as error:
            if not is_folder:
                raise
            notes.append(f"left out: {error}")
            return []
        text = text_files.TERMINAL_CODES.sub("", text)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        cells = [text] if is_folder else _DOCUMENT_END.split(text)
    else:
        frame = read_table_file(path, file_notes, min_columns=1)
        names = [str(name).strip() for name in frame.columns]
        _need_column(column, names, path)
        cells = frame.iloc[:, names.index(column)].tolist()
        if all(re.fullmatch(r"[\d.,+-]*", str(cell)) for cell in cells):
            raise DataError(f"{path.name}, column {column!r}, holds only numbers, or nothing.")
    notes += [f"{path.name}: {note}" for note in file_notes]
    return cells


def _need_column(column: str, columns: Sequence[str], path: Path) -> None:
    if column not in columns:
        listed = ", ".join(columns)
        raise DataError(f"{path.name} has no column {column!r}; its columns are: {listed}.")
