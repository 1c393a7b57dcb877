"""tinyrm against transformers + peft on the same rows: seconds, memory, share of the machine.

    python tests/benchmark.py                              base on this processor, 4 minutes
    python tests/benchmark.py --device cuda --size large   on a GPU
    python tests/benchmark.py --lengths FILE               row lengths, one a line, for eight rows
    python tests/benchmark.py --against checkpoint         against ourselves, layers recomputed
    python tests/benchmark.py --against compile            against ourselves, layers compiled
    python tests/benchmark.py --against functions          against ourselves with --compile
    python tests/benchmark.py --against lora               what DoRA costs beyond LoRA, both ours
    python tests/benchmark.py --memory                     no peer: bytes a token, longest batches
    python tests/peers.py                                  other peers on a processor

The peer is what one would use instead: ModernBertForMaskedLM with sdpa attention and peft's DoRA,
a padded batch, logits at every position. Both get the same random weights, rows, adapter (DoRA on
Wqkv, Wi and Wo of the upper third; all below frozen) and optimizer. Each side is a process of its
own, which takes a step when told to: steps are timed in turn, and peak memory is the process's. The
first step warms up; the losses and gradients that it gives must be the same on both sides.

Two rates say what a step could take at least: that of a large product, for the FLOPs that it needs,
and that of a large copy, for the bytes that it must move.

The file goes in this order: what both sides get; the two sides; what a step costs at least; a
process for each side; the comparison; memory; the command line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import dora
import tinyrm
import train
from infra.compiled import compiled_functions
from infra.machine import DTYPES, count_parameters, estimate_memory

# ------------------------------------------------------------------------------ what both sides get


class Shape(NamedTuple):
    """A model, and what of it trains."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    vocabulary: int
    frozen: int  # layers, from the bottom
    rank: int  # of the adapters above


SHAPES = {
    "tiny": Shape(64, 96, 4, 2, 500, 2, 4),
    "base": Shape(768, 1152, 22, 12, 50368, 15, 128),
    "large": Shape(1024, 2624, 28, 16, 50368, 15, 128),
}
TARGETS = ("attn.Wqkv", "mlp.Wi", "attn.Wo", "mlp.Wo")  # of the adapters in a layer
ALPHA = 8.0
LENGTHS = [505, 167, 64, 281, 104, 86, 255, 331]  # eight pair rows as they come: 64 to 505 tokens
GPU_LENGTHS = 6 * LENGTHS  # 10,758 tokens: eight rows would time the host that starts the kernels
WORDS = [329, 378]  # whose logits a judge needs


def config_of(size: str) -> dict:
    """The config.json of a shape."""
    shape = SHAPES[size]
    return {
        "model_type": "modernbert",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "pad_token_id": shape.vocabulary - 85,
        "cls_token_id": 1,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "eos_token_id": 2,
    }


class Rows(NamedTuple):
    tokens: list[torch.Tensor]  # of each row
    mask_at: torch.Tensor  # (B,) near the end of each row, as in a cloze
    labels: torch.Tensor  # (B,) words


def random_rows(lengths: list[int]) -> Rows:
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randint(3, 400, (n,), generator=random) for n in lengths]
    mask_at = torch.tensor([n - 3 for n in lengths])
    labels = torch.randint(329, 379, (len(lengths),), generator=random)
    return Rows(tokens, mask_at, labels)


def adapted_model(args: argparse.Namespace) -> tinyrm.ModernBERT:
    """tinyrm's model under its adapters, from fixed seeds: what both sides begin with."""
    shape = SHAPES[args.size]
    adapter = "lora" if args.side == "lora" else args.adapter
    model = tinyrm.load(args.base)
    dora.adapt(model, adapter, shape.rank, ALPHA, shape.frozen, seed=0)

    # the peer has no adapter on the head
    plain = tinyrm.Linear(shape.width, shape.width)
    plain.weight.data = model.head.dense.weight.data
    model.head.dense = plain.requires_grad_(False)

    # B = 0 would make half of the gradients zero
    for adapted in dora.adapters(model).values():
        random = torch.Generator().manual_seed(adapted.B.numel())
        adapted.B.data.copy_(torch.randn(adapted.B.shape, generator=random) / 100)
    return model


# ------------------------------------------------------------------------------------ the two sides


class Side(NamedTuple):
    """What a process can be asked to do."""

    learn: Callable[[], float]  # a training step; returns its loss
    infer: Callable[[], torch.Tensor]  # the logits of WORDS in each row
    adapters: dict[str, torch.nn.Parameter]  # "LAYER.A" and "LAYER.B", by the same names in both
    merge: Callable  # for inference


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def our_side(args: argparse.Namespace) -> Side:
    model = adapted_model(args).to(args.device).set_compute_dtype(args.type)
    model.recompute_layers = args.side == "checkpoint"
    if args.side == "compile":
        for layer in model.model.layers:
            layer.compile()
        last = model.model.layers[-1]
        last.forward_where_read = torch.compile(last.forward_where_read)

    rows = random_rows(args.rows)
    starts = torch.tensor([0, *args.rows]).cumsum(0)  # stays on the CPU
    tokens = torch.cat(rows.tokens).to(args.device)
    read_at = (starts[:-1] + rows.mask_at).to(args.device)
    labels = rows.labels.to(args.device)
    words = torch.tensor(WORDS, device=args.device)
    optimizer = make_optimizer(model)

    def learn():
        optimizer.zero_grad()
        logits = model.logits(model(tokens, starts, read_at)).float()  # (B, V)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def infer():
        return model.logits(model(tokens, starts, read_at), words).float()  # (B, 2)

    return Side(learn, infer, low_rank_parameters(model), lambda: dora.merge(model))


def low_rank_parameters(model: tinyrm.ModernBERT) -> dict[str, torch.nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of all adapters."""
    parameters = {}
    for name, adapted in dora.adapters(model).items():
        parameters[f"{name}.A"] = adapted.A
        parameters[f"{name}.B"] = adapted.B
    return parameters


def adapted_peer(args: argparse.Namespace):
    """transformers' model under peft's adapters, with the numbers of ours: (the model, its
    adapters' parameters by our names)."""
    import peft
    from transformers import ModernBertForMaskedLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    shape = SHAPES[args.size]
    names = [f"model.layers.{i}.{target}" for i in range(shape.frozen, shape.layers)
             for target in TARGETS]
    model = ModernBertForMaskedLM.from_pretrained(args.base, attn_implementation="sdpa").train()
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=shape.rank, lora_alpha=ALPHA, target_modules=names, use_dora=args.adapter == "dora"))

    parameters = {}
    with torch.no_grad():
        for name, ours in dora.adapters(adapted_model(args)).items():
            theirs = model.base_model.model.get_submodule(name)
            parameters[f"{name}.A"] = theirs.lora_A["default"].weight
            parameters[f"{name}.B"] = theirs.lora_B["default"].weight
            parameters[f"{name}.A"].copy_(ours.A)
            parameters[f"{name}.B"].copy_(ours.B)
            if ours.m is not None:
                theirs.lora_magnitude_vector["default"].weight.copy_(ours.m)
    return model, parameters


def peer_side(args: argparse.Namespace) -> Side:
    model, parameters = adapted_peer(args)
    model.to(args.device)

    # the rows, padded to the longest
    rows = random_rows(args.rows)
    count, width = len(args.rows), max(args.rows)
    ids = torch.full((count, width), SHAPES[args.size].vocabulary - 85)  # the padding token
    target = torch.full((count, width), -100)  # no loss there
    for b, row in enumerate(rows.tokens):
        ids[b, :len(row)] = row
        target[b, rows.mask_at[b]] = rows.labels[b]
    mask = (torch.arange(width) < torch.tensor(args.rows)[:, None]).long().to(args.device)
    ids, target = ids.to(args.device), target.to(args.device)
    row_numbers = torch.arange(count, device=args.device)
    mask_at = rows.mask_at.to(args.device)
    optimizer = make_optimizer(model)
    half = args.type == torch.bfloat16
    merged = {}

    def learn():
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            loss = model(input_ids=ids, attention_mask=mask, labels=target).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def infer():
        logits = merged["model"](input_ids=ids, attention_mask=mask).logits  # (B, longest, V)
        return logits[row_numbers, mask_at][:, WORDS].float()  # (B, 2)

    def merge():
        merged["model"] = model.merge_and_unload().eval().to(args.type)

    return Side(learn, infer, parameters, merge)


# ----------------------------------------------------------------------- what a step costs at least


class Flops(NamedTuple):
    """Two for a multiply-add."""

    train: int
    infer: int


def least_flops(args: argparse.Namespace) -> Flops:
    """What must be done in a step. Counted are the products with weights and the attention of the
    packed rows; the last layer's queries, output and MLP for one position a row; no gradient for
    frozen weights; the low-rank products."""
    shape = SHAPES[args.size]
    d, rank = shape.width, shape.rank
    rows, tokens = len(args.rows), sum(args.rows)

    train_flops = infer_flops = 0
    for i in range(shape.layers):
        is_last = i == shape.layers - 1
        products = products_of_layer(shape, tokens, queries=rows if is_last else tokens)
        weights = sum(2 * n * inputs * outputs for n, inputs, outputs in products)
        attention = 4 * d * scores_of_layer(args.rows, is_global=i % 3 == 0, is_last=is_last)
        forward = weights + attention
        infer_flops += forward
        train_flops += forward

        # backward: to the inputs (of the first layer that trains there is no need), and x A^T, g B,
        # dA and dB of the adapters
        if i >= shape.frozen:
            low_rank = sum(2 * n * rank * (inputs + outputs) * 2 for n, inputs, outputs in products)
            train_flops += weights + 2 * attention + low_rank
            if i == shape.frozen:
                train_flops -= 2 * tokens * d * 3 * d

    head = 2 * rows * d * d
    decoder = 2 * rows * d * shape.vocabulary
    return Flops(train_flops + 2 * (head + decoder), infer_flops + head + 4 * rows * d)


class Product(NamedTuple):
    """x W^T"""

    vectors: int
    inputs: int
    outputs: int


def products_of_layer(shape: Shape, tokens: int, queries: int) -> list[Product]:
    """Wq, Wk with Wv, attn.Wo, Wi, mlp.Wo: all but the second for the queries only."""
    d, f = shape.width, shape.feed_forward
    return [Product(queries, d, d), Product(tokens, d, 2 * d), Product(queries, d, d),
            Product(queries, d, 2 * f), Product(queries, f, d)]


class Bytes(NamedTuple):
    train: int
    infer: int


def least_bytes(args: argparse.Namespace) -> Bytes:
    """What a step must move to and from memory, if each of its operations reads what it needs once
    and writes its result once: the norms (with the cast), the products, RoPE, attention, GeGLU, the
    additions to the residual stream; in training the same backwards, A, B and m, and AdamW. The
    residual stream and what is stored of weights have 4 bytes, all else that of the compute
    precision. The head is left out: it is of one place a row."""
    shape, size = SHAPES[args.size], args.type.itemsize
    d, f = shape.width, shape.feed_forward
    rows, tokens = len(args.rows), sum(args.rows)

    train_bytes = infer_bytes = 8 * tokens * d  # the embeddings, read and written
    for i in range(shape.layers):
        queries = rows if i == shape.layers - 1 else tokens
        products = products_of_layer(shape, tokens, queries)

        # forward: two norms (4 bytes in, size out), two additions (two in, one out)
        stream = (tokens + queries) * d * (4 + size) + 2 * queries * d * (4 + size + 4)
        numbers = sum(p.inputs * p.outputs + p.vectors * (p.inputs + p.outputs) for p in products)
        numbers += 2 * (queries + tokens) * d  # RoPE, of q and k: in and out
        numbers += 2 * (queries + tokens) * d  # attention: q, k, v in, y out
        numbers += 3 * queries * f  # GeGLU: a and b in, one out
        forward = stream + size * numbers
        infer_bytes += forward
        train_bytes += forward

        if i >= shape.frozen:
            train_bytes += backward_bytes(args, products, tokens, queries)
    vocabulary = shape.vocabulary * d * size  # the decoder's weights, forward and backward
    return Bytes(train_bytes + 2 * vocabulary, infer_bytes)


def backward_bytes(args: argparse.Namespace, products: list[Product], tokens: int,
                   queries: int) -> int:
    """Of a layer that trains, with the step of its adapters."""
    shape, size = SHAPES[args.size], args.type.itemsize
    d, f = shape.width, shape.feed_forward
    passes_of_outputs = 2  # of g = dL/dy: for dx, and for dA and dB together
    if args.adapter == "dora":
        passes_of_outputs = 4  # g and y once more, for dm

    numbers = adapter = 0
    for p in products:
        numbers += p.inputs * p.outputs + 2 * p.vectors * p.inputs  # W'; dx out, x in
        numbers += passes_of_outputs * p.vectors * p.outputs
        adapter += shape.rank * (p.inputs + p.outputs)
    numbers += 2 * (queries + tokens) * d  # RoPE
    numbers += 2 * (2 * queries + 2 * tokens) * d  # attention: q, k, v, y, dy in; dq, dk, dv out
    numbers += 5 * queries * f  # GeGLU: its gradient, a and b in; two out

    # two norms (x and the gradient in, one out), two additions (two in, one out)
    stream = (tokens + queries) * d * (4 + size + 4) + 2 * queries * d * 12
    weights = sum(p.inputs * p.outputs for p in products)
    # AdamW reads a number, its gradient and two moments, and writes three; W' is made of W
    return size * numbers + stream + 28 * adapter + weights * (4 + size)


def scores_of_layer(lengths: list[int], is_global: bool, is_last: bool) -> int:
    """How many scores attention has, over all rows."""
    total = 0
    for n in lengths:
        if is_global:
            total += n if is_last else n * n
            continue
        for j in range(n):  # itself, and up to 64 tokens to each side
            total += min(j, 64) + 1 + min(n - 1 - j, 64)
    return total


def machine_flops(args: argparse.Namespace) -> float:
    """FLOPs a second of one large product: what the machine can do."""
    n = 2048
    if args.size == "tiny":
        n = 256
    elif args.device == "cuda":
        n = 8192
    x = torch.randn(n, n, device=args.device, dtype=args.type)
    seconds = [seconds_of(args, lambda: F.linear(x, x)) for _ in range(5)]
    return 2 * n**3 / statistics.median(seconds[2:])


def machine_bytes(args: argparse.Namespace) -> float:
    """Bytes a second of one large copy, read and written: what the memory can do."""
    count = 2**26  # numbers of 4 bytes: 256 MB, beyond the caches
    if args.size == "tiny":
        count = 2**20
    elif args.device == "cuda":
        count = 2**28
    source = torch.zeros(count, device=args.device)
    target = torch.empty_like(source)
    seconds = [seconds_of(args, lambda: target.copy_(source)) for _ in range(5)]
    return 2 * 4 * count / statistics.median(seconds[2:])


def seconds_of(args: argparse.Namespace, call: Callable) -> float:
    if args.device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


# -------------------------------------------------------------------------- a process for each side


def work(args: argparse.Namespace, side: str, what: str, file: str):
    """One side: a step for each line that comes in, its seconds out; at the end its peak memory.
    The first training step leaves loss and gradients in `file`."""
    args.side = side
    made = peer_side(args) if side == "peer" else our_side(args)
    step = made.learn
    if what == "infer":
        made.merge()
        step = made.infer
    else:
        loss = made.learn()
        tensors = {"loss": torch.tensor(loss)}
        for name, p in made.adapters.items():
            tensors[name] = p.grad.detach().float().cpu().contiguous()
        save_file(tensors, file)

    if side in ("compile", "functions"):  # they compile anew for the first few
        for _ in range(3):
            step()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(seconds_of(args, step), flush=True)
    print(peak_bytes(args))


def peak_bytes(args: argparse.Namespace) -> int:
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    # not ru_maxrss: a child process begins with its parent's
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Worker:
    """A process with one side, as its parent sees it."""

    def __init__(self, args: argparse.Namespace, side: str, what: str, file: str):
        words = ["--device", args.device, "--size", args.size, "--dtype", name_of(args.type),
                 "--adapter", args.adapter, "--base", args.base, "--rows"]
        words += [str(n) for n in args.rows]
        words += ["--worker", side, what, file]
        command = [sys.executable, "-W", "ignore", __file__]
        self.process = subprocess.Popen(command + words, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended: {self.process.wait()}")
        return line.strip()

    def step(self) -> float:
        """Its seconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.hear())

    def end(self) -> int:
        """The peak of its memory, in bytes."""
        return int(self.process.communicate()[0])


def name_of(dtype: torch.dtype) -> str:
    """fp32 or bf16"""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"{dtype} has no name here")


def long_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------- comparison


def compare(args: argparse.Namespace, what: str) -> dict:
    """One line of the table: both sides in turn, medians; and for training how far they agree."""
    names = ("ours", args.against)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in names}
        workers = {name: Worker(args, name, what, files[name]) for name in names}
        for worker in workers.values():
            worker.hear()  # ready
        agreement = {}
        if what == "train" and args.against != "lora":  # which is another function
            agreement = agree(args, load_file(files["ours"]), load_file(files[args.against]))

    # in turn, since a machine's clock moves; in training the first step was taken already
    seconds = {name: [] for name in names}
    speeds = []
    if what == "infer":
        for worker in workers.values():
            worker.step()
    for _ in range(args.repeats):
        speeds.append(machine_flops(args))
        for name, worker in workers.items():
            seconds[name].append(worker.step())

    ours, theirs = (statistics.median(seconds[name]) for name in names)
    flops, moved = least_flops(args), least_bytes(args)
    line = {
        "what": what,
        "dtype": long_name(args.type),
        "ours_s": ours,
        "peer_s": theirs,
        "ratio": theirs / ours,
        "tokens_per_s": sum(args.rows) / ours,
        "flops": flops.train if what == "train" else flops.infer,
        "machine_flops": statistics.median(speeds),
        "bytes": moved.train if what == "train" else moved.infer,
        "machine_bytes": machine_bytes(args),
        "all_seconds": seconds,
        "peak_bytes": [worker.end() for worker in workers.values()],
    }
    line.update(agreement)
    return line


def agree(args: argparse.Namespace, ours: dict, theirs: dict) -> dict:
    """The losses, and the largest difference of an adapter's gradients, relative in their norms."""
    gaps = []
    for name, gradient in ours.items():
        if name != "loss":
            gaps.append(((gradient - theirs[name]).norm() / theirs[name].norm()).item())
    losses = (ours["loss"].item(), theirs["loss"].item())
    worst = max(gaps)

    most_loss, most_gap = 1e-3, 1e-3
    if args.type == torch.bfloat16:  # which rounds as it likes
        most_loss, most_gap = 0.1, 0.5
    assert abs(losses[0] - losses[1]) < most_loss and worst < most_gap, (losses, worst)
    return {"loss": losses, "worst_relative_gradient_gap": worst}


def types_to_compare(args: argparse.Namespace) -> list[torch.dtype]:
    """fp32 and bf16, as asked; "auto" leaves out bf16 where its products are slower."""
    if args.dtype in DTYPES:
        return [DTYPES[args.dtype]]
    chosen = list(DTYPES.values())
    if args.dtype == "both":
        return chosen

    speed = {}
    for dtype in chosen:
        args.type = dtype
        speed[dtype] = machine_flops(args)
    share = speed[torch.bfloat16] / speed[torch.float32]
    if share >= 1:
        return chosen
    print(f"bfloat16 is left out: its products run at {share:.0%} of float32's rate here (--dtype "
          "both takes it in)\n")
    return [torch.float32]


def show_comparison(args: argparse.Namespace) -> list[dict]:
    """Print the table, and return its lines."""
    types = types_to_compare(args)
    print(f"| step | compute | tinyrm | {args.against} | ratio | tokens/s | share of products | "
          "share of copies | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    lines = []
    for what in ("train", "infer"):
        for dtype in types:
            args.type = dtype
            line = compare(args, what)
            lines.append(line)

            share = line["flops"] / line["ours_s"] / line["machine_flops"]
            speed = line["machine_flops"] / 1e9
            moved = line["bytes"] / line["ours_s"] / line["machine_bytes"]
            copies = line["machine_bytes"] / 1e9
            our_peak, their_peak = (peak / 1e9 for peak in line["peak_bytes"])
            print(f"| {what} | {line['dtype']:8} | {line['ours_s']:4.2f} s | "
                  f"{line['peer_s']:4.2f} s | {line['ratio']:4.2f}x | "
                  f"{line['tokens_per_s']:8,.0f} | {share:4.0%} of {speed:,.0f} GF/s  | "
                  f"{moved:4.0%} of {copies:,.0f} GB/s | "
                  f"{our_peak:.1f} / {their_peak:.1f} GB |", flush=True)
    print()
    for line in lines:
        if "loss" in line:
            ours, theirs = line["loss"]
            print(f"{line['dtype']}: same loss ({ours:.5f}, {theirs:.5f}), gradients within "
                  f"{line['worst_relative_gradient_gap']:.0e}")
    return lines


# ------------------------------------------------------------------------------------------- memory


def show_memory(args: argparse.Namespace):
    """Bytes that a token takes in a training step, measured and by the count of
    infra.machine.estimate_memory, and the longest batch for 8, 16, 24 and 80 GB by that count."""
    print("| layers recomputed | compute | bytes a token, measured | counted |\n|---|---|---|---|")
    for side in ("ours", "checkpoint"):
        for dtype in DTYPES.values():
            args.type = dtype
            recomputed = "yes" if side == "checkpoint" else "no"
            print(f"| {recomputed:3} | {long_name(dtype):8} | {measured(args, side):10,.0f} | "
                  f"{counted(args, side):10,.0f} |", flush=True)

    print("\ntokens of the longest batch in bfloat16, by the count: 0.6 of what weights, "
          "gradients, moments, copies and 1 GB for torch leave\n\n"
          "| model and recipe | layers recomputed | 8 GB | 16 GB | 24 GB | 80 GB |\n"
          "|---|---|---|---|---|---|")
    for size in ("base", "large"):
        for domain in ("reasoning", "chat"):
            for recompute_layers in (False, True):
                show_longest(size, domain, recompute_layers)


def measured(args: argparse.Namespace, side: str) -> float:
    """Bytes a token: the difference between two and six times the rows."""
    peaks = {}
    for times in (2, 6):
        some = argparse.Namespace(**vars(args))
        some.rows = args.rows * times
        with tempfile.TemporaryDirectory() as folder:
            worker = Worker(some, side, "train", str(Path(folder, "first")))
            worker.hear()  # ready
            peaks[times] = worker.end()
    return (peaks[6] - peaks[2]) / (4 * sum(args.rows))


def counted(args: argparse.Namespace, side: str) -> int:
    """Bytes a token by the count, for DoRA as the benchmark has it."""
    config = tinyrm.Config.from_json(config_of(args.size))
    memory = estimate_memory(config, args.type, "dora", SHAPES[args.size].frozen,
                             side == "checkpoint", parameters=0, trainable=0)
    return memory.per_token


def show_longest(size: str, domain: str, recompute_layers: bool):
    """A line of the second table: one recipe."""
    settings = train.Settings(**train.RECIPES[size][domain])
    config = tinyrm.Config.from_json(config_of(size))
    with torch.device("meta"):
        model = tinyrm.ModernBERT(config)
        dora.adapt(model, settings.adapter, settings.rank, settings.alpha, settings.freeze)
    sizes = count_parameters(model)
    memory = estimate_memory(config, torch.bfloat16, settings.adapter, settings.freeze,
                             recompute_layers, sizes.all, sizes.trainable)

    cells = []
    for gigabytes in (8, 16, 24, 80):
        left = gigabytes * 1e9 - sum(memory.fixed.values()) - 1e9
        tokens = 0.6 * max(0, left) / memory.per_token
        cells.append(f"{tokens:,.0f}")
    recomputed = "yes" if recompute_layers else "no"
    print(f"| {size}, {domain}: {settings.adapter}, {settings.freeze} frozen | {recomputed} | "
          + " | ".join(cells) + " |")


# --------------------------------------------------------------------------------- the command line


def machine_name(args: argparse.Namespace) -> str:
    if args.device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} threads"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--size", default="base", choices=SHAPES)
    add("--adapter", default="dora", choices=["dora", "lora"])
    add("--dtype", default="auto", choices=["auto", "both", *DTYPES],
        help="auto: both, but bf16 only where its products are faster")
    add("--lengths", metavar="FILE", help="row lengths, one a line")
    add("--against", default="peer", choices=["peer", "checkpoint", "compile", "functions", "lora"])
    add("--memory", action="store_true", help="bytes a token, and longest batches")
    add("--repeats", type=int, default=2)
    add("--out", metavar="JSON", help="write all numbers here")
    add("--base", help=argparse.SUPPRESS)  # the folder of the weights that both begin with
    add("--rows", type=int, nargs="+", help=argparse.SUPPRESS)
    add("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.lengths:
        args.rows = [int(word) for word in Path(args.lengths).read_text().split()]
    if args.rows is None:
        args.rows = GPU_LENGTHS if args.device == "cuda" else LENGTHS
    args.type = DTYPES.get(args.dtype, torch.float32)
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    if args.worker:
        side = args.worker[0]
        with compiled_functions(side == "functions"):
            work(args, *args.worker)
        return

    tokens, padded = sum(args.rows), len(args.rows) * max(args.rows)
    print(f"{machine_name(args)}; torch {torch.__version__}; {args.size}, {args.adapter}; "
          f"{len(args.rows)} rows, {tokens:,} tokens ({padded:,} padded)\n")
    with tempfile.TemporaryDirectory() as args.base:
        model = tinyrm.ModernBERT(tinyrm.Config.from_json(config_of(args.size))).init_weights(0)
        tinyrm.save(model, args.base)
        del model  # a large one: the processes need the room
        if args.memory:
            show_memory(args)
            return
        lines = show_comparison(args)

    if args.out:
        result = {"machine": machine_name(args), "torch": torch.__version__, "size": args.size,
                  "rows": args.rows, "lines": lines}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
