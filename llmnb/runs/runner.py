"""Run one notebook with parameters: checked before, watched while it runs, recorded after.

papermill's engine executes; its metadata can't be trusted after a dead kernel or a time-out, so
the status comes from the exception.
"""

import contextlib
import copy
import datetime
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from llmnb import assets
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
    values = _with_profile(values)
    digest = params.digest(notebook, values)
    folder, attempt = _new_folder(Path(job.out) / "runs", f"{path.stem}-{digest}")
    record = _first_record(path, params.redacted(values), attempt)
    facts.write_json(folder / "run.json", record)

    secrets = {k: v for k, v in values.items() if params.is_secret(k) and isinstance(v, str) and v}
    params.inject(notebook, values)
    _emptied(notebook)
    start = time.monotonic()
    watch = _Watch(notebook, folder, secrets, start, job.timeout, progress)
    try:
        with _environment(secrets), _kernel_class() as kernel:
            record |= watch.execute(kernel)
    except KeyboardInterrupt:
        record |= {"status": "killed", "error": None}
        raise
    finally:
        record["seconds"] = round(time.monotonic() - start, 2)
        record["peak_memory_mb"] = watch.peak_memory_mb
        record["metrics"] = collect(notebook, METRIC_MIME)
        for said in collect(notebook, RUN_MIME).values():
            record["hardware"] |= said
        watch.save(force=True)
        facts.write_json(folder / "run.json", _without(secrets, record))
        report.write_report(folder)
    return record | {"folder": str(folder)}


def _with_profile(values: dict[str, Any]) -> dict[str, Any]:
    """ "auto" resolved, so that the record and the digest say what ran."""
    if isinstance(values.get("profile"), str):
        from llmnb import profiles

        try:
            values["profile"] = profiles.resolve(values["profile"]).name
        except ValueError as error:
            raise params.ParameterError(str(error)) from error
    return values


def _new_folder(runs: Path, name: str) -> tuple[Path, int]:
    """A folder of our own: a second attempt at the same digest gets a suffix."""
    runs.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        folder = runs / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
            return folder, attempt
        except FileExistsError:
            attempt += 1


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
        "source": {"git": facts.git_commit(path), "notebook_sha256": assets.sha256_of(path)},
        "error": None,
    }


class _Watch:
    """Executes the notebook, saves it as it grows, measures the kernel's memory."""

    def __init__(self, notebook, folder, secrets, start, timeout, progress) -> None:
        self.notebook, self.folder, self.secrets = notebook, folder, secrets
        self.start, self.timeout, self.progress = start, timeout, progress
        self.peak_memory_mb: float | None = None
        self._saved = 0.0

    def execute(self, kernel: type) -> dict[str, Any]:
        """The part of the record that the execution decides: status and error."""
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.engines import papermill_engines

        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the record says it better
        self.save(force=True)
        self._current = 0
        done = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(kernel, done), daemon=True)
        sampler.start()
        try:
            papermill_engines.execute_notebook_with_engine(
                None,
                self.notebook,
                kernel_name="python3",
                progress_bar=False,
                kernel_manager_class=kernel,
                timeout_func=self._remaining,
                coalesce_streams=True,
                on_cell_start=self._cell_started,
                on_cell_complete=self._cell_done,
            )
        except CellTimeoutError:
            text = f"The notebook took longer than its {self.timeout:.0f} s."
            return self._ended("timeout", "TimeoutError", text)
        except DeadKernelError:
            text = "The kernel died: out of memory is the usual reason. A smaller profile or input?"
            return self._ended("failed", "DeadKernelError", text)
        except Exception as error:  # the runner's own failure is recorded with its place, not lost
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{error} ({Path(where.filename).name}:{where.lineno})"
            return self._ended("failed", type(error).__name__, text)
        finally:
            done.set()
            sampler.join()
        return self._outcome()

    def _outcome(self) -> dict[str, Any]:
        for index, cell in enumerate(self.notebook.cells):
            for output in cell.get("outputs", []):
                if output.output_type == "error" and "raises-exception" not in _tags(cell):
                    self._current = index
                    return self._ended("failed", output.ename, _clean(output.evalue))
        return {"status": "ok", "error": None}

    def _ended(self, status: str, kind: str, message: str) -> dict[str, Any]:
        return {
            "status": status,
            "error": {"cell": self._current, "type": kind, "message": message},
        }

    def _remaining(self, cell) -> int | None:
        if self.timeout is None:
            return None
        return max(1, round(self.timeout - (time.monotonic() - self.start)))

    def _cell_started(self, cell, cell_index: int) -> None:
        self._current = cell_index

    def _cell_done(self, cell, cell_index: int) -> None:
        self.save()
        if self.progress:
            n = len(self.notebook.cells)
            self.progress(cell_index + 1, n, time.monotonic() - self.start)

    def _sample(self, kernel: type, done: threading.Event) -> None:
        import psutil

        while not done.wait(0.25):
            with contextlib.suppress(psutil.Error, OSError, AttributeError):
                peak = _peak_memory(kernel.last.provisioner.pid)
                self.peak_memory_mb = max(self.peak_memory_mb or 0.0, round(peak / 1e6, 1))

    def save(self, force: bool = False) -> None:
        """Write the notebook as far as it is, without secrets; at most every two seconds."""
        if not force and time.monotonic() - self._saved < 2:
            return
        self._saved = time.monotonic()
        text = nbformat.writes(_tidy(self.notebook))
        for secret in self.secrets.values():
            text = text.replace(json.dumps(secret)[1:-1], params.REDACTED)
        facts.write_text(self.folder / "notebook.ipynb", text)


def _emptied(notebook: nbformat.NotebookNode) -> None:
    """Without outputs of an earlier run, and with the metadata that papermill's engine expects."""
    notebook.metadata["papermill"] = nbformat.NotebookNode()
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
        cell.metadata["papermill"] = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def _clean(text: str) -> str:
    from nbconvert.filters import strip_ansi

    return strip_ansi(text)


def _peak_memory(pid: int) -> float:
    """The most memory the process has held so far, in bytes."""
    import psutil

    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    return float(psutil.Process(pid).memory_info().rss)


def _tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without papermill's and nbclient's timestamps, which differ in every run."""
    tidy = copy.deepcopy(notebook)
    tidy.metadata.pop("papermill", None)
    for cell in tidy.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return tidy


def collect(notebook: nbformat.NotebookNode, mime: str) -> dict[str, dict]:
    """What outputs of this MIME type say, by name; a later one wins."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(mime)
            if isinstance(data, dict):
                data = dict(data)
                found[str(data.pop("name", "run"))] = data
    return found


def _without(secrets: dict[str, str], record: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(record)
    for secret in secrets.values():
        text = text.replace(json.dumps(secret)[1:-1], params.REDACTED)
    return json.loads(text)


@contextlib.contextmanager
def _environment(secrets: dict[str, str]) -> Iterator[None]:
    """What the kernel inherits: secrets, and no debugger warnings on its stderr."""
    added = {params.secret_variable(name): value for name, value in secrets.items()}
    added["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kernel_class() -> Iterator[type]:
    """A kernel manager for this very Python, over sockets in a folder of its own.

    A kernelspec of the user's could name another Python; TCP ports can collide between runs.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    folder = tempfile.mkdtemp(prefix="llmnb-")
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
    )

    class Kernel(AsyncKernelManager):
        last = None  # the running one, for measuring its memory

        def __init__(self, **options) -> None:
            super().__init__(**options)
            type(self).last = self
            self._kernel_spec = spec
            if os.name != "nt":
                self.transport, self.ip = "ipc", os.path.join(folder, "kernel")

    try:
        yield Kernel
    finally:
        shutil.rmtree(folder, ignore_errors=True)
