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

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# Only that it is Colab, as the set-up cell asks: without the package it would install it.
STAND_IN = (
    "import sys, types, importlib.machinery as m; made = types.ModuleType('google.colab'); "
    "made.__spec__ = m.ModuleSpec('google.colab', None); sys.modules['google.colab'] = made\n"
)


def wanted() -> list[str]:
    """What the set-up cells install beside llmnb, the same in every notebook."""
    found = set()
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        (cell,) = [cell for cell in cells if cell.id == "set-up"]
        found.add(tuple(re.search(r"--no-deps ([\w -]+)$", cell.source, re.M)[1].split()))
    (names,) = found
    return list(names)


def prepare(folder: Path) -> Path:
    """A virtual environment like Colab's with the wheel in it; returns its Python."""
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        torch = re.search(r"^torch==.*$", pins, re.M)[0]  # for the CPU
        subprocess.run([*pip, torch, "-r", ROOT / ".ci/colab.txt"], check=True)
    subprocess.run([*pip, "--no-deps", *wanted()], check=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("llmnb-*.whl")
    subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "stand_in.pth").write_text(STAND_IN, encoding="utf-8")
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
    python, failed = prepare(folder), 0
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            start = time.monotonic()
            command = [python, "-c", _RUN, path, empty]
            own = os.environ | {"LLMNB_PROFILE": "smoke"}
            own |= {"JUPYTER_PATH": str(folder / "venv/share/jupyter")}
            run = subprocess.run(command, cwd=empty, env=own, capture_output=True, text=True)
        state = "failed" if run.returncode else "ok"
        print(f"{path.stem}  {state}  {time.monotonic() - start:.0f} s", flush=True)
        if run.returncode:
            print(run.stderr[-3000:])
        failed += bool(run.returncode)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        place = Path(sys.argv[1]).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        sys.exit(main(place.resolve()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
