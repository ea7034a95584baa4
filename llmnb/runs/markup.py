"""Untrusted text as clean HTML: `clean`, highlighted code, and Markdown with formulas.

Text from notebooks, models and data reaches a page escaped by Jinja, or as HTML through `clean`,
which keeps only what templates/allowed.json lists.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any
from urllib.parse import unquote

import mistune
import nh3
from markupsafe import Markup, escape
from math_core import LatexError, LatexToMathML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

from llmnb.runs import records

MAX_NESTED_TAGS = 500  # the cleaner's time grows with the square of the depth
MAX_FORMULA_COMMANDS = 400  # the converter is recursive and could overflow the stack
PICTURE_MIMES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_OPENING_OR_CLOSING_TAG = re.compile(r"<(/?)(?!(?:br|col|hr|img|input|wbr)\b)[a-z]", re.IGNORECASE)
_DATA_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[a-z0-9+/=\s]+", re.IGNORECASE)
_UNWANTED_URL = re.compile(r"(?!https?:|mailto:)[^/?#]*:|[/\\]{2}", re.IGNORECASE)
# Pygments' class names have at most three letters, and the page's own have more. So no text can
# get the look of the page's own parts.
_ALLOWED_CLASS = re.compile(r"[a-z]{1,3}\d?|ansi-[a-z-]+|anchor|dataframe|highlight|math-error")

# A blank line ends a formula, as in TeX, so that a stray $$ does not swallow the rest of the page.
_DISPLAY_FORMULA = (
    r"\$\$(?:[^$\\\n]|\\[^\n]|\\?\n(?!\s*\n))+\$\$|"
    r"\\begin\{(?P<math_name>[a-z]+\*?)\}(?:(?!\n\s*\n)[\s\S])+?\\end\{(?P=math_name)\}"
)
# Pandoc's rule for a single dollar, under which "$5 and $6" are prices.
_FORMULA = (
    rf"(?P<math_display>{_DISPLAY_FORMULA})|"
    r"\$(?!\s)(?P<math>(?:[^$\\`]|\\[\s\S])+)(?<!\s)\$(?!\d)"
)
_LATEX_MACROS = {"substack": r"\begin{subarray}{c}#1\end{subarray}"}


def clean(fragment: str, inline: bool = False) -> Markup:
    """Untrusted HTML without anything that runs, loads, or changes the page around it.

    inline: keep text and formulas only. HTML that is nested too deeply is shown as text.
    """
    depth = 0
    for tag in _OPENING_OR_CLOSING_TAG.finditer(fragment):
        depth += -1 if tag[1] else 1
        if depth > MAX_NESTED_TAGS:
            return Markup("<pre>{}</pre>").format(fragment)
    # "replace", because the cleaner refuses lone surrogates, which JSON can carry.
    return Markup(_cleaner(inline).clean(fragment.encode("utf-8", "replace").decode()))


@cache
def _cleaner(inline: bool) -> nh3.Cleaner:
    allowed = json.loads((records.TEMPLATES / "allowed.json").read_text("utf-8"))
    tags = {*allowed["text"], *allowed["math"]}
    attributes = {}
    if not inline:
        tags |= set(allowed["blocks"])
        attributes = {tag: set(names) for tag, names in allowed["attributes"].items()}
    for tag in allowed["math"]:
        attributes[tag] = set(allowed["math_attributes"])
    return nh3.Cleaner(
        tags=tags,
        clean_content_tags=set(allowed["gone_with_content"]),
        attributes=attributes,
        attribute_filter=_clean_attribute,
        filter_style_properties=set(allowed["style_properties"]),
        url_schemes={"http", "https", "mailto", "data"},
    )


def _clean_attribute(tag: str, name: str, value: str) -> str | None:
    """The value that an attribute gets in the page; None removes the attribute."""
    if name == "id":
        return _anchor(value)
    if name == "href":
        url = re.sub(r"[\x00-\x1f\x7f]", "", value).strip()
        if url.startswith("#"):
            return "#" + _anchor(unquote(url[1:]))
        return None if _UNWANTED_URL.match(url) else url
    if name == "class":
        return " ".join(filter(_ALLOWED_CLASS.fullmatch, value.split())) or None
    if name == "src":
        return value if _DATA_PICTURE.fullmatch(value) else None
    if name == "style" and tag in ("td", "th"):
        alignment = re.search(r"text-align:\s*(?:left|center|right)", value)
        return alignment and alignment[0]
    if name == "style" and re.search(r"[(\\@]", value):
        return None
    return value


def _anchor(text: str) -> str:
    """An id made of untrusted text; its prefix keeps it apart from the page's own ids."""
    return "nb-" + re.sub(r"\W+", "-", text.lower()).strip("-").removeprefix("nb-")


def plain_text(fragment: str) -> str:
    """The text of a piece of HTML."""
    return clean(fragment).striptags()


def highlighted(code: str, language: str) -> Markup:
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    return clean(highlight(code, lexer, HtmlFormatter(cssclass="highlight")))


class Markdown(mistune.HTMLRenderer):
    """Converts Markdown to clean HTML, and collects the notebook's title and headings."""

    def __init__(self) -> None:
        super().__init__(escape=False)
        self.title = ""
        self.headings: list[tuple[int, str, Markup]] = []  # level, id, text
        self.failures = 0  # formulas that the converter refused
        self._anchors: set[str] = set()
        self._cell: Any = None
        self._latex = LatexToMathML(macros=_LATEX_MACROS)
        plugins = ["strikethrough", "table", "url", "def_list", _formulas]
        self._parse = mistune.create_markdown(renderer=self, plugins=plugins)

    def convert(self, source: str, cell: Any = None) -> Markup:
        """cell: the notebook's cell that the source is of; only cells have headings to list."""
        self._cell = cell
        return clean(self._parse(source))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = _anchor(plain_text(text))
        if self._cell is not None and level == 1 and not self.title:
            self.title = text  # stands in the page's header
            return ""
        while anchor in self._anchors:
            anchor += "-2"
        self._anchors.add(anchor)
        if self._cell is not None and level in (2, 3):
            self.headings.append((level, anchor, clean(text, inline=True)))
        link = f'<a class="anchor" href="#{anchor}" title="Link to this section">#</a>'
        return f'<h{level} id="{anchor}">{text} {link}</h{level}>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        return highlighted(code, (info or "text").split()[0])

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture that comes with the notebook; for any other, its alternative text."""
        attachments = (self._cell or {}).get("attachments") or {}
        pictures = attachments.get(unquote(url.removeprefix("attachment:")), {})
        for mime in PICTURE_MIMES:
            if mime in pictures:
                url = f"data:{mime};base64,{joined(pictures[mime])}"
        alt = escape(plain_text(text))
        return f'<img src="{escape(url)}" alt="{alt}">' if _DATA_PICTURE.fullmatch(url) else alt

    def formula(self, text: str, display: bool) -> str:
        tex = text.replace("{split}", "{aligned}")  # the converter knows only this name
        try:
            if len(re.findall(r"[\\{]", tex)) > MAX_FORMULA_COMMANDS:
                raise ValueError("too long")
            return self._latex.convert_with_global_state(tex, displaystyle=display)
        except (LatexError, ValueError):
            self.failures += 1
            return f'<code class="math-error">{escape(text)}</code>'


def _formulas(markdown: mistune.Markdown) -> None:
    """A plugin for mistune that finds $…$, $$…$$ and LaTeX's environments."""

    def parse_block(parser, match, state):
        state.add_paragraph(match[0])  # the whole formula, whatever its lines begin with
        return match.end()

    def parse_inline(parser, match, state):
        is_display = match["math"] is None
        tex = match["math_display"].strip("$") if is_display else match["math"]
        state.append_token({"type": "formula", "raw": tex, "attrs": {"display": is_display}})
        return match.end()

    block_pattern = rf"^ {{0,3}}(?:{_DISPLAY_FORMULA})[^\n]*\n?"
    markdown.block.register("formula", block_pattern, parse_block, before="fenced_code")
    for rules in (markdown.block.block_quote_rules, markdown.block.list_rules):
        markdown.block.insert_rule(rules, "formula", before="fenced_code")
    markdown.inline.register("formula", _FORMULA, parse_inline, before="escape")


def joined(value: Any) -> str:
    """A text of a notebook's file, which may be a list of lines there."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)
