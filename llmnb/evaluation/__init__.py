"""Evaluation: what a number means, whether a difference is more than chance, where models break."""

from llmnb import LlmnbError

PROBES = ("judge", "bias", "robustness", "hallucination", "contamination")
CAVEATS = """**Meant for** texts like those it was tested on, with their labels.

**Not for** decisions about people, such as hiring, credit, grades or health; nor for other kinds of
text, other languages, or texts that were written much later, before it is measured on them.

**Not shown**: that all groups are treated alike (small shifts, and groups that the templates don't
name, aren't seen), nor what training again would give. Intervals cover other texts of the same
kind, not mistakes in the labels."""


class EvaluationError(LlmnbError, ValueError):
    """A parameter of an evaluation can't be used; the message says what to do."""


def probes(names: str) -> list[str]:
    """The probes in a text like "bias, robustness"; an empty text means none.

    Raises EvaluationError for one that doesn't exist.
    """
    chosen = names.replace(",", " ").split()
    if unknown := [name for name in chosen if name not in PROBES]:
        raise EvaluationError(f"There is no probe {unknown[0]!r}; there are {', '.join(PROBES)}.")
    return chosen


def checked_texts(name: str, texts) -> list[str]:
    """The texts as a list. Raises ValueError for an empty one, a single string, or no string."""
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"{name} is a list of one text or more, not {texts!r}.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}] is no text: {text!r}.")
    return list(texts)
