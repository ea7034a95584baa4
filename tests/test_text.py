"""Words, sentences, numbers and normalized answers, by hand and in several scripts."""

import json

import pytest

from llmnb import handbook, text

ARTICLES = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))


def test_words_are_words_and_characters_where_there_are_no_spaces():
    english = ["don", "t", "stop", "it", "s", "full_time"]
    assert text.words("Don’t STOP — “it's” Ｆull_time!") == english
    assert text.words("GPT-4说你好。") == ["gpt", "4", "说", "你", "好"]
    assert text.words("ราคา ペン ភាសា") == list("ราคาペンភាសា")
    assert text.words("हिन्दी भाषा। 한국어 문장") == ["हिन्दी", "भाषा", "한국어", "문장"]
    assert text.words(" …!") == []


def test_what_cannot_be_seen_or_is_written_in_two_ways_makes_no_other_word():
    assert text.words("Do\u00adnau\u200bdampf Cafe\u0301 \ufeffBa\u0301ra\u0301ny") == [
        "donaudampf",
        "café",
        "bárány",
    ]
    assert text.clean("Cafe\u0301 do\u00adnau ½ दिल्ली") == "Café donau ½ दिल्ली"
    assert text.words("दिल्ली में है।") == ["दिल्ली", "में", "है"]


def test_identifiers_are_terms_as_a_whole_and_in_parts():
    assert text.terms("Invoice 202400037: max_length, v2.1.3 of A-17.") == [
        *("invoice", "202400037", "max_length", "max", "length"),
        *("v2.1.3", "v2", "1", "3", "of", "a-17", "a", "17"),
    ]
    assert text.terms("C# and C++, not C; 1,508 at 9:30; two of GPT-2's") == [
        *("c#", "and", "c++", "not", "c", "1508", "at", "9:30", "9", "30"),
        *("2", "of", "gpt-2", "gpt", "2", "s"),
    ]
    assert not any(map(text.is_identifier, text.terms("state-of-the-art, e.g. don’t")))


def test_names_are_capitalized_behind_another_word():
    assert text.names("Where does Ines live, in Oslo? He is in PDF.") == ["Ines", "Oslo"]
    assert text.names("What Is The Price Of Rye Bread?") == []


def test_words_are_printed_with_what_belongs_to_them():
    sentence = "Run `--strict` in /srv for $7.50 or 30%; ask St. Anna, no. 14, c/o C# दिल्ली है।"
    printed = [sentence[start:end] for start, end in text.printed_words(sentence)]
    expected = "Run --strict in /srv for $7.50 or 30% ask St. Anna no. 14 c/o C# दिल्ली है"
    assert printed == expected.split()
    ends = [end for _, end in text.printed_words(sentence)]
    cut = {printed[n] for n, end in enumerate(ends) if not text.can_end_at(sentence, end)}
    assert cut == {"St.", "no."}
    assert len(text.printed_words("今天。")) == 2


def test_ngrams_are_all_runs_in_order():
    assert text.ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert text.ngrams(["a", "b"], 3) == []


def test_chinese_characters_are_told_from_others():
    assert [text.is_chinese(character) for character in "说㐀𠀀ペa。"] == [True] * 3 + [False] * 3


SENTENCES = """
The bridge costs 3.8 million.|It was Mr. B. Olm who said so, at 10 a.m. on Monday.
We met Dr. Sefa Lind and Prof. Anders.|See Fig. 3 and No. 5, e.g. the red one.
He said no.|Then he left.|"Is it true? I doubt it," she said.|"Who?" asked the boy.
“We knew. We said so,” she said.|It rained!|Really?!|Yes… perhaps.|It was I.|Éva left.
It closed in 2016.|Version 5.2.1 is out.|5 people came.|(Nobody left.)|«Enfin.»|End
今天下雨。|明天是晴天！|“你来吗？”|好。
A screen of 5" is small.|One of 6" or 7" is large.
It draws 400 W.|An initial is read as one: J. Vance left.
Go to St. Anna Square, c/o Prof. Lee.|The fee is approx. 35 euros.|The office is in bldg. C.
The firm is Hart Inc.|We met on Jan. 12 at 9 a.m. in Bonn.|Hart Inc. and Sen. Ruiz agreed.
See Sec. 2, Eq. 4 and vol. 7, pp. 3-5.|Room no. 14 is free.|The answer is no.|Nobody came.
She joined the U.S. Army.|He left the U.S. in May.|They moved to the U.S.|The house was sold.
I am 30.|My brother is 32.|It costs 3.|The rest is free.|It opens at 9 a.m.|The key is here.
Wait...|What?|Well… then go.|And then...|Silence.
Es kostet z. B. 30 Euro.|Am 3. Oktober ist frei, d. h. zu.|Im 19. Jahrhundert war es anders.|Ende.
यह है।|वह था?|अब।|هل أنت هنا؟|نعم.|کیا۔|ہاں
Das ist Hr. Kurz, vgl. Abs. 2 und Nr. 7.|„Er kam. Er ging.“|Sie blieb ca. 3 Tage.
it broke again.|we fixed it, e.g. with tape.|ok?|then at 9 a.m. nobody came.
"""


@pytest.mark.parametrize("marked", SENTENCES.strip().splitlines())
def test_sentences_end_where_they_end(marked):
    joined = marked.replace("|", "" if "。" in marked else " ")
    assert text.sentences(joined) == text.split_sentences(joined) == marked.split("|")


def test_words_that_a_line_end_cut_in_two_are_whole_again():
    cut = "It is ripe-\nning, well-\nknown as well and known, and soft\u00ad\nened.\n"
    cut += "Pre- or\npost-\nwar."
    whole = "It is ripening, well-known as well and known, and softened. Pre- or postwar."
    assert text.on_one_line(cut) == whole
    assert text.blocks("The ten-\nant left.\n\n- Nord-\nund Süd") == [
        "The tenant left.",
        "- Nord- und Süd",
    ]
    assert (
        text.on_one_line("prze-\nświt, до-\nрога, Nord-\nAmerika")
        == "prześwit, дорога, Nord- Amerika"
    )


def test_a_quotation_ends_as_a_sentence_does():
    for sentence in ("„Wir sind bereit.“", "“We left.”", "(It rained.)", "今天下雨。"):
        assert text.has_end_mark(sentence), sentence
    assert not text.has_end_mark("“A heading”")


def test_a_line_break_ends_a_sentence():
    lines = "Dish: lentil soup; Price: 7.50\nDish: rye bread\r\n\n \nOn the table.  It is\n"
    expected = ["Dish: lentil soup; Price: 7.50", "Dish: rye bread", "On the table.", "It is"]
    assert text.sentences(lines) == expected
    assert text.sentences("") == text.sentences(" \n\n ") == []


def test_items_headings_and_greetings_are_sentences():
    letter = (
        "# Minutes\nHeld in May.\n\n1. The minutes were\r\n   approved.\n2. Water. It is dear.\n"
        "- one\n* two\n\n \n\nDear Ada,\n\nthanks for the tea.\t Come soon.\n\nYours\n"
    )
    expected = "# Minutes|Held in May.|1. The minutes were approved.|2. Water.|It is dear.|- one"
    expected += "|* two|Dear Ada, thanks for the tea.|Come soon.|Yours"
    assert text.sentences("\n".join(text.blocks(letter))) == expected.split("|")
    assert text.blocks("Dear Ada,\n\n") == ["Dear Ada,"]


def test_no_word_is_lost_of_any_text():
    huge = ["a. " * 100_000, "." * 300_000, '"' * 300_001, " \n" * 100_000, "x" * 1_000_000]
    for contents in [*huge, *(row["text"] for row in ARTICLES)]:
        assert "".join("".join(text.sentences(contents)).split()) == "".join(contents.split())


@pytest.mark.parametrize(
    ("number", "same", "others"),
    [
        ("24.50", "24,50  24,5", "2450"),
        ("3,200", "3\u202f200  3.200  3200  3’200", "32"),
        ("1,234,567.89", "1.234.567,89", "1234567"),
        ("1.5", "1,5", "15"),
        ("12", "１２", "120"),
        ("40", "40%", "4"),
        ("10.0", "10", "100"),
        ("2019", "2019", "19"),
        ("5.2.1", "5.2.1", "5.2.2"),
    ],
)
def test_a_number_in_another_spelling_has_the_same_value(number, same, others):
    (expected,) = text.numbers(number)
    for written in same.split("  "):
        (other,) = text.numbers(f"It was {written}, I think.")
        assert other.values & expected.values, written
    for written in others.split("  "):
        (other,) = text.numbers(f"It was {written}, I think.")
        assert not other.values & expected.values, written


def test_numbers_side_by_side_are_not_one():
    def values(contents):
        return [number.values for number in text.numbers(contents, english=True)]

    assert values("On May 5 200 people came.") == [{5.0}, {200.0}]
    assert values("Room 12\n300 seats") == [{12.0}, {300.0}]
    assert [5200.0 in read for read in values("It cost 5 200 in all.")] == [True]
    assert values("500¹ euros, 1½ cups") == [{500.0}, {1.0}, {1.0}, {1.0}, {2.0}]
    assert values("f\u0131ve") == []  # as a dotless i is no i


def test_numbers_in_english_words_are_read_on_demand():
    contents = "Three clerks sold 3.8 million boats, B2 and 1 234 567,89 more."
    digits = [(n.written, n.values) for n in text.numbers(contents)]
    assert digits[0][1] == {3.8} and [d[0] for d in digits[1:]] == ["1 234 567,89"]
    english = text.numbers(contents, english=True)
    assert [n.start for n in english[:2]] == [0, contents.index("3.8")]
    assert english[0].values == {3.0} and english[1].values == {3.8e6}


def test_an_answer_is_normalized_as_squad_does():
    answer = "  The U.S.A., a   Theatre and AN ant! "
    assert text.normalize_answer(answer) == "usa theatre and ant"
