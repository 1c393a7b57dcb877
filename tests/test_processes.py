"""Several processes: a run of two is the run of one; one that dies is one line, and the run goes on
without it; all end in peace.

    pytest tests/test_processes.py
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train

ROOT = Path(train.__file__).resolve().parent

# train.py, but rank 1 is killed in its fourth backward pass
DIES = f"""
import os, runpy, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
backward, calls = torch.Tensor.backward, []

def dies(loss):
    calls.append(loss)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(loss)

torch.Tensor.backward = dies
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


# train.py, and then the native threads that are left
THREADS = f"""
import atexit, os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})

def show():
    for task in os.listdir("/proc/self/task"):
        name = open("/proc/self/task/" + task + "/comm").read().strip()
        print("thread left:", name, flush=True)

atexit.register(show)  # runs last
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def torchrun(script, flags):
    """The script in two processes, which meet at a port that the system gives them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", str(script)]
    return subprocess.run(command + flags, capture_output=True, text=True, timeout=200,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def errors_of(ended):
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def weights(folder):
    return load_file(folder / "model/model.safetensors")


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (value - ours[name]).abs().max() < 1e-6, name


def test_a_process_that_dies_ends_the_run_which_goes_on_with_fewer(flags, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    ended = torchrun(script, flags(save_minutes=0))
    assert ended.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in ended.stderr

    # the other process says so in one line, and how to go on
    (error,) = errors_of(ended)
    assert error.startswith("error: another process ended: see its message (")
    assert error.endswith(f"and go on with: torchrun ... train.py --resume {tmp_path / 'run'}")
    assert "RuntimeError" not in ended.stderr

    # three steps were done; the third is not saved if rank 0 was slow to hear of it
    (state,) = (tmp_path / "run/state").iterdir()
    assert state.stem in ("step-000003", "step-000002")

    train.main(["--resume", str(tmp_path / "run")])
    train.main(flags(out=tmp_path / "whole"))
    assert_close(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_an_error_before_the_run_is_one_line_of_each_process(flags, tmp_path):
    missing = tmp_path / "none"
    ended = torchrun(ROOT / "train.py", flags(model=missing))
    assert ended.returncode != 0
    first, *others = sorted(errors_of(ended), key=lambda line: "another process" in line)
    assert f"error: {missing}: no such folder" in first
    assert "RuntimeError" not in ended.stderr and not (tmp_path / "run").exists()
    for line in others:  # none if torchrun ended the other one first
        assert line.startswith("error: another process ended: see its message (")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc, which lists threads")
def test_no_thread_of_the_process_group_is_left_at_the_end(flags, tmp_path):
    # one that is could abort the interpreter's end: see infra.distributed.leave
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    ended = torchrun(script, flags(max_steps=1))
    assert ended.returncode == 0, ended.stderr
    assert "thread left: python" in ended.stdout and "gloo" not in ended.stdout


def test_what_was_dropped_is_counted_over_all_processes(flags, pairs_file, tmp_path):
    mine = tmp_path / "mine.jsonl"
    rows = pairs_file.read_text().splitlines()
    same = json.dumps({"prompt": "same?", "chosen": "one", "rejected": "one"})
    mine.write_text("\n".join(rows + [same] * 8) + "\n")
    dropped = {}
    for name in ("one", "two"):
        settings = {"data": mine, "out": tmp_path / name, "epochs": 1, "max_steps": 0}
        if name == "one":
            train.main(flags(**settings))
        else:
            assert torchrun(ROOT / "train.py", flags(**settings)).returncode == 0
        dropped[name] = json.loads((tmp_path / name / "run.json").read_text())["dropped"]
    assert dropped["one"] == dropped["two"] != {}
