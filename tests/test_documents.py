"""Documents of every kind are cut into passages without losing a word; hostile ones stay text."""

import json
import re

import hostile
import pandas as pd
import pytest
from nbformat import v4

from llmnb import handbook
from llmnb.applications import documents
from llmnb.applications.documents import MAX_PASSAGE_CHARACTERS, chunks
from llmnb.runs import markup
from llmnb.runs.report import render

HOSTILE = json.loads((handbook.RESOURCES / "hostile.json").read_text("utf-8"))
MARKDOWN = """Before.

# Boats

## Red *boats* #

They cost 12.

And more.

```python
# no heading
```

## Red boats
Again.
- One
## Storm
"""
PAGE = """<html><head><title>Boats &amp; more</title><style>p {}</style></head>
<body><h1>Boats</h1><p>The <b>red</b>
one.</p><script>steal("cookies")</script><h2>Storm</h2>
<ul><li>Stay in.</li><li>Wait.</li></ul>the end"""
CODE = '''"""About boats."""


@cache
def rent(n):
    return n


class Boat:
    def sail(self):
        pass

    colour = "red"


LAST = 4
'''


def passages_of(file, contents):
    passages, note = chunks(file, contents)
    assert not note
    return [(p.id.partition("#")[2], p.heading, p.text) for p in passages]


def test_markdown_is_cut_at_headings_but_not_in_code():
    red = "They cost 12.\nAnd more.\n# no heading"
    assert passages_of("a.md", MARKDOWN) == [
        ("boats-1", "Boats", "Before."),
        ("red-boats", "Red boats", red),
        ("red-boats-1", "Red boats", "Again.\nOne"),
        ("storm", "Storm", "Storm"),
    ]


def test_a_page_is_cut_at_headings_and_its_scripts_are_dropped():
    assert passages_of("a.html", PAGE) == [
        ("boats", "Boats", "The red one."),
        ("storm", "Boats > Storm", "Stay in.\nWait.\nthe end"),
    ]
    assert {p.title for p in chunks("a.html", PAGE)[0]} == {"Boats & more"}
    assert passages_of("b.html", "no tags <i>at</i> all") == [("b", "b", "no tags at all")]


def test_code_is_cut_at_functions_and_classes():
    assert passages_of("boats.py", CODE) == [
        ("boats", "boats", '"""About boats."""\nLAST = 4'),
        ("rent", "rent", "@cache\ndef rent(n):\n    return n"),
        ("boat", "Boat", 'class Boat:\n    colour = "red"'),
        ("boatsail", "Boat.sail", "    def sail(self):\n        pass"),
    ]


def test_a_notebook_is_read_by_cells_without_outputs():
    sources = [
        ("code", "first()"),
        ("markdown", ["# Boats\n", "\n", "All of them."]),
        ("code", "# no heading\nrent()"),
        ("markdown", "more\n\n## Storm\n\nStay."),
    ]
    cells = [{"cell_type": kind, "source": s, "outputs": ["SECRET"]} for kind, s in sources]
    assert passages_of("n.ipynb", json.dumps({"cells": cells, "nbformat": 4})) == [
        ("boats-1", "Boats", "first()"),
        ("boats", "Boats", "All of them.\n# no heading\nrent()\nmore"),
        ("storm", "Storm", "Stay."),
    ]


def test_plain_text_is_one_passage_while_it_is_short():
    assert passages_of("sub/n.txt", "one\n\n\ntwo\nlines") == [("n", "n", "one\ntwo\nlines")]
    assert chunks("sub/n.txt", "one")[0][0].id == "sub/n.txt#n"
    assert passages_of("n.txt", " \n\n--- \n") == []


def test_line_endings_and_byte_order_marks_of_windows_are_read():
    passages, note = documents.read("w.md", b"\xef\xbb\xbf# T\r\n\r\n## H\r\n\r\none\r\ntwo\r\n")
    assert not note and [(p.heading, p.text) for p in passages] == [("H", "one\ntwo")]


@pytest.mark.parametrize(
    ("file", "contents", "kind"),
    [
        ("a.py", "def broken(:\n    pass", "SyntaxError"),
        ("a.py", "(" * 5000, "Error"),
        ("a.ipynb", "{no json", "JSONDecodeError"),
        ("a.ipynb", "[1, 2]", "TypeError"),
        ("a.ipynb", '{"sheets": []}', "KeyError"),
        ("a.ipynb", "[" * 100_000, "Error"),
    ],
)
def test_a_document_that_does_not_parse_is_read_as_plain_text_with_a_note(file, contents, kind):
    passages, note = chunks(file, contents)
    assert "plain text" in note and kind in note
    assert [p.text for p in passages] == [p.text for p in chunks("a.txt", contents)[0]]


@pytest.mark.parametrize("gap", ["\n\n", ". ", " ", "。"])
def test_long_sections_are_split_and_no_word_is_lost(gap):
    text = gap.join(f"Word{n}" for n in range(2000))
    passages, _ = chunks("a.md", f"# T\n\n## Long\n\n{text}\n\n## Short\n\nHere.")
    assert len(passages) > 8 and passages[-1].heading == "Short"
    sizes = [len(p.text) for p in passages[:-2]]
    assert min(sizes) > MAX_PASSAGE_CHARACTERS / 2 and max(sizes) <= MAX_PASSAGE_CHARACTERS
    joined = "".join("".join(p.text.split()) for p in passages[:-1])
    assert joined == "".join(text.split())
    assert len({p.id for p in passages}) == len(passages)
    if gap != "\n\n":  # the sentences of a paragraph stay on one line
        assert not any("\n" in p.text for p in passages)


def test_the_handbook_gives_its_own_passages():
    passages = []
    for file in sorted(handbook.FOLDER.glob("*.md")):
        passages += documents.read(file.name, file.read_bytes())[0]
    ours = [
        (p.id.replace(".md#", "#"), p.title, p.heading, " ".join(p.text.split())) for p in passages
    ]
    assert ours == [
        (p.id, p.title, p.heading, p.text.replace("`", "")) for p in handbook.passages()
    ]


def hostile_page() -> str:
    """A report of a run whose application repeats every document word for word, in every way."""
    texts = [document["text"] for document in HOSTILE]
    outputs = [
        v4.new_output("stream", name="stdout", text="\n\n".join(texts)),
        hostile.display_output(text_html=pd.DataFrame({"answer": texts})._repr_html_()),
        *(hostile.display_output(text_markdown=text) for text in texts),
        *(hostile.display_output(text_html=text) for text in texts),
    ]
    cells = [v4.new_markdown_cell("# T\n\n## A [link](https://example.org)")]
    cells += [v4.new_code_cell("app.batch(documents)", outputs=outputs)]
    return render(v4.new_notebook(cells=cells), {}).encode("utf-8", "replace").decode()


def test_the_answers_in_hostile_documents_can_be_read_in_a_report():
    page = hostile_page()
    assert [document["id"] for document in HOSTILE if document["answer"] not in page] == []


@pytest.mark.browser
def test_hostile_documents_do_nothing_in_a_browser(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    clean = hostile_page()
    monkeypatch.setattr(markup, "_cleaner", lambda inline: hostile.Careless())
    careless = hostile_page()
    with hostile.chromium() as browser:
        for text in (clean, policy.sub("", clean)):  # the cleaner alone must do, too
            path.write_text(text, "utf-8")
            hostile.assert_nothing_happened(hostile.watch(browser, path), path)
        path.write_text(policy.sub("", careless), "utf-8")
        assert hostile.watch(browser, path)["pwned"]  # this test can fail


def test_an_excerpt_is_the_sentence_with_its_neighbours(monkeypatch):
    text = "One is here. Two is here.\nThree is here. Four is here."
    for limit, expected in (
        (3, "Three is here."),
        (6, "Three is here. Four is here."),
        (9, "Two is here. Three is here. Four is here."),
        (99, "One is here. Two is here. Three is here. Four is here."),
    ):
        monkeypatch.setattr(documents, "MAX_EXCERPT_WORDS", limit)
        assert documents.excerpt(text, "Three is here.") == expected


def test_an_excerpt_says_nothing_twice():
    text = "First.\nStart it so:\n`go now`\nEnd."
    for unit in ("Start it so: `go now`", "`go now`", "End."):
        assert documents.excerpt(text, unit) == "First. Start it so: `go now` End."
