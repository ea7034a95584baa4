"""Documents: the texts of a folder, cut into passages by their structure (notebook 06).

In a passage's text a line is a unit: a paragraph, a list item, a table's row with the header's
names, a line of code. Between two lines no sentence goes on. What was wrapped is on one line.
"""

import itertools
import os
import re
import stat
import textwrap
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmnb import text_files
from llmnb.applications import document_formats as formats
from llmnb.applications.document_pages import Document, Unit
from llmnb.text import printed_words, sentences, split_sentences

MAX_PASSAGE_CHARACTERS = 1200  # about 200 words: what the encoder reads
MAX_EXCERPT_WORDS = 60
MAX_FILE_BYTES = 10_000_000
MAX_BINARY_FILE_BYTES = 100_000_000  # a PDF or DOCX may be full of pictures
ADVICE = "save it as plain text (UTF-8)"
# In a file's name: control characters, and surrogates, which stand for bytes that aren't UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
READERS = formats.TEXT_READERS | formats.BINARY_READERS


@dataclass(frozen=True)
class Passage:
    """What stands under one heading of a document, or a part of that if it is long."""

    id: str  # the citation, unique in a folder: attention.md#why-the-scale; its second part: ….2
    file: str  # from the folder on, with /
    title: str  # the document's
    heading: str  # after those above it, except the title: Norway > Delivery
    text: str  # one unit a line; the heading, if nothing is below it


_Section = tuple[list[str], list[Unit]]  # the headings above it and its own; what is below


def chunks(file: str, contents: str | bytes) -> tuple[list[Passage], str]:
    """The passages of a document, and what was wrong with it, or "".

    Its format is that of the file's name, else plain text. Text that doesn't parse is read as plain
    text, and a PDF or DOCX (which are bytes) that can't be read is left out.
    """
    stem, kind = os.path.splitext(os.path.basename(file))
    document = Document()
    try:
        READERS.get(kind.lower(), formats.read_plain)(contents, document)
    except formats.UnreadableError as error:
        return [], f"left out: {error}"
    except Exception as error:  # six libraries read a stranger's file; it never stops the others
        reason = f"it doesn't parse as {kind} ({type(error).__name__})"
        if isinstance(contents, bytes):
            return [], f"left out: {reason}; if it opens elsewhere, save it again from there"
        document = Document(notes=[f"read as plain text: {reason}"])
        formats.read_plain(contents, document)
    if document.blob_sizes:
        n, total = len(document.blob_sizes), sum(document.blob_sizes)
        document.notes.append(
            f"left out of it: pictures or other data (pieces: {n:,}, letters: {total:,})"
        )
    title = document.title or stem
    passages = []
    sections = _sections(document.units)
    slugs = _slugs([path[-1] if path else title for path, _ in sections])
    for (path, units), slug in zip(sections, slugs, strict=True):
        heading = " > ".join(path[1:] if path[:1] == [title] else path) or title
        for n, text in enumerate(_packed(units), 1):
            address = f"{file}#{slug}" if n == 1 else f"{file}#{slug}.{n}"
            passages.append(Passage(address, file, title, heading, text))
    return passages, "; ".join(document.notes)


def _sections(units: list[Unit]) -> list[_Section]:
    """What stands before the first heading, then every heading with what is directly below it.

    A heading with nothing below it, not even a smaller heading, is text itself.
    """
    sections: list[_Section] = [([], [])]
    open_headings: list[Unit] = []
    for unit, following in itertools.zip_longest(units, units[1:]):
        is_text = not unit.level
        if unit.level:
            while open_headings and open_headings[-1].level >= unit.level:
                open_headings.pop()
            open_headings.append(unit)
            sections.append(([heading.text for heading in open_headings], []))
            is_text = following is None or 0 < following.level <= unit.level
        if is_text:
            sections[-1][1].append(unit)
    return sections


def _slugs(headings: list[str]) -> list[str]:
    """Addresses as GitHub gives them: "C#" is c, and the second one c-1.

    The text before the first heading gets its address last, so that the headings keep theirs.
    """
    n_used: Counter[str] = Counter()
    slugs = []
    for heading in [*headings[1:], headings[0]]:
        # Letters with their vowel signs, digits, underscores and hyphens.
        name = "".join(
            character
            for character in heading.lower()
            if character in " _-" or unicodedata.category(character)[0] in "LMN"
        )
        slug = base = name.strip().replace(" ", "-") or "section"
        while slug in n_used:
            n_used[base] += 1
            slug = f"{base}-{n_used[base]}"
        n_used[slug] = 0
        slugs.append(slug)
    return [slugs[-1], *slugs[:-1]]


def _packed(units: list[Unit]) -> list[str]:
    """The text of each passage: as many units as fit. A passage without a word is dropped."""
    packed: list[str] = []
    for unit in units:
        gap = "\n"
        for part in _parts(unit.text):
            if packed and len(packed[-1]) + 1 + len(part) <= MAX_PASSAGE_CHARACTERS:
                packed[-1] += gap + part
            else:
                packed.append(part)
            gap = " "
    return [passage for passage in packed if printed_words(passage)]


def _parts(unit: str) -> list[str]:
    """The unit if it fits into a passage, else its sentences, or the words of a long one."""
    if len(unit) <= MAX_PASSAGE_CHARACTERS:
        return [unit]
    parts = []
    for sentence in split_sentences(unit):
        fits = len(sentence) <= MAX_PASSAGE_CHARACTERS
        parts += [sentence] if fits else textwrap.wrap(sentence, MAX_PASSAGE_CHARACTERS)
    return parts


def sentence_units(text: str) -> list[str]:
    """A passage's sentences; one that ends in a colon ("Run this:") is joined with the next."""
    units = _sentences(text)
    for number in range(len(units) - 2, -1, -1):
        if _leads_on(units[number]):
            units[number] += " " + units[number + 1]
    return units


def excerpt(text: str, unit: str) -> str:
    """A unit of a passage with the sentences beside it, MAX_EXCERPT_WORDS words in all."""
    parts = _sentences(text)
    first = last = centre = sentence_units(text).index(unit)
    while _leads_on(parts[last]) and last + 1 < len(parts):
        last += 1
    while True:
        wider = [(first, last + 1), (first - 1, last)]
        if last - centre > centre - first:  # the nearer neighbour comes first
            wider.reverse()
        for start, end in wider:
            part = " ".join(parts[max(start, 0) : end + 1])
            if start >= 0 and end < len(parts) and len(part.split()) <= MAX_EXCERPT_WORDS:
                first, last = start, end
                break
        else:
            return " ".join(parts[first : last + 1])


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if printed_words(sentence)]


def _leads_on(sentence: str) -> bool:
    return sentence.endswith((":", "："))


def list_files(root: Path) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """The files that can be read, with size and times; what is left out, and why.

    root: a folder, or a single file, which may be hidden or of any kind; names are relative to
    the folder. Hidden files are not read, but counted.
    """
    files, skipped, n_unread = {}, [], Counter()
    is_single = root.is_file()
    folder = root.parent if is_single else root

    def refuse_folder(error: OSError) -> None:
        path = os.path.relpath(error.filename, folder)
        skipped.append((path, f"can't be entered: {error.strerror}"))

    walk = [(folder, [], [root.name])] if is_single else os.walk(root, onerror=refuse_folder)
    for parent, subfolders, names in walk:
        parent = Path(parent).relative_to(folder)
        for name in list(subfolders):
            if text_files.is_hidden(name) or (folder / parent / name).is_symlink():
                skipped.append(((parent / name).as_posix(), "hidden, or a link: not entered"))
                subfolders.remove(name)
        subfolders.sort()
        for name in sorted(names):
            path = (parent / name).as_posix()
            kind = os.path.splitext(name)[1].lower()
            info = os.lstat(folder / path)
            if text_files.is_hidden(name) and not is_single:
                n_unread["hidden files"] += 1
            elif (kind not in READERS and not is_single) or formats.is_library_missing(kind):
                n_unread[f"*{kind or name}"] += 1
            elif reason := _refusal(path, kind, info):
                skipped.append((path, reason))
            else:
                files[path] = [info.st_size, info.st_mtime_ns, info.st_ctime_ns]
    for kind, n in sorted(n_unread.items()):
        reason = f"not read: {n:,} file{'s' if n > 1 else ''}"
        if formats.is_library_missing(kind.removeprefix("*")):
            reason += f"; first install what reads them: {formats.INSTALL_COMMAND}"
        skipped.append((kind, reason))
    return files, [
        (_UNPRINTABLE.sub(lambda c: repr(c[0])[1:-1], name), why) for name, why in skipped
    ]


def _refusal(path: str, kind: str, info: os.stat_result) -> str:
    """Why a file isn't read, or ""."""
    limit = MAX_BINARY_FILE_BYTES if kind in formats.BINARY_READERS else MAX_FILE_BYTES
    if not stat.S_ISREG(info.st_mode):
        return "a link, or not a regular file"
    if info.st_size == 0:
        return "empty"
    if info.st_size > limit:
        return f"too large: {info.st_size / 1e6:,.0f} MB; the most is {limit / 1e6:,.0f}"
    if _UNPRINTABLE.search(path):
        return "its name has control characters, or isn't in UTF-8: rename it"
    return ""


def read(name: str, data: bytes) -> tuple[list[Passage], str]:
    """As `chunks`, from a file's bytes."""
    notes: list[str] = []
    contents = data
    if os.path.splitext(name)[1].lower() not in formats.BINARY_READERS:
        try:
            text = text_files.decode(data, os.path.basename(name), ADVICE, notes)
        except text_files.DataError as error:
            return [], f"left out: {error}"
        text = text_files.TERMINAL_CODES.sub("", text)
        contents = text.replace("\r\n", "\n").replace("\r", "\n")
    passages, note = chunks(name, contents)
    if not (passages or note or notes):
        note = "left out: there is no word in it"
    return passages, "; ".join(filter(None, [note, *notes]))
