"""The kernel that a run starts: this very Python, with sockets of its own; and its memory."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

MAX_SOCKET_FOLDER_CHARACTERS = 60  # the path of a Unix socket is limited to about 100 bytes


def peak_memory(pid: int) -> float:
    """The most memory that the process has held so far, in bytes."""
    status = Path(f"/proc/{pid}/status")
    if status.exists() and (peak_kb := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return 1024.0 * int(peak_kb[1])
    return float(psutil.Process(pid).memory_info().rss)


@contextlib.contextmanager
def kernel_manager() -> Iterator[AsyncKernelManager]:
    """A manager that starts this very Python, with the kernel's sockets in a folder of their own.

    A kernelspec of the user's could name another Python, and TCP ports of two runs could collide.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    is_long = len(tempfile.gettempdir()) > MAX_SOCKET_FOLDER_CHARACTERS
    parent = "/tmp" if is_long and os.name != "nt" else None
    temporary = tempfile.TemporaryDirectory(prefix="llmnb-", dir=parent, ignore_cleanup_errors=True)
    with temporary as folder:
        manager = AsyncKernelManager(connection_file=os.path.join(folder, "kernel.json"))
        manager._kernel_spec = KernelSpec(argv=command, language="python")
        if os.name != "nt":
            manager.transport, manager.ip = "ipc", os.path.join(folder, "kernel")
        yield manager
