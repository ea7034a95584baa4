"""Does a prediction stay when only unimportant things in a text change, and follow a negation?

Every perturbation is `change(text, seed) -> text`. Where it has nothing to change it returns the
text itself, and `drops` leaves the text out of that test. The rules for English apply to texts in
the plain Latin alphabet. They know scripts, not languages: for French, say, choose `casing`,
`punctuation` and `first_half`. A label may not hold for half a text, or without a question mark.
Source: Ribeiro et al. 2020 (CheckList: invariance tests, and direction tests).
"""

import random
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from llmnb import files
from llmnb.evaluation import checked_texts
from llmnb.evaluation.calibration import checked
from llmnb.evaluation.uncertainty import compare, holm, proportion

_NEIGHBOURS = {}  # of each key on the keyboard
for _row in (" qwertyuiop ", " asdfghjkl ", " zxcvbnm "):
    for _left, _key, _right in zip(_row, _row[1:], _row[2:], strict=False):
        _NEIGHBOURS[_key] = (_left + _right).strip()
DISTRACTORS = (
    "I am writing this on a Tuesday.",
    "The weather today is mild.",
    "There is a table in the room.",
    "This was written on a phone.",
)
_FULL_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'m": " am"}
_FULL_WORDS = {"won't": "will not", "can't": "cannot", "shan't": "shall not"}
# "Didn't you" can't be written out, nor what stands before a question mark.
_NO_SUBJECT_NEXT = r"(?!\s+(?:i|you|he|she|it|we|they|this|that|these|those|there|the|one)\b)"
_CONTRACTION = re.compile(
    rf"\b(?:(?!ain)\w+(?:n['’]t{_NO_SUBJECT_NEXT}|['’](?:re|ve|ll))|i['’]m)(?!\w)(?![^.!?]*\?)",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"(?<=\w\s)(?:is|are|am|was|were|will|would|could|should)\b"
    r"|\b(?:it|that|he|she|there)['’]s(?=\s)",
    re.IGNORECASE,
)
# Negated or narrowed already, a second clause, a question, or another sentence:
_NOT_NEGATABLE = re.compile(
    r"n['’]t\b|\b(?:not?|never|nothing|nobody|none|neither|nor|without|hardly|barely|cannot|only"
    r"|just|but|though|although|while|because|if|as|than|who|which|whose|wh(?:at|en|ere|y)|how)\b"
    r"|\bthat\s|\?|[.!]\s+\w|[;:]|\band\s+(?:i|you|he|she|it|we|they)\b",
    re.IGNORECASE,
)


def typos(text: str, seed: int = 0) -> str:
    """One typing mistake in every tenth word of four letters or more, one at least.

    Two inner letters change places, or one becomes its neighbour on the keyboard.
    """
    words = list(re.finditer(r"\b[A-Za-z]{4,}\b", text))
    generator = _generator(text, seed)
    for word in generator.sample(words, -(-len(words) // 10)):  # no change moves another word
        at = word.start() + generator.randrange(1, len(word[0]) - 2)
        pair = text[at : at + 2]
        if pair[0] != pair[1] and generator.random() < 0.5:
            text = text[:at] + pair[::-1] + text[at + 2 :]
        else:
            key = generator.choice(_NEIGHBOURS[pair[0].lower()])
            text = text[:at] + (key.upper() if pair[0].isupper() else key) + text[at + 1 :]
    return text


def casing(text: str, seed: int = 0) -> str:
    """All capitals; a text that is in capitals, all small letters."""
    return text.upper() if text != text.upper() else text.lower()


def punctuation(text: str, seed: int = 0) -> str:
    """Without the marks at the ends of words, of any script; a number's point stays."""
    bare = re.sub(r"[。、，；：！？،؛؟۔।॥]+", " ", re.sub(r"[.,;:!?…]+(?=\s|$)", "", text)).strip()
    return bare if bare and bare != text.strip() else text


def distractor_front(text: str, seed: int = 0) -> str:
    """The text behind an unrelated sentence."""
    distractor = _generator(text, seed).choice(DISTRACTORS)
    return f"{distractor} {text}" if _is_plain_latin(text) else text


def distractor_back(text: str, seed: int = 0) -> str:
    """The text, then an unrelated sentence."""
    distractor = _generator(text, seed).choice(DISTRACTORS)
    return f"{text} {distractor}" if _is_plain_latin(text) else text


def first_half(text: str, seed: int = 0) -> str:
    """The first half of a text of four words or more; only where spaces separate the words."""
    words = list(re.finditer(r"\S+", text))
    return text[: words[(len(words) - 1) // 2].end()] if len(words) >= 4 else text


def expansion(text: str, seed: int = 0) -> str:
    """Contractions written out: don't is do not, we're is we are.

    Left alone are questions, n't before a pronoun, an article or the like, and 's, which may be
    is, has or a possessive.
    """

    def expanded(match: re.Match) -> str:
        word = match[0].lower().replace("’", "'")
        cut = word.rindex("n't" if word.endswith("n't") else "'")
        full = _FULL_WORDS.get(word) or word[:cut] + _FULL_ENDINGS[word[cut:]]
        return match[0][0] + (full[1:].upper() if match[0][1:].isupper() else full[1:])

    return _CONTRACTION.sub(expanded, text)


def negation(text: str, seed: int = 0) -> str:
    """ "not" behind the verb of a single English clause with nothing negated; others are left out.

    A direction test: the class that was predicted should become less likely.
    """
    verbs = list(_VERB.finditer(text))
    if len(verbs) != 1 or _NOT_NEGATABLE.search(text) or not _is_plain_latin(text):
        return text
    end = verbs[0].end()
    return text[:end] + (" NOT" if text.isupper() else " not") + text[end:]


Change = Callable[[str, int], str]
_CHANGES = (typos, casing, punctuation, distractor_front, distractor_back, first_half, expansion)
TESTS: dict[str, Change] = {change.__name__: change for change in (*_CHANGES, negation)}
COLUMNS = """test kind items skipped before after difference low high p p_holm
    changed changed_low changed_high moved moved_low moved_high"""


def drops(
    probabilities: Callable[[list[str]], ArrayLike],
    texts: Sequence[str],
    labels: ArrayLike,
    tests: Sequence[str] = tuple(TESTS),
    seed: int = 0,
) -> pd.DataFrame:
    """What each perturbation does to a classifier, one row for each test.

    probabilities: texts to (n, classes); labels: (n,) class numbers; tests: names from TESTS.
    Columns: test, kind, items (applicable texts: all numbers are of these), skipped, before, after
    (accuracy), difference (after - before), low, high, p, p_holm (over the tests), changed,
    changed_low, changed_high (share of predictions), and for the negation moved, moved_low,
    moved_high: the share where the class predicted before lost probability (about 0.5 by chance).
    It has no accuracy after, since the labels no longer hold. Fewer than two applicable texts leave
    the numbers empty.
    Raises ValueError for no texts, an unknown test, or probabilities or labels that don't fit.
    """
    texts = checked_texts("texts", texts)
    for name in tests:
        if name not in TESTS:
            raise ValueError(f"There is no test {name!r}.{files.did_you_mean(name, TESTS)}")
    before, labels = checked(_probabilities_of(texts, probabilities), labels)
    rows = []
    for name in tests:
        pairs = [(text, TESTS[name](text, seed)) for text in texts]
        changed = {index: new for index, (old, new) in enumerate(pairs) if new != old}
        kind = "direction" if name == "negation" else "invariance"
        n_skipped = len(texts) - len(changed)
        row = {"test": name, "kind": kind, "items": len(changed), "skipped": n_skipped}
        if len(changed) > 1:
            items = list(changed)
            after, _ = checked(_probabilities_of(changed.values(), probabilities), labels[items])
            if after.shape[1] != before.shape[1]:
                raise ValueError(f"{name}: {before.shape[1]} classes became {after.shape[1]}.")
            row |= _measures(before[items], after, labels[items], kind)
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS.split())
    is_tested = table["p"].notna()
    if is_tested.any():
        table.loc[is_tested, "p_holm"] = holm(table.loc[is_tested, "p"])
    return table


def _measures(before, after, labels, kind) -> dict[str, float]:
    """The measured columns of one test; before, after: (n, classes) of the same items."""
    old, new = before.argmax(axis=1), after.argmax(axis=1)
    row = {"before": (old == labels).mean()} | _share("changed", old != new)
    if kind == "direction":
        items = np.arange(len(old))
        return row | _share("moved", after[items, old] < before[items, old] - 1e-6)
    comparison = compare(new == labels, old == labels)
    return row | {
        "after": (new == labels).mean(),
        "difference": comparison.difference.value,
        "low": comparison.difference.low,
        "high": comparison.difference.high,
        "p": comparison.p,
    }


def _share(name, hits) -> dict[str, float]:
    share = proportion(int(hits.sum()), len(hits))
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def _probabilities_of(texts, probabilities) -> NDArray[np.float64]:
    result = np.asarray(probabilities(list(texts)), dtype=float)
    if result.ndim not in (1, 2) or len(result) != len(texts):
        raise ValueError(f"{len(texts)} texts went in, and probabilities {result.shape} came out.")
    return result


def _is_plain_latin(text: str) -> bool:
    """Whether nine letters in ten or more are those of English, so that accents may occur."""
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and sum(map(str.isascii, letters)) >= 0.9 * len(letters)


def _generator(text: str, seed: int) -> random.Random:
    """Seeded by the text itself, so that its change doesn't depend on the texts beside it."""
    return random.Random(f"{seed} {text}")
