"""The `llmnb` command: list, copy, fetch, run, report."""

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from llmnb import LlmnbError, __version__, models


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where a run failed, 2 where nothing was run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if number := getattr(signal, name, None):
            signal.signal(number, _interrupt)
    try:
        return options.command(options)
    except BrokenPipeError:  # llmnb list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a folder that is a file, a full disk: nothing of ours to trace
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

    listing = commands.add_parser("list", help="the notebooks and their parameters")
    listing.set_defaults(command=_list)

    copying = commands.add_parser("copy", help="copy the notebooks into a folder, to work in them")
    copying.add_argument("folder", metavar="DIR")
    copying.set_defaults(command=_copy)

    fetching = commands.add_parser("fetch", help="fetch models and data into the cache")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="default: the profile's")
    fetching.add_argument("--profile", default="auto", help="smoke, cpu, gpu (default: auto)")
    fetching.set_defaults(command=_fetch)

    running = commands.add_parser(
        "run",
        help="run notebooks, with a report each",
        description="Run notebooks: by number (01), name (01_concepts) or path.",
    )
    running.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    running.add_argument("--all", action="store_true", help="every numbered notebook")
    running.add_argument(
        "-p",
        dest="pairs",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter (see: llmnb list)",
    )
    running.add_argument("-f", dest="file", metavar="FILE", help="parameters from a YAML file")
    running.add_argument("--profile", help="the same as -p profile")
    running.add_argument("--out", default="reports", metavar="DIR", help="default: reports")
    running.add_argument(
        "--timeout", type=_seconds, metavar="S", help="seconds a notebook may take (default: none)"
    )
    running.set_defaults(command=_run)

    reporting = commands.add_parser("report", help="make the reports and their index anew")
    reporting.add_argument("--out", default="reports", metavar="DIR")
    reporting.set_defaults(command=_report)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


def _list(options: argparse.Namespace) -> int:
    from llmnb.runs import parameters

    notebooks = parameters.all_notebooks()
    if not notebooks:
        places = ", ".join(str(folder) for folder in parameters.notebook_folders())
        print(f"No notebooks in: {places}", file=sys.stderr)
        return 1
    for path in notebooks:
        notebook = parameters.read_notebook(path)
        title = next((c.source for c in notebook.cells if c.source.startswith("# ")), path.stem)
        print(f"{path.stem}  {title.splitlines()[0].lstrip('# ')}")
        for name, default in parameters.declared(notebook).items():
            print(f"    -p {name} {default!r}")
    return 0


def _copy(options: argparse.Namespace) -> int:
    from llmnb.runs import parameters

    folder, kept = Path(options.folder).expanduser(), 0
    folder.mkdir(parents=True, exist_ok=True)
    for path in parameters.all_notebooks():
        place = folder / path.name
        if not place.exists():
            shutil.copyfile(path, place)
            print(place)
        elif place.read_bytes() != path.read_bytes():  # it may hold somebody's work
            kept += 1
            print(f"{place} is there and differs: left as it is", file=sys.stderr)
    return 1 if kept else 0


def _fetch(options: argparse.Namespace) -> int:
    from llmnb import assets, profiles

    for name in options.names or profiles.resolve(options.profile).assets:
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
    return 0


def _run(options: argparse.Namespace) -> int:
    from llmnb.runs import index, parameters, runner

    given = _given(options)
    paths = [parameters.find_notebook(name) for name in options.notebooks]
    if options.all:
        paths += [path for path in parameters.all_notebooks() if path not in paths]
    if not paths:
        raise parameters.ParameterError("Name a notebook (see: llmnb list), or give --all.")
    for path in paths:  # all of them, before the first one starts
        parameters.resolve(parameters.read_notebook(path), given, path.stem)
    failed = 0
    for path in paths:
        line = _Line(path.stem)
        job = runner.Job(str(path), given, options.out, options.timeout)
        try:
            record = runner.run(job, line.progress)
        finally:
            place = index.write_index(Path(options.out))
        failed += record["status"] != "ok"
        line.end(record)
    print(f"{place.resolve()}")
    return 1 if failed else 0


def _given(options: argparse.Namespace) -> dict:
    from llmnb.runs.parameters import ParameterError

    given = {}
    if options.file:
        import yaml

        try:
            loaded = yaml.safe_load(Path(options.file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ParameterError(f"{options.file} can't be read as YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ParameterError(f"{options.file} must hold NAME: VALUE lines.")
        given |= loaded
    given |= dict(options.pairs)
    if options.profile:
        given["profile"] = options.profile
    return given


class _Line:
    """A notebook's progress: one line that changes in a terminal, sparse lines elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.live, self._last = name, sys.stdout.isatty(), time.monotonic()
        if not self.live:
            print(f"{name} ...", flush=True)

    def progress(self, done: int, cells: int, seconds: float) -> None:
        text = f"{self.name}  cell {done} of {cells}  {seconds:.0f} s"
        if self.live:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif time.monotonic() - self._last > 15:
            self._last = time.monotonic()
            print(text, flush=True)

    def end(self, record: dict) -> None:
        memory = record["peak_memory_mb"]
        text = f"{self.name}  {record['status']}  {record['seconds']:.0f} s"
        text += f"  {memory / 1000:.1f} GB" if memory else ""
        print(("\r\x1b[K" if self.live else "") + f"{text}  {record['folder']}/report.html")
        if error := record["error"]:
            print(f"    cell {error['cell']}: {error['type']}: {error['message'][:300]}")


def _report(options: argparse.Namespace) -> int:
    from llmnb.runs import index, report

    out = Path(options.out)
    if not (out / "runs").is_dir():
        raise LlmnbError(f"{options.out!r} holds no runs to report on.")
    for file in sorted(out.glob("runs/*/run.json")):
        try:
            report.write_report(file.parent)
        except (ValueError, OSError) as error:  # the others are still made; the index lists it
            print(f"{file.parent.name}: {error}", file=sys.stderr)
    print(index.write_index(out).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
