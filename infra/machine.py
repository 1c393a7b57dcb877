"""What this machine has: the device, the precision, the attention kernel, and what computes matrix
products, with the reasons in words; memory that is used, and memory that a run will need."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

from dora import adapters
from infra.compiled import check_compiles, names_of_compiled
from tinyrm import WIDE, Config, ModernBERT, reordered_dtypes, uses_flash

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Machine(NamedTuple):
    device: torch.device
    dtype: torch.dtype  # that products and attention are computed in
    on_gpu: bool
    reason: str  # why these, in a line
    matmul_backend: str = "default"  # of float32 products on a processor: see float32_matmul
    compiled: bool = False  # small functions under torch.compile: see infra/compiled.py


def pick_device(device: str = "auto", dtype: str = "auto", compile: bool = False) -> Machine:
    """What the user asked for, as far as the machine has it. ValueError for what it has not."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: give auto, cpu or cuda")
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"--dtype {dtype}: give auto, fp32 or bf16")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")

    device_reason = "asked for"
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
        device_reason = "CUDA is there" if has_cuda else "no CUDA here"

    dtype_reason = "asked for"
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
        dtype_reason = f"the default on {device}"

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    chosen = DTYPES[dtype]
    name = str(chosen).removeprefix("torch.")
    reason = (f"{device} ({device_reason}), {name} ({dtype_reason}), "
              f"attention: {attention_kernel(device, chosen)}")
    if compile:
        check_compiles(device)
        reason += f", compiled (asked for): {names_of_compiled()}"
    return Machine(torch.device(device), chosen, device != "cpu", reason, compiled=compile)


def attention_kernel(device: str | torch.device, dtype: torch.dtype) -> str:
    """The kernel that attention runs on, and why it is not the flash kernel where it is not."""
    if torch.device(device).type != "cuda":
        return "sdpa in blocks (no CUDA)"
    if uses_flash(device, dtype):
        return "variable-length flash"
    if dtype not in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        return f"sdpa in blocks (the flash kernel has no {name})"
    return "sdpa in blocks (the flash kernel needs an Ampere GPU or newer)"


# ------------------------------------------------------ float32 matrix products on a processor
#
# torch computes them by one of two libraries, its backends: on an x86 processor by MKL, or by
# oneDNN. On some processors of AMD's the second is up to twice as quick, at the same rounding.
# torch asks oneDNN only where it was allowed to round to bf16 in between ("medium" of
# torch.set_float32_matmul_precision). On a processor with bf16 units oneDNN then does round to
# bf16, on others it does not. So it is tried: once in a process for each width. This is for
# training. What needs no gradient goes through oneDNN without any setting:
# tinyrm.reordered_product.


class MatmulChoice(NamedTuple):
    backend: str  # "default": as torch is set; "onednn"
    reason: str


QUICKER = 4 / 3  # by how much oneDNN must be quicker to be taken: timings are not exact
WORSE = 4  # its error may be so many times that of the default: bf16's is 10,000 times


def with_matmul_backend(machine: Machine, width: int) -> Machine:
    """The machine with the backend of the float32 products of a model of this width, and the
    reason. The choice rests on timings: what has to give the same bits again must keep it. Nothing
    is tried for a model that is not wide; it stays with the default (its products are small, and
    oneDNN was slower at them)."""
    if machine.on_gpu or machine.dtype != torch.float32 or width < WIDE:
        return machine
    chosen = try_matmul_backends(width, torch.get_num_threads())
    reason = f"{machine.reason}, products: {chosen.reason}"
    return machine._replace(matmul_backend=chosen.backend, reason=reason)


def try_matmul_backends(width: int, threads: int) -> MatmulChoice:
    """The backend that a model of this width takes here, by a trial of both."""
    trial = time_matmul_backends(width, threads)
    return quicker_matmul_backend(trial.seconds, trial.errors)


class MatmulTrial(NamedTuple):
    """Of the backends "default" and "onednn"."""

    seconds: dict[str, float]  # of the processor, the best of some
    errors: dict[str, float]  # relative, against float64


@cache
def time_matmul_backends(width: int, threads: int) -> MatmulTrial:
    """Both backends, in turn, at the product of a layer's Wo. It takes about a tenth of a second.
    `threads` is only for the cache."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, width, generator=generator)  # with fewer tokens MKL is slower than in use
    weight = torch.randn(width, width, generator=generator)
    exact = x[:64].double() @ weight.double().T

    seconds, errors = {}, {}
    for _ in range(4):
        for backend in ("default", "onednn"):
            with float32_matmul(backend):
                began = time.process_time()  # not that of other work on this machine
                y = torch.nn.functional.linear(x, weight)
                took = time.process_time() - began
            seconds[backend] = min(took, seconds.get(backend, took))
            errors[backend] = ((y[:64] - exact).norm() / exact.norm()).item()
    return MatmulTrial(seconds, errors)


def rounds_as_float32(errors: dict[str, float]) -> bool:
    """Whether oneDNN's products have the error of float32 here, and not that of bf16."""
    return errors["onednn"] <= WORSE * errors["default"]


def check_matmul_backend(width: int) -> None:
    """ValueError where oneDNN would round to bf16: a run that began with it cannot go on here."""
    if not rounds_as_float32(time_matmul_backends(width, torch.get_num_threads()).errors):
        raise ValueError("its float32 products went through oneDNN, which rounds to bf16 on this "
                         "processor: go on where it began, or on one without bf16 units")


def quicker_matmul_backend(seconds: dict[str, float], errors: dict[str, float]) -> MatmulChoice:
    """oneDNN where it rounds as float32 does and is quicker by a third."""
    ratio = seconds["default"] / seconds["onednn"]
    numbers = (f"{ratio:.2f}x as quick by processor time, error {errors['onednn']:.0e} "
               f"(else {errors['default']:.0e})")
    if not rounds_as_float32(errors):
        return MatmulChoice("default", f"as torch is set (oneDNN rounds to bf16: {numbers})")
    if ratio < QUICKER:
        return MatmulChoice("default", f"as torch is set (oneDNN: {numbers})")
    return MatmulChoice("onednn", f"oneDNN ({numbers})")


@contextmanager
def float32_matmul(backend: str) -> Iterator[None]:
    """Inside it the processor computes float32 products by this backend, forward and backward. Then
    torch is set as it was before. The setting is the whole process's, while it lasts: two threads
    must not be inside at once."""
    if backend == "default":
        yield
        return
    setting = torch.backends.mkldnn.matmul  # a GPU's products have a setting of their own
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"  # allowed, not done: see above
    try:
        yield
    finally:
        setting.fp32_precision = before


# ---------------------------------------------------------------------------------------- memory


def peak_bytes(device: torch.device) -> int:
    """The most memory that was used so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB, but bytes on a Mac


class Memory(NamedTuple):
    """An estimate of what training needs, in bytes."""

    fixed: dict[str, int]  # what it is -> bytes, however many tokens there are
    per_token: int  # beyond that, for each token of a micro-batch


def estimate_memory(config: Config, dtype: torch.dtype, adapter: str, freeze: int,
                    recompute_layers: bool, parameters: int, trainable: int,
                    reordered: bool = False) -> Memory:
    """What training keeps. `tests/benchmark.py --memory` compares it with what is measured.

    Fixed are the weights in float32, for what trains the gradients and Adam's two moments, and the
    copies in the compute precision: in 16 bits of every layer, in float32 of the W' under an
    adapter. Where weights of wide products are `reordered` (tinyrm.reordered_product), every
    layer once more: the frozen ones in training, the others once something was judged.

    For the backward pass autograd keeps of each layer and token the residual stream twice in
    float32, and in the compute precision the inputs and outputs of the four products, and q, k, v
    once more after RoPE: 11 D + 3 FF. If layers are recomputed, it keeps the stream of each layer,
    and all of one layer. The layer that the backward pass is at takes about twice these, in
    float32."""
    D, FF = config.hidden_size, config.intermediate_size
    unfrozen = config.num_hidden_layers - freeze
    layer_weights = 4 * D * D + 3 * D * FF

    copied_layers = 0
    if dtype.itemsize < 4:
        copied_layers = config.num_hidden_layers
    elif adapter != "full":
        copied_layers = unfrozen
    name = str(dtype).removeprefix("torch.")
    fixed = {
        "weights": 4 * parameters,
        "gradients and moments": 12 * trainable,
        f"copies in {name}": copied_layers * layer_weights * dtype.itemsize,
    }
    if reordered:
        everywhere = config.num_hidden_layers * layer_weights * dtype.itemsize
        fixed["copies reordered for oneDNN"] = everywhere

    one_layer = 2 * 4 * D + dtype.itemsize * (11 * D + 3 * FF)
    if recompute_layers:
        kept = one_layer + 4 * D * max(1, unfrozen)
    else:
        kept = one_layer * max(1, unfrozen)
    layer_at_work = 2 * 4 * (11 * D + 3 * FF)
    return Memory(fixed, kept + layer_at_work)


def memory_of(model: ModernBERT, dtype: torch.dtype) -> Memory:
    """The estimate for a model that is ready to train."""
    parameters, trainable = count_parameters(model)
    frozen = 0
    for layer in model.model.layers:
        if not any(p.requires_grad for p in layer.parameters()):
            frozen += 1
    adapter = "dora" if adapters(model) else "full"
    on_cpu = next(model.parameters()).device.type == "cpu"
    reordered = on_cpu and model.config.hidden_size >= WIDE and dtype in reordered_dtypes()
    return estimate_memory(model.config, dtype, adapter, frozen, model.recompute_layers, parameters,
                           trainable, reordered)


class ParameterCount(NamedTuple):
    all: int
    trainable: int


def count_parameters(model: ModernBERT) -> ParameterCount:
    total, trainable = 0, 0
    for p in model.parameters():
        total += p.numel()
        if p.requires_grad:
            trainable += p.numel()
    return ParameterCount(total, trainable)


class TokenBudget(NamedTuple):
    tokens: int  # at most in a micro-batch
    reason: str


def pick_micro_tokens(asked: int, model: ModernBERT, machine: Machine) -> TokenBudget:
    """How many tokens go through the model at once; `asked` beats what the memory suggests. It
    changes memory and speed, the result by rounding alone."""
    if asked:
        return TokenBudget(asked, "asked for")
    if not machine.on_gpu:
        tokens = cpu_tokens(model.config.hidden_size)
        return TokenBudget(tokens, "a processor is no faster, or slower, with more")
    memory = memory_of(model, machine.dtype)
    free = torch.cuda.mem_get_info(machine.device)[0]  # the weights are there already
    free -= sum(size for what, size in memory.fixed.items() if what != "weights")
    free = max(free, 0)
    tokens = int(0.6 * free / memory.per_token)
    tokens = max(2048, min(tokens, 131_072))
    reason = f"0.6 of the {free / 2**30:.0f} GiB that gradients, moments and copies leave"
    return TokenBudget(tokens, reason)


def cpu_tokens(width: int) -> int:
    """How many tokens a processor takes at once. Where more of a wide model are taken, outputs of
    products pass the 32 MiB up to which glibc keeps memory: each then costs page faults anew (4 to
    15 % of the time of the base shape at 4,096 tokens)."""
    return 2048 if width >= WIDE else 4096
