"""What failed first, as the text of an issue: `python .ci/first_failure.py REPORTS [LOG]`.

REPORTS is the folder that `llmnb run --all` wrote, LOG the output of pytest before it. Only this
project's own cells and messages are quoted, inside a code block that they can't end.
"""

import json
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path

NAMED = ("torch", "transformers", "datasets", "evaluate", "peft", "papermill", "nbval", "ipykernel")


def quoted(text: str) -> str:
    """A Markdown code block; backticks in it become plain quotes."""
    return f"```\n{text.replace('`', chr(39))[:3000]}\n```"


def first_failure(reports: Path) -> str:
    """The first run that isn't ok, by folder and then by notebook; empty if there is none."""
    for file in sorted(reports.rglob("runs/*/run.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["status"] != "ok":
            error = run.get("error") or {}
            text = f"{error.get('type')}: {error.get('message')}"
            where = f"**{run['notebook']}**, cell {error.get('cell')}: {run['status']}"
            return f"{where}\n\n{quoted(text)}"
    return ""


def main() -> None:
    """Print the issue's text."""
    reports, log = Path(sys.argv[1]), Path(*sys.argv[2:3])
    print(first_failure(reports) or "No notebook failed.")
    if log.is_file():
        failed = [line for line in log.read_text(encoding="utf-8").splitlines() if "FAILED" in line]
        print("\nCalls that don't fit:\n\n" + quoted("\n".join(failed)) if failed else "")
    versions = {d.name.lower(): d.version for d in distributions()}
    rows = [f"{name} {versions.get(name, 'is not installed')}" for name in NAMED]
    print(f"\nPython {platform.python_version()}; " + ", ".join(rows))


if __name__ == "__main__":
    main()
