"""Folders that are complete or not there: verified, atomic, locked, clear about what is wrong."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import python

from llmnb import files

# Run in other processes: builds a folder of twenty files, slowly.
BUILD = """
import time
from llmnb import files

def make(folder):
    with open(files.cache_dir() / "log.txt", "a") as log:
        log.write("made\\n")
    for part in range(20):
        (folder / f"part{part}.txt").write_text("x" * 1000)
        time.sleep(0.02)

folder = files.build(files.cache_dir() / "slow", make)
assert len(list(folder.glob("part*.txt"))) == 20
"""


def build(cache):
    def make(folder):
        (folder / "inner").mkdir()
        (folder / "inner/data.txt").write_text("hello")

    return files.build(cache / "folder", make) / "inner/data.txt"


@pytest.mark.parametrize("harm", ["alter", "delete", "truncate", "no manifest", "broken manifest"])
def test_a_harmed_folder_is_made_again(cache, harm, capsys):
    file = build(cache)
    manifest = cache / "folder/.manifest.json"
    if harm == "alter":
        stat = file.stat()
        file.write_text("HELLO")  # the same size, and the same time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif harm == "delete":
        file.unlink()
    elif harm == "truncate":
        file.write_text("he")
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"inner/data.txt": ')
    assert build(cache).read_text() == "hello"
    assert "making it again" in capsys.readouterr().out


def test_a_touched_file_with_the_same_bytes_is_left_alone(cache, capsys):
    file = build(cache)
    os.utime(file, (1, 1))
    build(cache)
    assert file.stat().st_mtime == 1 and capsys.readouterr().out == ""


def test_a_disk_that_fills_up_leaves_the_cache_sound(cache):
    def full(folder):
        (folder / "half.bin").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(files.CacheError, match="No space left"):
        files.build(cache / "folder", full)
    assert [path.name for path in cache.iterdir()] == ["folder.lock"]


def test_a_name_with_brackets_leaves_no_partial_folder(cache):
    def fail(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.build(cache / "tokens-notes[1]-abc", fail)
    files.build(cache / "tokens-notes[1]-abc", lambda folder: (folder / "a").write_text("1"))
    names = sorted(path.name for path in cache.iterdir())
    assert names == ["tokens-notes[1]-abc", "tokens-notes[1]-abc.lock"]


def test_a_text_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.CacheError, match="LLMNB_CACHE"):
        build(tmp_path / "file")


def test_ten_processes_at_once_make_it_once(cache):
    cache.mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", BUILD]) for _ in range(10)]
    assert [process.wait(120) for process in processes] == [0] * 10
    assert (cache / "log.txt").read_text() == "made\n"


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_next_call_mends(cache):
    cache.mkdir()
    moments = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", BUILD])
        time.sleep(moments.uniform(0.1, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = python(BUILD)
    assert result.returncode == 0, result.stderr
    assert not [path for path in cache.iterdir() if "partial" in path.name]
