"""The commands that run notebooks, `llmnb run` and `llmnb sweep`, and what they print.

Everything heavy is imported inside the functions: `llmnb --help` answers at once.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

from llmnb import files

SECONDS_BETWEEN_LINES = 15  # of progress, where the output is not a terminal
SECONDS_BETWEEN_INDEXES = 30  # the page is written again while a sweep runs


def add_run(commands: argparse._SubParsersAction) -> None:
    """Add `llmnb run` to the commands."""
    subparser = commands.add_parser(
        "run",
        help="run notebooks, and write a report of each run",
        description="Run notebooks: by number (01), name (01_concepts or concepts) or path.",
    )
    subparser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    subparser.add_argument("--all", action="store_true", help="every numbered notebook")
    subparser.add_argument("--jobs", type=_count, default=1, metavar="N", help="so many at once")
    _add_parameters(subparser)
    subparser.set_defaults(command=_run)


def add_sweep(commands: argparse._SubParsersAction) -> None:
    """Add `llmnb sweep` to the commands."""
    subparser = commands.add_parser(
        "sweep",
        help="run a notebook over a grid of parameters, and compare",
        description="Run a notebook with every combination of the values, on all cores or on a "
        "cluster (see docs/cluster.md). What finished before is skipped.",
    )
    subparser.add_argument("notebook", metavar="NOTEBOOK")
    subparser.add_argument(
        "-g",
        dest="choices",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "V1,V2"),
        help="the values of a parameter, separated by commas",
    )
    subparser.add_argument("--grid", metavar="FILE", help="NAME: [V1, V2] from a YAML file")
    subparser.add_argument(
        "--repeat", type=_count, default=1, metavar="N", help="run each setting with N seeds"
    )
    subparser.add_argument(
        "--jobs", type=_count, metavar="N", help="runs at once (default: by cores and memory)"
    )
    subparser.add_argument("--cluster", metavar="ADDRESS", help="of a dask scheduler")
    subparser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    _add_parameters(subparser)
    subparser.set_defaults(command=_sweep)


def _add_parameters(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter (see: llmnb list)",
    )
    subparser.add_argument("-f", dest="file", metavar="FILE", help="parameters from a YAML file")
    subparser.add_argument("--profile", help="the same as -p profile")
    subparser.add_argument("--out", default="reports", metavar="DIR", help="default: reports")
    subparser.add_argument(
        "--timeout", type=_seconds, metavar="S", help="seconds a notebook may take (default: none)"
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return seconds


def _run(options: argparse.Namespace) -> int:
    from llmnb.runs import index, parameters, runner, sweep

    values = _parameter_values(options)
    paths = [parameters.find_notebook(name) for name in options.notebooks]
    if options.all:
        paths += [path for path in parameters.all_notebooks() if path not in paths]
    if not paths:
        raise parameters.ParameterError("Name a notebook (see: llmnb list), or give --all.")
    out = _output_folder(options)
    for path in paths:  # check all of them before the first one starts
        parameters.resolve(parameters.read_notebook(path), values, path.stem)
    if options.jobs > 1:
        tasks = [task for path in paths for task in sweep.plan(path, [values], options.timeout)]
        return _run_tasks(tasks, out, n_jobs=options.jobs, skip_finished=False)
    exit_code = 0
    for path in paths:
        line = _ProgressLine(path.stem)
        job = runner.Job(str(path), values, options.out, options.timeout)
        try:
            record = runner.run(job, line.show_progress)
        finally:
            page = index.write_index(out)
        if record["status"] != "ok":
            exit_code = 1
        line.show_end(record)
    print(page.resolve())
    return exit_code


def _output_folder(options: argparse.Namespace) -> Path:
    """The folder of --out. Raises ParameterError where it holds somebody's web site."""
    from llmnb.runs import parameters

    out = Path(options.out)
    if (out / "index.html").exists() and not (out / "runs").is_dir():
        raise parameters.ParameterError(
            f"{out} holds an index.html that is no index of runs: give another folder as --out."
        )
    return out


def _sweep(options: argparse.Namespace) -> int:
    from llmnb.runs import parameters, sweep, workers

    path = parameters.find_notebook(options.notebook)
    fixed = _parameter_values(options)
    choices = files.read_settings(options.grid) if options.grid else {}
    choices |= {name: values.split(",") for name, values in options.choices}
    if both := sorted(fixed.keys() & choices.keys()):
        raise parameters.ParameterError(f"{both[0]} has one value (-p) and several (-g).")
    settings = [fixed | setting for setting in sweep.grid(choices)]
    if options.repeat > 1:
        settings = sweep.repeated(settings, options.repeat, path)
    out = _output_folder(options)
    tasks = sweep.plan(path, settings, options.timeout, bool(options.cluster))
    if len(tasks) < len(settings):
        print(f"{len(settings) - len(tasks)} settings are the same as others, and run once.")
    if not options.dry_run:
        n_jobs = options.jobs or workers.default_jobs()
        return _run_tasks(tasks, out, options.cluster, n_jobs)
    names = dict.fromkeys([*choices, "seed"])
    for task in tasks:
        stored = parameters.redacted(task.parameters)
        values = ", ".join(f"{name} = {stored[name]}" for name in names if name in stored)
        print(f"{task.name}  {values}  {'done' if sweep.is_finished(out, task) else 'to run'}")
    return 0


def _run_tasks(tasks: list, out: Path, address=None, n_jobs=1, skip_finished=True) -> int:
    """Run the tasks with their progress on a line; returns the exit code."""
    from llmnb.runs import index, sweep

    line = _ProgressLine(f"{len(tasks)} runs")
    outcomes = sweep.run(tasks, out, address, n_jobs, line.show_sweep, skip_finished)
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
        print(f"\nStopped: {line.text}. The same command runs the others.")
        raise
    finally:
        page = index.write_index(out)
    print(f"{line.start_of_line}{line.text}")
    print(page.resolve())
    return 1 if n_failed else 0


def _parameter_values(options: argparse.Namespace) -> dict:
    """The values from the file, overridden by those of the command line."""
    values = files.read_settings(options.file) if options.file else {}
    values |= dict(options.parameters)
    if options.profile:
        values["profile"] = options.profile
    return values


class _ProgressLine:
    """A notebook's progress: one line that changes in a terminal, a line now and then elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""  # of a sweep, how far it is
        self.start_of_line = "\r\x1b[K" if sys.stdout.isatty() else ""
        self.last_print = time.monotonic()
        if not self.start_of_line:
            print(f"{name} ...", flush=True)

    def show_progress(self, cells_done: int, cells: int, seconds: float) -> None:
        text = f"{self.name}  cell {cells_done} of {cells}  {seconds:.0f} s"
        if self.start_of_line:
            print(self.start_of_line + text, end="", flush=True)
        elif time.monotonic() - self.last_print > SECONDS_BETWEEN_LINES:
            self.last_print = time.monotonic()
            print(text, flush=True)

    def show_sweep(self, progress) -> None:
        """How far a sweep is."""
        self.text = progress.text()
        if self.start_of_line:
            print(self.start_of_line + self.text, end="", flush=True)
        elif time.monotonic() - self.last_print > SECONDS_BETWEEN_LINES:
            self.last_print = time.monotonic()
            print(self.text, flush=True)

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
