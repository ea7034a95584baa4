"""The handbook and its questions: what scores on them rest on."""

import hashlib
import re
import string
from collections import Counter

import pytest

from llmnb import handbook

PASSAGES = handbook.passages()
QUESTIONS = handbook.questions()
BY_ID = {passage.id: passage for passage in PASSAGES}
ANSWERABLE = [question for question in QUESTIONS if question.answerable]
OTHERS = [question for question in QUESTIONS if not question.answerable]
FILES = [*sorted(handbook.FOLDER.glob("*.md")), handbook.RESOURCES / "questions.json"]


def stands_in(answer: str, text: str) -> bool:
    """As whole words, without regard to case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def test_there_is_as_much_as_is_promised():
    per_document = Counter(passage.id.partition("#")[0] for passage in PASSAGES)
    assert len(per_document) == 14 and set(per_document.values()) <= {4, 5, 6, 7}
    assert len(ANSWERABLE) == 56 and len(OTHERS) == 28, "the handbook says: a third has no answer"


def test_the_text_is_frozen():
    """Scores on it are compared across versions: to change it is a decision, made here as well."""
    lines = [f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
    assert digest[:16] == "e2cc0e0ae2712f58"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_heading_and_paragraph_becomes_a_passage(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s\"'`(])(/[a-z]+/|~/|[A-Z]:\\)", text), "an absolute path"
    if file.suffix == ".md":
        own = [passage for passage in PASSAGES if passage.id.startswith(f"{file.stem}#")]
        rebuilt = [f"# {own[0].title}", *(p for o in own for p in (f"## {o.heading}", o.text))]
        assert [" ".join(block.split()) for block in text.split("\n\n")] == rebuilt


@pytest.mark.parametrize("passage", PASSAGES, ids=lambda passage: passage.id)
def test_a_passage_is_one_paragraph_of_a_good_length(passage):
    assert re.fullmatch(r"[a-z_]+#[a-z0-9]+(-[a-z0-9]+)*", passage.id)
    assert 60 <= len(passage.text.split()) <= 130
    assert "!" not in passage.text and not passage.text.startswith(("-", "*", "#", "|"))


def test_no_id_and_no_question_is_there_twice():
    assert len(BY_ID) == len(PASSAGES)
    assert len({" ".join(q.question.lower().split()) for q in QUESTIONS}) == len(QUESTIONS)
    assert [q.id for q in QUESTIONS] == [f"q{n:02d}" for n in range(1, len(QUESTIONS) + 1)]


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question.id)
def test_the_first_answer_stands_in_its_passage(question):
    assert stands_in(question.answers[0], BY_ID[question.evidence].text)
    assert 1 <= len(question.answers) <= 4 and len(set(question.answers)) == len(question.answers)
    assert all(1 <= len(answer.split()) <= 6 for answer in question.answers)
    bare = str.maketrans("", "", string.punctuation)  # as scores.normalize_answer sees it
    assert all(each.translate(bare) for each in question.answers), "silence would be right"
    first = question.answers[0]
    assert not stands_in(first, question.question), "a question must not give its answer away"


def test_one_that_has_no_answer_names_none():
    assert all(question.answers == () and question.evidence is None for question in OTHERS)


def test_the_questions_are_spread_over_the_handbook():
    evidence = Counter(question.evidence for question in ANSWERABLE)
    assert max(evidence.values()) <= 3
    documents = Counter(question.evidence.partition("#")[0] for question in ANSWERABLE)
    assert set(documents) == {passage.id.partition("#")[0] for passage in PASSAGES}
    assert min(documents.values()) >= 3


def test_both_kinds_are_mixed_so_that_any_stretch_is_a_sample():
    kinds = [question.answerable for question in QUESTIONS]
    assert all(3 <= sum(kinds[start : start + 6]) <= 5 for start in range(len(kinds) - 5))
    first = [question.evidence.partition("#")[0] for question in ANSWERABLE[:14]]
    assert len(set(first)) == 14, "the first fourteen ask about every document once"


def test_each_is_a_question_in_one_line():
    assert all(re.fullmatch(r"[^\n?!]{10,160}\?", question.question) for question in QUESTIONS)
