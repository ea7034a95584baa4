"""Where a sweep's runs are executed: workers of dask.distributed, here or on other machines.

A run travels by content: the notebook, its parameters and the files that they name go out, and the
files of its folder come back. So client and workers need no disk in common.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llmnb import LlmnbError, hardware
from llmnb.runs import parameters as params
from llmnb.runs import runner

if TYPE_CHECKING:
    import distributed

CONNECTION_SECONDS = 20
MEMORY_GB_PER_RUN = 4  # what a run of the cpu profile may need at its peak
MAX_INPUT_BYTES = 2_000_000_000  # of the files that a run's parameters name
_one_run_at_a_time = threading.Lock()  # also where a worker was started with several threads


class SweepError(LlmnbError, RuntimeError):
    """A sweep that can't start or go on; the message says why, and what to do."""


@dataclass(frozen=True)
class Task:
    """A run as it travels to a worker: plain values and content."""

    name: str  # of the run's folder: the notebook and the digest
    stem: str  # the notebook's name
    notebook: str  # its JSON
    parameters: dict[str, Any]
    package: str  # the digest of the package's sources, which must be the worker's too
    source: dict[str, Any]
    timeout: float | None = None
    # For each path in the parameters, its files by their names below it; "." for a single file.
    inputs: dict[str, dict[str, bytes]] = field(default_factory=dict)


def check_inputs(values: dict[str, Any]) -> None:
    """Raises ParameterError where the files that the parameters name are too large to travel."""
    for path, paths in params.inputs(values).items():
        n_bytes = sum(file.stat().st_size for file in paths)
        if n_bytes > MAX_INPUT_BYTES:
            raise params.ParameterError(
                f"{path} has {n_bytes / 1e9:.1f} GB; what a run reads travels to the workers up to "
                f"{MAX_INPUT_BYTES / 1e9:.0f} GB. Make it smaller, or sweep without --cluster."
            )


def read_inputs(values: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """The files that the parameters name, as Task.inputs holds them."""
    contents = {}
    for path, paths in params.inputs(values).items():
        root = Path(path).expanduser()
        contents[path] = {file.relative_to(root).as_posix(): file.read_bytes() for file in paths}
    return contents


def write_inputs(inputs: dict[str, dict[str, bytes]], folder: Path) -> dict[str, str]:
    """Put the inputs below the folder; returns where an absolute path lies now.

    A relative path lies below the folder as it did on the client, so its text stays as it is.
    """
    moved = {}
    for number, (path, contents) in enumerate(inputs.items()):
        is_elsewhere = Path(path).is_absolute() or path[0] == "~" or ".." in Path(path).parts
        target = folder / f"input-{number}" / Path(path).name if is_elsewhere else folder / path
        for name, content in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        if is_elsewhere:
            moved[path] = str(target)
    return moved


def execute(task: Task) -> dict[str, bytes]:
    """Run the task on this worker; returns the files of its folder, by name.

    Raises SweepError where this machine has another version of the package.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_cancelled() -> bool:
        """Whether nobody waits for the result any more: after Ctrl-C, or when the client died."""
        state = worker.state.tasks.get(key)
        is_closing = worker.status.name in ("closing", "closed", "failed")
        return is_closing or state is None or state.state == "cancelled"

    if task.package != params.package_digest():
        raise SweepError(f"The worker {worker.address} has another version of llmnb.")
    temporary = tempfile.TemporaryDirectory(prefix="llmnb-run-", dir=worker.local_directory)
    with _one_run_at_a_time, temporary as folder:
        moved = write_inputs(task.inputs, Path(folder, "files"))
        path = Path(folder, f"{task.stem}.ipynb")
        path.write_text(task.notebook, encoding="utf-8")
        job = runner.Job(
            str(path),
            _with_paths(task.parameters, moved),
            out=folder,
            timeout=task.timeout,
            source=task.source,
            working_folder=str(Path(folder, "files")) if task.inputs else None,
            aliases={new: old for old, new in moved.items()},
        )
        record = runner.run(job, is_cancelled=is_cancelled)
        return {file.name: file.read_bytes() for file in Path(record["folder"]).iterdir()}


def _with_paths(values: dict[str, Any], moved: dict[str, str]) -> dict[str, Any]:
    """The parameters with the paths of this machine."""

    def here(value: Any) -> Any:
        if isinstance(value, list):
            return [here(item) for item in value]
        return moved.get(value, value) if isinstance(value, str) else value

    return {name: here(value) for name, value in values.items()}


def default_jobs() -> int:
    """How many runs this machine takes at once: by GPUs, or else by cores and memory."""
    if hardware.has_cuda():
        return len(_gpus())
    gigabytes = psutil.virtual_memory().total / 1e9
    return max(1, min((os.cpu_count() or 1) // 2, int(gigabytes // MEMORY_GB_PER_RUN)))


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [] without any."""
    if not hardware.has_cuda():
        return []
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(n) for n in range(torch.cuda.device_count())]


def connect(address: str | None, n_jobs: int) -> distributed.Client:
    """A client of the scheduler at the address, or of a new cluster on this machine.

    Raises SweepError where no scheduler answers.
    """
    import distributed

    for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the sweep reports what matters
    if address is None:
        client = distributed.Client(_local_cluster(n_jobs))
        client.register_plugin(_without_interrupts())
        return client
    try:
        return distributed.Client(address, timeout=CONNECTION_SECONDS)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"No scheduler answers at {address}. Start one (dask scheduler), give the address "
            f"that it prints as --cluster, and see docs/cluster.md."
        ) from error


def _without_interrupts() -> distributed.WorkerPlugin:
    """Ctrl-C reaches all processes of a terminal, but only the client is to act on it."""
    from distributed import WorkerPlugin

    class WithoutInterrupts(WorkerPlugin):
        def setup(self, worker: distributed.Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return WithoutInterrupts()


def _local_cluster(n_jobs: int) -> distributed.SpecCluster:
    """A scheduler in this process, and n worker processes that share the cores and the GPUs.

    When this process dies, its workers notice and end, and their kernels after them.
    """
    from distributed import Nanny, Scheduler, SpecCluster

    threads = str(max(1, (os.cpu_count() or 1) // n_jobs))
    gpus = _gpus()
    workers = {}
    for number in range(n_jobs):
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        options = {"nthreads": 1, "memory_limit": 0, "env": variables, "host": "127.0.0.1"}
        workers[number] = {"cls": Nanny, "options": options | {"silence_logs": logging.CRITICAL}}
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": ":0"}
    return SpecCluster(
        workers=workers,
        scheduler={"cls": Scheduler, "options": scheduler},
        silence_logs=logging.CRITICAL,
    )
