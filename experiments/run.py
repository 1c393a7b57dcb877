"""The paper's claims and open questions as runs of train.py, each made once and kept.

    python experiments/run.py                        all that is missing on nano
    python experiments/run.py claims merge --seeds 1 --jobs 2
    python experiments/run.py --print                the tables of what is there
    python experiments/run.py claims --model ettin-17m --data my.jsonl --domain chat

Groups (on nano):
    claims   cloze or [CLS], DoRA, LoRA or full, random weights, all domains at once, fewer pairs
    freeze   DoRA and full above 0 to 3 frozen layers: accuracy against trained parameters
    causal   the causal twin of nano
    context  both responses in one row, or each alone
    merge    specialists averaged, added, or as branches on their shared trunk
    scale    narrower nanos: accuracy against size (first make them: python nano/make.py --width 64
             --out runs/nano-64, and so 32 and 96)

Records are in experiments/MODEL.json (nano.json), one for each run under a name that says what it
is, written the moment it ends; a run that has a record is never repeated, so the script may be
killed and started again at any time. With --model claims and context run on your own pairs, at the
rates of train.py's recipes, and are judged on the part of the prompts that train.py holds out.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import measure  # beside this file; puts the checkout on the path
import torch

import data
import tinyrm

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs/experiments"
GROUPS = ("claims", "freeze", "causal", "context", "merge", "scale")
BUDGETS = (1000, 300, 100)
METHODS = [("cloze", "dora"), ("cloze", "full"), ("cls", "dora"),  # these first
           ("cloze", "lora"), ("cls", "full"), ("cls", "lora")]
# nano: LoRA takes DoRA's settings as they are. Full fine-tuning gets the rate that rough trials
# used for it. None was tuned for a method beyond that, so a small gap may be one of rates.
ADAPTERS = {"dora": "--rank 16 --alpha 16 --lr 5e-3", "lora": "--rank 16 --alpha 16 --lr 5e-3",
            "full": "--lr 1e-3"}
EPOCHS = {"reasoning": 16, "safety": 8, "chat": 16, "all": 12}  # alike for all methods
SIZES = ("nano-32", "nano-64", "nano-96")  # in runs/, by their width; nano itself has 128
# random: nano's shape and tokenizer, fresh weights
NANOS = ("nano", "random", "nano-causal", *SIZES)
LIVE = set()  # processes to end with this one


class Run(NamedTuple):
    weights: str
    domain: str
    head: str = "cloze"
    context: str = "pair"
    adapter: str = "dora"
    freeze: int | None = 1  # None: as train.py's recipe has it
    pairs: int = 1000  # 0: all there are
    seed: int = 1

    @property
    def key(self):
        freeze = "recipe" if self.freeze is None else self.freeze
        return " ".join((Path(self.weights).name, *self[1:5], f"freeze-{freeze}",
                         f"pairs-{self.pairs or 'all'}", f"seed-{self.seed}"))


# ----------------------------------------------------------------------------------------- the grid


def usual(adapter):
    """Frozen layers of nano's recipe; full fine-tuning freezes nothing."""
    return 0 if adapter == "full" else 1


def of_group(group, seed):
    """(turn, Run) of a group on nano for one seed. Turn 0 is made first, for seed after seed."""
    for domain in data.DOMAINS:
        if group == "claims":
            for i, (head, adapter) in enumerate(METHODS):
                same = dict(head=head, adapter=adapter, freeze=usual(adapter), seed=seed)
                yield i > 2, Run("nano", domain, **same)
                for pairs in BUDGETS[1:] if i < 3 else []:
                    yield 2, Run("nano", domain, pairs=pairs, **same)
            yield 0, Run("random", domain, adapter="full", freeze=0, seed=seed)
        if group == "freeze" and domain != "chat":
            for adapter in ("dora", "full"):
                for freeze in range(4):
                    yield 1, Run("nano", domain, adapter=adapter, freeze=freeze, seed=seed)
        if group == "causal":
            for adapter in ("dora", "full"):
                yield 0, Run("nano-causal", domain, adapter=adapter, freeze=usual(adapter),
                             seed=seed)
        if group == "context":
            for context in ("single", "pair"):
                yield 0, Run("nano", domain, context=context, adapter="full", freeze=0, seed=seed)
        if group == "merge":
            yield 0, Run("nano", domain, adapter="full", freeze=1, seed=seed)
        for weights in (*SIZES, "nano") if group == "scale" else ():
            yield 3, Run(weights, domain, seed=seed)
    if group == "claims":
        yield 0, Run("nano", "all", pairs=3000, seed=seed)


def grid(groups, seeds, model="nano", domains=data.DOMAINS):
    """The runs of these groups, each once, in the order they are made."""
    if model not in NANOS:
        runs = [Run(model, d, head, "pair", adapter, None, 0, seed) for seed in seeds
                for head, adapter in METHODS for d in domains if "claims" in groups]
        runs += [Run(model, d, "cloze", context, "full", None, 0, seed) for seed in seeds
                 for context in ("single", "pair") for d in domains if "context" in groups]
        return [*dict.fromkeys(runs)]
    runs = [(turn, seed, run) for seed in seeds for group in groups
            for turn, run in of_group(group, seed)]
    return [*dict.fromkeys(run for _, _, run in sorted(runs, key=lambda found: found[:2]))]


def flags(run, files=(), also=""):
    """What train.py is told, but for the model's folder and where to write. Passes over fewer pairs
    are more, but not so many more that the steps stay the same: sqrt(1000 / n) times."""
    out = f"--domain {run.domain} --head {run.head} --context {run.context} --adapter {run.adapter}"
    out += f" --seed {run.seed}" + f" --limit {run.pairs}" * (run.pairs > 0)
    if run.weights in NANOS:
        whole = 3000 if run.domain == "all" else 1000
        passes = round(EPOCHS[run.domain] * (whole / run.pairs) ** 0.5, 2)
        out += f" --data nano --device cpu --epochs {passes} --freeze {run.freeze}"
        return shlex.split(f"{out} {ADAPTERS[run.adapter]}")
    # elsewhere the recipe's rates; full fine-tuning near the author's, 7.6e-5 to 9.5e-5
    out += " --freeze 0 --lr 8e-5" * (run.adapter == "full")
    return [*shlex.split(out), "--data", *map(str, files), *shlex.split(also)]


def folder_of(name):
    """Where a model's weights are; random ones begin with nano's shape."""
    if name in SIZES:
        folder = RUNS.parent / name
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"{folder} is not there: make it with: python nano/make.py --width "
                             f"{name.partition('-')[2]} --out {folder}")
        return folder
    return tinyrm.fetch("nano" if name == "random" else name)


def weights_of(name):
    """16 hex digits of the sha256 of a model's weights; random ones count as nano's."""
    folder, sha = folder_of(name), hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                sha.update(block)
    return sha.hexdigest()[:16]


# ------------------------------------------------------------------------------------------ running


def random_weights(folder, seed):
    """nano's shape and tokenizer with fresh weights: what fine-tuning alone can do."""
    nano = tinyrm.fetch("nano")
    tinyrm.save(tinyrm.ModernBERT(tinyrm.read_config(nano)).init_weights(seed), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(nano / name, folder / name)
    return folder


def kept(run):
    """Where a specialist stays that is to be merged; None for a run whose model goes."""
    merge = run in {run for _, run in of_group("merge", run.seed)}
    return RUNS / run.key.replace(" ", "_") if merge else None


def make(run, told, threads):
    """One run of train.py in a process of its own, judged; returns its record."""
    folder = RUNS / (run.key.replace(" ", "_") + ".part")
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed here
    folder.mkdir(parents=True)
    try:
        base = (random_weights(folder / "base", run.seed) if run.weights == "random"
                else folder_of(run.weights))
        command = [sys.executable, HERE.parent / "train.py", *told, "--out", folder / "run",
                   "--model", base if run.weights in ("random", *SIZES) else run.weights]
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with subprocess.Popen([*map(str, command)], env=env, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:  # fmt: skip
            LIVE.add(process)
            said = process.communicate()[1]
            LIVE.discard(process)
        if process.returncode:
            raise ValueError(f"train.py {shlex.join(told)}: {said.strip()[-500:]}")
        record = {**run._asdict(), "flags": shlex.join(told), "base": weights_of(run.weights),
                  **measure.record_of(folder / "run", base)}
        if stay := kept(run):
            shutil.rmtree(stay, ignore_errors=True)
            (folder / "run/model").rename(stay)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def merge(seed):
    """The record of one seed's specialists as one model, or None while one of them is missing."""
    folders = {run.domain: kept(run) for _, run in of_group("merge", seed)}
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    tests = {domain: measure.test_pairs(domain) for domain in folders}
    prompts = {domain: [pair.prompt for pair in data.Pairs(
        [measure.NANO / "pairs" / f"{domain}.train.jsonl"])] for domain in folders}
    return {"weights": "nano", "seed": seed, "base": weights_of("nano"),
            **measure.merged(folders, 1, tests, prompts)}


def work(runs, merges, results, path, told, jobs=1, most=0):
    """Make what is missing of `runs`, and of the seeds in `merges` what needs their models. After
    each the file at `path` is written anew, whole."""
    wanted = {f"merge seed-{seed}": seed for seed in merges}
    again = {run for name, seed in wanted.items() if name not in results
             for _, run in of_group("merge", seed) if not kept(run).is_dir()}
    waiting = [run for run in runs if run.key not in results or run in again][:most or None]
    pool = ThreadPoolExecutor(jobs)  # each waits for a process of its own

    def combine():
        for name, seed in wanted.items():
            if name not in results and (record := merge(seed)):
                keep(name, record)
                print(name, flush=True)

    def keep(name, record):
        results[name] = record
        beside = path.with_name(path.name + ".tmp")  # then renamed: whole, or not at all
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in results.items())
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        os.replace(beside, path)

    try:
        found = {pool.submit(make, run, told(run), int(jobs > 1)): run for run in waiting}
        combine()
        for number, future in enumerate(as_completed(found), 1):
            run, record = found[future], future.result()
            keep(run.key, record)
            test = ", ".join(f"{name} {value:.3f}" for name, value in record["test"].items())
            print(f"{number} of {len(waiting)}: {run.key}: {test}", flush=True)
            combine()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in [*LIVE]:  # none, unless this was interrupted
            process.kill()
        pool.shutdown()


# --------------------------------------------------------------------------------------- the tables


def values(results, test, **which):
    """{seed: number} of the runs that fit: accuracy on the domain `test`, or a field such as
    "train" and "before"."""
    return {r["seed"]: r["test"][test] if test in r.get("test", {}) else r[test]
            for r in results.values() if all(r.get(k) == v for k, v in which.items())}


def told(found):
    """0.953 +- 0.020 (3): mean, half a 95 % interval, and how many seeds."""
    mean, half, n = measure.interval(found.values())
    return "-" if not n else f"{mean:.3f}" + (f" +- {half:.3f}" if n > 1 else "") + f" ({n})"


def table(title, columns, rows):
    print(f"\n| {title} | " + " | ".join(map(str, columns)) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def show(results, model):
    """Means over seeds, +- t s / sqrt(n), in brackets n; where n is 1, no interval."""
    print(f"{model}: mean over seeds +- half a 95 % interval, t s / sqrt(n), with n in brackets; "
          "it is of seeds, the pairs of the test are always the same")
    runs = {key: r for key, r in results.items() if "test" in r}

    def of(test, **which):
        return values(runs, test, **{"weights": model, "head": "cloze", "context": "pair"} | which)

    domains = [*dict.fromkeys(r["domain"] for r in runs.values() if r["domain"] != "all")]
    if model not in NANOS:
        rows = {f"{head} {adapter}": [told(of(d, domain=d, head=head, adapter=adapter))
                                      for d in domains] for head, adapter in METHODS}
        rows["cloze full, context single"] = [told(of(d, domain=d, context="single"))
                                              for d in domains]
        return table("held-out pairs", domains, rows)
    for d in domains:
        table(f"{d}, unseen words", [*BUDGETS, "trained pairs, of 1000"], {
            f"{head} {adapter}": [told(of(
                "train" if n == "train" else d, domain=d, head=head, adapter=adapter,
                freeze=usual(adapter), pairs=1000 if n == "train" else n))
                for n in (*BUDGETS, "train")] for head, adapter in METHODS})
    one = {a: dict(adapter=a, freeze=usual(a), pairs=1000) for a in ADAPTERS}
    table("trained on (down), tested on (across)", data.DOMAINS, {
        "before": [told(of("before", domain=d, **one["dora"])) for d in data.DOMAINS],
        **{f"{d}, {a}": [told(of(test, domain=d, **one[a])) for test in data.DOMAINS]
           for a in ("dora", "full") for d in data.DOMAINS},
        "all at once, dora": [told(of(test, domain="all")) for test in data.DOMAINS],
        "random weights, full, each on its own": [told(of(d, domain=d, weights="random"))
                                                  for d in data.DOMAINS]})
    table("frozen layers", range(4), {f"{d}, {a}": [
        told(of(d, domain=d, adapter=a, freeze=f, pairs=1000)) for f in range(4)]
        for d in ("reasoning", "safety") for a in ("dora", "full")})
    sized = {d: [(r["parameters"] - r["trainable"], r, d)  # without its adapter
                 for key, r in runs.items()
                 if r["weights"] in (*SIZES, "nano") and r["domain"] == d
                 and key == Run(r["weights"], d, seed=r["seed"]).key] for d in data.DOMAINS}
    size = {r["weights"]: f" ({n:,})" for n, r, _ in sized["chat"]}
    names = (*SIZES, "nano")
    table("encoder (parameters)", [name + size.get(name, "") for name in names], {
        f"{d}, cloze dora": [told(of(d, domain=d, weights=name, **one["dora"])) for name in names]
        for d in data.DOMAINS})
    table("encoder or causal twin; one context or two", data.DOMAINS, {
        **{f"{name}, {a}": [told(of(d, domain=d, weights=name, **one[a])) for d in data.DOMAINS]
           for name in ("nano", "nano-causal") for a in ("dora", "full")},
        **{f"context {c}, full{then}": [told(of(test or d, domain=d, context=c, **one["full"]))
                                        for d in data.DOMAINS]
           for c in ("pair", "single") for test, then in (
               ("", ""), ("other context", ", judged in the other"))}})
    found = [r for r in results.values() if "alone" in r]

    def of_merges(pick):
        return [told({r["seed"]: pick(r)[d] for r in found}) for d in data.DOMAINS]

    table("specialists as one model", data.DOMAINS, {
        "each on its own": of_merges(lambda r: r["alone"]),
        **{f"base + {scale:.2f} of all changes": of_merges(lambda r, i=i: r["added"][i][1])
           for i, scale in enumerate(measure.LAMBDAS)},
        "shared trunk, routed by the prompt": of_merges(lambda r: r["routed"]),
        "router alone, right": of_merges(lambda r: r["router"])})
    for r in found[:1]:
        print("\nparameters:", r["parameters"], "\nFLOPs a pair:",
              {name: f"{value:.3g}" for name, value in r["FLOPs a pair"].items()})
    rows = {f"{d}, {head} {a}": trend([(r["pairs"], r, d) for r in runs.values() if (
        r["weights"], r["domain"], r["head"], r["context"], r["adapter"], r["freeze"]) == (
        model, d, head, "pair", a, usual(a))]) for d in domains for head, a in METHODS[:3]}
    table("error = a pairs^-b (no floor)", ["b [95 %] (points)"], rows)
    rows = {f"{d}, cloze dora": trend(points) for d, points in sized.items()}
    table("error = a parameters^-b (no floor)", ["b [95 %] (points)"], rows)


def trend(points):
    """The power law of (x, record, domain) as a row's cell; an error of 0 counts as half a pair.
    With one seed at each x there is no interval."""
    x = [x for x, _, _ in points]
    y = [max(1 - r["test"][d], 0.5 / r["n"][d]) for _, r, d in points]
    if len(set(x)) < 2:
        return ["not run yet"]
    law = measure.power_law(x, y)
    spread = "" if law["low"] != law["low"] else f" [{law['low']:.2f} {law['high']:.2f}]"
    return [f"{law['b']:.2f}{spread} ({len(x)})"]


def fresh(results, model):
    """The records made with the weights that are here; the others are named and left out."""
    here = {}
    for name in {r["weights"] for r in results.values()}:
        with contextlib.suppress(ValueError):  # not on this machine: taken as they are
            here[name] = weights_of(name)
    old = [key for key, r in results.items() if here.get(r["weights"], r["base"]) != r["base"]]
    if old:
        print(f"{model}.json: {len(old)} of {len(results)} records are of other weights than those "
              f"here and left out, such as {old[0]!r}", file=sys.stderr)  # fmt: skip
    return {key: r for key, r in results.items() if key not in old}


# ------------------------------------------------------------------------------------- command line


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--jobs", type=int, default=1, help="runs at once; if more than 1, each on one thread")
    add("--most", type=int, default=0, help="stop after so many runs; 0: all")
    add("--print", action="store_true", help="print the tables, run nothing")
    add("--model", nargs="+", default=["nano"], help="names as train.py takes them")
    add("--data", nargs="+", default=[], help="with another model: files of pairs")
    add("--domain", nargs="+", default=list(data.DOMAINS), choices=data.DOMAINS)
    add("--also", default="", help="more flags for train.py, with another model: '--epochs 3'")
    args = parser.parse_args(argv)
    if odd := set(args.groups) - {*GROUPS}:
        raise ValueError(f"no group {', '.join(odd)}: give {', '.join(GROUPS)}")
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: give 1 or more")
    if not args.print and (args.model == ["nano"]) == bool(args.data):
        raise ValueError("--data goes with --model: nano has its own pairs, other models need "
                         "yours, --data FILE.jsonl")
    args.groups = args.groups or [*GROUPS]
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1 if args.jobs > 1 else torch.get_num_threads())
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    everything = []
    for model in args.model:
        path = HERE / f"{Path(model).name}.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        good = fresh(results, path.stem)
        runs = grid(args.groups, args.seeds, model, args.domain)
        if not args.print:
            tell = {run: flags(run, args.data, args.also) for run in runs}
            odd = [run.key for run in runs if run.key in results
                   and results[run.key]["flags"] != shlex.join(tell[run])]
            if odd or good.keys() != results.keys():
                raise ValueError(f"{path} has records of other {'flags' if odd else 'weights'}, "
                                 f"such as {odd[0]!r}: move it away" if odd else
                                 f"{path} has records of other weights: move it away")
            merges = args.seeds if "merge" in args.groups and model == "nano" else []
            work(runs, merges, results, path, tell.__getitem__, args.jobs, args.most)
            good = results
        there = sum(run.key in good for run in runs)
        print(f"\n{path.stem}: {there} of {len(runs)} runs are there")
        show(good, model)
        everything += [(r["parameters"], r, r["domain"]) for r in good.values() if (
            r.get("head"), r.get("adapter"), r.get("context")) == ("cloze", "dora", "pair")]
    if len(args.model) > 1:  # the scaling of error with size
        table("error = a parameters^-b, cloze dora", ["b [95 %] (points)"], {
            d: trend([point for point in everything if point[2] == d]) for d in args.domain})


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
