"""Translation from English: a decoder shown five examples, or an encoder-decoder (notebook 06)."""

import copy
import json
import re
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import torch
import transformers

from llmnb import models, profiles
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.handbook import RESOURCES

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "zh": "Chinese"}
_TOGETHER = 32  # sentences computed at once
_LONGEST = 400  # characters of a sentence; a longer one is cut
_PENALTIES = 1.0, 1.2  # of repetition, for the first and the second try
_BREAKS = "\n", "Ċ", "<0x0A>"  # how vocabularies write a line break
_CHINESE = ">>cmn_Hans<< "  # opus-mt-en-zh wants to be told which Chinese

_TITLES = ["Mr", "Mrs", "Ms", "Dr", "Prof", "St", "No", "vs", "e.g", "i.e"]
_NO_END = "".join(rf"(?<!\b{re.escape(title)}\.)" for title in _TITLES) + r"(?<!\b[A-Z]\.)"
_SENTENCE = re.compile(_NO_END + "(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)])) (?=[^a-z])")
_NUMBER = re.compile(r"(?<!\d)\d{1,3}(?:[\s'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+")  # a Chinese character, or a word
_COMMON = {  # words, and letters beyond ASCII, that are frequent in one of the languages
    "en": "the of and to in is are was it that this with for on have has had been not you they we "
    "she he his her their from by at as will would which who if but or do did my your our i don t",
    "fr": "le la les l un une de des du d et à en au est sont était a ont il elle ils je j nous on "
    "vous ne n pas que qu qui ce c cette ces se s sa son sur dans pour par plus mais tu as ê è ç",
    "es": "el la los las un una de del y a en al es son está están que no se su sus con por para "
    "lo le más pero si me te nos ha han he muy este esta como cuando ñ ¿ ¡ á í ó ú",
    "de": "der die das den dem des ein eine einen einem und ist sind war nicht ich du er sie es "
    "wir ihr mit auf von zu zum zur im in am an für bei dass wenn als hat wird auch sich ß ä ö ü",
}
_SHARED = Counter(word for words in _COMMON.values() for word in words.split())


def language(text: str) -> str:
    """What a text is in: en, fr, es, de or zh; "?" in another script; "" where too little tells.

    By script, then by words and letters that are frequent in a language; those of several count
    less. Another language in Latin letters may be taken for one of these.
    """
    letters = [c for c in text.lower() if c.isalpha()]
    if 3 * sum("\u4e00" <= c <= "\u9fff" for c in letters) > len(letters):
        return "zh"  # a third is enough: a Latin name has more letters than a Chinese one
    if 2 * sum(c < "\u0250" for c in letters) < len(letters):
        return "?"
    seen = Counter([*re.findall(r"[^\W\d_]+", text.lower()), *(c for c in text.lower() if c > "~")])
    score = {k: sum(min(seen[w], 3) / _SHARED[w] for w in _COMMON[k].split()) for k in _COMMON}
    first, second = sorted(score, key=score.get, reverse=True)[:2]
    return first if score[first] > score[second] else ""


def problems(source: str, translation: str, target: str) -> tuple[str, ...]:
    """What is visibly wrong with the translation of an English sentence; none is no praise.

    Looks for: nothing said, a copy, another language, the same words again (distinct-n: Li et al.
    2016, section 5), a length out of proportion, numbers that are missing; a number that became a
    word, as 3 became drei, counts as missing. Raises ApplicationError for an unknown target.
    """
    named, looks = _named(target), language(translation)
    if not translation.strip():
        return ("nothing was translated",)
    said, heard = (_UNIT.findall(text.lower()) for text in (source, translation))
    sentence = len(said) > 2  # a name, or a word that both languages have, may stay as it is
    copied = (Counter(said) & Counter(heard)).total() > 0.7 * len(heard)
    low, high = (0.12, 0.8) if target == "zh" else (0.5, 2)
    fits = low * len(source) - 8 < len(translation) < high * len(source) + 12
    there = set().union(*_numbers(translation).values())
    missing = [written for written, meant in _numbers(source).items() if not meant & there]
    checks = {
        "most of it is copied from the source": sentence and copied,
        f"it doesn't look like {named}": sentence and looks != target and (looks or target == "zh"),
        "it repeats itself": _distinct(heard) < min(0.9, _distinct(said)),
        f"it has {len(translation):,} characters, the source {len(source):,}": not fits,
        f"numbers are missing: {', '.join(missing)}": missing,
    }
    return tuple(text for text, wrong in checks.items() if wrong)


def _distinct(units: list[str]) -> float:
    grams = list(zip(*(units[start:] for start in range(4)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def _numbers(text: str) -> dict[str, set[str]]:
    """Each number, and what it may mean: 1,500, as 1.500, is 1500 or 1.5; 24,50 is 24.5."""
    found = {}
    for written in _NUMBER.findall(unicodedata.normalize("NFKC", text)):
        *whole, last = re.sub(r"[\s'’]", "", written).replace(",", ".").split(".")
        decimal = f"{''.join(whole)}.{last}".rstrip("0").rstrip(".") if whole else last
        found[written] = {decimal, "".join(whole) + last if len(last) == 3 else decimal}
    return found


def pieces(text: str) -> list[tuple[str, str]]:
    """A text as sentences, each on one line, with the gap before it.

    A line break ends a sentence, unless the next line begins with a small letter: then it was
    wrapped. A sentence of more than 400 characters is cut between words. Indents are dropped.
    """
    lines, gap = [], ""
    for line in text.splitlines():
        bare = " ".join(line.split())
        if lines and gap == "\n" and bare[:1].islower():
            lines[-1][1].append(bare)
        elif bare:
            lines.append((gap, [bare]))
        gap = "\n" if bare else gap + "\n"
    found = []
    for gap, wrapped in lines:
        for sentence in _SENTENCE.split(" ".join(wrapped)):
            for part in textwrap.wrap(sentence, _LONGEST, break_on_hyphens=False):
                found.append((gap, part))
                gap = " "
    return found


def _named(target: str) -> str:
    if target not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise ApplicationError(f"The target {target!r} is unknown; choose one of {known}.")
    return LANGUAGES[target]


def _loaded(name: str):
    pairs = models.load_config(name).is_encoder_decoder
    return models.load_seq2seq(name) if pairs else models.load_decoder(name)


class Translator(Application):
    """Translates English sentence by sentence; what looks wrong is said, and tried once more."""

    def __init__(self, model, tokenizer, target: str = "fr") -> None:
        """model, tokenizer: of transformers; target: one of LANGUAGES."""
        self.model, self.tokenizer, self.target, self.pattern = model, tokenizer, target, ""
        self.stop, self.before, self.after = [tokenizer.eos_token_id], " ", f"\n{_named(target)}:"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        vocabulary, self.cache = tokenizer.get_vocab(), None
        if model.config.is_encoder_decoder:
            told = target == "zh" and _CHINESE.strip() in vocabulary
            self.before, self.after = _CHINESE if told else "", ""
            return
        breaks = [n for token, n in vocabulary.items() if any(mark in token for mark in _BREAKS)]
        self.stop += [n for n in breaks if "\n" in tokenizer.decode([n])]
        rows = json.loads((RESOURCES / "translations.json").read_text("utf-8"))["examples"]
        shown = [f"English: {row['en']}{self.after} {row[target]}\n\n" for row in rows]
        prompt = (tokenizer.bos_token or "") + "".join(shown) + "English:"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self.shown = ids.to(model.device)
        self.cache = transformers.DynamicCache(config=model.config)  # read once, for all texts
        with torch.inference_mode():
            model(input_ids=self.shown, past_key_values=self.cache, logits_to_keep=1)

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", target: str = "fr") -> Self:
        """A decoder, or an encoder-decoder such as opus-mt; {language} in a name is the target.

        Raises ApplicationError for an unknown target, and AssetError.
        """
        _named(target)
        pattern = model or profiles.resolve(profile).translator
        name = pattern.replace("{language}", target)
        made = cls(_loaded(name), models.load_tokenizer(name), target)
        made.pattern = pattern
        return made

    def to(self, target: str) -> Self:
        """The same for another target: with the same model, if that isn't made for one alone."""
        if "{language}" in self.pattern:
            return type(self).load(self.pattern, target=target)
        return type(self)(self.model, self.tokenizer, target)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A translation of each text; the sentences of all of them are computed together."""
        start = time.perf_counter()
        split = [pieces(text) for text in checked(texts)]
        known = self._translated({sentence for parts in split for _, sentence in parts})
        share = (time.perf_counter() - start) / max(1, len(split))
        return [replace(self._joined(parts, known), seconds=share) for parts in split]

    def stream(self, text: str) -> Iterator[str]:
        """The translation, sentence by sentence; rounding may choose other words than in a call."""
        for part in pieces(checked([text])[0]):
            yield self._joined([part], self._translated({part[1]})).text

    def _joined(self, parts: list[tuple[str, str]], known: dict[str, Result]) -> Result:
        text, warnings = "", []
        for number, (gap, sentence) in enumerate(parts, 1):
            where = f"sentence {number}: " if parts[1:] else ""
            text += ("" if gap == " " and self.target == "zh" else gap) + known[sentence].text
            warnings += [where + each for each in known[sentence].warnings]
        tokens = sum(known[sentence].tokens for _, sentence in parts)
        return Result(text, warnings=tuple(warnings), tokens=tokens)

    def _translated(self, sentences: set[str]) -> dict[str, Result]:
        """The better try at each sentence, with the tokens of both."""
        known = {each: Result(each) for each in sentences if not any(map(str.isalpha, each))}
        todo = sorted(sentences - known.keys(), key=lambda each: (len(each), each))
        for penalty in _PENALTIES:
            for start in range(0, len(todo), _TOGETHER):
                rows = todo[start : start + _TOGETHER]
                for row, result in zip(rows, self._written(rows, penalty), strict=True):
                    known[row] = _better(known[row], result) if row in known else result
            todo = [row for row in todo if known[row].warnings]
        return known

    def _written(self, rows: list[str], penalty: float) -> list[Result]:
        """One batch. What looks like a control token in a text is read as letters."""
        few_shot, texts = self.cache is not None, [self.before + row + self.after for row in rows]
        how = {"add_special_tokens": not few_shot, "padding_side": "left" if few_shot else "right"}
        how |= {"padding": True, "split_special_tokens": True, "return_tensors": "pt"}
        given = self.tokenizer(texts, **how).to(self.model.device)
        ids, mask = given["input_ids"], given["attention_mask"]
        ends = {"max_new_tokens": min(256, 2 * ids.shape[1] + 16), "eos_token_id": self.stop}
        first, past = 1, None  # where the translation begins
        if few_shot:
            shown = self.shown.expand(len(rows), -1)
            ids, mask = torch.cat((shown, ids), 1), torch.cat((torch.ones_like(shown), mask), 1)
            first, past = ids.shape[1], copy.deepcopy(self.cache)
            past.batch_repeat_interleave(len(rows))
        ends |= {"pad_token_id": self.tokenizer.pad_token_id, "repetition_penalty": penalty}
        made = self.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=past, do_sample=False, **ends
        )
        pairs = zip(rows, made[:, first:].tolist(), strict=True)
        return [self._result(source, made) for source, made in pairs]

    def _result(self, source: str, row: list[int]) -> Result:
        n = next((n for n, token in enumerate(row, 1) if token in self.stop), len(row))
        text = self.tokenizer.decode(row[:n], skip_special_tokens=True).split("\n")[0].strip()
        cut = () if row[n - 1] in self.stop else (f"it was cut off after {n} tokens",)
        return Result(text, None, (), problems(source, text, self.target) + cut, n)


def _better(first: Result, second: Result) -> Result:
    tokens = first.tokens + second.tokens
    if len(second.warnings) >= len(first.warnings):
        return replace(first, tokens=tokens)
    note = f"second try; the first: {'; '.join(first.warnings)}"
    return replace(second, tokens=tokens, warnings=(*second.warnings, note))
