"""What a document of each format holds: its headings and units of text, from top to bottom."""

import ast
import email
import email.policy
import importlib.util
import io
import itertools
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html import escape

from llmnb.applications.document_pages import (
    Document,
    Unit,
    read_html,
    read_markdown,
    read_page,
    unwrapped,
)

MAX_UNPACKED_BYTES = 100_000_000  # of a DOCX, or of a PDF's pages; more is a zip bomb
INSTALL_COMMAND = "pip install pypdf python-docx docutils"
_MODULES = {".rst": "docutils", ".pdf": "pypdf", ".docx": "docx"}  # optional ones


class UnreadableError(ValueError):
    """A file that can't be read; the message says why, and what its owner can do."""


def read_plain(contents: str, document: Document) -> None:
    """Paragraphs between blank lines."""
    lines = document.without_blobs(contents).split("\n")
    numbered = itertools.groupby(enumerate(lines, 1), key=lambda pair: bool(pair[1].strip()))
    for _, pairs in numbered:
        numbers, paragraph = zip(*pairs, strict=True)
        for unit in unwrapped(paragraph):
            document.add(numbers[0], unit)


def read_rst(contents: str, document: Document) -> None:
    """reStructuredText; no file that it names is read, and its raw HTML is dropped."""
    from docutils import core, nodes

    settings = {
        "_disable_config": True,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "warning_stream": False,
        "report_level": 1,  # messages stay in the tree: some of them hold text
        "halt_level": 5,
        "embed_stylesheet": False,
        "doctitle_xform": False,
        "initial_header_level": 1,
        "math_output": "LaTeX",
        "line_length_limit": len(contents) + 1,
    }
    contents = document.without_blobs(contents)
    tree = core.publish_doctree(contents, settings_overrides=settings)
    for message in list(tree.findall(nodes.system_message)):
        is_unknown = re.search(r'Unknown directive|Error in "', message.astext())
        texts = list(message.findall(nodes.literal_block)) if is_unknown else []
        message.parent.replace(message, texts)
    for topic in list(tree.findall(nodes.topic)):
        if "contents" in topic["classes"]:  # the headings once more
            topic.parent.remove(topic)
    tree.parse_messages = tree.transform_messages = []
    for node in list(tree.findall(nodes.problematic)):  # a role of Sphinx: :ref:`text <label>`
        text = re.sub(r"^:[\w:.+-]+:`(.+?)(?: <[^<>]*>)?`$", r"\1", node.astext())
        node.parent.replace(node, nodes.Text(text))
    for node in list(tree.findall(nodes.Element)):
        if node.line and isinstance(node, nodes.Body | nodes.title):
            node.parent.insert(node.parent.index(node), nodes.comment("", f"line {node.line}"))
    page = core.publish_from_doctree(tree, writer="html5", settings_overrides=settings)
    read_page(page.decode("utf-8").partition("</head>")[2], document)


def read_notebook(contents: str, document: Document) -> None:
    """The cells of a Jupyter notebook, without their outputs; the lines are cells' numbers."""
    notebook = json.loads(contents)
    if "cells" in notebook:
        cells = notebook["cells"]
    else:  # before 2015
        cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
    for number, cell in enumerate(cells, 1):
        source = "".join(cell["source"] if "source" in cell else cell["input"])
        part = replace(document, units=[])  # with the same title, notes and blobs
        if cell["cell_type"] == "markdown":
            read_markdown(source, part)
        elif cell["cell_type"] == "heading":
            part.add(number, source, cell["level"])
        else:
            for line in part.without_blobs(source).split("\n"):
                part.add(number, line)
        document.title = part.title
        document.units += [replace(unit, line=number) for unit in part.units]


def read_python(contents: str, document: Document) -> None:
    """Functions and classes under their names; what stands between two is the module's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, on odd strings in a user's code
        tree = ast.parse(contents)
    owners: dict[int, str] = {}  # the function or class around a line
    functions = set()
    for node in ast.walk(tree):  # a class comes before its methods
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            start = min(part.lineno for part in [node, *node.decorator_list])
            outer = owners.get(start, "")
            if outer not in functions:
                name = f"{outer}.{node.name}".lstrip(".")
                owners |= dict.fromkeys(range(start, node.end_lineno + 1), name)
                if not isinstance(node, ast.ClassDef):
                    functions.add(name)
    sections: dict[str, Document] = {"": document}
    for number, line in enumerate(document.without_blobs(contents).split("\n"), 1):
        sections.setdefault(owners.get(number, ""), Document()).add(number, line)
    del sections[""]
    for owner, section in sections.items():
        document.units += [Unit(section.units[0].line, owner, level=1), *section.units]


def read_pdf(data: bytes, document: Document) -> None:
    """A page of a PDF is a section; its lines are joined where they were wrapped."""
    import pypdf

    logging.getLogger("pypdf").addHandler(logging.NullHandler())  # no warnings on bad files
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableError("it is locked: save a copy without a password or encryption")
    n_bytes = 0
    empty_pages = []
    for number, page in enumerate(reader.pages, 1):
        contents = page.get_contents()
        n_bytes += len(contents.get_data()) if contents else 0
        _check_size(n_bytes)
        part = replace(document, units=[])
        read_plain(page.extract_text(), part)
        if part.units:
            document.units.append(Unit(number, f"page {number}", level=1))
            document.units += [replace(unit, line=number) for unit in part.units]
        else:
            empty_pages.append(str(number))
    if empty_pages and not document.units:
        raise UnreadableError(
            "it holds pictures of pages and no text, as scans do: let a program for text"
            " recognition (OCR) add the text"
        )
    if empty_pages:
        document.notes.append(f"no text on page {', '.join(empty_pages)}, perhaps a picture of it")


def read_docx(data: bytes, document: Document) -> None:
    """A Word document; the lines are the numbers of its paragraphs and tables."""
    import docx
    from docx.oxml.ns import qn
    from docx.table import Table

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
    file = docx.Document(io.BytesIO(data))
    unread = ".//w:txbxContent | .//w:footnoteReference | .//w:endnoteReference"
    if file.element.body.xpath(unread):
        document.notes.append("its text boxes and footnotes are left out")
    # Text in forms and in changes that nobody has accepted yet is text like any other.
    for name in ("w:sdt", "w:sdtContent", "w:ins", "w:moveTo", "w:smartTag", "w:customXml"):
        for element in list(file.element.body.iter(qn(name))):
            for child in list(element):
                element.addprevious(child)
            element.getparent().remove(element)
    struck_out = file.element.body.xpath(".//w:r[w:rPr/w:strike[not(@w:val='0')]]")
    for run in struck_out:
        run.getparent().remove(run)
    if struck_out:
        document.notes.append(f"left out of it: struck-out text (pieces: {len(struck_out)})")
    for text in file.element.body.xpath(".//w:r[w:rPr/w:vertAlign/@w:val='superscript']/w:t"):
        follows_digit = re.search(r"\d\Z", text.xpath("string(preceding::w:t[1])"))
        if follows_digit and text.text[:1].isdigit():  # 500 and a note's 1 are not 5001
            text.text = f"^{text.text}"
    page = ""
    for number, block in enumerate(file.iter_inner_content(), 1):
        page += f"<!--line {number}-->"
        if isinstance(block, Table):
            page += "<table>"
            for n, row in enumerate(block.rows):
                cells = {id(cell._tc): escape(cell.text) for cell in row.cells}  # once if merged
                tag = "td" if n else "th"
                page += "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in cells.values())
            page += "</table>"
            continue
        style = block.style.name if block.style is not None else ""
        heading = re.fullmatch(r"Heading ([1-6])", style)
        tag = f"h{heading[1]}" if heading else "title" if style == "Title" else "p"
        text = escape(block.text).replace("\n", "<br>")
        page += f"<{tag}>{text}</{tag}>"
    read_page(page, document)


def read_mail(data: bytes, document: Document) -> None:
    """A mail: from whom, to whom, when, what about, and its text; the subject is the title."""
    mail = email.message_from_bytes(data, policy=email.policy.default)
    document.title = str(mail["Subject"] or "")
    for name in ("Subject", "From", "To", "Date"):
        document.add(1, f"{name}: {mail[name]}" if mail[name] else "")
    text = mail.get_body(("plain", "html"))
    if text is not None:
        if text.get_content_charset() is None:
            text.set_param("charset", "utf-8")
        read = read_html if text.get_content_subtype() == "html" else read_plain
        read(text.get_content().replace("\r\n", "\n"), document)
    if attachments := list(mail.iter_attachments()):
        document.notes.append(f"its attachments are left out: {len(attachments):,}")


def _check_size(n_bytes: int) -> None:
    if n_bytes > MAX_UNPACKED_BYTES:
        limit = f"{MAX_UNPACKED_BYTES / 1e6:,.0f} MB"
        raise UnreadableError(f"unpacked it is larger than {limit}, the most that is read")


BINARY_READERS: dict[str, Callable[[bytes, Document], None]] = {
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".eml": read_mail,
}
TEXT_READERS: dict[str, Callable[[str, Document], None]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_plain,
    ".rst": read_rst,
    ".ipynb": read_notebook,
    ".py": read_python,
    ".html": read_html,
    ".htm": read_html,
}


def is_library_missing(kind: str) -> bool:
    """Whether a kind of files needs a library that isn't installed."""
    return kind in _MODULES and importlib.util.find_spec(_MODULES[kind]) is None
