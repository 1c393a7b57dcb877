"""Several processes: `torchrun --nproc-per-node 8 train.py ...`. With one process nothing of this
but `log` does anything.

Every process holds the whole model and takes a share of the pairs of a step; sums over rows and
gradients are added up over the processes, so that a step is the same however many there are.
"""

import atexit
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist

from data import Pair, balanced_shares


def join(on_gpu: bool):
    """Meet the other processes that torchrun has started, if it has."""
    if world_size() == 1:
        return
    backend = "gloo"
    if on_gpu:
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Before there is a group, or its default arguments would hold the group for ever: see `leave`.
    import_module("torch.distributed.nn.functional")
    # two hours: the others wait while rank 0 fetches models and data
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    atexit.register(leave)  # also when an error ends this process


def leave():
    """Part from the others, and end the threads of the process group. One that still ran when the
    interpreter ends could abort it ("terminate called without an active exception"): it lets go of
    a tensor, for which it needs the interpreter. The threads end with the last reference to the
    group. torch.distributed.nn.functional would hold ten: its default arguments are the group that
    is there when it is imported, which torch does by itself with the first optimizer."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0. Rank 0 is the one that prints and writes."""
    if world_size() == 1:  # a RANK may be left over in the environment
        return 0
    return int(os.environ["RANK"])


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def log(text: str):
    """Print a line, once for all processes."""
    if rank() == 0:
        print(text, flush=True)


def all_reduce(tensor: torch.Tensor):
    """Replace `tensor` in every process by the sum over all processes."""
    if dist.is_initialized():
        with explained():
            dist.all_reduce(tensor)


def sum_counts(counts: Counter) -> Counter:
    """The counts of all processes, added up."""
    if not dist.is_initialized():
        return counts
    gathered = [None] * world_size()
    with explained():
        dist.all_gather_object(gathered, counts)
    return sum(gathered, Counter())


def any_process(here: bool, device: torch.device) -> bool:
    """Whether `here` is true in any of the processes."""
    flag = torch.tensor(float(here), device=device)
    all_reduce(flag)
    return flag.item() > 0


def share(pairs: list[Pair]) -> list[Pair]:
    """The pairs of this process: shares of about equal length of text, so that each process
    tokenises only its own."""
    if world_size() == 1:
        return pairs
    sizes = [len(pair.prompt) + len(pair.chosen) + len(pair.rejected) + 1 for pair in pairs]
    mine = balanced_shares(sizes, world_size())[rank()]
    return [pairs[i] for i in mine]


@contextmanager
def rank_0_first() -> Iterator[None]:
    """The other processes enter when rank 0 is through: it fetches what the others then find."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def barrier():
    if dist.is_initialized():
        with explained():
            dist.barrier()


class ProcessEnded(ValueError):
    """Another process is gone."""


@contextmanager
def explained() -> Iterator[None]:
    """When another process has ended, gloo and nccl raise errors of their own: make them one."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "Connection", "Socket")
        if not any(word in str(error) for word in words):  # an error of this process
            raise
        first_line = str(error).partition("\n")[0][:120]
        raise ProcessEnded(f"another process ended: see its message ({first_line})") from None
