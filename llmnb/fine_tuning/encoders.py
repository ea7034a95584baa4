"""Full fine-tuning and LoRA: a pretrained model with a new head, trained by transformers' Trainer.

Three things make it fast: the precision that hardware.dtype chooses, a fused optimizer, and
batches of texts of similar length.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from llmnb.fine_tuning.base import Classifier, FineTuningError, Settings, with_lora

LEARNING_RATE = {"full": 1e-4, "lora": 1e-3}
HEAD_WEIGHTS = ("classifier.", "score.", "pooler.", "bert.pooler.", "pre_classifier.")  # prefixes
MAX_VALIDATION_TEXTS = 2000  # per evaluation during training
MAX_STEPS_PER_EVALUATION = 500


class Encoded(Classifier):
    """A transformers model with a linear head; plain transformers can load it too."""

    model: nn.Module
    adapter: Path | None = None  # a folder with LoRA's matrices, merged into the model
    temporary: tempfile.TemporaryDirectory | None = (
        None  # the adapter's, as long as the classifier lives
    )

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes)"""
        ids, _ = encode(self.tokenizer, texts, self.settings.max_length, self.settings.keep)
        probabilities = np.zeros((len(ids), len(self.label_names)))
        device = next(self.model.parameters()).device
        self.model.eval()
        with torch.inference_mode(), autocast(self.settings.dtype, device.type):
            for rows, inputs in batches(self.tokenizer, ids, device=device):
                logits = self.model(**inputs).logits.double()
                probabilities[rows] = torch.softmax(logits, dim=-1).cpu().numpy()
        return probabilities

    def write(self, folder: Path) -> None:
        """The model and its tokenizer; beside them the adapter, if there is one."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.adapter is not None:
            shutil.copytree(self.adapter, folder / "adapter")

    def read(self, folder: Path) -> None:
        """The model, its tokenizer, and the adapter."""
        self.tokenizer = models.load_tokenizer(str(folder))
        self.model = load_with_head(str(folder), self.label_names, new_head=False)
        self.model.to(hardware.device())
        self.adapter = folder / "adapter" if (folder / "adapter").is_dir() else None

    def bytes_on_disk(self) -> int:
        """The size of the adapter if there is one, else of the whole model."""
        if self.adapter is None:
            return super().bytes_on_disk()
        return sum(file.stat().st_size for file in self.adapter.iterdir())


def pretrained(name: str) -> Encoded:
    """A classifier that transformers saved, with its own labels; name: a folder or a Hub id.

    Raises AssetError for one that can't be loaded, or that is no classifier.
    """
    model = load_with_head(name, None, new_head=False)
    label_names = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
    classifier = Encoded(label_names, Settings(max_length=512))
    classifier.method = "pretrained"
    classifier.base = name
    classifier.model = model.to(hardware.device())
    classifier.tokenizer = models.load_tokenizer(name)
    return classifier


def load_with_head(
    name: str, label_names: Sequence[str] | None, new_head: bool = True
) -> nn.Module:
    """The pretrained model with a linear head on top, in fp32 on the CPU.

    label_names: None keeps the model's own. new_head: whether the head may be missing in the file
    and start with random weights. Raises AssetError where the model can't be loaded, or where
    other weights are missing.
    """
    folder = models.locate(name)
    labels = {}
    if label_names is not None:
        labels["id2label"] = dict(enumerate(label_names))
        labels["label2id"] = {label: number for number, label in enumerate(label_names)}
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn that the head is new
    logging.disable_progress_bar()
    try:
        with models.load_errors(name, folder):
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                **labels,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=new_head,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    may_be_new = HEAD_WEIGHTS if new_head else ()
    if missing := [key for key in info["missing_keys"] if not key.startswith(may_be_new)]:
        raise assets.AssetError(f"{name!r} lacks {len(missing)} weights, {missing[0]} among them.")
    return model


def autocast(dtype: str, device: str) -> torch.autocast:
    """A context in which matrix products are computed in this precision."""
    resolved = hardware.dtype(dtype, device)
    return torch.autocast(device, resolved, enabled=resolved != torch.float32)


def train(
    method: str,
    base: str,
    parts: Mapping[str, tuple[Sequence[str], NDArray[np.integer]]],
    label_names: Sequence[str],
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
) -> Encoded:
    """The trained classifier: with its last weights, or the best if it could be stopped early.

    method: "full" or "lora"; base: the pretrained model; parts: texts and labels of "train" and
    "validation". The same settings on the same machine give the same classifier. Raises
    FineTuningError where the memory isn't enough, or the loss isn't finite any more.
    """
    transformers.set_seed(settings.seed)
    classifier = Encoded(label_names, settings)
    classifier.method = method
    classifier.base = base
    classifier.tokenizer = tokenizer = models.load_tokenizer(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    model = load_with_head(base, label_names)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = {}
    for name, limit in (("train", None), ("validation", MAX_VALIDATION_TEXTS)):
        texts, labels = parts[name]
        ids, cut_share = encode(tokenizer, texts[:limit], settings.max_length, settings.keep)
        pairs = zip(ids, labels[:limit].tolist(), strict=True)
        rows[name] = [{"input_ids": row_ids, "labels": label} for row_ids, label in pairs]
        if cut_share and name == "train":
            say(
                f"{cut_share:.0%} of the texts are longer than {settings.max_length} tokens "
                "and are cut"
            )
    if method == "lora":
        model = with_lora(model, "SEQ_CLS", settings.lora_rank, settings.lora_alpha)
    classifier.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory(prefix="llmnb-training-") as folder:
        arguments = _arguments(method, len(rows["train"]), settings, folder)
        classifier.model = _train_model(model, tokenizer, rows, settings, arguments, say)
    if method == "lora":
        classifier.temporary = tempfile.TemporaryDirectory(prefix="llmnb-adapter-")
        classifier.adapter = Path(classifier.temporary.name)
        classifier.model.save_pretrained(classifier.adapter)
        classifier.model = classifier.model.merge_and_unload()
    return classifier


def _arguments(
    method: str, n_texts: int, settings: Settings, folder: str
) -> transformers.TrainingArguments:
    device = hardware.device()
    dtype = hardware.dtype(settings.dtype)
    steps_per_epoch = math.ceil(n_texts / settings.batch_size)
    steps_per_evaluation = min(steps_per_epoch, MAX_STEPS_PER_EVALUATION)
    n_evaluations = math.ceil(steps_per_epoch * settings.epochs / steps_per_evaluation)
    return transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr or LEARNING_RATE[method],
        warmup_steps=round(0.1 * steps_per_epoch * settings.epochs),
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
        eval_steps=steps_per_evaluation,
        save_steps=steps_per_evaluation,
        save_total_limit=1,
        save_only_model=True,  # no training goes on from these checkpoints
        # A training too short for early stopping keeps its last weights. Earlier ones, from before
        # the learning rate came down, are worse, but few validation texts can't show it.
        load_best_model_at_end=n_evaluations > settings.patience,
        # Not the loss: a few confident mistakes raise it while F1 still improves.
        metric_for_best_model="f1",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=settings.seed,
    )


def _train_model(model, tokenizer, rows, settings, arguments, say) -> nn.Module:
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=_macro_f1,
        compute_loss_func=_loss(rows["train"], model.config.num_labels, settings.balanced),
        callbacks=[_Progress(say)],
    )
    if arguments.load_best_model_at_end:
        trainer.add_callback(transformers.EarlyStoppingCallback(settings.patience))
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise FineTuningError(
            f"Out of memory: lower batch_size ({settings.batch_size}) or max_length "
            f"({settings.max_length}), or use LoRA or a smaller encoder."
        ) from error
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _loss(rows: list[dict], n_classes: int, balanced: bool) -> Callable:
    """Mean cross-entropy. balanced: a class has the weight n / (classes · its count)."""
    weight = torch.ones(n_classes)
    if balanced:
        counts = torch.bincount(torch.tensor([row["labels"] for row in rows]), minlength=n_classes)
        weight = len(rows) / (n_classes * counts.clamp_min(1))

    def loss(outputs, labels: Tensor, num_items_in_batch=None) -> Tensor:
        logits = outputs["logits"].float()
        if not logits.isfinite().all():
            raise FineTuningError("The logits are not finite any more: lower lr, or use fp32.")
        return F.cross_entropy(logits, labels, weight.to(logits.device))

    return loss


def _macro_f1(evaluation: transformers.EvalPrediction) -> dict[str, float]:
    predictions = np.argmax(evaluation.predictions, axis=1)
    f1 = f1_score(evaluation.label_ids, predictions, average="macro", zero_division=0)
    return {"f1": f1}


class _Progress(transformers.TrainerCallback):
    """Reports the validation macro-F1 after every evaluation."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.start = time.monotonic()

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        share_done = state.global_step / state.max_steps
        seconds = time.monotonic() - self.start
        f1 = metrics["eval_f1"]
        self.say(f"{share_done:4.0%} {seconds:6.1f} s   validation macro-F1 {f1:.3f}")
