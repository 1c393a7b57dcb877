"""tinyrm against transformers + peft on the same rows: seconds, memory, share of the machine.

    python tests/benchmark.py                              base on this processor, 9 minutes
    python tests/benchmark.py --device cuda --size large   on a GPU
    python tests/benchmark.py --lengths FILE               row lengths, one a line, for eight rows

The peer is what one would use instead: ModernBertForMaskedLM with sdpa attention and peft's DoRA,
a padded batch, logits at every position. Both get the same random weights, rows, adapter (DoRA on
Wqkv, Wi and Wo of the upper third; all below frozen) and optimizer. First both must compute the
same loss and the same gradients; then steps are timed in turn, and medians compared. Peak memory
comes from a process of its own for each.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import dora
import tinyrm

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


def rows_of(lengths, size, device):
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 400, (n,), generator=random) for n in lengths]
    at = torch.tensor([n - 3 for n in lengths])  # the mask stands near the end, as in a cloze
    labels = torch.randint(329, 379, (len(rows),), generator=random)
    return rows, at, labels


def ours(args):
    """(training step, inference step, trained parameters by name) of tinyrm."""
    *_, freeze, rank = SHAPES[args.size]
    model = tinyrm.ModernBERT(tinyrm.Config.read(config_of(args.size))).init_weights(0)
    model.to(args.device).dtype_(args.type)
    dora.adapt(model, args.adapter, rank, 8.0, freeze, 0)
    if args.adapter != "full":
        plain = tinyrm.Linear(model.config.hidden_size, model.config.hidden_size)
        plain.weight.data = model.head.dense.weight.data  # the peer has no adapter on the head
        plain.compute = args.type
        model.head.dense = plain.to(args.device).requires_grad_(False)
    for module in dora.adapters(model).values():  # B = 0 would make half of the gradients zero
        random = torch.Generator().manual_seed(module.B.numel())
        module.B.data.copy_(torch.randn(module.B.shape, generator=random) / 100)
    rows, at, labels = rows_of(args.rows, args.size, args.device)
    starts = torch.tensor([0, *args.rows]).cumsum(0)
    tokens, read = torch.cat(rows).to(args.device), (starts[:-1] + at).to(args.device)
    labels, words = labels.to(args.device), torch.tensor([329, 378], device=args.device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)

    def train():
        optimizer.zero_grad()
        loss = F.cross_entropy(model.logits(model(tokens, starts, read)).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode():
            return model.logits(model(tokens, starts, read), words).float()

    return model, train, infer, trained, lambda: dora.merge(model)


def peer(args):
    """The same of transformers + peft."""
    import peft
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    *_, layers, _, vocab, freeze, rank = SHAPES[args.size]
    config = ModernBertConfig(**config_of(args.size), attn_implementation="sdpa")
    model = ModernBertForMaskedLM(config)
    start = tinyrm.ModernBERT(tinyrm.Config.read(config_of(args.size))).init_weights(0)
    model.load_state_dict(start.state_dict(), strict=False)
    model.tie_weights()
    del start
    names = [f"model.layers.{i}.{t}" for i in range(freeze, layers) for t in TARGETS]
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=rank, lora_alpha=8, target_modules=names, use_dora=args.adapter == "dora"))  # fmt: skip
    model.to(args.device)
    rows, at, labels = rows_of(args.rows, args.size, args.device)
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

    def train():
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

    return model, train, infer, trained, merge


def same(args):
    """Both sides must have the same loss and gradients (float32) before anything is timed."""
    a, train, infer, mine, _ = ours(args)
    b, other, _, theirs, _ = peer(args)
    with torch.no_grad():
        for name, module in dora.adapters(a).items():
            layer = b.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(module.A)
            layer.lora_B["default"].weight.copy_(module.B)
            if module.m is not None:
                layer.lora_magnitude_vector["default"].weight.copy_(module.m)
    loss = train(), other()
    worst = 0.0
    for name, module in dora.adapters(a).items():
        layer = b.base_model.model.get_submodule(name)
        for ours_, theirs_ in ((module.A, layer.lora_A["default"].weight),
                               (module.B, layer.lora_B["default"].weight)):  # fmt: skip
            gap = (ours_.grad - theirs_.grad).norm() / theirs_.grad.norm()
            worst = max(worst, gap.item())
    assert abs(loss[0] - loss[1]) < 1e-3 and worst < 1e-3, (loss, worst)
    return {"loss": loss, "worst_relative_gradient_gap": worst}


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
    n = 8192 if args.device == "cuda" else 2048
    x = torch.randn(n, n, device=args.device, dtype=args.type)
    seconds = [clock(args, lambda: x @ x)[0] for _ in range(7)]
    return 2 * n**3 / statistics.median(seconds[2:])


def clock(args, call):
    wait = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    wait()
    began = time.perf_counter()
    value = call()
    wait()
    return time.perf_counter() - began, value


def peak(args, side, what):
    """Peak memory in bytes of one side's steps, in a fresh process (of a GPU: allocated there)."""
    command = [sys.executable, __file__, "--device", args.device, "--size", args.size,
               "--adapter", args.adapter, "--peak", side, what,
               "--dtype", {torch.float32: "fp32"}.get(args.type, "bf16")]  # fmt: skip
    if args.lengths:
        command += ["--lengths", args.lengths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_here(args, side, what):
    _, train, infer, _, merge = {"ours": ours, "peer": peer}[side](args)
    if what == "train":
        train()
    else:
        merge()
        infer()
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        # not ru_maxrss: a child process begins with its parent's
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def compare(args, what):
    """One line of the table: both sides in turn, medians."""
    sides = {"ours": ours(args), "peer": peer(args)}
    index = 1 if what == "train" else 2
    if what == "infer":
        for side in sides.values():
            side[4]()
    seconds = {name: [] for name in sides}
    for n in range(args.repeats + 1):  # the first round warms up
        for name, side in sides.items():
            spent = clock(args, side[index])[0]
            if n:
                seconds[name].append(spent)
    mine, theirs = (statistics.median(seconds[name]) for name in ("ours", "peer"))
    flops = products(args)[index - 1]
    del sides
    return {"what": what, "dtype": str(args.type)[6:], "ours_s": mine, "peer_s": theirs,
            "ratio": theirs / mine, "tokens_per_s": sum(args.rows) / mine, "flops": flops,
            "machine_flops": rate(args), "all_seconds": seconds,
            "ours_bytes": peak(args, "ours", what), "peer_bytes": peak(args, "peer", what)}


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
    p.add_argument("--dtype", default="both", choices=["both", "fp32", "bf16"])
    p.add_argument("--lengths", metavar="FILE", help="row lengths, one a line")
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--out", metavar="JSON", help="write all numbers here")
    p.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    given = Path(args.lengths).read_text().split() if args.lengths else LENGTHS
    args.rows = [int(x) for x in given]
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    chosen = list(types.values()) if args.dtype == "both" else [types[args.dtype]]
    args.type = chosen[0]
    if args.peak:
        return peak_here(args, *args.peak)
    t, width = sum(args.rows), max(args.rows)
    print(f"{machine(args)}; torch {torch.__version__}; {args.size}, {args.adapter}; "
          f"{len(args.rows)} rows, {t:,} tokens ({len(args.rows) * width:,} padded)")
    args.type = torch.float32
    result = {"machine": machine(args), "torch": torch.__version__, "size": args.size,
              "rows": args.rows, "same": same(args), "lines": []}  # fmt: skip
    (a, b), gap = result["same"]["loss"], result["same"]["worst_relative_gradient_gap"]
    print(f"same loss ({a:.5f}, {b:.5f}), gradients within {gap:.0e}\n")
    print("| step | compute | tinyrm | peer | ratio | tokens/s | share of products | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for what in ("train", "infer"):
        for args.type in chosen:
            x = compare(args, what)
            result["lines"].append(x)
            share = x["flops"] / x["ours_s"] / x["machine_flops"]
            print(f"| {what} | {x['dtype']:8} | {x['ours_s']:4.2f} s | {x['peer_s']:4.2f} s | "
                  f"{x['ratio']:4.2f}x | {x['tokens_per_s']:8,.0f} | {share:4.0%} of "
                  f"{x['machine_flops'] / 1e9:,.0f} GF/s  | {x['ours_bytes'] / 1e9:.1f} / "
                  f"{x['peer_bytes'] / 1e9:.1f} GB |", flush=True)  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
