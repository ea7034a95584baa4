"""What this machine computes on, and in which precision."""

import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmnb import LlmnbError, files

if TYPE_CHECKING:
    import torch

MIN_BF16_SPEEDUP = 1.2  # on a CPU, bf16 is chosen only if it is this many times as fast as fp32
GOMP_SPINCOUNT = "5000"


class HardwareError(LlmnbError, ValueError):
    """A precision that doesn't exist; the message lists those that do."""


def share_the_cpu() -> None:
    """Let OpenMP's threads wait without spinning for long, unless the user chose otherwise.

    It must be called before torch is imported, which reads the variable. With the default, one
    busy process beside ours makes everything about ten times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", GOMP_SPINCOUNT)


def has_cuda() -> bool:
    """Whether torch sees a CUDA device; torch is imported only where the answer could be yes."""
    try:
        version = importlib.metadata.version("torch")
        if version.endswith("+cpu"):
            return False
        if "+rocm" not in version:  # AMD's devices are called cuda, too
            ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return False
    import torch

    return torch.cuda.is_available()


def device() -> str:
    """The device that models go to: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype(choice: str = "auto", device_type: str | None = None) -> "torch.dtype":
    """The torch dtype that models use on a device (default: this machine's).

    "auto" means LLMNB_DTYPE if it is set. Otherwise: CUDA of capability 8 or more takes bf16,
    older CUDA fp16, MPS fp32, and a CPU takes bf16 only if a short matrix product is faster in it.
    Raises HardwareError for an unknown choice.
    """
    import torch

    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    origin = "dtype"
    if choice == "auto":
        choice, origin = os.environ.get("LLMNB_DTYPE") or "auto", "LLMNB_DTYPE"
    if choice == "auto":
        choice = _best_dtype(device_type or device())
    if choice not in names:
        raise HardwareError(
            f"{origin}={choice!r} is unknown; choose one of auto, {', '.join(names)}."
        )
    return names[choice]


def _best_dtype(device_type: str) -> str:
    import torch

    if device_type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if device_type == "cpu":
        return "bf16" if bf16_speedup() > MIN_BF16_SPEEDUP else "fp32"
    return "fp32"


def bf16_speedup() -> float:
    """How many times as fast this CPU multiplies matrices in bf16 as in fp32.

    Measured once for a machine and torch version (about 50 ms) and kept in the cache, so that
    every run on this machine makes the same choice.
    """
    import torch

    machine = [platform.node(), platform.processor(), platform.machine(), torch.__version__]
    machine += [os.cpu_count(), torch.backends.cpu.get_cpu_capability()]
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:12]

    def measure(folder: Path) -> None:
        probe = json.dumps({"bf16_speedup": round(_measure_bf16_speedup(), 2)})
        (folder / "probe.json").write_text(probe, encoding="utf-8")

    folder = files.build(files.cache_dir() / "machine" / digest, measure)
    return json.loads((folder / "probe.json").read_text(encoding="utf-8"))["bf16_speedup"]


def _measure_bf16_speedup() -> float:
    import torch

    matrices = {kind: torch.ones(384, 384, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    seconds = {kind: [] for kind in matrices}
    for repeat in range(9):  # interleaved, so that a busy moment slows both
        for kind, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix @ matrix
            if repeat >= 2:  # the first rounds warm up
                seconds[kind].append(time.perf_counter() - start)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])
