"""How a run shows where it is: one line that lives on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

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
