"""How long training will take: said once, from two timed micro-batches; the steps stay the same.

    python -m pytest tests/test_progress.py
"""

import sys

import pytest
import torch
from safetensors.torch import load_file

import train
from data import Batch
from infra import progress
from infra.progress import Timing, estimate, timed


def batches(*sizes) -> list[Batch]:
    nothing = torch.zeros(0)
    return [Batch(torch.zeros(size), nothing, nothing, nothing) for size in sizes]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves on: clock.now."""
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def work(clock, batches, timings, seconds_of_each, steps_left):
    for _, seconds in zip(timed(batches, timings, steps_left), seconds_of_each, strict=True):
        clock.now += seconds


def test_two_micro_batches_after_the_first_are_timed(clock, capsys):
    timings = []
    # the first one warms up; then 100 tokens take 1 s each, and 50 steps of 400 tokens are left
    work(clock, batches(100, 100, 100, 100), timings, [60, 1, 1, 9], steps_left=50)
    assert timings[1:] == [Timing(100, 1), Timing(100, 1)]
    line = "training will take about 3 min: 2 micro-batches of 100 tokens took 1 s each\n"
    assert capsys.readouterr().out == line


def test_steps_of_one_micro_batch_are_timed_over_three_steps(clock, capsys):
    timings = []
    for step in range(5):
        assert ("training will take" in capsys.readouterr().out) == (step == 3)
        work(clock, batches(100), timings, [2], steps_left=1000 - step)


def test_a_short_run_says_nothing():
    assert estimate([Timing(100, 1.0)], tokens_left=11_900) == ""
    assert "about 2 min" in estimate([Timing(100, 1.0)], tokens_left=12_000)
    assert "about 2.5 h" in estimate([Timing(100, 1.0)], tokens_left=900_000)


def test_a_run_that_is_timed_is_the_same_to_the_bit(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0)
    train.main(flags(out=tmp_path / "timed"))
    printed = capsys.readouterr().out
    assert printed.count("training will take about 0 min: 2 micro-batches of ") == 1

    monkeypatch.setattr(train, "timed", lambda batches, timings, steps_left: batches)
    train.main(flags(out=tmp_path / "plain"))
    ours, theirs = [load_file(tmp_path / run / "model/model.safetensors")
                    for run in ("timed", "plain")]
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight)


def test_on_a_terminal_the_held_out_line_stays(capsys, monkeypatch):
    line = {"loss": 1.0, "accuracy": 0.5, "tokens": 9, "seconds": 1.0, "peak_bytes": 0}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.show_progress(4, 0) as show:
        show({**line, "step": 1})
        show({**line, "step": 2, "held_out": 0.75, "held_out_loss": 0.6})
    # of what ends with a new line, and is not written over
    lasting = [text.rpartition("\r")[2] for text in capsys.readouterr().err.split("\n")]
    assert any(text.startswith("step 2/4 ") and "held-out 0.750" in text for text in lasting)
