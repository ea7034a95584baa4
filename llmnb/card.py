"""The model card, and the check of a folder to save into, for every notebook that saves a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from llmnb import LlmnbError, files


class CardError(LlmnbError, ValueError):
    """A model can't be saved or described; the message says what to do."""


class Interval(Protocol):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def plain(text: object) -> str:
    """The text on one line, without the signs that Markdown, its tables and HTML would read."""
    signs = {ord("|"): "/", ord("`"): "'", ord("<"): "‹", ord(">"): "›"}
    return " ".join(str(text).translate(signs).split())


def model_card(
    title: str,
    facts: Mapping[str, object],
    *,
    intro: str = "",
    metrics: Mapping[str, Interval] | None = None,
    usage: str = "",
    caveats: str = "",
    tags: Mapping[str, str] | None = None,
) -> str:
    """A model card as Markdown.

    facts: one row each; metrics: one row each, with its interval; usage: Python code; intro and
    caveats: paragraphs; tags: the front matter that the Hub reads. Titles, facts and names may
    come from anywhere and are made plain. Source: Mitchell et al. 2019.
    """
    parts = []
    if tags:
        parts.append("\n".join(["---", *(f"{key}: {value}" for key, value in tags.items()), "---"]))
    parts.append(f"# {plain(title)}")
    if intro:
        parts.append(intro)
    rows = [f"| {plain(name)} | {plain(value)} |" for name, value in facts.items()]
    parts.append("\n".join(["| | |", "|---|---|", *rows]))
    if metrics:
        rows = [
            f"| {plain(name)} | {found.value:.3f} | {found.low:.3f} to {found.high:.3f} |"
            for name, found in metrics.items()
        ]
        header = ["| metric | value | 95 % interval |", "|---|---|---|"]
        parts.append("\n".join([*header, *rows]))
    if usage:
        parts.append(f"```python\n{usage.strip()}\n```")
    if caveats:
        parts.append(caveats.strip())
    return "\n\n".join(parts) + "\n"


def save(page: str, folder: str | Path, name: str = "MODEL_CARD.md") -> Path:
    """Add the page to a folder, beside what is there; returns the file.

    Raises CardError where the folder has such a file already.
    """
    check_folder(folder, must_be_new=name)
    file = Path(folder).expanduser() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, page)
    return file


def check_folder(folder: str | Path, replaces: str = "", must_be_new: str = "") -> None:
    """Fail early where saving into the folder would fail or destroy something.

    replaces: a file that marks an earlier result, which may be replaced as a whole; without it,
    the folder must be empty. must_be_new: instead, the name of a file that is added beside the
    others and must not exist yet. An empty folder name means that nothing is to be saved.
    Raises CardError.
    """
    if not folder:
        return
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise CardError(f"{folder} is a file; name a folder.")
    if must_be_new:
        if (folder / must_be_new).exists():
            raise CardError(f"{folder} already holds a {must_be_new}; name another folder.")
        return
    is_earlier_result = bool(replaces) and (folder / replaces).exists()
    if folder.is_dir() and any(folder.iterdir()) and not is_earlier_result:
        raise CardError(f"{folder} holds other files; name an empty folder.")
