"""Preference tuning: trl's loss, pairs that a program decides, and what the reference is."""

import dataclasses
import json

import pytest
import torch
from test_instructions import SPECIAL, chats, settings, tiny, tokenizer  # noqa: F401

from llmnb import models
from llmnb.fine_tuning import FineTuningError, instruction_files, preferences
from llmnb.fine_tuning.conversations import Batch
from llmnb.fine_tuning.instructions import Assistant, answer_log_probs
from llmnb.fine_tuning.preferences import Pair
from llmnb.text_files import DataError


def pairs(n=6):
    return [Pair(chat[:1], chosen="yes", rejected="no, never") for chat in chats(n)]


def test_the_loss_is_trls_on_the_same_batch(tiny, tokenizer, tmp_path):  # noqa: F811
    import datasets
    import trl

    model, reference = (models.load_decoder(tiny, "fp32", "cpu") for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    rows = [
        {
            "prompt": pair.prompt,
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs()
    ]
    arguments = trl.DPOConfig(
        str(tmp_path),
        beta=0.3,
        per_device_train_batch_size=6,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    dataset = datasets.Dataset.from_list(rows)
    options = {"train_dataset": dataset, "processing_class": tokenizer}
    trainer = trl.DPOTrainer(model, reference, arguments, **options)
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, inputs)
    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    batch = Batch(ids, attention, inputs["completion_mask"].bool())
    both = [answer_log_probs(m, batch).reshape(2, -1).T for m in (model, reference)]
    ours = preferences.dpo_loss(*both, beta=0.3)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours.item() - 0.6931) > 0.01  # the models differ, so that it says something


def test_the_loss_starts_at_log_2_and_its_gradient_raises_the_better_answer():
    policy = torch.tensor([[-5.0, -4.0]], requires_grad=True)
    loss = preferences.dpo_loss(policy, policy.detach(), beta=0.1)
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    loss.backward()
    assert policy.grad[0].tolist() == pytest.approx([-0.05, 0.05])  # β · σ(0)
    rewards = preferences.implicit_reward(torch.tensor([-3.0]), torch.tensor([-5.0]), beta=0.5)
    assert rewards.item() == 1.0


def test_a_pair_needs_a_difference_and_the_program_decides_it():
    prompts = [chat[:1] for chat in chats(3)]
    samples = (["a", "bb", "c"], ["aaa", "b", "d"])
    pairs = preferences.pairs_from_samples(prompts, samples, lambda number, answer: len(answer))
    assert pairs == [Pair(prompts[0], "aaa", "a"), Pair(prompts[1], "bb", "b")]


def test_training_prefers_the_better_answers_and_the_reference_stays(settings):  # noqa: F811
    assistant = Assistant(dataclasses.replace(settings, steps=20))
    chats_of = [pair.conversations() for pair in pairs()]
    chosen, rejected = ([both[side] for both in chats_of] for side in (0, 1))
    before = [preferences.log_probs(assistant, side) for side in (chosen, rejected)]
    losses = preferences.train(assistant, pairs())
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < 0.5
    after = [preferences.log_probs(assistant, side) for side in (chosen, rejected)]
    gains = [(new - old).mean() for new, old in zip(after, before, strict=True)]
    assert gains[0] > gains[1]
    assert preferences.best(pairs()[0]) == chosen[0] and preferences.best(chosen[0]) == chosen[0]


def test_log_probs_of_a_batch_are_those_of_each_alone(settings):  # noqa: F811
    assistant = Assistant(settings)
    together = preferences.log_probs(assistant, chats(5))
    for number, chat in enumerate(chats(5)):
        batch = assistant.batch([chat])
        alone = answer_log_probs(assistant.model, batch)
        assert alone.item() == pytest.approx(together[number].item(), abs=1e-4)


def test_long_pairs_are_left_out_and_counted(settings):  # noqa: F811
    assistant = Assistant(dataclasses.replace(settings, steps=1, max_length=90))
    lines = []
    long_pair = Pair(chats(1)[0][:1], chosen="a" * 200, rejected="b")
    preferences.train(assistant, [*pairs(2), long_pair], say=lines.append)
    assert "1 pairs longer than 90 tokens" in lines[0]
    with pytest.raises(FineTuningError, match="No pair"):
        preferences.train(assistant, [long_pair])


PROMPT = chats(1)[0][:1]
ROW = {"prompt": "Is it open?", "chosen": "Yes.", "rejected": "Who knows?"}
SIDES = {side: [*PROMPT, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}


def load(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return instruction_files.load(path, SPECIAL)


def test_files_of_preferences_are_read(tmp_path):
    rows = [ROW | {"prompt": f"Is {k} open?"} for k in range(8)]
    rows += [SIDES, {"prompt": PROMPT, "chosen": SIDES["chosen"][1:], "rejected": "no"}]
    read = load(tmp_path, rows)
    assert len(read.pairs) == 10 and not read.dropped
    assert read.pairs[8] == Pair(PROMPT, "chosen", "rejected")
    assert read.pairs[9] == Pair(PROMPT, "chosen", "no")
    assert "10 pairs of answers" in read.summary()


def test_pairs_that_say_nothing_are_left_out_and_a_mixture_is_refused(tmp_path):
    rows = [ROW | {"prompt": f"Is {k} open?"} for k in range(8)]
    strange = [{**SIDES, "chosen": [*chats(2)[1][:1], SIDES["chosen"][1]]}]
    strange += [ROW | {"rejected": "Yes."}]
    read = load(tmp_path, [*rows, *strange])
    assert list(read.dropped.values()) == [[9], [10]] and len(read.pairs) == 8
    answers = [{"prompt": f"What is {k}?", "answer": "It."} for k in range(3)]
    with pytest.raises(DataError, match="mixes 3 answers with 8 pairs"):
        load(tmp_path, [*rows, *answers])
