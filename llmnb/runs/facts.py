"""What a record says about where its run was made: the machine, the versions, the commit."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("llmnb", "torch", "transformers", "datasets", "numpy", "papermill", "nbclient")
GIT_TIMEOUT_SECONDS = 30


def hardware() -> dict[str, Any]:
    """The machine, as far as a run's results depend on it."""
    import psutil

    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide a result."""
    by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            by_name[name] = importlib.metadata.version(name)
    return by_name


def git_commit(path: Path) -> str | None:
    """The commit of the checkout that a notebook lies in, with "+" if tracked files differ from it.

    None outside a checkout, and where git is missing or hangs.
    """

    command = ["git", "-C", str(path.resolve().parent), "describe"]
    command += ["--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_SECONDS
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return result.stdout.strip()
