"""The series as a site to publish: `python .ci/site.py REPORTS SITE` (make site).

Of the folder that `llmnb run --all` wrote it takes the index, the reports and the notebooks, and
leaves out what only this machine needs. Pages have no scripts, so the site is just a folder.
"""

import json
import shutil
import sys
from pathlib import Path

PAGES = ("report.html", "notebook.ipynb")


def build(reports: Path, site: Path) -> int:
    """Copy the pages to `site`, which is made anew; returns the number of runs.

    Raises SystemExit where nothing was run, or a run isn't ok: nobody wants that published.
    """
    records = sorted(reports.glob("runs/*/run.json"))
    if not (reports / "index.html").is_file() or not records:
        raise SystemExit(f"There are no reports in {reports}: run `make report` first.")
    for file in records:
        status = json.loads(file.read_text(encoding="utf-8"))["status"]
        if status != "ok":
            raise SystemExit(f"{file.parent.name} is {status}: only good runs are published.")
    if site.exists() and not (site / ".nojekyll").is_file():
        raise SystemExit(f"{site} exists and is no site of ours: name another folder.")
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    (site / ".nojekyll").touch()  # GitHub serves the files as they are
    shutil.copy(reports / "index.html", site)
    for file in records:
        folder = site / "runs" / file.parent.name
        folder.mkdir(parents=True)
        for page in PAGES:
            shutil.copy(file.parent / page, folder)
    return len(records)


if __name__ == "__main__":
    n_runs = build(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{n_runs} reports; open {Path(sys.argv[2], 'index.html')}")
