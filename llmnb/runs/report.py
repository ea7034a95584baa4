"""The report: an executed notebook and its record, as one HTML page without scripts.

It opens with the question (the notebook's title), the answer with its key figure, and the metrics
beside their baselines. A run that failed opens with what failed and what to do.

How untrusted text becomes harmless HTML is in markup.py, and the look of the page in templates/. A
Content-Security-Policy in the page would stop what still got through.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from pygments.formatters import HtmlFormatter

from llmnb.record import ANSWER_MIME, METRIC_MIME
from llmnb.runs import records
from llmnb.runs.markup import PICTURE_MIMES, Markdown, clean, highlighted, joined, plain_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

MAX_COLOURED_CHARACTERS = 200_000  # nbconvert copies the rest of the text at every colour
LONG_OUTPUT_LINES = 200  # an output of so many lines gets a scrolling box

_CONTROL_CHARACTERS = re.compile(
    r"\x1b\].*?(?:\x07|\x1b\\|$)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]", re.MULTILINE
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# What a stamped notebook's badge links to. Nothing else is taken for the page's own link.
_COLAB = re.compile(
    r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w./-]+\.ipynb", re.ASCII
)
# What to do about an error whose own message can't say it.
_LESS_MEMORY = (
    "Run it again with a smaller profile (-p profile smoke) or a smaller input, or on a machine or "
    "device with more memory."
)
ADVICE = dict.fromkeys(("DeadKernelError", "MemoryError", "OutOfMemoryError"), _LESS_MEMORY) | {
    "TimeoutError": "Run it again with a longer --timeout, a smaller profile or a smaller input.",
    "KeyboardInterrupt": "Somebody stopped it. The same command starts it again.",
    "killed": "The same command starts it again. If that happens twice, look at the machine's free "
    "memory while it runs.",
    "corrupt": "Delete this folder, and run the notebook again.",
    "ModuleNotFoundError": "Install what the message names, and run it again.",
}
USUAL_ADVICE = (
    "Change what the message names, and run the same command again. The cell that failed is marked."
)
# The first of these that an output has, and that has something to show, is shown.
MIMES_BY_PREFERENCE = (
    "text/html",
    "text/markdown",
    *PICTURE_MIMES,
    "image/svg+xml",
    "text/latex",
    "text/plain",
)


def _text_part(content: Any, kind: str) -> dict | None:
    """A text with its ANSI colours as classes; None if it is blank."""
    from nbconvert.filters.ansi import ansi2html, strip_ansi

    text = _CONTROL_CHARACTERS.sub("", joined(content)).strip("\n")
    if not text.strip():
        return None
    is_short = len(text) < MAX_COLOURED_CHARACTERS
    html = ansi2html(text) if is_short else escape(strip_ansi(text))
    html = clean(f"<pre>\n{html}</pre>".replace("\x1b", ""))
    return {"kind": kind, "html": html, "long": text.count("\n") >= LONG_OUTPUT_LINES}


def _part(output: Any, markdown: Markdown) -> dict | None:
    """What the template shows of an output: its "kind" and content; None for nothing."""
    kind = output.get("output_type")
    data = output.get("data") or {}
    if kind == "stream":
        is_stderr = output.get("name") == "stderr"
        return _text_part(output.get("text", ""), "stderr" if is_stderr else "text")
    if kind == "error":
        lines = output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]
        return _text_part("\n".join(map(str, lines)), "error")
    if isinstance(data.get(METRIC_MIME), dict):
        return {"kind": "metric", "metric": data[METRIC_MIME]}
    for mime in MIMES_BY_PREFERENCE:
        if mime in data and (part := _data_part(mime, output, markdown)):
            return part
    return None


def _data_part(mime: str, output: Any, markdown: Markdown) -> dict | None:
    """An output's data of this type; None if nothing of it can be shown."""
    content = joined(output["data"][mime])
    if mime == "text/plain":
        return _text_part(content, "text")
    if mime.startswith("text/"):
        if mime == "text/html":
            html = clean(_mark_prose_cells(content))
        else:
            html = markdown.convert(content)
        is_empty = not plain_text(html) and "data:image" not in html
        return None if is_empty else {"kind": "html", "html": html}
    if mime == "image/svg+xml":  # inside <img> nothing in it runs or loads
        content = base64.b64encode(content.encode("utf-8", "replace")).decode()
    content = "".join(content.split())
    if not _BASE64.fullmatch(content):
        return None
    metadata = records.section(output.get("metadata") or {}, mime)
    alt = joined(metadata.get("alt") or output["data"].get("text/plain") or "figure")
    width = records.as_number(metadata.get("width"))
    return {"kind": "figure", "mime": mime, "data": content, "alt": alt, "width": width}


def _mark_prose_cells(html: str) -> str:
    """Give table cells of prose a class, by which they are aligned to the left.

    This comes before the cleaning, so that no text can slip in through the replacement.
    """

    def mark(cell: re.Match) -> str:
        is_prose = 2 * sum(map(str.isalpha, cell[1])) > len(cell[1])
        return f'<td class="txt">{cell[1]}</td>' if is_prose else cell[0]

    return re.sub(r"<td>([^<]{24,})</td>", mark, html)


def _advice(run: dict, error: dict) -> str:
    """What somebody should do about a run that did not end well."""
    for cause in (error.get("type"), run.get("status")):
        if isinstance(cause, str) and cause in ADVICE:
            return ADVICE[cause]
    return USUAL_ADVICE


def _answer(cells: list, markdown: Markdown) -> dict | None:
    """The notebook's answer as clean HTML, with its key figure; the last one that a cell gave."""
    answer = None
    figures = {}  # by their alt text
    for cell in cells:
        for output in cell.get("outputs") or []:
            data = records.section(output, "data")
            if isinstance(data.get(ANSWER_MIME), dict):
                answer = data[ANSWER_MIME]
            elif "image/png" in data and (part := _data_part("image/png", output, markdown)):
                figures[part["alt"]] = part
    if answer is None or not isinstance(answer.get("text"), str):
        return None
    alt = answer.get("figure")
    figure = figures.get(alt) if isinstance(alt, str) else None
    return {"html": markdown.convert(answer["text"]), "figure": figure}


def headline(folder: Path) -> dict[str, Any]:
    """A run's "title" (clean HTML), "answer" as `_answer` gives it, and address in "colab".

    All are empty without a readable notebook.
    """
    markdown = Markdown()
    cells = _read_notebook(folder).cells
    for cell in cells:
        if cell.cell_type == "markdown" and not markdown.title:
            markdown.convert(cell.source, cell)
    title = clean(markdown.title, inline=True)
    return {"title": title, "answer": _answer(cells, markdown), "colab": _colab(cells)}


def _colab(cells: list) -> str | None:
    """Where the notebook opens in Colab, from the badge in its first cell; None without one."""
    address = _COLAB.search(cells[0].source) if cells else None
    return address and address[0]


def _failed_cell(cells: list, run: dict) -> int | None:
    """The position of the cell in which a run stopped, as its record says; None if it doesn't."""
    number = records.section(run, "error").get("cell")  # counted from 1
    is_a_cell = isinstance(number, int) and 0 < number <= len(cells)
    return number - 1 if is_a_cell else None


def _cells(cells: list, failed: int | None, markdown: Markdown) -> Markup:
    """The notebook's cells as HTML. failed: the position of the one that is marked."""
    from nbconvert.preprocessors import coalescestreams

    merge_streams = coalescestreams.CoalesceStreamsPreprocessor().preprocess_cell

    def parts(cell: Any) -> list[dict]:
        merged, _ = merge_streams(cell, {}, 0)
        candidates = [_part(output, markdown) for output in merged.get("outputs", [])]
        return [part for part in candidates if part]

    template = records.page_templates().get_template("cells.html.j2")
    tools = {"markdown": markdown, "parts": parts, "highlighted": highlighted}
    return Markup(template.render(cells=cells, failed=failed, **tools))


def render(notebook: NotebookNode, run: dict) -> str:
    """One self-contained HTML page of a notebook and the record of its run.

    Every key of the record may be missing. A notebook without cells gives the header alone.
    """
    markdown = Markdown()
    failed = None if run.get("status") == "ok" else _failed_cell(notebook.cells, run)
    body = _cells(notebook.cells, failed, markdown)
    error = records.section(run, "error")
    template = records.page_templates().get_template("report.html.j2")
    return template.render(
        advice=_advice(run, error),
        answer=_answer(notebook.cells, markdown),
        body=body,
        colab=_colab(notebook.cells),
        code_styles=[HtmlFormatter(style=style) for style in ("default", "github-dark")],
        error=error,
        failed=failed,
        markdown=markdown,
        heading=clean(markdown.title, inline=True),
        run=run,
        title=plain_text(markdown.title) or records.as_text(run.get("notebook") or "Report"),
    )


_UNREADABLE = (OSError, ValueError, AttributeError, TypeError, RecursionError)


def _read_notebook(folder: Path) -> NotebookNode:
    """The run's notebook; one without cells where it can't be read."""
    import nbformat

    try:
        notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "cell_type" in cell]
        return notebook
    except (*_UNREADABLE, nbformat.ValidationError):
        return nbformat.v4.new_notebook()


def write_report(folder: Path) -> Path:
    """Write folder/report.html from folder/notebook.ipynb and folder/run.json; returns its path.

    Without a readable notebook the page has the header and the error. Raises OSError where the
    folder can't be written.
    """
    page = render(_read_notebook(folder), records.read_record(folder))
    return records.write_page(folder / "report.html", page)
