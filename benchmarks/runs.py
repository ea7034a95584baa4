"""What running costs: the runner against bare nbclient, and two runs at once against one by one.

The runner's budget is 5 % of the run and one second: the target is that of a run as long as the
reference. A sweep of eight runs with --jobs 2 is to take at most 0.70 of the time with --jobs 1;
`--sweep` measures that instead.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile

from _common import finish, options, pairs, summary

from llmnb.runs import parameters

BARE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2] + "/out.ipynb")
"""
RUNS_OF_A_SWEEP = 8
PARALLEL_TARGET = 0.70
ENVIRONMENT = os.environ | {"LLMNB_PROFILE": "smoke", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def main() -> None:
    """Whole processes on both sides, imports included, as a user waits for them."""
    chosen = options(__doc__, sweep="eight runs, two at once, against one by one")
    path = str(parameters.find_notebook("01").resolve())
    with tempfile.TemporaryDirectory() as folder:
        result = sweep(path, folder, chosen) if chosen.sweep else overhead(path, folder, chosen)
    finish(result, chosen.json)


def call(*arguments: str) -> None:
    """Run Python with these arguments under the smoke profile."""
    command = [sys.executable, *arguments]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)


def overhead(path: str, folder: str, chosen) -> dict:
    """One run of 01, by the runner and by bare nbclient."""
    timed = pairs(
        lambda: call("-m", "llmnb.cli", "run", path, "--out", folder),
        lambda: call("-c", BARE, path, folder),
        3 if chosen.quick else 7,
    )
    bare = statistics.median(reference for _, reference in timed)
    rows = [
        {"ours": round(a, 2), "bare": round(b, 2), "difference": round(a - b, 2)} for a, b in timed
    ]
    difference = statistics.median(row["difference"] for row in rows)
    print(f"01 under smoke: {bare:.1f} s with bare nbclient, {difference:+.2f} s with the runner")
    return summary("runs", timed, 1.05 + 1 / bare, rows)


def sweep(path: str, folder: str, chosen) -> dict:
    """The same eight runs of 01, two at once and one by one, each sweep in a folder of its own."""
    numbers = itertools.count()
    command = ["-m", "llmnb.cli", "sweep", path, "--repeat", str(RUNS_OF_A_SWEEP), "--out"]

    def timed_sweep(n_jobs: int) -> None:
        call(*command, f"{folder}/{next(numbers)}", "--jobs", str(n_jobs))

    timed = pairs(lambda: timed_sweep(2), lambda: timed_sweep(1), 1 if chosen.quick else 3)
    rows = [{"jobs_2": round(a, 1), "jobs_1": round(b, 1)} for a, b in timed]
    return summary("sweep", timed, PARALLEL_TARGET, rows)


if __name__ == "__main__":
    main()
