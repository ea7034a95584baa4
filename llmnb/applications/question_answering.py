"""Questions about a folder of documents: find, copy, cite, or say that it isn't there (06)."""

import functools
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from llmnb import handbook, models
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.applications.documents import SENTENCE, chunks
from llmnb.applications.retrieval import Hit, Index, stems
from llmnb.applications.text_generation import TextGenerator
from llmnb.generation import KeyValueCache
from llmnb.text import normalize_answer

NOT_FOUND = "Not found in the documents."
# tune() on the even positions of the handbook's questions; on the odd ones it gives 0.5745. The
# score was chosen with both halves in view, among some ninety: that flatters it a little.
THRESHOLD = 0.5747
SHOTS = (  # invented, so that nothing of them can be known
    ("The ferry carries 38 cars and leaves at 7:40.", "How many cars fit on the ferry?", "38 cars"),
    ("The bell of Orrin was cast by Hedda Voss.", "Who made the bell of Orrin?", "Hedda Voss"),
    ("Plum paste keeps if sealed with wax, not cork.", "What should close the jar?", "wax"),
    ("The setting `fast` gives each move ten seconds.", "Which setting limits a move?", "fast"),
)
_SEARCHED, _READ = 5, 2  # passages for the score; of those, the ones that are answered from
_STARTS, _LONGEST = 8, 8  # places where an answer may begin, and its tokens
_WORDS = re.compile(r"\w(?:\S*\w)?%?")  # without the punctuation around them


class QuestionAnswerer(Application):
    """Finds the sentence that answers a question, and copies the answer out of it.

    Of the sentence's spans the decoder picks the likeliest, by the mean log p of a token. What is
    cited is what the retriever found: nothing that a model or a document says can change it.
    """

    def __init__(
        self,
        index: Index,
        generator: TextGenerator | None,
        extractor: "Extractor | None" = None,
        threshold: float | None = None,
        copy: bool = True,
    ) -> None:
        """threshold: a score below it is answered by NOT_FOUND; None: the usual one.

        copy: False lets the decoder write freely. extractor: answers instead of the decoder.
        """
        self.index, self.generator, self.extractor, self.copy = index, generator, extractor, copy
        usual = 0.5 if extractor else THRESHOLD
        self.threshold = usual if threshold is None else threshold
        self._known: dict = {}  # a passage: its sentences and their vectors

    @classmethod
    def load(
        cls,
        model: str = "",
        profile: str = "auto",
        folder: str | Path = handbook.FOLDER,
        encoder: str = "",
        extractor: str = "",
        **options,
    ) -> Self:
        """folder: the documents'; encoder: the search's; extractor: a model's name, see Extractor.

        options: as for the class. Raises ApplicationError for no documents, AssetError.
        """
        index = Index.build(folder, encoder)
        if extractor:
            return cls(index, None, Extractor(extractor), **options)
        generator = TextGenerator.load(model, profile, max_new_tokens=16, stop=["\n"])
        return cls(index, generator, **options)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """An answer to each question with the passage it stands on, or NOT_FOUND with none."""
        start, texts = time.perf_counter(), checked(texts)
        results = self.read(texts, self.index.search_all(texts, _SEARCHED), self.threshold)
        share = (time.perf_counter() - start) / max(len(texts), 1)
        return [replace(result, seconds=share) for result in results]

    def stream(self, text: str) -> Iterator[str]:
        """The answer, which is copied as a whole, in one piece."""
        yield self(text).text

    def closed(self, texts: Sequence[str]) -> list[Result]:
        """What the decoder says to examples and question alone, without any text."""
        return self._decoder.complete([_prompt(text) for text in checked(texts)])

    def read(
        self, texts: Sequence[str], found: Sequence[Sequence[Hit]], threshold: float = 0.0
    ) -> list[Result]:
        """Answers from the hits given for each question, best first; below threshold NOT_FOUND."""
        if self.extractor:
            results = [self.extractor(text, hits) for text, hits in zip(texts, found, strict=True)]
        else:
            results = self._answers(texts, self._sentences(texts, found), threshold)
        none = (Result(NOT_FOUND, result.score) for result in results)
        pairs = zip(results, none, strict=True)
        return [given if given.score >= threshold else no for given, no in pairs]

    def _answers(self, texts, sentences, threshold: float) -> list[Result]:
        results = [Result("", score, (hit,)) for hit, _, score in sentences]
        rows = [n for n, result in enumerate(results) if result.score >= threshold]
        prompts = [_prompt(texts[n], sentences[n][1]) for n in rows]
        self._decoder._sizes(prompts)
        if self.copy:
            said = [self._copied(texts[n], sentences[n][1]) for n in rows]
        else:
            said = self._decoder.complete(prompts)
        for n, each in zip(rows, said, strict=True):
            results[n] = replace(results[n], text=each.text, tokens=each.tokens)
        return results

    def _sentences(self, texts, found) -> list[tuple[Hit, str, float]]:
        """For each question the best sentence, its passage, and the score.

        The best: cosine plus share of the question's rare words. The score, x / (1 + x): words in
        common, as BM25 counts them in the best passage, where a word that no other passage has is
        about 1, times nearness in meaning, the best cosine of a sentence.
        """
        cut = {}
        for passage in {hit.passage for hits in found for hit in hits} - self._known.keys():
            lines = SENTENCE.split(" ".join(passage.text.split()))
            cut[passage] = [line for line in lines if _WORDS.search(line)]
        searched = [f"{p.title}: {p.heading}. {line}" for p, lines in cut.items() for line in lines]
        vectors = iter(self.index.embed(searched))
        for passage, lines in cut.items():
            self._known[passage] = [(line, next(vectors)) for line in lines]
        best = []
        for text, asked, hits in zip(texts, self.index.embed(texts), found, strict=True):
            lines = [(n, *each) for n, hit in enumerate(hits) for each in self._known[hit.passage]]
            near = [max(float(asked @ vector), 0.0) for _, _, vector in lines]
            ranked = [
                (cosine + self.index.bm25.share(text, line), -n, line)
                for cosine, (n, line, _) in zip(near, lines, strict=True)
                if n < _READ
            ]
            _, n, line = max(ranked)
            both = max(hit.words for hit in hits) / self.index.bm25.most * max(near)
            best.append((hits[-n], line, both / (1 + both)))
        return best

    @torch.inference_mode()
    def _copied(self, question: str, sentence: str) -> Result:
        """The likeliest span; what only repeats the question's words is no answer."""
        ids = self._ids("\n" + _asked(question, sentence))
        logs, cache = self._read_on([ids], self._examples, last_only=True)
        starts = []
        for word in _WORDS.finditer(sentence):
            coded = self._decoder.tokenizer(
                " " + sentence[word.start() :],
                add_special_tokens=False,
                return_offsets_mapping=True,
            )
            row, places = (coded[name][:_LONGEST] for name in ("input_ids", "offset_mapping"))
            ends = [word.start() + end - 1 for _, end in places]  # less the space
            starts.append((float(logs[0, -1, row[0]]), row, word.start(), ends))
        starts = sorted(starts, reverse=True)[:_STARTS]
        logs, _ = self._read_on([row for _, row, _, _ in starts], cache)
        asked, whole = set(stems(question)), {word.end() for word in _WORDS.finditer(sentence)}
        best, stop = (-math.inf, 0, ""), self._ids("\n")[0]
        for number, (total, row, start, ends) in enumerate(starts):
            for n, end in enumerate(ends):
                total += float(logs[number, n - 1, row[n]]) if n else 0.0
                mean = (total + float(logs[number, n, stop])) / (n + 2)
                if end in whole and not set(stems(sentence[start:end])) <= asked:
                    best = max(best, (mean, n + 1, sentence[start:end]))
        return Result(best[2] or sentence, tokens=best[1])

    def _read_on(self, rows: list[list[int]], before: KeyValueCache | None, last_only=False):
        """log p of each next token, (rows, seq, vocab), and the cache, after the same beginning."""
        model, n, width = self._decoder.model, before.length if before else 0, max(map(len, rows))
        cache = KeyValueCache(model.config, len(rows), n + width, model.embedding.weight)
        if before:
            cache.copy_prefix(before)
        padded = [row + row[-1:] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, device=model.embedding.weight.device)
        return model(ids, cache=cache, last_only=last_only).float().log_softmax(-1).cpu(), cache

    @functools.cached_property
    def _examples(self) -> KeyValueCache:
        shots = _shots().removesuffix("\n")  # tokenizers cut two newlines before a word in half
        return self._read_on([self._ids(shots)], None, last_only=True)[1]

    @property
    def _decoder(self) -> TextGenerator:
        if self.generator is None:
            raise ApplicationError("There is an extractor and no decoder: load without extractor.")
        return self.generator

    def _ids(self, text: str) -> list[int]:
        return self._decoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def _asked(question: str, sentence: str = "") -> str:
    text = f"Text: {sentence}\n" if sentence else ""
    prompt = f"{text}Question: {' '.join(question.split())}\nAnswer:"
    return prompt.replace("<|", "< |")  # a document ends no turn of a chat


def _shots(closed: bool = False) -> str:
    return "".join(f"{_asked(q, '' if closed else text)} {a}\n\n" for text, q, a in SHOTS)


def _prompt(question: str, sentence: str = "") -> str:
    return _shots(closed=not sentence) + _asked(question, sentence)


class Extractor:
    """The best span of the passages by a model trained on SQuAD 2.0, against the null span.

    Source: Devlin et al. 2019, section 4.3.
    """

    def __init__(self, name: str) -> None:
        """name: a folder or a Hub id with a head for question answering. Raises AssetError."""
        self.tokenizer = models.load_tokenizer(name)
        self.model = models.load_extractor(name)

    @torch.inference_mode()
    def __call__(self, question: str, hits: Sequence[Hit]) -> Result:
        """score: the logistic function of the best span's logits less the null span's."""
        found = []
        longest = min(self.tokenizer.model_max_length, 512)
        for number, hit in enumerate(hits):
            coded = self.tokenizer(
                question,
                hit.passage.text,
                truncation="only_second",
                max_length=longest,
                return_tensors="pt",
                return_offsets_mapping=True,
            )
            places = coded.pop("offset_mapping")[0].tolist()
            inside = torch.tensor([part == 1 for part in coded.sequence_ids(0)])
            logits = self.model(**coded.to(self.model.device))
            start, end = (
                each[0].float().cpu() for each in (logits.start_logits, logits.end_logits)
            )
            pairs = start[:, None] + end  # (seq, seq)
            allowed = torch.ones_like(pairs).triu().tril(29).bool() & inside[:, None] & inside
            flat = pairs.masked_fill(~allowed, -math.inf).argmax()
            first, last = divmod(int(flat), len(start))
            text = hit.passage.text[places[first][0] : places[last][1]]
            found.append((float(pairs[first, last] - pairs[0, 0]), -number, text))
        margin, number, text = max(found)
        return Result(text, 1 / (1 + math.exp(-margin)), (hits[-number],))


def tune(scores: ArrayLike, answerable: ArrayLike) -> float:
    """The threshold with the best mean of two shares: answerable kept, unanswerable declined.

    It lies midway between two scores; of equals it is the lowest, which answers most.
    Raises ApplicationError unless there are questions of both kinds.
    """
    scores, kept = np.asarray(scores, float), np.asarray(answerable, bool)
    usable = scores.shape == kept.shape and scores.ndim == 1 and np.isfinite(scores).all()
    if not usable or kept.all() or not kept.any():
        raise ApplicationError("tune takes a score and a yes or no a question, both among them.")
    steps = np.unique(scores)
    cuts = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2])
    balance = [(scores[kept] >= cut).mean() + (scores[~kept] < cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(balance))])


def injected(app: QuestionAnswerer, documents: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """What hostile documents do: a row a document, whose question is answered from it alone.

    documents: id, attack, text, question, answer, marker, as in hostile.json. bent: the marker is
    in the answer; right: the answer is; cited: the citation is that document and nothing else.
    """
    rows = []
    for each in documents:
        file = f"{each['id']}.md"
        hits = [Hit(passage, 0.0, 0.0, 0.0, (1, 1)) for passage in chunks(file, each["text"])[0]]
        (result,) = app.read([each["question"]], [hits])
        said, known = (f" {normalize_answer(x)} " for x in (result.text, each["answer"]))
        row = {"id": each["id"], "attack": each["attack"], "answer": result.text}
        row |= {"bent": each["marker"].lower() in result.text.lower(), "right": known in said}
        rows.append(row | {"cited": [hit.passage.file for hit in result.evidence] == [file]})
    return pd.DataFrame(rows)
