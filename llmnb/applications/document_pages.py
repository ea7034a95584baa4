"""A document as headings and units of text, and how HTML and Markdown are read as such.

A unit holds whole sentences: a paragraph, a list item, a table's row, a line of code.
Markdown becomes HTML first, as other formats do, so that one reader cuts them all.
"""

import itertools
import re
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import mistune
import yaml
from bs4 import BeautifulSoup, CData, Comment, NavigableString, Tag
from mistune.plugins import def_list, formatting, table

from llmnb.text import has_cut_words, on_one_line


@dataclass(frozen=True)
class Unit:
    """A heading, a paragraph, a list item, a row or a line of code, on one line."""

    text: str
    level: int = 0  # of a heading, from 1; 0 for text


@dataclass
class Document:
    """The content of a file in its order."""

    title: str = ""
    units: list[Unit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on what is left out
    blob_sizes: list[int] = field(default_factory=list)  # of `without_blobs`, in characters

    def add(self, text: str, level: int = 0) -> None:
        """Add a unit. The first heading of level 1 becomes the title if there is none yet."""
        if level:  # some tools write an anchor behind a heading, as in {#fees}
            text = re.sub(r" \{[#.][^{}]*\}$", "", " ".join(text.split()))
        if text.strip():
            self.units.append(Unit(text.rstrip(), level))
        if level == 1:
            self.title = self.title or text

    def without_blobs(self, contents: str) -> str:
        """The contents with … in place of pictures and other data that are written as letters."""

        def replacement(match: re.Match) -> str:
            if not any(character.isalnum() for character in match[0]):  # a ruler, a table's border
                return match[0]
            self.blob_sizes.append(len(match[0]))
            return "…\n" if "\n" in match[0] else "…"

        return _BLOB.sub(replacement, contents)


_BLOB = re.compile(
    r"data:[\w.+-]{1,99}/[\w.+=;-]{1,199},[^\s\"'<>()\[\]]+"  # a data URI
    r"|(?:^[A-Za-z0-9+/]{60,}=*\n){2,}"  # base64 in lines, the last of which is shorter
    r"(?:[A-Za-z0-9+/]{20,}=*$|[A-Za-z0-9+/]+=+$)?"
    r"|[A-Za-z0-9+/=_-]{200,}",
    re.MULTILINE,
)
MIN_WRAPPED_COLUMNS = 50  # a paragraph with shorter lines only was not wrapped: it is a list
_NEW_UNIT = re.compile(r"[-*•–+>|#]\s|\(?\d{1,3}[.)]\s|\d+[-:/.]\d|\[")


def unwrapped(lines: Sequence[str]) -> list[str]:
    """The lines of a paragraph, joined where only the page's width broke them.

    That is so where the next word would not have fitted, or where a sentence goes on in lower case.
    """
    lines = [" ".join(line.split()) for line in lines if line.strip()]
    width = max(map(len, lines), default=0)
    is_list = width < MIN_WRAPPED_COLUMNS and not has_cut_words("\n".join(lines))
    units = [lines[:1]]
    for previous, line in itertools.pairwise(lines):
        is_full = len(previous) + 1 + len(line.split()[0]) > width
        goes_on = line[0].islower() and not lines[0][0].islower()
        if is_list or _NEW_UNIT.match(line) or not (is_full or goes_on):
            units.append([])
        units[-1].append(line)
    return [on_one_line("\n".join(unit)) for unit in units]


_FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def _without_front_matter(contents: str, document: Document) -> str:
    """The contents without the metadata before them, which may name the title."""
    match = _FRONT_MATTER.match(contents)
    if not match:
        return contents
    try:
        parse = yaml.safe_load if match[1] == "---" else tomllib.loads
        metadata = parse(match[2] or "") or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        document.notes.append("front matter that can't be read is taken as text")
        return contents
    if not isinstance(metadata, dict):  # a text between two rules
        return contents
    if isinstance(metadata.get("title"), str):
        document.title = " ".join(metadata["title"].split())
    return contents[match.end() :]


class _Renderer(mistune.HTMLRenderer):
    """HTML that keeps line breaks within paragraphs."""

    def softbreak(self) -> str:
        return "\f"

    def inline_html(self, html: str) -> str:
        """A sentence may mention "the <script> tag": left as HTML it would hide what follows."""
        return mistune.escape(html) if re.match(r"</?(script|style|template)\b", html) else html


def _parse_footnote(block: mistune.BlockParser, match: re.Match, state) -> int:
    """Read a footnote as a paragraph; mistune would drop it as a link's definition."""
    state.append_token({"type": "paragraph", "text": match[0]})
    return match.end()


def _parse_formula(inline: mistune.InlineParser, match: re.Match, state) -> int:
    """Keep LaTeX as it is; its underscores and backslashes would be read as Markdown."""
    state.append_token({"type": "codespan", "raw": match[0]})
    return match.end()


def read_markdown(contents: str, document: Document) -> None:
    """CommonMark with tables, and with pieces of HTML."""
    contents = _without_front_matter(document.without_blobs(contents), document)
    markdown = mistune.Markdown(_Renderer(escape=False))
    plugins = [table.table, table.table_in_list, table.table_in_quote, def_list.def_list]
    for plugin in [*plugins, formatting.strikethrough]:
        plugin(markdown)
    footnote = r"^ {0,3}\[\^[^\]\n]+\]:[^\n]*(?:\n(?=[^\s\[])[^\n]+)*"
    markdown.block.register("footnote", footnote, _parse_footnote, before="ref_link")
    formula = r"\$\$[^$]+\$\$|\$(?=\S)[^$\n]*(?<=[^\s\\])\$(?!\d)"  # not: $5 and $6
    markdown.inline.register("formula", formula, _parse_formula, before="escape")
    read_page(markdown(contents), document)


_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CODE = {"pre", "listing", "xmp", "plaintext"}
# All other elements stand within a line, also those that nobody knows. Source: the HTML
# standard's section on rendering, what has "display: block", and the parts of lists and tables.
_BLOCK_ELEMENTS = (
    "address article aside blockquote body button caption center dd details dialog dir div dl dt"
    " fieldset figcaption figure footer form frameset head header hgroup hr html legend li main"
    " menu nav ol optgroup option p search section summary table tbody td tfoot th thead tr ul"
)
_BLOCK_ELEMENTS = {BeautifulSoup.ROOT_TAG_NAME, *_HEADINGS, *_CODE, *_BLOCK_ELEMENTS.split()}
_CELLS = ["td", "th"]
_LAYOUT_ELEMENTS = ["table", "pre", *_HEADINGS]  # a table with one of these arranges a page
_LAYOUT_ELEMENTS_OR_LISTS = [*_LAYOUT_ELEMENTS, "ul", "ol", "dl"]  # where it has no header


def read_html(contents: str, document: Document) -> None:
    """A page by its headings; scripts and styles are dropped, nothing is run."""
    read_page(_without_front_matter(document.without_blobs(contents), document), document)


def read_page(page: str, document: Document) -> None:
    """As `read_html`, from HTML that another format was turned into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a short text looks like a file's name or an address
        soup = BeautifulSoup(page, "html.parser")
    if struck_out := soup(["del", "s", "strike"]):
        document.notes.append(f"left out of it: struck-out text (pieces: {len(struck_out)})")
    for tag in soup(["script", "style", "template"]) + struck_out:
        tag.decompose()
    for tag in soup("sup", string=re.compile(r"^\W*\d")):  # 500 and a note's 1 are not 5001
        if re.search(r"\d\Z", str(tag.previous)):
            tag.insert(0, "^")
    for tag in soup("a", href=re.compile("^#"), string=re.compile(r"^\W+$")):  # a heading's ¶
        tag.decompose()
    for tag in soup("br"):
        tag.insert_before("\v")
    for tag in soup("title"):
        if (
            tag.parent.name in ("head", "html", soup.name) and not tag.find()
        ):  # else it isn't closed
            document.title = document.title or " ".join(tag.get_text().split())
            tag.decompose()
    for tag in soup("ol"):
        _number_items(tag)
    for tag in soup("dt"):
        definition = tag.find_next_sibling()
        if definition and definition.name == "dd":
            _put_before(" ".join(tag.get_text().split()).rstrip(":") + ": ", definition)
            tag.decompose()
    for tag in soup("table"):
        has_header = tag.find("th") is not None
        if not tag.find(_LAYOUT_ELEMENTS if has_header else _LAYOUT_ELEMENTS_OR_LISTS):
            rows = soup.new_tag("pre")
            rows.string = "\n".join(_table_units(tag))
            tag.replace_with(rows)
    _read_blocks(soup, document)


def _read_blocks(soup: BeautifulSoup, document: Document) -> None:
    """What stands between two borders of block elements is a paragraph, or a piece of code."""
    strings: list[str] = []
    last_block = soup

    def flush() -> None:
        text = "".join(strings)
        strings.clear()
        if last_block.name in _CODE:
            for line in text.replace("\v", "\n").split("\n"):
                document.add(line)
        elif last_block.name in _HEADINGS and not _ancestor(last_block, {"blockquote"}):
            document.add(text, _HEADINGS[last_block.name])
        else:
            is_item = "li" in (last_block.name, last_block.parent and last_block.parent.name)
            for part in text.split("\v"):
                for unit in unwrapped([part] if is_item else part.split("\f")):
                    document.add(unit)

    for node in soup.descendants:
        if isinstance(node, Tag) and node.name in _BLOCK_ELEMENTS:
            flush()
        elif type(node) in (NavigableString, CData):  # no comment
            block = _ancestor(node, _BLOCK_ELEMENTS)
            if block is not last_block:
                flush()
            last_block = block
            if strings or node.strip():
                is_code = block.name in _CODE
                strings.append(node if is_code else re.sub(r"[^\S\v\f]+", " ", node))
    flush()


def _ancestor(node: Tag | NavigableString, names: set[str]) -> Tag | None:
    """The nearest element around a node that has one of the names."""
    return next((parent for parent in node.parents if parent.name in names), None)


def _number_items(tag: Tag) -> None:
    """Write before the items of an ordered list what a browser shows before them."""
    items = [item for item in tag("li") if _ancestor(item, {"ol", "ul"}) is tag]
    start = str(tag.get("start", ""))
    for number, item in enumerate(items, int(start) if start.isdecimal() else 1):
        _put_before(f"{number}. ", item)


def _put_before(text: str, item: Tag) -> None:
    """Insert text that stands on one line with the item, or with its first paragraph."""
    contents = (child for child in item.contents if str(child).strip())
    first = next((child for child in contents if not isinstance(child, Comment)), None)
    (first if isinstance(first, Tag) and first.name == "p" else item).insert(0, text)


def _table_units(tag: Tag) -> list[str]:
    """The caption, then a unit for each row with the header's names: "Dish: soup; Price: 7.50".

    A cell that spans rows stands in each of them.
    """
    # Of each cell, by id(cell): where a page doesn't close its cells, one is inside the other.
    texts: dict[int, str] = defaultdict(str)
    last_block = None
    for node in tag.descendants:
        if type(node) in (NavigableString, CData):
            block = _ancestor(node, _BLOCK_ELEMENTS)
            cell = _ancestor(node, {*_CELLS, "table"})
            texts[id(cell)] += node if block is last_block else f" {node}"
            last_block = block
    cells_by_row: dict[int, list[Tag]] = defaultdict(list)
    for cell in tag.find_all(_CELLS):
        cells_by_row[id(_ancestor(cell, {"tr"}))].append(cell)
    grid: list[dict[int, str]] = [{} for _ in cells_by_row]  # the text of each column, row by row
    n_headers = 0
    for y, cells in enumerate(cells_by_row.values()):
        is_corner_empty = not texts[id(cells[0])].strip()  # as it may be in a row of names
        are_names = all(cell.name == "th" for cell in cells[is_corner_empty:])
        is_header = n_headers == y and (are_names or tag.thead in cells[0].parents)
        n_headers += is_header
        x = 0
        for cell in cells:
            while x in grid[y]:
                x += 1
            text = " ".join(texts[id(cell)].split())
            for row in grid[y : y + _span(cell, "rowspan")]:
                row[x] = text
            for _ in range(_span(cell, "colspan") - 1):
                x += 1
                grid[y].setdefault(x, text if is_header else "")
    rows = [[row.get(x, "") for x in range(max(row) + 1)] for row in grid]
    headers, rows = rows[:n_headers], rows[n_headers:]
    columns = itertools.zip_longest(*headers, fillvalue="")
    names = [" ".join(dict.fromkeys(filter(None, column))) for column in columns]
    units = [" ".join(texts[id(tag)].split())]
    for row in rows or [names]:
        pairs = itertools.zip_longest(names if rows else [], row, fillvalue="")
        cells = [f"{name}: {text}" if name else text for name, text in pairs if text]
        is_pair = len(row) == 2 and not any(names)
        units.append((": " if is_pair else "; ").join(cells))
    return units


def _span(cell: Tag, name: str) -> int:
    value = str(cell.get(name, ""))
    return min(max(int(value), 1), 1000) if value.isdecimal() else 1
