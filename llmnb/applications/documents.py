"""Documents: the texts of a folder, cut into passages by their structure (notebook 06)."""

import ast
import html.parser
import json
import os
import re
import stat
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmnb.text import split_sentences

MAX_PASSAGE_CHARACTERS = 1200  # about 200 words: what the encoder reads
MAX_FILE_BYTES = 10_000_000

_Paragraph = tuple[int, str]  # the number of its first line, from 1; its text
_Section = tuple[str, list[_Paragraph]]  # its heading, "" before the first one


@dataclass(frozen=True)
class Passage:
    """One heading of a document and what stands under it, or a part of that if it is long."""

    id: str  # the citation, unique in a folder: attention.md#why-the-scale, then …-scale-2
    file: str  # from the folder on, with /
    title: str  # the document's
    heading: str
    text: str
    line: int  # where it begins, from 1; of a notebook the cell


def chunks(file: str, contents: str) -> tuple[list[Passage], str]:
    """The passages of a document, and what was wrong with it, or "".

    .md and .html by headings, .py by functions and classes, .ipynb by headings and without its
    outputs, anything else by paragraphs. What doesn't parse is read as plain text.
    """
    stem, kind = os.path.splitext(os.path.basename(file))
    note = ""
    try:
        title, sections = READERS.get(kind.lower(), _plain)(contents)
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        note = f"read as plain text: it doesn't parse as {kind} ({type(error).__name__})"
        title, sections = _plain(contents)
    passages = []
    n_passages = Counter()  # of each slug
    for heading, paragraphs in sections:
        heading = heading or title or stem
        slug = re.sub(r"[\W_]+", "-", heading.lower()).strip("-")
        for line, text in _packed(paragraphs):
            n_passages[slug] += 1
            name = slug if n_passages[slug] == 1 else f"{slug}-{n_passages[slug]}"
            passages.append(Passage(f"{file}#{name}", file, title or stem, heading, text, line))
    return passages, note


def _packed(paragraphs: list[_Paragraph]) -> list[_Paragraph]:
    """Each passage's first line and text: as many paragraphs as fit. One without a word is none."""
    packed = [(1, "")]
    for line, paragraph in paragraphs:
        gap = "\n\n"
        for part in _parts(paragraph):
            start, passage = packed[-1]
            longer = f"{passage}{gap}{part}" if passage else part
            if passage and len(longer) > MAX_PASSAGE_CHARACTERS:
                packed.append((line, part))
            else:
                packed[-1] = (start if passage else line, longer)
            gap = " "
    return [(line, passage) for line, passage in packed if re.search(r"\w", passage)]


def _parts(paragraph: str) -> list[str]:
    """The paragraph if it fits into a passage, else its sentences, or the words of a long one."""
    if len(paragraph) <= MAX_PASSAGE_CHARACTERS:
        return [paragraph]
    parts = []
    for sentence in split_sentences(paragraph):
        fits = len(sentence) <= MAX_PASSAGE_CHARACTERS
        parts += [sentence] if fits else textwrap.wrap(sentence, MAX_PASSAGE_CHARACTERS)
    return parts


def _sections(lines: Sequence[str], headings: dict[int, str]) -> list[_Section]:
    """headings: of each line number, from 1, at which a section begins."""
    sections: list[tuple[str, list]] = [("", [])]
    starts_paragraph = True
    for number, line in enumerate(lines, 1):
        if number in headings:
            sections.append((headings[number], []))
        paragraphs = sections[-1][1]
        if line.strip():
            if starts_paragraph or not paragraphs:
                paragraphs.append((number, []))
            paragraphs[-1][1].append(line.rstrip())
        starts_paragraph = not line.strip()
    return [
        (heading, [(number, "\n".join(texts)) for number, texts in paragraphs])
        for heading, paragraphs in sections
    ]


def _plain(contents: str) -> tuple[str, list[_Section]]:
    return "", _sections(contents.split("\n"), {})


def _markdown(contents: str) -> tuple[str, list[_Section]]:
    lines = contents.split("\n")
    title, headings = "", {}
    is_code = False
    for number, line in enumerate(lines, 1):
        match = re.match(r"(#{1,6})\s+(.*?)[\s#]*$", line)
        if line.lstrip().startswith(("```", "~~~")):
            is_code = not is_code
        elif match and not is_code:
            headings[number] = match[2]
            lines[number - 1] = ""
            if match[1] == "#":
                title = title or match[2]
    return title, _sections(lines, headings)


def _notebook(contents: str) -> tuple[str, list[_Section]]:
    title, sections = "", [("", [])]
    for number, cell in enumerate(json.loads(contents)["cells"], 1):
        read_cell = _markdown if cell["cell_type"] == "markdown" else _plain
        cell_title, cell_sections = read_cell("".join(cell["source"]))
        title = title or cell_title
        for heading, paragraphs in cell_sections:
            if heading:
                sections.append((heading, []))
            sections[-1][1].extend((number, text) for _, text in paragraphs)
    return title, sections


def _python(contents: str) -> tuple[str, list[_Section]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of a user's strings
        headings = _definitions(ast.parse(contents).body)
    merged: dict[str, list[_Paragraph]] = {}  # what stands between two functions is the module's
    for heading, paragraphs in _sections(contents.split("\n"), headings):
        merged.setdefault(heading, []).extend(paragraphs)
    return "", list(merged.items())


def _definitions(nodes: list[ast.stmt], owner: str = "") -> dict[int, str]:
    """The name that each function or class gives to its first line, its owner's behind its last."""
    headings = {}
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{owner}.{node.name}".lstrip(".")
            headings[min(part.lineno for part in [node, *node.decorator_list])] = name
            if isinstance(node, ast.ClassDef):
                headings |= _definitions(node.body, name)
            headings[node.end_lineno + 1] = owner
    return headings


class _Page(html.parser.HTMLParser):
    """The text of a page by its headings; scripts and styles are dropped, nothing is run."""

    inline = re.compile(r"a|abbr|b|bdi|cite|code|em|i|kbd|label|mark|q|s|small|span|strong|su[bp]")

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.sections: list[_Section] = [("", [])]
        self.block = ""  # the tag of the one that is open
        self.text = ""
        self.line = 1  # where the text begins

    def handle_data(self, data: str) -> None:
        if self.block not in ("script", "style"):
            if not self.text.strip():
                self.line = self.getpos()[0] + data.count("\n") - data.lstrip().count("\n")
            self.text += data

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.handle_endtag(tag, next_block=tag)

    def handle_endtag(self, tag: str, next_block: str = "") -> None:
        if self.inline.fullmatch(tag):
            return
        text = " ".join(self.text.split())
        if text and self.block in ("title", "h1"):
            self.title = self.title or text
        if text and re.fullmatch("h[1-6]", self.block):
            self.sections.append((text, []))
        elif text and self.block != "title":
            self.sections[-1][1].append((self.line, text))
        self.text = ""
        self.block = next_block


def _html(contents: str) -> tuple[str, list[_Section]]:
    page = _Page()
    page.feed(contents + "<p>")  # the end of a text without tags
    page.close()
    return page.title, page.sections


READERS = {".md": _markdown, ".txt": _plain, ".ipynb": _notebook, ".py": _python, ".html": _html}


def list_files(root: Path) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """The files that can be read, with size and times; what is left out, and why."""
    files, skipped, other_kinds = {}, [], Counter()
    for folder, subfolders, names in os.walk(root):
        parent = Path(folder).relative_to(root)
        for name in list(subfolders):
            if name.startswith(".") or os.path.islink(f"{folder}/{name}"):
                skipped.append(((parent / name).as_posix(), "hidden, or a link: not entered"))
                subfolders.remove(name)
        subfolders.sort()
        for name in sorted(names):
            path = (parent / name).as_posix()
            kind = os.path.splitext(name)[1].lower()
            info = os.lstat(f"{folder}/{name}")
            if name.startswith(".") or kind not in READERS:
                other_kinds[f"*{kind or name}"] += 1
            elif not stat.S_ISREG(info.st_mode):
                skipped.append((path, "a link, or no file"))
            elif info.st_size == 0:
                skipped.append((path, "empty"))
            elif info.st_size > MAX_FILE_BYTES:
                skipped.append((path, f"{info.st_size / 1e6:,.0f} MB: too large"))
            else:
                files[path] = [info.st_size, info.st_mtime_ns, info.st_ctime_ns]
    skipped += [(kind, f"not read: {n:,} files") for kind, n in sorted(other_kinds.items())]
    return files, skipped


def read(name: str, data: bytes) -> tuple[list[Passage], str]:
    """As `chunks`, from a file's bytes."""
    text = data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        return [], "left out: binary, not text in UTF-8"
    passages, note = chunks(name, text)
    notes = [note] if note else []
    if "\ufffd" in text:
        notes.append("bytes that are no UTF-8 are shown as \ufffd")
    if not (passages or notes):
        notes.append("left out: there is no word in it")
    return passages, "; ".join(notes)
