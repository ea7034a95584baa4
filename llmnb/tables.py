"""A stranger's table of texts and labels: read, its two columns found, its rows sifted and counted.

Nothing is guessed where there are two answers, and no row is left out without being named.
"""

import collections
import csv
import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import data, files
from llmnb.data import DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd

REVIEWS = ("imdb", "rotten_tomatoes")
KINDS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")
NAMES = {  # what the columns are often called
    "text": "text texts sentence review content comment message tweet body question document post",
    "label": "label labels class category sentiment target rating stars intent topic emotion y",
}
MISSING = ("", "nan", "null", "<na>", "#n/a")  # what stands where there is no label
MOST_CLASSES = 200
MINIMUM = 18  # rows of a label: from so many on, data.split leaves no part of it empty

_INDEX = re.compile(r"|id|index|unnamed: ?\d+|__index_level_\d+__", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Table:
    """Texts and labels. rows: the columns "text" and "label", which is a place in label_names.

    dropped: the numbers of the rows left out, by reason; notes: what else a reader must be told.
    Rows are counted from 1, and a header counts, as in a spreadsheet.
    """

    rows: "datasets.Dataset"
    label_names: tuple[str, ...]
    name: str
    text_column: str
    label_column: str
    dropped: dict[str, list[int]]
    notes: tuple[str, ...]
    own_splits: "datasets.DatasetDict | None" = None  # of a source that comes split already

    def splits(self) -> "datasets.DatasetDict":
        """train, validation and test, by data.split within each label."""
        return self.own_splits or data.split(self.rows, label="label")

    def counts(self) -> dict[str, int]:
        """The number of rows of each label, in the order of label_names."""
        counted = collections.Counter(self.rows["label"][:])
        return {name: counted[code] for code, name in enumerate(self.label_names)}

    def fingerprint(self) -> str:
        """12 hex digits of the sha256 of all texts and labels, whatever their order and file."""
        pairs = zip(self.rows["label"][:], self.rows["text"][:], strict=True)
        lines = (json.dumps([self.label_names[code], text]) for code, text in pairs)
        prints = sorted(hashlib.sha256(line.encode()).digest() for line in lines)
        return hashlib.sha256(b"".join(prints)).hexdigest()[:12]

    def summary(self) -> str:
        """The table in words: its source, columns, classes and lengths, and what was left out."""
        counts, sizes = self.counts(), sorted(len(text) for text in self.rows["text"][:])
        rows = [(repr(name)[1:-1][:40], n, n / len(sizes)) for name, n in counts.items()]
        lines = [
            f"{self.name}: {len(sizes):,} rows in {len(counts)} classes.",
            f"The text is in the column {self.text_column!r}, the label in {self.label_column!r}.",
            f"Characters in a text: {sizes[len(sizes) // 2]:,} (median), {sizes[-1]:,} (longest).",
            *(f"  {name:40} {n:9,} rows {share:6.1%}" for name, n, share in rows),
            *(f"Rows left out: {len(at):,} ({_some(at)}), {w}." for w, at in self.dropped.items()),
            *(f"Note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def load_table(source: str | Path, text_column: str = "", label_column: str = "") -> Table:
    """A table of texts and labels, for classification.

    source: a .csv, .tsv, .txt (delimited), .json, .jsonl (all also as .gz) or .parquet file; a
    name in REVIEWS; or owner/name of a data set on the Hub, of which the train split is used. The
    columns are named where their names and cells leave a doubt. Raises DataError, AssetError.
    """
    if source in REVIEWS:
        import datasets

        splits = data.load_reviews(str(source))
        rows = datasets.concatenate_datasets(list(splits.values()))
        notes = ("the project's own reviews come cleaned and without duplicates.",)
        return Table(
            rows, ("negative", "positive"), str(source), "text", "label", {}, notes, splits
        )
    path, notes = Path(source).expanduser(), []
    hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)) and not path.exists()
    hub = hub and path.suffix not in (*KINDS, ".gz")
    name = str(source) if hub else path.name
    frame = _from_hub(name, notes) if hub else _from_file(path, notes)
    frame.columns = [str(column).strip() for column in frame.columns]
    _refuse(name, (frame.empty, "has no rows of data."))
    frame.index += int(frame.index[0] == 0)
    return _sifted(frame, name, _places(frame, name, text=text_column, label=label_column), notes)


def _refuse(name: str, *checks: tuple[object, str]) -> None:
    """Raise DataError for the first of the checks that found something wrong."""
    for wrong, message in checks:
        if wrong:
            raise DataError(f"{name} {message}")


def _some(things: list) -> str:
    return ", ".join(map(repr, things[:5])) + ", …" * (len(things) > 5)


def _from_hub(name: str, notes: list[str]) -> "pd.DataFrame":
    import datasets
    from huggingface_hub import HfApi

    try:
        if not datasets.config.HF_HUB_OFFLINE:  # it fails at once; load_dataset tries for 30 s
            HfApi().dataset_info(name, timeout=10)
        with data._quiet():
            parts = datasets.load_dataset(name)
    except Exception as error:  # of a dozen kinds, from four libraries
        raise DataError(
            f"There is no file {name!r} (looked in {Path.cwd()}), and the Hub's data set {name!r} "
            f"can't be fetched ({type(error).__name__}: {str(error)[:200]}). Check the name and "
            "the connection (with HF_HUB_OFFLINE=1 one fetched before is used), or name a file."
        ) from error
    part = "train" if "train" in parts else next(iter(parts))
    notes.append(f"of the Hub's splits ({', '.join(parts)}) only {part!r} is used.")
    frame = parts[part].to_pandas()
    for column, feature in parts[part].features.items():
        if isinstance(feature, datasets.ClassLabel):  # its -1 says that there is no label
            frame[column] = frame[column].map(dict(enumerate(feature.names)))
    return frame


def _from_file(path: Path, notes: list[str]) -> "pd.DataFrame":
    name, kind = path.name, Path(path.name.lower().removesuffix(".gz")).suffix
    where, kinds = f"{str(path)!r} (looked in {Path.cwd()})", ", ".join(KINDS)
    _refuse(
        where,
        (path.is_dir(), f"is a folder: name one file in it ({kinds})."),
        (not path.exists(), "isn't there. Name a file, imdb, rotten_tomatoes or owner/name (Hub)."),
        (kind not in KINDS, f"is of a kind that can't be read: save it as one of {kinds}."),
    )
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        if kind == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(io.BytesIO(content)).to_pandas(ignore_metadata=True)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        why = getattr(error, "strerror", None) or f"{error}. Copy or download it again"
        raise DataError(f"{where} can't be read: {why}.") from error
    text = _decoded(content, name, notes).strip("\r\n")
    _refuse(name, (not text.strip(), "is empty."))
    return _json(text, name, kind) if "json" in kind else _delimited(text, name, notes)


def _decoded(content: bytes, name: str, notes: list[str]) -> str:
    """The text in UTF-16 or UTF-8; or in cp1252, with a note, where it can be nothing else."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    _refuse(name, (not wide and b"\0" in content[:4096], "is no text (Excel?): save it as CSV."))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
    text = content.decode("utf-8", "replace")
    broken = text.count("\N{REPLACEMENT CHARACTER}")
    foreign = len(text) - len(text.encode("ascii", "ignore"))  # Western texts have few
    western = not wide and foreign < min(2 * broken, len(text) / 4) + 1
    western &= not any(byte in content for byte in b"\x81\x8d\x8f\x90\x9d")  # not in cp1252
    told = "a character is neither UTF-8 nor Western (cp1252): save the table as CSV (UTF-8)."
    _refuse(f"{name}, line {line}:", (not western, told))
    notes.append(f"not UTF-8 (line {line}), so read as cp1252 (Western): look at accented letters.")
    return content.decode("cp1252")


def _json(text: str, name: str, kind: str) -> "pd.DataFrame":
    """Records in a list, a record a line, or columns: {"text": [...], "label": [...]}."""
    import pandas as pd

    number, found = 0, []
    try:
        for line in text.split("\n") if kind == ".jsonl" else [text]:
            found += [json.loads(line)] if line.strip() else []
            number += 1
        found = found[0] if len(found) == 1 else found
        return pd.DataFrame(found, dtype=object).reset_index(drop=True)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if kind == ".json" and str(error).startswith("Extra data"):
            return _json(text, name, ".jsonl")
        where = f", line {number + error.lineno}" if hasattr(error, "lineno") else ""
        why = f'{getattr(error, "msg", error)}; wanted: records such as {{"text": "", "label": ""}}'
        raise DataError(f"{name}{where}: this is no table in JSON ({why}).") from error


def _delimited(text: str, name: str, notes: list[str], quoting: int = 0) -> "pd.DataFrame":
    import pandas as pd

    top = re.match("[^\r\n]*", text)[0]
    sign = next((sign for sign in "\t;|," if sign in top), None)
    _refuse(name, (not sign, f"has only one column, {top[:40]!r}: put a comma or tab between two."))
    plain = {"header": None, "dtype": object, "na_filter": False, "skip_blank_lines": False}
    try:
        cells = pd.read_csv(io.StringIO(text), sep=sign, quoting=quoting, **plain)
        error, torn = "", sign == "\t" and any(sign in cell for cell in cells.to_numpy().flat)
    except pd.errors.ParserError as broken:
        wide = r".*Expected (\d+) fields in line (\d+), saw (\d+)\s*"
        error, torn = re.sub(wide, r"row \2 has \3 cells, the first \1", str(broken)), True
        error = re.sub(r".*EOF.* row (\d+)", r"a quote opens below row \1, none closes it", error)
    if sign == "\t" and torn and not quoting:  # in many tables with tabs a quote is only a quote
        notes.append("its quotes don't pair up: read as part of the texts.")
        return _delimited(text, name, notes, csv.QUOTE_NONE)
    rule = f"A text with {sign!r} in it stands in double quotes, a quote in it is doubled"
    _refuse(name, (error, f"is no clear table: {error}. {rule}."))
    cells.index += 1
    return cells[1:].set_axis(cells.iloc[0], axis=1)[(cells[1:] != "").any(axis=1)]


def _places(frame: "pd.DataFrame", name: str, **wanted: str) -> dict[str, int]:
    """Where text and label stand: the columns that are named, else the only likely ones."""
    names, places = list(frame.columns), {}
    for role in sorted(wanted, key=lambda role: not wanted[role]):
        given = wanted[role]
        fits = [i for i, column in enumerate(names) if column == given]
        fits = fits if given else _likely(frame, role, *places.values())
        found = [names[i] for i in fits] or names
        near, listed = (
            files.did_you_mean(given or "", names),
            ", ".join(repr(n[:60]) for n in found),
        )
        how = f"{listed}. Name one with {role}_column."
        _refuse(
            name,
            (not fits and given, f"has no column {given!r}.{near} It has {listed}."),
            (not fits, f"has no column that is clearly the {role}. In its first row: {how}"),
            (names.count(found[0]) > 1, f"has several columns {found[0]!r}: rename all but one."),
            (len(fits) > 1, f"has several columns that could be the {role}: {how}"),
            (fits[:1] == [*places.values()], f"can't have {given!r} as both text and label."),
        )
        places[role] = fits[0]
    return places


def _likely(frame: "pd.DataFrame", role: str, *taken: int) -> list[int]:
    """The columns that could be the text or the label by their names, or else by their cells."""
    names = [column.casefold() for column in frame.columns]
    free = [i for i in range(len(names)) if i not in taken and not _INDEX.fullmatch(names[i])]
    named = [i for i in free if names[i] in NAMES[role].split()]
    return named or [i for i in free if _looks(frame.iloc[:, i], role)]


def _looks(column: "pd.Series", role: str) -> bool:
    """Long and mostly different: a text. Few different ones, none of them on top: a label."""
    seen = set() if any(map(_nested, column)) else {str(cell) for cell in column}
    if role == "label":
        return column.name not in seen and 2 <= len(seen) <= min(MOST_CLASSES, len(column) / 2)
    long = sum(len(cell.encode("utf-8", "replace")) for cell in seen) >= 12 * len(seen)
    return len(seen) > len(column) / 2 and long and not all(map(_NUMBER.fullmatch, seen))


def _nested(cell: object) -> bool:
    return hasattr(cell, "__len__") and not isinstance(cell, str)


def _strings(column: "pd.Series", name: str, notes: list[str]) -> list[str]:
    """The cells as text; a missing one is empty."""
    where = next((row for row, cell in column.items() if _nested(cell)), None)
    _refuse(name, (where, f"holds a list or record, not text, in {column.name!r}, row {where}."))
    cells = ["" if gone else cell for gone, cell in zip(column.isna(), column, strict=True)]
    kinds = sorted({type(cell).__name__ for cell in cells if cell != ""})
    if len(kinds) > 1:
        notes.append(f"the column {column.name!r} mixes {', '.join(kinds)}: all read as text.")
    return [str(cell).encode("utf-8", "replace").decode() for cell in cells]


def _tidy(label: str) -> str:
    """Without space around it, in NFC, and 1 for 1.0; empty where none is meant."""
    label = unicodedata.normalize("NFC", label.strip())
    whole = re.fullmatch(r"([+-]?[0-9]+)\.0+", label)
    return whole[1] if whole else "" if label.casefold() in MISSING else label


def _sifted(frame: "pd.DataFrame", name: str, places: dict[str, int], notes: list[str]) -> Table:
    """The rows that can be used, and the numbers of those that can't."""
    import datasets
    import pandas as pd

    texts, labels = (_strings(frame.iloc[:, places[role]], name, notes) for role in NAMES)
    tidy = {label: _tidy(label) for label in set(labels)}
    rows = {"text": [data.clean(text) for text in texts], "label": [tidy[n] for n in labels]}
    rows["print"] = [data.fingerprint(text) for text in rows["text"]]
    rows, dropped = pd.DataFrame(rows, frame.index, dtype=object), {}

    def drop(bad: "pd.Series", reason: str) -> "pd.DataFrame":
        dropped.update({reason: rows.index[bad].tolist()} if bad.any() else {})
        return rows[~bad]

    rows = drop(rows.text == "", "no text")
    rows = drop(rows.label == "", "no label (empty, NaN or null)")
    rows = drop(rows.duplicated(["print", "label"]), "the text and label of an earlier row")
    rows = drop(rows.duplicated("print", keep=False), "the same text with different labels")
    at, to = (frame.columns[places[role]] for role in NAMES)
    left = f"only {len(rows)} of {len(frame)} rows can be used"
    left += "".join(f"; {reason}: {len(where)}" for reason, where in dropped.items())
    rare = _rare(rows.label.value_counts(), f"{name}, column {to!r}", left)
    rows = drop(rows.label.isin(rare), f"labels on fewer than {MINIMUM} rows: {_some(rare)}")
    numbers = all(map(_NUMBER.fullmatch, set(rows.label)))
    names = sorted(set(rows.label), key=lambda label: (float(label) if numbers else 0, label))
    folded = collections.Counter(label.casefold() for label in names)
    if alike := [label for label in names if folded[label.casefold()] > 1]:
        notes.append(f"{_some(alike)} differ only in case, and are taken as different classes.")
    codes = rows.label.map({label: code for code, label in enumerate(names)})
    kept = datasets.Dataset.from_dict({"text": rows.text.tolist(), "label": codes.tolist()})
    return Table(kept, tuple(names), name, at, to, dropped, tuple(notes))


def _rare(sizes: "pd.Series", column: str, left: str) -> list[str]:
    """The labels on too few rows. Raises DataError where no two others are left."""
    rare, n_rows = sizes[sizes < MINIMUM].index.tolist(), sizes.sum()
    each = f"each label needs {MINIMUM} different texts (for training, validation and test)"
    like = "numbers to predict" if all(map(_NUMBER.fullmatch, sizes.index)) else "free text"
    most = min(MOST_CLASSES, n_rows // 2)
    _refuse(
        f"{column} (label_column names another):",
        (n_rows < 2 * MINIMUM, f"{left}. At least {2 * MINIMUM} are needed: {each}."),
        (len(sizes) == 1, f"all {n_rows} rows have one label, {_some([*sizes.index])}: add rows."),
        (len(sizes) > most, f"{len(sizes)} labels, at most {most} can be: {like}, not classes."),
        (len(sizes) - len(rare) < 2, f"{each}, but {_some(rare)} have fewer: add rows to them."),
    )
    return rare
