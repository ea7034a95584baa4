"""Awkward documents: each is read right, or refused in one sentence; no word is lost or doubled."""

import io
import re
import zipfile

import docx
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnb.applications import document_formats, documents
from llmnb.applications.documents import chunks

PIXELS = "iVBORw0KGgo" * 30
LONG = "The landlord has to be told about every repair in writing, and he has"
MARKDOWN = [  # a document; its passages, a heading and its units each
    ("# Learn C#\n\nMondays.\n\n## F# #\n\nFridays.", ["Learn C#: Mondays.", "F#: Fridays."]),
    ("Prices\n======\n\nA\n-\n\none", ["A: one"]),
    ("~~~\n```\n# inside\n~~~\n\n## After\n\nx", ["a: ```/# inside", "After: x"]),
    ("````md\n```\n# no\n```\n# neither\n````\n\nx", ["a: ```/# no/```/# neither/x"]),
    ("```pip install tool```\n\n## Licence\n\nx", ["a: pip install tool", "Licence: x"]),
    ("## H\n\n    # code\n      more", ["H: # code/  more"]),
    ("---\ntitle: Our trip\n# draft\n---\n\nWe left.", ["Our trip: We left."]),
    ('+++\ntitle = "Boats"\n+++\n# Red\n\nx', ["Red: x"]),
    ("---\nA line between rules.\n\n---\n\nx", ["a: A line between rules./x"]),
    ("- cake: 4\n- tea: 2\n  with milk\n  1. hot\n", ["a: cake: 4/tea: 2 with milk/1. hot"]),
    ("3) three\n\n4) four\n\n   and more", ["a: 3. three/4. four/and more"]),
    ("|Dish|Price|\n|-|-|\n|soup|7.50|\n|a \\| b||", ["a: Dish: soup; Price: 7.50/Dish: a | b"]),
    ("| A | B |\n|---|---|\n", ["a: A; B"]),
    ("- x\n\n  |A|B|\n  |-|-|\n  |1|2|\n\n> |C|\n> |-|\n> |3|", ["a: x/A: 1; B: 2/C: 3"]),
    ("# N\n\n## Dates\n\n### May\n\n### June\n\nx", ["Dates > May: May", "Dates > June: x"]),
    ("# T\n\n## Fee: 3 euros\n\n## Address", ["Fee: 3 euros: Fee: 3 euros", "Address: Address"]),
    ("tea: 2 euros\ncake: 4 euros", ["a: tea: 2 euros/cake: 4 euros"]),
    (f"{LONG}\nthree days\nto answer.", [f"a: {LONG} three days to answer."]),
    ("Ada  \n1 Road\\\nBonn", ["a: Ada/1 Road/Bonn"]),
    ("> # Quoted\n> text", ["a: Quoted/text"]),
    ("<b>wo</b>rd and **bo**ld &amp; `<i>`", ["a: word and bold & <i>"]),
    ("<table><tr><th>A\n\n<tr><td>1</table>\n\n## H\n\n<div>x</div>", ["a: A: 1", "H: x"]),
    ("See[^1].\n\n[^1]: Word\n[^n]: two", ["a: See[^1]./[^1]: Word/[^n]: two"]),
    ("$x_1 = \\{a_2*b*c\\}$ for $5 or *$6*", ["a: $x_1 = \\{a_2*b*c\\}$ for $5 or $6"]),
    ("# दिल्ली\n\nहै", ["दिल्ली: है"]),
    ("|Fee|\n|-|\n|500<sup>1</sup> for 80 m<sup>2</sup>|", ["a: Fee: 500^1 for 80 m2"]),
    (f"{LONG}\nto come a-\ngain, well-\nknown.", [f"a: {LONG} to come again, wellknown."]),
    ("Rent\n: 500 euros\n\nFee\n:   3\n\nx", ["a: Rent: 500 euros/Fee: 3/x"]),
    ("# Fees {#money}\n\nx", ["Fees: x"]),
    ("The <script> or <title> tag\n\n<title>\n\nx", ["a: The <script> or tag/x"]),
]  # fmt: skip
HTML = [
    ("<p>wo<b>rd</b> <u>one</u> <x-y>two</x-y>", ["a: word one two"]),
    ("<p>Donau<wbr>dampf<span>schiff</span>", ["a: Donaudampfschiff"]),
    ("<h2><img src=i.png> Parking</h2><p>Row <var>C</var>", ["Parking: Row C"]),
    ("<h1>D</h1><h2>Party: 21 June</h2>", ["Party: 21 June: Party: 21 June"]),
    ("<pre>def go():\n    start()\n\nend</pre>", ["a: def go():/    start()/end"]),
    ("one<br>two<hr>three<div>four</div>five", ["a: one/two/three/four/five"]),
    ("<ul><li>a<li>b<ol><li>c<li><p>d</ol></ul>", ["a: a/b/1. c/2. d"]),
    ("<dl><dt>Rent:</dt><dd>500</dd><dt>Fee</dt><dd><p>3</dl>", ["a: Rent: 500/Fee: 3"]),
    ("<table><tr><th>Dish<th>Price<tr><td>tea<td>2</table>", ["a: Dish: tea; Price: 2"]),
    (
        "<table><caption>C</caption><tr><th>Day<th>At<tr><td rowspan=2>Mo<td>9<tr><td>14</table>",
        ["a: C/Day: Mo; At: 9/Day: Mo; At: 14"],
    ),
    ("<table><tr><th colspan=2>Fee<tr><td>1<td>2</table>", ["a: Fee: 1; Fee: 2"]),
    ("<table><tr><th>Name<td>Ada<tr><th>Age<td>36</table>", ["a: Name: Ada/Age: 36"]),
    ("<table><tr><td><h2>Left</h2>a<td>b</table>", ["Left: a/b"]),
    ("<table><tr><td><th>Mon<th>Di<tr><th>At<td>9<td>10</table>", ["a: At; Mon: 9; Di: 10"]),
    ("<table><thead><tr><td>A<td>B</thead><tr><td>1<td>2</table>", ["a: A: 1; B: 2"]),
    ("<table><tr><th>A<th>B<tr><td>1<td><ul><li>a<li>b</ul></table>", ["a: A: 1; B: a b"]),
    ("<h2>Fees<a href='#fees'>¶</a></h2><a href='#'>Top</a>", ["Fees: Top"]),
    ("<p>2<sup><a href='#n'>1</a></sup>, 10<sup>-3</sup>, 1<sup>st</sup>", ["a: 2^1, 10^-3, 1st"]),
    ("<button>Linux</button><button>Mac</button>", ["a: Linux/Mac"]),
    ("<title>T</title><script>x()</script><!-- y --><p>z", ["T: z"]),
]  # fmt: skip
RST = [
    ("Boats\n=====\n\nFees\n----\n\n``wo``\\ rd ref_ |x|", ["Fees: word ref_ |x|"]),
    (".. contents::\n\nA\n=\n\nx\n\nB\n=\n\ny", ["A: x", "B: y"]),
    ("- one\n  more\n- two\n\n::\n\n  x\n    y", ["a: one more/two/x/  y"]),
    ("==== ===\nDish Fee\n==== ===\nsoup 3\n==== ===", ["a: Dish: soup; Fee: 3"]),
    (".. added:: 2\n   New.\n\nSee :ref:`this <x>`.", ["a: .. added:: 2/   New./See this."]),
    (".. include:: /etc/hostname\n.. raw:: html\n\n   <b>raw</b>\n\nx", ["a: x"]),
]  # fmt: skip
TEXT = [
    (f"{LONG}\nto answer.\n \nEgg\nMilk", [f"a: {LONG} to answer./Egg/Milk"]),
    (f"{LONG}\n- item", [f"a: {LONG}/- item"]),
    (f"x\n\n{300 * '='}", [f"a: x/{300 * '='}"]),  # a ruler is no picture
    (
        "The boats on the lake are rent-\ned out by two of the fish\u00ad\nermen.\nNord-\nund Ost",
        ["a: The boats on the lake are rented out by two of the fishermen./Nord- und Ost"],
    ),
    (
        "A known fact. All is well, and well-\nknown it is.",
        ["a: A known fact. All is well, and well-known it is."],
    ),
]
CASES = [
    pytest.param(f"a.{kind}", *case, id=f"{kind}-{n}")
    for kind, cases in [("md", MARKDOWN), ("html", HTML), ("rst", RST), ("txt", TEXT)]
    for n, case in enumerate(cases)
]


@pytest.mark.parametrize(("file", "contents", "expected"), CASES)
def test_an_awkward_document_is_read_right(file, contents, expected, capfd):
    passages, note = chunks(file, contents)
    assert [f"{p.heading}: {p.text}".replace("\n", "/") for p in passages] == expected
    assert note == "" and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("a.md", f"Before\n\n![x](data:image/png;base64,{PIXELS})\n\nafter"),
        ("a.md", f"Before ![][i] after\n\n[i]: <data:image/png;base64,{PIXELS}>"),
        ("a.html", f"<p>Before<img src='data:image/png;base64,{PIXELS}'> after"),
        ("a.txt", "Before\n" + f"{'QUJD' * 19}\n" * 3 + "after"),
        ("a.txt", f"Before {PIXELS} after"),
        ("a.rst", f"Before {PIXELS} after"),
    ],
)
def test_pictures_written_as_letters_are_left_out_and_counted(file, contents):
    passages, note = chunks(file, contents)
    assert re.findall(r"\w+", " ".join(p.text for p in passages)) == ["Before", "after"]
    assert re.fullmatch(r"left out of it: pictures or other data \(pieces: 1, letters: \d+\)", note)


def test_front_matter_that_cannot_be_read_stays_as_text():
    (passage,), note = chunks("a.md", "---\nDear Ada: a list: tea\n\n---\n\nx")
    assert passage.text == "Dear Ada: a list: tea\nx"
    assert note == "front matter that can't be read is taken as text"


def test_what_is_struck_out_is_left_out_and_counted():
    file = docx.Document()
    paragraph = file.add_paragraph("The fee is 7")
    for text, style in [
        ("1", "superscript"),
        (" not 5", "strike"),
        (" for 80 m", ""),
        ("2", "superscript"),
    ]:
        setattr(paragraph.add_run(text).font, style or "bold", True)
    expressly_not = paragraph.runs[-2]._r.get_or_add_rPr()  # as LibreOffice writes it
    strike = expressly_not.makeelement(docx.oxml.ns.qn("w:strike"))
    strike.set(docx.oxml.ns.qn("w:val"), "false")
    expressly_not.append(strike)
    file.save(saved := io.BytesIO())
    (passage,), note = documents.read("a.docx", saved.getvalue())
    assert passage.text == "The fee is 7^1 for 80 m2"
    assert note == "left out of it: struck-out text (pieces: 1)"
    for name, contents in [("a.md", "The fee is ~~5~~ 7"), ("a.html", "The fee is <s>5</s> 7")]:
        (passage,), note = chunks(name, contents)
        assert " ".join(passage.text.split()) == "The fee is 7"
        assert note == "left out of it: struck-out text (pieces: 1)"


def pdf(*pages: str, password: str = "") -> bytes:
    """A PDF of pages with a text each, or without one."""
    writer = pypdf.PdfWriter()
    name, dictionary = pypdf.generic.NameObject, pypdf.generic.DictionaryObject
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = dictionary({name(key): name(value) for key, value in font.items()})
    resources = dictionary({name("/Font"): dictionary({name("/F1"): font})})
    for text in pages:
        page = writer.add_blank_page(600, 800)
        stream = pypdf.generic.DecodedStreamObject()
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in text.split("\n") if line)
        stream.set_data(f"BT /F1 12 Tf 50 700 Td {lines} ET".encode())
        page[name("/Contents")] = writer._add_object(stream)
        page[name("/Resources")] = resources
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_a_pdf_is_read_by_pages_and_an_empty_one_is_mentioned():
    passages, note = documents.read("a.pdf", pdf(f"{LONG}\nto answer.\nTea: 2", "", "Third."))
    assert [(p.id, p.heading, p.text) for p in passages] == [
        ("a.pdf#page-1", "page 1", f"{LONG} to answer.\nTea: 2"),
        ("a.pdf#page-3", "page 3", "Third."),
    ]
    assert note == "no text on page 2; perhaps it is a picture"


def word_file() -> bytes:
    """A Word document with a bit of everything."""
    document = docx.Document()
    document.add_heading("Rules", 0)
    document.add_heading("Norway", 1)
    document.add_heading("Fees", 2)
    paragraph = document.add_paragraph("wo")
    paragraph.add_run("rd <b>").bold = True
    document.add_paragraph("first", style="List Bullet")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Dish", "Price", "soup", "7.50"], strict=True):
        cell.text = text
    note = docx.oxml.ns.qn("w:footnoteReference")
    paragraph._p.append(paragraph._p.makeelement(note))
    inserted = document.add_paragraph("in a form")._p
    form = inserted.makeelement(docx.oxml.ns.qn("w:sdt"))
    inserted.addprevious(form)
    form.append(form.makeelement(docx.oxml.ns.qn("w:sdtContent")))
    form[0].append(inserted)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def test_a_word_document_is_read_by_headings_with_tables_lists_and_forms():
    (passage,), note = documents.read("a.docx", word_file())
    assert (passage.id, passage.title) == ("a.docx#fees", "Rules")
    assert note == "its text boxes and footnotes are left out"
    assert passage.heading == "Norway > Fees"
    assert passage.text == "word <b>\nfirst\nDish: soup; Price: 7.50\nin a form"


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * 3_000_000)
    return file.getvalue()


REFUSED = {
    "locked.pdf": (
        pdf("x", password="p"),
        "it is locked: save a copy without a password or encryption",
    ),
    "scan.pdf": (pdf("", ""), "it holds pictures of pages and no text, as scans do: let a program"),
    "cut.pdf": (pdf("x")[:200], "it doesn't parse as .pdf"),
    "cut.docx": (word_file()[:2000], "it doesn't parse as .docx (BadZipFile); if it opens"),
    "bomb.docx": (zip_bomb(), "unpacked, it is larger than 2 MB, the most that is read"),
    "polish.txt": ("Książka i żółty".encode("cp1250"), "polish.txt, line 1: a character is"),
    "marks.md": (b"***", "there is no word in it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(name, monkeypatch, capfd):
    monkeypatch.setattr(document_formats, "MAX_UNPACKED_BYTES", 2_000_000)
    data, message = REFUSED[name]
    passages, note = documents.read(name, data)
    assert passages == [] and note.startswith(f"left out: {message}") and "\n" not in note
    assert capfd.readouterr() == ("", "")


def test_another_encoding_than_utf8_is_noted_and_that_of_a_page_is_its_own():
    (passage,), note = documents.read("a.txt", "Das Café ist blau.".encode("cp1252"))
    assert passage.text == "Das Café ist blau." and "cp1252" in note
    page = '<!DOCTYPE html><meta charset="cp1251"><p>Ключ'.encode("cp1251")
    (passage,), note = documents.read("a.html", page)
    assert (passage.text, note) == ("Ключ", "")


def test_the_colours_of_a_terminal_are_no_text():
    (passage,), note = documents.read("a.txt", b"\x1b[1;31mError:\x1b[0m disk full\x1b[K")
    assert (passage.text, note) == ("Error: disk full", "")


def test_a_single_file_stands_where_a_folder_does(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("notes.md", ".hidden", "sub/other.md"):
        (tmp_path / name).write_text("x")
    for name in ("notes.md", ".hidden"):
        files, skipped = documents.list_files(tmp_path / name)
        assert list(files) == [name] and skipped == []


def test_file_names_that_are_not_utf8_and_missing_libraries_are_mentioned(tmp_path, monkeypatch):
    (tmp_path / "good.md").write_text("x")
    (tmp_path / "a.pdf").write_bytes(pdf("x"))
    (tmp_path / "caf\udce9.txt").write_text("x")
    (tmp_path / "a\nb.md").write_text("x")
    (tmp_path / "gr\udcfcn").mkdir()
    (tmp_path / "gr\udcfcn" / "b.md").write_text("x")
    monkeypatch.setitem(document_formats._MODULES, ".pdf", "no_such_library")
    files, skipped = documents.list_files(tmp_path)
    assert list(files) == ["good.md"]
    assert dict(skipped) == {
        "caf\\udce9.txt": "its name has control characters, or isn't in UTF-8: rename it",
        "gr\\udcfcn/b.md": "its name has control characters, or isn't in UTF-8: rename it",
        "a\\nb.md": "its name has control characters, or isn't in UTF-8: rename it",
        "*.pdf": "not read: 1 file; first install what reads them:"
        " pip install pypdf python-docx docutils",
    }


def test_thousands_of_open_elements_are_read():
    passages, note = chunks("a.html", "<font><p>a" * 2000)
    assert "\n".join(p.text for p in passages) == "\n".join("a" * 2000) and note == ""


LINES = st.lists(st.text("abcäß", min_size=1, max_size=6), min_size=1, max_size=8).map(" ".join)
HEADINGS = st.lists(st.text("XYZ", min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join)
SHAPES = ["# {0}", "## {0}", "### {0}", "{0}\n===", "{1}", "- {1}\n- {2}", "1. {1}\n   - {2}"]
SHAPES += ["```\n{1}\n{2}\n```", "> {1}", "|{0}|{0}|\n|-|-|\n|{1}|{2}|", "**{1}** {2}", "    {1}"]
BLOCKS = st.tuples(st.sampled_from(SHAPES), HEADINGS, LINES, LINES)


@given(st.lists(BLOCKS, min_size=1, max_size=12), st.integers(40, 400))
@settings(max_examples=150, deadline=None)
def test_passages_hold_every_word_once_and_have_addresses_of_their_own(blocks, size):
    contents = "\n\n".join(shape.format(*texts) for shape, *texts in blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "MAX_PASSAGE_CHARACTERS", size)
        passages, note = chunks("x.md", contents)
    addresses = [p.id for p in passages]
    assert note == "" and len(set(addresses)) == len(addresses)
    bodies = "\n".join(p.text for p in passages)
    assert re.findall("[abcäß]+", bodies) == re.findall("[abcäß]+", contents)
    headings = "\n".join(f"{p.title} > {p.heading} > {p.text}" for p in passages)
    assert set(re.findall("[XYZ]+", contents)) <= set(re.findall("[XYZ]+", headings))
