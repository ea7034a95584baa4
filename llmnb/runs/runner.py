"""Run one notebook with parameters, and leave its outputs, a report and a record in a folder.

nbclient executes the cells. What it writes into the notebook can't be trusted after a dead kernel
or a timeout, so the status comes from the exception that it raises.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import math
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil

from llmnb import files, hardware
from llmnb.record import ANSWER_MIME, METRIC_MIME, RUN_MIME
from llmnb.runs import facts, kernels, records, redaction, report
from llmnb.runs import parameters as params

if TYPE_CHECKING:
    from nbclient import NotebookClient

SECONDS_BETWEEN_SAVES = 2  # of the notebook while it runs
SECONDS_BETWEEN_SAMPLES = 0.25  # of the kernel's memory
SECONDS_FOR_OUTPUTS = 60  # between a cell's end and its last output, on a busy machine
Progress = Callable[[int, int, float], None]  # cells done, cells in all, seconds


@dataclass(frozen=True)
class Job:
    """One run: plain values only, so that it can be sent to another process."""

    notebook: str
    parameters: dict[str, Any] = field(default_factory=dict)
    out: str = "reports"
    timeout: float | None = None  # seconds for the whole notebook
    # For a run on another machine than the user's, where a sweep sends it:
    source: dict[str, Any] | None = None  # the record's, computed on the user's machine
    working_folder: str | None = None  # of the kernel; None: that of this process
    aliases: dict[str, str] = field(default_factory=dict)  # path here: what is stored in its place


def run(
    job: Job, progress: Progress | None = None, is_cancelled: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Execute the job; returns its record, with the run's folder as "folder".

    The folder holds notebook.ipynb, report.html and run.json, for a failed run too. As soon as
    is_cancelled() is true, the kernel is killed. Raises ParameterError before anything runs. A
    notebook that fails raises nothing: its record says so.
    """
    path = params.find_notebook(job.notebook)
    notebook = params.read_notebook(path)
    values = params.resolve(notebook, job.parameters, path.stem)
    secrets = redaction.secrets(values)
    name = f"{path.stem}-{params.digest(notebook, values)}"
    folder, attempt = _new_folder(Path(job.out), name)
    record = _first_record(path, redaction.redacted(values), attempt)
    record["source"] = job.source or source_of(path)
    files.write_json(folder / "run.json", record)

    params.inject(notebook, values)
    for cell in notebook.cells:  # no outputs of an earlier run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execution = _Execution(notebook, folder, job, secrets, progress, is_cancelled)
    variables = {redaction.secret_variable(key): secret for key, secret in secrets.items()}
    variables["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # no debugger warnings on stderr
    variables["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", hardware.GOMP_SPINCOUNT)
    try:
        with kernels.kernel_manager() as manager:
            record |= execution.execute(manager, dict(os.environ) | variables)
    except KeyboardInterrupt:
        record |= execution.outcome("killed", "KeyboardInterrupt", "The run was interrupted.")
        raise
    finally:
        with _ignoring_interrupts():  # a second Ctrl-C must not cost the record
            record["seconds"] = round(time.monotonic() - execution.start, 2)
            record["peak_memory_mb"] = execution.peak_memory_mb
            record["metrics"] = collect(notebook.cells, METRIC_MIME)
            record["answer"] = collect(notebook.cells, ANSWER_MIME).get("run")
            record["hardware"] |= collect(notebook.cells, RUN_MIME).get("run", {})
            record = execution.as_stored(record)
            files.write_json(folder / "run.json", record)  # first: the disk may be full
            execution.save()
            report.write_report(folder)
    return record | {"folder": str(folder)}


def _new_folder(out: Path, name: str) -> tuple[Path, int]:
    """A new folder and the number of the attempt; a second attempt at a name gets a suffix."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for folder, attempt in records.attempt_folders(out, name):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder, attempt


def _first_record(path: Path, values: dict[str, Any], attempt: int) -> dict[str, Any]:
    return {
        "schema": records.SCHEMA,
        "notebook": path.stem,
        "status": "running",
        "parameters": values,
        "metrics": {},
        "answer": None,
        "attempt": attempt,
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "peak_memory_mb": None,
        "hardware": facts.hardware(),
        "versions": facts.versions(),
        "error": None,
    }


def source_of(path: Path) -> dict[str, Any]:
    """The notebook's commit and sha256, and the digest of its code and the package's."""
    return {
        "git": facts.git_commit(path),
        "notebook_sha256": files.sha256_of(path),
        "code": params.code_digest(params.read_notebook(path)),
    }


class _OutOfTime(Exception):
    """The time limit was reached between two cells."""


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ctrl-C and the like do nothing inside; afterwards the old handlers are back, always."""
    if threading.current_thread() is not threading.main_thread():  # which gets no signal
        yield
        return
    signals = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in signals if number}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: it wasn't installed from Python, so it can't be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Execution:
    """Executes the notebook, saves it while it grows, and measures the kernel's memory."""

    def __init__(self, notebook, folder, job, secrets, progress, is_cancelled) -> None:
        self.notebook = notebook
        self.folder = folder
        stored = dict.fromkeys(secrets.values(), redaction.REDACTED) | dict(job.aliases)
        by_spelling = {
            form: to for text, to in stored.items() for form in redaction.spellings(text)
        }
        # The longest first: one secret may be the beginning of another.
        self.replacements = sorted(by_spelling.items(), key=lambda pair: len(pair[0]), reverse=True)
        self.timeout = job.timeout
        self.working_folder = job.working_folder
        self.progress = progress
        self.is_cancelled = is_cancelled
        self.start = time.monotonic()
        self.last_save = 0.0
        self.cell_number = 0  # of the cell that runs, counted from 1
        self.peak_memory_mb: float | None = None

    def execute(self, manager, environment: dict[str, str]) -> dict[str, Any]:
        """Run all cells in a kernel of the manager; returns the record's "status" and "error"."""
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

        self.save()
        client = NotebookClient(
            self.notebook,
            km=manager,
            timeout_func=self._seconds_left,
            coalesce_streams=True,
            record_timing=False,
            iopub_timeout=SECONDS_FOR_OUTPUTS,
            raise_on_iopub_timeout=True,
        )
        log = Path(manager.connection_file).with_name("stderr")
        is_done = threading.Event()
        sample = functools.partial(self._sample_memory, manager, is_done)
        threading.Thread(target=sample, daemon=True).start()
        try:
            options = {"env": environment, "cwd": self.working_folder, "cleanup_kc": True}
            with log.open("wb") as stderr, client.setup_kernel(stderr=stderr, **options):
                self._execute_cells(client)
        except CellExecutionError as error:
            message = re.sub(r"\x1b\[[\d;]*m", "", error.evalue)
            message = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", message)  # they steer a terminal
            return self.outcome("failed", error.ename, message)
        except (CellTimeoutError, _OutOfTime):
            message = "The outputs of a cell stopped arriving."
            if self.timeout is not None and time.monotonic() - self.start >= self.timeout:
                message = f"The notebook took longer than its {self.timeout:g} s."
            return self.outcome("timeout", "TimeoutError", message)
        except DeadKernelError:
            if self.is_cancelled():
                return self.outcome("killed", "KeyboardInterrupt", "The run was cancelled.")
            message = "The kernel died. If the memory ran out, try a smaller profile or input."
            message += " " + log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
            return self.outcome("failed", "DeadKernelError", message)
        except Exception as error:  # a failure of the runner is recorded too, with its place
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{error} ({Path(place.filename).name}:{place.lineno})"
            return self.outcome("failed", type(error).__name__, message)
        finally:
            is_done.set()
        return {"status": "ok", "error": None}

    def _execute_cells(self, client: NotebookClient) -> None:
        n_cells = len(self.notebook.cells)
        for number, cell in enumerate(self.notebook.cells, start=1):
            self.cell_number = number
            if self.timeout is not None and time.monotonic() - self.start > self.timeout:
                raise _OutOfTime
            client.execute_cell(cell, number - 1)
            if time.monotonic() - self.last_save > SECONDS_BETWEEN_SAVES:
                self.save()
            if self.progress:
                with contextlib.suppress(OSError):  # nobody reads it any more: llmnb run | head
                    self.progress(number, n_cells, time.monotonic() - self.start)

    def outcome(self, status: str, kind: str, message: str) -> dict[str, Any]:
        """The record's "status" and "error", for a run that ended in the current cell."""
        error = {"cell": self.cell_number, "type": kind, "message": message.strip()}
        return {"status": status, "error": error}

    def _seconds_left(self, cell: nbformat.NotebookNode) -> int | None:
        if self.timeout is None:
            return None
        return max(1, math.ceil(self.timeout - (time.monotonic() - self.start)))

    def _sample_memory(self, manager, is_done: threading.Event) -> None:
        while not is_done.wait(SECONDS_BETWEEN_SAMPLES):
            with contextlib.suppress(psutil.Error, OSError, AttributeError):
                pid = manager.provisioner.pid
                if pid is None:  # it starts; psutil would take None for this process
                    continue
                if self.is_cancelled():
                    psutil.Process(pid).kill()
                peak_bytes = kernels.peak_memory(pid)
                self.peak_memory_mb = max(self.peak_memory_mb or 0.0, round(peak_bytes / 1e6, 1))

    def as_stored(self, value: Any) -> Any:
        """The value without secrets and aliased paths in its texts; keys and numbers stay."""
        if isinstance(value, dict):
            return type(value)({key: self.as_stored(v) for key, v in value.items()})
        if isinstance(value, list):
            return [self.as_stored(item) for item in value]
        if isinstance(value, str):
            for form, replacement in self.replacements:
                value = value.replace(form, replacement)
        return value

    def save(self) -> None:
        """Write the notebook as it is so far, without secrets."""
        self.last_save = time.monotonic()
        text = nbformat.writes(self.as_stored(self.notebook))
        files.write_text(self.folder / "notebook.ipynb", text)


def collect(cells: list[dict], mime: str) -> dict[str, dict]:
    """The data of this MIME type in the cells' outputs, by their "name"; a later one wins.

    Data without a name is found under "run".
    """
    by_name = {}
    for cell in cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(mime)
            if isinstance(data, dict):
                name = str(data.get("name", "run"))
                by_name[name] = {key: value for key, value in data.items() if key != "name"}
    return by_name
