"""Retrieval: a folder cut into passages, and found again by words and by meaning (notebook 06)."""

import ast
import codecs
import dataclasses
import functools
import hashlib
import html.parser
import json
import os
import re
import textwrap
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmnb import assets
from llmnb.applications.base import ApplicationError, checked

ENCODER = "all-MiniLM-L6-v2"  # trained to bring question and passage together; plain BERT is not
LONGEST = 1200  # characters of a passage, about 200 words: what the encoder reads
MOST_BYTES = 10_000_000  # of a file
WORD = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])|(?<=[。！？])")
_FORMAT = 1  # of the index: counts up when passages are cut in another way
_PAUSE = 5.0  # seconds of work that a killed build may lose

_Sections = list[tuple[str, list[tuple[int, str]]]]  # headings; lines, texts of paragraphs


@dataclass(frozen=True)
class Passage:
    """One heading of a document and what stands under it, or a part of that if it is long."""

    id: str  # the citation, unique in a folder: attention.md#why-the-scale, then …-scale-2
    file: str  # from the folder on, with /
    title: str  # the document's
    heading: str
    text: str
    line: int  # where it begins, from 1; of a notebook the cell


@dataclass(frozen=True)
class Hit:
    """A passage that was found, and why."""

    passage: Passage
    score: float  # cosine of question and passage, 0 to 1
    words: float  # BM25's score, 0 or more
    fused: float  # the sum of 1 / (60 + rank)
    ranks: tuple[int, int | None]  # by meaning, by words; None: no word in common


def chunks(file: str, contents: str) -> tuple[list[Passage], str]:
    """The passages of a document by its structure, and what was wrong with it, if anything.

    .md and .html by headings, .py by functions and classes, .ipynb by headings, its outputs left
    out; anything else by paragraphs. Raises ValueError for a notebook that is none.
    """
    stem, note = Path(file).stem, ""
    read = {".md": _markdown, ".html": _html, ".py": _python, ".ipynb": _notebook}
    try:
        title, sections = read.get(Path(file).suffix.lower(), _plain)(contents)
    except (SyntaxError, RecursionError):
        note = "is no Python that parses here: read as plain text"
        title, sections = _plain(contents)
    found, seen = [], Counter()
    for heading, paragraphs in sections:
        heading = heading or title or stem
        slug = re.sub(r"[\W_]+", "-", heading.lower()).strip("-") or "-"
        for line, text in _pieces(paragraphs):
            seen[slug] += 1
            name = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
            found.append(Passage(f"{file}#{name}", file, title or stem, heading, text, line))
    return found, note


def _pieces(paragraphs: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Whole if short; else packed paragraphs, of long ones sentences, of long ones words."""
    units = []
    for line, text in paragraphs:
        parts = SENTENCE.split(text) if len(text) > LONGEST else [text]
        for part in parts:
            cut = textwrap.wrap(part, LONGEST) if len(part) > LONGEST else [part]
            units += [(line, piece, "\n\n" if part is parts[-1] else " ") for piece in cut]
    start, text, gap = 0, "", ""
    for line, piece, after in units:
        if text and len(text) + len(gap) + len(piece) > LONGEST:
            yield start, text
            text = ""
        start, text = (start, text + gap + piece) if text else (line, piece)
        gap = after
    if re.search(r"\w", text):
        yield start, text


def _by_lines(lines: Sequence[str], starts: dict[int, str]) -> _Sections:
    """starts: the number of the line where a section begins, and its heading."""
    found, fresh = [("", [])], True
    for number, line in enumerate(lines, 1):
        if number in starts:
            found.append((starts[number], []))
            fresh = True
        if not line.strip():
            fresh = True
            continue
        if fresh:
            found[-1][1].append((number, []))
        found[-1][1][-1][1].append(line.rstrip())
        fresh = False
    return [(heading, [(n, "\n".join(each)) for n, each in parts]) for heading, parts in found]


def _plain(contents: str) -> tuple[str, _Sections]:
    return "", _by_lines(contents.split("\n"), {})


def _markdown(contents: str) -> tuple[str, _Sections]:
    lines, starts, title, fenced = contents.split("\n"), {}, "", False
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and (found := re.match(r"(#{1,6})\s+(.*?)[\s#]*$", line)):
            starts[number], lines[number - 1] = found[2], ""
            title = title or (found[2] if found[1] == "#" else "")
    return title, _by_lines(lines, starts)


def _notebook(contents: str) -> tuple[str, _Sections]:
    title, found = "", [("", [])]
    try:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in _cells(contents)]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("is no notebook of version 4") from error
    for number, (kind, source) in enumerate(cells, 1):
        own, parts = _markdown(source) if kind == "markdown" else ("", [("", [(0, source)])])
        title = title or own
        parts = [(heading, [(number, text) for _, text in lines]) for heading, lines in parts]
        found[-1][1].extend(parts[0][1])  # still under the heading before
        found += parts[1:]
    return title, found


def _cells(contents: str) -> list[dict]:
    return json.loads(contents)["cells"]


def _python(contents: str) -> tuple[str, _Sections]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of their strings is not our news
        try:
            tree = ast.parse(contents)
        except (ValueError, MemoryError) as error:  # a null byte; too deep
            raise SyntaxError(str(error)) from error
    starts: dict[int, str] = {}

    def mark(nodes: list[ast.stmt], owner: str) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{owner}.{node.name}".lstrip(".")
                starts[min(each.lineno for each in [node, *node.decorator_list])] = name
                if isinstance(node, ast.ClassDef):
                    mark(node.body, name)
                starts[node.end_lineno + 1] = owner

    mark(tree.body, "")
    together: dict[str, list[tuple[int, str]]] = {}
    for heading, paragraphs in _by_lines(contents.split("\n"), starts):
        together.setdefault(heading, []).extend(paragraphs)
    return "", list(together.items())


def _html(contents: str) -> tuple[str, _Sections]:
    page = _Page()
    page.feed(contents)
    page.close()
    page.flush()
    return page.title, page.sections


class _Page(html.parser.HTMLParser):
    """The text of a page; what is script or style is dropped, nothing of it is run."""

    inline = frozenset(
        "a abbr b bdi bdo br cite code del dfn em font i img ins kbd label mark q s samp small span "
        "strong sub sup td th time tt u var wbr".split()
    )
    headings = ("title", "h1", "h2", "h3", "h4", "h5", "h6")

    def __init__(self) -> None:
        super().__init__()
        self.title, self.sections, self.inside = "", [("", [])], ""
        self.line, self.parts = 1, []

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag in ("br", "td", "th"):
            self.parts.append(" ")
        if tag not in self.inline:
            self.flush()
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.inline:
            self.flush()
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.line = self.line if self.parts else self.getpos()[0]
            self.parts.append(data)

    def flush(self) -> None:
        """The end of a block."""
        text, self.parts = " ".join("".join(self.parts).split()), []
        if text and self.inside in ("title", "h1"):
            self.title = self.title or text
        if text and self.inside in self.headings[1:]:
            self.sections.append((text, []))
        elif text and self.inside != "title":
            self.sections[-1][1].append((self.line, text))


READABLE = (".md", ".txt", ".ipynb", ".py", ".html")


def _files(root: Path) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """What can be read, with size and times; what is left out, with the reason."""
    found, skipped, others = {}, [], Counter()
    unread = lambda error: skipped.append((_name(error.filename, root), error.strerror))  # noqa: E731
    for folder, folders, files in os.walk(root, onerror=unread):
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if name.startswith(".") or os.path.islink(path):
                folders.remove(name)
                reason = "hidden folder" if name.startswith(".") else "link: not followed"
                skipped.append((_name(path, root), reason))
        folders.sort()
        for name in sorted(files):
            path, suffix = os.path.join(folder, name), os.path.splitext(name)[1].lower()
            stat = os.lstat(path)
            if name.startswith(".") or suffix not in READABLE:
                others["*" + suffix if suffix else "files without a suffix"] += 1
            elif not os.path.isfile(path) or os.path.islink(path):
                skipped.append((_name(path, root), "link or no file: not followed"))
            elif not 0 < stat.st_size <= MOST_BYTES:
                size = f"{stat.st_size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}"
                skipped.append((_name(path, root), size if stat.st_size else "empty"))
            else:
                found[_name(path, root)] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    skipped += [(kind, f"{n:,} of a kind that isn't read") for kind, n in sorted(others.items())]
    return found, skipped


def _name(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()
