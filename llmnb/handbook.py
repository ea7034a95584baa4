"""The handbook: short texts on the series' subjects, and questions about them (notebooks 05, 06).

Both are data of this project, frozen by a test: a score on them can be compared across versions.
A third of the questions has no answer in the handbook; the right reply to those is none.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).parent / "resources"
FOLDER = RESOURCES / "handbook"

_PASSAGE = re.compile(r"^## (.+)\n\n(.+(?:\n.+)*)$", re.MULTILINE)  # one paragraph a heading


@dataclass(frozen=True)
class Passage:
    """One heading of a document, and the paragraph under it as a single line."""

    id: str  # file stem, #, slug of the heading: attention#why-the-scale
    title: str  # the document's
    heading: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the answers that are accepted, and the one passage that holds them."""

    id: str
    question: str
    answers: tuple[str, ...]  # the first one in the passage's own words; none: unanswerable
    evidence: str | None  # the passage's id

    @property
    def answerable(self) -> bool:
        """Whether the handbook holds the answer."""
        return self.evidence is not None


def resource(name: str) -> Any:
    """The content of resources/NAME.json: texts and questions written for this project."""
    return json.loads((RESOURCES / f"{name}.json").read_text(encoding="utf-8"))


def passages() -> list[Passage]:
    """All passages: the documents by name, in each of them from top to bottom."""
    result = []
    for file in sorted(FOLDER.glob("*.md")):
        first, _, body = file.read_text(encoding="utf-8").partition("\n")
        for heading, text in _PASSAGE.findall(body):
            slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
            title, text = first.removeprefix("# "), " ".join(text.split())
            result.append(Passage(f"{file.stem}#{slug}", title, heading, text))
    return result


def questions() -> list[Question]:
    """All questions in their fixed order, every third of them unanswerable."""
    rows = resource("questions")
    return [Question(**row | {"answers": tuple(row["answers"])}) for row in rows]
