"""The kernel that a run starts: this very Python, with sockets of its own; and its memory."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

MAX_SOCKET_FOLDER_CHARACTERS = 60  # the path of a Unix socket is limited to about 100 bytes


def peak_memory(pid: int) -> float:
    """The most memory that the process has held so far, in bytes."""
    status = Path(f"/proc/{pid}/status")
    if status.exists() and (peak_kb := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return 1024.0 * int(peak_kb[1])
    return float(psutil.Process(pid).memory_info().rss)


@contextlib.contextmanager
def kernel_class() -> Iterator[type]:
    """A kernel manager that starts this very Python, with its sockets in a folder of their own.

    A kernelspec of the user's could name another Python, and TCP ports of two runs could collide.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    is_long = len(tempfile.gettempdir()) > MAX_SOCKET_FOLDER_CHARACTERS
    parent = "/tmp" if is_long and os.name != "nt" else None
    temporary = tempfile.TemporaryDirectory(prefix="llmnb-", dir=parent, ignore_cleanup_errors=True)
    with temporary as folder, open(os.path.join(folder, "stderr"), "wb") as log:

        class Kernel(AsyncKernelManager):
            last = None  # the manager of the running kernel, whose memory is measured

            def __init__(self, **options) -> None:
                super().__init__(**options)
                type(self).last = self
                self.connection_file = os.path.join(folder, "kernel.json")
                self._kernel_spec = KernelSpec(argv=command, language="python")
                if os.name != "nt":
                    self.transport = "ipc"
                    self.ip = os.path.join(folder, "kernel")

            async def _async_start_kernel(self, **options) -> None:
                await super()._async_start_kernel(**options, stderr=log)

            start_kernel = _async_start_kernel

            @staticmethod
            def last_stderr_line() -> str:
                lines = Path(log.name).read_text("utf-8", "replace").splitlines()
                return lines[-1] if lines else ""

        yield Kernel
