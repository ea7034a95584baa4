"""The handbook is cut into passages, and its questions are read."""

import re

import pytest

from llmnb import handbook

PASSAGES = {passage.id: passage for passage in handbook.passages()}
FILES = sorted(handbook.FOLDER.glob("*.md"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_heading_and_paragraph_becomes_a_passage(file):
    text = file.read_text(encoding="utf-8")
    passages = [passage for id_, passage in PASSAGES.items() if id_.startswith(f"{file.stem}#")]
    expected = [f"# {passages[0].title}"]
    for passage in passages:
        expected += [f"## {passage.heading}", passage.text]
        assert re.fullmatch(r"[a-z_]+#[a-z0-9]+(-[a-z0-9]+)*", passage.id)
        assert 60 <= len(passage.text.split()) <= 130
    assert [" ".join(block.split()) for block in text.split("\n\n")] == expected
    assert 4 <= len(passages) <= 7


def test_a_third_of_the_questions_has_no_answer():
    questions = handbook.questions()
    assert len({q.question.lower() for q in questions}) == 84
    assert sum(q.answerable for q in questions) == 56
    for question in questions:
        assert question.answerable == bool(question.answers) == (question.evidence in PASSAGES)
