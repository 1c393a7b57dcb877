"""Killed at any moment, before an operation on a file or inside a write, a run resumes to the same
bits or begins again.

    pytest tests/test_kills.py                at four or five moments of a run, and five of one
                                              that resumes
    KILL_ALL=1 pytest tests/test_kills.py     at all of them, some minutes

A kill is os._exit in a forked child: nothing is flushed, closed or cleaned up after it.
"""

import builtins
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

import train
from infra import run_folder

KILLED = 9


class Disk:
    """The operations on files of a run. The operation of number `kill_at` does not happen: the
    process ends before it, or when a write has done half of its work."""

    def __init__(self, kill_at: int | None):
        self.kill_at = kill_at
        self.count = 0

    def now(self) -> bool:
        self.count += 1
        return self.count == self.kill_at

    def watch(self, owner, name, below: str):
        """Count the calls of a function whose first path is `below` the folder of the run."""
        original = getattr(owner, name)

        def counted(*args, **keywords):
            mine = any(below in str(arg) for arg in args)
            if mine and self.now():
                os._exit(KILLED)
            return original(*args, **keywords)

        setattr(owner, name, counted)

    def watch_writes(self, owner, name, path_at: int):
        """Count the calls of a function that writes a file; the kill leaves half of the file."""
        original = getattr(owner, name)

        def counted(*args, **keywords):
            kill = self.now()
            result = original(*args, **keywords)
            if kill:
                path = Path(args[path_at])
                os.truncate(path, path.stat().st_size // 2)
                os._exit(KILLED)
            return result

        setattr(owner, name, counted)

    def watch_all(self, folder: str):
        for name in ("replace", "fsync", "mkdir", "unlink"):
            self.watch(os, name, "" if name == "fsync" else folder)
        self.watch(shutil, "rmtree", folder)
        self.watch(builtins, "open", folder)
        self.watch_writes(run_folder, "save_file", 1)
        self.watch_writes(run_folder.tinyrm, "save_file", 1)
        self.watch_writes(run_folder.dora, "save_file", 1)
        for name in ("write_text", "write_bytes"):
            self.watch_writes(Path, name, 0)
        self.watch(run_folder.RunFolder, "log", "")


def in_child(argv, folder, kill_at=None) -> int:
    """Run train.py in a forked child, and kill it there. Returns its exit code; the number of
    operations on files stands in the file `count`."""
    return end_of(start_child(argv, folder, kill_at))


def start_child(argv, folder, kill_at=None) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            disk = Disk(kill_at)
            disk.watch_all(str(folder))
            train.main(argv)
            (folder.parent / "count").write_bytes(str(disk.count).encode())
            code = 0
        except ValueError:
            code = 2
        finally:
            os._exit(code)
    return child


def end_of(child: int) -> int:
    signal.alarm(60)  # nothing may hang
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def bits_of(run) -> str:
    """The weights that a finished run left, and its results."""
    digest = hashlib.sha256((run / "model/model.safetensors").read_bytes())
    digest.update((run / "adapter/adapter_model.safetensors").read_bytes())
    record = json.loads((run / "run.json").read_text())
    result = {key: value for key, value in record["result"].items() if key != "seconds"}
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return f"{digest.hexdigest()} {result} {steps}"


def is_finished(run) -> bool:
    """Also if it was killed after its last word."""
    if not (run / "run.json").exists():
        return False
    return "accuracy_after" in json.loads((run / "run.json").read_text())["result"]


def go_on(begin, run):
    """What a user does after a kill, until the run is finished."""
    if is_finished(run):
        return
    for argv in (["--resume", str(run)], begin):
        if argv == begin and run.exists():  # without run.json there is nothing to go on with
            assert not (run / "state").exists()
            shutil.rmtree(run)
        if in_child(argv, run) == 0:
            return
    raise AssertionError("neither resumed nor begun again")


@pytest.fixture
def begin(flags):
    return flags(max_steps=3, save_minutes=0, held_out=4)


@pytest.fixture
def whole(begin, tmp_path):
    """The bits of a run that nothing disturbed, and the number of its operations on files."""
    run = tmp_path / "run"
    assert in_child(begin, run) == 0
    bits = bits_of(run)
    shutil.rmtree(run)
    return bits, int((tmp_path / "count").read_text())


def test_killed_at_an_operation_on_a_file_a_run_comes_to_the_same_bits(begin, whole, tmp_path):
    bits, operations = whole
    assert operations > 50
    every = operations // 4
    if os.environ.get("KILL_ALL"):
        every = 1
    run = tmp_path / "run"
    for kill_at in range(3 % every, operations + 1, every):
        if kill_at == 0:
            continue
        assert in_child(begin, run, kill_at) == KILLED, kill_at
        go_on(begin, run)
        assert bits_of(run) == bits, kill_at
        shutil.rmtree(run)


@pytest.mark.parametrize("kill_at", [1, 4, 9, 16, 25])
def test_killed_while_it_resumes_a_run_comes_to_the_same_bits(begin, whole, tmp_path, kill_at):
    bits, operations = whole
    run = tmp_path / "run"
    assert in_child(begin, run, operations // 2) == KILLED
    assert in_child(["--resume", str(run)], run, kill_at) == KILLED
    go_on(begin, run)
    assert bits_of(run) == bits


def test_of_two_that_begin_together_in_one_folder_one_is_refused(begin, whole, tmp_path):
    bits, _ = whole
    run = tmp_path / "run"
    children = [start_child(begin, run) for _ in range(2)]
    assert sorted(end_of(child) for child in children) == [0, 2]
    assert bits_of(run) == bits


def test_of_two_that_resume_a_run_together_one_is_refused(begin, whole, tmp_path):
    bits, operations = whole
    run = tmp_path / "run"
    assert in_child(begin, run, operations // 2) == KILLED
    children = [start_child(["--resume", str(run)], run) for _ in range(2)]
    codes = sorted(end_of(child) for child in children)
    # where one had ended before the other looked, that one finds a finished run
    assert codes in ([0, 2], [0, 0])
    assert bits_of(run) == bits
