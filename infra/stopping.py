"""Ctrl-C and SIGTERM end a run after the step at hand, when everything is saved; a second one ends
it at once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    signal: int | None = None  # the number of the signal that came


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within this block a signal is only noted. The handlers of before come back at its end: a
    notebook goes on after this."""
    request = StopRequest()

    def note(number, frame):
        request.signal = number
        print("stopping after this step (again: at once)", file=sys.stderr, flush=True)
        signal.signal(number, signal.SIG_DFL)

    earlier = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        earlier[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
