"""Documents of every kind are cut into passages, and no word of them is lost."""

import json

import pytest

from llmnb import handbook
from llmnb.applications import documents
from llmnb.applications.documents import LONGEST, chunks

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
"""
PAGE = """<html><head><title>Boats &amp; more</title><style>p {}</style></head>
<body><h1>Boats</h1><p>The <b>red</b>
one.</p><script>steal("cookies")</script><h2>Storm</h2>
<ul><li>Stay in.</li><li>Wait.</li></ul>the end"""
CODE = '''"""About boats."""

LIMIT = 3


@cache
def rent(n):
    """Rent n."""
    return n


class Boat:
    """A boat."""

    def sail(self):
        pass

    colour = "red"


LAST = 4
'''


def cells(*pairs):
    found = [{"cell_type": kind, "source": source, "outputs": ["SECRET"]} for kind, source in pairs]
    return json.dumps({"cells": found, "nbformat": 4})


def found(file, contents):
    passages, note = chunks(file, contents)
    assert not note
    return [(p.id.partition("#")[2], p.heading, p.text, p.line) for p in passages]


def test_markdown_is_cut_at_headings_but_not_in_code():
    assert found("a.md", MARKDOWN) == [
        ("boats", "Boats", "Before.", 1),
        (
            "red-boats",
            "Red *boats*",
            "They cost 12.\n\nAnd more.\n\n```python\n# no heading\n```",
            7,
        ),
        ("red-boats-2", "Red boats", "Again.", 16),
    ]


def test_a_page_is_cut_at_headings_and_its_scripts_are_dropped():
    assert found("a.html", PAGE) == [
        ("boats", "Boats", "The red one.", 2),
        ("storm", "Storm", "Stay in.\n\nWait.\n\nthe end", 4),
    ]
    assert {p.title for p in chunks("a.html", PAGE)[0]} == {"Boats & more"}
    assert found("b.html", "no tags <i>at</i> all") == [("b", "b", "no tags at all", 1)]


def test_code_is_cut_at_functions_and_classes():
    assert found("boats.py", CODE) == [
        ("boats", "boats", '"""About boats."""\n\nLIMIT = 3\n\nLAST = 4', 1),
        ("rent", "rent", '@cache\ndef rent(n):\n    """Rent n."""\n    return n', 6),
        ("boat", "Boat", 'class Boat:\n    """A boat."""\n\n    colour = "red"', 12),
        ("boat-sail", "Boat.sail", "    def sail(self):\n        pass", 15),
    ]


def test_a_notebook_is_read_by_cells_without_outputs():
    text = cells(
        ("code", "first()"),
        ("markdown", ["# Boats\n", "\n", "All of them."]),
        ("code", "# no heading\nrent()"),
        ("markdown", "more\n\n## Storm\n\nStay."),
    )
    assert found("n.ipynb", text) == [
        ("boats", "Boats", "first()", 1),
        ("boats-2", "Boats", "All of them.\n\n# no heading\nrent()\n\nmore", 2),
        ("storm", "Storm", "Stay.", 4),
    ]


def test_plain_text_is_one_passage_while_it_is_short():
    assert found("sub/n.txt", "one\n\n\ntwo\nlines") == [("n", "n", "one\n\ntwo\nlines", 1)]
    assert chunks("sub/n.txt", "one")[0][0].id == "sub/n.txt#n"
    assert found("n.txt", " \n\n--- \n") == []


def test_windows_lines_and_marks_are_read():
    passages, note = documents.read("w.md", b"\xef\xbb\xbf# T\r\n\r\n## H\r\n\r\none\r\ntwo\r\n")
    assert not note and [(p.heading, p.text, p.line) for p in passages] == [("H", "one\ntwo", 5)]


@pytest.mark.parametrize(
    ("file", "contents", "kind"),
    [
        ("a.py", "def broken(:\n    pass", "SyntaxError"),
        ("a.py", "(" * 5000, "Error"),
        ("a.ipynb", "{no json", "JSONDecodeError"),
        ("a.ipynb", "[1, 2]", "TypeError"),
        ("a.ipynb", '{"worksheets": []}', "KeyError"),
        ("a.ipynb", "[" * 100_000, "Error"),
    ],
)
def test_what_does_not_parse_is_plain_text_and_said(file, contents, kind):
    passages, note = chunks(file, contents)
    assert "plain text" in note and kind in note
    assert passages == chunks("a.txt", contents)[0] or passages[0].text == contents[:LONGEST]


@pytest.mark.parametrize("gap", ["\n\n", ". ", " ", "", "。"])
def test_long_sections_are_split_and_no_word_is_lost(gap):
    text = gap.join(f"Word{n}" for n in range(2000))
    passages, _ = chunks("a.md", f"# T\n\n## Long\n\n{text}\n\n## Short\n\nHere.")
    assert len(passages) > 8 and passages[-1].heading == "Short"
    assert max(len(p.text) for p in passages) <= LONGEST
    assert min(len(p.text) for p in passages[:-2]) > LONGEST / 2
    together = "".join("".join(p.text.split()) for p in passages[:-1])
    assert together == "".join(text.split())
    assert len({p.id for p in passages}) == len(passages)
    if gap == "\n\n":  # paragraphs stay whole, and the line is that of the first
        lines = [5 + 2 * int(p.text.partition("\n")[0][4:]) for p in passages[:-1]]
        assert [p.line for p in passages[:-1]] == lines


def test_the_handbook_gives_its_own_passages():
    ours = []
    for file in sorted(handbook.FOLDER.glob("*.md")):
        ours += documents.read(file.name, file.read_bytes())[0]
    theirs = handbook.passages()
    assert [p.id.replace(".md#", "#") for p in ours] == [p.id for p in theirs]
    assert [" ".join(p.text.split()) for p in ours] == [p.text for p in theirs]
    assert [(p.title, p.heading) for p in ours] == [(p.title, p.heading) for p in theirs]
