"""The report: an executed notebook and its record, as one HTML page without script.

Text from notebooks, models and data is untrusted. It reaches the page in two ways only: escaped by
Jinja, or as HTML through `clean`, which keeps what stands in templates/allowed.json. A
Content-Security-Policy in the page is the second wall.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import mistune
import nh3
from markupsafe import Markup, escape
from math_core import LatexError, LatexToMathML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

from llmnb.record import METRIC_MIME
from llmnb.runs.index import TEMPLATES, environment, finite, read_record, section, shown, write_page

if TYPE_CHECKING:
    from nbformat import NotebookNode

_DEEPEST = 500  # nested tags; the cleaner's time grows with the square of the depth
_LONGEST_FORMULA = 400  # commands and braces; the converter recurses and can overflow the stack
_LONGEST_COLOURED = 200_000  # characters; nbconvert copies the rest of the text at every colour
_LONG_OUTPUT = 200  # lines, before an output gets a scrolling box

_TAG = re.compile(r"<(/?)(?!(?:br|col|hr|img|input|wbr)\b)[a-z]", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[a-z0-9+/=\s]+", re.IGNORECASE)
_OTHER_SCHEME = re.compile(r"(?!https?:|mailto:)[^/?#]*:|[/\\]{2}", re.IGNORECASE)
_CONTROL = re.compile(r"\x1b\].*?(?:\x07|\x1b\\|$)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]", re.MULTILINE)
# Pygments' own are at most three letters: ours are longer, so that nothing can dress up as ours.
_CLASS = re.compile(r"[a-z]{1,3}\d?|ansi-[a-z-]+|anchor|dataframe|highlight|math-error")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_RASTER = ("image/png", "image/jpeg", "image/gif", "image/webp")
_SHOWN_AS = ("text/html", "text/markdown", *_RASTER, "image/svg+xml", "text/latex", "text/plain")

# A blank line ends a formula, as in TeX: a stray $$ must not eat the page.
_DISPLAY = (
    r"\$\$(?:[^$\\\n]|\\[^\n]|\\?\n(?!\s*\n))+\$\$|"
    r"\\begin\{(?P<math_name>[a-z]+\*?)\}(?:(?!\n\s*\n)[\s\S])+?\\end\{(?P=math_name)\}"
)
# Pandoc's rule for a single dollar: "$5 and $6" are prices.
_FORMULA = rf"(?P<math_display>{_DISPLAY})|\$(?!\s)(?P<math>(?:[^$\\`]|\\[\s\S])+)(?<!\s)\$(?!\d)"
_MACROS = {"substack": r"\begin{subarray}{c}#1\end{subarray}"}


def clean(fragment: str, inline: bool = False) -> Markup:
    """Untrusted HTML without anything that runs, loads, or reaches out of its place.

    inline: text and formulas only. What is nested beyond reason is shown as text.
    """
    depth = 0
    for tag in _TAG.finditer(fragment):
        depth += -1 if tag[1] else 1
        if depth > _DEEPEST:
            return Markup("<pre>{}</pre>").format(fragment)
    # replace: the cleaner refuses lone surrogates, which JSON can carry
    return Markup(_cleaner(inline).clean(fragment.encode("utf-8", "replace").decode()))


@cache
def _cleaner(inline: bool) -> nh3.Cleaner:
    allowed = json.loads((TEMPLATES / "allowed.json").read_text("utf-8"))
    attributes = {} if inline else {tag: set(names) for tag, names in allowed["attributes"].items()}
    attributes |= {tag: set(allowed["math_attributes"]) for tag in allowed["math"]}
    return nh3.Cleaner(
        tags={*allowed["text"], *allowed["math"], *([] if inline else allowed["blocks"])},
        clean_content_tags=set(allowed["gone_with_content"]),
        attributes=attributes,
        attribute_filter=_attribute,
        filter_style_properties=set(allowed["style_properties"]),
        url_schemes={"http", "https", "mailto", "data"},
    )


def _attribute(tag: str, name: str, value: str) -> str | None:
    """The value that an attribute keeps; None drops it."""
    if name == "id":
        return _anchor(value)
    if name == "href":
        url = re.sub(r"[\x00-\x1f\x7f]", "", value).strip()
        if url.startswith("#"):
            return "#" + _anchor(unquote(url[1:]))
        return None if _OTHER_SCHEME.match(url) else url
    if name == "class":
        return " ".join(filter(_CLASS.fullmatch, value.split())) or None
    if name == "src":
        return value if _PICTURE.fullmatch(value) else None
    if name == "style" and tag in ("td", "th"):
        aligned = re.search(r"text-align:\s*(?:left|center|right)", value)
        return aligned and aligned[0]
    return None if name == "style" and re.search(r"[(\\@]", value) else value


def _anchor(text: str) -> str:
    """An id made of untrusted text; the prefix keeps it apart from the page's own."""
    return "nb-" + re.sub(r"\W+", "-", text.lower()).strip("-").removeprefix("nb-")


def _plain(fragment: str) -> str:
    """The text of a piece of HTML."""
    return clean(fragment).striptags()


def _highlight(code: str, language: str) -> Markup:
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    return clean(highlight(code, lexer, HtmlFormatter(cssclass="highlight")))


class _Markdown(mistune.HTMLRenderer):
    """Markdown to clean HTML. On the way it collects a notebook's title and headings."""

    def __init__(self) -> None:
        super().__init__(escape=False)
        self.title, self.headings, self.failures = "", [], 0
        self._anchors: set[str] = set()
        self._cell: Any = None
        self._latex = LatexToMathML(macros=_MACROS)
        plugins = ["strikethrough", "table", "url", "def_list", _formulas]
        self._parse = mistune.create_markdown(renderer=self, plugins=plugins)

    def convert(self, source: str, cell: Any = None) -> Markup:
        """cell: the markdown cell that the source is of; other sources have no headings to list."""
        self._cell = cell
        return clean(self._parse(source))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = _anchor(_plain(text))
        if self._cell is not None and level == 1 and not self.title:
            self.title = text  # shown in the header of the page
            return ""
        while anchor in self._anchors:
            anchor += "-2"
        self._anchors.add(anchor)
        if self._cell is not None and level in (2, 3):
            self.headings.append((level, anchor, clean(text, inline=True)))
        link = f'<a class="anchor" href="#{anchor}" title="Link to this section">#</a>'
        return f'<h{level} id="{anchor}">{text} {link}</h{level}>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        return _highlight(code, (info or "text").split()[0])

    def image(self, text: str, url: str, title: str | None = None) -> str:
        attachments = (self._cell or {}).get("attachments") or {}
        pictures = attachments.get(unquote(url.removeprefix("attachment:")), {})
        for mime in _RASTER:
            if mime in pictures:
                url = f"data:{mime};base64,{_joined(pictures[mime])}"
        alt = escape(_plain(text))  # alone where the picture would have to be fetched
        return f'<img src="{escape(url)}" alt="{alt}">' if _PICTURE.fullmatch(url) else alt

    def formula(self, text: str, display: bool) -> str:
        tex = text.replace("{split}", "{aligned}")  # the same under a name the converter knows
        try:
            if len(re.findall(r"[\\{]", tex)) > _LONGEST_FORMULA:
                raise ValueError("too long")
            return self._latex.convert_with_global_state(tex, displaystyle=display)
        except (LatexError, ValueError):
            self.failures += 1
            return f'<code class="math-error">{escape(text)}</code>'


def _formulas(markdown: mistune.Markdown) -> None:
    """A plugin for mistune: $…$, $$…$$ and LaTeX's environments."""

    def block(parser, match, state):
        state.add_paragraph(match[0])  # whole, whatever its lines begin with
        return match.end()

    def inline(parser, match, state):
        text, display = match["math"], match["math_display"]
        raw, attrs = text or display.strip("$"), {"display": text is None}
        state.append_token({"type": "formula", "raw": raw, "attrs": attrs})
        return match.end()

    markdown.block.register("formula", rf"^ {{0,3}}(?:{_DISPLAY})[^\n]*\n?", block, "fenced_code")
    for rules in (markdown.block.block_quote_rules, markdown.block.list_rules):
        markdown.block.insert_rule(rules, "formula", before="fenced_code")
    markdown.inline.register("formula", _FORMULA, inline, before="escape")


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(content: Any, kind: str) -> dict | None:
    """A text with its ANSI colours as classes; None if there is nothing to read."""
    from nbconvert.filters.ansi import ansi2html, strip_ansi

    text = _CONTROL.sub("", _joined(content)).strip("\n")
    if not text.strip():
        return None
    coloured = ansi2html(text) if len(text) < _LONGEST_COLOURED else escape(strip_ansi(text))
    pre = clean(f"<pre>\n{coloured}</pre>".replace("\x1b", ""))
    return {"kind": kind, "html": pre, "long": text.count("\n") >= _LONG_OUTPUT}


def _part(output: Any, markdown: _Markdown) -> dict | None:
    """What to show of an output, and how; None for nothing."""
    kind, data = output.get("output_type"), output.get("data") or {}
    if kind == "stream":
        return _text(output.get("text", ""), "stderr" if output.get("name") == "stderr" else "text")
    if kind == "error":
        lines = output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]
        return _text("\n".join(map(str, lines)), "error")
    if isinstance(data.get(METRIC_MIME), dict):
        return {"kind": "metric", "metric": data[METRIC_MIME]}
    tried = (_representation(mime, output, markdown) for mime in _SHOWN_AS if mime in data)
    return next(filter(None, tried), None)


def _representation(mime: str, output: Any, markdown: _Markdown) -> dict | None:
    """One of an output's representations; None if nothing of it can be shown."""
    content = _joined(output["data"][mime])
    if mime == "text/plain":
        return _text(content, "text")
    if mime.startswith("text/"):
        page = clean(_marked(content)) if mime == "text/html" else markdown.convert(content)
        return {"kind": "html", "html": page} if _plain(page) or "data:image" in page else None
    if mime == "image/svg+xml":  # inside <img> it is a picture: nothing in it runs or loads
        content = base64.b64encode(content.encode("utf-8", "replace")).decode()
    content = "".join(content.split())
    facts = section(output.get("metadata") or {}, mime)
    alt = _joined(facts.get("alt") or output["data"].get("text/plain") or "figure")
    figure = {"kind": "figure", "mime": mime, "data": content, "alt": alt}
    figure["width"] = finite(facts.get("width"))
    return figure if _BASE64.fullmatch(content) else None


def _marked(page: str) -> str:
    """Cells of prose get a class: their table is set to the left. Done before the cleaning."""

    def mark(cell: re.Match) -> str:
        prose = 2 * sum(map(str.isalpha, cell[1])) > len(cell[1])
        return f'<td class="txt">{cell[1]}</td>' if prose else cell[0]

    return re.sub(r"<td>([^<]{24,})</td>", mark, page)


def _failed_cell(cells: list, run: dict) -> int | None:
    """Where the run stopped: the cell that the record names, or else the first with a traceback."""
    broken = [
        position
        for position, cell in enumerate(cells)
        if "raises-exception" not in str(section(cell, "metadata").get("tags"))
        and any(output.get("output_type") == "error" for output in cell.get("outputs") or [])
    ]
    named = section(run, "error").get("cell")
    if isinstance(named, int) and 0 < named <= len(cells) and (named - 1 in broken or not broken):
        return named - 1  # the record counts from 1
    return next(iter(broken), None)


def _cells(notebook: NotebookNode, failed: int | None, markdown: _Markdown) -> str:
    """The notebook's cells as HTML, by nbconvert with our template."""
    from jupyter_core.paths import jupyter_path
    from nbconvert.exporters import TemplateExporter
    from nbconvert.preprocessors import coalescestreams

    def parts(cell: Any) -> list[dict]:
        merged, _ = coalescestreams.CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
        return [part for o in merged.get("outputs", []) if (part := _part(o, markdown))]

    exporter = TemplateExporter(
        template_file="cells.html.j2",
        template_paths=[str(TEMPLATES), *jupyter_path("nbconvert", "templates")],
        default_preprocessors=[],  # each would validate the notebook, and refuse a broken one
    )
    exporter.environment.autoescape = True
    exporter.environment.filters.update(
        environment().filters,
        code=lambda source: _highlight(source, "python"),
        markdown=lambda cell: markdown.convert(cell.source, cell),
        parts=parts,
    )
    return exporter.from_notebook_node(notebook, {"failed": failed})[0]


def render(notebook: NotebookNode, run: dict) -> str:
    """One self-contained HTML page of a notebook and the record of its run.

    Every key of the record may be missing; a notebook without cells gives the header alone.
    """
    markdown = _Markdown()
    failed = None if run.get("status") == "ok" else _failed_cell(notebook.cells, run)
    body = _cells(notebook, failed, markdown)
    template = environment().get_template("report.html.j2")
    return template.render(
        body=Markup(body),
        code_styles=[HtmlFormatter(style=style) for style in ("default", "github-dark")],
        failed=failed,
        markdown=markdown,
        heading=clean(markdown.title, inline=True),
        run=run,
        title=_plain(markdown.title) or shown(run.get("notebook") or "Report"),
    )


def write_report(folder: Path) -> Path:
    """Write folder/report.html from folder/notebook.ipynb and folder/run.json.

    A notebook that is missing or unreadable leaves the header and the error. Raises OSError where
    the folder can't be written.
    """
    import nbformat

    try:
        notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    except (OSError, ValueError, AttributeError, RecursionError, nbformat.ValidationError):
        notebook = nbformat.v4.new_notebook()
    return write_page(folder / "report.html", render(notebook, read_record(folder)))
