"""What tests share: a cache of their own where they write, the real one where they read."""

import contextlib
import functools
import http.client
import http.server
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from llmnb import assets, hardware, models
from llmnb.runs import parameters

# Both must be set before torch is imported. Small tensors gain nothing from several threads, and
# lose much where the machine is busy.
hardware.share_the_cpu()
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = parameters.notebooks_in(ROOT / "notebooks")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")
CLOSED_PROXY = dict.fromkeys(PROXY_VARIABLES, "http://127.0.0.1:9")  # nobody listens there


def disagreements(metrics: dict[str, dict], path: Path) -> list[str]:
    """How a smoke run's metrics differ from tests/expected/NN.smoke.json."""
    file = ROOT / "tests/expected" / f"{parameters.number_of(path)}.smoke.json"
    expected = json.loads(file.read_text())
    messages = [f"{name} is missing" for name in expected.keys() - metrics.keys()]
    messages += [f"{name} is new" for name in metrics.keys() - expected.keys()]
    for name in metrics.keys() & expected.keys():
        if "machine" in expected[name]:  # a speed: it must be there, but any value will do
            continue
        value = metrics[name]["value"]
        target = expected[name]["value"]
        tolerance = expected[name]["tolerance"]
        if abs(value - target) > tolerance:
            messages.append(f"{name} is {value}, expected {target} ± {tolerance}")
    return messages


def can_run_jupyterlab() -> bool:
    """Whether tests/test_jupyterlab.py can run here."""
    has_browser = shutil.which("chromium") or shutil.which("google-chrome")
    has_packages = all(importlib.util.find_spec(name) for name in ("playwright", "jupyterlab"))
    return bool(has_browser) and has_packages


def pytest_collection_modifyitems(items):
    """The fast ones first, then real models and data, then whole notebooks."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is not None,
            "test_notebooks" in item.nodeid or "test_jupyterlab" in item.nodeid,
        )
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LLMNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def decoder():
    """The real offline decoder and its tokenizer."""
    name = "SmolLM2-135M-Instruct-q4_1"
    return models.load_decoder(name), models.load_tokenizer(name)


@pytest.fixture(scope="session")
def encoder():
    """The real offline encoder and its tokenizer."""
    return models.load_encoder("all-MiniLM-L6-v2"), models.load_tokenizer("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def smollm_tokenizer():
    """The tokenizer of the real offline decoder."""
    return models.load_tokenizer("SmolLM2-135M-Instruct-q4_1")


def loud(model, std: float = 0.3):
    """The model with weights large enough for clear and varied choices."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model.eval().requires_grad_(False)


def tiny_decoder(vocab_size: int, n_positions: int = 256, family: str = "llama", **sizes):
    """A random decoder of ours, with clear and varied choices."""
    import torch

    from llmnb.transformer import Decoder, TransformerConfig

    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "tied": False} | sizes
    sizes |= {"vocab_size": vocab_size, "n_positions": n_positions}
    return loud(Decoder(TransformerConfig.of(family, **sizes)))


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """A text that is easily learned, in characters, and the cache that holds it."""
    from llmnb.pretraining.tokens import prepare

    folder, choose = tmp_path_factory.mktemp("pretraining"), random.Random(0).choice
    animals, verbs = ["cat", "dog", "fox", "owl", "hen"], ["sees", "hears", "fears", "likes"]
    lines = {
        f"The {choose(animals)} {choose(verbs)} the {choose(animals)} at {hour} past {minute}."
        for hour in range(1, 13)
        for minute in range(60)
    }
    (folder / "sentences.txt").write_text("\n\n".join(sorted(lines)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMNB_CACHE", str(folder / "cache"))
        return folder, prepare(str(folder / "sentences.txt"), "characters")


@pytest.fixture
def text(sentences, monkeypatch) -> str:
    """The file of `sentences`; the cache is theirs."""
    monkeypatch.setenv("LLMNB_CACHE", str(sentences[0] / "cache"))
    return str(sentences[0] / "sentences.txt")


@pytest.fixture
def corpus(sentences, text):
    """Its tokens."""
    return sentences[1]


SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "block_size": 16, "batch_size": 8}
SMALL |= {"tokens": 30 * 8 * 16, "dtype": "fp32"}


def byte_tokenizer(special: list[str], letters: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Its tokens are special ones, which have the first ids, and bytes: the letters, or all."""
    letters = letters or sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*special, *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def small(**changes):
    """A recipe for thirty steps of a few milliseconds."""
    from llmnb.pretraining.recipe import Recipe

    return Recipe(**SMALL | changes)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )


_WORDS = [*"abcdefghij", "bad", "good", "fine", "film", "Text", ":", "Label", "Classify", "each"]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A tiny random encoder and a tiny random decoder, each in a folder with its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("models")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: number for number, word in enumerate(special + _WORDS)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, config, kind in (
        ("encoder", transformers.BertConfig, transformers.BertModel),
        ("decoder", transformers.LlamaConfig, transformers.LlamaForCausalLM),
    ):
        if name == "encoder":
            ends = [("[CLS]", 2), ("[SEP]", 3)]
            raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
        else:
            raw.post_processor = processors.TemplateProcessing("$A", None, [])
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
        )
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 64, "vocab_size": len(vocab), "initializer_range": 0.3}
        kind(config(**sizes, max_position_embeddings=256, pad_token_id=0)).save_pretrained(
            folder / name
        )
        fast.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def made_up():
    """Reviews whose class is one word's; the other words say nothing."""
    import datasets
    import numpy as np

    from llmnb import data

    random = np.random.default_rng(0)
    rows = {"text": [], "label": []}
    for number in range(400):
        words = random.choice(_WORDS[:10], size=random.integers(2, 9)).tolist()
        words.insert(random.integers(len(words)), ("bad", "good")[number % 2])
        rows["text"].append(" ".join(words))
        rows["label"].append(number % 2)
    return data.split(datasets.Dataset.from_dict(rows), label="label")


HOSTED_KEY = "sk-test-5f2c-very-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`transformers serve` with the offline decoder, on a port that stays the same."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("transformers")), "serve"]
        command += [hosted_name(), "--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {"HF_HUB_CACHE": str(self.folder), "HF_HUB_OFFLINE": "1"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--device", "cpu"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(600):  # only to end a hang: it is up after some seconds
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        pytest.fail("the server did not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@functools.cache  # the tests' own cache is empty
def hosted_name() -> str:
    return str(assets.fetch("SmolLM2-135M-Instruct-q4_1"))


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the server, counts them, and answers 429 as often as it is told."""

    protocol_version = "HTTP/1.1"
    port, requests, refusals = 0, 0, 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Proxy.refusals:
            Proxy.refusals -= 1
            self.reply(429, b'{"error": {"message": "slow down"}}')
            return
        Proxy.requests += 1
        connection = http.client.HTTPConnection("127.0.0.1", Proxy.port)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.reply(response.status, response.read())
        except OSError:
            self.close_connection = True  # the server is gone, so the client's connection ends

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server, cache, monkeypatch):
    """A fresh cache, and the address of a proxy before the server."""
    Proxy.port, Proxy.requests, Proxy.refusals = server.port, 0, 0
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{httpd.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", HOSTED_KEY)
    yield Proxy
    httpd.shutdown()
    httpd.server_close()
