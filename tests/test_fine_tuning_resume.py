"""A training that is killed goes on where it was, and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from llmnb.fine_tuning import Settings, encoders

TRAIN = """
import sys
import datasets
import numpy as np
import torch
from pathlib import Path
from llmnb.fine_tuning import Settings, encoders
torch.set_num_threads(1)
rows, base, folder, out = sys.argv[1:]
splits = datasets.load_from_disk(rows)
known = {n: splits[n] for n in ("train", "validation")}
parts = {n: (part["text"][:], np.array(part["label"][:])) for n, part in known.items()}
settings = Settings(dtype="fp32", lr=1e-3, epochs=12, max_length=32, patience=12, batch_size=8)
made = encoders.train("full", base, parts, ("bad", "good"), settings, Path(folder), say=print)
np.save(out, made.probabilities(splits["test"]["text"][:]))
"""


def command(*given):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-c", TRAIN, *map(str, given)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_training_ends_as_the_unbroken_one(made_up, tiny_models, tmp_path):
    made_up.save_to_disk(tmp_path / "rows")
    given = (tmp_path / "rows", tiny_models / "encoder")
    whole = command(*given, tmp_path / "whole", tmp_path / "whole.npy")
    assert whole.wait(200) == 0
    checkpoints = tmp_path / "broken"
    for wanted, wait in ((2, 0), (5, 0.03)):  # evaluations, each followed by a checkpoint
        process = command(*given, checkpoints, tmp_path / "broken.npy")
        for line in process.stdout:
            wanted -= "macro-F1" in line
            if not wanted:
                time.sleep(wait)  # once before it is written, once while or after it is
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
        assert list(checkpoints.rglob("checkpoint-*"))
    process = command(*given, checkpoints, tmp_path / "broken.npy")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and "goes on from step" in said
    expected, found = (np.load(tmp_path / f"{name}.npy") for name in ("whole", "broken"))
    np.testing.assert_array_equal(found, expected)
    assert not checkpoints.exists()


def test_a_torn_checkpoint_is_removed(tmp_path):
    for step, files in ((9, ["trainer_state.json"]), (10, ["optimizer.pt"])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files:
            (tmp_path / f"checkpoint-{step}" / name).write_text("x")
    assert encoders._last_complete(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_other_settings_use_another_folder(tmp_path):
    rows = {"train": [{"input_ids": [1], "labels": 0}]}
    folders = set()
    for seed in (0, 1, 0):
        with encoders._folder(
            tmp_path / "new", "full", "base", rows, Settings(seed=seed)
        ) as folder:
            folder.mkdir(parents=True)
            folders.add(folder.name)
    assert len(folders) == 2 and not list(tmp_path.iterdir())
