"""Every link of the documents, the notebooks and their reports leads somewhere, stamped or not."""

import re
import runpy
from urllib.parse import urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, ROOT

from llmnb.runs import report

stamp = runpy.run_path(str(ROOT / ".ci" / "stamp.py"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dev/LOG.md", "reports/README.md")
KNOWN_HOSTS = {"colab.research.google.com", "github.com", "keepachangelog.com"}
KNOWN_REPOSITORIES = {"googlecolab/google-colab-cli"}
PLACEHOLDER = re.compile(r"\b(?:OWNER|REPO|USER(?:NAME)?|example\.(?:com|org))\b")
in_both_states = pytest.mark.parametrize("owner", ["", "someone"], ids=["unstamped", "stamped"])


def settings(owner: str) -> dict:
    return stamp["settings"]() | {"owner": owner, "repo": "llmnb", "published": False}


def addresses(text: str) -> set[str]:
    """Every address of the web in a text."""
    return set(re.findall(r"https?://[^\s<>()\"'`]+[\w/]", text))


def links(text: str) -> set[str]:
    """The addresses in a Markdown text, and the targets of its links and pictures."""
    return addresses(text) | set(re.findall(r"\]\(([^)\s]+)\)", text))


def problem(link: str, owner: str, folder=ROOT, anchors=()) -> str | None:
    """Why a link leads nowhere; None if it leads somewhere. Nothing is asked of the network."""
    address = urlsplit(link)
    if PLACEHOLDER.search(link):
        return "a placeholder"
    if not address.scheme:
        exists = (folder / address.path).exists() if address.path else address.fragment in anchors
        return None if exists else "no such file or section"
    if address.hostname == "127.0.0.1":  # a server of the reader's own
        return None
    if address.scheme != "https" or address.netloc not in KNOWN_HOSTS:
        return "an unknown host"
    repository = re.search(r"github(?:\.com)?/([\w.-]+/[\w.-]+)", link)
    if repository and repository[1] not in KNOWN_REPOSITORIES | {f"{owner}/llmnb"}:
        return "an unknown repository"
    return None


def problems(hrefs: set[str], owner: str, **options) -> dict[str, str]:
    reasons = {link: problem(link, owner, **options) for link in hrefs}
    return {link: reason for link, reason in reasons.items() if reason}


@in_both_states
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_link_of_a_document_is_dead(name, owner):
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "README.md":
        text = stamp["stamped_readme"](text, settings(owner))
        assert bool(owner) == ("actions/workflows/ci.yml/badge.svg" in text)
    assert problems(links(text), owner, folder=(ROOT / name).parent) == {}


@in_both_states
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_link_of_a_notebook_or_of_its_report_is_dead(path, owner, tmp_path):
    text = path.read_text(encoding="utf-8")
    text = stamp["stamped_notebook"](text, path.name, settings(owner))
    notebook = nbformat.reads(text, as_version=4)
    hrefs = set()
    for cell in notebook.cells:
        hrefs |= links(cell.source) if cell.cell_type == "markdown" else addresses(cell.source)
    assert problems(hrefs, owner, folder=path.parent) == {}
    (tmp_path / "notebook.ipynb").write_text(text, encoding="utf-8")
    (tmp_path / "run.json").write_text('{"status": "ok"}')
    page = BeautifulSoup(report.write_report(tmp_path).read_bytes(), "html.parser")
    hrefs = {link["href"] for link in page.select("a[href]")}
    anchors = {element["id"] for element in page.select("[id]")}
    assert len(hrefs) > 5 and problems(hrefs, owner, folder=tmp_path, anchors=anchors) == {}
    own_links = {link.text: link["href"] for link in page.select(".facts a")}
    colab = (
        f"https://colab.research.google.com/github/{owner}/llmnb/blob/main/notebooks/{path.name}"
    )
    expected = {"notebook": "notebook.ipynb"} | ({"open in Colab": colab} if owner else {})
    assert own_links == expected


def test_a_dead_link_is_noticed():
    assert problem("notebooks/07_none.ipynb", "someone") == "no such file or section"
    assert problem("#no-such-section", "someone") == "no such file or section"
    assert problem("https://github.com/OWNER/llmnb", "someone") == "a placeholder"
    assert problem("https://github.com/stranger/llmnb", "someone") == "an unknown repository"
    colab = "https://colab.research.google.com/github/stranger/llmnb"
    assert problem(colab, "someone") == "an unknown repository"
    assert problem("http://github.com/someone/llmnb", "someone") == "an unknown host"
