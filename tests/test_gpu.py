"""On a CUDA device: the flash kernel against the float64 oracle, the model against itself on the
processor, the loop, the benchmark. The first test stands in for the kernel where there is none.

    pytest -m gpu
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.attention.varlen
from test_tinyrm import KINDS, hub_config, plain_attention, random_rows, wild

import tinyrm
import train

ROOT = Path(__file__).resolve().parent.parent


def needs(what, there):
    return lambda test: pytest.mark.gpu(pytest.mark.skipif(not there, reason=f"no {what}")(test))


gpu = needs("CUDA device", torch.cuda.is_available())
flash = needs("GPU with the flash kernel", torch.cuda.is_available()
              and tinyrm.flash_reason("cuda", torch.bfloat16)[0])  # fmt: skip


def documented(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
    """What torch's documentation says of varlen_attn, row by row."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    out = []
    for b in range(len(cu_q) - 1):
        rows = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        i = torch.arange(cu_q[b + 1] - cu_q[b])[:, None]
        j = torch.arange(cu_k[b + 1] - cu_k[b])
        left, right = window_size
        may = ((left < 0) | (i - j <= left)) & ((right < 0) | (j - i <= right))
        s = torch.einsum("ihk,jhk->hij", q[rows[0]], k[rows[1]]) / q.shape[-1] ** 0.5
        out.append(torch.einsum("hij,jhk->ihk", s.masked_fill(~may, -torch.inf).softmax(-1),
                                v[rows[1]]))  # fmt: skip
    return torch.cat(out)


@KINDS
def test_the_flash_path_asks_the_kernel_for_what_the_oracle_gives(kind, monkeypatch):
    config = tinyrm.Config.read(hub_config(num_hidden_layers=4, model_type=kind))
    model = wild(config).double().eval()
    _, tokens, starts, read = random_rows([150, 1, 40, 300])
    read = starts[1:] - 1 if config.causal else read
    with torch.inference_mode():
        want = model(tokens, starts, read), model(tokens, starts)
        monkeypatch.setattr(tinyrm, "flash_reason", lambda *_: (True, "as documented"))
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", documented)
        assert tinyrm.make_plan(config, tokens, starts, read, torch.float64).mask is None
        torch.testing.assert_close(model(tokens, starts, read), want[0])
        torch.testing.assert_close(model(tokens, starts), want[1])


@flash
@KINDS
@pytest.mark.parametrize("window", [None, 16, 64])
@pytest.mark.parametrize("lengths", [[1], [127], [129, 1, 3, 64], [500, 2, 2, 77], [3000, 5000]])
def test_the_flash_kernel_and_its_gradients_equal_a_masked_softmax(kind, lengths, window):
    config = tinyrm.Config.read(hub_config(local_attention=2 * (window or 64), model_type=kind))
    window = window and config.window
    starts, total = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    tokens = torch.zeros(total, dtype=torch.long, device="cuda")
    plan = tinyrm.make_plan(config, tokens, starts, None, torch.bfloat16)
    assert plan.flash and plan.mask is None
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v, weight = (torch.randn(total, 2, 32, device="cuda", generator=random).bfloat16()
                       for _ in range(4))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    ours = tinyrm.attention(q, k, v, plan, window)
    a = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    exact = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    theirs = plain_attention(*exact, starts, window, config.causal)
    b = torch.autograd.grad((theirs * weight.cpu().double()).sum(), exact)
    for mine, want in zip((ours, *a), (theirs, *b), strict=True):
        gap = (mine.cpu().double() - want).norm() / want.norm().clamp(min=1e-9)
        assert gap < 0.02 or want.norm() < 1e-6  # bf16: 1/256 an operation


@flash
@KINDS
def test_one_query_a_row_on_the_flash_kernel_is_that_row_of_all(kind):
    config = tinyrm.Config.read(hub_config(num_hidden_layers=4, model_type=kind))
    model = wild(config).eval().cuda().dtype_(torch.bfloat16)
    _, tokens, starts, read = random_rows([150, 40, 300, 7])
    read = starts[1:] - 1 if config.causal else read
    with torch.inference_mode():
        some = model(tokens.cuda(), starts, read.cuda())
        every = model(tokens.cuda(), starts)[read.cuda()]
    assert (some - every).abs().max() < 0.05 * every.abs().max()


@gpu
@KINDS
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_the_device_gives_what_the_processor_gives(kind, dtype, most):
    config = tinyrm.Config.read(hub_config(num_hidden_layers=7, model_type=kind))
    model = wild(config)
    _, tokens, starts, read = random_rows([150, 40, 700])
    read = starts[1:] - 1 if config.causal else read
    out = []
    for device, compute in (("cpu", torch.float32), ("cuda", dtype)):
        model.to(device).dtype_(compute).zero_grad()
        logits = model.logits(model(tokens.to(device), starts, read.to(device))).float()
        logits.logsumexp(1).sum().backward()
        out.append([logits.detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
    for mine, want in zip(out[1], out[0], strict=True):
        assert (mine - want).norm() <= most * want.norm() + 1e-6


@gpu
def test_nothing_of_a_step_waits_for_the_device():
    model = wild(tinyrm.Config.read(hub_config())).eval().cuda().dtype_(torch.bfloat16)
    _, tokens, starts, read = random_rows([150, 40])
    tokens, read = tokens.cuda(), read.cuda()
    model(tokens, starts, read)  # what is done once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(tokens, starts, read)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_a_run_on_the_device_elicits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "--domain safety --model nano --data nano --device cuda --max-steps 300 --out a".split()
    train.main(said)
    run = json.loads(Path("a/run.json").read_text())
    assert "flash" in run["device"] and "bfloat16" in run["device"]
    assert run["result"]["accuracy_after"] > 0.8 > run["result"]["accuracy_before"]
    line = json.loads(Path("a/metrics.jsonl").read_text().splitlines()[-1])
    # judging comes after the last line, and may have taken more
    assert line["step"] == 300 and 0 < line["peak_bytes"] <= torch.cuda.max_memory_allocated()


def test_the_benchmark_runs_and_both_sides_agree():
    benchmark("cpu")


@gpu
def test_the_benchmark_runs_on_the_device():
    benchmark("cuda")


def benchmark(device):
    done = subprocess.run([sys.executable, ROOT / "tests/benchmark.py", "--size", "tiny",
                           "--device", device, "--dtype", "both", "--repeats", "1",
                           "--rows", "40", "7", "90"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "float32: same loss" in done.stdout and "bfloat16: same loss" in done.stdout
    assert done.stdout.count("| infer |") == done.stdout.count("| train |") == 2
