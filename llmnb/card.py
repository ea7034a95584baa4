"""The model card, and the check of a folder to save into, for every notebook that saves a model."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from llmnb import LlmnbError, files

PARTIAL = ".partial-"  # begins the name of a result's folder that isn't complete yet


class CardError(LlmnbError, ValueError):
    """A model can't be saved or described; the message says what to do."""


def plain(text: object) -> str:
    """The text on one line, in which Markdown finds no table, code, HTML, link or picture."""
    signs = {ord("|"): "/", ord("`"): "'", ord("<"): "‹", ord(">"): "›"}
    text = " ".join(str(text).translate(signs).split())
    return re.sub(r"\](?=[(\[])", "] ", text)


def model_card(
    title: str,
    facts: Mapping[str, object],
    *,
    intro: str = "",
    metrics: Mapping[str, Any] | None = None,
    usage: str = "",
    caveats: str = "",
    tags: Mapping[str, str] | None = None,
) -> str:
    """A model card as Markdown.

    facts: one row each; metrics: one row each, objects with value, low and high; usage: Python
    code; intro and caveats: paragraphs; tags: the front matter that the Hub reads. Titles, facts
    and names may come from anywhere and are made plain. Source: Mitchell et al. 2019.
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
            f"| {plain(name)} | {interval.value:.3f} | {interval.low:.3f} to {interval.high:.3f} |"
            for name, interval in metrics.items()
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

    replaces: the file that `write_result` writes beside a result; the files that it lists may be
    replaced, as long as nobody has changed them. Without it, the folder must be empty.
    must_be_new: a file to be added. The folder may then hold anything but that file.
    An empty folder name means that nothing is to be saved. Raises CardError.
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
    earlier = _earlier_files(folder, replaces) if replaces else {}
    others = [p for p in folder.iterdir() if not _is_partial(p)] if folder.is_dir() else []
    if others and not earlier:
        raise CardError(f"{folder} holds other files; name an empty folder.")
    for name, digest in earlier.items():
        file = folder / name
        if file.is_file() and files.sha256_of(file) != digest:
            raise CardError(f"{file} was changed since it was saved; name another folder.")


def write_result(
    folder: str | Path, facts_name: str, facts: Mapping[str, Any], write: Callable[[Path], None]
) -> Path:
    """Write a result into a folder; returns the folder.

    write: fills the folder that it is given, a hidden one in `folder`. Then its files are moved
    into place one after the other, and those of an earlier result are removed; all others stay.
    facts_name: the JSON file with the facts and the sums of the result's files, by which the next
    call recognizes it. Raises CardError as `check_folder` does, and where a file of somebody
    else's has the name of one to be written.
    """
    folder = Path(folder).expanduser()
    check_folder(folder, replaces=facts_name)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_call in filter(_is_partial, folder.iterdir()):
        shutil.rmtree(left_by_a_killed_call, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        write(partial)
        sums = files.sums_of(partial)
        files.write_json(partial / facts_name, {**facts, "files": sums})
        earlier = _earlier_files(folder, facts_name)
        for name in sums:
            if name not in earlier and (folder / name).exists():
                raise CardError(f"{folder / name} would be overwritten; name another folder.")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in (*sums, facts_name):  # the facts come last, when the files are there
            os.replace(partial / name, folder / name)
        for name in earlier.keys() - sums.keys():
            (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in the subfolder
                (folder / name).parent.rmdir()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it holds the result, so it stays
                folder.rmdir()
    return folder


def _is_partial(path: Path) -> bool:
    return path.name.startswith(PARTIAL)


def _earlier_files(folder: Path, facts_name: str) -> dict[str, str]:
    """The files of the result in a folder and their sums; {} where there is no result of ours."""
    try:
        sums = json.loads((folder / facts_name).read_text(encoding="utf-8"))["files"]
        paths = [PurePosixPath(name) for name in sums]
        is_inside = all(not path.is_absolute() and ".." not in path.parts for path in paths)
        return dict(sums) if is_inside else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
