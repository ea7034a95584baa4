"""The handbook and its questions: what scores on them rest on."""

import hashlib
import re
import string
from collections import Counter

import pytest

from llmnb import handbook

PASSAGES = {passage.id: passage for passage in handbook.passages()}
QUESTIONS = handbook.questions()
ANSWERABLE = [question for question in QUESTIONS if question.answerable]
FILES = [*sorted(handbook.FOLDER.glob("*.md")), handbook.RESOURCES / "questions.json"]


def is_in(answer: str, text: str) -> bool:
    """As whole words, without regard to case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def test_the_text_is_frozen():
    """Scores on it are compared across versions: to change it is a decision, made here as well."""
    lines = [f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
    assert digest[:16] == "e2cc0e0ae2712f58"


@pytest.mark.parametrize("file", FILES[:-1], ids=lambda file: file.stem)
def test_every_heading_and_paragraph_becomes_a_passage(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s\"'`(])(/[a-z]+/|~/|[A-Z]:\\)", text), "an absolute path"
    passages = [passage for id_, passage in PASSAGES.items() if id_.startswith(f"{file.stem}#")]
    expected = [f"# {passages[0].title}"]
    for passage in passages:
        expected += [f"## {passage.heading}", passage.text]
        assert re.fullmatch(r"[a-z_]+#[a-z0-9]+(-[a-z0-9]+)*", passage.id)
        assert 60 <= len(passage.text.split()) <= 130
    assert [" ".join(block.split()) for block in text.split("\n\n")] == expected
    assert 4 <= len(passages) <= 7


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question.id)
def test_the_first_answer_stands_in_its_passage_and_not_in_the_question(question):
    first = question.answers[0]
    assert is_in(first, PASSAGES[question.evidence].text) and not is_in(first, question.question)
    assert 1 <= len(set(question.answers)) == len(question.answers) <= 4
    bare = str.maketrans("", "", string.punctuation)  # as text.normalize_answer sees it
    assert all(1 <= len(answer.translate(bare).split()) <= 6 for answer in question.answers)


def test_a_third_of_the_questions_has_no_answer():
    assert len({q.question.lower() for q in QUESTIONS}) == 84 and len(ANSWERABLE) == 56
    for question in QUESTIONS:
        assert question.answerable == bool(question.answers) == (question.evidence in PASSAGES)


def test_the_questions_are_spread_over_the_handbook_and_any_stretch_is_a_sample():
    assert max(Counter(q.evidence for q in ANSWERABLE).values()) <= 3
    documents = [q.evidence.partition("#")[0] for q in ANSWERABLE]
    assert set(documents) == {file.stem for file in FILES[:-1]} == set(documents[:14])
    assert min(Counter(documents).values()) >= 3
    kinds = [q.answerable for q in QUESTIONS]
    assert all(3 <= sum(kinds[start : start + 6]) <= 5 for start in range(len(kinds) - 5))
