"""Full fine-tuning and LoRA: a pretrained model with a new head, trained by transformers' Trainer.

Fast by the dtype policy, a fused optimizer, and batches of texts of like length.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn

from llmnb import assets, hardware, models
from llmnb.embedding import batches, encode
from llmnb.fine_tuning.base import Classifier, FineTuningError, Settings

# peft asks a transformers model the old way.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

LEARNING_RATE = {"full": 1e-4, "lora": 1e-3}
_NEW = ("classifier.", "score.", "pooler.", "bert.pooler.", "pre_classifier.")  # heads
_AT_MOST = 2000  # validation texts of an evaluation on the way


class Encoded(Classifier):
    """A transformers model with a head for the classes, as plain transformers loads it."""

    model: nn.Module
    adapter: Path | None = None  # LoRA's own weights, which are merged into the model's as well
    base: str = ""

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes)"""
        ids, _ = encode(self.tokenizer, texts, self.settings.max_length, self.settings.keep)
        found = np.zeros((len(ids), len(self.label_names)))
        device = next(self.model.parameters()).device
        self.model.eval()
        with torch.inference_mode(), _autocast(self.settings.dtype, device.type):
            for rows, inputs in batches(self.tokenizer, ids, device=device):
                logits = self.model(**inputs).logits.double()
                found[rows] = torch.softmax(logits, dim=-1).cpu().numpy()
        return found

    def write(self, folder: Path) -> None:
        """Model and tokenizer; the adapter beside them, if there is one."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.adapter is not None:
            shutil.copytree(self.adapter, folder / "adapter")

    def read(self, folder: Path) -> None:
        """Model and tokenizer."""
        self.tokenizer = models.load_tokenizer(str(folder))
        self.model = load_with_head(str(folder), self.label_names, new_head=False)
        self.model.to(hardware.device())
        self.adapter = folder / "adapter" if (folder / "adapter").is_dir() else None

    def bytes_on_disk(self) -> int:
        """The adapter's, if there is one: all that this task adds to the pretrained model."""
        if self.adapter is None:
            return super().bytes_on_disk()
        return sum(file.stat().st_size for file in self.adapter.iterdir())


def pretrained(name: str) -> Encoded:
    """A classifier that transformers saved, as it is: a folder or a Hub id.

    Raises AssetError for one that can't be loaded, or that is no classifier.
    """
    model = load_with_head(name, None, new_head=False)
    labels = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
    found = Encoded(labels, Settings(max_length=512))
    found.method, found.base, found.model = "pretrained", name, model.to(hardware.device())
    found.tokenizer = models.load_tokenizer(name)
    return found


def load_with_head(
    name: str, label_names: Sequence[str] | None, new_head: bool = True
) -> nn.Module:
    """The pretrained model with a linear head on top, in fp32 on the CPU; None: its own labels.

    Raises AssetError where it can't be loaded, or where more than the head would be random.
    """
    folder = models.locate(name)
    labels = {}
    if label_names is not None:
        own = dict(enumerate(label_names))
        labels = {"num_labels": len(own), "id2label": own}
        labels["label2id"] = {label: number for number, label in own.items()}
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # that the head is new is no news
    transformers.utils.logging.disable_progress_bar()
    try:
        model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            **labels,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise assets.AssetError(f"{name!r} can't be loaded as a classifier: {reason}") from error
    finally:
        transformers.utils.logging.set_verbosity(before)
    random = [k for k in found["missing_keys"] if not (new_head and k.startswith(_NEW))]
    if random:
        raise assets.AssetError(f"{name!r} lacks {len(random)} weights, {random[0]} among them.")
    return model


def _autocast(dtype: str, device: str):
    wanted = hardware.dtype(dtype, device)
    return torch.autocast(device, wanted, enabled=wanted != torch.float32)


def train(
    method: str,
    base: str,
    parts: dict[str, tuple[Sequence[str], NDArray[np.integer]]],
    label_names: Sequence[str],
    settings: Settings,
    checkpoints: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Encoded:
    """A classifier, its weights those with the best validation macro-F1 seen on the way.

    method: "full" or "lora"; base: the pretrained model; parts: texts and labels of "train" and
    "validation". checkpoints: a folder where a killed training leaves what the next one resumes
    from; it is removed at the end. Same settings, same machine, same result.
    """
    transformers.set_seed(settings.seed)
    classifier = Encoded(label_names, settings)
    classifier.method, classifier.base = method, base
    classifier.tokenizer = tokenizer = models.load_tokenizer(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    model = load_with_head(base, label_names)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = {}
    for name, (texts, labels) in parts.items():
        if name == "validation":
            texts, labels = texts[:_AT_MOST], labels[:_AT_MOST]
        ids, cut = encode(tokenizer, texts, settings.max_length, settings.keep)
        rows[name] = [{"input_ids": i, "labels": int(n)} for i, n in zip(ids, labels, strict=True)]
        if cut and name == "train":
            say(f"{cut:.0%} of the texts are longer than {settings.max_length} tokens and are cut")
    if method == "lora":
        model = _with_adapter(model, settings)
    classifier.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with _folder(checkpoints, method, base, rows, settings) as folder:
        resumable = checkpoints is not None
        classifier.model = _trained(
            model, tokenizer, rows, method, settings, folder, say, resumable
        )
    if method == "lora":
        classifier.adapter = Path(tempfile.mkdtemp(prefix="llmnb-adapter-"))
        classifier.model.save_pretrained(classifier.adapter)
        classifier.model = classifier.model.merge_and_unload()
    return classifier


def _with_adapter(model: nn.Module, settings: Settings) -> nn.Module:
    """Source: Hu et al. 2022; in all linear layers, as Dettmers et al. 2023 (QLoRA) found best."""
    import peft

    rank = settings.lora_rank
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    return peft.get_peft_model(model, config)


@contextlib.contextmanager
def _folder(checkpoints: Path | None, method: str, base: str, rows: dict, settings: Settings):
    """A folder that only this very training uses: it follows from all that decides its result."""
    if checkpoints is None:
        with tempfile.TemporaryDirectory(prefix="llmnb-training-") as folder:
            yield Path(folder)
        return
    key = json.dumps([method, base, dataclasses.asdict(settings), rows]).encode()
    folder = Path(checkpoints).expanduser() / hashlib.sha256(key).hexdigest()[:12]
    yield folder
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # another training's is in it
        folder.parent.rmdir()


def _trained(model, tokenizer, rows, method, settings, folder, say, resumable) -> nn.Module:
    device, dtype = hardware.device(), hardware.dtype(settings.dtype)
    steps = -(-len(rows["train"]) // settings.batch_size)  # of an epoch
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr or LEARNING_RATE[method],
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * steps * settings.epochs),
        weight_decay=0.01,
        optim="adamw_torch_fused" if device != "mps" else "adamw_torch",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device == "cpu",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=min(steps, 500),
        save_steps=min(steps, 500),
        save_total_limit=1,
        save_only_model=not resumable,  # the optimizer's state is twice as large
        load_best_model_at_end=True,
        metric_for_best_model="f1",  # the loss rises with a few sure mistakes while F1 still grows
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=settings.seed,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=_macro_f1,
        compute_loss_func=_loss(rows["train"], model.config.num_labels, settings.balanced),
        callbacks=[transformers.EarlyStoppingCallback(settings.patience), _Progress(say)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    resume = _last_complete(folder)
    if resume:
        say(f"goes on from step {resume.rpartition('-')[2]}")
    with _explained(settings):
        trainer.train(resume_from_checkpoint=resume)
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _loss(rows: list[dict], n_classes: int, balanced: bool) -> Callable:
    """Mean cross-entropy; balanced: a class weighs n / (classes · its count)."""
    weight = torch.ones(n_classes)
    if balanced:
        counts = torch.bincount(torch.tensor([row["labels"] for row in rows]), minlength=n_classes)
        weight = len(rows) / (n_classes * counts.clamp_min(1))

    def loss(outputs, labels: Tensor, num_items_in_batch=None) -> Tensor:
        logits = outputs["logits"].float()
        if not logits.isfinite().all():
            raise FineTuningError("The logits are no numbers any more: lower lr, or dtype fp32.")
        return F.cross_entropy(logits, labels, weight.to(logits.device))

    return loss


def _macro_f1(found: transformers.EvalPrediction) -> dict[str, float]:
    chosen = np.argmax(found.predictions, axis=1)
    return {"f1": f1_score(found.label_ids, chosen, average="macro", zero_division=0)}


class _Progress(transformers.TrainerCallback):
    """A line an evaluation."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.start = say, time.monotonic()

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        way = state.global_step / state.max_steps
        seconds = time.monotonic() - self.start
        self.say(f"{way:4.0%} {seconds:6.1f} s   validation macro-F1 {metrics['eval_f1']:.3f}")


def _last_complete(folder: Path) -> str | None:
    """The last checkpoint that was written to its end; a torn one is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        if (path / "trainer_state.json").is_file():  # written last
            return str(path)
        shutil.rmtree(path)
    return None


@contextlib.contextmanager
def _explained(settings: Settings):
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise FineTuningError(
            f"Out of memory: lower batch_size ({settings.batch_size}) or max_length "
            f"({settings.max_length}), or take LoRA, or a smaller encoder."
        ) from error
