"""What a stranger's file is, and its text: encodings, files that are no text, hidden files."""

import codecs
import contextlib
import gzip
import re
import zlib
from pathlib import Path

from llmnb import LlmnbError

PAGE_SUFFIXES = (".html", ".htm")
_SUFFIXES = {
    "a spreadsheet, as Excel saves it": (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"),
    "a document of a word processor": (".docx", ".doc", ".odt", ".rtf", ".pages"),
    "a book or slides": (".epub", ".mobi", ".pptx", ".ppt", ".odp", ".key"),
    "a PDF": (".pdf",),
}
_WEB_PAGE = "a web page (perhaps the one that offers the file, or an error)"
_BEGINNINGS = {  # of files whose names promise something else
    b"%pdf": "a PDF",
    b"{\\rtf": "a document of a word processor",
    b"pk\3\4": "a zip archive, as files of Excel and Word are",
    b"\xd0\xcf\x11\xe0": "a file of an old Excel or Word",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"version https://git-lfs": "only Git LFS's pointer to the file (git lfs pull fetches it)",
}
_BYTE_ORDER_MARKS = {  # UTF-32 first: one of its marks begins with one of UTF-16
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and the like, in logs
# In cp1252: a letter, then signs or a capital, then a small letter.
_UNLIKELY = re.compile("[A-Za-zß-ÿ](?:[¡-©«¬®-±³-¶¸¹»-¿ˆ˜†‡•‰‹›„“”]+|[ŠŒŽŸÀ-ÖØ-Þ])(?=[a-zß-ÿ])")


class DataError(LlmnbError, ValueError):
    """Data can't be used; the message says what is wrong, where, and what to do."""


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed if it is gzip. Raises DataError where it can't be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"{error}. Copy or download it again"
        raise DataError(f"{str(path)!r} can't be read: {reason}.") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a program, not to the user.

    For example .DS_Store, macOS's ._notes.txt, Office's ~$notes.docx, and npm's packages.
    """
    return name.startswith((".", "~$")) or name in ("__MACOSX", "node_modules")


def other_kind(content: bytes, name: str) -> str:
    """What kind of file it is if it isn't text, by its name or its first bytes; "" for a text."""
    head = content[:4096]
    suffix = Path(name).suffix.lower()
    kinds = [kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes]
    start = head.lstrip().lower()
    kinds += [kind for mark, kind in _BEGINNINGS.items() if start.startswith(mark)]
    if suffix in PAGE_SUFFIXES:
        kinds = [kind for kind in kinds if kind != _WEB_PAGE]
    if encoding_of(head) == "utf-8-sig" and head.count(0) > len(head) / 100:
        kinds.append("not a text file")
    return kinds[0] if kinds else ""


def refuse_other_kinds(content: bytes, name: str, advice: str) -> None:
    """Raise DataError if the file isn't text."""
    if kind := other_kind(content, name):
        raise DataError(f"{name} is {kind}: {advice}.")


def encoding_of(head: bytes) -> str:
    """The encoding that a file's first bytes show: UTF-8, UTF-16 or UTF-32.

    UTF-16 without a byte-order mark has a zero in every other byte, where letters are Latin ones.
    """
    for encoding, marks in _BYTE_ORDER_MARKS.items():
        if head.startswith(marks):
            return encoding
    if 2 * head[1::2].count(0) > len(head[1::2]) and not head[::2].count(0):
        return "utf-16-le"
    return "utf-8-sig"


def decode(content: bytes, name: str, advice: str, notes: list[str] | None = None) -> str:
    """The text in UTF-8, UTF-16 or UTF-32, or in the encoding that a web page names.

    It is read as cp1252 only where it can be nothing else, with a note.
    advice: how to save the file, for the error. notes: None refuses cp1252. Raises DataError.
    """
    refuse_other_kinds(content, name, advice)
    encoding = encoding_of(content[:4096])
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if name.lower().endswith(PAGE_SUFFIXES):
            from bs4.dammit import EncodingDetector  # takes a while to load

            declared = EncodingDetector.find_declared_encoding(content, is_html=True)
            with contextlib.suppress(LookupError, UnicodeDecodeError):
                return content.decode(declared or "ascii")
        line = content[: error.start].count(b"\n") + 1
        if encoding != "utf-8-sig" or notes is None or not is_western(content):
            kind = encoding.upper().removesuffix("-SIG")
            raise DataError(f"{name}, line {line}: a character is not {kind}: {advice}.") from error
        notes.append(
            f"not UTF-8 (line {line}), so read as cp1252 (Western): check the accented letters."
        )
        text = content.decode("cp1252")
    n_zeros = text.count("\0")
    if n_zeros and notes is not None:
        line = text[: text.index("\0")].count("\n") + 1
        notes.append(f"zero bytes in it are read as spaces: {n_zeros:,}, the first in line {line}.")
    return text.replace("\0", " ")


def is_western(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 are likely to be cp1252.

    In a Western European text at most a quarter of the characters are not ASCII. Within words
    there are hardly any signs, as in "ksi¹¿ka" (Polish), or capitals, as in "BŠr" (an old Mac's
    ä). And if many characters are valid UTF-8, the file is UTF-8 with a few broken ones.
    """
    try:
        western = content.decode("cp1252")  # five of the 256 bytes mean nothing in it
    except UnicodeDecodeError:
        return False
    text = content.decode("utf-8", "replace")
    n_invalid = text.count("\N{REPLACEMENT CHARACTER}")
    n_not_ascii = len(text) - len(text.encode("ascii", "ignore"))
    is_mostly_invalid = n_not_ascii < min(2 * n_invalid, len(text) / 4) + 1
    return is_mostly_invalid and 20 * len(_UNLIKELY.findall(western)) < n_not_ascii + 1
