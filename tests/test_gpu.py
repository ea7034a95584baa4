"""What a CUDA device changes: memory, training, and what it says."""

import pytest
import torch
from conftest import small
from torch import Tensor

from llmnb import fine_tuning, generation, models
from llmnb.pretraining import loop
from llmnb.transformer import Decoder, TransformerConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
NAME = "SmolLM2-135M-Instruct-q4_1"
PROMPT = "The capital of France is"


def ids_of(text: str) -> Tensor:
    tokenizer = models.load_tokenizer(NAME)
    return tokenizer(text, return_tensors="pt")["input_ids"].to(DEVICE)


def random_decoder(**sizes) -> Decoder:
    torch.manual_seed(0)
    base = {"vocab_size": 512, "d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 512}
    config = TransformerConfig.of("llama", **base | {"n_positions": 1024} | sizes)
    return Decoder(config).to(DEVICE).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "close"), [("fp32", 0.9999), ("bf16", 0.995), ("fp16", 0.999)])
def test_our_decoder_gives_the_librarys_logits(dtype, close):
    ids = ids_of(PROMPT + " Paris. " + "It lies on the Seine. " * 10)
    with torch.inference_mode():
        ours = Decoder.from_pretrained(NAME, dtype, DEVICE)(ids).float()
        theirs = models.load_decoder(NAME, dtype, DEVICE)(ids).logits.float()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs)]
    assert torch.cosine_similarity(*centred, dim=-1).min() > close
    assert torch.equal(ours[0, 4].argmax(), theirs[0, 4].argmax())


@pytest.mark.slow
def test_greedy_ids_are_the_librarys_and_the_cpus():
    ids = ids_of(PROMPT)
    ours = generation.generate(
        Decoder.from_pretrained(NAME, "fp32", DEVICE), ids, max_new_tokens=16
    )
    theirs = models.load_decoder(NAME, "fp32", DEVICE).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )
    there = generation.generate(
        Decoder.from_pretrained(NAME, "fp32", "cpu"), ids.cpu(), max_new_tokens=16
    )
    assert ours.tolist()[0][: theirs.shape[1]] == theirs.tolist()[0]
    assert ours.tolist() == there.tolist()


def test_the_cache_takes_the_memory_that_its_docstring_says():
    model = random_decoder()
    before = torch.cuda.memory_allocated()
    cache = generation.KeyValueCache(model.config, 8, 1000, like=model.embedding.weight)
    expected = 2 * 4 * 8 * 4 * 1000 * 64 * 4  # 2 · layers · batch · heads · length · head_dim, fp32
    taken = torch.cuda.memory_allocated() - before
    assert expected <= taken <= 1.01 * expected and len(cache.layers) == 4


def test_pretraining_runs_in_half_precision_and_learns(corpus, tmp_path):
    run = loop.Trainer(corpus, small(dtype="auto"), tmp_path / "run")
    rows = run.run()
    assert next(run.model.parameters()).device.type == DEVICE
    assert rows[-1]["validation_loss"] < 0.8 * rows[0]["validation_loss"]


def test_out_of_memory_names_the_settings(corpus, tmp_path):
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 2**30  # what other tests hold, and a gibibyte
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        huge = small(d_model=256, batch_size=16384, tokens=2 * 16384 * 16, dtype="fp32")
        with pytest.raises(loop.PretrainingError, match="accumulation"):
            loop.Trainer(corpus, huge, tmp_path / "run").run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.slow
def test_fine_tuning_on_the_device_learns(tmp_path):
    import datasets

    words = {0: ("dull", "poor", "flat"), 1: ("bright", "fine", "grand")}
    rows = [(f"A {words[n % 2][n % 3]} film, number {n}.", n % 2) for n in range(240)]
    parts = {"train": rows[:160], "validation": rows[160:200], "test": rows[200:]}
    splits = {
        name: datasets.Dataset.from_dict({"text": [t for t, _ in p], "label": [n for _, n in p]})
        for name, p in parts.items()
    }
    for method in ("full", "lora"):
        result = fine_tuning.run(method, splits, ("bad", "good"))
        assert result.accuracy.value > 0.9
        assert next(result.classifier.model.parameters()).device.type == DEVICE
