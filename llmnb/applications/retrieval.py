"""Retrieval: passages found again by the words they share and by what they mean (notebook 06)."""

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import filelock
import numpy as np
from numpy.typing import NDArray

from llmnb import files, models
from llmnb.applications import documents
from llmnb.applications.base import ApplicationError, checked
from llmnb.applications.documents import Passage
from llmnb.text import words

ENCODER = "all-MiniLM-L6-v2"  # trained to bring question and passage together; plain BERT is not
_FORMAT = 1  # of the index: counts up when passages are cut or read in another way
MAX_PASSAGE_TOKENS = 256  # of a passage are embedded; what follows is only searched by words
_TOGETHER = 64  # files embedded between two savings


@dataclass(frozen=True)
class Hit:
    """A passage that was found, and why."""

    passage: Passage
    score: float  # cosine of question and passage, 0 to 1
    words: float  # BM25's score, from 0 on
    fused: float  # the sum of 1 / (60 + rank) over both lists
    ranks: tuple[int, int]  # by meaning, by words


def stems(text: str) -> list[str]:
    """In lower case and cut to six letters: the crudest stemmer, "pretraining" is "pretrained"."""
    return [word[:6] for word in words(text)]


class Bm25:
    """How well texts match a question's words. Source: Robertson & Zaragoza 2009, section 3."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        """k1: how soon a word's repetition stops counting; b: how much long texts are held back."""
        from sklearn.feature_extraction.text import CountVectorizer

        self.counter = CountVectorizer(analyzer=stems)
        counts = self.counter.fit_transform(texts).astype(float)  # (texts, vocabulary), sparse
        (n, n_words), lengths = counts.shape, np.asarray(counts.sum(axis=1))[:, 0]
        spread = np.bincount(counts.indices, minlength=n_words)  # texts that hold the word
        self.idf = np.log1p((n - spread + 0.5) / (spread + 0.5))
        self.most = float(np.log1p((n + 0.5) / 0.5))  # of a word that stands nowhere
        long = k1 * (1 - b + b * np.repeat(lengths, np.diff(counts.indptr)) / lengths.mean())
        counts.data = self.idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + long)
        self.weights = counts

    def scores(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """(questions, texts), from 0 on; a word that a question repeats counts once."""
        asked = (self.counter.transform(questions) > 0).astype(float)
        return (asked @ self.weights.T).toarray()

    def share(self, question: str, text: str) -> float:
        """Which share of the question's words, weighed by their rarity, the text holds: 0 to 1."""
        known, asked = self.counter.vocabulary_, set(stems(question))
        rarity = {w: self.idf[known[w]] if w in known else self.most for w in asked}
        return sum(rarity[w] for w in asked & set(stems(text))) / (sum(rarity.values()) or 1)


@dataclass(eq=False)  # two are the same if they are one
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
        self.encoder, self.embedded = encoder, 0  # files embedded at this start
        self.files: dict[str, _File] = {}
        self.skipped: list[tuple[str, str]] = []  # a file or a kind of them, and what is wrong

    @classmethod
    def build(
        cls, folder: str | Path, encoder: str = "", say: Callable[[str], None] = print
    ) -> Self:
        """The index of a folder, kept in the cache; only new and changed files are read.

        encoder: an asset, a folder or a Hub id. A killed build keeps the files that it finished.
        Raises ApplicationError for no folder or no text in it, AssetError for no encoder.
        """
        root, index = Path(folder).expanduser().resolve(), cls(encoder or ENCODER)
        if not root.is_dir():
            raise ApplicationError(f"{str(folder)!r} is no folder: name the one of your documents.")
        listed, index.skipped = documents.listed(root)
        model = models.locate(index.encoder)
        weights = [(each.name, each.stat().st_mtime_ns) for each in model.glob("*.safetensors")]
        key = repr((_FORMAT, root, model, sorted(weights))).encode()
        store = files.cache_dir() / "derived" / f"index-{hashlib.sha256(key).hexdigest()[:12]}.npz"
        store.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{store}.lock"):
            index._update(store, root, listed, say)
        index.skipped += [(name, file.note) for name, file in index.files.items() if file.note]
        if not index.passages:
            kinds, why = ", ".join(documents.READERS), "; ".join(map(": ".join, index.skipped[:9]))
            raise ApplicationError(f"{root} holds no text in {kinds}. {why or 'It is empty.'}")
        return index

    def _update(self, store: Path, root: Path, listed: dict[str, list[int]], say) -> None:
        old = _load(store, say)
        for name, times in listed.items():
            try:
                self.files[name] = _current(root, name, times, old.get(name))
            except OSError as error:
                self.skipped.append((name, f"can't be read: {error.strerror}"))
        todo = [file for file in self.files.values() if file.vectors is None]
        self.embedded = sum(bool(file.passages) for file in todo)
        if self.embedded:
            say(f"Indexing {self.embedded:,} new or changed files of {len(listed):,}")
        for start in range(0, len(todo), _TOGETHER):
            some = todo[start : start + _TOGETHER]
            vectors = self.embed([_searched(p) for file in some for p in file.passages])
            ends = np.cumsum([len(file.passages) for file in some])[:-1]
            for file, part in zip(some, np.split(vectors, ends), strict=True):
                file.vectors = part
            _save(store, self.files)
        if self.files != old:  # deleted, or only touched
            _save(store, self.files)

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
        return Bm25([_searched(passage) for passage in self.passages])

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

        Source: Cormack et al. 2009 (reciprocal rank fusion, with their constant of 60).
        """
        if k < 1:
            raise ApplicationError(f"k is {k}; it is 1 or more.")
        if not checked(questions):
            return []
        near = (self.embed(questions) @ self.vectors.T).clip(0, 1)  # (questions, passages)
        shared = self.bm25.scores(questions)
        ranks = np.stack([_ranks(near), _ranks(shared)], axis=-1)  # (questions, passages, 2)
        fused = (1 / (60 + ranks)).sum(axis=-1)
        numbers = np.stack([near, shared, fused], axis=-1)
        found = []
        for row, best in enumerate(np.lexsort((-near, -fused))[:, :k]):
            facts = zip(best, numbers[row, best].tolist(), ranks[row, best].tolist(), strict=True)
            found.append([Hit(self.passages[at], *three, tuple(two)) for at, three, two in facts])
        return found


def _ranks(scores: NDArray) -> NDArray[np.int64]:
    """1 for the best of a row; equals share the last of their places: no word is no merit."""
    from scipy.stats import rankdata

    return rankdata(-scores, method="max", axis=1).astype(int)


def _searched(passage: Passage) -> str:
    return f"{passage.title}: {passage.heading}\n{passage.text}"


def _current(root: Path, name: str, times: list[int], old: _File | None) -> _File:
    """The file as it is kept, or read again where its bytes are others."""
    if old and old.stat == times:
        return old
    data = (root / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if old and old.sha256 == digest:
        return replace(old, stat=times)
    passages, note = documents.read(name, data)
    return _File(times, digest, note, passages)


def _save(store: Path, files: dict[str, _File]) -> None:
    """What is embedded, atomically: a killed build leaves the old index or this one."""
    done = {name: file for name, file in files.items() if file.vectors is not None}
    rows = [
        [name, file.stat, file.sha256, file.note, [[*vars(p).values()] for p in file.passages]]
        for name, file in done.items()
    ]
    parts = [file.vectors for file in done.values() if file.passages]
    temporary = store.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            files=np.frombuffer(json.dumps(rows).encode(), np.uint8),
            vectors=np.concatenate(parts) if parts else np.zeros((0, 0), np.float32),
        )
    os.replace(temporary, store)


def _load(store: Path, say) -> dict[str, _File]:
    if not store.exists():
        return {}
    try:
        with np.load(store, allow_pickle=False) as kept:
            rows, vectors = json.loads(kept["files"].tobytes()), kept["vectors"]
        files = {name: _File(*facts, [Passage(*p) for p in own]) for name, *facts, own in rows}
        counts = [len(file.passages) for file in files.values()]
        if sum(counts) != len(vectors):
            raise ValueError("vectors are missing")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        say(f"{store.name} in the cache is damaged ({error}): indexing everything again")
        return {}
    for file, end in zip(files.values(), np.cumsum(counts), strict=True):
        file.vectors = vectors[end - len(file.passages) : end]
    return files
