"""Documents that give orders: whatever an application repeats of them is text in the report."""

import json
import re

import hostile
import pandas as pd
import pytest
from nbformat import v4

from llmnb import handbook
from llmnb.runs import markup
from llmnb.runs.report import render

DOCUMENTS = json.loads((handbook.RESOURCES / "hostile.json").read_text("utf-8"))


def page() -> str:
    """A report of a run whose application repeats every document word for word, in every way."""
    texts = [document["text"] for document in DOCUMENTS]
    outputs = [
        v4.new_output("stream", name="stdout", text="\n\n".join(texts)),
        hostile.shown(text_html=pd.DataFrame({"answer": texts})._repr_html_()),
        *(hostile.shown(text_markdown=text) for text in texts),
        *(hostile.shown(text_html=text) for text in texts),
    ]
    cells = [v4.new_markdown_cell("# T\n\n## A [link](https://example.org)")]
    cells += [v4.new_code_cell("app.batch(documents)", outputs=outputs)]
    return render(v4.new_notebook(cells=cells), {}).encode("utf-8", "replace").decode()


def test_what_the_documents_say_can_still_be_read():
    shown = page()
    for document in DOCUMENTS:
        assert document["answer"] in shown, document["id"]
    assert len(DOCUMENTS) == 30


@pytest.mark.browser
def test_the_thirty_documents_do_nothing_in_a_browser(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    clean = page()
    monkeypatch.setattr(markup, "_cleaner", lambda inline: hostile.Careless())
    careless = page()
    with hostile.chromium() as browser:
        for text in (clean, policy.sub("", clean)):  # the cleaner alone must do, too
            path.write_text(text, "utf-8")
            hostile.assert_nothing_happened(hostile.watch(browser, path), path)
        path.write_text(policy.sub("", careless), "utf-8")
        assert hostile.watch(browser, path)["pwned"]  # this test can fail
