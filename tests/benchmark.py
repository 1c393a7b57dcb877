"""tinyrm against transformers + peft on the same rows: seconds, memory, share of the machine.

    python tests/benchmark.py                              base on this processor, 4 minutes
    python tests/benchmark.py --device cuda --size large   on a GPU
    python tests/benchmark.py --lengths FILE               row lengths, one a line, for eight rows
    python tests/benchmark.py --against checkpoint         against ourselves, layers recomputed
    python tests/benchmark.py --against compile            against ourselves under torch.compile
    python tests/benchmark.py --against lora               what DoRA costs beyond LoRA, both ours
    python tests/benchmark.py --memory                     no peer: bytes a token, longest batches

The peer is what one would use instead: ModernBertForMaskedLM with sdpa attention and peft's DoRA,
a padded batch, logits at every position. Both get the same random weights, rows, adapter (DoRA on
Wqkv, Wi and Wo of the upper third; all below frozen) and optimizer. Each side is a process of its
own, which takes a step when told to: steps are timed in turn, and peak memory is the process's. The
first step warms up; the losses and gradients that it gives must be the same on both sides.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import dora
import tinyrm
import train

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LENGTHS = [505, 167, 64, 281, 104, 86, 255, 331]  # eight pair rows as they come: 64 to 505 tokens
SHAPES = {  # hidden, ffn, layers, heads, vocabulary, frozen layers, rank
    "tiny": (64, 96, 4, 2, 500, 2, 4),
    "base": (768, 1152, 22, 12, 50368, 15, 128),
    "large": (1024, 2624, 28, 16, 50368, 15, 128),
}
TARGETS = ("attn.Wqkv", "mlp.Wi", "attn.Wo", "mlp.Wo")


def config_of(size):
    width, ffn, layers, heads, vocab, _, _ = SHAPES[size]
    return dict(model_type="modernbert", vocab_size=vocab, hidden_size=width,
                intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
                pad_token_id=vocab - 85, cls_token_id=1, sep_token_id=2, bos_token_id=1,
                eos_token_id=2)  # fmt: skip


def rows_of(lengths, size):
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 400, (n,), generator=random) for n in lengths]
    at = torch.tensor([n - 3 for n in lengths])  # the mask stands near the end, as in a cloze
    labels = torch.randint(329, 379, (len(rows),), generator=random)
    return rows, at, labels


def begin(args):
    """tinyrm's model under its adapters, from fixed seeds: what both sides begin with."""
    *_, freeze, rank = SHAPES[args.size]
    model = tinyrm.load(args.base)
    kind = "lora" if args.side == "lora" else args.adapter
    dora.adapt(model, kind, rank, 8.0, freeze, 0)
    plain = tinyrm.Linear(model.config.hidden_size, model.config.hidden_size)
    plain.weight.data = model.head.dense.weight.data  # the peer has no adapter on the head
    model.head.dense = plain.requires_grad_(False)
    for module in dora.adapters(model).values():  # B = 0 would make half of the gradients zero
        random = torch.Generator().manual_seed(module.B.numel())
        module.B.data.copy_(torch.randn(module.B.shape, generator=random) / 100)
    return model


def ours(args):
    """(training step, inference step, {name: A or B of an adapter}, merging) of tinyrm."""
    model = begin(args).to(args.device).dtype_(args.type)
    model.checkpoint = args.side == "checkpoint"
    if args.side == "compile":
        for layer in model.model.layers:
            layer.compile()
    rows, at, labels = rows_of(args.rows, args.size)
    starts = torch.tensor([0, *args.rows]).cumsum(0)
    tokens, read = torch.cat(rows).to(args.device), (starts[:-1] + at).to(args.device)
    labels, words = labels.to(args.device), torch.tensor([329, 378], device=args.device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)

    def learn():
        optimizer.zero_grad()
        loss = F.cross_entropy(model.logits(model(tokens, starts, read)).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode():
            return model.logits(model(tokens, starts, read), words).float()

    low = {f"{name}.{part}": getattr(module, part)
           for name, module in dora.adapters(model).items() for part in "AB"}  # fmt: skip
    return learn, infer, low, lambda: dora.merge(model)


def peer(args):
    """The same of transformers + peft."""
    import peft
    from transformers import ModernBertForMaskedLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    *_, layers, _, vocab, freeze, rank = SHAPES[args.size]
    model, start = ModernBertForMaskedLM.from_pretrained(
        args.base, attn_implementation="sdpa").train(), begin(args)  # fmt: skip
    names = [f"model.layers.{i}.{t}" for i in range(freeze, layers) for t in TARGETS]
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=rank, lora_alpha=8, target_modules=names, use_dora=args.adapter == "dora"))  # fmt: skip
    low = {}
    for name, module in dora.adapters(start).items():
        layer = model.base_model.model.get_submodule(name)
        low[f"{name}.A"] = layer.lora_A["default"].weight
        low[f"{name}.B"] = layer.lora_B["default"].weight
        with torch.no_grad():
            low[f"{name}.A"].copy_(module.A)
            low[f"{name}.B"].copy_(module.B)
            if module.m is not None:
                layer.lora_magnitude_vector["default"].weight.copy_(module.m)
    del start, module
    model.to(args.device)
    rows, at, labels = rows_of(args.rows, args.size)
    width = max(args.rows)
    ids = torch.full((len(rows), width), vocab - 85)
    target = torch.full((len(rows), width), -100)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
        target[b, at[b]] = labels[b]
    mask = (torch.arange(width) < torch.tensor(args.rows)[:, None]).long().to(args.device)
    ids, target = ids.to(args.device), target.to(args.device)
    inner = torch.arange(len(rows), device=args.device), at.to(args.device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)
    merged = []

    def learn():
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.type == torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=target).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode():
            logits = (merged or [model])[0](input_ids=ids, attention_mask=mask).logits
            return logits[inner][:, [329, 378]].float()

    def merge():
        merged.append(model.merge_and_unload().eval().to(args.type))

    return learn, infer, low, merge


def products(args):
    """FLOPs that must be done, two a multiply-add: (training step, inference step). Counted are
    the products with weights and the attention of the packed rows; the last layer's queries,
    output and MLP for one position a row; no gradient for frozen weights; the low-rank products."""
    d, f, layers, _, vocab, freeze, rank = SHAPES[args.size]
    b, t = len(args.rows), sum(args.rows)
    train = infer = 0
    for i in range(layers):
        last = i == layers - 1
        q = b if last else t
        shapes = [(q, d, d), (t, d, 2 * d), (q, d, d), (q, d, 2 * f), (q, f, d)]
        weights = sum(2 * n * x * y for n, x, y in shapes)
        pairs = sum(n * (1 if last else n) if i % 3 == 0 else sum(
            min(j, 64) + min(n - 1 - j, 64) + 1 for j in range(n)) for n in args.rows)  # fmt: skip
        attention = 4 * pairs * d
        infer += weights + attention
        train += weights + attention
        if i >= freeze:
            low = sum(2 * n * rank * (x + y) * 2 for n, x, y in shapes)  # x A^T, gB; dA, dB
            first = 2 * t * d * 3 * d if i == freeze else 0  # no gradient below the first layer
            train += weights - first + 2 * attention + low
    head = 2 * b * d * d
    return train + 2 * (head + 2 * b * d * vocab), infer + head + 4 * b * d


def rate(args):
    """Multiply-adds of one large product, times two, a second: what the machine can do."""
    n = 256 if args.size == "tiny" else 8192 if args.device == "cuda" else 2048
    x = torch.randn(n, n, device=args.device, dtype=args.type)
    seconds = [clock(args, lambda: F.linear(x, x))[0] for _ in range(5)]
    return 2 * n**3 / statistics.median(seconds[2:])


def clock(args, call):
    wait = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    wait()
    began = time.perf_counter()
    value = call()
    wait()
    return time.perf_counter() - began, value


# ----------------------------------------------------------------------------- a process for each


def worker(args, side, what, file):
    """One side: a step for each line that comes in, its seconds out; at the end its peak memory.
    The first training step leaves loss and gradients in `file`."""
    args.side = side
    learn, infer, low, merge = peer(args) if side == "peer" else ours(args)
    if what == "infer":
        merge()
    else:
        loss = learn()
        grads = {name: p.grad.detach().float().cpu().contiguous() for name, p in low.items()}
        save_file(grads | {"loss": torch.tensor(loss)}, file)
    for _ in range(3 if side == "compile" else 0):  # it compiles anew for the first few
        learn() if what == "train" else infer()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(clock(args, learn if what == "train" else infer)[0], flush=True)
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:  # not ru_maxrss: a child process begins with its parent's
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def start(args, side, what, file):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--device", args.device, "--size", args.size,
         "--dtype", {kind: name for name, kind in TYPES.items()}[args.type],
         "--adapter", args.adapter, "--base", args.base, "--rows", *map(str, args.rows),
         "--worker", side, what, file],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


def hear(process):
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of the benchmark ended: {process.wait()}")
    return line.strip()


def step(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return float(hear(process))


def compare(args, what):
    """One line of the table: both sides in turn, medians; and for training how far they agree."""
    with tempfile.TemporaryDirectory() as folder:
        files = {side: str(Path(folder, side)) for side in ("ours", args.against)}
        sides = {side: start(args, side, what, file) for side, file in files.items()}
        for process in sides.values():
            hear(process)
        agrees = what == "train" and args.against != "lora"  # which is another function
        same = agree(args, *map(load_file, files.values())) if agrees else {}
    seconds, speeds = {name: [] for name in sides}, []
    for n in range(args.repeats + (what == "infer")):  # the first one of inference warms up
        speeds.append(rate(args))  # in turn with the steps, since a machine's clock moves
        for name, process in sides.items():
            spent = step(process)
            if n or what == "train":
                seconds[name].append(spent)
    mine, theirs = (statistics.median(seconds[name]) for name in sides)
    flops, machine = products(args)[what == "infer"], statistics.median(speeds)
    peaks = [int(process.communicate()[0]) for process in sides.values()]
    return {"what": what, "dtype": str(args.type)[6:], "ours_s": mine, "peer_s": theirs,
            "ratio": theirs / mine, "tokens_per_s": sum(args.rows) / mine, "flops": flops,
            "machine_flops": machine, "all_seconds": seconds, "peak_bytes": peaks, **same}


def agree(args, a, b):
    """The losses, and the largest difference of an adapter's gradients, relative in their norms."""
    gaps = [((a[name] - b[name]).norm() / b[name].norm()).item() for name in a if name != "loss"]
    loss, worst = (a["loss"].item(), b["loss"].item()), max(gaps)
    most = (1e-3, 1e-3) if args.type == torch.float32 else (0.1, 0.5)  # bf16 rounds as it likes
    assert abs(loss[0] - loss[1]) < most[0] and worst < most[1], (loss, worst)
    return {"loss": loss, "worst_relative_gradient_gap": worst}


# ------------------------------------------------------------------------------------------ memory


def memory(args):
    """Bytes that a token takes in a training step, measured and by the count of train.memory,
    and the longest batch for 8, 16, 24 and 80 GB by that count."""
    print("| layers recomputed | compute | bytes a token, measured | counted |\n|---|---|---|---|")
    one = sum(args.rows)
    for side in ("ours", "checkpoint"):
        for args.type in TYPES.values():
            peaks = []
            for times in (2, 6):
                some = argparse.Namespace(**vars(args) | {"rows": args.rows * times})
                with tempfile.TemporaryDirectory() as folder:
                    process = start(some, side, "train", str(Path(folder, "first")))
                    hear(process)
                    peaks.append(int(process.communicate()[0]))
            kept = counted(args, side)
            print(f"| {'no' if side == 'ours' else 'yes':3} | {str(args.type)[6:]:8} | "
                  f"{(peaks[1] - peaks[0]) / 4 / one:10,.0f} | {kept:10,.0f} |", flush=True)
    print("\ntokens of the longest batch in bfloat16, by the count: 0.6 of what weights, "
          "gradients, moments, copies and 1 GB for torch leave\n\n"
          "| model and recipe | layers recomputed | 8 GB | 16 GB | 24 GB | 80 GB |\n"
          "|---|---|---|---|---|---|")
    args.type = torch.bfloat16
    for size in ("base", "large"):
        for domain in ("reasoning", "chat"):
            for recomputed in (False, True):
                s = train.Settings(checkpoint_layers=recomputed, **train.RECIPES[size][domain])
                config = tinyrm.Config.read(config_of(size))
                with torch.device("meta"):
                    model = tinyrm.ModernBERT(config)
                    dora.adapt(model, s.adapter, s.rank, s.alpha, s.freeze)
                total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad >= g)
                                  for g in (False, True))  # fmt: skip
                fixed, kept = train.memory(s, config, args.type, total, trained)
                left = (max(0, gb * 1e9 - sum(fixed.values()) - 1e9) for gb in (8, 16, 24, 80))
                cells = (0.6 * n / kept for n in left)
                print(f"| {size}, {domain}: {s.adapter}, {s.freeze} frozen | "
                      f"{'yes' if recomputed else 'no'} | "
                      + " | ".join(f"{n:,.0f}" for n in cells) + " |")  # fmt: skip


def counted(args, side):
    *_, freeze, rank = SHAPES[args.size]
    s = train.Settings(freeze=freeze, rank=rank, checkpoint_layers=side == "checkpoint")
    config = tinyrm.Config.read(config_of(args.size))
    return train.memory(s, config, args.type, 0, 0)[1]


def machine(args):
    if args.device == "cuda":
        return torch.cuda.get_device_name()
    name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                 if line.startswith("model name")), platform.processor())  # fmt: skip
    return f"{name}, {torch.get_num_threads()} threads"


def main():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--size", default="base", choices=SHAPES)
    p.add_argument("--adapter", default="dora", choices=["dora", "lora"])
    p.add_argument("--dtype", default="auto", choices=["auto", "both", *TYPES],
                   help="auto: both, but bf16 only where its products are faster")
    p.add_argument("--lengths", metavar="FILE", help="row lengths, one a line")
    p.add_argument("--against", default="peer", choices=["peer", "checkpoint", "compile", "lora"])
    p.add_argument("--memory", action="store_true", help="bytes a token, and longest batches")
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--out", metavar="JSON", help="write all numbers here")
    p.add_argument("--base", help=argparse.SUPPRESS)
    p.add_argument("--rows", type=int, nargs="+", default=LENGTHS, help=argparse.SUPPRESS)
    p.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.lengths:
        args.rows = [int(x) for x in Path(args.lengths).read_text().split()]
    chosen = [TYPES[args.dtype]] if args.dtype in TYPES else [*TYPES.values()]
    args.type = chosen[0]
    if args.worker:
        return worker(args, *args.worker)
    with tempfile.TemporaryDirectory() as args.base:
        tinyrm.save(tinyrm.ModernBERT(tinyrm.Config.read(config_of(args.size))).init_weights(0),
                    args.base)
        told(args, chosen)


def told(args, chosen):
    t, width = sum(args.rows), max(args.rows)
    print(f"{machine(args)}; torch {torch.__version__}; {args.size}, {args.adapter}; "
          f"{len(args.rows)} rows, {t:,} tokens ({len(args.rows) * width:,} padded)\n")
    if args.memory:
        return memory(args)
    if args.dtype == "auto":
        speed = {}
        for args.type in chosen:
            speed[args.type] = rate(args)
        share = speed[torch.bfloat16] / speed[torch.float32]
        if share < 1:  # a processor without bf16 instructions
            chosen = [torch.float32]
            print(f"bfloat16 is left out: its products run at {share:.0%} of float32's rate here "
                  "(--dtype both takes it in)\n")
    result = {"machine": machine(args), "torch": torch.__version__, "size": args.size,
              "rows": args.rows, "lines": []}  # fmt: skip
    print(f"| step | compute | tinyrm | {args.against} | ratio | tokens/s | share of products | "
          "memory |")
    print("|---|---|---|---|---|---|---|---|")
    for what in ("train", "infer"):
        for args.type in chosen:
            x = compare(args, what)
            result["lines"].append(x)
            share = x["flops"] / x["ours_s"] / x["machine_flops"]
            print(f"| {what} | {x['dtype']:8} | {x['ours_s']:4.2f} s | {x['peer_s']:4.2f} s | "
                  f"{x['ratio']:4.2f}x | {x['tokens_per_s']:8,.0f} | {share:4.0%} of "
                  f"{x['machine_flops'] / 1e9:,.0f} GF/s  | {x['peak_bytes'][0] / 1e9:.1f} / "
                  f"{x['peak_bytes'][1] / 1e9:.1f} GB |", flush=True)  # fmt: skip
    print()
    for x in result["lines"]:
        if "loss" in x:
            print(f"{x['dtype']}: same loss ({x['loss'][0]:.5f}, {x['loss'][1]:.5f}), gradients "
                  f"within {x['worst_relative_gradient_gap']:.0e}")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
