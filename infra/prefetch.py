"""Work that is prepared in a thread while the caller works on what came before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def one_ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """function(item) for one item after the other. While the caller has the result for one item, a
    thread computes that for the next."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
