"""Supervised fine-tuning on instructions: the format of a chat, the mask, the loss, the training.

A conversation is a list of messages, {"role": …, "content": …}. Only the assistant's answers
count in the loss. preferences.py trains further, on pairs of answers.
"""

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from llmnb import card, files, generation, models
from llmnb.fine_tuning.base import FineTuningError
from llmnb.pretraining.checkpoint import load_state, save_state
from llmnb.pretraining.optimizers import learning_rate
from llmnb.structured import Grammar

# peft calls a method of transformers that is deprecated.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

FACTS = "assistant.json"  # a file beside the weights: settings, metrics, the data's fingerprint
SECONDS_PER_SNAPSHOT = 60
ROWS_PER_BATCH = 32  # prompts that are answered together
IGNORED = -100  # the label of a token that doesn't count, in transformers' losses
# How a turn begins and ends, where the tokenizer has no chat template of its own.
MARKERS = (("<start_of_turn>", "<end_of_turn>"), ("<|im_start|>", "<|im_end|>"))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}START{{ message['role'] }}\n"
    "{{ message['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}STARTassistant\n{% endif %}"
)

_CAVEATS = """It has learned to answer as that data does, mistakes and prejudice included. Outside
of it it can be wrong in the same confident form. A constraint on the form of an answer does not
make its content right."""


@dataclass(frozen=True)
class Settings:
    """How an assistant is trained. Raises FineTuningError for a value that makes no sense."""

    base: str = "gemma-3-270m-q4_k_m"  # a known model, a folder or a Hub id
    steps: int = 0  # optimizer steps; 0: three times through the examples
    lr: float = 1e-3
    batch_size: int = 8  # conversations, or pairs, a step
    max_length: int = 512  # tokens; a longer conversation is left out
    lora_rank: int = 16
    beta: float = 0.1  # of DPO
    dtype: str = "auto"  # or fp32, bf16, fp16
    seed: int = 0

    def __post_init__(self) -> None:
        minimum = {"steps": 0, "batch_size": 1, "max_length": 8, "lora_rank": 1, "seed": 0}
        for name, low in minimum.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise FineTuningError(f"{name} is {value!r}; it must be {low} or more.")
        for name, high in (("lr", 0.1), ("beta", 100)):
            value = getattr(self, name)
            if not 0 < value <= high:
                raise FineTuningError(f"{name} is {value!r}; it is over 0 and at most {high}.")


def with_chat_format(tokenizer):
    """The tokenizer, with a chat template; its own, or else one with the markers that it has.

    The end of a turn becomes the end-of-sequence token, so generation stops there.
    """
    if tokenizer.chat_template is None:
        vocabulary = tokenizer.get_vocab()
        start, end = "### ", tokenizer.eos_token
        for markers in MARKERS:
            if vocabulary.keys() >= set(markers):
                start, end = markers
        tokenizer.eos_token = end
        tokenizer.chat_template = TEMPLATE.replace("START", start).replace("END", end)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def control_tokens(tokenizer) -> list[str]:
    """Strings that the tokenizer reads as commands: a text of the user's must not hold them."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    markers = [marker for pair in MARKERS for marker in pair if marker in tokenizer.get_vocab()]
    return sorted({*added, *markers})


def rendered(tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
    """The conversation as one text, up to where the assistant begins to answer."""
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def encode(tokenizer, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and for each of them whether the assistant wrote it.

    The end of its turn counts as written by it: that is how it learns to stop. Raises
    FineTuningError for a chat template that changes earlier turns when a later one comes.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    text = ""  # what has been encoded so far
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:number])
        turns = list(messages[: number + 1])
        after = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        if not before.startswith(text) or not after.startswith(before):
            raise FineTuningError("This chat template changes earlier turns: use another one.")
        for piece, counts in ((before[len(text) :], False), (after[len(before) :], True)):
            piece_ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += piece_ids
            is_answer += [counts] * len(piece_ids)
        text = after
    return ids, is_answer


@dataclass(frozen=True)
class Batch:
    """Conversations of a step, padded on the right: (rows, seq) each."""

    input_ids: Tensor
    attention_mask: Tensor  # 1 for tokens, 0 for padding
    is_answer: Tensor  # bool; which tokens the assistant wrote

    @property
    def labels(self) -> Tensor:
        """The ids as transformers' losses take them: IGNORED where no answer is."""
        return self.input_ids.masked_fill(~self.is_answer, IGNORED)


def batch_of(rows: Sequence[tuple[list[int], list[bool]]], device: str | None = None) -> Batch:
    """Encoded conversations, one below the other."""
    width = max(len(ids) for ids, _ in rows)
    ids, attention, answers = [], [], []
    for row_ids, is_answer in rows:
        padding = width - len(row_ids)
        ids.append(row_ids + row_ids[:1] * padding)
        attention.append([1] * len(row_ids) + [0] * padding)
        answers.append(is_answer + [False] * padding)
    tensors = (torch.tensor(part, device=device) for part in (ids, attention, answers))
    return Batch(*tensors)


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Scores only where an answer's token comes next: (n, vocab); those tokens; their rows: (n,).

    The vocabulary is by far the widest layer, and most positions belong to the prompt.
    """
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state  # (rows, seq, d_model)
    is_next = batch.is_answer[:, 1:]
    logits = model.get_output_embeddings()(hidden[:, :-1][is_next])  # 2-D: much faster than 3-D
    if cap := getattr(model.config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits.float(), batch.input_ids[:, 1:][is_next], is_next.nonzero()[:, 0]


def sft_loss(model: nn.Module, batch: Batch) -> Tensor:
    """-1/n · Σ log P(token | what stands before it), over the n tokens of the answers.

    Source: Ouyang et al. 2022, section 3.1; the mask: Wei et al. 2022.
    """
    logits, targets, _ = answer_logits(model, batch)
    return F.cross_entropy(logits, targets)


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """log P(answer | prompt) of each row, the sum over its tokens: (rows,)."""
    logits, targets, rows = answer_logits(model, batch)
    scores = -F.cross_entropy(logits, targets, reduction="none")  # (n,)
    return scores.new_zeros(len(batch.input_ids)).index_add(0, rows, scores)


def rows_at(step: int, n_rows: int, batch_size: int, seed: int) -> list[int]:
    """The rows of a step: every row once an epoch, in an order drawn from seed and epoch."""
    rows = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, n_rows)
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        rows.append(torch.randperm(n_rows, generator=generator)[place].item())
    return rows


def optimize(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    lr: float,
    snapshot: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    seconds_per_snapshot: float = SECONDS_PER_SNAPSHOT,
) -> list[float]:
    """Train what requires gradients, with AdamW; returns the loss of each step.

    loss_at: the loss of a step, which nothing but its number decides. snapshot: a file from which
    a killed training goes on. Raises FineTuningError where the loss isn't finite any more.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = nn.ParameterList(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses: list[float] = []
    if snapshot is not None and snapshot.is_file():
        losses = load_state(snapshot, trained, [optimizer])["losses"]
        say(f"goes on from step {len(losses)}")
    last_saved = start = time.monotonic()
    for step in range(len(losses), steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(step, steps, warmup=0.1, decay=0.7)
        loss = loss_at(step)
        if not loss.isfinite():
            raise FineTuningError(f"The loss is not finite at step {step}: lower lr ({lr:g}).")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        now = time.monotonic()
        if (step + 1) % max(1, steps // 8) == 0 or step + 1 == steps:
            say(f"step {step + 1:4} of {steps} {now - start:6.1f} s   loss {losses[-1]:.3f}")
        if snapshot is not None and now - last_saved >= seconds_per_snapshot:
            save_state(snapshot, trained, [optimizer], {"losses": losses})
            last_saved = now
    return losses


class Assistant:
    """A decoder with LoRA's matrices beside its own, and the chat format that it is tuned to.

    Before any training it answers exactly as the base model does. Raises AssetError, and
    FineTuningError for a setting that makes no sense.
    """

    def __init__(self, settings: Settings) -> None:
        import peft

        self.settings = settings
        self.tokenizer = with_chat_format(models.load_tokenizer(settings.base))
        base = models.load_decoder(settings.base, settings.dtype)
        self.device = base.device
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules="all-linear",
        )
        torch.manual_seed(settings.seed)  # of A; B is zero
        self.adapted = peft.get_peft_model(base, config)
        self.adapted.peft_config["default"].base_model_name_or_path = settings.base
        self.model = self.adapted.get_base_model()  # LoRA's matrices are in it

    def rows(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[tuple]:
        """The conversations that are short enough, encoded.

        Raises FineTuningError where none is.
        """
        encoded = [encode(self.tokenizer, messages) for messages in conversations]
        rows = [row for row in encoded if len(row[0]) <= self.settings.max_length]
        if not rows:
            raise FineTuningError(
                f"No conversation has at most max_length = {self.settings.max_length} tokens."
            )
        return rows

    def batch(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> Batch:
        """The conversations as one batch, on the model's device."""
        return batch_of(self.rows(conversations), self.device)

    def fit(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        snapshots: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[float]:
        """Supervised fine-tuning; returns the loss of each step.

        snapshots: a folder from which a killed training goes on. What is too long is left out,
        and its number said.
        """
        rows = self.rows(conversations)
        if n_long := len(conversations) - len(rows):
            say(f"{n_long:,} longer than {self.settings.max_length} tokens are left out")
        size = self.settings.batch_size

        def loss_at(step: int) -> Tensor:
            chosen = rows_at(step, len(rows), size, self.settings.seed)
            return sft_loss(self.model, batch_of([rows[n] for n in chosen], self.device))

        return self.optimize(loss_at, len(rows), rows, snapshots, say)

    def optimize(self, loss_at, n_rows: int, facts: Any, snapshots: Path | None, say) -> list:
        """Train LoRA's matrices; facts: what decides the result beside weights and settings."""
        settings = self.settings
        steps = settings.steps or -(-3 * n_rows // settings.batch_size)
        file = None
        if snapshots is not None:
            snapshots.mkdir(parents=True, exist_ok=True)
            key = [dataclasses.asdict(settings), facts, self.digest()]
            name = hashlib.sha256(json.dumps(key).encode("utf-8", "surrogatepass")).hexdigest()
            file = snapshots / f"{name[:12]}.safetensors"
        self.model.train()
        losses = optimize(self.model, loss_at, steps, settings.lr, file, say)
        self.model.eval()
        if file is not None:
            file.unlink(missing_ok=True)
        return losses

    def adapter(self) -> dict[str, Tensor]:
        """A copy of LoRA's matrices."""
        parameters = self.model.named_parameters()
        return {n: p.detach().clone() for n, p in parameters if p.requires_grad}

    def restore(self, adapter: Mapping[str, Tensor]) -> None:
        """Put LoRA's matrices back as `adapter` returned them."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in adapter.items():
                parameters[name].copy_(value)

    def digest(self) -> str:
        """12 hex digits of the base model and of LoRA's matrices as they are now."""
        total = hashlib.sha256(models.digest(self.settings.base).encode())
        for value in self.adapter().values():
            total.update(value.float().cpu().numpy().tobytes())
        return total.hexdigest()[:12]

    def answers(self, conversations, schema=None, **options) -> list[str]:
        """The answer to each conversation, which ends with a user's message; see `complete`."""
        prompts = [rendered(self.tokenizer, messages) for messages in conversations]
        return self.complete(prompts, schema, **options)

    def complete(self, prompts: Sequence[str], schema=None, **options) -> list[str]:
        """The continuation of each text, by this model; see the function `complete`."""
        return complete(self.model, self.tokenizer, prompts, schema, **options)

    def save(
        self,
        folder: str | Path,
        data: str,
        metrics: Mapping[str, card.Interval] | None = None,
        notes: str = "",
    ) -> Path:
        """Write the merged model in fp32, its tokenizer, the adapter, and a model card.

        data: what it was trained on, with its fingerprint; notes: a paragraph for the card, such
        as what the training cost. Raises CardError for a folder with other files in it.
        """
        facts = {"settings": dataclasses.asdict(self.settings), "data": data}
        facts["base_digest"] = models.digest(self.settings.base)

        def write(partial: Path) -> None:
            self.adapted.save_pretrained(partial / "adapter")
            merged = self.merged()
            merged.generation_config = transformers.GenerationConfig(
                eos_token_id=generation.stop_ids_of(self.tokenizer),
                pad_token_id=self.tokenizer.pad_token_id,
            )
            merged.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            name = Path(folder).expanduser().resolve().name
            page = card.model_card(
                f"An assistant: {name}",
                {"base model": self.settings.base, "data": data, **facts["settings"]},
                intro="A base model, tuned to follow instructions with LoRA.",
                metrics=metrics,
                usage=_USAGE.format(folder=name),
                caveats=f"{card.plain(notes)}\n\n{_CAVEATS}",
                tags={"pipeline_tag": "text-generation"},
            )
            files.write_text(partial / "README.md", page)

        return card.write_result(folder, FACTS, facts, write)

    def merged(self) -> nn.Module:
        """A new model in fp32, on the CPU: W + α/r · B A in the place of each W."""
        import peft

        base = models.load_decoder(self.settings.base, "fp32", "cpu")
        state = peft.get_peft_model_state_dict(self.adapted)
        adapted = peft.get_peft_model(base, self.adapted.peft_config["default"])
        peft.set_peft_model_state_dict(adapted, state)
        return adapted.merge_and_unload()


_USAGE = """import transformers
assistant = transformers.pipeline("text-generation", {folder!r})
assistant([{{"role": "user", "content": "…"}}], max_new_tokens=100)"""


class _Constraint(transformers.LogitsProcessor):
    """A grammar, as transformers' generate calls it before each choice."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.is_first:
            self.grammar.accept(input_ids[:, -1])
        self.is_first = False
        return self.grammar.restrict(scores)


@torch.inference_mode()
def complete(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    schema: Mapping[str, Any] | None = None,
    *,
    max_new_tokens: int = 80,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_line_end: bool = False,
) -> list[str]:
    """The continuation of each prompt by a model of transformers, of any architecture.

    schema: the answer must match it (see structured.py); one that isn't complete after
    max_new_tokens is returned as it is. stop_at_line_end: for prompts that are no chat.
    """
    stop_ids = generation.stop_ids_of(tokenizer)
    own_ends = model.config.eos_token_id  # a base model ends a text as it was pretrained to
    stop_ids = stop_ids + (own_ends if isinstance(own_ends, list) else [own_ends or stop_ids[0]])
    if stop_at_line_end:
        breaks = [id for token, id in tokenizer.get_vocab().items() if token[:1] in ("\n", "Ċ")]
        stop_ids = stop_ids + breaks
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_ids,
    )
    if schema is not None:
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            dict(schema), overrides={"whitespace_flexible": False}
        )
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), ROWS_PER_BATCH):
            batch = prompts[start : start + ROWS_PER_BATCH]
            ids, mask = generation.padded(tokenizer, batch, model.device)
            processors = []
            if schema is not None:
                n_tokens = model.get_output_embeddings().weight.shape[0]
                processors.append(_Constraint(Grammar(tokenizer, n_tokens, grammar, len(batch))))
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
            )
            texts += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return texts
