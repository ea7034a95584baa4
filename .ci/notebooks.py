"""Run every notebook on the cpu profile and store its outputs, normalized.

python .ci/notebooks.py                 (make notebooks)
python .ci/notebooks.py --from reports  takes the outputs of the runs that `make report` just did
"""

import os
import re
import sys
from pathlib import Path

import nbformat

from llmnb import files
from llmnb.runs import parameters, records

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
MAX_BYTES = 600_000
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> None:
    """Run the committed defaults on the cpu profile, and store the outputs."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    os.environ["LLMNB_PROFILE"] = "cpu"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True)
    client.execute(cwd=str(NOTEBOOKS))
    write(normalized(notebook), path)


def take(path: Path, reports: Path) -> None:
    """Store the outputs of the newest good run with the defaults and the same cells.

    Raises SystemExit where there is none: its cells were changed since, or it failed.
    """
    notebook = nbformat.read(path, as_version=4)
    defaults = parameters.resolve(notebook, {"profile": "cpu"})
    runs = [run for run in records.read_runs(reports) if run.get("notebook") == path.stem]
    good = [run for run in runs if run["status"] == "ok" and run["parameters"] == defaults]
    for run in sorted(good, key=lambda run: run["started"], reverse=True):
        folder = reports / "runs" / run["folder"]
        executed = {cell.id: cell for cell in nbformat.read(folder / "notebook.ipynb", 4).cells}
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        is_same = all(c.source == executed.get(c.id, notebook.cells[0]).source for c in code)
        if is_same:
            for cell in code:
                cell.outputs = executed[cell.id].outputs
            return write(normalized(notebook), path)
    raise SystemExit(f"{reports} has no good run of {path.name} as it is now, on the cpu profile.")


def normalized(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook without what differs from run to run or says where it was run."""
    count = 0
    for cell in notebook.cells:
        metadata = {key: cell.metadata.get(key) for key in ("tags", "cellView")}
        cell.metadata = nbformat.from_dict({k: v for k, v in metadata.items() if v})
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
        | {k: v for k, v in notebook.metadata.items() if k in ("accelerator", "colab")}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def problems(notebook: nbformat.NotebookNode, size: int) -> list[str]:
    """What stored outputs must not hold."""
    messages = []
    if size > MAX_BYTES:
        messages.append(f"{size} bytes are more than {MAX_BYTES}")
    home = re.compile(r"/(?:home|root|Users|tmp|work|content)/\w|[A-Z]:\\\\")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                messages.append(f"{cell.id}: an error or stderr is stored")
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            if home.search(text):
                messages.append(f"{cell.id}: a path of one machine is stored")
    return messages


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write atomically, with one newline at the end."""
    nbformat.validate(notebook)
    files.write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def main() -> int:
    """The exit code: 1 where a notebook is not fit to be committed."""
    exit_code = 0
    for path in parameters.notebooks_in(NOTEBOOKS):
        print(f"{path.name} ...", flush=True)
        if sys.argv[1:2] == ["--from"]:
            take(path, Path(sys.argv[2]))
        else:
            execute(path)
        size = path.stat().st_size
        messages = problems(nbformat.read(path, as_version=4), size)
        print("\n".join(messages) or f"{path.name}: {size:,} bytes")
        if messages:
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
