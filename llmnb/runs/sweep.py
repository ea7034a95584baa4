"""A sweep: runs over a grid of parameters, on all cores or on a cluster.

A run's identity is its digest. A run that finished is skipped, so the same command goes on where
an earlier one stopped, for whatever reason. A run's folder appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from llmnb import files
from llmnb.runs import parameters as params
from llmnb.runs import records, report, runner, workers
from llmnb.runs.workers import Task

SECONDS_BETWEEN_PROGRESS = 2.0
TASKS_PER_WORKER = 2  # sent ahead, so that no worker waits for its next one


def grid(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values: {"lr": [1, 2], "seed": [0, 1]} gives four.

    Raises ParameterError where a parameter has no list of values.
    """
    for name, values in choices.items():
        if not isinstance(values, list) or not values:
            raise params.ParameterError(
                f"{name}: a grid needs a list of values, as in [1e-4, 3e-4]; got {values!r}."
            )
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def repeated(settings: list[dict[str, Any]], n: int, path: Path) -> list[dict[str, Any]]:
    """Every setting n times, with its seed (or the notebook's own) and the next ones.

    Raises ParameterError where the notebook has no seed.
    """
    default = params.declared(params.read_notebook(path)).get("seed")
    seeds = [default, *(setting["seed"] for setting in settings if "seed" in setting)]
    if not all(re.fullmatch(r"-?\d+", str(seed)) for seed in seeds):
        raise params.ParameterError(
            f"--repeat needs {path.stem} to have a parameter 'seed' with whole numbers; it has: "
            f"{', '.join(map(repr, seeds))}."
        )
    return [
        setting | {"seed": int(setting.get("seed", default)) + number}
        for setting in settings
        for number in range(n)
    ]


def plan(path: Path, settings: list[dict], timeout: float | None = None) -> list[Task]:
    """A task for every different setting of a notebook, in their order; all are checked.

    Raises ParameterError for the first setting that the notebook can't run with.
    """
    notebook = params.read_notebook(path)
    text = path.read_text(encoding="utf-8")
    source = runner.source_of(path)
    digest = params.package_digest()
    tasks = {}
    for setting in settings:
        values = params.resolve(notebook, setting, path.stem)
        name = f"{path.stem}-{params.digest(notebook, values)}"
        tasks[name] = Task(name, path.stem, text, values, digest, source, timeout)
    return list(tasks.values())


def check_outputs(tasks: list[Task], on_cluster: bool = False) -> None:
    """Raises ParameterError where runs would write to one place, or to another machine's disk.

    On a cluster, also where inputs are too large to be sent.
    """
    for task in tasks if on_cluster else []:
        workers.check_inputs(task.parameters)
    outputs = [
        (name, os.path.abspath(value))
        for task in tasks
        for name, value in task.parameters.items()
        if value and params.is_output(name, value)
    ]
    n_writers = Counter(path for _, path in outputs)
    for name, path in outputs:
        if on_cluster:
            reason = "would be written to a worker's disk, not here"
        elif n_writers[path] > 1:
            reason = "would be written by several runs"
        else:
            continue
        raise params.ParameterError(f"{path} {reason}: leave out the parameter {name!r}.")


def is_finished(out: Path, task: Task) -> bool:
    """Whether this run has already finished, with status ok."""
    folders = [out / "runs" / task.name, *out.glob(f"runs/{glob.escape(task.name)}-*")]
    return any(records.read_record(folder)["status"] == "ok" for folder in folders)


@dataclass
class Progress:
    """How far a sweep is."""

    total: int
    skipped: int = 0
    done: int = 0  # in this sweep, failed ones included
    failed: int = 0
    running: int = 0
    workers: int = 0
    seconds: float = 0.0  # since the start
    seconds_at_last_end: float = 0.0  # from the start until the latest run ended

    def text(self) -> str:
        """One line for people, with an estimate of the remaining time after the first run."""
        parts = [f"{self.skipped + self.done} of {self.total} runs done", f"{self.running} running"]
        if self.skipped:
            parts.append(f"{self.skipped} from before")
        parts.append(f"{self.failed} failed")
        remaining = self.total - self.skipped - self.done
        if remaining and not self.workers:
            parts.append("waiting for a worker")
        elif self.done and remaining:
            since_last = self.seconds - self.seconds_at_last_end
            seconds = max(0.0, self.seconds_at_last_end / self.done * remaining - since_last)
            parts.append(f"about {records.duration_text(seconds)} left")
        return ", ".join(parts)


@dataclass(frozen=True)
class Outcome:
    """How one run ended. folder: None for a run that left nothing, because its worker failed."""

    task: Task
    status: str
    folder: Path | None
    message: str | None  # what went wrong


def run(
    tasks: list[Task],
    out: Path,
    address: str | None = None,
    n_jobs: int = 1,
    show: Callable[[Progress], None] = lambda progress: None,
    skip_finished: bool = True,
) -> Iterator[Outcome]:
    """Execute the tasks, and yield each outcome when its folder in out/runs is complete.

    address: a scheduler's, or None for n_jobs processes here. Raises SweepError where no cluster
    can be reached, and OSError where out can't be written: then the other runs are stopped.
    """
    (out / "runs").mkdir(
        parents=True, exist_ok=True
    )  # so `llmnb run` takes out for a folder of runs
    _remove_unfinished(out)
    waiting = [task for task in tasks if not (skip_finished and is_finished(out, task))]
    progress = Progress(len(tasks), skipped=len(tasks) - len(waiting))
    if not waiting:
        show(progress)
        return
    n_jobs = min(n_jobs, len(waiting))
    client = workers.connect(address, n_jobs)
    try:
        yield from _run(client, waiting[::-1], out, progress, show, sends_inputs=bool(address))
    finally:  # closing the client cancels its tasks, which ends their kernels
        cluster = client.cluster
        client.close()
        if address is None:
            cluster.close()


def _run(client, waiting, out, progress, show, sends_inputs) -> Iterator[Outcome]:
    """The loop of a sweep. waiting: the tasks in reverse, because pop takes the last."""
    from distributed import CancelledError, wait

    tasks_of = {}  # by their futures
    start = time.monotonic()
    while waiting or tasks_of:
        progress.workers = len(client.nthreads())
        while waiting and len(tasks_of) < TASKS_PER_WORKER * max(1, progress.workers):
            task = waiting.pop()
            if sends_inputs:
                task = replace(task, inputs=workers.read_inputs(task.parameters))
            future = client.submit(workers.execute, task, pure=False)
            tasks_of[future] = task
        progress.running = min(len(tasks_of), progress.workers)
        progress.seconds = time.monotonic() - start
        show(progress)
        # A run that the scheduler cancelled is an outcome too: `wait` raises for it.
        with contextlib.suppress(TimeoutError, CancelledError):
            wait(list(tasks_of), SECONDS_BETWEEN_PROGRESS, "FIRST_COMPLETED")
        for future in [future for future in tasks_of if future.status != "pending"]:
            outcome = _outcome(out, tasks_of.pop(future), future)
            progress.done += 1
            progress.failed += outcome.status != "ok"
            progress.seconds_at_last_end = time.monotonic() - start
            yield outcome
    progress.running = 0
    show(progress)


def _outcome(out: Path, task: Task, future: Any) -> Outcome:
    if future.status != "finished":
        # For example, a worker died repeatedly, its disk was full, or its llmnb is another version.
        message = "The scheduler cancelled it."
        if future.status == "error":
            message = f"{type(future.exception()).__name__}: {future.exception()}"
        return Outcome(task, "failed", None, message)
    folder = store(out, task.name, future.result())
    record = records.read_record(folder)
    error = record["error"]
    message = error and f"cell {error['cell']}: {error['type']}: {error['message']}"
    return Outcome(task, record["status"], folder, message)


def store(out: Path, name: str, contents: dict[str, bytes]) -> Path:
    """A new folder in out/runs with these files; a second attempt at a name gets a suffix.

    It is written to a temporary folder in out, and renamed when it is complete. Raises OSError.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".sweep-{os.getpid()}-{platform.node()}-", dir=out))
    try:
        for file, content in contents.items():
            (partial / file).write_bytes(content)
        partial.chmod(0o755)
        for folder, attempt in records.attempt_folders(out, name):
            if folder.exists():
                continue
            if attempt > 1:
                record = json.loads(contents["run.json"]) | {"attempt": attempt}
                files.write_json(partial / "run.json", record)
                report.write_report(partial)
            try:
                return partial.rename(folder)
            except OSError:
                if not folder.exists():  # else another process came first
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_unfinished(out: Path) -> None:
    """Remove the folders that sweeps of this machine were writing when they were killed."""
    for partial in out.glob(f".sweep-*-{glob.escape(platform.node())}-*"):
        pid = partial.name.split("-")[1]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)) or int(pid) == os.getpid():
            shutil.rmtree(partial, ignore_errors=True)
