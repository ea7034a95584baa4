"""Text, cut into the units that the rest counts: words, n-grams, normalized answers.

Every other module takes them from here, so that one text has the same words everywhere.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

# Thai, Lao, Burmese, Khmer, Japanese, Chinese: no spaces, so each character is a word of its own.
NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# A word is what stands between spaces and punctuation; \w would cut Hindi at its vowel signs.
# An underscore belongs to the word, as in max_length.
_BREAKS = r"\s!-/:-@\[-^`{-~\u00a1-\u00bf\u0964\u0965\u2000-\u206f\u3000-\u303f"
WORD = f"[{NO_SPACES}]|[^{_BREAKS}{NO_SPACES}]+"
_WORD = re.compile(WORD)


def words(text: str) -> list[str]:
    """The words without case and punctuation; single characters where a script has no spaces."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer tokens than n."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces.

    Source: Rajpurkar et al. 2016 (SQuAD), the official evaluation script.
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
