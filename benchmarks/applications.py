"""The applications on their whole test sets, and requests answered together against one by one.

Rows are kept by profile: a run on a GPU (LLMNB_PROFILE=gpu) adds its column to the stored file and
leaves the others. --quick takes a few items of each test set.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
from _common import finish, options, pairs, summary
from sacrebleu.metrics import CHRF

from llmnb import handbook, profiles
from llmnb.applications import (
    Result,
    injection,
    question_answering,
    sentiment,
    summarization,
    translation,
)
from llmnb.applications.text_generation import TextGenerator
from llmnb.evaluation import scores, uncertainty
from llmnb.record import benchmark

Row = tuple[str, uncertainty.Interval]
PROMPTS = [f"Write one sentence about the number {number}." for number in range(16)]


def main() -> None:
    """Measure every application, print a table, and write it with that of the other profiles."""
    chosen = options(__doc__)
    profile, few = profiles.resolve(), 8 if chosen.quick else 1000
    rows = []
    for task, measure in TASKS.items():
        for metric, value in measure(profile.name, few):
            ends = f" [{value.low:.3g}, {value.high:.3g}]" if value.low < value.high else ""
            text = f"{value.value:.3g}{ends}"
            rows.append({"task": task, "metric": metric, "profile": profile.name, "shown": text})
            rows[-1] |= {name: round(number, 4) for name, number in vars(value).items()}
            print(f"{task:14} {metric:40} {text}", flush=True)
    with contextlib.suppress(FileNotFoundError):  # the first profile that is run
        rows += [row for row in benchmark("applications")["rows"] if row["profile"] != profile.name]
    writer = TextGenerator.load(profile=profile.name, max_new_tokens=16)
    timed = pairs(
        lambda: writer.batch(PROMPTS),
        lambda: [writer(prompt) for prompt in PROMPTS],
        3 if chosen.quick else 7,
    )
    rows.sort(key=lambda row: (list(TASKS).index(row["task"]), row["profile"]))
    finish(summary("applications", timed, 0.5, rows), chosen.json)


def _speed(results: Sequence[Result]) -> Row:
    """Seconds a text, all computed together: one measurement, so no interval."""
    mean = float(np.mean([result.seconds for result in results]))
    return "seconds a text", uncertainty.Interval(mean, mean, mean)


def measure_sentiment(profile: str, few: int) -> Iterator[Row]:
    """Accuracy, and what the threshold does."""
    app = sentiment.SentimentAnalyzer.load(profile=profile, threshold=0.7)
    splits, _ = sentiment.reviews(profiles.resolve(profile))
    texts, labels = splits["test"]["text"][:few], np.array(splits["test"]["label"][:few])
    results, probabilities = app.batch(texts), app.probabilities(texts)
    is_right = probabilities.argmax(axis=1) == labels
    yield "accuracy", uncertainty.bootstrap(is_right)
    yield "majority's accuracy", uncertainty.bootstrap(labels == np.bincount(labels).argmax())
    is_sure = probabilities.max(axis=1) >= app.threshold
    yield f"answered, from {app.threshold} on", uncertainty.bootstrap(is_sure)
    if is_sure.sum() > 1:
        yield "accuracy of the answered", uncertainty.bootstrap(is_right[is_sure])
    yield _speed(results)


def measure_questions(profile: str, few: int) -> Iterator[Row]:
    """Search, reading, declining, hostile documents."""
    app = question_answering.QuestionAnswerer.load(profile=profile)
    book = handbook.questions()
    answerable = [question for question in book if question.answerable][:few]
    texts = [question.question for question in answerable]
    hits = app.index.search_all(texts, 5)
    is_hit = []
    for question, ranking in zip(answerable, hits, strict=True):
        ids = [hit.passage.id.replace(".md#", "#") for hit in ranking[:3]]
        is_hit.append(question.evidence in ids)
    yield "evidence in the first three", uncertainty.bootstrap(is_hit)
    f1 = {}
    ways = {"copied": app.read(texts, hits), "closed book": app.closed_book(texts)}
    for name, results in ways.items():
        pairs = [(r.text, q.answers) for r, q in zip(results, answerable, strict=True)]
        f1[name] = [scores.token_f1(*pair) for pair in pairs]
        yield f"token F1, {name}", uncertainty.bootstrap(f1[name])
        exact = [scores.exact_match(*pair) for pair in pairs]
        yield f"exact match, {name}", uncertainty.bootstrap(exact)
    excerpts = [
        scores.contains_answer(result.excerpt, question.answers)
        for result, question in zip(ways["copied"], answerable, strict=True)
    ]
    yield "an accepted answer in the excerpt", uncertainty.bootstrap(excerpts)
    gain, _ = uncertainty.paired_bootstrap(f1["copied"], f1["closed book"])
    yield "gain in token F1", gain
    texts = [question.question for question in book]
    unread = app.read(texts, app.index.search_all(texts, 5), threshold=2.0)  # only the scores
    confidence = np.array([result.score for result in unread])
    is_answerable = np.array([question.answerable for question in book])
    for name, kind in {"unanswerable": ~is_answerable, "answerable": is_answerable}.items():
        yield f"declined, {name}", uncertainty.bootstrap(confidence[kind] < app.threshold)
    documents = json.loads((handbook.RESOURCES / "hostile.json").read_text("utf-8"))[:few]
    for app.copy, way in ((False, "written"), (True, "copied")):  # it stays True afterwards
        table = injection.hostile_answers(app, documents)
        bent = table["bent"][table["order_read"].astype(bool)]
        label = f"hostile documents, {way}: bent, of those whose order is read"
        yield label, uncertainty.bootstrap(bent)
        yield f"hostile documents, {way}: right", uncertainty.bootstrap(table["right"])
        difference, _ = uncertainty.paired_bootstrap(table["right"], table["right_clean"])
        yield f"hostile documents, {way}: right, less that of the clean twins", difference
    yield _speed(app.batch(texts[:few]))


def measure_translation(profile: str, few: int) -> Iterator[Row]:
    """chrF of each sentence, less that of the English itself."""
    rows = json.loads((handbook.RESOURCES / "translations.json").read_text("utf-8"))
    rows = rows["sentences"][:few]
    english = [row["en"] for row in rows]
    app = translation.Translator.load(profile=profile)
    for code, name in translation.LANGUAGES.items():
        results = app.to(code).batch(english)
        references = [row[code] for row in rows]
        ours = _chrf([result.text for result in results], references)
        copied = _chrf(english, references)
        yield f"chrF, {name}", uncertainty.bootstrap(ours)
        yield f"chrF less the English's, {name}", uncertainty.paired_bootstrap(ours, copied)[0]
        has_warning = [float(bool(result.warnings)) for result in results]
        yield f"with a warning, {name}", uncertainty.bootstrap(has_warning)
    yield _speed(results)


def _chrf(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    pairs = zip(texts, references, strict=True)
    return [CHRF().sentence_score(text, [reference]).score for text, reference in pairs]


def measure_summaries(profile: str, few: int) -> Iterator[Row]:
    """ROUGE-1 of the decoder and of two baselines."""
    rows = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))[:few]
    texts = [row["text"] for row in rows]
    results = summarization.Summarizer.load(profile=profile).batch(texts)
    versions = {
        "decoder": [result.text or "." for result in results],
        "lead-1": list(map(summarization.lead, texts)),
        "centroid": list(map(summarization.centroid, texts)),
    }
    f1 = {}
    for name, summaries in versions.items():
        f1[name] = []
        for summary_text, row in zip(summaries, rows, strict=True):
            rouge = scores.rouge([summary_text], [row["summary"]])
            f1[name].append(rouge["rouge1"])
        yield f"ROUGE-1, {name}", uncertainty.bootstrap(f1[name])
    for name in ("lead-1", "centroid"):
        difference, _ = uncertainty.paired_bootstrap(f1["decoder"], f1[name])
        yield f"ROUGE-1, decoder less {name}", difference
    yield _speed(results)


TASKS = {
    "sentiment": measure_sentiment,
    "questions": measure_questions,
    "translation": measure_translation,
    "summarization": measure_summaries,
}


if __name__ == "__main__":
    main()
