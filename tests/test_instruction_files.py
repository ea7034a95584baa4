"""Files of instructions as other people write them: what changes an answer's meaning is read."""

import json

import pytest

from llmnb.fine_tuning.instruction_files import load

ROWS = [{"prompt": f"What is {k}?", "answer": f"It is {k}."} for k in range(9)]
PAIRS = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "No."} for row in ROWS]
TURNS = [{"from": "human", "value": "Open?"}, {"from": "gpt", "value": "Yes."}]
BAD = {"from": "gpt", "value": "No."}
BAD_TURN = {"role": "assistant", "content": "Go away.", "weight": 0}
KIND = {"role": "developer", "content": "Be kind."}
PROMPTS = {  # a row, and the messages before its answer
    "a question about a text": (
        {"question": "Open?", "context": "Mondays.", "answer": "Yes."},
        ["Open?\n\nMondays."],
    ),
    "Dolly's": ({"instruction": "Sum up.", "context": "A B", "response": "A"}, ["Sum up.\n\nA B"]),
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
        "a pair without one prompt",
    ),
    "no weight": ({"messages": [TURNS[0], BAD_TURN]}, "of weight 0"),
}


def read(folder, text):
    path = folder / "rows.jsonl"
    path.write_text(text, "utf-8")
    return load(path)


@pytest.mark.parametrize(("row", "contents"), PROMPTS.values(), ids=PROMPTS)
def test_all_that_an_answer_rests_on_stands_in_its_prompt(row, contents, tmp_path):
    others = PAIRS if "chosen" in row else ROWS
    example = read(tmp_path, json.dumps([*others, row])).examples[-1]
    messages = example.prompt if "chosen" in row else example[:-1]
    assert [message["content"] for message in messages] == contents
    roles = ["system", "user"][-len(contents) :]
    assert [message["role"] for message in messages] == roles


@pytest.mark.parametrize(("row", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_answer_that_is_not_to_be_learned_is_left_out(row, reason, tmp_path):
    others = PAIRS if "chosen" in row else ROWS
    ((message, numbers),) = read(tmp_path, json.dumps([*others, row])).dropped.items()
    assert reason in message and numbers == [10]


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
