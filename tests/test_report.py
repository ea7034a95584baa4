"""The report: what it shows, what it keeps out, and that it opens in a browser as it should."""

import base64
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime

import hostile
import nbformat
import pytest
from bs4 import BeautifulSoup
from hostile import display_output
from nbformat import v4

from llmnb.record import ANSWER_MIME, METRIC_MIME
from llmnb.runs import markup
from llmnb.runs.report import render, write_report

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
RUN = {
    "schema": 1,
    "notebook": "02_attention",
    "status": "ok",
    "parameters": {"seed": 3, "data": "my <file>.csv", "api_key": "•••", "rows": None, "note": ""},
    "metrics": {
        "accuracy": {"value": 0.84125, "better": "higher", "unit": None, "low": 0.82, "high": 0.86},
        "tokens": {
            "value": 1234567,
            "better": "higher",
            "unit": "per hour",
            "label": "tokens read",
            "baseline": {"label": "by hand", "value": 3},
        },
    },
    "attempt": 1,
    "pid": 1,
    "started": "2026-11-23T19:52:11+00:00",
    "seconds": 83.2,
    "peak_memory_mb": 1912.4,
    "hardware": {"cores": 2, "dtype": "bf16"},
    "versions": {"torch": "2.13.0"},
    "source": {"git": "3fa9c1d2e4"},
    "error": None,
}


def book(*cells):
    """A notebook of markdown (strings) and code cells."""
    typed = [v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return v4.new_notebook(cells=typed)


def code(source, *outputs, tags=()):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def soup(*cells, run=None):
    return BeautifulSoup(render(book(*cells), run or {}), "html.parser")


def printed(text, name="stdout"):
    return v4.new_output("stream", name=name, text=text)


RED = "\x1b[31mKeyError\x1b[0m"
FAILURE = v4.new_output("error", ename="KeyError", evalue="'k'", traceback=[RED])


def test_title_contents_and_anchors():
    late = "## One & two\n\n## One & two\n\n### Why $d_k$?\n\n# Late"
    page = soup("# The `title` of $x$", late)
    assert page.h1.code.text == "title" and page.title.text.startswith("The title of")
    assert [h.text.removesuffix(" #") for h in page.select("main .prose h1")] == ["Late"]
    links = page.select(".contents a")
    assert len(links) == 3 and links[2].math
    targets = [link["href"][1:] for link in links]
    assert len(set(targets)) == 3 and all(page.find(id=target) for target in targets)


def test_links_inside_the_notebook_lead_there_and_not_to_our_controls():
    page = soup("[jump](#Why-√d_k%3F)", "## Why √d_k?", '<a id="all-code"></a>[x](#all-code)')
    targets = [link["href"][1:] for link in page.select(".prose a[href]")]
    assert len(targets) == 3 and all(page.find(id=target) for target in targets)
    assert page.find(id="all-code").name == "input" and "all-code" not in targets


def test_the_header_tells_the_run():
    page = soup("# T", run=RUN)
    text = " ".join(page.header.text.split())
    for part in ("✓ ok", "02_attention", "2026-11-23 19:52 UTC", "1 min 23 s", "1.9 GB peak"):
        assert part in text
    pairs = {row.th.text: row.td.text for row in page.select(".pairs tr")}
    parameters = {"seed": "3", "data": "my <file>.csv", "api_key": "•••", "rows": "None"}
    environment = {"cores": "2", "dtype": "bf16", "torch": "2.13.0", "git": "3fa9c1d2e4"}
    assert pairs == parameters | {"note": '""'} | environment
    assert [" ".join(row.get_text(" ").split()) for row in page.select(".figures tbody tr")] == [
        "accuracy 0.8413 ↑ [0.82, 0.86]",
        "tokens read 1,234,567 per hour ↑ 3 (by hand)",
    ]


@pytest.mark.parametrize("missing", [*RUN, "everything"])
def test_any_part_of_the_record_may_be_missing_or_broken(missing):
    rest = {} if missing == "everything" else {k: v for k, v in RUN.items() if k != missing}
    assert "Body" in soup("# T", "Body", run=rest).main.text
    for wrong in ("text", 7, ["list"], {"a": {"b": []}}, None, float("nan"), 10**400):
        broken = dict.fromkeys(RUN, wrong) if missing == "everything" else RUN | {missing: wrong}
        assert "Body" in soup("# T", "Body", run=broken).main.text


def answered(text, figure=None):
    return display_output(**{ANSWER_MIME: {"text": text, "figure": figure}, "text/markdown": text})


def test_the_page_opens_with_the_question_the_answer_and_its_figure():
    picture = display_output({"image/png": {"alt": "Bars: 1, 2"}}, image_png=PIXEL)
    other = display_output({"image/png": {"alt": "Lines"}}, image_png=PIXEL)
    cells = (
        "# Is it?",
        code("plot", picture, other),
        code("end", answered("**Yes**.", "Bars: 1, 2")),
    )
    header = soup(*cells, run=RUN).header
    answer = header.select_one(".answer")
    assert answer.strong.text == "Yes" and answer.img["alt"] == "Bars: 1, 2"
    order = [element.name for element in header.find_all(["h1", "section", "table"])]
    assert order[:3] == ["h1", "section", "table"]
    assert not soup("# T", code("end", answered("A", "gone")), run=RUN).select(".answer figure")
    assert not soup("# T", "Body", run=RUN).select(".answer")
    twice = soup("# T", code("a", answered("First.")), code("b", answered("Second.")), run=RUN)
    assert twice.select_one(".answer").text.strip() == "Second."


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"status": "failed", "error": {"type": "DeadKernelError"}}, "smaller profile"),
        ({"status": "timeout", "error": {"type": "TimeoutError"}}, "longer --timeout"),
        ({"status": "killed"}, "starts it again"),
        ({"status": "failed", "error": {"type": "TableError"}}, "Change what the message names"),
    ],
)
def test_a_run_that_failed_says_what_to_do(change, advice):
    header = soup("# T", "Body", run=RUN | change).header
    assert advice in header.select_one(".alarm .advice").text
    assert header.h1.find_next(["div", "table", "section"])["class"] == ["alarm"]


def test_a_failed_run_leads_to_the_cell():
    error = {"cell": 3, "type": "KeyError", "message": "<k>"}
    fine = code("1/0", FAILURE, tags=["raises-exception"])
    cells = ("# T", fine, code("x", FAILURE), code("never"))
    page = soup(*cells, run=RUN | {"status": "failed", "error": error})
    box = page.select_one(".alarm")
    assert "KeyError in cell 3" in " ".join(box.text.split()) and box.pre.text == "<k>"
    target = page.find(id=box.a["href"][1:])
    assert target["class"] == ["cell", "failed"] and target.select_one(".error .ansi-red-fg")
    assert len(page.select(".failed")) == 1
    assert not soup(*cells, run=RUN).select(".alarm, .failed")  # an error that was meant
    assert "did not finish" in soup("# T", run={"status": "killed"}).select_one(".alarm").text


def test_code_is_folded_and_labelled():
    page = soup(
        code("# check: it holds   NBVAL_CHECK_OUTPUT\nassert True", printed("yes\n")),
        code("seed = 0", tags=["parameters"]),
        code("seed = 1", tags=["injected-parameters"]),
    )
    folds = page.select("details.source")
    assert not any(fold.has_attr("open") for fold in folds)
    assert "NBVAL_CHECK_OUTPUT" in folds[0].select_one(".highlight").text
    summaries = [" ".join(fold.summary.text.split()) for fold in folds]
    assert summaries[0] == "Code check: it holds"
    assert "defaults" in summaries[1] and "this run" in summaries[2]
    assert page.select_one(".output.text").text.strip() == "yes"
    assert page.find("input", id="all-code")


def test_outputs():
    import pandas as pd

    table = pd.DataFrame({"x": [1.5, 2], "<b>": ["<i>", "b"]})
    metric = {"name": "f1", "value": 0.5, "better": "higher", "unit": None, "low": 0.4, "high": 0.6}
    page = soup(
        code(
            "x",
            display_output(text_html=table._repr_html_(), text_plain="no"),
            printed("step 1\rstep 2\r"),
            printed("step 3\nend\n"),
            printed("careful\n", "stderr"),
            printed("\n".join(map(str, range(300)))),
            display_output({"image/png": {"alt": 'loss "falls"', "width": 320}}, image_png=PIXEL),
            display_output(image_png=PIXEL, text_plain="<Figure size 1x1>"),
            display_output(image_jpeg=PIXEL),
            display_output(**{METRIC_MIME: metric, "text/plain": "f1 = 0.5"}),
            display_output(text_latex="$\\displaystyle \\frac{1}{2}$", text_plain="1/2"),
            display_output(
                text_html="<script>plot()</script><style>a{}</style>", text_plain="a plot"
            ),
            display_output(
                **{"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a bar"}
            ),
            display_output(text_html="<div>" * 3000 + "deep"),
        )
    )
    assert [cell.text for cell in page.select("table.dataframe td")] == ["1.5", "<i>", "2.0", "b"]
    texts = [output.text.strip() for output in page.select(".output.text")]
    assert texts[0] == "step 3\nend" and texts[2:4] == ["a plot", "a bar"]
    assert page.select_one(".output.stderr").text.strip() == "careful"
    assert [output.pre.text.count("\n") for output in page.select(".long")] == [299]
    images = [(image["alt"], image.get("width")) for image in page.select("figure img")]
    assert images == [('loss "falls"', "320"), ("<Figure size 1x1>", None), ("figure", None)]
    assert len(page.select("figure.plot")) == 2
    assert " ".join(page.select_one(".metric").text.split()) == "f1 0.5 [0.4, 0.6] ↑"
    assert page.select_one(".output math mfrac") and "<div><div>" in page.main.text


def test_a_table_of_prose_is_marked_before_the_cleaning():
    cells = ["<td>0.728 [0.703, 0.752], 1280</td>", "<td>a sentence that is long enough</td>"]
    page = soup(
        code("t", display_output(text_html=f"<table><tr>{cells[0]}{cells[1]}</tr></table>"))
    )
    assert [cell.get("class") for cell in page.select(".output td")] == [None, ["txt"]]
    hidden = f"<img src='data:image/png;base64,{PIXEL}' alt='<td>{'x' * 30}</td> onerror=x'>"
    page = soup(code("t", display_output(text_html=hidden)))
    assert not any("onerror" in tag.attrs for tag in page.find_all(True))


@pytest.mark.parametrize("name", hostile.PAYLOADS)
def test_a_hostile_text_is_inert_everywhere(name):
    payload = hostile.PAYLOADS[name]
    cells = [payload, f"# {payload}", f"## {payload}", f"- {payload}"]
    cells += [code(payload, *hostile.outputs(payload))]
    hostile.assert_inert(render(book(*cells), hostile.run(payload)))


def test_all_hostile_texts_together():
    hostile.assert_inert(render(hostile.notebook(), hostile.run()))


def test_these_checks_go_red_without_the_cleaner(monkeypatch):
    monkeypatch.setattr(markup, "_cleaner", lambda inline: hostile.Careless())
    pages = {name: render(book(text), {}) for name, text in hostile.PAYLOADS.items()}
    not_caught = {name for name, page in pages.items() if not hostile.is_caught(page)}
    assert not_caught == hostile.HARMLESS_BEFORE_CLEANING


def test_write_report(tmp_path):
    now = {"status": "running", "pid": os.getpid(), "started": datetime.now(UTC).isoformat()}
    (tmp_path / "run.json").write_text(json.dumps(RUN | now))
    assert "No readable notebook" in write_report(tmp_path).read_text("utf-8")
    for garbage in ("", "{", "[]", '{"nbformat": 4}', "\x00"):
        (tmp_path / "notebook.ipynb").write_text(garbage)
        assert "No readable notebook" in write_report(tmp_path).read_text("utf-8")
    nbformat.write(book("# New"), tmp_path / "notebook.ipynb")
    assert write_report(tmp_path) == tmp_path / "report.html"
    page = BeautifulSoup((tmp_path / "report.html").read_bytes(), "html.parser")
    assert page.h1.text == "New" and "had not finished" in page.header.text
    (tmp_path / "run.json").write_text("{half")
    assert "can't be read" in write_report(tmp_path).read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notebook.ipynb",
        "report.html",
        "run.json",
    ]


def test_importing_the_report_does_not_import_nbconvert():
    names = "nbconvert", "nbformat", "matplotlib", "torch", "IPython"
    script = f"import sys, llmnb.runs.report; print([n for n in {names} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


@pytest.mark.browser
def test_hostile_texts_in_a_real_browser(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    page = render(hostile.notebook(), hostile.run()).encode("utf-8", "replace").decode()
    monkeypatch.setattr(markup, "_cleaner", lambda inline: hostile.Careless())
    careless = render(book(hostile.PAYLOADS["image error"]), {})
    with hostile.chromium() as browser:
        for text in (page, policy.sub("", page)):  # the cleaner alone must do, too
            path.write_text(text, "utf-8")
            hostile.assert_nothing_happened(hostile.watch(browser, path), path)
        path.write_text(policy.sub("", careless), "utf-8")
        seen = hostile.watch(browser, path)
        assert seen["pwned"] == 1 and seen["dom"] == ["onerror"]  # this test can fail


@pytest.mark.browser
def test_the_page_in_a_real_browser(tmp_path):
    wide = "<table>" + "<tr>" + "<td>a_wide_cell</td>" * 40 + "</table>"
    first = code("hidden = 1", display_output(text_html=wide))
    path = tmp_path / "report.html"
    failed = RUN | {"status": "failed", "error": {"cell": 5}}
    path.write_text(render(book("# T", "## A $x$", first, "## B", code("x", FAILURE)), failed))
    with hostile.chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 800})
        page.goto(path.as_uri())
        assert not page.locator(".highlight").first.is_visible()
        page.check("#all-code")
        assert page.locator(".highlight").first.is_visible()
        assert page.locator(".contents a").last.is_visible()  # beside the text
        page.click(".alarm a")
        assert page.evaluate("document.querySelector(':target').className") == "cell failed"
        page.set_viewport_size({"width": 380, "height": 800})
        assert not page.locator(".contents a").last.is_visible()
        page.click(".contents summary")
        assert page.locator(".contents a").last.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        page.emulate_media(media="print", color_scheme="dark")
        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
