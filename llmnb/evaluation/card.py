"""The model card of a run: one page, its numbers from one place."""

from collections.abc import Mapping
from pathlib import Path

from llmnb import LlmnbError, files
from llmnb.evaluation.uncertainty import Interval

PROBES = ("judge", "bias", "robustness", "hallucination", "contamination")
FILE = "MODEL_CARD.md"

_PAGE = """# Model card: {name}

| | |
|---|---|
{facts}

| metric | value | 95 % interval |
|---|---|---|
{metrics}

**Verdict.** {verdict}

**Meant for** texts like those it was tested on, with their labels. **Not shown**: other kinds of
text, other languages, other groups than the templates name, anything after today. The intervals
cover other texts of the same kind, not mistakes in the labels.
"""


class CardError(LlmnbError, ValueError):
    """A card can't be made or saved; the message says what to do."""


def probes(names: str) -> list[str]:
    """The probes in a text like "bias robustness"; none is fine. Raises CardError for others."""
    wanted = names.replace(",", " ").split()
    if unknown := [name for name in wanted if name not in PROBES]:
        raise CardError(f"There is no probe {unknown[0]!r}; there are {', '.join(PROBES)}.")
    return wanted


def model_card(
    name: str, facts: Mapping[str, object], metrics: Mapping[str, Interval], verdict: str
) -> str:
    """The page as Markdown. Source: Mitchell et al. 2019. Raises CardError without metrics."""
    if not metrics:
        raise CardError("A card without a metric says nothing: measure first.")

    def plain(text: object) -> str:  # labels and file names can hold any character
        kept = str(text).translate({ord("|"): "/", ord("`"): "'", ord("<"): "‹", ord(">"): "›"})
        return " ".join(kept.split())

    rows = [
        f"| {plain(key)} | {found.value:.3f} | {found.low:.3f} to {found.high:.3f} |"
        for key, found in metrics.items()
    ]
    return _PAGE.format(
        name=plain(name),
        facts="\n".join(f"| {plain(key)} | {plain(value)} |" for key, value in facts.items()),
        metrics="\n".join(rows),
        verdict=plain(verdict),
    )


def check_folder(folder: str | Path) -> None:
    """Raises CardError where `save` would, so that nobody measures for an hour before."""
    if folder and (Path(folder).expanduser() / FILE).exists():
        raise CardError(f"{folder} holds a {FILE} already; name another folder.")
    if folder and Path(folder).expanduser().is_file():
        raise CardError(f"{folder} is a file; name a folder.")


def save(page: str, folder: str | Path) -> Path:
    """Write the page into a folder; returns the file. Raises CardError for one that has a card."""
    check_folder(folder)
    file = Path(folder).expanduser() / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, page)
    return file
