"""What a record says of where it was made, and writing files so that none is ever half there."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

_VERSIONS = ("llmnb", "torch", "transformers", "datasets", "numpy", "papermill", "nbclient")


def hardware() -> dict[str, Any]:
    """The machine, as far as its results depend on it."""
    import psutil

    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def versions() -> dict[str, str]:
    """Python's and the libraries' versions."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit(path: Path) -> str | None:
    """The commit of the notebook's checkout, with + where files differ from it."""
    if not (git := shutil.which("git")):
        return None
    command = [git, "-C", str(path.resolve().parent)]
    try:
        where = subprocess.run(
            [*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
        if where.returncode:
            return None
        state = subprocess.run(
            [*command, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    return where.stdout.strip() + ("+" if state.stdout.strip() else "")
