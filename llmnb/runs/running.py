"""The commands that run notebooks, `llmnb run` and `llmnb sweep`, and what they print.

Everything heavy is imported inside the functions: `llmnb --help` answers at once.
"""

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

from llmnb import files

SECONDS_BETWEEN_LINES = 15  # of progress, where stdout is no terminal
SECONDS_BETWEEN_INDEXES = 30  # how often a sweep writes index.html
COUNT = click.IntRange(min=1)
PAIR_HELP = "set a parameter (see: llmnb list)"
CHOICES_HELP = "the values of a parameter, separated by commas"


def _shared_options(command: Callable) -> Callable:
    """The options of `llmnb run` and `llmnb sweep` alike."""
    options = (
        click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help=PAIR_HELP),
        click.option("-f", "file", metavar="FILE", help="parameters from a YAML file"),
        click.option("--profile", help="the same as -p profile"),
        click.option("--out", default="reports", metavar="DIR", help="default: reports"),
        click.option("--timeout", type=COUNT, metavar="S", help="stop a notebook after S seconds"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("names", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--all", "is_all", is_flag=True, help="every numbered notebook")
@click.option("--jobs", type=COUNT, default=1, metavar="N", help="run N notebooks at once")
@_shared_options
def run(names, is_all, jobs, pairs, file, profile, out, timeout) -> int:
    """Run notebooks, and write a report of each run.

    A notebook is named by number (01), name (01_concepts or concepts) or path.
    """
    from llmnb.runs import index, parameters, runner
    from llmnb.runs import sweep as sweeps

    values = _parameter_values(pairs, file, profile)
    paths = [parameters.find_notebook(name) for name in names]
    if is_all:
        named = [path.resolve() for path in paths]
        paths += [path for path in parameters.all_notebooks() if path.resolve() not in named]
    if not paths:
        raise parameters.ParameterError("Name a notebook (see: llmnb list), or give --all.")
    folder = _output_folder(out)
    for path in paths:  # check all of them before the first one starts
        parameters.resolve(parameters.read_notebook(path), values, path.stem)
    if jobs > 1:
        tasks = [task for path in paths for task in sweeps.plan(path, [values], timeout)]
        sweeps.check_outputs(tasks)
        return _run_tasks(tasks, folder, n_jobs=jobs, skip_finished=False)
    exit_code = 0
    for path in paths:
        line = _ProgressLine(path.stem)
        job = runner.Job(str(path), values, str(folder), timeout)
        try:
            record = runner.run(job, line.show_progress)
        finally:
            page = index.write_index(folder)
        if record["status"] != "ok":
            exit_code = 1
        line.show_end(record)
    print(page.resolve())
    return exit_code


def _output_folder(out: str) -> Path:
    """The folder of --out. Raises ParameterError where it holds somebody's web site."""
    from llmnb.runs import parameters

    folder = Path(out).expanduser()
    if (folder / "index.html").exists() and not (folder / "runs").is_dir():
        raise parameters.ParameterError(
            f"{out} holds an index.html that is no index of runs: give another folder as --out."
        )
    return folder


@click.command()
@click.argument("name", metavar="NOTEBOOK")
@click.option("-g", "choices", nargs=2, multiple=True, metavar="NAME V1,V2", help=CHOICES_HELP)
@click.option("--grid", metavar="FILE", help="a YAML file with lines NAME: [V1, V2]")
@click.option("--repeat", type=COUNT, default=1, metavar="N", help="run each setting with N seeds")
@click.option("--jobs", type=COUNT, metavar="N", help="run N at once (default: what fits)")
@click.option("--cluster", metavar="ADDRESS", help="run on a dask cluster")
@click.option("--dry-run", is_flag=True, help="list the runs and stop")
@_shared_options
def sweep(
    name, choices, grid, repeat, jobs, cluster, dry_run, pairs, file, profile, out, timeout
) -> int:
    """Run a notebook over a grid of parameters, and compare.

    Every combination of the values is run, on all cores or on a cluster (see docs/cluster.md).
    Runs that have already finished are skipped.
    """
    from llmnb.runs import parameters, redaction, workers
    from llmnb.runs import sweep as sweeps

    path = parameters.find_notebook(name)
    fixed = _parameter_values(pairs, file, profile)
    choices_by_name = files.read_settings(grid) if grid else {}
    names = [*fixed, *choices_by_name, *(key for key, _ in choices)]
    for key, n in Counter(names).items():
        if n > 1:
            raise parameters.ParameterError(f"{key} is given {n} times (-p, -f, -g): give it once.")
    choices_by_name |= {key: [v.strip() for v in values.split(",")] for key, values in choices}
    settings = [fixed | setting for setting in sweeps.grid(choices_by_name)]
    if repeat > 1:
        settings = sweeps.repeated(settings, repeat, path)
    folder = _output_folder(out)
    tasks = sweeps.plan(path, settings, timeout)
    sweeps.check_outputs(tasks, on_cluster=bool(cluster))
    if len(tasks) < len(settings):
        print(f"{len(settings) - len(tasks)} settings are duplicates and are left out.")
    if not dry_run:
        return _run_tasks(tasks, folder, cluster, jobs or workers.default_jobs())
    for task in tasks:
        stored = redaction.redacted(task.parameters)
        keys = [key for key in dict.fromkeys([*choices_by_name, "seed"]) if key in stored]
        values = ", ".join(f"{key} = {stored[key]}" for key in keys)
        print(f"{task.name}  {values}  {'done' if sweeps.is_finished(folder, task) else 'to run'}")
    return 0


def _run_tasks(tasks: list, out: Path, address=None, n_jobs=1, skip_finished=True) -> int:
    """Run the tasks with their progress on a line; returns the exit code."""
    from llmnb.runs import index
    from llmnb.runs import sweep as sweeps

    line = _ProgressLine(f"{len(tasks)} runs")
    outcomes = sweeps.run(tasks, out, address, n_jobs, line.show_sweep, skip_finished)
    n_failed = 0
    last_index = time.monotonic()
    try:
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                n_failed += outcome.status != "ok"
                line.show_outcome(outcome)
                if time.monotonic() - last_index > SECONDS_BETWEEN_INDEXES:
                    index.write_index(out)
                    last_index = time.monotonic()
    except KeyboardInterrupt:
        advice = "The same command runs the others." if skip_finished else ""
        print(f"\nStopped: {line.text}. {advice}")
        raise
    finally:
        page = index.write_index(out)
    print(f"{line.start_of_line}{line.text}")
    print(page.resolve())
    return 1 if n_failed else 0


def _parameter_values(pairs: tuple, file: str | None, profile: str | None) -> dict:
    """The values from the file, overridden by those of the command line."""
    from llmnb.runs import parameters

    given = [*pairs, *([("profile", profile)] if profile else [])]
    for name, n in Counter(name for name, _ in given).items():
        if n > 1:
            raise parameters.ParameterError(f"{name} is given {n} times: give it once.")
    return (files.read_settings(file) if file else {}) | dict(given)


class _ProgressLine:
    """A notebook's progress: one line that changes in a terminal, a line now and then elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = "nothing has finished"  # the latest progress of a sweep
        self.start_of_line = "\r\x1b[K" if sys.stdout.isatty() else ""
        self.last_print = time.monotonic()
        if not self.start_of_line:
            print(f"{name} ...", flush=True)

    def show_progress(self, cells_done: int, cells: int, seconds: float) -> None:
        """How far a notebook is."""
        self._show(f"{self.name}  cell {cells_done} of {cells}  {seconds:.0f} s")

    def show_sweep(self, progress) -> None:
        """How far a sweep is."""
        self.text = progress.text()
        self._show(self.text)

    def _show(self, text: str) -> None:
        if self.start_of_line:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line is not overwritten
            print(self.start_of_line + text[:width], end="", flush=True)
        elif time.monotonic() - self.last_print > SECONDS_BETWEEN_LINES:
            self.last_print = time.monotonic()
            print(text, flush=True)

    def show_outcome(self, outcome) -> None:
        """How a run of a sweep ended."""
        print(f"{self.start_of_line}{outcome.task.name}  {outcome.status}", flush=True)
        if outcome.message:
            print(f"    {outcome.message[:300]}")

    def show_end(self, record: dict) -> None:
        memory = record["peak_memory_mb"]
        text = f"{self.name}  {record['status']}  {record['seconds']:.0f} s"
        text += f"  {memory / 1000:.1f} GB" if memory else ""
        print(f"{self.start_of_line}{text}  {record['folder']}/report.html")
        if error := record["error"]:
            print(f"    cell {error['cell']}: {error['type']}: {error['message'][:300]}")
