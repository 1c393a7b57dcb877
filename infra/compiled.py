"""Small functions of the model under torch.compile, behind --compile.

What is compiled are plain functions of tinyrm.py and dora.py, and nothing around them: chains of
operations on every number of an activation, which move many bytes and compute little. Each becomes
one kernel, or a few. Whole layers are not compiled: they keep copies of weights and hold them
against the weights' versions, which torch.compile does not follow.

The results differ from those of the plain functions by rounding. So does a resumed run from an
unbroken one: torch compiles for the sizes that it meets first. It is off by default: no GPU has
measured it yet, and on a processor products take most of the time.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

import dora
import tinyrm


class SmallFunction(NamedTuple):
    module: ModuleType  # which calls it by this name
    name: str
    plain: Callable


SMALL_FUNCTIONS = [
    SmallFunction(tinyrm, "rotate", tinyrm.rotate),
    SmallFunction(tinyrm, "normed", tinyrm.normed),
    SmallFunction(tinyrm, "plain_geglu", tinyrm.plain_geglu),
    SmallFunction(tinyrm, "geglu_gradient", tinyrm.geglu_gradient),
    SmallFunction(dora, "column_dots_at_once", dora.column_dots_at_once),
]

# How many variants of a function torch makes: by precision, by layout, by what needs a gradient,
# for one row and for more. Beyond its own limit of 8 it would go on uncompiled.
VARIANTS = 64


def names_of_compiled() -> str:
    """For the device line."""
    return ", ".join(one.name for one in SMALL_FUNCTIONS)


@contextmanager
def compiled_functions(on: bool) -> Iterator[None]:
    """Inside it the model's small functions are compiled ones, if `on`. Then they are as they were
    before. They are the whole process's, while it lasts: two threads must not be inside at once."""
    if not on:
        yield
        return
    before = [getattr(one.module, one.name) for one in SMALL_FUNCTIONS]
    for one in SMALL_FUNCTIONS:
        setattr(one.module, one.name, compiled(one.plain))
    try:
        yield
    finally:
        for one, function in zip(SMALL_FUNCTIONS, before, strict=True):
            setattr(one.module, one.name, function)


@cache
def compiled(function: Callable) -> Callable:
    """The function under torch.compile, for any number of tokens. It is compiled when it is called,
    which raises ValueError where torch cannot: no compiler, say."""
    from torch._dynamo import config  # which takes seconds to import
    from torch._dynamo.exc import TorchDynamoException

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    fast = torch.compile(function, dynamic=True)

    def call(*arguments):
        try:
            return fast(*arguments)
        except TorchDynamoException as error:
            raise cannot_compile(function.__name__, error) from None

    return call


def cannot_compile(name: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(f"--compile: torch cannot compile {name} here ({reason[:200]}): leave "
                      "--compile out (a run that began with it needs what is missing)")


@cache
def check_compiles(device: str) -> None:
    """ValueError where torch cannot compile for this device: found out before anything is done."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("compiling small functions: up to a minute, and again for other shapes",
              file=sys.stderr, flush=True)
    x = torch.randn(5, 2, 8, device=device, requires_grad=True)  # (T, H, K)
    angle = torch.randn(5, 1, 4, device=device)
    with compiled_functions(True):
        turned = tinyrm.rotate(x, angle.cos(), angle.sin())
    try:
        turned.sum().backward()  # torch may compile the backward pass only now
    except RuntimeError as error:
        raise cannot_compile("the gradient of rotate", error) from None
