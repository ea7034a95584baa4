"""Real kernels: a run's status, record, secrets, time limits and kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from llmnb import cli, hardware
from llmnb.runs import runner
from llmnb.runs.runner import Job

pytestmark = pytest.mark.slow
HANG_SECONDS = 600  # only a hang takes so long
PARAMETERS = """mode = "ok"
marker = ""
api_key = ""
hf_token = ""
password = ""
db_secret = ""
private_key = ""
"""
METRIC = """import os, pathlib, time
from llmnb.record import record
record("accuracy", 0.84, low=0.82, high=0.86)
print("spin count", os.environ["GOMP_SPINCOUNT"])
"""
MODES = """secrets = [api_key, hf_token, password, db_secret, private_key]
print(*secrets, secrets)
if mode == "fail":
    raise ValueError("\\x1b[31mno such <b>luck</b>: " + api_key)
if mode == "die":
    os._exit(9)
if mode == "sleep":
    if marker:
        pathlib.Path(marker).touch()
    time.sleep(3600)
"""
MODES_CELL = 5  # its number, counted from 1 and with the injected parameters


@pytest.fixture
def notebook(tmp_path):
    """A small notebook; its parameter `mode` decides how it ends."""
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("# A small one"),
        nbformat.v4.new_code_cell(METRIC),
        nbformat.v4.new_code_cell(MODES),
        nbformat.v4.new_code_cell("print('end')"),
    ]
    path = tmp_path / "07_small.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run(notebook, tmp_path, timeout=HANG_SECONDS, **parameters):
    return runner.run(Job(str(notebook), parameters, str(tmp_path / "out"), timeout))


def start_command(notebook, tmp_path, *arguments):
    """`llmnb run` in a process of its own, quietly."""
    command = [sys.executable, "-m", "llmnb.cli", "run", str(notebook)]
    return subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A shell that starts pytest with & ignores interrupts, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_run_leaves_notebook_report_and_record(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT")
    progress = []
    job = Job(str(notebook), {}, str(tmp_path / "out"))
    record = runner.run(job, lambda done, cells, seconds: progress.append((done, cells)))
    folder = Path(record["folder"])
    assert {path.name for path in folder.iterdir()} == {"notebook.ipynb", "report.html", "run.json"}
    assert json.loads((folder / "run.json").read_text()) | {"folder": str(folder)} == record
    assert record["status"] == "ok" and record["error"] is None and record["schema"] == 1
    interval = {"low": 0.82, "high": 0.86, "unit": None, "better": "higher"}
    interval |= {"label": None, "baseline": None}
    assert record["metrics"] == {"accuracy": {"value": 0.84} | interval}
    assert record["seconds"] > 0 and 20 < record["peak_memory_mb"] < 5000
    assert record["pid"] == os.getpid() and record["versions"]["llmnb"]
    assert progress[-1] == (6, 6)
    executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(executed)
    assert executed.cells[-1].outputs[0].text == "end\n"
    assert f"spin count {hardware.GOMP_SPINCOUNT}" in executed.cells[3].outputs[1].text
    assert "GOMP_SPINCOUNT" not in os.environ  # it was the kernel's
    assert "A small one" in (folder / "report.html").read_text()
    again = runner.run(job)  # the same run again gets a folder of its own
    assert again["folder"] == f"{folder}-2" and again["attempt"] == 2


@pytest.mark.parametrize(
    ("mode", "status", "kind"),
    [
        ("fail", "failed", "ValueError"),
        ("die", "failed", "DeadKernelError"),
        ("sleep", "timeout", "TimeoutError"),
    ],
)
def test_what_goes_wrong_is_in_the_record(notebook, tmp_path, monkeypatch, mode, status, kind):
    def seconds_left(execution, cell):
        return 1 if cell.source == MODES else HANG_SECONDS

    monkeypatch.setattr(runner._Execution, "_seconds_left", seconds_left)
    record = run(notebook, tmp_path, mode=mode)
    assert (record["status"], record["error"]["type"]) == (status, kind)
    assert record["error"]["cell"] == MODES_CELL
    assert kind in (Path(record["folder"]) / "report.html").read_text()
    assert record["metrics"]["accuracy"]["value"] == 0.84  # what was recorded before is kept
    assert "\x1b" not in record["error"]["message"]


def test_the_time_limit_holds_between_cells_too(notebook, tmp_path):
    record = run(notebook, tmp_path, timeout=0.001)  # starting the kernel takes longer
    assert record["status"] == "timeout" and record["error"]["cell"] == 1


def test_secrets_are_used_and_never_stored(notebook, tmp_path):
    record = run(
        notebook,
        tmp_path,
        mode="fail",
        api_key='sk-"12345\\678',
        hf_token="pässwörd-12345",
        password="pässwörd-12345 and 12345\nline two",  # begins as hf_token does
        db_secret='it\'s 12345 "q"',
        private_key="<12345>",
    )
    assert record["error"]["message"] == "no such <b>luck</b>: •••"
    for file in Path(record["folder"]).iterdir():
        assert "12345" not in file.read_text(), file.name
        assert "•••" in file.read_text(), file.name
    assert "LLMNB_SECRET_API_KEY" not in os.environ


def test_a_tiny_secret_breaks_nothing(notebook, tmp_path):
    record = run(notebook, tmp_path, api_key="1", hf_token="a", password="ok")
    assert record["status"] == "ok" and record["parameters"]["api_key"] == "•••"


def test_a_second_interrupt_costs_nothing(notebook, tmp_path):
    marker = tmp_path / "asleep"
    process = start_command(notebook, tmp_path, "-p", "mode", "sleep", "-p", "marker", str(marker))
    deadline = time.monotonic() + HANG_SECONDS
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(HANG_SECONDS) == 130
    (folder,) = tmp_path.glob("out/runs/*")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "killed" and record["error"]["cell"] == MODES_CELL
    assert (folder / "report.html").exists()


def test_an_interrupt_works_again_after_a_report_that_can_not_be_written(
    notebook, tmp_path, monkeypatch
):
    def fail(folder):
        raise OSError("disk full")

    monkeypatch.setattr(runner.report, "write_report", fail)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(OSError, match="disk full"):
            run(notebook, tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_killed_at_random_moments_nothing_is_broken(notebook, tmp_path):
    out = tmp_path / "out"
    seconds = random.Random(0)
    for number in range(6):
        process = start_command(notebook, tmp_path)
        time.sleep(seconds.uniform(0.2, 3.5))
        process.send_signal(signal.SIGTERM if number == 4 else signal.SIGKILL)
        process.wait(HANG_SECONDS)
    assert run(notebook, tmp_path)["status"] == "ok"
    assert cli.main(["report", "--out", str(out)]) == 0
    stored = [json.loads(path.read_text()) for path in out.glob("runs/*/run.json")]
    statuses = {record["status"] for record in stored}
    assert statuses <= {"ok", "running", "killed"} and "ok" in statuses
    assert "running" not in (out / "index.html").read_text().split("<main", 1)[1]


def test_a_long_temporary_folder_is_no_obstacle(notebook, tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert run(notebook, tmp_path)["status"] == "ok"
    assert not list(deep.glob("llmnb-*"))


def test_plain_papermill_runs_it_too(notebook, tmp_path):
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "o.ipynb")]
    environment = os.environ | {"GOMP_SPINCOUNT": "7"}
    subprocess.run(
        [*command, "-p", "api_key", "none"], check=True, capture_output=True, env=environment
    )
    executed = nbformat.read(tmp_path / "o.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "end\n"


def test_one_failure_stops_nothing_but_the_exit_code(notebook, tmp_path, capsys):
    other = notebook.with_name("08_other.ipynb")
    other.write_bytes(notebook.read_bytes())
    arguments = ["run", str(notebook), str(other), "-p", "mode", "fail"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.count("ValueError") == 2
    index = (tmp_path / "out/index.html").read_text()
    assert "07_small" in index and "08_other" in index
