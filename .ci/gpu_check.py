"""Run every notebook on a pretended CUDA device: python .ci/gpu_check.py OUT      (make gpu-check)

What is pretended stands in tests/pretend_cuda.py. The check fails where a notebook fails, where a
run was on another device, and where something was refused, even if the exception was caught.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(out: Path) -> int:
    """The exit code: 0 if all notebooks ran on the pretended device and nothing was refused."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    refusals = out / "refusals.txt"
    before = os.environ.get("PYTHONPATH")
    path = [str(ROOT / "tests/pretended"), *([before] if before else [])]
    variables = {"PYTHONPATH": os.pathsep.join(path), "REFUSALS": str(refusals)}
    command = [sys.executable, "-m", "llmnb.cli", "run", "--all", "--profile", "smoke"]
    exit_code = subprocess.run([*command, "--out", out], env=os.environ | variables).returncode
    for file in sorted(out.glob("runs/*/run.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["status"] == "ok" and run["hardware"]["device"] != "cuda":
            print(f"{run['notebook']} ran on {run['hardware']['device']}, not on cuda")
            exit_code = 1
    if refusals.exists():
        print("Refused:\n" + refusals.read_text(encoding="utf-8"))
        exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
