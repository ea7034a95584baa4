"""Retrieval: passages found again by the words they share and by what they mean (notebook 06)."""

import functools
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import filelock
import numpy as np
from numpy.typing import NDArray

from llmnb import files, models
from llmnb.applications import documents
from llmnb.applications.base import ApplicationError, checked
from llmnb.applications.bm25 import Bm25, identifiers
from llmnb.applications.documents import Passage
from llmnb.text import clean

ENCODER = "all-MiniLM-L6-v2"  # trained to bring question and passage together; plain BERT is not
INDEX_VERSION = 6  # counts up when passages are cut, read or stored in another way
MAX_PASSAGE_TOKENS = 256  # of a passage are embedded; what follows is only searched by words
FILES_PER_SAVE = 64  # embedded between two savings of the index


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: Passage
    fused: float  # the sum of 1 / (60 + rank) over both lists, and a third for identifiers


@dataclass(eq=False)  # compared by identity: arrays have no plain truth value
class _File:
    """What the index keeps of a file."""

    stat: list[int]  # size and times
    sha256: str
    note: str  # what was wrong with it
    passages: list[Passage]
    vectors: NDArray[np.float32] | None = None  # (passages, d_model); None: not embedded yet


class Index:
    """The passages of a folder, their vectors, and the words in them."""

    def __init__(self, encoder: str) -> None:
        """Empty; see `build`."""
        self.encoder = encoder
        self.embedded = 0  # files embedded at this start
        self.files: dict[str, _File] = {}
        self.skipped: list[tuple[str, str]] = []  # a file or a kind of them, and what is wrong

    @classmethod
    def build(
        cls, folder: str | Path, encoder: str = "", say: Callable[[str], None] = print
    ) -> Self:
        """The index of a folder, kept in the cache; only new and changed files are read.

        folder: that of the documents, or a single file. encoder: an asset, a folder or a Hub id.
        A killed build keeps the files that it finished.
        Raises ApplicationError for no folder or no text in it, AssetError for no encoder.
        """
        root = Path(folder).expanduser().resolve()
        if not root.exists():
            message = f"{str(folder)!r} is no folder and no file: name that of your documents."
            raise ApplicationError(message)
        index = cls(encoder or ENCODER)
        stats, index.skipped = documents.list_files(root)
        path = _index_path(root, index.encoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            index._update(path, root, stats, say)
        index.skipped += [(name, file.note) for name, file in index.files.items() if file.note]
        if not index.passages:
            reasons = "; ".join(map(": ".join, index.skipped[:9])) or "It is empty."
            kinds = ", ".join(documents.READERS)
            raise ApplicationError(f"{root} holds no text in {kinds}. {reasons}")
        return index

    def _update(self, path: Path, root: Path, stats: dict[str, list[int]], say) -> None:
        """Read and embed what has changed since the index was saved at path."""
        saved = _load(path, say)
        for name, file_stat in stats.items():
            try:
                path_of_file = root / name if root.is_dir() else root
                self.files[name] = _read_if_changed(path_of_file, name, file_stat, saved.get(name))
            except OSError as error:
                self.skipped.append((name, f"can't be read: {error.strerror}"))
        todo = [file for file in self.files.values() if file.vectors is None]
        self.embedded = sum(bool(file.passages) for file in todo)
        if self.embedded:
            say(f"Indexing {self.embedded:,} new or changed files of {len(stats):,}")
        for start in range(0, len(todo), FILES_PER_SAVE):
            batch = todo[start : start + FILES_PER_SAVE]
            vectors = self.embed([_index_text(p) for file in batch for p in file.passages])
            ends = np.cumsum([len(file.passages) for file in batch])
            for file, file_vectors in zip(batch, np.split(vectors, ends[:-1]), strict=True):
                file.vectors = file_vectors
            _save(path, self.files)
        if self.files != saved and not todo:  # a file was deleted, or only touched
            _save(path, self.files)

    @functools.cached_property
    def passages(self) -> list[Passage]:
        """All of them: the files by name, in each of them from top to bottom."""
        return [passage for file in self.files.values() for passage in file.passages]

    @functools.cached_property
    def vectors(self) -> NDArray[np.float32]:
        """(passages, d_model)"""
        return np.concatenate([file.vectors for file in self.files.values() if file.passages])

    @functools.cached_property
    def bm25(self) -> Bm25:
        """Over title, heading and text of the passages."""
        return Bm25([_index_text(passage) for passage in self.passages])

    @functools.cached_property
    def _model(self):
        return models.load_tokenizer(self.encoder), models.load_encoder(self.encoder)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Means of the encoder's last vectors, of length 1: (texts, d_model).

        Source: Reimers & Gurevych 2019, section 3.
        """
        if not texts:
            return np.zeros((0, 0), np.float32)
        from llmnb import embedding

        tokenizer, model = self._model
        encoded, _ = embedding.encode(tokenizer, texts, max_length=MAX_PASSAGE_TOKENS)
        means = embedding.mean_pooled(model, tokenizer, encoded).astype(np.float32)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def search(self, question: str, k: int = 3) -> list[Hit]:
        """The k passages that fit best, see `search_all`."""
        return self.search_all([question], k)[0]

    def search_all(self, questions: Sequence[str], k: int = 3) -> list[list[Hit]]:
        """For each question the k passages with the best ranks, by meaning and by words.

        Identifiers that the question has, such as 202400037, count once more.

        Source: Cormack et al. 2009 (reciprocal rank fusion, with their constant of 60).
        """
        if k < 1:
            raise ApplicationError(f"k is {k}; it is 1 or more.")
        if not checked(questions):
            return []
        cosines = (self.embed(questions) @ self.vectors.T).clip(0, 1)  # (questions, passages)
        bm25 = self.bm25.scores(questions)
        ranks = np.stack([_ranks(cosines), _ranks(bm25)], axis=-1)  # (questions, passages, 2)
        fused = (1 / (60 + ranks)).sum(axis=-1)
        for row, question in enumerate(questions):
            if exact_terms := identifiers(question):  # a third list
                scores = self.bm25.scores([" ".join(exact_terms)])
                fused[row] += 1 / (60 + _ranks(scores)[0])
        order = np.lexsort((-cosines, -fused))[:, :k]
        return [
            [Hit(self.passages[n], float(fused[row, n])) for n in best]
            for row, best in enumerate(order)
        ]


def _ranks(scores: NDArray) -> NDArray[np.int64]:
    """1 for the best of a row. Equal scores get the last of their ranks, so that a text without
    any of the words gains nothing.
    """
    from scipy.stats import rankdata

    return rankdata(-scores, method="max", axis=1).astype(int)


def _index_text(passage: Passage) -> str:
    """What is embedded and searched of a passage."""
    return f"{passage.title}: {passage.heading}\n{passage.text}"


def _index_path(root: Path, encoder: str) -> Path:
    """The index of a folder by an encoder: changed weights give another one."""
    model = models.locate(encoder)
    weights = sorted((file.name, file.stat().st_mtime_ns) for file in model.glob("*.safetensors"))
    key = repr((INDEX_VERSION, root, model, weights)).encode()
    return files.cache_dir() / "derived" / f"index-{hashlib.sha256(key).hexdigest()[:12]}.npz"


def _read_if_changed(path: Path, name: str, file_stat: list[int], saved: _File | None) -> _File:
    if saved and saved.stat == file_stat:
        return saved
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if saved and saved.sha256 == digest:
        return replace(saved, stat=file_stat)
    passages, note = documents.read(name, data)
    cleaned = [
        replace(p, title=clean(p.title), heading=clean(p.heading), text=clean(p.text))
        for p in passages
    ]
    return _File(file_stat, digest, note, cleaned)


def _save(path: Path, indexed: dict[str, _File]) -> None:
    """What is embedded, atomically: a killed build leaves the old index or this one."""
    embedded = {name: file for name, file in indexed.items() if file.vectors is not None}
    rows = {name: asdict(replace(file, vectors=None)) for name, file in embedded.items()}
    arrays = [np.frombuffer(json.dumps(rows).encode(), np.uint8)]
    arrays += [file.vectors for file in embedded.values()]
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *arrays)


def _load(path: Path, say) -> dict[str, _File]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows_as_bytes, *vectors = [archive[name] for name in archive.files]
        rows = json.loads(rows_as_bytes.tobytes())
        for row, file_vectors in zip(rows.values(), vectors, strict=True):
            row["passages"] = [Passage(**fields) for fields in row["passages"]]
            row["vectors"] = file_vectors
        return {name: _File(**row) for name, row in rows.items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        say(f"{path.name} in the cache is damaged ({error}): indexing everything again")
        return {}
