"""Answers that are scripted and scored by hand; batches against single prompts; the real model."""

import pandas as pd
import pytest
from conftest import tiny_decoder

from llmnb import generation, handbook, models
from llmnb.evaluation import hallucination
from llmnb.evaluation.hallucination import abstains, answer, nearest, prompts
from llmnb.handbook import Passage, Question

PASSAGES = [
    Passage("p1", "Keys", "Front door", "The front door closes at 22:00."),
    Passage("p2", "Boats", "Rent", "The red boat costs 12 crowns an hour; the blue boat is free."),
    Passage("p3", "Boats", "Storm", "In a storm the boats stay in the harbour."),
]
QUESTIONS = [
    Question("q1", "When does the front door close?", ("22:00", "ten o'clock"), "p1"),
    Question("q2", "What does the red boat cost?", ("12 crowns an hour", "12 crowns"), "p2"),
    Question("q3", "Who repairs the boats after a storm?", (), None),
    Question(
        "q4", "Which of the boats is free, in a storm or in the harbour?", ("the blue boat",), "p2"
    ),
]


@pytest.fixture
def script(monkeypatch):
    """A decoder that answers with what stands beside the question."""
    replies, calls = {}, []

    def complete(decoder, tokenizer, prompts, new_tokens, stop):
        calls.append((prompts, new_tokens, stop))
        return [next(replies[text] for text in replies if text in prompt) for prompt in prompts]

    monkeypatch.setattr(generation, "complete", complete)
    return replies, calls


ABSTENTIONS = [
    "I don't know.",
    "I don’t know",
    "Sorry, I do not know that.",
    "I'm not sure",
    "I cannot answer this.",
    "It can't say",
    "NOT STATED",
    "Unknown.",
    "The answer to this question is not given.",
    "The answer is not provided",
    "It is not mentioned in the text.",
    "It doesn't explicitly state how often.",
    "The text doesn't contain the price.",
    "The passage does not specify a price.",
    "There is no information about it.",
    "No mention of that.",
    "",
    " ",
]  # the last two are empty
ANSWERS = [
    "22:00",
    "#",
    "Nobody knows the code.",
    "The unknown soldier",
    "The tomb of the unknown",
    "No.",
    "None",
    "Not on Sundays",
    "The keeper says so",
    "It does not open",
    "It does not contain milk",
    "Breakfast is not provided",
    "The answer is not five",
    "The information desk",
    "You can't enter",
]


@pytest.mark.parametrize("text", ABSTENTIONS + ANSWERS)
def test_an_abstention_is_told_from_an_answer(text):
    assert abstains(text) == (text in ABSTENTIONS)


def test_no_answer_of_the_handbook_is_an_abstention():
    known = [text for question in handbook.questions() for text in question.answers]
    assert len(known) > 20 and not any(map(abstains, known))


def test_the_nearest_passage_shares_the_rarer_words():
    assert nearest("Who repairs the boats after a storm?", PASSAGES).id == "p3"
    # red sea: 2 · ln(3/2) = 0.81; zebra: ln 3 = 1.10; "of" stands everywhere and counts nothing.
    texts = ["the red sea of", "of the red sea", "zebra of"]
    common = [Passage(text, "", "", text) for text in texts]
    assert nearest("A zebra of the red sea", common).id == "zebra of"
    common = [PASSAGES[0], Passage("x", "Prices", "Lunch", "free"), Passage("y", "", "", "lunch")]
    assert nearest("Prices?", common).id == nearest("Lunch? Free!", common).id == "x"
    assert nearest("Lunch?", common).id == "x"  # the first of several
    assert nearest("nothing shared", PASSAGES).id == "p1"


def test_a_prompt_is_the_chat_template_with_the_question_and_its_passage(smollm_tokenizer):
    closed = prompts(smollm_tokenizer, QUESTIONS)
    opened = prompts(smollm_tokenizer, QUESTIONS, PASSAGES)
    for number, passage in enumerate(("p1", "p2", "p3", "p2")):
        question = QUESTIONS[number].question
        for prompt in (closed[number], opened[number]):
            assert question in prompt and "I don't know" in prompt
            assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        lines = {p.id: f"{p.title}: {p.heading}\n{p.text}" for p in PASSAGES}
        texts = {name for name, line in lines.items() if line in opened[number]}
        assert texts == {passage} and not any(p.text in closed[number] for p in PASSAGES)
    user = [{"role": "user", "content": hallucination.CLOSED.format(question=question)}]
    assert closed[-1] == smollm_tokenizer.apply_chat_template(
        user, tokenize=False, add_generation_prompt=True
    )


def test_answers_are_scored_by_hand(script, smollm_tokenizer):
    replies, calls = script
    replies |= {QUESTIONS[0].question: "It closes at 22:00, always", QUESTIONS[1].question: "12"}
    replies |= {QUESTIONS[2].question: "I don't know.", QUESTIONS[3].question: " A blue boat. "}
    table = answer(None, smollm_tokenizer, QUESTIONS, PASSAGES, new_tokens=7)
    assert table["id"].tolist() == ["q1", "q2", "q3", "q4"]
    assert table["answer"].tolist()[1:] == ["12", "I don't know.", "A blue boat."]
    assert table["answerable"].tolist() == [True, True, False, True]
    assert table["abstained"].tolist() == [False, False, True, False]
    assert table["right"].tolist() == [True, False, True, True]
    assert len(calls) == 1 and calls[0][1:] == (7, "\n")
    assert calls[0][0] == sorted(prompts(smollm_tokenizer, QUESTIONS, PASSAGES), key=len)


def test_who_abstains_gets_nothing_where_there_is_an_answer_and_all_where_there_is_none(
    script, smollm_tokenizer
):
    replies, _ = script
    replies |= {QUESTIONS[0].question: "I don't know: 22:00", QUESTIONS[2].question: "The keeper"}
    table = answer(None, smollm_tokenizer, [QUESTIONS[0], QUESTIONS[2]])
    assert table["abstained"].tolist() == [True, False]
    assert table["right"].tolist() == [False, False]
    replies[QUESTIONS[0].question] = "at 22:001"  # a part of a word is no answer
    assert not answer(None, smollm_tokenizer, QUESTIONS[:1])["right"][0]
    replies[QUESTIONS[0].question] = ""  # to SQuAD's rules "#" is as empty as this
    sign = Question("q1", QUESTIONS[0].question, ("#",), "p1")
    assert not answer(None, smollm_tokenizer, [sign])["right"][0]
    replies[QUESTIONS[0].question] = "#"
    assert answer(None, smollm_tokenizer, [sign])["right"][0]


@pytest.fixture(scope="module")
def tiny(smollm_tokenizer):
    return tiny_decoder(len(smollm_tokenizer))


def test_the_answers_do_not_depend_on_their_neighbours(tiny, smollm_tokenizer, monkeypatch):
    arguments = (tiny, smollm_tokenizer, QUESTIONS, PASSAGES)
    table = answer(*arguments, new_tokens=8)
    monkeypatch.setattr(hallucination, "PROMPTS_PER_BATCH", 3)
    pd.testing.assert_frame_equal(answer(*arguments, new_tokens=8), table)
    assert table["answer"].is_unique


@pytest.mark.parametrize(
    ("questions", "passages", "message"),
    [
        ([], None, "no questions"),
        (QUESTIONS, PASSAGES[1:], "q1: there is no passage 'p1'"),
        (QUESTIONS[2:3], [], "q3: there is no passage"),
    ],
)
def test_what_cannot_be_is_refused(questions, passages, message, smollm_tokenizer):
    with pytest.raises(ValueError, match=message):
        answer(None, smollm_tokenizer, questions, passages)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_models):
    plain = models.load_tokenizer(str(tiny_models / "decoder"))
    with pytest.raises(ValueError, match="no chat template"):
        prompts(plain, QUESTIONS)
