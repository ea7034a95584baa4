"""The text of the issue that the weekly run with the newest versions opens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "first_failure.py"


def run_record(folder: Path, name: str, **changes) -> None:
    record = {"notebook": name, "status": "ok", "error": None} | changes
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "run.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def text(tmp_path):
    error = {"cell": 7, "type": "TypeError", "message": "``` end the block"}
    run_record(tmp_path, "01_concepts")
    run_record(tmp_path, "02_attention", status="failed", error=error)
    run_record(tmp_path, "03_pretraining", status="failed", error=error)
    (tmp_path / "log").write_text("1 passed\nFAILED tests/x.py - got 'seeds'\n", encoding="utf-8")
    command = [sys.executable, SCRIPT, tmp_path, tmp_path / "log"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_first_failing_cell_is_named_with_its_error_and_versions(text):
    assert "**02_attention**, cell 7: failed" in text and "03_pretraining" not in text
    assert "TypeError" in text and "FAILED tests/x.py" in text and "1 passed" not in text
    assert "transformers 5." in text


def test_a_message_cannot_end_the_block_that_quotes_it(text):
    assert text.count("```") == 4 and "''' end the block" in text
