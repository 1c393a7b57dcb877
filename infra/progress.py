"""How a run shows where it is: one line that lives on a terminal, plain lines elsewhere; and how
long training will take."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import Batch
from infra import distributed

PAUSE = 10  # seconds between two lines of judging


@contextmanager
def show_progress(steps: int, done: int) -> Iterator[Callable[[dict], None]]:
    """Yields a function that shows a step's line of metrics.jsonl."""
    on_terminal = sys.stderr.isatty() and distributed.rank() == 0
    every = max(1, steps // 10)  # elsewhere a line so often
    seconds = []  # of each step

    # smoothing 0: the time that is left is estimated from the mean of all steps
    with tqdm(total=steps, initial=done, unit="step", smoothing=0, disable=not on_terminal) as bar:

        def show(line):
            text, step = describe(line), line["step"]
            if on_terminal:
                bar.update()
                bar.set_postfix_str(text)
                if "held_out" in line:  # this line stays, above the one that lives
                    bar.write(f"step {step}/{steps}  {text}", file=sys.stderr)
                return

            seconds.append(line["seconds"])
            if step % every == 0 or step == steps or "held_out" in line:
                seconds_left = sum(seconds) / len(seconds) * (steps - step)
                distributed.log(f"step {step}/{steps}  {text}  {seconds_left:.0f} s left")

        yield show


def describe(line: dict) -> str:
    speed = line["tokens"] / line["seconds"]
    text = (f"loss {line['loss']:.3f}  accuracy {line['accuracy']:.3f}  {speed:,.0f} tokens/s  "
            f"{line['peak_bytes'] / 2**30:.1f} GiB")
    if line.get("held_out") is not None:
        text += f"  held-out {line['held_out']:.3f} (loss {line['held_out_loss']:.3f})"
    return text


def with_progress(items: Iterable, total: int, what: str) -> Iterator:
    """The items, while a bar on a terminal, or elsewhere a line now and then, counts them."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, leave=False)
        return

    began = shown = time.monotonic()
    for number, item in enumerate(items, 1):
        now = time.monotonic()
        if now - shown >= PAUSE:
            shown = now
            print(f"{what} {number:,} of {total:,} after {now - began:.0f} s", file=sys.stderr,
                  flush=True)
        yield item


# ------------------------------------------------------------------------ how long it will take


class Timing(NamedTuple):
    """A micro-batch, forward and backward."""

    tokens: int
    seconds: float


TIMED = 2  # micro-batches, after one to warm up
LONG = 120  # seconds; of shorter training it is not said how long it takes


def timed(batches: list[Batch], timings: list[Timing], steps_left: int) -> Iterator[Batch]:
    """The micro-batches of a step. While the caller works with the first ones of a run, in one step
    or more, it is timed how long that takes: `timings` grows. Then a line says how long all that is
    left will take, if it is long.

    Nothing is computed for it: the steps are those of a run without it, to the bit."""
    tokens_a_step = sum(len(batch.tokens) for batch in batches)
    for batch in batches:
        if len(timings) > TIMED:
            yield batch
            continue

        began = time.monotonic()
        yield batch
        if batch.tokens.is_cuda:
            torch.cuda.synchronize(batch.tokens.device)  # it may still be at it
        timings.append(Timing(len(batch.tokens), time.monotonic() - began))

        if len(timings) > TIMED:
            text = estimate(timings[1:], tokens_a_step * steps_left)
            if text and distributed.rank() == 0:
                tqdm.write(text)  # as print, above a bar that lives


def estimate(timings: list[Timing], tokens_left: int) -> str:
    """How long so many tokens will take, in words; empty if that is not long."""
    seconds = sum(timing.seconds for timing in timings)
    tokens = sum(timing.tokens for timing in timings)
    seconds_left = tokens_left * seconds / tokens
    if seconds_left < LONG:
        return ""

    left = f"{seconds_left / 60:.0f} min"
    if seconds_left > 2 * 3600:
        left = f"{seconds_left / 3600:.1f} h"
    n = len(timings)
    return (f"training will take about {left}: {n} micro-batches of {tokens / n:,.0f} tokens took "
            f"{seconds / n:.2g} s each")
