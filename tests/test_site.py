"""The site that is published: the pages of good runs, nothing else, and no folder of a stranger."""

import json
import runpy
from pathlib import Path

import pytest

build = runpy.run_path(str(Path(__file__).parent.parent / ".ci" / "site.py"))["build"]


@pytest.fixture
def reports(tmp_path):
    folder = tmp_path / "reports" / "runs" / "01_concepts-0123456789"
    folder.mkdir(parents=True)
    (tmp_path / "reports" / "index.html").write_text("<a href='runs/…'>", encoding="utf-8")
    for name in ("report.html", "notebook.ipynb", "checkpoint.bin"):
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"status": "ok"}), encoding="utf-8")
    return tmp_path / "reports"


def test_a_site_holds_index_reports_and_notebooks_alone(reports, tmp_path):
    for _ in range(2):  # the second one replaces the first
        assert build(reports, tmp_path / "site") == 1
        files = {file.name for file in (tmp_path / "site").rglob("*") if file.is_file()}
        assert files == {".nojekyll", "index.html", "report.html", "notebook.ipynb"}


def test_a_failed_run_is_not_published(reports, tmp_path):
    record = next(reports.glob("runs/*/run.json"))
    record.write_text(json.dumps({"status": "failed"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="only good runs"):
        build(reports, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_folder_that_is_no_site_is_left_alone(reports, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="no site of ours"):
        build(reports, tmp_path / "site")
    assert (tmp_path / "site" / "thesis.txt").is_file()
    with pytest.raises(SystemExit, match="run `make report` first"):
        build(tmp_path, tmp_path / "other")
