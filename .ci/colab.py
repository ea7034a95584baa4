"""Run every notebook as Colab would: its versions, the built wheel, an empty folder, one by one.

python .ci/colab.py [FOLDER]      (make colab; FOLDER keeps the environment for the next time)

.ci/colab.txt has the versions of Colab's image. What the notebooks' set-up cell installs comes on
top, with --no-deps, and nothing else: a package that is missing there fails here.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from llmnb.runs import parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = parameters.notebooks_in(ROOT / "notebooks")
# An empty module of this name tells the set-up cell that it runs on Colab.
FAKE_COLAB_MODULE = (
    "import sys, types, importlib.machinery as m; module = types.ModuleType('google.colab'); "
    "module.__spec__ = m.ModuleSpec('google.colab', None); sys.modules['google.colab'] = module\n"
)


def packages_of_the_set_up_cell() -> list[str]:
    """What the set-up cell installs beside llmnb; a test says that all notebooks have the same."""
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    (cell,) = [cell for cell in cells if cell.id == "set-up"]
    return re.search(r"--no-deps ([\w -]+)$", cell.source, re.M)[1].split()


def prepare(folder: Path) -> Path:
    """A virtual environment like Colab's with the wheel in it; returns its Python."""
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        torch = re.search(r"^torch==.*$", pins, re.M)[0]  # for the CPU
        subprocess.run([*pip, torch, "-r", ROOT / ".ci/colab.txt"], check=True)
    subprocess.run([*pip, "--no-deps", *packages_of_the_set_up_cell()], check=True)
    for old_wheel in folder.glob("*.whl"):
        old_wheel.unlink()
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("llmnb-*.whl")
    subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
    print_path = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    result = subprocess.run(print_path, check=True, capture_output=True, text=True)
    pth_file = Path(result.stdout.strip(), "fake_colab.pth")
    pth_file.write_text(FAKE_COLAB_MODULE, encoding="utf-8")
    kernel = [python, "-m", "ipykernel", "install", "--prefix", folder / "venv"]
    subprocess.run(kernel, check=True, capture_output=True)
    return python


_RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=sys.argv[2])
"""


def main(folder: Path) -> int:
    """The exit code: 1 where a notebook failed."""
    python = prepare(folder)
    exit_code = 0
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            start = time.monotonic()
            command = [python, "-c", _RUN, path, empty]
            variables = {"LLMNB_PROFILE": "smoke"}
            variables["JUPYTER_PATH"] = str(folder / "venv/share/jupyter")
            run = subprocess.run(
                command, cwd=empty, env=os.environ | variables, capture_output=True, text=True
            )
        status = "failed" if run.returncode else "ok"
        print(f"{path.stem}  {status}  {time.monotonic() - start:.0f} s", flush=True)
        if run.returncode:
            exit_code = 1
            print(run.stderr[-3000:])
    return exit_code


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given = Path(sys.argv[1]).expanduser()
        given.mkdir(parents=True, exist_ok=True)
        sys.exit(main(given.resolve()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
