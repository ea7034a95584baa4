"""Instruction tuning on a tiny random decoder: format, mask, loss, training, saving."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import jsonschema
import pytest
import torch
import transformers
from conftest import ROOT, byte_tokenizer

from llmnb import hardware, models
from llmnb.fine_tuning import FineTuningError, conversations, instructions, messages
from llmnb.fine_tuning.instructions import Assistant, Settings
from llmnb.transformer import Decoder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Is it open?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Until when?"},
    {"role": "assistant", "content": "Until nine."},
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random decoder of Llama's shape, whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = byte_tokenizer(SPECIAL)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL[0], bos_token=SPECIAL[0]
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": len(fast), "max_position_embeddings": 512}
    sizes["initializer_range"] = 0.3  # with 0.02 LoRA has nothing to build on
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(tiny):
    return Settings(base=tiny, dtype="fp32", lr=1e-2, steps=12, batch_size=2, lora_rank=4)


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return conversations.with_chat_format(models.load_tokenizer(tiny))


def chats(n=8):
    return [
        [{"role": "user", "content": f"What is {k}?"}, {"role": "assistant", "content": f"{k}!"}]
        for k in range(n)
    ]


def test_only_what_the_assistant_wrote_and_its_end_of_turn_count(tokenizer):
    ids, is_answer = conversations.encode(tokenizer, CHAT)
    answers = tokenizer.decode([i for i, counts in zip(ids, is_answer, strict=True) if counts])
    assert answers == "Yes.<|im_end|>Until nine.<|im_end|>"
    prompt_ids, _ = conversations.encode(tokenizer, CHAT[:3])
    assert ids[: len(prompt_ids)] == prompt_ids
    prompt = tokenizer(conversations.rendered(tokenizer, CHAT[:4]), add_special_tokens=False)
    assert ids[: len(prompt["input_ids"])] == prompt["input_ids"]  # as in generation


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny):
    tokenizer = models.load_tokenizer(tiny)
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    with pytest.raises(FineTuningError, match="changes earlier turns"):
        conversations.encode(tokenizer, CHAT)


@pytest.fixture
def batch(tokenizer):
    rows = [conversations.encode(tokenizer, chat) for chat in (CHAT, *chats(2))]
    return conversations.batch_of(rows, hardware.device())


def test_the_loss_is_transformers_loss(tiny, batch):
    model = models.load_decoder(tiny, "fp32")
    theirs = model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert instructions.sft_loss(model, batch).item() == pytest.approx(theirs.item(), abs=1e-5)
    log_probs = instructions.answer_log_probs(model, batch)
    n_tokens = batch.is_answer.sum()
    assert -log_probs.sum().item() / n_tokens == pytest.approx(theirs.item(), abs=1e-5)


def test_a_step_sees_each_row_once_an_epoch_in_an_order_of_seed_and_epoch():
    epoch = [n for step in range(3) for n in instructions.rows_at(step, 6, 2, seed=1)]
    following = [n for step in range(3, 6) for n in instructions.rows_at(step, 6, 2, seed=1)]
    assert sorted(epoch) == sorted(following) == list(range(6)) and epoch != following
    assert epoch == [n for step in range(3) for n in instructions.rows_at(step, 6, 2, seed=1)]
    assert epoch != [n for step in range(3) for n in instructions.rows_at(step, 6, 2, seed=2)]


def test_training_learns_the_answers(settings):
    assistant = Assistant(dataclasses.replace(settings, steps=60, lr=3e-2))
    before = assistant.answers([chats()[0][:1]])
    losses = assistant.fit(chats(4))
    assert losses[-1] < 0.3 * losses[0]
    assert assistant.answers([chats()[0][:1]]) != before


KILLED = """
import os, signal, sys
from pathlib import Path
from llmnb.fine_tuning import instructions
sys.path.insert(0, {tests!r})
from test_instructions import chats
settings = instructions.Settings(**{settings!r})
instructions.SECONDS_PER_SNAPSHOT = 0
def say(line):
    if line.startswith("step    7"):
        os.kill(os.getpid(), signal.SIGKILL)
instructions.Assistant(settings).fit(chats(), Path({folder!r}), say)
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(settings, tmp_path):
    settings = dataclasses.replace(settings, lora_dropout=0.2)
    code = KILLED.format(
        tests=str(ROOT / "tests"), settings=dataclasses.asdict(settings), folder=str(tmp_path)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment)
    assert result.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    lines = []
    resumed, whole = Assistant(settings), Assistant(settings)
    losses = resumed.fit(chats(), tmp_path, lines.append)
    assert "goes on from step 6" in lines[0] and not list(tmp_path.iterdir())
    assert losses == whole.fit(chats())
    for name, value in whole.adapter().items():
        assert torch.equal(value, resumed.adapter()[name])


def test_an_untrained_assistant_answers_as_its_base_and_an_adapter_can_be_put_back(settings):
    assistant = Assistant(settings)
    base = models.load_decoder(settings.base, "fp32")
    prompts = ["Is it open?"]
    plain = instructions.complete(base, assistant.tokenizer, prompts)
    assert assistant.complete(prompts) == plain
    untrained = assistant.adapter()
    assistant.fit(chats())
    trained = assistant.complete(prompts)
    assistant.restore(untrained)
    assert assistant.complete(prompts) == plain != trained


def test_the_output_layer_gets_no_slice_of_a_larger_tensor(tiny):
    """torch would copy the layer's matrix for every row of the batch."""
    model = models.load_decoder(tiny, "fp32")
    seen = []
    layer = model.get_output_embeddings()
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    model.generate(torch.ones(2, 5, dtype=torch.long), max_new_tokens=2, pad_token_id=0)
    assert seen == [True, True]


def test_a_schema_holds_whatever_the_model_wants_and_a_batch_answers_as_alone(settings):
    assistant = Assistant(settings)
    schema = {"type": "object", "properties": {"n": {"enum": ["one", "two"]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    prompts = ["a", "What is it, then?", "b"]
    hot = assistant.complete(prompts, schema, temperature=2.0, seed=1)
    assert all(json.loads(answer)["n"] in ("one", "two") for answer in hot)
    assert hot == assistant.complete(prompts, schema, temperature=2.0, seed=1)
    own = [schema, schema | {"properties": {"n": {"const": "three"}}}]
    assert assistant.complete(prompts[:2], own, temperature=2.0)[1] == '{"n":"three"}'
    together = assistant.complete(prompts, schema)
    assert together == [assistant.complete([prompt], schema)[0] for prompt in prompts]


def test_what_is_saved_is_merged_and_others_load_it(settings, tmp_path):
    assistant = Assistant(settings)
    assistant.fit(chats())
    folder = assistant.save(tmp_path / "mine", "chats (0123)", notes="It forgot | nothing.")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).to(assistant.device)
    ids = assistant.batch([CHAT]).input_ids
    with torch.inference_mode():
        logits = assistant.model(ids).logits
        torch.testing.assert_close(theirs(ids).logits, logits, atol=1e-3, rtol=0)
        ours = Decoder.from_pretrained(str(folder), "fp32")
        torch.testing.assert_close(ours(ids), logits, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(CHAT[:2], tokenize=False).startswith("<|endoftext|>")
    assert theirs.generation_config.eos_token_id == [0, 2]
    card = (folder / "README.md").read_text()
    assert "chats (0123)" in card and "It forgot / nothing." in card
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assistant.save(tmp_path / "mine", "chats (0123)")


def test_impossible_settings_and_a_loss_that_is_not_finite_are_refused(settings):
    with pytest.raises(FineTuningError, match="batch_size is 0"):
        Settings(batch_size=0)
    with pytest.raises(FineTuningError, match="lr is 5"):
        Settings(lr=5)
    with pytest.raises(FineTuningError, match="at most max_length = 8"):
        Assistant(dataclasses.replace(settings, max_length=8)).fit(chats())
    assistant = Assistant(dataclasses.replace(settings, lr=0.1))
    with pytest.raises(ZeroDivisionError):
        assistant.fit(chats(), say=lambda line: 1 / 0)
    assert not assistant.model.training  # without dropout again, also after an interrupt
    weight = torch.nn.Linear(1, 1)
    with pytest.raises(FineTuningError, match="not finite at step 0: lower lr"):
        instructions.optimize(weight, lambda step: weight.weight.sum() * torch.inf, 3, 1e-3)


def test_every_record_can_be_copied_out_of_its_message():
    for style in messages.FILES:
        for row in itertools.chain.from_iterable(messages.load(style).values()):
            jsonschema.validate(row["record"], messages.copying_schema(row["message"]))
    schema = messages.copying_schema("One jar of amber honey by Monday!")
    assert schema["properties"]["product"]["enum"][-1] == "Monday"
    for wrong in ({"product": "amber honeys"}, {"product": None}, {"date": "monday"}):
        record = {"kind": "order", "product": "amber honey", "amount": 1, "date": None}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record | {"urgency": "low"} | wrong, schema)
