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
from llmnb.applications import Result, question_answering, sentiment, summarization, translation
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
            shown = f"{value.value:.3g}{ends}"
            rows.append({"task": task, "metric": metric, "profile": profile.name, "shown": shown})
            rows[-1] |= {name: round(number, 4) for name, number in vars(value).items()}
            print(f"{task:14} {metric:40} {shown}", flush=True)
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


def judged(profile: str, few: int) -> Iterator[Row]:
    """Sentiment: accuracy, and what the threshold does."""
    app = sentiment.SentimentAnalyzer.load(profile=profile, threshold=0.7)
    splits, _ = sentiment.reviews(profiles.resolve(profile))
    texts, labels = splits["test"]["text"][:few], np.array(splits["test"]["label"][:few])
    results, probabilities = app.batch(texts), app.probabilities(texts)
    right = probabilities.argmax(axis=1) == labels
    yield "accuracy", uncertainty.bootstrap(right)
    yield "majority's accuracy", uncertainty.bootstrap(labels == np.bincount(labels).argmax())
    sure = probabilities.max(axis=1) >= app.threshold
    yield f"answered, from {app.threshold} on", uncertainty.bootstrap(sure)
    yield "accuracy of the answered", uncertainty.bootstrap(right[sure])
    yield _speed(results)


def answered(profile: str, few: int) -> Iterator[Row]:
    """Questions: search, reading, declining (threshold from the first half), hostile documents."""
    app, book = question_answering.QuestionAnswerer.load(profile=profile), handbook.questions()
    known = [each for each in book if each.answerable][:few]
    asked = [each.question for each in known]
    found = app.index.search_all(asked, 5)
    ids = [[hit.passage.id.replace(".md#", "#") for hit in hits[:3]] for hits in found]
    hits = [each.evidence in own for each, own in zip(known, ids, strict=True)]
    yield "evidence in the first three", uncertainty.bootstrap(hits)
    ways = {"open book": app.read(asked, found), "closed book": app.closed_book(asked)}
    f1 = {}
    for name, results in ways.items():
        both = [(said.text, each.answers) for said, each in zip(results, known, strict=True)]
        f1[name] = [scores.token_f1(*pair) for pair in both]
        yield f"token F1, {name}", uncertainty.bootstrap(f1[name])
        exact = [scores.exact_match(*pair) for pair in both]
        yield f"exact match, {name}", uncertainty.bootstrap(exact)
    yield "gain in token F1", uncertainty.paired_bootstrap(*f1.values())[0]
    texts = [each.question for each in book]
    never = app.read(texts, app.index.search_all(texts, 5), threshold=2.0)  # only the scores
    sure, holds = (
        np.array([result.score for result in never]),
        np.array([q.answerable for q in book]),
    )
    tuning = np.arange(len(book)) % 2 == 0
    cut = question_answering.tune(sure[tuning], holds[tuning])
    for name, kind in {"unanswerable": ~holds, "answerable": holds}.items():
        yield f"declined, {name}, other half", uncertainty.bootstrap(sure[kind & ~tuning] < cut)
    documents = json.loads((handbook.RESOURCES / "hostile.json").read_text("utf-8"))[:few]
    table = question_answering.hostile_answers(app, documents)
    for name in ("bent", "right", "cited"):
        yield f"hostile documents: {name}", uncertainty.bootstrap(table[name].astype(float))
    yield _speed(app.batch(texts[:few]))


def translated(profile: str, few: int) -> Iterator[Row]:
    """Translation: chrF of each sentence, less that of the English itself."""
    rows = json.loads((handbook.RESOURCES / "translations.json").read_text("utf-8"))
    rows = rows["sentences"][:few]
    english = [row["en"] for row in rows]
    app = translation.Translator.load(profile=profile)
    for code, name in translation.LANGUAGES.items():
        results, wanted = app.to(code).batch(english), [row[code] for row in rows]
        texts = [result.text for result in results]
        ours, copied = _chrf(texts, wanted), _chrf(english, wanted)
        yield f"chrF, {name}", uncertainty.bootstrap(ours)
        yield f"chrF less the English's, {name}", uncertainty.paired_bootstrap(ours, copied)[0]
        warned = [float(bool(result.warnings)) for result in results]
        yield f"with a warning, {name}", uncertainty.bootstrap(warned)
    yield _speed(results)


def _chrf(texts: Sequence[str], wanted: Sequence[str]) -> list[float]:
    both = zip(texts, wanted, strict=True)
    return [CHRF().sentence_score(text, [person]).score for text, person in both]


def summarized(profile: str, few: int) -> Iterator[Row]:
    """Summaries: ROUGE-1 of the decoder and of two baselines."""
    rows = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))[:few]
    app = summarization.Summarizer.load(profile=profile)
    results = app.batch([row["text"] for row in rows])
    versions = {"decoder": [result.text or "." for result in results]}
    for name, baseline in {
        "lead-1": summarization.lead,
        "centroid": summarization.centroid,
    }.items():
        versions[name] = [baseline(row["text"]) for row in rows]
    f1 = {}
    for name, texts in versions.items():
        each = zip(texts, (row["summary"] for row in rows), strict=True)
        rouge = [scores.Rouge().compute(predictions=[a], references=[b]) for a, b in each]
        f1[name] = [row["rouge1"] for row in rouge]
        yield f"ROUGE-1, {name}", uncertainty.bootstrap(f1[name])
    for name in ("lead-1", "centroid"):
        less = uncertainty.paired_bootstrap(f1["decoder"], f1[name])[0]
        yield f"ROUGE-1, decoder less {name}", less
    yield _speed(results)


TASKS = {
    "sentiment": judged,
    "questions": answered,
    "translation": translated,
    "summarization": summarized,
}


if __name__ == "__main__":
    main()
