"""Markdown and formulas as clean HTML, seen in a report's page."""

import hostile
import pytest
from nbformat import v4
from test_report import PIXEL, soup


@pytest.mark.parametrize(
    ("text", "formulas", "left"),
    [
        ("the score $q \\cdot k$ of $n$ words", 2, "words"),
        ("a line\n$$\na - b\n- c\n= d\n$$\nand on", 1, "and on"),
        ("$$x$$.", 1, "."),
        ("- one\n  $$\n  y\n  - z\n  $$\n- two", 1, "two"),
        ("> $$a$$\n> said", 1, "said"),
        ("\\begin{align}a &= b\\\\ c &= d\\end{align}", 1, ""),
        ("\\begin{split}a &= b\\end{split}", 1, ""),
        ("$\\substack{i \\\\ j}$", 1, ""),
        ("| a |\n|---|\n| $x_1$ |", 1, "a"),
        ("**$a*b$** and _$c_d$_", 2, "and"),
        ("$5 and $6", 0, "$5 and $6"),
        ("from $5 to 7$8", 0, "from $5 to 7$8"),
        ("\\$x$ and \\$y", 0, "$x$ and $y"),
        ("`$x$` and `$$y$$`", 0, "$x$ and $$y$$"),
        ("it costs $5, `a$`", 0, "it costs $5, a$"),
        ("```python\nprice = '$x$'\n```", 0, "$x$"),
        ("a stray $$ here\n\nand another $$ there", 0, "and another $$ there"),
    ],
)
def test_what_is_a_formula_and_what_is_not(text, formulas, left):
    page = soup(text)
    assert len(page.find_all("math")) == formulas and not page.select(".math-error")
    assert left in page.main.text


def test_a_formula_that_the_converter_refuses_is_shown_and_counted():
    deep = "{" * 500 + "x" + "}" * 500  # would overflow the converter's stack
    page = soup(f"$\\nosuchthing{{x}}$ and $a<b$ and ${deep}$ and $\\text{{caf\ud800é}}$")
    refused = [formula.text for formula in page.select("code.math-error")]
    assert refused[:2] == ["\\nosuchthing{x}", deep]
    assert len(page.find_all("math")) == 1 and "3 formulas are shown as source" in page.header.text


def test_numbered_equations_and_references_to_them_agree():
    page = soup("\\begin{equation}\\label{loss} a \\end{equation}", "see $\\eqref{loss}$")
    link = page.select_one("math a")
    assert link["href"] == "#nb-loss" and page.find(id="nb-loss")
    assert link.text == "(1)"


def test_a_folded_solution_renders_its_markdown():
    page = soup(
        "<details><summary>Solution</summary>\n\nThe *last* axis, $n$:\n\n"
        "```python\ndef f(x):\n    return x\n```\n\n- one\n\n</details>\n\nafter"
    )
    fold = page.select_one(".prose details")
    assert fold.summary.text == "Solution"
    assert fold.select_one(".highlight .k").text == "def"
    assert fold.em and fold.li and fold.math
    assert "after" not in fold.text


def test_pictures_in_markdown_come_from_the_notebook_only():
    cell = v4.new_markdown_cell("![a](attachment:p%201.png) ![b](attachment:s.svg) ![c](d.png)")
    cell["attachments"] = {"p 1.png": {"image/png": PIXEL}, "s.svg": {"image/svg+xml": hostile.SVG}}
    images = soup(cell, "[![badge](https://ok.example/b.svg)](https://ok.example/nb)")
    assert [image["src"] for image in images.find_all("img")] == [f"data:image/png;base64,{PIXEL}"]
    badge = images.select(".prose a")[-1]
    assert (badge.text, badge["href"]) == ("badge", "https://ok.example/nb")
