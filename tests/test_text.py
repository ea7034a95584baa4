"""Words, n-grams and normalized answers, by hand and in several scripts."""

from llmnb import text


def test_words_are_words_and_characters_where_there_are_no_spaces():
    assert text.words("Don’t STOP — “it's” Ｆull_time!") == [
        "don",
        "t",
        "stop",
        "it",
        "s",
        "full_time",
    ]
    assert text.words("GPT-4说你好。") == ["gpt", "4", "说", "你", "好"]
    assert text.words("ราคา ペン ភាសា") == list("ราคาペンភាសា")
    assert text.words("हिन्दी भाषा। 한국어 문장") == ["हिन्दी", "भाषा", "한국어", "문장"]
    assert text.words(" …!") == []


def test_ngrams_are_all_runs_in_order():
    assert text.ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert text.ngrams(["a", "b"], 3) == []


def test_an_answer_is_normalized_as_squad_does():
    answer = "  The U.S.A., a   Theatre and AN ant! "
    assert text.normalize_answer(answer) == "usa theatre and ant"
