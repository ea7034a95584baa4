"""Translation from English by a decoder with five examples in its prompt (notebook 06)."""

import copy
import itertools
import re
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import torch
import transformers

from llmnb import handbook, models, profiles
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.text import is_chinese, ngrams, numbers, on_one_line, split_sentences, words

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "zh": "Chinese"}
SENTENCES_PER_BATCH = 32
MAX_SENTENCE_CHARACTERS = 400  # a longer one is cut
REPETITION_PENALTIES = (1.0, 1.2)  # for the first and the second attempt
MIN_WRAPPED_WIDTH = 40  # columns; a text of shorter lines is a list, a poem or an address
_CUTTING = {"expand_tabs": False, "replace_whitespace": False, "break_on_hyphens": False}
_LINE_BREAKS = ("\n", "Ċ", "<0x0A>")  # how vocabularies write one

# Indent, quotation marks of e-mail, and markers of list items and headings, before a line's text.
_MARKER = re.compile(r"[\s>]*(?:(?:[-*+•–]|#+|\(?\d{1,3}[.)]|\(?[a-z]\)|\[[ xX]?\])\s+(?=\S))*")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})[^`]*$")
# Braces, also around others: {name}, {{name}}, ${a({b})}, {n, plural, one {day} other {days}}.
_BRACES = r"\{(?:[^{}]{1,100}+|\{[^{}]{0,100}\}){0,20}+\}"
_BRACES = rf"[$#%]?\{{(?:[^{{}}]{{1,100}}+|{_BRACES}){{0,20}}+\}}"
_CHOICE = re.compile(r"\{\s*\w+\s*,\s*(?:plural|select|selectordinal)\s*,")
_TIME_CODE = r"(?:\d{1,2}:)?\d\d:\d\d[.,]\d{3}|\d{1,2}:\d\d:\d\d"
# What a translation has to leave as it is. The lengths are limited, so that odd texts take no time.
_UNTRANSLATABLE = re.compile(
    r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?')\]]"  # addresses
    r"|(?<![\w.+-])[\w.+-]{1,64}@\w[\w.-]*\w"
    r"|</?[A-Za-z][^<>]{0,500}>|&#?\w{1,10};"  # tags and entities of HTML
    r"|`[^`]{1,200}`|\\[A-Za-z]{1,30}"  # code, \n and LaTeX's commands
    rf"|{_BRACES}|<%.{{0,100}}?%>|\[\[[^\[\]]{{0,100}}\]\]|<\|\w{{1,30}}\|>"  # placeholders
    r"|\||\*\*|\t"  # the borders of a table's cells and of bold text
    r"|%\(\w{1,50}\)[a-z](?!\w)|%(?:\d\$)?\d{0,3}(?:\.\d)?[a-z@](?!\w)"
    rf"|(?<!\d)(?:{_TIME_CODE})(?:\s*-->\s*(?:{_TIME_CODE}))?|\[\d{{1,2}}:\d\d(?::\d\d)?\]"
)

# Words, and letters beyond ASCII, that are frequent in one of the languages.
_FREQUENT_WORDS = {
    "en": "the of and to in is are was it that this with for on have has had been not you they we "
    "she he his her their from by at as will would which who if but or do did my your our i don t",
    "fr": "le la les l un une de des du d et à en au est sont était a ont il elle ils je j nous on "
    "vous ne n pas que qu qui ce c cette ces se s sa son sur dans pour par plus mais tu as ê è ç",
    "es": "el la los las un una de del y a en al es son está están que no se su sus con por para "
    "lo le más pero si me te nos ha han he muy este esta como cuando ñ ¿ ¡ á í ó ú",
    "de": "der die das den dem des ein eine einen einem und ist sind war nicht ich du er sie es "
    "wir ihr mit auf von zu zum zur im in am an für bei dass wenn als hat wird auch sich ß ä ö ü",
}
_FREQUENT_WORDS = {code: listed.split() for code, listed in _FREQUENT_WORDS.items()}
_N_LANGUAGES_WITH = Counter(word for listed in _FREQUENT_WORDS.values() for word in listed)


def language(text: str) -> str:
    """What a text is in: en, fr, es, de or zh; "?" in another script; "" if too little tells.

    By script, then by words and letters that are frequent in a language; those of several count
    less. Another language in Latin letters may be taken for one of these.
    """
    letters = [character for character in text.lower() if character.isalpha()]
    if 3 * sum(map(is_chinese, letters)) > len(letters):
        return "zh"  # a third is enough: a Latin name has more letters than a Chinese one
    if 2 * sum(letter < "\u0250" for letter in letters) < len(letters):
        return "?"
    counts = Counter(words(text)) + Counter(c for c in text.lower() if c > "~")
    scores = {
        code: sum(min(counts[word], 3) / _N_LANGUAGES_WITH[word] for word in listed)
        for code, listed in _FREQUENT_WORDS.items()
    }
    best, second = sorted(scores, key=scores.get, reverse=True)[:2]
    return best if scores[best] > scores[second] else ""


def problems(source: str, translation: str, target: str) -> tuple[str, ...]:
    """What is visibly wrong with the translation of an English sentence; other faults aren't seen.

    Looks for: nothing translated, a copy, another language, the same words again (distinct-n: Li et
    al. 2016, section 5), a length out of proportion, numbers, addresses, tags and placeholders that
    are missing; a number that became a word, as 3 became drei, counts as missing. Raises
    ApplicationError for an unknown target.
    """
    target_name = _language_name(target)
    if not translation.strip():
        return ("nothing was translated",)
    lost = _lost(source, translation)
    source, translation = (_UNTRANSLATABLE.sub(" ", text) for text in (source, translation))
    source_words = [word for word in words(source) if word.isalpha()]
    target_words = [word for word in words(translation) if word.isalpha()]
    warnings = []
    if len(source_words) > 2:  # a name, or a word that both languages have, may stay as it is
        n_copied = (Counter(source_words) & Counter(target_words)).total()
        if n_copied > 0.7 * len(target_words):
            warnings.append("most of it is copied from the source")
        detected = language(translation)
        if detected != target and (detected or target == "zh"):
            warnings.append(f"it doesn't look like {target_name}")
    if _distinct_share(target_words) < min(0.9, _distinct_share(source_words)):
        warnings.append("it repeats itself")
    shortest, longest = (0.12, 0.8) if target == "zh" else (0.5, 2)  # times the source's length
    if not shortest * len(source) - 8 < len(translation) < longest * len(source) + 12:
        warnings.append(f"it has {len(translation):,} characters, the source {len(source):,}")
    if lost:
        warnings.append(f"missing: {', '.join(lost)}")
    return tuple(warnings)


def _distinct_share(tokens: list[str]) -> float:
    four_grams = ngrams(tokens, 4)
    return len(set(four_grams)) / len(four_grams) if four_grams else 1.0


def _lost(source: str, translation: str) -> list[str]:
    """What had to stay and is missing: addresses, tags, placeholders, time codes, numbers.

    7:45 counts as two numbers, because a translation may write 7 h 45.
    """
    parts = dict.fromkeys(_UNTRANSLATABLE.findall(source))
    lost = [part for part in parts if translation.count(part) < source.count(part)]
    source, translation = (
        _UNTRANSLATABLE.sub(" ", text).replace(":", "; ") for text in (source, translation)
    )
    values = set().union(*(number.values for number in numbers(translation)))
    lost += [number.written for number in numbers(source) if not number.values & values]
    return list(dict.fromkeys(lost))


def pieces(text: str) -> list[tuple[str, str]]:
    """A text as sentences, each on one line, with what stands before it: its gap.

    A gap has spaces, line breaks, indents and markers of list items. A line break ends a sentence,
    unless the lines are as long as those of a wrapped paragraph are. A sentence of more than 400
    characters is cut. Code between ``` stays as it is, as part of a gap; the last gap may have no
    sentence behind it.
    """
    result = []
    for gap, paragraph in _unwrapped_lines(text):
        if not paragraph:
            result.append((gap, ""))
        for sentence in split_sentences(paragraph):
            for part in textwrap.wrap(sentence, MAX_SENTENCE_CHARACTERS, **_CUTTING):
                result.append((gap, part))
                gap = " "
    return result


def _unwrapped_lines(text: str) -> list[tuple[str, str]]:
    """The lines, those of a wrapped paragraph joined, each with the gap before it."""
    blocks = []
    gap = fence = ""
    is_title = text.count("\n~~~") == 1  # a single line of tildes underlines it
    for line in text.splitlines():
        if fence or (_FENCE.match(line) and not (is_title and "~" in line)):
            is_end = fence and line.strip().startswith(fence)
            fence = "" if is_end else fence or _FENCE.match(line)[1]
            gap += line + "\n"
            continue
        marker = _MARKER.match(line)[0]
        body = "\t".join(" ".join(cell.split()) for cell in line[len(marker) :].split("\t"))
        if not body.strip():
            gap += "\n"
            continue
        if gap != "\n" or marker.strip() or not blocks:
            blocks.append([])
        blocks[-1].append((gap + marker, body))
        gap = "\n"
    if gap.strip():
        blocks.append([(gap.removesuffix("\n"), "")])
    return [line for block in blocks for line in _joined_lines(block)]


def _joined_lines(block: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines of a paragraph or list item, each with its gap; those that were wrapped joined.

    A line is full if the next word would have made it longer than the longest. In a wrapped
    paragraph all lines but the last are full. For two lines that isn't enough to tell: the second
    one must begin in lower case, too.
    """
    width = max(len(line) for _, line in block)
    is_full = []
    for (_, line), (_, following) in itertools.pairwise(block):
        is_full.append(len(line) + 1 + len(following.split()[0]) > width)
    is_wrapped = width >= MIN_WRAPPED_WIDTH and 3 * sum(is_full) >= 2 * len(is_full)
    if len(block) == 2:
        is_wrapped = is_wrapped and block[1][1][0].islower()
    result = block[:1]
    for (gap, line), follows_full in zip(block[1:], is_full, strict=True):
        if is_wrapped and follows_full:
            result[-1] = (result[-1][0], f"{result[-1][1]}\n{line}")
        else:
            result.append((gap, line))
    return [(gap, "\t".join(map(on_one_line, lines.split("\t")))) for gap, lines in result]


def _language_name(target: str) -> str:
    if target not in LANGUAGES:
        choices = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise ApplicationError(f"The target {target!r} is unknown; choose one of {choices}.")
    return LANGUAGES[target]


class Translator(Application):
    """Translates English by sentences; one that looks wrong is tried once more, and reported."""

    def __init__(self, model, tokenizer, target: str = "fr") -> None:
        """model, tokenizer: a decoder of transformers; target: one of LANGUAGES."""
        self.model, self.tokenizer, self.target = model, tokenizer, target
        self.suffix = f"\n{_language_name(target)}:"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.stop_ids = [tokenizer.eos_token_id]
        for token, number in tokenizer.get_vocab().items():
            if any(mark in token for mark in _LINE_BREAKS) and "\n" in tokenizer.decode([number]):
                self.stop_ids.append(number)
        rows = handbook.resource("translations")["examples"]
        examples = [f"English: {row['en']}{self.suffix} {row[target]}\n\n" for row in rows]
        prompt = (tokenizer.bos_token or "") + "".join(examples) + "English:"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self.example_ids = ids.to(model.device)  # (1, tokens)
        self.cache = transformers.DynamicCache(config=model.config)  # of the examples, read once
        with torch.inference_mode():
            model(input_ids=self.example_ids, past_key_values=self.cache, logits_to_keep=1)

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", target: str = "fr") -> Self:
        """model: a decoder; empty: the profile's. Raises ApplicationError for an unknown target."""
        _language_name(target)
        name = model or profiles.resolve(profile).translator
        return cls(models.load_decoder(name), models.load_tokenizer(name), target)

    def to(self, target: str) -> Self:
        """The same model with another target language."""
        return type(self)(self.model, self.tokenizer, target)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A translation of each text; the sentences of all of them are computed together."""
        start = time.perf_counter()
        split = [pieces(text) for text in checked(texts)]
        translations = self._translate({sentence for parts in split for _, sentence in parts})
        seconds = (time.perf_counter() - start) / max(1, len(split))
        return [replace(self._join(parts, translations), seconds=seconds) for parts in split]

    def stream(self, text: str) -> Iterator[str]:
        """The translation, sentence by sentence; rounding may choose other words than in a call."""
        for part in pieces(checked([text])[0]):
            yield self._join([part], self._translate({part[1]})).text

    def _join(self, parts: list[tuple[str, str]], translations: dict[str, Result]) -> Result:
        text = ""
        warnings = []
        for number, (gap, sentence) in enumerate(parts, 1):
            place = f"sentence {number}: " if len(parts) > 1 else ""
            warnings += [place + warning for warning in translations[sentence].warnings]
            if choice := _CHOICE.search(sentence):
                warnings.append(f"{place}left in English: {choice[0]}")
            text += "" if gap == " " and self.target == "zh" else gap
            text += translations[sentence].text
        tokens = sum(translations[sentence].tokens for _, sentence in parts)
        return Result(text, warnings=tuple(warnings), tokens=tokens)

    def _translate(self, sentences: set[str]) -> dict[str, Result]:
        """A translation of each sentence; if that looks wrong, of the parts between its tags."""
        results = self._attempts(sentences)
        fragments = {}
        for sentence, result in results.items():
            if result.warnings and _UNTRANSLATABLE.search(sentence):
                fragments[sentence] = re.split(f"({_UNTRANSLATABLE.pattern})", sentence)
        between = itertools.chain(*(parts[::2] for parts in fragments.values()))
        translations = self._attempts({part.strip() for part in between})
        for sentence, parts in fragments.items():
            tokens = results[sentence].tokens
            warnings = ["translated in fragments"]
            for index in range(0, len(parts), 2):
                source = parts[index].strip()
                translation = translations[source]
                tokens += translation.tokens
                warnings += [f"{source!r}: {warning}" for warning in translation.warnings]
                parts[index] = parts[index].replace(source, translation.text or source)
            results[sentence] = Result("".join(parts), warnings=tuple(warnings), tokens=tokens)
        return results

    def _attempts(self, sentences: set[str]) -> dict[str, Result]:
        """The better of two attempts at each sentence, with the tokens of both."""
        results = {}
        for sentence in sentences:
            if not any(map(str.isalpha, _UNTRANSLATABLE.sub("", sentence))):
                results[sentence] = Result(sentence)
        todo = sorted(sentences - results.keys(), key=lambda sentence: (len(sentence), sentence))
        for penalty in REPETITION_PENALTIES:
            for start in range(0, len(todo), SENTENCES_PER_BATCH):
                rows = todo[start : start + SENTENCES_PER_BATCH]
                for row, result in zip(rows, self._generate(rows, penalty), strict=True):
                    results[row] = _better(results[row], result) if row in results else result
            todo = [row for row in todo if results[row].warnings]
        return results

    def _generate(self, sentences: list[str], repetition_penalty: float) -> list[Result]:
        """One batch. What looks like a control token in a sentence is read as letters."""
        encoded = self.tokenizer(
            [f" {sentence}{self.suffix}" for sentence in sentences],
            add_special_tokens=False,
            split_special_tokens=True,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        examples = self.example_ids.expand(len(sentences), -1)
        ids = torch.cat((examples, encoded["input_ids"]), dim=1)  # (sentences, seq)
        mask = torch.cat((torch.ones_like(examples), encoded["attention_mask"]), dim=1)
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(sentences))
        generated = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            do_sample=False,
            repetition_penalty=repetition_penalty,
            max_new_tokens=min(256, 2 * encoded["input_ids"].shape[1] + 16),
            eos_token_id=self.stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new_ids = generated[:, ids.shape[1] :].tolist()
        return [self._result(*pair) for pair in zip(sentences, new_ids, strict=True)]

    def _result(self, sentence: str, ids: list[int]) -> Result:
        stops = (n for n, token in enumerate(ids, 1) if token in self.stop_ids)
        n_tokens = next(stops, len(ids))
        text = self.tokenizer.decode(ids[:n_tokens], skip_special_tokens=True)
        text = text.split("\n")[0].strip()
        warnings = problems(sentence, text, self.target)
        if ids[n_tokens - 1] not in self.stop_ids:
            warnings += (f"it was cut off after {n_tokens} tokens",)
        return Result(text, warnings=warnings, tokens=n_tokens)


def _better(first: Result, second: Result) -> Result:
    tokens = first.tokens + second.tokens
    if len(second.warnings) >= len(first.warnings):
        return replace(first, tokens=tokens)
    note = f"second try; the first: {'; '.join(first.warnings)}"
    return replace(second, tokens=tokens, warnings=(*second.warnings, note))
