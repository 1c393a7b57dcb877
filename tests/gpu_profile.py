"""Where the time of a training step and of judging goes on a GPU.

    python tests/gpu_profile.py                                  large, on CUDA
    python tests/gpu_profile.py --device cpu --size tiny         to try it without one

It prints, for batches of 2,000, 8,000 and 65,536 tokens, seconds and bytes a token of a training
step (forward and backward) and of judging; the operations of a step that wait for the device; how
much two gradients of the same batch differ (the flash kernel adds in no fixed order), and the time
of a step under deterministic algorithms, where they do not; the kernels of a step by their time;
and a step with the small functions compiled, as --compile has them.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from benchmark import SHAPES, config_of  # noqa: E402

import dora  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from data import Batch  # noqa: E402
from infra.compiled import compiled_functions, names_of_compiled  # noqa: E402

FORMAT = SimpleNamespace(head="cloze", context="pair", label_ids=(1, 2))
REPEATS = 3


def make_model(size: str, device: str) -> tinyrm.ModernBERT:
    """A model with random weights under DoRA, computing in bf16."""
    shape = SHAPES[size]
    with tempfile.TemporaryDirectory() as folder:
        model = tinyrm.ModernBERT(tinyrm.Config.from_json(config_of(size))).init_weights(0)
        tinyrm.save(model, folder)
        model = tinyrm.load(folder).to(device)
    dora.adapt(model, "dora", shape.rank, 8.0, shape.frozen)
    return model.set_compute_dtype(torch.bfloat16)


def make_batch(tokens: int, vocabulary: int, device: str) -> Batch:
    """Pairs of rows of 300 to 1,700 tokens, at least `tokens` of them in all."""
    lengths = []
    while sum(lengths) < tokens:
        lengths += [random.randint(300, 1700)] * 2  # both orders
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Batch(
        tokens=torch.randint(9, vocabulary, (sum(lengths),)).to(device),
        starts=starts,
        read_at=(starts[1:] - 3).to(device),
        labels=(torch.arange(len(lengths)) % 2).to(device),
    )


class Profile:
    """What is measured on one model."""

    def __init__(self, model: tinyrm.ModernBERT, device: str):
        self.model = model
        self.device = device
        self.on_gpu = device == "cuda"

    def learn(self, batch: Batch):
        train.loss_and_correct(self.model, FORMAT, batch).loss.backward()

    @torch.inference_mode()
    def judge(self, batch: Batch):
        h = self.model(batch.tokens, batch.starts, batch.read_at)
        self.model.logits(h, torch.tensor(FORMAT.label_ids, device=self.device))

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, what: str, call, batch: Batch):
        """Seconds and bytes a token, after two calls that are not counted."""
        call(batch)
        call(batch)
        self.wait()
        before = 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()

        began = time.perf_counter()
        for _ in range(REPEATS):
            call(batch)
        self.wait()
        seconds = (time.perf_counter() - began) / REPEATS

        n = len(batch.tokens)
        line = f"{what:6} {n:7,} tokens  {seconds:8.4f} s  {n / seconds:10,.0f} tokens/s"
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated() - before
            line += f"  {peak / n:10,.0f} bytes a token"
        print(line, flush=True)

    def gradient(self, batch: Batch) -> torch.Tensor:
        self.model.zero_grad()
        self.learn(batch)
        parts = [p.grad.ravel() for p in self.model.parameters() if p.requires_grad]
        return torch.cat(parts)

    def show_waits_and_gap(self, batch: Batch):
        """Every operation that waits is a warning here."""
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        first = self.gradient(batch)
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        again = self.gradient(batch)
        gap = (first - again).norm() / first.norm()
        print(f"two gradients of one batch differ by {gap:.1e} of their norm", flush=True)

    def show_deterministic(self, batch: Batch):
        """What it costs that two gradients are the same bits."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses
        torch.use_deterministic_algorithms(True)
        same = torch.equal(self.gradient(batch), self.gradient(batch))
        print(f"under deterministic algorithms they are the same bits: {same}", flush=True)
        self.time("learn", self.learn, batch)
        torch.use_deterministic_algorithms(False)

    def show_kernels(self, batch: Batch):
        with torch.profiler.profile() as profile:
            self.learn(batch)
            self.wait()
        order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        print(profile.key_averages().table(order, row_limit=18), flush=True)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="large", choices=SHAPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_000, 8_000, 65_536])
    args = parser.parse_args(argv)

    random.seed(0)
    torch.manual_seed(0)
    profile = Profile(make_model(args.size, args.device), args.device)
    vocabulary = min(2000, SHAPES[args.size].vocabulary)
    for tokens in args.tokens:
        batch = make_batch(tokens, vocabulary, args.device)
        profile.time("learn", profile.learn, batch)
        profile.time("judge", profile.judge, batch)

    profile.show_waits_and_gap(batch)
    profile.show_deterministic(batch)
    profile.show_kernels(batch)

    print(f"compiled: {names_of_compiled()}", flush=True)
    with compiled_functions(True):
        profile.time("learn", profile.learn, batch)
        profile.time("judge", profile.judge, batch)
        profile.show_kernels(batch)


if __name__ == "__main__":
    main()
