"""On a CUDA device: the flash kernel against float64, the model against itself on the processor,
what must not wait, a run, the benchmark. What the path to the kernel asks of it is tested without a
GPU in test_tinyrm.py and test_causal.py.

    pytest -m gpu tests/test_gpu.py
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark
import peers
import pytest
import torch
from oracles import random_rows, small_config, wild

import data
import dora
import tinyrm
import train
from infra.hub import ROOT
from infra.machine import pick_device

HAS_CUDA = torch.cuda.is_available()
HAS_FLASH = HAS_CUDA and tinyrm.uses_flash("cuda", torch.bfloat16)


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")(test))


def flash(test):
    reason = "no GPU with the flash kernel"
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_FLASH, reason=reason)(test))


@flash
@pytest.mark.parametrize("window", [None, 16, 64])
@pytest.mark.parametrize("lengths", [[1], [127], [129, 1, 3, 64], [500, 2, 2, 77], [3000, 5000]])
def test_the_flash_kernel_and_its_gradients_equal_plain_attention(lengths, window):
    config = small_config(local_attention=2 * (window or 64))
    starts, total = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    tokens = torch.zeros(total, dtype=torch.long, device="cuda")
    layout = tinyrm.pack_layout(config, tokens, starts, None, torch.bfloat16)
    assert layout.flash and layout.local_mask is None

    random = torch.Generator("cuda").manual_seed(0)
    q, k, v, weight = (torch.randn(total, 2, 32, device="cuda", generator=random).bfloat16()
                       for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours = tinyrm.attention(*inputs, layout, window)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)

    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    plain = tinyrm.plain_attention(*exact, tinyrm.may_attend(starts, window))
    wanted = torch.autograd.grad((plain * weight.cpu().double()).sum(), exact)
    for mine, right in zip((ours, *gradients), (plain, *wanted), strict=True):
        gap = (mine.cpu().double() - right).norm() / right.norm().clamp(min=1e-9)
        assert gap < 0.02 or right.norm() < 1e-6  # bf16: 1/256 an operation


@flash
def test_one_query_a_row_on_the_flash_kernel_is_that_row_of_all():
    model = wild(small_config()).eval().cuda().set_compute_dtype(torch.bfloat16)
    _, tokens, starts, read_at = random_rows([150, 40, 300, 7])
    with torch.inference_mode():
        some = model(tokens.cuda(), starts, read_at.cuda())
        every = model(tokens.cuda(), starts)[read_at.cuda()]
    assert (some - every).abs().max() < 0.05 * every.abs().max()


@gpu
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_the_device_gives_what_the_processor_gives(dtype, most):
    model = wild(small_config(num_hidden_layers=7))
    _, tokens, starts, read_at = random_rows([150, 40, 700])
    results = []
    for device, compute_dtype in (("cpu", torch.float32), ("cuda", dtype)):
        model.to(device).set_compute_dtype(compute_dtype).zero_grad()
        h = model(tokens.to(device), starts, read_at.to(device))
        logits = model.logits(h).float()
        logits.logsumexp(1).sum().backward()
        gradients = [p.grad.cpu() for p in model.parameters()]
        results.append([logits.detach().cpu(), *gradients])
    for mine, right in zip(results[1], results[0], strict=True):
        assert (mine - right).norm() <= most * right.norm() + 1e-6


@gpu
def test_nothing_of_a_forward_pass_waits_for_the_device():
    model = wild(small_config()).eval().cuda().set_compute_dtype(torch.bfloat16)
    _, tokens, starts, read_at = random_rows([150, 40])
    tokens, read_at = tokens.cuda(), read_at.cuda()
    model(tokens, starts, read_at)  # what is done once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(tokens, starts, read_at)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.parametrize("context", ["pair", "single"])
def test_nothing_of_a_micro_batch_waits_for_the_device(context):
    # from the rows to the gradient, under DoRA, with and without recomputed layers
    model = wild(small_config()).cuda()
    dora.adapt(model, "dora", rank=4, alpha=8.0, freeze=1)
    model.set_compute_dtype(torch.bfloat16)
    rows = [data.Row([5] * length, length - 3, i % 2, 0, {}) for i, length in enumerate([150, 40])]
    how = SimpleNamespace(head="cloze", context=context, label_ids=(5, 6))

    def micro_batch():
        batch = data.pack(rows, "cuda")
        train.loss_and_correct(model, how, batch).loss.backward()

    micro_batch()  # what is done once
    for recompute_layers in (False, True):
        model.recompute_layers = recompute_layers
        torch.cuda.set_sync_debug_mode("error")
        try:
            micro_batch()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@flash
def test_gradients_repeat_to_rounding_and_in_bits_under_deterministic_algorithms(monkeypatch):
    # the flash kernel's backward pass adds up dq with atomics, in no fixed order
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses
    model = wild(small_config()).cuda().set_compute_dtype(torch.bfloat16)
    _, tokens, starts, read_at = random_rows([1500, 400, 700])
    tokens, read_at = tokens.cuda(), read_at.cuda()

    def gradient():
        model.zero_grad()
        model.logits(model(tokens, starts, read_at)).float().logsumexp(1).sum().backward()
        return torch.cat([p.grad.ravel() for p in model.parameters()])

    first, second = gradient(), gradient()
    assert (first - second).norm() < 0.01 * first.norm()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(), gradient())
    finally:
        torch.use_deterministic_algorithms(False)


@flash
def test_the_device_line_names_the_flash_kernel():
    assert "variable-length flash" in pick_device("cuda").reason


@gpu
def test_a_run_on_the_device_elicits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--domain", "safety", "--model", "nano", "--data", "nano", "--device", "cuda",
                "--max-steps", "300", "--out", "a"])
    run = json.loads(Path("a/run.json").read_text())
    assert "cuda" in run["device"] and "bfloat16" in run["device"]
    assert run["result"]["accuracy_after"] > 0.8 > run["result"]["accuracy_before"]
    line = json.loads(Path("a/metrics.jsonl").read_text().splitlines()[-1])
    # judging comes after the last line, and may have taken more
    assert line["step"] == 300 and 0 < line["peak_bytes"] <= torch.cuda.max_memory_allocated()


def run_benchmark(device):
    command = [sys.executable, str(ROOT / "tests/benchmark.py"), "--size", "tiny", "--device",
               device, "--dtype", "both", "--repeats", "1", "--rows", "40", "7", "90"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "float32: same loss" in done.stdout and "bfloat16: same loss" in done.stdout
    assert done.stdout.count("| infer |") == done.stdout.count("| train |") == 2
    assert done.stdout.count(" GF/s ") == done.stdout.count(" GB/s ") == 4


def test_the_benchmark_runs_and_both_sides_agree():
    run_benchmark("cpu")


@gpu
def test_the_benchmark_runs_on_the_device():
    run_benchmark("cuda")


def test_a_gpu_gets_rows_enough_that_the_host_is_not_timed():
    assert sum(benchmark.parse(["--device", "cuda"]).rows) >= 10_000


@pytest.mark.parametrize("frozen, dtype, bytes_moved", [
    # Of one token in one layer, which is read at it; D 2, F 3, 1 word. In fp32: the embedding 16,
    # two norms 32, two additions 48; numbers of 4 bytes: products 61 (8, 14, 8, 20, 11), RoPE 8,
    # attention 8, GeGLU 9. A step also moves the decoder's two weights twice, 16.
    (1, torch.float32, benchmark.Bytes(440 + 16, 440)),
    # In bf16 half of the 86, half of what the norms write and of half of what is added.
    (1, torch.bfloat16, benchmark.Bytes(16 + 24 + 40 + 172 + 8, 16 + 24 + 40 + 172)),
    # Backwards under adapters of rank 1: products 34 + 2 * 11 + 4 * 16, RoPE 8, attention 16, GeGLU
    # 15, so 159 of 4 bytes; norms 48, additions 48; AdamW 28 of 27, W' 8 of 34.
    (0, torch.float32, benchmark.Bytes(440 + 16 + 636 + 96 + 28 * 27 + 272, 440)),
])
def test_bytes_that_a_step_must_move_by_hand(frozen, dtype, bytes_moved, monkeypatch):
    monkeypatch.setitem(benchmark.SHAPES, "tiny", benchmark.Shape(2, 3, 1, 1, 1, frozen, 1))
    args = benchmark.parse(["--size", "tiny", "--rows", "1"])
    args.type = dtype
    assert benchmark.least_bytes(args) == bytes_moved


@pytest.mark.parametrize("what, sides", [
    ("infer", ["padded", "buckets", "one"]), ("train", ["padded", "buckets"])])
def test_the_table_of_peers_has_a_line_for_each_side_with_the_same_scores(what, sides, capsys):
    peers.main([what, "fp32", "--size", "tiny", "--rows", "eight", "--repeats", "1", "--sides",
                *sides])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| side", *[f"| {s}" for s in
                                                                     ["ours", *sides]]]
    for line in lines[1:]:
        assert float(line.split(" | ")[4].rstrip(" |")) < 1e-4  # of the scores, of the gradients


@pytest.mark.slow
@pytest.mark.parametrize("what, dtype, most", [("infer", "fp32", 1e-4), ("train", "bf16", 0.5)])
def test_sides_that_compile_or_are_not_installed_have_a_line(what, dtype, most, capsys,
                                                             monkeypatch):
    # one layer that sees everything and one that sees a window: compiling more is more of the same
    two_layers = benchmark.SHAPES["tiny"]._replace(layers=2, frozen=1)
    monkeypatch.setitem(benchmark.SHAPES, "tiny", two_layers)
    peers.main([what, dtype, "--size", "tiny", "--rows", "eight", "--repeats", "1", "--sides",
                "functions", "compiled", "onnxruntime", "openvino"])
    lines = capsys.readouterr().out.splitlines()
    for side in ("functions", "compiled", "onnxruntime", "openvino"):
        of_side = [line for line in lines if line.startswith((f"| {side} |", f"{side} is left"))]
        if what == "infer" or side in peers.TRAIN:
            assert len(of_side) == 1
        for line in of_side:
            if line.startswith("|"):
                assert float(line.split(" | ")[4].rstrip(" |")) < most
