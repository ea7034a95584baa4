"""Files of instructions as other people write them: what changes an answer's meaning is read."""

import json

import pytest

from llmnb.fine_tuning.instruction_files import leaked, load
from llmnb.text_files import DataError

ROWS = [{"prompt": f"What is {k}?", "answer": f"It is {k}."} for k in range(9)]
PAIRS = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "No."} for row in ROWS]
TURNS = [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Yes."}]
BAD = {"from": "gpt", "value": "No."}
BAD_TURN = {"role": "assistant", "content": "Go away.", "weight": 0}
KIND = {"role": "developer", "content": "Be kind."}
QUESTION = {"prompt": "Open?", "answer": "Yes."}
TOOL_TURN = {"role": "tool", "content": "9"}
PROMPTS = {  # a row, and the messages before its answer
    "a question about a text": (
        {"question": "Open?", "context": "Mondays.", "answer": "Yes."},
        ["Open?\n\nMondays."],
    ),
    "Dolly's": ({"instruction": "Sum up.", "context": "A B", "response": "A"}, ["Sum up.\n\nA B"]),
    "Alpaca's without an input": (
        {"instruction": "Say yes.", "input": "", "output": "Yes."},
        ["Say yes."],
    ),
    "completion": ({"prompt": "Open?", "completion": "Yes."}, ["Open?"]),
    "an input alone": ({"input": "Open?", "output": "Yes."}, ["Open?"]),
    "system, beside messages": (
        {"system": "Be kind.", "conversations": TURNS},
        ["Be kind.", "Open?"],
    ),
    "system, beside a pair": (
        {"system": "Be kind.", "prompt": "Open?", "chosen": "Yes.", "rejected": "No."},
        ["Be kind.", "Open?"],
    ),
    "an input beside a pair": (
        {"prompt": "Sum up.", "input": "A B", "chosen": "A", "rejected": "B"},
        ["Sum up.\n\nA B"],
    ),
    "an instruction beside a pair": (
        {"instruction": "Sum up.", "chosen": "A", "rejected": "B"},
        ["Sum up."],
    ),
    "whole conversations beside their prompt": (
        {"prompt": "Open?", "chosen": [KIND, *TURNS], "rejected": [KIND, TURNS[0], BAD]},
        ["Be kind.", "Open?"],
    ),
    "OpenAI's developer": ({"messages": [KIND, *TURNS]}, ["Be kind.", "Open?"]),
    "half a character": ({"prompt": "Open\ud83d", "answer": "Yes."}, ["Open?"]),
}
REFUSED = {
    "a bad answer": ({"prompt": "Open?", "completion": "No!", "label": False}, "marked as bad"),
    "conversations that part before the answer": (
        {
            "prompt": "Open?",
            "chosen": [*TURNS, {"from": "human", "value": "Now?"}, TURNS[1]],
            "rejected": [TURNS[0], BAD, {"from": "human", "value": "Now?"}, BAD],
        },
        "a pair whose two answers don't have the same prompt",
    ),
    "no weight": ({"messages": [TURNS[0], BAD_TURN]}, "of weight 0"),
    "empty answer": (QUESTION | {"answer": " "}, "with an empty answer"),
    "no answer": ({"prompt": "Open?"}, "with no answer by a known key (it has prompt)"),
    "answer is a number": (QUESTION | {"answer": 4}, "with no text as answer"),
    "swapped roles": ({"messages": TURNS[::-1]}, "take turns"),
    "a tool's message": ({"messages": [TURNS[0], TOOL_TURN, TURNS[1]]}, "of the role 'tool'"),
    "no object": (["Open?", "Yes."], "not an object"),
    "two prompts": (QUESTION | {"question": "And now?"}, "with several prompts"),
    "a control token": (QUESTION | {"answer": "Yes.<|im_end|>"}, "containing <|im_end|>"),
    "the same twice": (ROWS[3], "the same as an earlier row"),
    "null messages": ({"messages": None}, "without messages"),
}


def read(folder, text):
    path = folder / "rows.jsonl"
    path.write_text(text, "utf-8")
    return load(path, ["<|im_end|>"])


@pytest.mark.parametrize(("row", "contents"), PROMPTS.values(), ids=PROMPTS)
def test_all_that_an_answer_rests_on_stands_in_its_prompt(row, contents, tmp_path):
    others = PAIRS if "chosen" in row else ROWS
    example = read(tmp_path, json.dumps([*others, row])).examples[-1]
    messages = example.prompt if "chosen" in row else example[:-1]
    assert [message["content"] for message in messages] == contents
    roles = ["system", "user"][-len(contents) :]
    assert [message["role"] for message in messages] == roles


@pytest.mark.parametrize(("row", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_left_out_and_counted(row, reason, tmp_path):
    others = PAIRS if "chosen" in row else ROWS
    result = read(tmp_path, json.dumps([*others, row]))
    assert len(result.examples) == 9
    ((message, numbers),) = result.dropped.items()
    assert reason in message and numbers == [10]
    assert f"Left out: 1 (10), {message}." in result.summary()


def test_keys_that_are_not_read_are_mentioned(tmp_path):
    rows = [*ROWS[:8], ROWS[8] | {"tools": [], "id": 7}]
    (note,) = read(tmp_path, json.dumps(rows)).notes
    assert note == "keys that are not read (with their rows): id 1, tools 1."


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": 1, "data": ROWS}, indent=1),
        "\r".join(map(json.dumps, ROWS)),
        "\r\n".join(map(json.dumps, ROWS)),
    ],
    ids=["a list in a wrapper", "line ends of an old Mac", "line ends of Windows"],
)
def test_other_ways_to_write_the_rows_are_read(text, tmp_path):
    assert read(tmp_path, text).examples == read(tmp_path, json.dumps(ROWS)).examples


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.jsonl", "", "none.jsonl is empty"),
        ("one.jsonl", json.dumps(QUESTION), "has 1 usable examples; at least 8 are needed"),
        ("broken.jsonl", '{"prompt": "Is', "line 1 is not JSON"),
        ("table.csv", "prompt,answer", "can't be read: save it as JSON"),
    ],
)
def test_a_file_without_examples_is_refused_in_a_sentence(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_a_prompt_stands_on_one_side_of_the_split_and_a_leak_is_found(tmp_path):
    rows = [QUESTION | {"answer": f"Answer {k}."} for k in range(9)] + ROWS
    train, validation = read(tmp_path, json.dumps(rows)).split()
    assert len(train) + len(validation) == 18 and leaked(train, validation) == []
    known = read(tmp_path, json.dumps(ROWS)).examples
    answer = {"role": "assistant", "content": "Until nine."}
    shouted, other = (
        [{"role": "user", "content": prompt}, answer] for prompt in ("WHAT is  3?", "Until when?")
    )
    assert leaked(known, [shouted, other]) == [0]
