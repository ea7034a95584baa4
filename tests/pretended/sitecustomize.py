"""Every Python that starts with this folder on PYTHONPATH computes on a pretended CUDA device."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    import pretend_cuda

    DEVICE = pretend_cuda.device()  # held until the process ends
    DEVICE.__enter__()
except Exception as error:  # Python would go on without a device
    raise SystemExit(f"No pretended device: {error!r}") from error
