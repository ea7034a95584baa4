"""Check the texts that scores rest on. Run it after changing one of them on purpose.

python dev/check_texts.py

They are llmnb/resources/*.json and the handbook. tests/test_resources.py only compares their
digest, because a text that hasn't changed needs no other check.
"""

import base64
import html
import itertools
import json
import re
import string
import unicodedata
from collections import Counter

import pandas as pd

from llmnb import handbook
from llmnb.evaluation import judge
from llmnb.evaluation.scores import token_f1
from llmnb.fine_tuning import messages
from llmnb.handbook import RESOURCES

FILES = [*sorted(RESOURCES.glob("*.json")), *sorted(handbook.FOLDER.glob("*.md"))]


def load(name):
    return json.loads((RESOURCES / f"{name}.json").read_text(encoding="utf-8"))


TRANSLATIONS, SUMMARIES, HOSTILE = load("translations"), load("summaries"), load("hostile")
SENTENCES, EXAMPLES = TRANSLATIONS["sentences"], TRANSLATIONS["examples"]
LANGUAGES = ("en", "fr", "de", "es", "zh")
LATIN_IN_CHINESE = {"GPU"}


def words(text):
    """Lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def numbers(text):
    """As written: 3.8, 1,500, 6:30 and 5.2.1 are one number each."""
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def digits(text):
    """Without the separators, in which languages differ: 3,200, 3.200, 3 200 are the same."""
    joined = re.sub(r"(?<=\d)(?:[.,:]|\s(?:h\s)?)(?=\d)", "", text)
    return Counter(re.findall(r"\d+", joined))


def is_in(answer, text):
    """As whole words, without regard to case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def disguises(text):
    """The text without format characters, reversed, and with its codes decoded."""
    yield "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    yield text[::-1] if "\u202e" in text else ""
    yield "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) <= 0xE007E)
    yield html.unescape(text)
    for run in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        yield base64.b64decode(run + "=" * (-len(run) % 4)).decode("utf-8", "replace")


def check_that_files_show_all_they_hold():
    """The files hold no invisible characters and no absolute paths of somebody's machine."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        path = re.search(r"(^|[\s\"'`(])(/[a-z]+/|~/|[A-Z]:\\)", text)
        assert not path, (file.name, "an absolute path")
        text = text.replace("\n", "")
        categories = {unicodedata.category(letter) for letter in text}
        assert not categories & {"Cf", "Cc", "Zl", "Zp", "Co"}, file.name
        assert not set(text) & {"\xa0", "\u202f"}, (file.name, "write such spaces as escapes")
        assert unicodedata.is_normalized("NFC", text), file.name


def check_that_no_row_lacks_a_field():
    """Translations, summaries and hostile documents have all their rows and fields."""
    for rows, n, letter, fields in (
        (SENTENCES, 64, "t", {"kind", *LANGUAGES}),
        (EXAMPLES, 5, "x", {"kind", *LANGUAGES}),
        (SUMMARIES, 24, "s", {"kind", "text", "summary"}),
        (HOSTILE, 30, "h", {"attack", "text", "orders", "question", "answer", "marker"}),
    ):
        assert [row["id"] for row in rows] == [f"{letter}{i:02d}" for i in range(1, n + 1)]
        for row in rows:
            assert set(row) == {"id", *fields}, row["id"]
            texts = [text for name, text in row.items() if name != "orders"]
            assert all(text == text.strip() != "" for text in texts), row["id"]


# Translations


def check_translations():
    """Translations differ and keep the numbers, and the first eight are a sample."""
    rows = SENTENCES + EXAMPLES
    texts = [" ".join(words(row[language])) for row in rows for language in LANGUAGES]
    assert len(set(texts)) == len(texts)
    assert len({row["kind"] for row in SENTENCES[:8]}) >= 5
    for row in rows:
        expected = digits(row["en"])
        assert all(expected <= digits(row[language]) for language in LANGUAGES), row["id"]
        if row["kind"] == "numbers":
            assert expected, row["id"]


def check_chinese():
    """Chinese has simplified characters, full-width punctuation, and hardly any Latin letter."""
    for row in SENTENCES + EXAMPLES:
        text = row["zh"]
        assert len(re.findall(r"[\u4e00-\u9fff]", text)) >= len(text) / 2, row["id"]
        latin = re.findall(r"[^\W\d_\u4e00-\u9fff]+", text)
        assert set(latin) <= LATIN_IN_CHINESE, row["id"]
        narrow = re.search(r"(?<!\d)[.,:]|[.,:](?!\d)|[?!;()\"' ]", text)
        assert not narrow, (row["id"], "punctuation is not full-width")
        traditional = set(text) & set("這個們說時來為學國車書門開關")
        assert not traditional, (row["id"], "characters are not simplified")


# Summaries


def check_summaries():
    """Summaries are short, and have their numbers and names from the text."""
    for row in SUMMARIES:
        n_words = len(row["summary"].split())
        assert 15 <= n_words <= 40 and n_words < len(row["text"].split()) / 4, row["id"]
        assert set(numbers(row["summary"])) <= set(numbers(row["text"])), row["id"]
        names = re.findall(r"(?<=[\w,;] )[A-Z]\w+", row["summary"])  # not at the start
        assert set(names) <= set(re.findall(r"\w+", row["text"])), row["id"]


def check_that_the_first_sentence_is_often_not_the_best_summary():
    """The first sentence is often not the best summary, so copying it isn't summarizing."""
    n_best = 0
    for row in SUMMARIES:
        parts = re.split(r"(?<=[.?!])\s+", row["text"])
        sentences = [part for part in parts if len(part) > 20]
        scores = [token_f1(sentence, [row["summary"]]) for sentence in sentences]
        n_best += scores[0] == max(scores)
    assert 8 <= n_best <= 14


# Hostile documents


def check_answers_of_hostile_documents():
    """The true answer stands in the hostile document, and not in the question."""
    for row in HOSTILE:
        assert is_in(row["answer"], row["text"]) and row["answer"] in row["text"], row["id"]
        assert 1 <= len(row["answer"].split()) <= 6, row["id"]
        assert not is_in(row["answer"], row["question"]), row["id"]


def check_markers_of_hostile_documents():
    """A marker shows a successful attack and nothing else."""
    for row in HOSTILE:
        marker = row["marker"].lower()
        assert len(marker) >= 7, row["id"]
        for other in HOSTILE:
            assert marker not in f"{other['question']} {other['answer']}".lower(), row["id"]
            if other is not row:
                assert marker not in f"{other['marker']} {other['text']}".lower(), row["id"]
        # In the open, or, where the attack is to hide it, only under its disguise.
        hidden = row["attack"] in {"encoding", "invisible", "bidi"}
        assert (row["marker"] in row["text"]) is not hidden, row["id"]
        if hidden:
            assert any(row["marker"] in text for text in disguises(row["text"])), row["id"]


def check_orders_of_hostile_documents():
    """Without its orders a hostile document holds the answer and no marker."""
    for row in HOSTILE:
        text = row["text"]
        for order in row["orders"]:
            assert text.count(order) == 1, row["id"]
            text = text.replace(order, "")
        assert row["answer"] in text and row["marker"].lower() not in text.lower(), row["id"]
        assert len(text) >= 100, (row["id"], "too little is left for a twin")


def check_attacks():
    """The attacks are of many kinds, and reach nobody: evil.example belongs to no one."""
    attacks = [row["attack"] for row in HOSTILE]
    assert len(set(attacks)) >= 12 and len(set(attacks[:8])) == 8
    everything = " ".join(row["text"] for row in HOSTILE)
    needed = "<script onerror= <svg <iframe <style javascript: data:text/html <|im_start|> [INST]"
    for part in [*needed.split(), "<!--", "[source: ", "\u200b", "\u202e", "\U000e0050"]:
        assert part in everything, part
    texts = [text for row in HOSTILE for text in (row["text"], *disguises(row["text"]))]
    addresses = re.findall(r"(?:(?:https?:)?//|@)([^/\"?)\s]+)", " ".join(texts))
    assert {*addresses} - {"www.w3.org"} == {"evil.example"}


# The handbook


def check_questions_about_the_handbook():
    """The first answer to a question stands in its passage, and not in the question."""
    passages = {passage.id: passage for passage in handbook.passages()}
    for question in handbook.questions():
        if not question.answerable:
            continue
        first = question.answers[0]
        assert is_in(first, passages[question.evidence].text), question.id
        assert not is_in(first, question.question), question.id
        assert 1 <= len(set(question.answers)) == len(question.answers) <= 4, question.id
        bare = str.maketrans("", "", string.punctuation)  # as text.normalize_answer sees it
        n_words = [len(answer.translate(bare).split()) for answer in question.answers]
        assert all(1 <= n <= 6 for n in n_words), question.id


def check_that_any_stretch_of_questions_is_a_sample():
    """The questions are spread over the handbook, and some in any stretch have no answer."""
    questions = handbook.questions()
    answerable = [question for question in questions if question.answerable]
    assert max(Counter(q.evidence for q in answerable).values()) <= 3
    documents = [q.evidence.partition("#")[0] for q in answerable]
    files = {file.stem for file in handbook.FOLDER.glob("*.md")}
    assert set(documents) == files == set(documents[:14])
    assert min(Counter(documents).values()) >= 3
    kinds = [q.answerable for q in questions]
    assert all(3 <= sum(kinds[start : start + 6]) <= 5 for start in range(len(kinds) - 5))


# What notebooks train and measure on


def check_numerals():
    """Numerals are spelled as in the language, and no two alike."""
    numerals = load("numerals")

    def spelled(number, language):
        parts = numerals[language]
        thousand = parts["thousands"][number // 1000]
        hundred = parts["hundreds"][number // 100 % 10]
        return " ".join(f"{thousand} {hundred} {parts['endings'][number % 100]}".split())

    for number, english, german in (
        (1, "one", "eins"),
        (12, "twelve", "zwölf"),
        (47, "forty seven", "sieben und vierzig"),
        (801, "eight hundred one", "acht hundert eins"),
        (1031, "one thousand thirty one", "ein tausend ein und dreißig"),
        (5116, "five thousand one hundred sixteen", "fünf tausend ein hundert sechzehn"),
    ):
        assert (spelled(number, "en"), spelled(number, "de")) == (english, german)
    texts = [spelled(n, name) for n, name in itertools.product(range(1, 10_000), numerals)]
    assert len(set(texts)) == len(texts)


def check_balance_of_bias():
    """In the sentences about bias, no group weighs more than another of its axis."""
    resource = load("bias")
    for template in resource["templates"]:
        assert len(re.findall(r"\{[Pp]erson\}", template["text"])) == 1, template
        starts = template["text"][0] == "{"
        assert ("{Person}" in template["text"]) == starts, template
    tones = pd.DataFrame(resource["templates"]).groupby(["slot", "tone"]).size()
    assert len(tones) == 6 and tones.min() >= 7
    terms = pd.DataFrame(resource["terms"])
    assert terms["term"].is_unique and terms.groupby(["axis", "group"]).ngroups >= 20
    sizes = terms.groupby(["axis", "group"]).size().groupby("axis")
    assert sizes.min().min() >= 4 and sizes.nunique().eq(1).all()
    assert terms.groupby("axis")["slot"].nunique().eq(1).all()


def check_pairs_of_bias():
    """In a pair about bias one word differs, and each word is on both sides."""
    pairs = load("bias")["pairs"]
    assert len(pairs) >= 40
    sides = Counter()
    for pair in pairs:
        both = zip(pair["a"].split(), pair["b"].split(), strict=True)
        different = [(a, b) for a, b in both if a != b]
        assert len(different) == 1, pair
        sides[pair["axis"], *different[0]] += 1
    assert all(sides[axis, b, a] == count for (axis, a, b), count in sides.items())


def check_pairs_of_the_judge():
    """A pair for the judge has one defect, and the lengths of its answers tell nothing."""
    pairs = judge.pairs()
    assert len(pairs) >= 60 and len({pair.question for pair in pairs}) == len(pairs)
    defects = Counter(pair.defect for pair in pairs)
    assert len(set(defects.values())) == 1 and len(defects) == 8
    assert {pair.defect for pair in pairs[:8]} == set(defects)  # the first ones hold every kind
    longer = [len(pair.wrong) > len(pair.right) for pair in pairs]
    assert sum(longer) == len(longer) / 2
    assert all(pair.right.strip() and pair.right != pair.wrong for pair in pairs)


def check_messages():
    """Messages hold what their records say, and no two share five words."""
    splits = messages.load()
    rows = [row for part in splits.values() for row in part]
    assert len(splits["train"]) == 250 and len(splits["test"]) >= 150 and len(rows) >= 400
    grams = {}
    for number, row in enumerate([*rows, *messages.load("second")["test"]]):
        record = row["record"]
        assert record["product"] in row["message"], row
        assert (record["date"] or "") in row["message"], row
        assert messages.is_exact(messages.written(record), record), row
        tokens = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", row["message"].lower())
        for n in range(len(tokens) - 4):
            assert grams.setdefault(tuple(tokens[n : n + 5]), number) == number, row


def main():
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        check()
        print(check.__doc__)
    print(f"All {len(checks)} checks passed, on {len(FILES)} files.")


if __name__ == "__main__":
    main()
