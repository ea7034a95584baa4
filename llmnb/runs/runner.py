"""Run one notebook with parameters: checked before, watched while it runs, recorded after.

papermill's engine executes; its metadata can't be trusted after a dead kernel or a time-out, so
the status comes from the exception.
"""

import contextlib
import copy
import datetime
import html
import itertools
import json
import logging
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import psutil

from llmnb import files
from llmnb.record import METRIC_MIME, RUN_MIME
from llmnb.runs import facts, report
from llmnb.runs import parameters as params

SCHEMA = 1
Progress = Callable[[int, int, float], None]  # cells done, cells in all, seconds


@dataclass(frozen=True)
class Job:
    """One run: plain values only, so that it can be sent to another process."""

    notebook: str
    parameters: dict[str, Any] = field(default_factory=dict)
    out: str = "reports"
    timeout: float | None = None  # seconds for the whole notebook


def run(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Execute the job; returns its record (DESIGN: run.json) with "folder", where it lies.

    The folder holds notebook.ipynb, report.html and run.json, for a failed run too. Raises
    ParameterError before anything runs; a failing notebook is a record, not an exception.
    """
    path = params.find_notebook(job.notebook)
    notebook = params.read_notebook(path)
    values = params.resolve(notebook, job.parameters, path.stem)
    name = f"{path.stem}-{params.digest(notebook, values)}"
    folder, attempt = _new_folder(Path(job.out) / "runs", name)
    record = _first_record(path, params.redacted(values), attempt)
    files.write_json(folder / "run.json", record)

    secrets = params.secrets(values)
    params.inject(notebook, values)
    _emptied(notebook)
    watch = _Watch(notebook, folder, secrets, job.timeout, progress)
    inherited = {params.secret_variable(name): value for name, value in secrets.items()}
    inherited["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # no debugger warnings on stderr
    try:
        with mock.patch.dict(os.environ, inherited), _kernel_class() as kernel:
            record |= watch.execute(kernel)
    except KeyboardInterrupt:
        record |= watch.ended("killed", "KeyboardInterrupt", "The run was interrupted.")
        raise
    finally:
        _ignore_interrupts()  # a second Ctrl-C must not cost the record
        record["seconds"] = round(time.monotonic() - watch.start, 2)
        record["peak_memory_mb"] = watch.peak_memory_mb
        record["metrics"] = collect(notebook, METRIC_MIME)
        record["hardware"] |= collect(notebook, RUN_MIME).get("run", {})
        record = watch.scrubbed(record)
        watch.save()
        files.write_json(folder / "run.json", record)
        report.write_report(folder)
        _ignore_interrupts(False)
    return record | {"folder": str(folder)}


def _new_folder(runs: Path, name: str) -> tuple[Path, int]:
    """A folder of our own: a second attempt at the same digest gets a suffix."""
    runs.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count(1):
        folder = runs / (name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder, attempt


def _first_record(path: Path, values: dict[str, Any], attempt: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "notebook": path.stem,
        "status": "running",
        "parameters": values,
        "metrics": {},
        "attempt": attempt,
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "peak_memory_mb": None,
        "hardware": facts.hardware(),
        "versions": facts.versions(),
        "source": {"git": facts.git_commit(path), "notebook_sha256": files.sha256_of(path)},
        "error": None,
    }


class _OutOfTime(Exception):
    """The notebook's time is used up between two cells."""


def _ignore_interrupts(ignored: bool = True) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)


def _forms(secret: str) -> list[str]:
    """How a secret can appear in text, longest first; a very short one is like any other text."""
    if len(secret) < 4:
        return []
    forms = {secret, repr(secret)[1:-1], secret.replace("\\", "\\\\").replace("'", "\\'")}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return sorted(forms | {html.escape(secret)}, key=len, reverse=True)


class _Watch:
    """Executes the notebook, saves it as it grows, measures the kernel's memory."""

    def __init__(self, notebook, folder, secrets, timeout, progress) -> None:
        self.notebook, self.folder = notebook, folder
        self.needles = [form for secret in secrets.values() for form in _forms(secret)]
        self.timeout, self.progress = timeout, progress
        self.start, self.saved, self.cell = time.monotonic(), 0.0, 0
        self.peak_memory_mb: float | None = None

    def execute(self, kernel: type) -> dict[str, Any]:
        """The part of the record that the execution decides: status and error."""
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.engines import papermill_engines

        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the record says it better
        self.save()
        done = threading.Event()
        threading.Thread(target=self._sample, args=(kernel, done), daemon=True).start()
        try:
            papermill_engines.execute_notebook_with_engine(
                None, self.notebook, kernel_name="python3", progress_bar=False,
                kernel_manager_class=kernel, timeout_func=self._remaining, coalesce_streams=True,
                on_cell_start=self._cell_started, on_cell_complete=self._cell_done,
            )  # fmt: skip
        except (CellTimeoutError, _OutOfTime):
            text = f"The notebook took longer than its {self.timeout:g} s."
            return self.ended("timeout", "TimeoutError", text)
        except DeadKernelError:
            text = "The kernel died: out of memory is the usual reason. A smaller profile or input?"
            return self.ended("failed", "DeadKernelError", f"{text} {kernel.last_words()}")
        except Exception as error:  # the runner's own failure is recorded with its place, not lost
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{error} ({Path(where.filename).name}:{where.lineno})"
            return self.ended("failed", type(error).__name__, text)
        finally:
            done.set()
        for number, cell in enumerate(self.notebook.cells, start=1):
            for output in cell.get("outputs", []):
                if output.output_type == "error" and "raises-exception" not in cell.metadata.tags:
                    self.cell, text = number, re.sub(r"\x1b\[[\d;]*m", "", output.evalue)
                    return self.ended("failed", output.ename, text)
        return {"status": "ok", "error": None}

    def ended(self, status: str, kind: str, message: str) -> dict[str, Any]:
        return {
            "status": status,
            "error": {"cell": self.cell, "type": kind, "message": message.strip()},
        }

    def _remaining(self, cell) -> int | None:
        left = (self.timeout or 0) - (time.monotonic() - self.start)
        return None if self.timeout is None else max(1, math.ceil(left))

    def _cell_started(self, cell, cell_index: int) -> None:
        self.cell = cell_index + 1
        if self.timeout is not None and time.monotonic() - self.start > self.timeout:
            raise _OutOfTime

    def _cell_done(self, cell, cell_index: int) -> None:
        if time.monotonic() - self.saved > 2:
            self.save()
        if self.progress:
            seconds = time.monotonic() - self.start
            self.progress(cell_index + 1, len(self.notebook.cells), seconds)

    def _sample(self, kernel: type, done: threading.Event) -> None:
        while not done.wait(0.25):
            with contextlib.suppress(psutil.Error, OSError, AttributeError):
                peak = _peak_memory(kernel.last.provisioner.pid)
                self.peak_memory_mb = max(self.peak_memory_mb or 0.0, round(peak / 1e6, 1))

    def scrubbed(self, value: Any) -> Any:
        """The value without the secrets, in any text inside it; keys and numbers stay."""
        if isinstance(value, dict):
            return type(value)({key: self.scrubbed(each) for key, each in value.items()})
        if isinstance(value, list):
            return [self.scrubbed(each) for each in value]
        for needle in self.needles if isinstance(value, str) else ():
            value = value.replace(needle, params.REDACTED)
        return value

    def save(self) -> None:
        """Write the notebook as far as it is, without secrets and timestamps."""
        self.saved = time.monotonic()
        tidy = copy.deepcopy(self.notebook)
        for part in (tidy, *tidy.cells):
            part.metadata.pop("papermill", None)
            part.metadata.pop("execution", None)
        files.write_text(self.folder / "notebook.ipynb", nbformat.writes(self.scrubbed(tidy)))


def _emptied(notebook: nbformat.NotebookNode) -> None:
    """Without outputs of an earlier run, and with the metadata that papermill's engine expects."""
    notebook.metadata["papermill"] = nbformat.NotebookNode()
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
        cell.metadata["papermill"] = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _peak_memory(pid: int) -> float:
    """The most memory the process has held so far, in bytes."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return 1024.0 * int(found[1]) if found else float(psutil.Process(pid).memory_info().rss)


def collect(notebook: nbformat.NotebookNode, mime: str) -> dict[str, dict]:
    """What outputs of this MIME type say, by name; a later one wins."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if isinstance(data := output.get("data", {}).get(mime), dict):
                found[str(data.get("name", "run"))] = {k: v for k, v in data.items() if k != "name"}
    return found


@contextlib.contextmanager
def _kernel_class() -> Iterator[type]:
    """A kernel manager for this very Python, over sockets in a folder of its own.

    A kernelspec of the user's could name another Python; TCP ports can collide between runs.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    short = "/tmp" if os.name != "nt" and len(tempfile.gettempdir()) > 60 else None  # for sockets
    folder = tempfile.TemporaryDirectory(prefix="llmnb-", dir=short, ignore_cleanup_errors=True)
    with folder as place, open(os.path.join(place, "stderr"), "wb") as log:

        class Kernel(AsyncKernelManager):
            last = None  # the running one, for measuring its memory

            def __init__(self, **options) -> None:
                super().__init__(**options)
                type(self).last = self
                self.connection_file = os.path.join(place, "kernel.json")
                self._kernel_spec = KernelSpec(argv=command, language="python")
                if os.name != "nt":
                    self.transport, self.ip = "ipc", os.path.join(place, "kernel")

            async def _async_start_kernel(self, **options) -> None:
                await super()._async_start_kernel(**options, stderr=log)

            start_kernel = _async_start_kernel

            @staticmethod
            def last_words() -> str:
                lines = Path(log.name).read_text("utf-8", "replace").splitlines()
                return lines[-1] if lines else ""

        yield Kernel
