"""What a document of each format holds: its headings and units of text, from top to bottom."""

import ast
import email
import email.policy
import importlib.util
import io
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
    for paragraph in re.split(r"\n\s*\n", document.without_blobs(contents)):
        for unit in unwrapped(paragraph.split("\n")):
            document.add(unit)


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
    page = core.publish_from_doctree(tree, writer="html5", settings_overrides=settings)
    read_page(page.decode("utf-8").partition("</head>")[2], document)


def read_notebook(contents: str, document: Document) -> None:
    """The cells of a Jupyter notebook, without their outputs."""
    for cell in json.loads(contents)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            read_markdown(source, document)
        else:
            for line in document.without_blobs(source).split("\n"):
                document.add(line)


def read_python(contents: str, document: Document) -> None:
    """Each function and class under its name; all other lines belong to the module."""
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
        sections.setdefault(owners.get(number, ""), Document()).add(line)
    del sections[""]
    for owner, section in sections.items():
        document.units += [Unit(owner, level=1), *section.units]


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
            document.units += [Unit(f"page {number}", level=1), *part.units]
        else:
            empty_pages.append(str(number))
    if empty_pages and not document.units:
        raise UnreadableError(
            "it holds pictures of pages and no text, as scans do: let a program for text"
            " recognition (OCR) add the text"
        )
    if empty_pages:
        document.notes.append(f"no text on page {', '.join(empty_pages)}; perhaps it is a picture")


def read_docx(data: bytes, document: Document) -> None:
    """A Word document."""
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

    def marked(paragraph) -> str:
        """Its HTML; struck-out and raised text are marked, for read_page."""
        page = ""
        for part in paragraph.iter_inner_content():  # runs, and links, which have runs
            for run in getattr(part, "runs", [part]):
                text = escape(run.text).replace("\n", "<br>")
                text = f"<s>{text}</s>" if run.font.strike else text
                page += f"<sup>{text}</sup>" if run.font.superscript else text
        return page

    page = ""
    for block in file.iter_inner_content():
        if isinstance(block, Table):
            page += "<table>"
            for n, row in enumerate(block.rows):
                cells = {  # a merged cell once
                    id(cell._tc): "<br>".join(map(marked, cell.paragraphs)) for cell in row.cells
                }
                tag = "td" if n else "th"
                page += "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in cells.values())
            page += "</table>"
            continue
        style = block.style.name if block.style is not None else ""
        heading = re.fullmatch(r"Heading ([1-6])", style)
        tag = f"h{heading[1]}" if heading else "title" if style == "Title" else "p"
        page += f"<{tag}>{marked(block)}</{tag}>"
    read_page(page, document)


def read_mail(data: bytes, document: Document) -> None:
    """A mail: from whom, to whom, when, what about, and its text; the subject is the title."""
    mail = email.message_from_bytes(data, policy=email.policy.default)
    document.title = str(mail["Subject"] or "")
    for name in ("Subject", "From", "To", "Date"):
        document.add(f"{name}: {mail[name]}" if mail[name] else "")
    body = mail.get_body(("plain", "html"))
    if body is not None:
        if body.get_content_charset() is None:
            body.set_param("charset", "utf-8")
        read_body = read_html if body.get_content_subtype() == "html" else read_plain
        read_body(body.get_content().replace("\r\n", "\n"), document)
    if attachments := list(mail.iter_attachments()):
        document.notes.append(f"its attachments are left out: {len(attachments):,}")


def _check_size(n_bytes: int) -> None:
    if n_bytes > MAX_UNPACKED_BYTES:
        limit = f"{MAX_UNPACKED_BYTES / 1e6:,.0f} MB"
        raise UnreadableError(f"unpacked, it is larger than {limit}, the most that is read")


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
