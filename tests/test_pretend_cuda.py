"""The package on a pretended CUDA device: its model paths, and planted bugs that are refused."""

import inspect
import re
import sys
import textwrap

import numpy as np
import pretend_cuda
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, small
from pretend_tensor import Refusal
from test_instructions import chats, tiny  # noqa: F401

from llmnb import attention, embedding, fine_tuning, generation, models, structured
from llmnb.applications.retrieval import Index
from llmnb.evaluation import bias
from llmnb.fine_tuning import contrastive, instructions, preferences
from llmnb.fine_tuning.preferences import Pair
from llmnb.pretraining import loop
from llmnb.transformer import Decoder

LABELS = ("bad", "good")
PINNED = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
CAN_PRETEND = sys.platform == "linux" and torch.__version__.split("+")[0] == PINNED
CAN_PRETEND &= not torch.cuda.is_available()
pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.skipif(not CAN_PRETEND, reason="it takes Linux, the pinned torch, no CUDA"),
]


@pytest.fixture(scope="module")
def device():
    with pretend_cuda.device():
        yield


class Paths:
    """What the package does with models; each method returns something to be checked."""

    def __init__(self, decoder, encoder, reviews, corpus, folder) -> None:
        self.decoder, self.encoder, self.reviews = decoder, encoder, reviews
        self.corpus, self.folder = corpus, folder

    def generation(self) -> bool:
        """Greedy and sampled texts, alone and in a batch, with the key-value cache."""
        model = Decoder.from_pretrained(self.decoder)
        tokenizer = models.load_tokenizer(self.decoder)
        prompts = ["Is it open?", "Until when? "]
        hot = generation.Sampling(temperature=1.0, top_p=0.9, seed=1)
        texts = generation.complete(model, tokenizer, prompts, 4, hot)
        list(generation.stream(model, tokenizer, prompts[0], 4))
        chosen = structured.choose(model, tokenizer, prompts, ["yes", "no"])
        return len(texts) == 2 and set(chosen) <= {"yes", "no"}

    def embedding(self) -> bool:
        """Vectors of texts, and a search in an index of documents."""
        model, tokenizer = (
            load(self.encoder) for load in (models.load_encoder, models.load_tokenizer)
        )
        ids, _ = embedding.encode(tokenizer, ["a good film", "b"], max_length=8)
        vectors = embedding.mean_pooled(model, tokenizer, ids)
        (self.folder / "docs").mkdir()
        (self.folder / "docs" / "a.md").write_text("# A\n\nA good film.\n\n## B\n\nA bad film.")
        index = Index.build(self.folder / "docs", self.encoder, lambda line: None)
        return vectors.shape == (2, 32) and bool(index.search("good film", 1))

    def classifiers(self) -> bool:
        """All weights, LoRA, contrastive tuning and prompting, each for a few texts."""
        few = {name: part.select(range(16)) for name, part in self.reviews.items()}
        settings = {"encoder": self.encoder, "decoder": self.decoder, "max_length": 64, "epochs": 1}
        for method in ("full", "lora", "contrastive", "zero_shot"):
            result = fine_tuning.run(method, few, LABELS, fine_tuning.Settings(**settings))
            assert np.allclose(result.probabilities.sum(1), 1, atol=1e-3)
        return True

    def pretraining(self) -> bool:
        """Both objectives, with a sample; a run that goes on from a checkpoint."""
        for objective in ("causal", "masked"):
            recipe = small(dtype="auto", objective=objective)
            folder = self.folder / objective
            rows = loop.Trainer(self.corpus, recipe, folder, evaluations=2).run()
            loop.Trainer(self.corpus, recipe, folder, evaluations=2).run()
            assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
        return True

    def instructions(self) -> bool:
        """Two steps of supervised tuning and of DPO, and an answer."""
        settings = instructions.Settings(base=self.decoder, steps=2, batch_size=2, lora_rank=4)
        assistant = instructions.Assistant(settings)
        losses = assistant.fit(chats(4))
        pairs = [Pair(chat[:1], chosen="yes", rejected="no") for chat in chats(4)]
        losses += preferences.train(assistant, pairs)
        answers = assistant.answers([chat[:1] for chat in chats(2)], max_new_tokens=4)
        return np.isfinite(losses).all() and len(answers) == 2

    def evaluation(self) -> bool:
        """Bits of sentences under a decoder, from transformers and from here."""
        tokenizer = models.load_tokenizer(self.decoder)
        for model in (models.load_decoder(self.decoder), Decoder.from_pretrained(self.decoder)):
            table = bias.pair_preferences(model, tokenizer)
            assert np.isfinite(table["log_a"]).all()
        return True


@pytest.fixture
def paths(tiny, tiny_models, made_up, corpus, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LLMNB_CACHE", str(tmp_path / "cache"))
    return Paths(tiny, str(tiny_models / "encoder"), made_up, corpus, tmp_path)


NAMES = [name for name in vars(Paths) if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_the_models_run_on_the_device(name, paths):
    assert getattr(paths, name)()


# The path that meets the bug, the function that gets it, its text, and what stands there then.
PLANTED_BUGS = [
    ("generation", generation, "padded", "(ids, device=device)", "(ids)"),
    ("generation", attention, "causal_mask", "torch.bool, device=device", "torch.bool"),
    ("generation", generation.Sampling, "choose", ".softmax(dim=-1).cpu()", ".softmax(dim=-1)"),
    ("embedding", embedding, "mean_pooled", ".cpu().numpy()", ".numpy()"),
    ("evaluation", Decoder, "forward", "start + seq, device=input_ids.device", "start + seq"),
    ("pretraining", loop.Trainer, "_backward", ".to(self.device)", ""),
    ("classifiers", contrastive.Contrastive, "fit", ".to(self.model.device)", ""),
]
WORDS_OF_CUDA = r"on the same device|'cuda' device type for generator|can't convert cuda:0"


@pytest.mark.parametrize(("path", "owner", "name", "text", "replacement"), PLANTED_BUGS)
def test_a_planted_bug_is_refused(path, owner, name, text, replacement, paths, monkeypatch):
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(text) == 1
    namespace = dict(vars(sys.modules[function.__module__]))
    exec(source.replace(text, replacement), namespace)
    monkeypatch.setattr(owner, name, namespace[name])
    with pytest.raises((Refusal, TypeError), match=WORDS_OF_CUDA):
        getattr(paths, path)()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: y + x,
        lambda x, y: y[x > 0],
        lambda x, y: x.__setitem__(torch.tensor([0, 1]), y),
        lambda x, y: y.add_(x.sum()),
        lambda x, y: torch.nn.Linear(2, 2).to("cuda")(y),
        lambda x, y: F.scaled_dot_product_attention(x[None], x[None], y[None]),
        lambda x, y: torch.multinomial(x, 1, generator=torch.Generator()),
        lambda x, y: torch.multinomial(y, 1, generator=torch.Generator("cuda")),
        lambda x, y: x.long()[None] @ x.long()[:, None],
        lambda x, y: torch.zeros(2, device="cuda:1"),
        lambda x, y: torch.ops.aten._convert_weight_to_int4pack_for_cpu(x.int()[None], 1),
        lambda x, y: x.numpy(),
    ],
)
def test_what_cuda_refuses_is_refused(mix):
    with pytest.raises((RuntimeError, TypeError), match=r"cuda|CUDA|same device"):
        mix(torch.ones(2, device="cuda"), torch.ones(2))


def test_attention_gives_the_numbers_of_the_cpu_and_stores_no_weights():
    query, key = torch.randn(2, 4, 32, 8), torch.randn(2, 2, 32, 8)
    mask = torch.ones(32, 32, dtype=torch.bool).tril()
    results, shapes = [], []
    for device in ("cpu", "cuda"):
        tensors = [tensor.to(device).requires_grad_() for tensor in (query, key, key)]
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), id):
            output = F.scaled_dot_product_attention(*tensors, mask.to(device), enable_gqa=True)
        results.append(output.detach().cpu())
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)
    assert shapes and (2, 4, 32, 32) not in shapes


def test_what_cuda_allows_is_allowed():
    x = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    assert (x * torch.tensor(2.0)).tolist() == [2, 4, 6]  # a number on the CPU
    assert x[torch.tensor([2, 0])].tolist() == [3, 1]  # indices on the CPU
    x[:2] = torch.zeros(2)  # a copy
    x[2:] += 1
    assert x.cpu().numpy().tolist() == [0, 0, 4] and x.to("cuda") is x
    with torch.inference_mode():
        assert f"{x.sum():.1f}" == "4.0" and x.view(3, 1).device == torch.device("cuda:0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_gives_the_losses_of_the_cpu(dtype):
    losses = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9)).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, fused=True)
        ids = torch.arange(9, device=device)
        losses[device] = []
        for _ in range(5):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                logits = net(ids)
            assert logits.dtype == dtype and logits.device.type == device
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), ids).backward()
            optimizer.step()
            losses[device].append(F.cross_entropy(logits.float(), ids).item())
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-2)
    assert losses["cuda"][-1] < 0.9 * losses["cuda"][0]
