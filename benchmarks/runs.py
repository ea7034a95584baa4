"""The runner's own cost: `llmnb.runs` against bare nbclient on the same notebook and kernel.

The budget is 5 % of the run and one second: the target is that of a run as long as the reference.
"""

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


def main() -> None:
    """Whole processes on both sides, imports included, as a user waits for them."""
    chosen = options(__doc__)
    path = str(parameters.find_notebook("01").resolve())
    environment = os.environ | {"LLMNB_PROFILE": "smoke", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with tempfile.TemporaryDirectory() as folder:

        def call(*arguments: str) -> None:
            command = [sys.executable, *arguments]
            subprocess.run(command, env=environment, check=True, capture_output=True)

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
    finish(summary("runs", timed, 1.05 + 1 / bare, rows), chosen.json)


if __name__ == "__main__":
    main()
