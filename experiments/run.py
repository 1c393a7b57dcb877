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

The file goes in this order: the grid of runs; one run; all runs that are missing; the tables; the
command line.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import tinyrm  # noqa: E402
from experiments import measure  # noqa: E402
from infra.files import replacing  # noqa: E402
from infra.hub import ROOT, fetch_model  # noqa: E402
from infra.pairs import load_pairs  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import read_json  # noqa: E402

RECORDS = ROOT / "experiments"  # the folder of MODEL.json
RUNS = ROOT / "runs/experiments"  # what is there while a run goes on, and models that are kept

# --------------------------------------------------------------------------------- the grid of runs


class Method(NamedTuple):
    head: str
    adapter: str


METHODS = [Method("cloze", "dora"), Method("cloze", "full"), Method("cls", "dora"),
           Method("cloze", "lora"), Method("cls", "full"), Method("cls", "lora")]
MAIN_METHODS = METHODS[:3]  # these are made first, and on fewer pairs too
BUDGETS = (1000, 300, 100)  # training pairs

# Flags on nano. LoRA takes DoRA's settings as they are. Full fine-tuning gets the rate that rough
# trials used for it. None was tuned for a method beyond that, so a small gap may be one of rates.
ADAPTER_FLAGS = {
    "dora": ["--rank", "16", "--alpha", "16", "--lr", "5e-3"],
    "lora": ["--rank", "16", "--alpha", "16", "--lr", "5e-3"],
    "full": ["--lr", "1e-3"],
}
EPOCHS = {"reasoning": 16, "safety": 8, "chat": 16, "all": 12}  # alike for all methods
SIZES = ("nano-32", "nano-64", "nano-96")  # in runs/, by their width; nano itself has 128
NANOS = ("nano", "random", "nano-causal", *SIZES)  # random: nano's shape, fresh weights


class Run(NamedTuple):
    """One run of train.py."""

    weights: str
    domain: str
    head: str = "cloze"
    context: str = "pair"
    adapter: str = "dora"
    freeze: int | None = 1  # None: as train.py's recipe has it
    pairs: int = 1000  # 0: all there are
    seed: int = 1

    @property
    def key(self) -> str:
        """The name of its record."""
        freeze = "recipe" if self.freeze is None else self.freeze
        pairs = "all" if self.pairs == 0 else self.pairs
        return (f"{Path(self.weights).name} {self.domain} {self.head} {self.context} "
                f"{self.adapter} freeze-{freeze} pairs-{pairs} seed-{self.seed}")


class Planned(NamedTuple):
    turn: int  # 0 is made first, for one seed after the other; then 1, and so on
    run: Run


def usual_freeze(adapter: str) -> int:
    """Frozen layers of nano's recipe; full fine-tuning freezes nothing."""
    return 0 if adapter == "full" else 1


def claims_runs(domain: str, seed: int) -> Iterator[Planned]:
    for method in METHODS:
        run = Run("nano", domain, method.head, adapter=method.adapter,
                  freeze=usual_freeze(method.adapter), seed=seed)
        if method in MAIN_METHODS:
            yield Planned(0, run)
            yield Planned(2, run._replace(pairs=300))
            yield Planned(2, run._replace(pairs=100))
        else:
            yield Planned(1, run)
    yield Planned(0, Run("random", domain, adapter="full", freeze=0, seed=seed))


def freeze_runs(domain: str, seed: int) -> Iterator[Planned]:
    if domain == "chat":  # where the recipe is near 1 already
        return
    for adapter in ("dora", "full"):
        for freeze in range(4):
            yield Planned(1, Run("nano", domain, adapter=adapter, freeze=freeze, seed=seed))


def causal_runs(domain: str, seed: int) -> Iterator[Planned]:
    for adapter in ("dora", "full"):
        freeze = usual_freeze(adapter)
        yield Planned(0, Run("nano-causal", domain, adapter=adapter, freeze=freeze, seed=seed))


def context_runs(domain: str, seed: int) -> Iterator[Planned]:
    for context in ("single", "pair"):
        run = Run("nano", domain, context=context, adapter="full", freeze=0, seed=seed)
        yield Planned(0, run)


def merge_runs(domain: str, seed: int) -> Iterator[Planned]:
    yield Planned(0, Run("nano", domain, adapter="full", freeze=1, seed=seed))


def scale_runs(domain: str, seed: int) -> Iterator[Planned]:
    for weights in (*SIZES, "nano"):
        yield Planned(3, Run(weights, domain, seed=seed))


GROUPS = {"claims": claims_runs, "freeze": freeze_runs, "causal": causal_runs,
          "context": context_runs, "merge": merge_runs, "scale": scale_runs}


def nano_grid(groups: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """The runs of these groups on nano, each once, in the order in which they are made."""
    planned = []
    for seed in seeds:
        for group in groups:
            for domain in measure.nano_domains():
                planned.extend(GROUPS[group](domain, seed))
            if group == "claims":
                planned.append(Planned(0, Run("nano", "all", pairs=3000, seed=seed)))
    planned.sort(key=lambda item: (item.turn, item.run.seed))
    return list(dict.fromkeys(item.run for item in planned))


def grid(groups: Iterable[str], seeds: Iterable[int], model: str = "nano",
         domains: Iterable[str] = ()) -> list[Run]:
    """The runs of these groups, each once, in the order in which they are made. `domains` are those
    of your own pairs, for a model that is no nano."""
    if model in NANOS:
        return nano_grid(groups, seeds)

    runs = []
    if "claims" in groups:
        for seed in seeds:
            for head, adapter in METHODS:
                for domain in domains:
                    runs.append(Run(model, domain, head, "pair", adapter, None, 0, seed))
    if "context" in groups:
        for seed in seeds:
            for context in ("single", "pair"):
                for domain in domains:
                    runs.append(Run(model, domain, "cloze", context, "full", None, 0, seed))
    return list(dict.fromkeys(runs))


def train_flags(run: Run, files: Iterable[str] = (), more: str = "") -> list[str]:
    """The flags of train.py for a run, but for the model's folder and where to write. `files` and
    `more` flags are for a model that is no nano."""
    flags = ["--domain", run.domain, "--head", run.head, "--context", run.context,
             "--adapter", run.adapter, "--seed", str(run.seed)]
    if run.pairs > 0:
        flags += ["--limit", str(run.pairs)]

    if run.weights in NANOS:
        # Passes over fewer pairs are more, but not so many more that the steps stay the same:
        # sqrt(1000 / n) times.
        whole = 3000 if run.domain == "all" else 1000
        epochs = round(EPOCHS[run.domain] * (whole / run.pairs) ** 0.5, 2)
        flags += ["--data", "nano", "--device", "cpu", "--epochs", str(epochs),
                  "--freeze", str(run.freeze)]
        return flags + ADAPTER_FLAGS[run.adapter]

    # elsewhere the recipe's rates; full fine-tuning near the author's, 7.6e-5 to 9.5e-5
    if run.adapter == "full":
        flags += ["--freeze", "0", "--lr", "8e-5"]
    flags += ["--data"]
    flags += [str(file) for file in files]
    return flags + shlex.split(more)


def folder_of(weights: str) -> Path:
    """Where a model's weights are; random ones begin with nano's shape."""
    if weights in SIZES:
        folder = RUNS.parent / weights
        if not (folder / "model.safetensors").is_file():
            width = weights.removeprefix("nano-")
            raise ValueError(f"{folder} is not there: make it with: python nano/make.py --width "
                             f"{width} --out {folder}")
        return folder
    return fetch_model("nano" if weights == "random" else weights)


def version_of_weights(weights: str) -> str:
    """16 hex digits of the sha256 of a model's weights; random ones count as nano's."""
    digest = hashlib.sha256()
    for path in sorted(folder_of(weights).glob("model*.safetensors")):
        with open(path, "rb") as file:
            block = file.read(2**24)
            while block:
                digest.update(block)
                block = file.read(2**24)
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------ one run

PROCESSES = set()  # of train.py, to be ended with this one


def random_weights(folder: Path, seed: int) -> Path:
    """nano's shape and tokenizer with fresh weights: what fine-tuning alone can do."""
    nano = fetch_model("nano")
    model = tinyrm.ModernBERT(tinyrm.read_config(nano)).init_weights(seed)
    tinyrm.save(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(nano / name, folder / name)
    return folder


def kept_model(run: Run) -> Path | None:
    """Where a specialist stays that is to be merged; None for a run whose model goes."""
    if run not in specialists(run.seed).values():
        return None
    return RUNS / run.key.replace(" ", "_")


def specialists(seed: int) -> dict[str, Run]:
    """{domain: run} of what is merged."""
    runs = {}
    for domain in measure.nano_domains():
        for planned in merge_runs(domain, seed):
            runs[domain] = planned.run
    return runs


def call_train(script: list, flags: list, threads: int):
    """Run train.py, or the causal twin's, in a process of its own. ValueError with the end of what
    it printed, if it fails. threads 0: as many as torch takes."""
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [str(word) for word in [sys.executable, *script, *flags]]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        PROCESSES.add(process)
        _, errors = process.communicate()
        PROCESSES.discard(process)
    if process.returncode:
        raise ValueError(f"train.py {shlex.join(command[2:])}: {errors.strip()[-500:]}")


def make(run: Run, flags: list[str], threads: int = 0) -> dict:
    """One run of train.py, judged; returns its record."""
    folder = RUNS / (run.key.replace(" ", "_") + ".part")
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed here
    folder.mkdir(parents=True)
    try:
        # the model that it begins with
        if run.weights == "random":
            base = random_weights(folder / "base", run.seed)
        else:
            base = folder_of(run.weights)
        model = run.weights
        if model == "random" or model in SIZES:  # which train.py does not know by name
            model = base

        script = [ROOT / "train.py"]
        if measure.architecture_of(base) is measure.CAUSAL:
            script = [ROOT / "experiments/causal.py", "train"]
        call_train(script, [*flags, "--out", folder / "run", "--model", model], threads)

        record = run._asdict()
        record["flags"] = shlex.join(flags)
        record["base"] = version_of_weights(run.weights)
        record.update(measure.record_of(folder / "run", base))

        kept = kept_model(run)
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)
            (folder / "run/model").rename(kept)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def merge(seed: int) -> dict | None:
    """The record of one seed's specialists as one model, or None while one of them is missing."""
    folders = {domain: kept_model(run) for domain, run in specialists(seed).items()}
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    tests, prompts = {}, {}
    for domain in folders:
        tests[domain] = measure.test_pairs(domain)
        train_pairs = load_pairs([measure.NANO / f"pairs/{domain}.train.jsonl"])
        prompts[domain] = [pair.prompt for pair in train_pairs]

    record = {"weights": "nano", "seed": seed, "base": version_of_weights("nano")}
    record.update(measure.merged(folders, 1, tests, prompts))
    return record


# ------------------------------------------------------------------------ all runs that are missing


class Store:
    """The records of a model, by name, and the file that has them."""

    def __init__(self, path: Path):
        self.path = path
        self.records = {}
        if path.exists():
            self.records = read_json(path)

    def keep(self, name: str, record: dict):
        """Add a record and write the file anew: whole, or not at all."""
        self.records[name] = record
        lines = []
        for key, value in self.records.items():
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
        text = ",\n".join(lines)
        with replacing(self.path) as temporary:
            temporary.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def merge_name(seed: int) -> str:
    return f"merge seed-{seed}"


def missing_runs(runs: list[Run], merge_seeds: list[int], records: dict) -> list[Run]:
    """The runs without a record, and those whose model is needed for a merge and is gone."""
    needed_again = set()
    for seed in merge_seeds:
        if merge_name(seed) not in records:
            for run in specialists(seed).values():
                if not kept_model(run).is_dir():
                    needed_again.add(run)
    return [run for run in runs if run.key not in records or run in needed_again]


def merge_what_is_there(merge_seeds: list[int], store: Store):
    for seed in merge_seeds:
        name = merge_name(seed)
        if name in store.records:
            continue
        record = merge(seed)
        if record is not None:
            store.keep(name, record)
            print(name, flush=True)


def make_missing(runs: list[Run], merge_seeds: list[int], store: Store,
                 flags_of: Callable[[Run], list[str]], jobs: int = 1, most: int = 0):
    """Make what is missing of `runs` (at most so many of them, if `most` is not 0), and of the
    seeds in `merge_seeds` what needs their models. Each record is stored when it is there."""
    waiting = missing_runs(runs, merge_seeds, store.records)
    if most:
        waiting = waiting[:most]
    threads = 1 if jobs > 1 else 0

    pool = ThreadPoolExecutor(jobs)  # each thread waits for a process of its own
    try:
        run_of = {}
        for run in waiting:
            run_of[pool.submit(make, run, flags_of(run), threads)] = run
        merge_what_is_there(merge_seeds, store)

        for number, future in enumerate(as_completed(run_of), 1):
            run, record = run_of[future], future.result()
            store.keep(run.key, record)
            accuracies = [f"{name} {value:.3f}" for name, value in record["test"].items()]
            print(f"{number} of {len(waiting)}: {run.key}: {', '.join(accuracies)}", flush=True)
            merge_what_is_there(merge_seeds, store)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(PROCESSES):  # none, unless this was interrupted
            process.kill()
        pool.shutdown()


# --------------------------------------------------------------------------------------- the tables


def values(records: dict, test: str, **fields) -> dict[int, float]:
    """{seed: number} of the records with these fields: the accuracy on the domain `test`, or
    another number of the record, such as "train" and "before"."""
    found = {}
    for record in records.values():
        if any(record.get(name) != value for name, value in fields.items()):
            continue
        accuracies = record.get("test", {})
        found[record["seed"]] = accuracies[test] if test in accuracies else record[test]
    return found


def cell(numbers: dict[int, float]) -> str:
    """0.953 +- 0.020 (3): mean, half a 95 % interval, and how many seeds."""
    mean, half, n = measure.interval(numbers.values())
    if n == 0:
        return "-"
    if n == 1:
        return f"{mean:.3f} (1)"
    return f"{mean:.3f} +- {half:.3f} ({n})"


def table(title: str, columns: Iterable, rows: dict[str, list[str]]):
    names = [str(column) for column in columns]
    print(f"\n| {title} | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def show(records: dict, model: str):
    """All tables: means over seeds, +- t s / sqrt(n), in brackets n; where n is 1, no interval."""
    print(f"{model}: mean over seeds +- half a 95 % interval, t s / sqrt(n), with n in brackets; "
          "it is of seeds, the pairs of the test are always the same")
    runs = {key: record for key, record in records.items() if "test" in record}
    accuracies = partial(values, runs)  # accuracies(test, field=value, ...)
    if model not in NANOS:
        show_own_pairs(accuracies, model, domains_of(runs))
        return
    accuracies = partial(accuracies, head="cloze", context="pair")
    domains = domains_of(runs)
    show_claims(partial(accuracies, weights=model), domains)
    show_domains(accuracies, model)
    show_freeze(partial(accuracies, weights=model))
    points = size_points(runs)
    show_sizes(accuracies, points)
    show_twin_and_contexts(accuracies, model)
    show_merges([record for record in records.values() if "alone" in record])
    show_trends(runs, model, domains, points)


def domains_of(runs: dict) -> list[str]:
    names = dict.fromkeys(record["domain"] for record in runs.values())
    return [name for name in names if name != "all"]


def show_own_pairs(accuracies, model, domains):
    rows = {}
    for head, adapter in METHODS:
        rows[f"{head} {adapter}"] = [
            cell(accuracies(d, weights=model, domain=d, head=head, context="pair", adapter=adapter))
            for d in domains]
    rows["cloze full, context single"] = [
        cell(accuracies(d, weights=model, domain=d, head="cloze", context="single"))
        for d in domains]
    table("held-out pairs", domains, rows)


def show_claims(accuracies, domains):
    """The methods on fewer and fewer pairs."""
    for d in domains:
        rows = {}
        for head, adapter in METHODS:
            method = dict(domain=d, head=head, adapter=adapter, freeze=usual_freeze(adapter))
            cells = [cell(accuracies(d, pairs=pairs, **method)) for pairs in BUDGETS]
            cells.append(cell(accuracies("train", pairs=1000, **method)))
            rows[f"{head} {adapter}"] = cells
        table(f"{d}, unseen words", [*BUDGETS, "trained pairs, of 1000"], rows)


def usual(adapter: str) -> dict:
    """The fields of a run as nano's recipe has it."""
    return {"adapter": adapter, "freeze": usual_freeze(adapter), "pairs": 1000}


def show_domains(accuracies, model):
    """Specialists on their own and on the other domains, the generalist, random weights."""
    tests = measure.nano_domains()
    rows = {"before": [cell(accuracies("before", weights=model, domain=test, **usual("dora")))
                       for test in tests]}
    for adapter in ("dora", "full"):
        for d in tests:
            rows[f"{d}, {adapter}"] = [
                cell(accuracies(test, weights=model, domain=d, **usual(adapter)))
                for test in tests]
    rows["all at once, dora"] = [cell(accuracies(test, weights=model, domain="all"))
                                 for test in tests]
    rows["random weights, full, each on its own"] = [
        cell(accuracies(test, weights="random", domain=test)) for test in tests]
    table("trained on (down), tested on (across)", tests, rows)


def show_freeze(accuracies):
    rows = {}
    for d in ("reasoning", "safety"):
        for adapter in ("dora", "full"):
            rows[f"{d}, {adapter}"] = [
                cell(accuracies(d, domain=d, adapter=adapter, freeze=freeze, pairs=1000))
                for freeze in range(4)]
    table("frozen layers", range(4), rows)


class Point(NamedTuple):
    """A run in a power law."""

    x: float  # pairs, or parameters
    record: dict
    domain: str


def size_points(runs: dict) -> dict[str, list[Point]]:
    """{domain: points} of nano and the narrower ones, against their parameters without adapter."""
    points = {domain: [] for domain in measure.nano_domains()}
    for key, record in runs.items():
        weights, domain = record["weights"], record["domain"]
        if weights not in (*SIZES, "nano") or domain not in points:
            continue
        if key == Run(weights, domain, seed=record["seed"]).key:
            parameters = record["parameters"] - record["trainable"]
            points[domain].append(Point(parameters, record, domain))
    return points


def show_sizes(accuracies, points):
    parameters = {}
    for point in points["chat"]:
        parameters[point.record["weights"]] = point.x
    names = (*SIZES, "nano")
    columns = []
    for name in names:
        columns.append(f"{name} ({parameters[name]:,})" if name in parameters else name)

    rows = {}
    for d in points:
        rows[f"{d}, cloze dora"] = [cell(accuracies(d, weights=name, domain=d, **usual("dora")))
                                    for name in names]
    table("encoder (parameters)", columns, rows)


def show_twin_and_contexts(accuracies, model):
    tests = measure.nano_domains()
    rows = {}
    for name in ("nano", "nano-causal"):
        for adapter in ("dora", "full"):
            rows[f"{name}, {adapter}"] = [
                cell(accuracies(d, weights=name, domain=d, **usual(adapter))) for d in tests]
    for context in ("pair", "single"):
        full = dict(weights=model, context=context, **usual("full"))
        rows[f"context {context}, full"] = [cell(accuracies(d, domain=d, **full)) for d in tests]
        rows[f"context {context}, full, judged in the other"] = [
            cell(accuracies("other context", domain=d, **full)) for d in tests]
    table("encoder or causal twin; one context or two", tests, rows)


def show_merges(merges):
    """Specialists as one model."""
    tests = measure.nano_domains()

    def cells(pick):
        """A cell for each domain, of the {domain: number} that `pick` takes from a record."""
        return [cell({record["seed"]: pick(record)[d] for record in merges}) for d in tests]

    rows = {"each on its own": cells(lambda record: record["alone"])}
    for number, scale in enumerate(measure.LAMBDAS):
        name = f"base + {scale:.2f} of all changes"
        rows[name] = cells(lambda record, number=number: record["added"][number][1])
    rows["shared trunk, routed by the prompt"] = cells(lambda record: record["routed"])
    rows["router alone, right"] = cells(lambda record: record["router"])
    table("specialists as one model", tests, rows)

    if merges:
        first = merges[0]
        flops = {name: f"{value:.3g}" for name, value in first["FLOPs a pair"].items()}
        print("\nparameters:", first["parameters"], "\nFLOPs a pair:", flops)


def show_trends(runs, model, domains, points):
    """How the error falls with the pairs, and with the size of the encoder."""
    rows = {}
    for d in domains:
        for head, adapter in MAIN_METHODS:
            wanted = {"weights": model, "domain": d, "head": head, "context": "pair",
                      "adapter": adapter, "freeze": usual_freeze(adapter)}
            found = []
            for record in runs.values():
                if all(record[name] == value for name, value in wanted.items()):
                    found.append(Point(record["pairs"], record, d))
            rows[f"{d}, {head} {adapter}"] = [trend(found)]
    table("error = a pairs^-b (no floor)", ["b [95 %] (points)"], rows)

    rows = {f"{d}, cloze dora": [trend(found)] for d, found in points.items()}
    table("error = a parameters^-b (no floor)", ["b [95 %] (points)"], rows)


def trend(points: list[Point]) -> str:
    """The exponent of the power law of some points as a cell; an error of 0 counts as half a pair.
    With one seed at each x there is no interval."""
    x = [point.x for point in points]
    errors = []
    for point in points:
        error = 1 - point.record["test"][point.domain]
        errors.append(max(error, 0.5 / point.record["n"][point.domain]))
    if len(set(x)) < 2:
        return "not run yet"

    law = measure.power_law(x, errors)
    spread = ""
    if not math.isnan(law["low"]):
        spread = f" [{law['low']:.2f} {law['high']:.2f}]"
    return f"{law['b']:.2f}{spread} ({len(x)})"


# --------------------------------------------------------------------------------- the command line


def of_these_weights(records: dict, model: str) -> dict:
    """The records made with the weights that are here; the others are named and left out."""
    versions = {}
    for weights in {record["weights"] for record in records.values()}:
        with contextlib.suppress(ValueError):  # not on this machine: taken as they are
            versions[weights] = version_of_weights(weights)

    fresh, old = {}, []
    for key, record in records.items():
        if versions.get(record["weights"], record["base"]) == record["base"]:
            fresh[key] = record
        else:
            old.append(key)
    if old:
        print(f"{model}.json: {len(old)} of {len(records)} records are of other weights than those "
              f"here and left out, such as {old[0]!r}", file=sys.stderr)
    return fresh


def check_records(runs: list[Run], store: Store, fresh: dict,
                  flags_of: Callable[[Run], list[str]]):
    """ValueError for records that were made with other flags or weights: they are not added to."""
    for run in runs:
        record = store.records.get(run.key)
        if record is not None and record["flags"] != shlex.join(flags_of(run)):
            raise ValueError(f"{store.path} has records of other flags, such as {run.key!r}: move "
                             "it away")
    if len(fresh) < len(store.records):
        raise ValueError(f"{store.path} has records of other weights: move it away")


def parse(argv: list[str] | None) -> argparse.Namespace:
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
    add("--domain", nargs="+", default=list(data.DOMAINS), choices=list(data.DOMAINS))
    add("--also", default="", help="more flags for train.py, with another model: '--epochs 3'")
    flags = parser.parse_args(argv)

    unknown = [group for group in flags.groups if group not in GROUPS]
    if unknown:
        raise ValueError(f"no group {', '.join(unknown)}: give {', '.join(GROUPS)}")
    if flags.jobs < 1:
        raise ValueError(f"--jobs {flags.jobs}: give 1 or more")
    on_nano = flags.model == ["nano"]
    if not flags.print and on_nano == bool(flags.data):
        raise ValueError("--data goes with --model: nano has its own pairs, other models need "
                         "yours, --data FILE.jsonl")
    if not flags.groups:
        flags.groups = list(GROUPS)
    return flags


def main(argv: list[str] | None = None):
    flags = parse(argv)
    if flags.jobs > 1:
        torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    points = []  # of all models
    for model in flags.model:
        store = Store(RECORDS / f"{Path(model).name}.json")
        fresh = of_these_weights(store.records, store.path.stem)
        runs = grid(flags.groups, flags.seeds, model, flags.domain)
        if not flags.print:
            flags_of = partial(train_flags, files=flags.data, more=flags.also)
            check_records(runs, store, fresh, flags_of)
            merge_seeds = []
            if "merge" in flags.groups and model == "nano":
                merge_seeds = flags.seeds
            make_missing(runs, merge_seeds, store, flags_of, flags.jobs, flags.most)
            fresh = store.records

        there = sum(run.key in fresh for run in runs)
        print(f"\n{store.path.stem}: {there} of {len(runs)} runs are there")
        show(fresh, model)
        for record in fresh.values():
            method = (record.get("head"), record.get("adapter"), record.get("context"))
            if method == ("cloze", "dora", "pair"):
                points.append(Point(record["parameters"], record, record["domain"]))

    if len(flags.model) > 1:  # the scaling of error with size
        rows = {}
        for domain in flags.domain:
            rows[domain] = [trend([point for point in points if point.domain == domain])]
        table("error = a parameters^-b, cloze dora", ["b [95 %] (points)"], rows)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
