"""Translation from English: a decoder shown five examples, or an encoder-decoder (notebook 06)."""

import copy
import json
import re
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Self

import torch
import transformers

from llmnb import assets, profiles
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.handbook import RESOURCES

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "zh": "Chinese"}
_TOGETHER = 32  # sentences computed at once
_LONGEST = 400  # characters of a sentence; a longer one is cut
_CHINESE = ">>cmn_Hans<< "  # opus-mt-en-zh wants to be told which Chinese

_TITLES = ("Mr", "Mrs", "Ms", "Dr", "Prof", "St", "No", "vs", "e.g", "i.e", "approx")
_SENTENCE = re.compile(
    "".join(rf"(?<!\b{re.escape(title)}\.)" for title in _TITLES)
    + "(?<!\\b[A-Z]\\.)(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)])) (?=[^a-z])"
)
_NUMBER = re.compile(r"(?<!\d)\d{1,3}(?:[\s'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+")  # a Chinese character, or a word
_COMMON = {  # words, and letters beyond ASCII, that are frequent in one of the languages
    "en": "the of and to in is are was were it that this with for on have has had be been not you "
    "they we she he his her their from by at as will would which who what there when if but or do "
    "does did my your our me us them so than then into about after before all any can i don t ll",
    "fr": "le la les l un une de des du d et à en au aux est sont était a ont il elle ils elles je "
    "j nous vous on ne n pas que qu qui ce c cette ces se s sa son ses sur dans pour par avec plus "
    "mais ou où très leur mon ma mes votre notre sans si tu ê è ç à â û î ô œ",
    "es": "el la los las un una de del y a en al es son era fue está están que no se su sus con "
    "por para lo le les más pero o si mi me te nos ha han he hay muy este esta estos ese como "
    "cuando ya sin sobre entre ñ ¿ ¡ á í ó ú",
    "de": "der die das den dem des ein eine einen einem einer und ist sind war waren nicht ich du "
    "er sie es wir ihr mit auf von zu zum zur im in am an für bei nach aus dass wenn wie als hat "
    "haben wird werden auch nur noch sich mein meine ihre ihren dieser diese um vor bis ß ä ö ü",
}
_SHARED = Counter(word for words in _COMMON.values() for word in words.split())


def language(text: str) -> str:
    """What a text is in: en, fr, es, de or zh; "?" in another script; "" where too little tells.

    By script, then by words and letters that are frequent in a language; those of several count
    less. Another language in Latin letters may be taken for one of these.
    """
    letters = [c for c in text.lower() if c.isalpha()]
    if sum("\u4e00" <= c <= "\u9fff" for c in letters) * 3 > len(letters):
        return "zh"  # with a third: a Latin name takes more letters than a Chinese one
    if sum(c < "\u0250" for c in letters) * 2 < len(letters):
        return "?"
    seen = Counter(re.findall(r"[^\W\d_]+|[¿¡]", text.lower()))
    seen.update(c for c in letters if c > "~")
    scores = {
        name: sum(min(seen[word], 3) / _SHARED[word] for word in words.split())
        for name, words in _COMMON.items()
    }
    first, second = sorted(scores, key=scores.get, reverse=True)[:2]
    return first if scores[first] > scores[second] else ""


def problems(source: str, translation: str, target: str) -> tuple[str, ...]:
    """What is visibly wrong with the translation of an English sentence; none is no praise.

    Looks for: nothing said, a copy, another language, the same words again (distinct-n: Li et al.
    2016, section 5.3), a length out of proportion, numbers that are missing (words for numbers,
    as in "drei", are not seen). Raises ApplicationError for an unknown target.
    """
    named, found = _named(target), []
    if not translation.strip():
        return ("nothing was translated",)
    said, heard = (_UNIT.findall(text.lower()) for text in (source, translation))
    sentence = len(said) > 2  # a name, or a word that both languages have, may stay as it is
    if sentence and (Counter(said) & Counter(heard)).total() > 0.7 * len(heard):
        found.append("most of it is copied from the source")
    looks = language(translation)
    if sentence and looks != target and (looks or target == "zh"):
        found.append(f"it doesn't look like {named}")
    if _distinct(heard) < min(0.9, _distinct(said)):
        found.append("it repeats itself")
    low, high = (0.12, 0.8) if target == "zh" else (0.5, 2)
    if not low * len(source) - 8 < len(translation) < high * len(source) + 12:
        found.append(f"it has {len(translation):,} characters, the source {len(source):,}")
    there = set().union(*(meant for _, meant in _numbers(translation)))
    if missing := [written for written, meant in _numbers(source) if not meant & there]:
        found.append(f"numbers are missing: {', '.join(missing)}")
    return tuple(found)


def _distinct(units: list[str]) -> float:
    grams = list(zip(*(units[start:] for start in range(4)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def _numbers(text: str) -> list[tuple[str, set[str]]]:
    """Each number, and what it may mean: 1,500, as 1.500, is 1500 or 1.5; 24,50 is 24.5."""
    found = []
    for written in _NUMBER.findall(unicodedata.normalize("NFKC", text)):
        *whole, last = re.sub(r"[\s'’]", "", written).replace(",", ".").split(".")
        meant = {f"{''.join(whole)}.{last}".rstrip("0").rstrip(".") if whole else last}
        found.append((written, meant | ({"".join(whole) + last} if len(last) == 3 else set())))
    return found


def pieces(text: str) -> list[tuple[str, str]]:
    """A text as sentences, each on one line, with the gap before it.

    A line break ends a sentence, unless the next line begins with a small letter: then it was
    wrapped. A sentence of more than 400 characters is cut between words.
    """
    found, gap = [], ""
    for line in text.splitlines():
        bare = " ".join(line.split())
        if found and gap == "\n" and bare[:1].islower():
            gap, last = found.pop()
            bare = f"{last} {bare}"
        else:
            gap += line[: len(line) - len(line.lstrip())] if bare else ""
        for sentence in _SENTENCE.split(bare):
            for part in textwrap.wrap(sentence, _LONGEST, break_on_hyphens=False):
                found.append((gap, part))
                gap = " "
        gap = "\n" if bare else gap + "\n"
    return found


def _named(target: str) -> str:
    if target not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise ApplicationError(f"The target {target!r} is unknown; from English goes to: {known}.")
    return LANGUAGES[target]


def _loaded(name: str):
    folder = assets.locate(name)
    with assets._load_errors(name, folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder:
        return assets._load("AutoModelForSeq2SeqLM", "an encoder-decoder", name, "auto", None)
    return assets.load_decoder(name)


class Translator(Application):
    """Translates English sentence by sentence; what looks wrong is said, and tried once more."""

    def __init__(self, model, tokenizer, target: str = "fr") -> None:
        """model, tokenizer: of transformers; target: one of LANGUAGES."""
        named = _named(target)
        self.model, self.tokenizer, self.target = model, tokenizer, target
        self.stop, self.prompts, self.before = {tokenizer.eos_token_id} - {None}, [], ""
        if model.config.is_encoder_decoder:
            self.before = _CHINESE if _CHINESE.strip() in tokenizer.get_vocab() else ""
            return
        single = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        self.stop |= {number for number, text in enumerate(single) if "\n" in text}
        self.after = f"\n{named}:"
        rows = json.loads((RESOURCES / "translations.json").read_text("utf-8"))["examples"]
        for order in (rows[::-1], rows):  # the better one first
            shown = [f"English: {row['en']}{self.after} {row[target]}\n\n" for row in order]
            self.prompts.append(self._read("".join(shown) + "English:"))

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", target: str = "fr") -> Self:
        """A decoder, or an encoder-decoder such as opus-mt; {language} in a name is the target.

        Raises ApplicationError for an unknown target, and AssetError.
        """
        _named(target)
        name = (model or profiles.resolve(profile).translator).replace("{language}", target)
        return cls(_loaded(name), assets.load_tokenizer(name), target)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A translation of each text; the sentences of all of them are computed together."""
        start = time.perf_counter()
        split = [pieces(text) for text in checked(texts)]
        known = self._translated({sentence for parts in split for _, sentence in parts})
        share = (time.perf_counter() - start) / max(1, len(split))
        return [self._result(parts, known, share) for parts in split]

    def stream(self, text: str) -> Iterator[str]:
        """The translation, sentence by sentence; together they are what a call gives."""
        for part in pieces(checked([text])[0]):
            yield self._result([part], self._translated({part[1]}), 0).text

    def _result(self, parts: list[tuple[str, str]], known: dict, seconds: float) -> Result:
        written, warnings, tokens = "", [], 0
        for number, (gap, sentence) in enumerate(parts, 1):
            text, found, n = known[sentence]
            written += ("" if gap == " " and self.target == "zh" else gap) + text
            warnings += [f"sentence {number}: {each}" if parts[1:] else each for each in found]
            tokens += n
        return Result(written, warnings=tuple(warnings), tokens=tokens, seconds=seconds)

    def _translated(self, sentences: set[str]) -> dict[str, tuple[str, tuple[str, ...], int]]:
        """Of each sentence the better try, what is wrong with it, and the tokens of both."""
        known = {each: (each, (), 0) for each in sentences if not any(map(str.isalpha, each))}
        todo = sorted(sentences - known.keys(), key=lambda each: (len(each), each))
        for prompt in self.prompts or [None]:
            for start in range(0, len(todo), _TOGETHER):
                rows = todo[start : start + _TOGETHER]
                for row, (text, wrong, n) in zip(rows, self._written(rows, prompt), strict=True):
                    if row in known:
                        before, was, n_before = known[row]
                        better, n = len(wrong) < len(was), n + n_before
                        note = f"second try; the first: {'; '.join(was)}"
                        text, wrong = (text, (*wrong, note)) if better else (before, was)
                    known[row] = text, wrong, n
            todo = [row for row in todo if known[row][1]]
        return known

    def _written(self, rows: list[str], prompt: tuple | None) -> list[tuple]:
        """One batch: of each sentence the translation, what is wrong with it, and its tokens."""
        given = self._prompted(rows, *prompt) if prompt else self._padded(rows)
        n_new = min(256, 16 + 2 * max(len(self._ids(row)) for row in rows))
        room = getattr(self.model.config, "max_position_embeddings", None)
        size = given["input_ids"].shape[1] + (n_new if prompt else 0)
        if room and size > room:
            raise ApplicationError(f"A sentence takes {size:,} tokens; the model reads {room:,}.")
        ends = {"max_new_tokens": n_new, "eos_token_id": sorted(self.stop)}
        ends["pad_token_id"] = self.tokenizer.pad_token_id or 0
        with torch.inference_mode():
            made = self.model.generate(**given, do_sample=False, **ends)
        found = []
        first = given["input_ids"].shape[1] if prompt else 1
        for source, row in zip(rows, made[:, first:].tolist(), strict=True):
            n = next((n for n, token in enumerate(row, 1) if token in self.stop), len(row))
            text = self.tokenizer.decode(row[:n], skip_special_tokens=True).split("\n")[0].strip()
            cut = () if row[n - 1] in self.stop else (f"it was cut off after {n} tokens",)
            found.append((text, problems(source, text, self.target) + cut, n))
        return found

    def _ids(self, text: str) -> list[int]:
        """The text's own tokens: one that looks like a control token is read as letters."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(text, **options)["input_ids"]

    def _read(self, prompt: str) -> tuple[list[int], transformers.DynamicCache]:
        """The ids of what stands before every text, and their keys and values."""
        bos = self.tokenizer.bos_token_id
        ids = ([] if bos is None else [bos]) + self._ids(prompt)
        cache = transformers.DynamicCache(config=self.model.config)
        given = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            self.model(input_ids=given, past_key_values=cache, logits_to_keep=1)
        return ids, cache

    def _prompted(self, rows: list[str], shared: list[int], cache) -> dict:
        """The examples, which have been read, then padding, then each text: what generate takes."""
        own = [self._ids(f" {row}{self.after}") for row in rows]
        gaps = [max(map(len, own)) - len(ids) for ids in own]
        made = [shared + [0] * gap + ids for gap, ids in zip(gaps, own, strict=True)]
        seen = [[1] * len(shared) + [0] * gap + [1] * len(ids) for gap, ids in zip(gaps, own)]
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(rows))
        device = self.model.device
        ids, mask = torch.tensor(made, device=device), torch.tensor(seen, device=device)
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}

    def _padded(self, rows: list[str]) -> dict:
        options = {"padding": True, "padding_side": "right", "split_special_tokens": True}
        texts = [self.before + row for row in rows]
        given = self.tokenizer(texts, return_tensors="pt", **options).to(self.model.device)
        return {name: given[name] for name in ("input_ids", "attention_mask")}
