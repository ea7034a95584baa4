"""python -m llmnb.pretraining: one process, several, killed ones, and what it refuses."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, SMALL, python
from test_pretraining_loop import assert_same_run, rows

from llmnb.pretraining.__main__ import main
from llmnb.pretraining.tokens import prepare


def config(tmp_path, text, **changes):
    settings = SMALL | {"corpus": text, "tokenizer": "characters", "checkpoint_seconds": 0}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings | changes))
    return str(file)


def test_the_command_trains_publishes_and_resumes(text, tmp_path, capsys):
    arguments = ["--config", config(tmp_path, text), f"out={tmp_path / 'out'}"]
    assert main(["evaluations=3", *arguments, "lr=1e-3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train ") and lines[1].endswith(" parameters, 30 steps")
    assert lines[2] == "one process, cpu, torch.float32"
    assert len(lines) == 7 and lines[-1].startswith("100 %")
    settings = json.loads((tmp_path / "out/run.json").read_text())["recipe"]
    assert settings["lr"] == 1e-3 and settings["d_model"] == 16
    before = (tmp_path / "out/model/model.safetensors").read_bytes()
    assert main([*arguments, "evaluations=3", "lr=0.001"]) == 0
    assert "resumed at step 30 of 30" in capsys.readouterr().out
    assert (tmp_path / "out/model/model.safetensors").read_bytes() == before


def test_a_table_is_a_corpus(cache, tmp_path):
    table = tmp_path / "reviews.csv"
    texts = [f"The cat sees dog number {number}." for number in range(400)]
    pd.DataFrame({"body": texts}).to_csv(table, index=False)
    file = config(tmp_path, str(table), column="body", tokens=2 * 8 * 16)
    assert main(["--config", file, f"out={tmp_path / 'out'}"]) == 0
    corpus = prepare(str(table), "characters", column="body")
    decoded = corpus.tokenizer.decode(corpus.train, skip_special_tokens=True)
    assert decoded.count("The cat sees dog number ") > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalutions=3"], "no setting 'evalutions'. Did you mean 'evaluations'"),
        (["train_bytes=many"], "train_bytes is 'many'; it must be of type int"),
        (["d_model"], "'d_model' is not of the form name=value"),
        (["model={tied"], "The value of 'model={tied' can't be read"),
        (["tokenizer=words"], "tokenizer is 'words'; known are bpe, bytes, characters"),
        (["tokens=0"], "Give a budget"),
        (["n_heads=3", "family=gpt2"], "not divisible by 3 heads"),
        (["model={norm: layer}"], "can't be published: Its norm is 'layer'"),
        (["family=original"], "can't be published: Its family is None"),
        (["--config", "FOLDER/list.yaml"], "list.yaml must hold lines of the form NAME: VALUE"),
        (["--config", "FOLDER/broken.yaml"], "broken.yaml can't be read"),
    ],
)
def test_the_command_refuses_before_any_work(arguments, message, cache, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- d_model\n- 128\n")
    (tmp_path / "broken.yaml").write_text("d_model: [1")
    pairs = [f"{name}={value}" for name, value in SMALL.items()]
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    assert main(["corpus=missing.txt", f"out={tmp_path / 'out'}", *pairs, *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and message in output.err and not output.out
    assert not cache.exists()


def test_text_of_the_command_line_is_taken_literally(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = ["out=run #1", "prompt=1984", "tokens=1e3", "samples=2"]
    assert main(["--config", config(tmp_path, text), *pairs]) == 0
    log = rows(tmp_path / "run #1")
    assert log[-1]["step"] == 8 and log[-1]["sample"].startswith("1984")


def test_the_spinning_of_threads_is_limited_before_torch_is_loaded():
    code = """
import sys
from llmnb import hardware
hardware.share_the_cpu = lambda: print("torch" in sys.modules)
import llmnb.pretraining.__main__
"""
    result = python(code)
    assert result.stdout.split() == ["False"], result.stderr


# Killed


@pytest.mark.slow
def test_a_process_killed_five_times_ends_like_an_unbroken_one(text, tmp_path):
    file = config(tmp_path, text, tokens=60 * 8 * 16, evaluations=60)
    arguments = ["--config", file, f"out={tmp_path / 'cut'}"]
    command = [sys.executable, "-m", "llmnb.pretraining", *arguments]
    choice = random.Random(0)
    for steps in (3, 1, 9, 5, 2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = (line for line in process.stdout if "validation" in line and "%" in line)
            assert len(list(itertools.islice(lines, steps))) == steps
            time.sleep(choice.random() / 100)  # somewhere within a later step
            process.kill()
        assert process.returncode == -signal.SIGKILL
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "resumed at step 0 " not in result.stdout
    assert main(["--config", file, f"out={tmp_path / 'whole'}"]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    models = [(tmp_path / run / "model/model.safetensors") for run in ("cut", "whole")]
    assert models[0].read_bytes() == models[1].read_bytes()


MEMORY = """
import resource
from conftest import small
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError
from llmnb.pretraining.tokens import prepare
corpus = prepare({text!r}, "characters")
Trainer(corpus, small(tokens=128)).run()  # now all that it needs is loaded
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
for budget in ({{}}, {{"tokens": 0, "minutes": 1.0}}):
    try:
        Trainer(corpus, small(batch_size=4096, accumulation=2, d_ff=1 << 14, **budget)).run()
    except PretrainingError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_too_little_memory_names_accumulation(text):
    result = python(MEMORY.format(text=text), PYTHONPATH="tests")
    assert result.stdout.count("accumulation 4 (now 2, of batch_size 4096)") == 2, result.stderr


# Several processes


def start(arguments):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, "-m", *launcher, "-m", "llmnb.pretraining", *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **output)


def output_of(arguments, is_good=True):
    """What two processes print."""
    with start(arguments) as process:
        output, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == is_good, output
    return output


RECIPES = {
    "in parts": {"accumulation": 2},
    "masked": {"objective": "masked", "optimizer": "adamw"},
    "bf16": {"dtype": "bf16"},
}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_reach_what_one_reaches(name, text, tmp_path):
    file = config(tmp_path, text, tokens=20 * 8 * 16, samples=2, **RECIPES[name])
    output = output_of(["--config", file, f"out={tmp_path / 'two'}"])
    dtype, tolerance = ("bfloat16", 0.01) if name == "bf16" else ("float32", 1e-5)
    assert f"2 processes, DDP over gloo, cpu, torch.{dtype}\n" in output
    assert main(["--config", file, f"out={tmp_path / 'one'}"]) == 0
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in two] == [row["step"] for row in one] == [*range(21)]
    before = one[0]["validation_loss"]  # nothing learned yet: the same products in the same dtype
    assert two[0]["validation_loss"] == pytest.approx(before, abs=1e-6)
    for ours, theirs in zip(two[1:], one[1:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=tolerance)
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=tolerance)
    assert (tmp_path / "two/model/config.json").exists()
    assert sum("sample" in row for row in two) == (0 if name == "masked" else 2)


@pytest.mark.slow
@pytest.mark.cluster
def test_two_killed_processes_resume_together(text, tmp_path):
    arguments = ["--config", config(tmp_path, text, evaluations=30)]
    output_of([*arguments, f"out={tmp_path / 'whole'}"])
    arguments.append(f"out={tmp_path / 'cut'}")
    with start(arguments) as process:
        lines = (line for line in process.stdout if "validation" in line and "%" in line)
        assert len(list(itertools.islice(lines, 10))) == 10
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    output = output_of(arguments)
    assert "resumed at step" in output and "resumed at step 0 " not in output
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.cluster
def test_two_processes_agree_on_the_steps_of_minutes(text, tmp_path):
    file = config(tmp_path, text, tokens=0, minutes=0.005)
    output = output_of(["--config", file, f"out={tmp_path / 'out'}"])
    steps = json.loads((tmp_path / "out/run.json").read_text())["steps"]
    assert f" parameters, {steps} steps" in output and rows(tmp_path / "out")[-1]["step"] == steps


@pytest.mark.slow
@pytest.mark.cluster
def test_a_batch_that_processes_can_not_share_is_refused(text, tmp_path):
    file = config(tmp_path, text, accumulation=8)
    output = output_of(["--config", file, f"out={tmp_path / 'out'}"], is_good=False)
    assert not (tmp_path / "out").exists()
    assert "batch_size 8 can't be shared evenly by 8 parts in each of 2 processes" in output
