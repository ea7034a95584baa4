"""The cache, and files and folders that are written completely or not at all."""

import contextlib
import difflib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llmnb import LlmnbError

_MANIFEST = ".manifest.json"


class CacheError(LlmnbError, RuntimeError):
    """A folder in the cache can't be written; the message says why, and what to do."""


class SettingsError(LlmnbError, ValueError):
    """A file with settings can't be read; the message says why."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, whose file takes the place of path when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # what was written, if writing failed


def read_settings(path: str) -> dict[str, Any]:
    """The settings in a YAML file. Raises SettingsError."""
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"{path} must hold lines of the form NAME: VALUE.")
    return settings


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file in the folder, by its path from the folder on, with /."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def first_line(error: Exception) -> str:
    """The first line of an error's text; the name of its class where there is no text."""
    lines = str(error).split("\n")
    return lines[0].strip() or type(error).__name__


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """ " Did you mean 'X'?" if a candidate is similar to the name, else an empty string."""
    similar = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def cache_dir() -> Path:
    """LLMNB_CACHE if it is set, else the user's cache folder."""
    folder = os.environ.get("LLMNB_CACHE")
    if folder:
        return Path(folder).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("llmnb", appauthor=False)


def build(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder once; make it again if one of its files is missing or has changed.

    make(temporary_folder) fills it, under a lock; then the folder is renamed, so that nobody
    sees half of it. Returns the folder. Raises CacheError where it can't be written.
    """
    if _is_intact(folder):
        return folder
    from filelock import FileLock

    with _explain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not _is_intact(folder):  # another process may have made it in the meantime
                _build_locked(folder, make)
    return folder


def _build_locked(folder: Path, make: Callable[[Path], None]) -> None:
    _remove_partial(folder)  # left behind by a killed process
    if folder.exists():
        print(f"{folder.name} in the cache is incomplete or was changed: making it again.")
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        make(partial)
        _write_manifest(partial, sums_of(partial))
        partial.chmod(0o755)
        if folder.exists():
            folder.rename(partial.with_name(partial.name + "-old"))
        partial.rename(folder)
    finally:
        _remove_partial(folder)


def _remove_partial(folder: Path) -> None:
    # glob would read the brackets of a name like notes[1] as a pattern, so they are escaped.
    for leftover in folder.parent.glob(f"{glob.escape(folder.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explained = ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "ENOTDIR", "EEXIST", "ENOENT")
        if error.errno not in [getattr(errno, name, None) for name in explained]:
            raise
        raise CacheError(
            f"Can't write {folder.name} to {folder.parent}: {os.strerror(error.errno)}. "
            f"Free some space, or set LLMNB_CACHE to a folder elsewhere."
        ) from error


def _write_manifest(folder: Path, sums: dict[str, str]) -> None:
    entries = {
        name: {"sha256": digest, "stat": _stat(folder / name)} for name, digest in sums.items()
    }
    write_json(folder / _MANIFEST, entries)


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _is_intact(folder: Path) -> bool:
    """Whether every file in the manifest is there with its content unchanged.

    A file is hashed again only where its size or times differ from the manifest's. The change
    time can't be set by hand, so equal times mean an untouched file.
    """
    try:
        entries = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        stats = {name: _stat(folder / name) for name in entries}
        touched = [name for name, entry in entries.items() if stats[name] != entry["stat"]]
        if any(sha256_of(folder / name) != entries[name]["sha256"] for name in touched):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if touched:  # copied, but the same content: note the new times, so the next call is quick
        with contextlib.suppress(OSError):
            _write_manifest(folder, {name: entry["sha256"] for name, entry in entries.items()})
    return True
