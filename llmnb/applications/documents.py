"""Documents: the texts of a folder, cut into passages by their structure (notebook 06)."""

import ast
import html.parser
import itertools
import json
import os
import re
import stat
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 1200  # characters of a passage, about 200 words: what the encoder reads
MOST_BYTES = 10_000_000  # of a file
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])|(?<=[。！？])")  # where one ends

_Sections = list[tuple[str, list[tuple[int, str]]]]  # headings; lines and texts of the paragraphs


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
    stem, kind, note = Path(file).stem, Path(file).suffix.lower(), ""
    try:
        title, sections = READERS.get(kind, _plain)(contents)
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        note = f"read as plain text: it doesn't parse as {kind} ({type(error).__name__})"
        title, sections = _plain(contents)
    found, seen = [], Counter()
    for heading, paragraphs in sections:
        heading = heading or title or stem
        slug = re.sub(r"[\W_]+", "-", heading.lower()).strip("-")
        for line, text in _pieces(paragraphs):
            seen[slug] += 1
            name = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
            found.append(Passage(f"{file}#{name}", file, title or stem, heading, text, line))
    return found, note


def _pieces(paragraphs: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Whole if short; else packed paragraphs, of long ones sentences, of long ones words."""
    start, whole = 1, ""
    for line, text in [*paragraphs, (0, " " * LONGEST)]:  # the last one never fits
        parts = SENTENCE.split(text) if len(text) > LONGEST else [text]
        cut = (textwrap.wrap(part, LONGEST) if part[LONGEST:] else [part] for part in parts)
        for number, piece in enumerate(itertools.chain(*cut)):
            joined = f"{whole}{' ' if number else chr(10) * 2}{piece}"
            if whole and len(joined) <= LONGEST:
                whole = joined
                continue
            if re.search(r"\w", whole):  # what holds no word is no passage
                yield start, whole
            start, whole = line, piece


def _by_lines(lines: Sequence[str], starts: dict[int, str]) -> _Sections:
    """starts: the number of each line where a section begins, and its heading."""
    found, blank = [("", [])], True
    for number, line in enumerate(lines, 1):
        if number in starts:
            found.append((starts[number], []))
        if (blank or number in starts) and line.strip():
            found[-1][1].append((number, []))
        if not (blank := not line.strip()):
            found[-1][1][-1][1].append(line.rstrip())
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
    for number, cell in enumerate(json.loads(contents)["cells"], 1):
        source = "".join(cell["source"])
        own, parts = _markdown(source) if cell["cell_type"] == "markdown" else _plain(source)
        title = title or own
        parts = [(heading, [(number, text) for _, text in each]) for heading, each in parts]
        found[-1][1].extend(parts[0][1])  # still under the heading before
        found += parts[1:]
    return title, found


def _python(contents: str) -> tuple[str, _Sections]:
    starts: dict[int, str] = {}

    def mark(nodes: list[ast.stmt], owner: str) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{owner}.{node.name}".lstrip(".")
                starts[min(each.lineno for each in [node, *node.decorator_list])] = name
                mark(node.body if isinstance(node, ast.ClassDef) else [], name)
                starts[node.end_lineno + 1] = owner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of a user's strings
        mark(ast.parse(contents).body, "")
    together: dict[str, list] = {}  # what stands between two functions is the module's
    for heading, paragraphs in _by_lines(contents.split("\n"), starts):
        together.setdefault(heading, []).extend(paragraphs)
    return "", list(together.items())


class _Page(html.parser.HTMLParser):
    """The text of a page by its headings; scripts and styles are dropped, nothing is run."""

    inline = re.compile(r"a|abbr|b|bdi|cite|code|em|i|kbd|label|mark|q|s|small|span|strong|su[bp]")
    title, inside, text, line = "", "", "", 1

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            if not self.text.strip():
                self.line = self.getpos()[0] + data[: -len(data.lstrip()) or None].count("\n")
            self.text += data

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.handle_endtag(tag, tag)

    def handle_endtag(self, tag: str, inside: str = "") -> None:
        if self.inline.fullmatch(tag):
            return
        text, self.text = " ".join(self.text.split()), ""
        if text and self.inside in ("title", "h1"):
            self.title = self.title or text
        if text and re.fullmatch("h[1-6]", self.inside):
            self.sections.append((text, []))
        elif text and self.inside != "title":
            self.sections[-1][1].append((self.line, text))
        self.inside = inside


def _html(contents: str) -> tuple[str, _Sections]:
    page = _Page()
    page.sections = [("", [])]
    page.feed(contents + "<p>")  # the end of a text without tags
    page.close()
    return page.title, page.sections


READERS = {".md": _markdown, ".txt": _plain, ".ipynb": _notebook, ".py": _python, ".html": _html}


def listed(root: Path) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """The files that can be read, with size and times; what is left out, and why."""
    found, skipped, others = {}, [], Counter()
    for folder, folders, files in os.walk(root):
        place = Path(folder).relative_to(root)
        shut = [n for n in folders if n.startswith(".") or os.path.islink(f"{folder}/{n}")]
        skipped += [((place / n).as_posix(), "hidden, or a link: not entered") for n in shut]
        folders[:] = sorted(set(folders) - set(shut))
        for name in sorted(files):
            kind, info = os.path.splitext(name)[1].lower(), os.lstat(f"{folder}/{name}")
            if name.startswith(".") or kind not in READERS:
                others[f"*{kind or name}"] += 1
            elif stat.S_ISREG(info.st_mode) and 0 < info.st_size <= MOST_BYTES:
                times = [info.st_size, info.st_mtime_ns, info.st_ctime_ns]
                found[(place / name).as_posix()] = times
            else:
                reason = f"{info.st_size / 1e6:,.0f} MB: too large" if info.st_size else "empty"
                reason = reason if stat.S_ISREG(info.st_mode) else "a link, or no file"
                skipped.append(((place / name).as_posix(), reason))
    return found, skipped + [(kind, f"not read: {n:,} files") for kind, n in sorted(others.items())]


def read(name: str, data: bytes) -> tuple[list[Passage], str]:
    """As `chunks`, from a file's bytes."""
    text = data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        return [], "left out: binary, not text in UTF-8"
    passages, note = chunks(name, text)
    if "\ufffd" in text:
        note += "; " * bool(note) + "bytes that are no UTF-8 are shown as \ufffd"
    return passages, note or ("" if passages else "left out: there is no word in it")
