"""The paper's contrasts on nano: heads, adapters, label budgets, specialists, random weights.

    python nano/contrasts.py            # runs what is not in contrasts.json yet, then prints
    python nano/contrasts.py --print    # the tables of what is there, in Markdown

One run after the other, each `train.py` as a user would start it. A result is written the moment
its run ends, and a run that has a result is never repeated; the first seed is finished before the
second begins, so the tables may be read at any time.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import data  # noqa: E402
import tinyrm  # noqa: E402
from evaluate import RewardModel  # noqa: E402

STORE = HERE / "contrasts.json"
DOMAINS = ("reasoning", "safety", "chat")
SEEDS = (1, 2, 3)
BUDGETS = (1000, 300, 100)
HEADS = ("cloze", "cls")
# LoRA takes DoRA's settings as they are. Full fine-tuning freezes nothing and gets the rate that
# rough trials used for it, 1e-3. None of the rates was tuned for a method beyond that, so a small
# gap between two methods may be one of rates.
LOW_RANK = ["--rank", "16", "--alpha", "16", "--freeze", "1", "--lr", "5e-3"]
ADAPTERS = {
    "dora": ["--adapter", "dora", *LOW_RANK],
    "lora": ["--adapter", "lora", *LOW_RANK],
    "full": ["--adapter", "full", "--freeze", "0", "--lr", "1e-3"],
}
EPOCHS = {"reasoning": 12, "safety": 8, "chat": 16, "all": 12}  # alike for all methods


def grid():
    """(seed, weights, domain, head, adapter, budget) of every run, in the order they are made: what
    the README asks first comes first, and all pairs before fewer. Some come twice."""
    first = [("nano", "cloze", "dora"), ("nano", "cloze", "full"), ("nano", "cls", "dora"),
             ("random", "cloze", "full")]  # fmt: skip
    rest = [("nano", head, adapter) for head in HEADS for adapter in ADAPTERS]
    for seed in SEEDS:  # the first seed: four methods; the others: the recipes of train.py
        for weights, head, adapter in first[: 4 if seed == SEEDS[0] else 1]:
            for domain in DOMAINS:
                yield seed, weights, domain, head, adapter, BUDGETS[0]
        yield seed, "nano", "chat", "cloze", "full", BUDGETS[0]
    for budget in BUDGETS:
        for seed in SEEDS:
            for weights, head, adapter in first[: 4 if budget == BUDGETS[0] else 3] + rest:
                for domain in DOMAINS:
                    yield seed, weights, domain, head, adapter, budget
            if budget == BUDGETS[0]:
                yield seed, "nano", "all", "cloze", "dora", 3 * budget


def epochs(domain, budget):
    """Passes over fewer pairs: more, but not so many more that the steps stay the same.
    sqrt(1000 / n) times those for all pairs."""
    full = 3000 if domain == "all" else 1000
    return round(EPOCHS[domain] * (full / budget) ** 0.5, 2)


def random_weights(folder, seed):
    """nano's shape and tokenizer with fresh weights: what fine-tuning alone can do."""
    tinyrm.save(tinyrm.ModernBERT(tinyrm.read_config(HERE)).init_weights(seed), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((HERE / name).read_bytes())
    return folder


def accuracy(model, domain, half):
    """Accuracy on the pairs of a domain (both orders, ties half), asked its question."""
    rm = RewardModel.load(model, domain=domain, device="cpu")
    pairs = list(data.open_pairs([HERE / "pairs" / f"{domain}.{half}.jsonl"]))[:400]
    p = rm.compare(*([getattr(x, key) for x in pairs] for key in ("prompt", "chosen", "rejected")))
    return sum((x > 0.5) + 0.5 * (x == 0.5) for x in p) / len(p)


def run(seed, weights, domain, head, adapter, budget):
    """One run of train.py in a folder that goes away, and what its model gets right."""
    with tempfile.TemporaryDirectory() as folder:
        model = "nano" if weights == "nano" else random_weights(Path(folder) / "base", seed)
        out = Path(folder) / "run"
        command = [sys.executable, HERE.parent / "train.py", "--domain", domain, "--model", model]
        command += ["--data", "nano", "--device", "cpu", "--head", head, *ADAPTERS[adapter]]
        command += ["--limit", budget, "--epochs", epochs(domain, budget), "--seed", seed]
        done = subprocess.run([*map(str, command), "--out", out], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        if done.returncode:
            raise ValueError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-500:]}")
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return {
            "test": {other: accuracy(out, other, "test") for other in DOMAINS},
            "train": accuracy(out, domain, "train") if domain != "all" else None,
            "before": record["result"]["accuracy_before"],
            "seconds": record["result"]["seconds"],
            "trainable": record["trainable"],
        }


def table(title, rows, columns, cell):
    head = f"| {title} | " + " | ".join(map(str, columns)) + " |"
    print(f"\n{head}\n|{'---|' * (len(columns) + 1)}")
    for row in rows:
        print(f"| {row} | " + " | ".join(cell(row, column) for column in columns) + " |")


def show(results):
    """Mean over the seeds that are there, the lowest and the highest of them, and their number."""

    def cell(test, **which):
        values = []
        for key, result in results.items():
            keys = ("seed", "weights", "domain", "head", "adapter", "budget")
            about = dict(zip(keys, key.split(), strict=True))
            if all(about[name] == str(value) for name, value in which.items()):
                values.append(result[test] if test in result else result["test"][test])
        if not values:
            return "-"
        spread = f" ({min(values):.3f}-{max(values):.3f}, n {len(values)})" if values[1:] else ""
        return f"{statistics.mean(values):.3f}{spread}"

    nano = dict(weights="nano")
    methods = [f"{head} {adapter}" for head in HEADS for adapter in ADAPTERS]
    for domain in DOMAINS:

        def at(row, column, domain=domain):
            head, adapter = row.split()
            test, budget = (domain, column) if isinstance(column, int) else ("train", BUDGETS[0])
            return cell(test, domain=domain, head=head, adapter=adapter, budget=budget, **nano)

        table(f"{domain}, unseen words", methods, [*BUDGETS, "trained pairs, of 1000"], at)

    def crossed(row, column):
        if row == "before":
            return cell("before", domain=column, head="cloze", adapter="dora", budget=1000, **nano)
        if row == "random weights, full":
            return cell(column, domain=column, weights="random")
        adapter = "dora" if row in ("all, dora", *(f"{d}, dora" for d in DOMAINS)) else "full"
        domain, budget = row.split(",")[0], 3000 if row.startswith("all") else 1000
        return cell(column, domain=domain, head="cloze", adapter=adapter, budget=budget, **nano)

    rows = [f"{domain}, {adapter}" for adapter in ("dora", "full") for domain in DOMAINS]
    rows = ["before", *rows, "all, dora", "random weights, full"]
    table("trained on (down), tested on (across)", rows, DOMAINS, crossed)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--print", action="store_true", help="print the tables, run nothing")
    parser.add_argument("--most", type=int, default=0, help="stop after so many runs; 0: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of "
                        "the cores")  # fmt: skip
    flags = parser.parse_args(argv)
    results = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    with open(HERE / "model.safetensors", "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if results.setdefault("weights", weights) != weights:
        raise ValueError(f"{STORE} belongs to the weights {results['weights']}, here are {weights}:"
                         " move it away")
    waiting = [run_ for run_ in dict.fromkeys(grid()) if " ".join(map(str, run_)) not in results]
    waiting = [] if flags.print else waiting[: flags.most or None]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // flags.jobs))
    with ThreadPoolExecutor(flags.jobs) as pool:  # each waits for a process of its own
        for which, result in zip(waiting, pool.map(lambda x: run(*x), waiting), strict=True):
            key = " ".join(map(str, which))
            results[key] = result
            print(f"{key}\n    {result}", flush=True)
            half = STORE.with_suffix(".tmp")
            half.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            os.replace(half, STORE)
    results.pop("weights")
    show(results)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
