"""Messages to records: baselines, the learning curve of SFT, DPO, and what both cost.

Every finished cell of the grid is stored at once in the file of --json; called again, the script
goes on with the cells that are missing. Each cell holds 0 or 1 for every test message, so that
intervals and paired comparisons can be computed from it.
"""

import argparse
import dataclasses
import itertools
import math
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from _common import facts, files
from safetensors.torch import load_file, save_file

from llmnb import data, handbook, profiles
from llmnb.fine_tuning import conversations, instructions, messages, preferences

SIZES = (250, 25, 100, 50)
SEEDS = (0, 1, 2)
EPOCHS = 5
MIN_STEPS = 40
SHOTS = 2
BETAS = (3.0, 0.3, 1.0, 0.1)
DPO_STEPS = 12
DPO_LR = 1e-4
GENTLE_RATES = (1e-5, 3e-5)
SAMPLES_FOR_KL = 60
SETTINGS = instructions.Settings(lr=1e-3, lora_rank=16, lora_dropout=0.1, batch_size=8)
CACHE = files.cache_dir() / "derived" / "instructions"
WORDS = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: number for number, word in enumerate(WORDS.split(), start=1)}
NUMBERS |= {"a dozen": 12, "two dozen": 24, "half a dozen": 6, "twenty": 20, "thirty": 30}
MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sep|Oct|Nov|Dec)\w*"
DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"


def by_rules(message: str) -> dict:
    """A record by regular expressions that were written from the training messages alone."""
    lower = message.lower()
    kinds = {
        "return": r"return|refund|send (?:it|them|back)|back\b|cancel|swap|exchange|take .* away",
        "question": r"\?",
        "complaint": r"broke|crack|wrong|stop|doesn|does not|won|never|torn|leak|missing|died",
    }
    kind = next((kind for kind, words in kinds.items() if re.search(words, lower)), "order")
    hurry = r"!!|urgent|at once|immediate|asap|hurry|quick|fast|this minute|right now|emergency"
    calm = r"no (?:hurry|rush|stress)|whenever|take your time|when it suits|not (?:urgent|a big)"
    urgency = "low" if re.search(calm, lower) else "high" if re.search(hurry, lower) else "normal"
    dates = rf"\d{{1,2}}[./]\d{{1,2}}(?:[./]\d{{2,4}})?|\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {MONTH}"
    dates += rf"|{MONTH} \d{{1,2}}|(?:(?:next|last|this) )?{DAY}|(?:next|last) (?:week|month)"
    dates += r"|[Tt]oday|[Tt]omorrow|[Yy]esterday"
    date = re.search(rf"\b(?:{dates})\b", message)
    words = "|".join(sorted(NUMBERS, key=len, reverse=True))
    counted = re.search(rf"\b(\d{{1,3}}|{words}) ((?:[a-z]+ )?[a-z]+s)\b", message, re.IGNORECASE)
    named = re.search(r"\b(?:an?|the|my|your|our) ((?:[a-z]+ )?[a-z]+)\b", message)
    amount = None
    if counted:
        amount = counted[1].lower()
        amount = int(amount) if amount.isdigit() else NUMBERS[amount]
    product = counted[2] if counted else named[1] if named else message.split()[0]
    date = date[0] if date else None
    values = (kind, product, amount, date, urgency)
    return dict(zip(messages.SCHEMA["required"], values, strict=True))


def judged(answer_all, styles=tuple(messages.FILES)) -> dict:
    """The answers to test messages: which are exact, and the share of right fields."""
    cell = {}
    for style in styles:
        rows = messages.load(style)["test"]
        start = time.perf_counter()
        answers = answer_all([row["message"] for row in rows])
        exact, fields = "", dict.fromkeys(rows[0]["record"], 0)
        for answer, row in zip(answers, rows, strict=True):
            exact += str(int(messages.is_exact(answer, row["record"])))
            record = messages.parsed(answer)
            for key, value in row["record"].items():
                fields[key] += isinstance(record, dict) and record.get(key) == value
        cell[style] = {
            "exact": exact,
            "fields": {key: count / len(rows) for key, count in fields.items()},
            "characters": statistics.mean(map(len, answers)),
            "seconds": round(time.perf_counter() - start, 1),
        }
    return cell


def of_assistant(assistant):
    """Its constrained answers, for `judged`: product and date are words of the message."""

    def answer_all(texts):
        schemas = list(map(messages.copying_schema, texts))
        return assistant.answers(list(map(messages.conversation, texts)), schemas)

    return answer_all


def of_prompt(assistant, shots: int, schema_of=None):
    """Answers of the base model to a prompt with examples; schema_of: a message's schema."""
    examples = messages.load()["train"][:shots]

    def answer_all(texts):
        prompts = [messages.few_shot(text, examples) for text in texts]
        schemas = schema_of and list(map(schema_of, texts))
        return assistant.complete(prompts, schemas, stop_at_line_end=True)

    return answer_all


def forgetting(assistant) -> dict:
    """Nats a token on film reviews, and on the handbook's answers after passage and question."""
    reviews = data.load_reviews("imdb")["test"]["text"][:24]
    tokenizer = assistant.tokenizer
    rows = {"reviews": [], "handbook": []}
    for review in reviews:
        ids = tokenizer(review)["input_ids"][:128]
        rows["reviews"].append((ids, [True] * len(ids)))
    passages = {passage.id: passage.text for passage in handbook.passages()}
    for question in handbook.questions():
        if question.answerable:
            text = f"{passages[question.evidence]}\n\nQuestion: {question.question}\nAnswer:"
            ids, answer = tokenizer(text)["input_ids"], tokenizer(f" {question.answers[0]}")
            rest = [id for id in answer["input_ids"] if id != tokenizer.bos_token_id]
            rows["handbook"].append((ids + rest, [False] * len(ids) + [True] * len(rest)))
    result = {}
    with torch.inference_mode():
        for name, encoded in rows.items():
            nats = n_tokens = 0.0
            for start in range(0, len(encoded), 8):
                batch = conversations.batch_of(encoded[start : start + 8], assistant.device)
                nats -= instructions.answer_log_probs(assistant.model, batch).sum().item()
                n_tokens += batch.is_answer[:, 1:].sum().item()
            result[name] = nats / n_tokens
    return result


def tuned(seed: int, n: int = 250, **changes):
    """The assistant after SFT on the first n training messages; its weights are kept."""
    rows = messages.load()["train"][:n]
    steps = max(MIN_STEPS, math.ceil(EPOCHS * n / SETTINGS.batch_size))
    settings = dataclasses.replace(SETTINGS, seed=seed, steps=steps)
    assistant = instructions.Assistant(settings)
    file = CACHE / f"sft-{n}-{steps}-{seed}-{assistant.digest()}.safetensors"
    if file.is_file():
        assistant.restore(load_file(file))
    else:
        examples = [messages.conversation(row["message"], row["record"]) for row in rows]
        assistant.fit(examples, CACHE, say=print)
        save_file(assistant.adapter(), file)
    assistant.settings = dataclasses.replace(settings, **changes)
    return assistant


def sft_cell(n: int, seed: int) -> dict:
    """One point of the learning curve."""
    start = time.perf_counter()
    assistant = tuned(seed, n)
    cell = {"steps": assistant.settings.steps, "seconds": round(time.perf_counter() - start, 1)}
    if n < max(SIZES):
        return cell | judged(of_assistant(assistant), ["first"])
    return cell | judged(of_assistant(assistant)) | {"forgetting": forgetting(assistant)}


def sampled(assistant, texts: list[str], seed: int) -> list[str]:
    """One answer to each message at temperature 1, in the form of a record."""
    chats = list(map(messages.conversation, texts))
    schemas = list(map(messages.copying_schema, texts))
    return assistant.answers(chats, schemas, temperature=1.0, seed=seed)


def samples_of_unseen(assistant, seed: int) -> list[list[str]]:
    """Four answers of the tuned model to each validation message, kept for the seed's other cells.

    It knows the training messages by heart: its two answers to one of them nearly always agree.
    """
    file = CACHE / f"unseen-{seed}-{assistant.digest()}.json"
    if not file.is_file():
        texts = [row["message"] for row in messages.load()["validation"]]
        samples = [sampled(assistant, texts, seed=10 + number) for number in range(4)]
        files.write_json(file, {"samples": samples})
    return files.read_settings(str(file))["samples"]


def dpo_cell(goal: str, beta: float, seed: int, lr: float = DPO_LR) -> dict:
    """DPO from the tuned model; goal: "right" (more fields right) or "short" (the proxy)."""
    assistant = tuned(seed, beta=beta, steps=DPO_STEPS, lr=lr)
    rows = messages.load()["validation"]

    def score(number: int, answer: str) -> float:
        if goal == "short":
            return -len(answer)
        record = messages.parsed(answer) or {}
        return sum(record.get(key) == value for key, value in rows[number]["record"].items())

    prompts = [messages.conversation(row["message"]) for row in rows]
    samples = samples_of_unseen(assistant, seed)
    pairs = preferences.pairs_from_samples(prompts, samples[:2], score)
    pairs += preferences.pairs_from_samples(prompts, samples[2:], score)
    before = assistant.adapter()
    preferences.train(assistant, pairs, CACHE, say=print)
    cell = {"pairs": len(pairs)} | judged(of_assistant(assistant), ["first"])
    held_out = [row["message"] for row in messages.load("second")["test"][:SAMPLES_FOR_KL]]
    answers = sampled(assistant, held_out, seed=20)
    chats = [
        [*messages.conversation(text), {"role": "assistant", "content": answer}]
        for text, answer in zip(held_out, answers, strict=True)
    ]
    policy = preferences.log_probs(assistant, chats)
    assistant.restore(before)
    cell["kl"] = (policy - preferences.log_probs(assistant, chats)).mean().item()
    return cell


def grid() -> dict[str, object]:
    """The cells by name, in the order of their worth."""

    def prompted(shots, schema_of=None):
        return lambda: judged(of_prompt(instructions.Assistant(SETTINGS), shots, schema_of))

    rules = lambda texts: [messages.written(by_rules(text)) for text in texts]  # noqa: E731

    def sft(n, seed):
        return lambda: sft_cell(n, seed)

    def dpo(goal, beta, seed, lr=DPO_LR):
        return lambda: dpo_cell(goal, beta, seed, lr)

    cells = {"rules": lambda: judged(rules)}
    # What the notebook shows first.
    cells |= {f"sft/{max(SIZES)}/{seed}": sft(max(SIZES), seed) for seed in SEEDS}
    for seed in SEEDS:
        for beta, goal in itertools.product(BETAS, ("short", "right")):
            cells[f"dpo/{goal}/{beta}/{seed}"] = dpo(goal, beta, seed)
        cells |= {f"sft/{n}/{seed}": sft(n, seed) for n in SIZES}
        for lr in GENTLE_RATES:
            cells[f"gentle/right/0.3/{seed}/{lr:g}"] = dpo("right", 0.3, seed, lr)
    cells["forgetting/before"] = lambda: forgetting(instructions.Assistant(SETTINGS))
    cells["few-shot, constrained"] = prompted(SHOTS, messages.copying_schema)
    cells["prompt, constrained"] = prompted(0, messages.copying_schema)
    cells["few-shot"] = prompted(SHOTS)
    cells["prompt"] = prompted(0)
    return cells


def main() -> None:
    """Run the cells that are not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the cells that take seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("instructions.json"))
    chosen = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    result = {"name": "instructions", "cells": {}}
    if chosen.json.is_file():
        result = files.read_settings(str(chosen.json))
    for name, make in grid().items():
        if name in result["cells"] or (chosen.quick and name != "rules"):
            continue
        start = time.perf_counter()
        result["cells"][name] = make()
        result |= {"machine": facts.hardware() | {"host": None}, "versions": facts.versions()}
        result |= {"base": profiles.resolve("cpu").translator, "date": time.strftime("%Y-%m-%d")}
        result["command"] = f"python benchmarks/{Path(sys.argv[0]).name}"
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(chosen.json, result)
        exact = {s: c["exact"] for s, c in result["cells"][name].items() if s in messages.FILES}
        shares = {s: f"{text.count('1') / len(text):.0%}" for s, text in exact.items()}
        print(f"{name}: {shares}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
