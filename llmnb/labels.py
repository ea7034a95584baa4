"""The labels of a stranger's table: which of them are the same one, and their order."""

import collections
import re
import unicodedata
from collections.abc import Collection

from llmnb import text

MISSING_LABELS = ("", "nan", "null", "<na>", "#n/a", r"\n")  # the last is MySQL's
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_TYPOGRAPHY = str.maketrans("‘’“”‐‑–—", "''\"\"----")


def fold_labels(labels: list[str], notes: list[str]) -> list[str]:
    """The labels, empty where they stand for a missing one; those that look alike become one.

    They differ in case, spaces, quotes, dashes, what can't be seen, or as 1 and 1.0 do.
    The most frequent one gives the name, and a note has all of them with their rows.
    """
    counts = collections.Counter(labels)
    groups = collections.defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        groups[_folded(_normalize(label))].append(label)
    names = {}
    alike = []
    for folded, group in groups.items():
        names |= dict.fromkeys(group, _normalize(group[0]))
        if folded and len(group) > 1:
            is_plain = all(unicodedata.is_normalized("NFC", label) for label in group)
            quote = repr if is_plain else ascii  # escapes show what the eye can't tell apart
            alike.append(", ".join(f"{quote(label)} {counts[label]:,}" for label in group))
    if alike:
        listed = "; ".join(alike[:5]) + ("; …" if len(alike) > 5 else "")
        notes.append(f"labels that look alike count as one (with their rows): {listed}.")
    return [names[label] for label in labels]


def _normalize(label: str) -> str:
    """In NFC, with single spaces, 1 for 1.0 and True for true; empty for a missing label."""
    label = unicodedata.normalize("NFC", label.replace("\u200b", " ").replace("\ufeff", ""))
    label = " ".join(label.split())
    if label.casefold() in ("true", "false"):
        return label.capitalize()
    if whole_number := re.fullmatch(r"([+-]?[0-9]+)\.0+", label):
        return whole_number[1]
    return "" if label.casefold() in MISSING_LABELS else label


def _folded(label: str) -> str:
    """Without case, typography, and what can't be seen, as soft hyphens and colours of emojis."""
    return text.folded(label).translate(_TYPOGRAPHY).replace("\ufe0f", "")


def sort_labels(labels: Collection[str]) -> list[str]:
    """By size if all are numbers, else alphabetically."""
    if all(map(NUMBER.fullmatch, labels)):
        return sorted(labels, key=lambda label: (float(label.replace(",", ".")), label))
    return sorted(labels)
