"""Sweeps: the plan of a grid, real workers here and behind a scheduler, kills and full disks."""

import contextlib
import json
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import python

from llmnb import cli
from llmnb.runs import parameters, sweep, workers

HANG_SECONDS = 300  # only a hang takes so long
PARAMETERS = 'seed = 0\nlr = 0.1\nseconds = 0.0\nmarker = ""\ntext = ""\nout = ""\n'
WORK = """import pathlib, time
from llmnb.record import record
time.sleep(seconds)
assert not marker or pathlib.Path(marker).exists(), "no marker"
print("content:", pathlib.Path(text).read_text() if text else "none")
record("score", 10 * lr + seed)
"""


@pytest.fixture
def notebook(tmp_path):
    """A notebook that takes a second; `marker` is a file without which it fails."""
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(WORK),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "07_short.ipynb")
    return tmp_path / "07_short.ipynb"


def records_in(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("runs/*/run.json"))]


def statuses(out):
    return [record["status"] for record in records_in(out)]


def sweep_command(notebook, out, *arguments):
    command = [sys.executable, "-m", "llmnb.cli", "sweep", str(notebook)]
    return [*command, "--out", str(out), *arguments]


def test_a_grid_is_every_combination():
    assert sweep.grid({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert sweep.grid({}) == [{}]
    with pytest.raises(parameters.ParameterError, match="list of values"):
        sweep.grid({"a": 3})


def test_a_repeat_changes_only_the_seed(notebook):
    settings = sweep.repeated([{"lr": 1.0}, {"lr": 2.0, "seed": "7"}], 2, notebook)
    assert settings == [
        *({"lr": 1.0, "seed": 0}, {"lr": 1.0, "seed": 1}),
        *({"lr": 2.0, "seed": 7}, {"lr": 2.0, "seed": 8}),
    ]
    seedless = nbformat.v4.new_code_cell("lr = 0.1", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[seedless]), notebook)
    with pytest.raises(parameters.ParameterError, match=r"seed.*None"):
        sweep.repeated([{}], 2, notebook)


@pytest.mark.parametrize("seed", ["x", 1.5, True])
def test_a_repeat_needs_whole_seeds(notebook, seed):
    with pytest.raises(parameters.ParameterError, match=f"whole number.*{seed}"):
        sweep.repeated([{"seed": seed}], 2, notebook)


def test_a_plan_checks_everything_before_anything_runs(notebook):
    tasks = sweep.plan(notebook, [{"lr": "0.1"}, {"lr": 0.2}, {"lr": 0.1}])
    assert [task.parameters["lr"] for task in tasks] == [0.1, 0.2]
    same_out = [{"out": "x"}, {"out": "x", "lr": 1.0}]
    with pytest.raises(parameters.ParameterError, match="lr"):
        sweep.plan(notebook, [{}, {"rl": 1}])
    tasks = sweep.plan(notebook, same_out)
    with pytest.raises(parameters.ParameterError, match="x would be written by several"):
        sweep.check_outputs(tasks)


def test_notebooks_that_run_at_once_must_not_share_an_output(notebook, tmp_path, capsys):
    other = notebook.with_name("98_other.ipynb")
    other.write_text(notebook.read_text())
    arguments = [str(notebook), str(other), "--out", str(tmp_path / "out"), "-p", "out", "model"]
    assert cli.main(["run", *arguments, "--jobs", "2"]) == 2
    assert "model would be written by several runs" in capsys.readouterr().err


def test_a_parameter_that_is_given_twice_is_an_error(notebook, capsys):
    for twice in (["-g", "lr", "1,2", "-g", "lr", "3"], ["-g", "lr", "1,2", "-p", "lr", "3"]):
        assert cli.main(["sweep", str(notebook), *twice]) == 2
        assert "lr is given 2 times" in capsys.readouterr().err


def test_a_dry_run_lists_the_runs_and_starts_none(notebook, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("lr: [0.1, 0.2]\n")
    arguments = ["--grid", str(tmp_path / "grid.yaml"), "-g", "seconds", "0, 0, 1", "--repeat", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(["sweep", str(notebook), *arguments]) == 0
    text = capsys.readouterr().out
    assert text.count("to run") == 8 and "4 settings are duplicates" in text
    assert "lr = 0.2, seconds = 1.0, seed = 1" in text and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("-g", "lr", "x"), ("-g", "lr", "1", "-p", "lr", "2")])
def test_bad_choices_are_an_error_before_anything_runs(notebook, tmp_path, capsys, arguments):
    out = tmp_path / "out"
    assert cli.main(["sweep", str(notebook), *arguments, "--out", str(out)]) == 2
    assert "lr" in capsys.readouterr().err and not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
def test_a_full_disk_leaves_no_half_written_run(tmp_path):
    code = "import resource, signal, sys; from pathlib import Path; from llmnb.runs import sweep; "
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    code += f"sweep.store(Path({str(tmp_path)!r}), 'a', {{'small': b'1', 'large': b'2' * 5000}})"
    result = python(code)
    assert "OSError" in result.stderr and "File too large" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_second_attempt_overwrites_nothing(tmp_path):
    contents = {"run.json": b'{"status": "failed"}', "report.html": b"first"}
    first = sweep.store(tmp_path, "a", contents)
    second = sweep.store(tmp_path, "a", contents | {"report.html": b"second"})
    assert (first.name, second.name) == ("a", "a-2")
    assert (first / "report.html").read_bytes() == b"first"
    assert json.loads((second / "run.json").read_text())["attempt"] == 2


def test_what_a_killed_sweep_was_writing_is_removed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = platform.node()
    leftover = tmp_path / f".sweep-{child.pid}-{here}-x"
    others = tmp_path / f".sweep-1-{here}-y", tmp_path / f".sweep-{child.pid}-other.host-z"
    for folder in (leftover, *others):  # these are of a process that lives, and of another machine
        folder.mkdir()
    assert list(sweep.run([], tmp_path)) == []
    assert not leftover.exists() and all(folder.exists() for folder in others)


def test_a_name_with_brackets_is_found_again(notebook, tmp_path):
    (task,) = sweep.plan(notebook, [{}], None)
    task = replace(task, name="demo [1]-0123456789")
    for folder, status in ((task.name, "failed"), (f"{task.name}-2", "ok")):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        (tmp_path / "runs" / folder / "run.json").write_text(json.dumps({"status": status}))
    assert sweep.is_finished(tmp_path, task)


def test_a_number_named_like_an_output_names_no_file(notebook):
    (task,) = sweep.plan(notebook, [{}], None)
    numbers = {"held_out": 0.2, "output_tokens": 9}
    twice = [replace(task, parameters=numbers) for _ in range(2)]
    sweep.check_outputs(twice, on_cluster=True)


def test_inputs_travel_by_content_and_keep_their_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("A")
    (tmp_path / "notes/.hidden.txt").write_text("not read")
    absolute = str(tmp_path / "notes/a.txt")
    values = {"input": "notes", "text": absolute, "prompt": "x" * 5000, "out": "notes"}
    inputs = workers.read_inputs(values | {"list": ["notes/a.txt", 3], "n": 1})
    assert set(inputs) == {"notes", absolute, "notes/a.txt"}
    moved = workers.write_inputs(inputs, tmp_path / "there")
    assert list(moved) == [absolute] and Path(moved[absolute]).read_text() == "A"
    assert [path.name for path in (tmp_path / "there/notes").iterdir()] == ["a.txt"]
    monkeypatch.setattr(workers, "MAX_INPUT_BYTES", 0)
    with pytest.raises(parameters.ParameterError, match="travels"):
        workers.check_inputs(values)


@pytest.mark.cluster
@pytest.mark.slow
def test_what_finished_is_skipped_and_what_failed_or_changed_runs_again(notebook, tmp_path, capsys):
    out, marker = tmp_path / "out", tmp_path / "marker"
    arguments = ["sweep", str(notebook), "--jobs", "2", "--out", str(out)]
    arguments += ["-p", "marker", str(marker), "-g", "lr"]
    assert cli.main([*arguments, "0.1,0.2"]) == 1
    assert "no marker" in capsys.readouterr().out and statuses(out) == ["failed", "failed"]
    marker.touch()
    assert cli.main([*arguments, "0.1,0.2"]) == 0
    assert sorted(statuses(out)) == ["failed", "failed", "ok", "ok"]
    assert cli.main([*arguments, "0.1,0.2,0.3"]) == 0
    assert sorted(statuses(out)) == ["failed", "failed", "ok", "ok", "ok"]
    text = capsys.readouterr().out
    assert text.count("  ok") == 3 and "3 of 3 runs done, 0 running, 2 from before" in text
    run_command = ["run", str(notebook), "--jobs", "2", "--out", str(out)]
    assert cli.main(run_command) == 0 and cli.main(run_command) == 0  # never skipped
    assert statuses(out).count("ok") == 5


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_until(is_true):
    deadline = time.monotonic() + HANG_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "this hangs"
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder):
    """A scheduler and two workers in processes and folders of their own: address, workers."""
    file = folder / "scheduler.json"
    quiet = ("--no-dashboard", "--scheduler-file", str(file))
    processes = [start("distributed.cli.dask_scheduler", "--port", "0", *quiet, cwd=folder)]
    wait_until(file.exists)
    for name in ("one", "two"):
        (folder / name).mkdir()
        options = ("--nthreads", "1", "--no-nanny", "--name", name, *quiet)
        processes.append(start("distributed.cli.dask_worker", *options, cwd=folder / name))
    try:
        yield json.loads(file.read_text())["address"], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_grid_on_a_scheduler_ends_complete_though_a_worker_is_killed(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("from the client")
    absolute = str(tmp_path / "input.txt")
    choices = {"lr": [0.1, 0.2], "seconds": [0.5], "text": ["input.txt", absolute]}
    tasks = sweep.plan(notebook, sweep.repeated(sweep.grid(choices), 3, notebook))
    out = tmp_path / "out"
    with cluster(tmp_path) as (address, processes):
        outcomes = []
        for outcome in sweep.run(tasks, out, address):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                processes[0].kill()
        (refused,) = sweep.run([replace(tasks[0], name="x", package="old")], out, address)
    assert "another version of llmnb" in refused.message and refused.folder is None
    assert [outcome.status for outcome in outcomes] == ["ok"] * 12 == statuses(out)
    texts = [(record["parameters"]["text"]) for record in records_in(out)]
    assert texts.count("input.txt") == texts.count(absolute) == 6
    for path in out.glob("runs/*/notebook.ipynb"):
        assert "content: from the client" in path.read_text()
    assert records_in(out)[0]["source"]["notebook_sha256"]


@pytest.mark.cluster
@pytest.mark.slow
def test_an_address_without_a_scheduler_is_an_error(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECTION_SECONDS", 1)
    with pytest.raises(workers.SweepError, match="dask scheduler"):
        list(sweep.run(sweep.plan(notebook, [{}]), tmp_path, "tcp://127.0.0.1:9"))
    with pytest.raises(parameters.ParameterError, match="worker's disk"):
        sweep.check_outputs(sweep.plan(notebook, [{"out": "x"}]), on_cluster=True)


def descendants(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["sweep", "worker", "kernel", "interrupt"])
def test_after_a_kill_the_same_command_ends_with_every_run_ok(notebook, tmp_path, victim):
    out = tmp_path / "out"
    command = sweep_command(notebook, out, "-g", "lr", "0.1,0.2,0.3", "-p", "seconds", "2")
    command += ["--jobs", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    first = subprocess.Popen(command, **quiet)
    family = []
    wait_until(lambda: family.extend(descendants(first)) or "ipykernel" in str(commands(family)))
    time.sleep(random.Random(victim).uniform(0, 3))
    family += descendants(first)
    if victim in ("sweep", "interrupt"):
        first.send_signal(signal.SIGKILL if victim == "sweep" else signal.SIGTERM)
    else:
        word = "ipykernel" if victim == "kernel" else "spawn_main"
        alive = [process for process in descendants(first) if word in str(commands([process]))]
        for process in alive[:1]:
            process.kill()
    first.wait(HANG_SECONDS)
    wait_until(lambda: not any(is_alive(process) for process in family))
    second = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert second.returncode == 0, second.stdout + second.stderr
    done = [record for record in records_in(out) if record["status"] == "ok"]
    assert sorted(record["parameters"]["lr"] for record in done) == [0.1, 0.2, 0.3]
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "runs"]
    for folder in (out / "runs").iterdir():
        files = {path.name for path in folder.iterdir()}
        assert files == {"notebook.ipynb", "report.html", "run.json"}


def commands(processes):
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(process.cmdline())
    return lines


def is_alive(process):
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
