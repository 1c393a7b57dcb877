"""Ctrl-C and SIGTERM end a run after the step at hand, when everything is saved; a second one ends
it at once. A command that has nothing to save ends at once, with a line."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    signal: int | None = None  # the number of the signal that came

    @property
    def exit_code(self) -> int:
        """As the shell counts signals; 1 where another process of the run was asked to stop."""
        if self.signal is None:
            return 1
        return 128 + self.signal


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within this block a signal is only noted. The handlers of before come back at its end: a
    notebook goes on after this."""
    request = StopRequest()

    def note(number, frame):
        request.signal = number
        print("stopping after this step (again: at once)", file=sys.stderr, flush=True)
        for one in (signal.SIGINT, signal.SIGTERM):  # the second may be the other one
            signal.signal(one, signal.SIG_DFL)

    earlier = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        earlier[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def exit_code_of(command: Callable[[], None]) -> int:
    """Run a command to its end: bad input, a file that cannot be made or read, Ctrl-C, SIGTERM and
    a reader of its output that went away are a line on standard error and an exit code, as the
    shell counts."""

    def end(number, frame):
        sys.exit(128 + number)

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        command()
        sys.stdout.flush()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        print("stopped: nobody reads what is printed", file=sys.stderr)
        # what is still to be printed when Python ends goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # a file that cannot be made or read; code that knows more says more
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            print("stopped by SIGTERM", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return 0
