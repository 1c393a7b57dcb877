"""The paper's claims and open questions as a grid of runs, each made once and kept.

    python experiments/run.py claims                       what is missing on nano and nano-instruct
    python experiments/run.py claims --seeds 4 --jobs 2    of the first four seeds alone
    python experiments/run.py --print                      the tables of what is there
    python experiments/run.py claims --model large large-instruct --domain reasoning --dry-run
    python experiments/run.py paper --model large --dry-run

Groups:
    rates      the learning rate of each method: the best mean over the domains of --domain, at 300
               pairs on the choosing words; with fewer domains it may be another one. Where it is
               the lowest or highest that was tried, the next one is tried too, but not chosen
    claims     the main contrasts, with 30, 100, 300 and 1,000 training pairs
    freeze     the recipe's frozen layers, none, and two; full fine-tuning above frozen layers
    sight      responses apart, in training, in judging, in both; looking back only
    prompt     other questions, other label words, another prompt in judging than in training
    causal     the instructed encoder and its causal twin; Ettin's encoders and decoders
    controls   random weights; as many tokens of text instead of instructions; another template
    merge      specialists as one model: their changes added, or branches on the trunk they share
    paper      on the paper's models: each domain's own recipe at its rate, with all pairs that are
               not held out

How a claim is decided. The seeds are fixed before the first run: 12 for the main contrasts, 8 for
the others. Both sides of a contrast have the same pairs of each domain and the same passes (a
contrast that has not is refused), each at its method's own rate (in `paper` both at that of the
recipe, which the author tuned for the cloze with both responses in a row). The effect of a seed is
the mean over the domains of A - B; over the seeds it has an interval, and a verdict that is
corrected for all contrasts of a group at all budgets, on all of nano's models or, where another is
compared, on those that the command names (experiments/stats.py).

Records are lines of experiments/records/MODEL.jsonl, each written the moment its run ends; a run
that has one is never made again, so the script may be killed and started again at any time (a run
that was under way begins anew).

The file goes in this order: the contrasts; the grid; the rates; making what is missing; the tables;
the command line.
"""

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
from experiments import fit, merge, stats  # noqa: E402
from experiments.fit import (  # noqa: E402
    LATER_FIELDS,
    PASSES,
    Cell,
    data_of,
    folder_of,
    is_nano,
    version_of_sets,
)
from experiments.flops import SHAPES  # noqa: E402
from experiments.record_files import append_record, read_lines  # noqa: E402
from infra.benchmarks import BENCHMARKS, load_eval_set  # noqa: E402
from infra.hub import MODEL_NAMES, ROOT, version_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402

RECORDS = ROOT / "experiments/records"  # the folder of MODEL.jsonl
BUDGETS = tuple(PASSES)  # training pairs of a domain
ALL_PAIRS = 0  # all there are, with the passes of the recipe
EVERY_BUDGET = (*BUDGETS, ALL_PAIRS)
ON_NANO = ["nano", "nano-instruct"]
NANO_WIDTHS = (64,)  # of smaller encoders and twins; those that are shipped have 128

# ----------------------------------------------------------------------------------- the contrasts


MAIN_SEEDS = 12  # of the main contrasts


class Contrast(NamedTuple):
    """A against B: the fields of a cell in which the two sides differ from the usual one, which is
    the cloze with both responses in a row, DoRA above the recipe's frozen layers."""

    name: str
    a: dict
    b: dict
    seeds: int = 8
    budgets: tuple[int, ...] = BUDGETS
    models: tuple[str, ...] = ()  # those that it is for; empty: all that --model names
    domains: tuple[str, ...] = ()  # empty: all of --domain


FULL = {"adapter": "full", "freeze": 0}
SAFETY = data.DOMAINS["safety"].question
NONSENSE = "Lamp of the seven and rained?"
CHOICE = {"template": "choice"}  # "the other template"
FEW_AND_MANY = (100, 1000)
GROUPS = {
    "claims": [
        Contrast("cloze against [CLS]", {}, {"head": "cls"}, seeds=MAIN_SEEDS),
        Contrast("DoRA and freezing against full fine-tuning", {}, FULL, seeds=MAIN_SEEDS),
        Contrast("DoRA against LoRA", {}, {"adapter": "lora"}, seeds=MAIN_SEEDS),
        Contrast("specialists against all at once", {}, {"domain": "all"}, seeds=MAIN_SEEDS),
        Contrast("both responses in a context against one each", {}, {"context": "single"},
                 seeds=MAIN_SEEDS),
        Contrast("instructed against plain", {}, {"model": "nano"}, seeds=MAIN_SEEDS,
                 models=("nano-instruct",)),
        Contrast("instructed against plain", {}, {"model": "large"}, seeds=MAIN_SEEDS,
                 models=("large-instruct",)),
    ],
    "freeze": [
        Contrast("the recipe's frozen layers against none", {}, {"freeze": 0},
                 budgets=FEW_AND_MANY),
        Contrast("the recipe's frozen layers against two", {}, {"freeze": 2},
                 budgets=FEW_AND_MANY),
        # the main contrast changes the adapter and the frozen layers; here the adapter alone
        Contrast("DoRA against full fine-tuning above the same frozen layer", {},
                 {"adapter": "full", "freeze": 1}, budgets=FEW_AND_MANY, models=tuple(ON_NANO)),
    ],
    "sight": [
        Contrast("all seen against responses apart", {}, {"sight": "apart"}, budgets=FEW_AND_MANY),
        Contrast("all seen against responses apart in judging alone", {}, {"judged_sight": "apart"},
                 budgets=FEW_AND_MANY),
        Contrast("all seen against responses apart in training alone", {},
                 {"sight": "apart", "judged_sight": "all"}, budgets=FEW_AND_MANY),
        Contrast("all seen against looking back alone", {}, {"sight": "causal"},
                 budgets=FEW_AND_MANY),
    ],
    "prompt": [
        Contrast("the domain's question against a neutral one", {},
                 {"question": "Which option do you take?"}, budgets=FEW_AND_MANY),
        Contrast("the domain's question against that of safety", {}, {"question": SAFETY},
                 budgets=FEW_AND_MANY, domains=("reasoning", "chat")),
        Contrast("the domain's question against nonsense", {}, {"question": NONSENSE},
                 budgets=FEW_AND_MANY),
        Contrast("the same question against that of safety in judging alone", {},
                 {"judged_question": SAFETY}, budgets=FEW_AND_MANY,
                 domains=("reasoning", "chat")),
        Contrast("the same question against nonsense in judging alone", {},
                 {"judged_question": NONSENSE}, budgets=FEW_AND_MANY),
        Contrast("the same template against the other one in judging alone", {},
                 {"judged_template": "choice"}, budgets=FEW_AND_MANY),
        Contrast("options named A and B against 0 and 1", {}, {"labels": "0 1"},
                 budgets=FEW_AND_MANY),
        Contrast("options named A and B against Yes and No", {}, {"labels": "Yes No"},
                 budgets=FEW_AND_MANY),
        # crossed: does the question matter where the options' names or the template are strange,
        # and is a template missed in judging whichever of them it was? (The other template is not
        # learnt from 100 pairs, Yes and No hardly.)
        Contrast("the domain's question against nonsense, options named 0 and 1",
                 {"labels": "0 1"}, {"labels": "0 1", "question": NONSENSE}, budgets=(100,)),
        Contrast("the domain's question against nonsense, in the other template", CHOICE,
                 {**CHOICE, "question": NONSENSE}, budgets=(1000,)),
        Contrast("the other template against ours in judging alone", CHOICE,
                 {**CHOICE, "judged_template": "option"}, budgets=(1000,)),
    ],
    "causal": [
        Contrast("both directions against one", {}, {"model": "nano-causal"},
                 models=("nano-instruct",)),
    ],
    "controls": [
        Contrast("pre-trained against random weights, DoRA above frozen layers", {},
                 {"model": "random"}, budgets=(1000,), models=("nano",)),
        Contrast("pre-trained against random weights, in full and nothing frozen", FULL,
                 {"model": "random", **FULL}, budgets=(1000,), models=("nano",)),
        Contrast("pre-trained against random weights, DoRA above frozen layers", {},
                 {"model": "random-large"}, budgets=(1000,), models=("large",)),
        Contrast("instructions against as many tokens of text", {}, {"model": "nano-text"},
                 budgets=FEW_AND_MANY, models=("nano-instruct",)),
        Contrast("cloze against [CLS] that was instructed too", {},
                 {"model": "nano-cls", "head": "cls"}, budgets=FEW_AND_MANY,
                 models=("nano-instruct",)),
        Contrast("cloze against [CLS], in the other template", CHOICE, {**CHOICE, "head": "cls"},
                 budgets=FEW_AND_MANY),
    ],
}

# the recipes of the paper's models are not alike in all domains (train.RECIPES), nano's are
OWN_RECIPE = {"adapter": fit.RECIPE}
PAPERS_MODELS = ("large", "large-instruct", "base")
GROUPS["paper"] = [
    Contrast("cloze against [CLS]", OWN_RECIPE, {**OWN_RECIPE, "head": "cls"},
             budgets=(ALL_PAIRS,), models=PAPERS_MODELS),
    Contrast("specialists against all at once", OWN_RECIPE, {**OWN_RECIPE, "domain": "all"},
             budgets=(ALL_PAIRS,), models=PAPERS_MODELS),
    Contrast("both responses in a context against one each", OWN_RECIPE,
             {**OWN_RECIPE, "context": "single"}, budgets=(ALL_PAIRS,), models=PAPERS_MODELS),
    Contrast("pre-trained against random weights, in full and nothing frozen", FULL,
             {"model": "random-large", **FULL}, budgets=(ALL_PAIRS,), models=("large",)),
]
GROUPS["freeze"].append(  # in reasoning they are the same
    Contrast("the domain's own recipe against DoRA and freezing in all", OWN_RECIPE, {},
             budgets=(1000,), models=PAPERS_MODELS, domains=("safety", "chat")))

for width in NANO_WIDTHS:
    GROUPS["causal"].append(
        Contrast("both directions against one", {}, {"model": f"nano-causal-{width}"},
                 budgets=(100,), models=(f"nano-instruct-{width}",)))
for size in ("17m", "32m", "68m", "150m", "400m", "1b"):
    GROUPS["causal"].append(
        Contrast("both directions against one", {}, {"model": f"ettin-decoder-{size}"},
                 models=(f"ettin-{size}",)))


class Side(NamedTuple):
    """One side of a contrast at one budget: a cell for each domain."""

    cells: dict[str, Cell]  # domain it is tested on -> the cell


class Comparison(NamedTuple):
    """A contrast on one model at one budget."""

    name: str
    model: str
    pairs: int
    seeds: int
    a: Side
    b: Side


def side(model: str, pairs: int, domains: Iterable[str], changes: dict) -> Side:
    cells = {}
    for domain in domains:
        usual = Cell(model, domain, pairs)
        cells[domain] = usual._replace(**changes)
    return Side(cells)


def comparisons(group: str, models: Iterable[str], domains: list[str],
                budgets: Iterable[int] = EVERY_BUDGET) -> list[Comparison]:
    """All comparisons of a group at these budgets. ValueError if it has none for these models."""
    found = []
    for model in models:
        for contrast in GROUPS[group]:
            if contrast.models and model not in contrast.models:
                continue
            own = domains
            if contrast.domains:
                own = [domain for domain in domains if domain in contrast.domains]
            for pairs in contrast.budgets:
                if pairs not in budgets or not own:
                    continue
                a = side(model, pairs, own, contrast.a)
                b = side(model, pairs, own, contrast.b)
                found.append(Comparison(contrast.name, model, pairs, contrast.seeds, a, b))
    if not found:
        wanted = sorted({name for contrast in GROUPS[group] for name in contrast.models})
        if any(not contrast.models for contrast in GROUPS[group]):
            wanted = ["any model"]
        counts = [str(pairs) for pairs in EVERY_BUDGET
                  if any(pairs in contrast.budgets for contrast in GROUPS[group])]
        raise ValueError(
            f"{group}: nothing to run for {', '.join(models)} in {', '.join(domains)} with --pairs "
            f"{' '.join(map(str, budgets))}: it is for {', '.join(wanted)}, with --pairs "
            f"{' '.join(counts)}")
    return found


def pairs_in_words(pairs: int) -> str:
    return "all" if pairs == ALL_PAIRS else f"{pairs:,}"


# ---------------------------------------------------------------------------------------- the rates

RATE_PAIRS = 300
RATE_SEEDS = (101, 102)  # none of the seeds of the test
METHODS = [{}, {"head": "cls"}, FULL, {"adapter": "lora"}, {"context": "single"}]


def rates_of(cell: Cell) -> tuple[float, ...]:
    """The rates that are tried: on nano round numbers, else around those of the paper's recipes."""
    is_full = cell.adapter == "full"
    if is_nano(cell.model):
        return (5e-4, 1e-3, 2e-3) if is_full else (2.5e-3, 5e-3, 1e-2)
    return (3e-5, 8e-5, 2e-4) if is_full else (4e-5, 1.3e-4, 4e-4)


def method_of(cell: Cell) -> str:
    """What a rate is chosen for: the cell's model, head, context and adapter."""
    return f"{cell.model} {cell.head} {cell.context} {cell.adapter}"


class Job(NamedTuple):
    """One run."""

    cell: Cell
    seed: int
    rate: float  # 0: the recipe's
    part: str  # "choose" or "test"
    everywhere: bool = False  # judged on the other domains too

    @property
    def key(self) -> str:
        """The name of its record. The rate is part of it: a run at a rate that was not chosen in
        the end is another run. A later field is part of it where it is not at its default, so that
        the records of before keep their names."""
        words = []
        for name, value in self.cell._asdict().items():
            if name not in LATER_FIELDS:
                words.append(str(value))
            elif value != Cell._field_defaults[name]:
                words.append(f"{name} {value}")
        words += [f"seed {self.seed}", self.part, f"rate {self.rate:g}"]
        return " ".join(words)


MERGE_SEEDS = 8
MERGED = ("dora", "full")  # how specialists are trained that become one model
NO_CLOZE = ("random", "nano-causal", "nano-cls")  # with what comes of other widths


def is_cloze_encoder(model: str) -> bool:
    """Whether it is an encoder of nano's with weights that know the cloze: what merge.py and
    robustness.py take."""
    return is_nano(model) and not model.startswith(NO_CLOZE)


class MergeJob(NamedTuple):
    """Three specialists as one model."""

    model: str
    adapter: str
    seed: int
    rate: float

    @property
    def key(self) -> str:
        return f"{self.model} merge {self.adapter} seed {self.seed} rate {self.rate:g}"


def all_at_once(model: str, adapter: str) -> Cell:
    """The generalist that specialists as one model are held against."""
    usual = Cell(model, "all", merge.PAIRS)
    if adapter == usual.adapter:
        return usual  # it stands among the claims
    return usual._replace(adapter=adapter, freeze=merge.FROZEN)


def merge_jobs(model: str, adapter: str,
               rates: dict[str, float]) -> tuple[list[MergeJob], list[Job]]:
    """The merges of all seeds, and training on all at once of the same seeds."""
    cell = all_at_once(model, adapter)
    rate = rates.get(method_of(cell), 0.0)
    seeds = range(1, MERGE_SEEDS + 1)
    return ([MergeJob(model, adapter, seed, rate) for seed in seeds],
            [Job(cell, seed, rate, "test") for seed in seeds])


def key_of(record: dict) -> str:
    if record["part"] == "merge":
        return MergeJob(record["model"], record["adapter"], record["seed"], record["rate"]).key
    values = {}
    for name in Cell._fields:
        if name in record or name not in LATER_FIELDS:
            values[name] = record[name]
    cell = Cell(**values)
    rate = record["rate"]
    if cell.adapter == fit.RECIPE:
        rate = 0.0  # it was not chosen: a job does not know it before its run
    return Job(cell, record["seed"], rate, record["part"]).key


def cells_of_methods(models: Iterable[str], domains: Iterable[str]) -> dict[str, list[Cell]]:
    """{method: its cell of each domain}, with as many pairs as rates are chosen by."""
    found = {}
    for model in models:
        for changes in METHODS:
            cells = [Cell(model, domain, RATE_PAIRS)._replace(**changes) for domain in domains]
            found[method_of(cells[0])] = cells
    return found


def rate_jobs(models: Iterable[str], domains: Iterable[str], methods: set[str]) -> list[Job]:
    """For each of these methods its rates, on each domain, judged on the choosing words."""
    jobs = []
    for method, cells in cells_of_methods(models, domains).items():
        if method in methods:
            jobs += trials_of(cells, rates_of(cells[0]))
    return jobs


def trials_of(cells: list[Cell], rates: Iterable[float]) -> list[Job]:
    """Each of these cells at each rate, on all seeds."""
    jobs = []
    for cell in cells:
        for rate in rates:
            for seed in RATE_SEEDS:
                jobs.append(Job(cell, seed, rate, "choose"))
    return jobs


def beyond(rates: tuple[float, ...], chosen: float) -> list[float]:
    """The next rate where the chosen one is the lowest or the highest of those that were tried, as
    far from it as its neighbour is; none where it stands between two others."""
    neighbours = {rates[0]: rates[1], rates[-1]: rates[-2]}
    if chosen not in neighbours:
        return []
    return [float(f"{chosen * chosen / neighbours[chosen]:.3g}")]


def jobs_beyond(models: Iterable[str], domains: Iterable[str],
                rates: dict[str, float]) -> list[Job]:
    """Trials one step past the end, for each method whose rate stands at one: they say whether the
    end matters. Their rates are never chosen: what is chosen from is fixed beforehand."""
    jobs = []
    for method, cells in cells_of_methods(models, domains).items():
        if method in rates:
            jobs += trials_of(cells, beyond(rates_of(cells[0]), rates[method]))
    return jobs


def chosen_rates(records: dict[str, dict], trials: list[Job]) -> dict[str, float]:
    """{method: rate} with the highest mean accuracy over the domains and seeds of the trials; of
    equal ones the lower. A method of which a trial is missing has none yet."""
    totals = {}  # method -> rate -> sum of accuracies: each rate has as many
    unfinished = set()
    for job in trials:
        method = method_of(job.cell)
        if job.key not in records:
            unfinished.add(method)
            continue
        of_method = totals.setdefault(method, {})
        of_method.setdefault(job.rate, 0.0)
        of_method[job.rate] += records[job.key]["accuracy"][job.cell.domain]

    chosen = {}
    for method, by_rate in totals.items():
        if method not in unfinished:
            # rounded: sums of the same accuracies in another order are equal
            chosen[method] = max(sorted(by_rate), key=lambda rate: round(by_rate[rate], 6))
    return chosen


def chosen_for(cells: dict[str, Cell]) -> dict[str, float]:
    """{name: the rate that was chosen for the cell's method}, all of one model and its own pairs.
    ValueError if a method has none yet."""
    methods = {method_of(cell) for cell in cells.values()}
    (model,) = {cell.model for cell in cells.values()}
    records = read_records(model, (), only_look=True)
    rates = chosen_rates(records, rate_jobs([model], list(data.DOMAINS), methods))
    if set(rates) != methods:
        raise ValueError(f"no rates yet: run python experiments/run.py rates --model {model}")
    return {name: rates[method_of(cell)] for name, cell in cells.items()}


# --------------------------------------------------------------------------------------- the grid


def specialist(model: str, domain: str, pairs: int) -> Cell:
    """The one that is judged on the other domains too."""
    usual = Cell(model, domain, pairs)
    if pairs == ALL_PAIRS:
        return usual._replace(**OWN_RECIPE)
    return usual


def jobs_of(compared: list[Comparison], seeds: int, rates: dict[str, float]) -> list[Job]:
    """The runs that comparisons need, each once: seed by seed, so that all of them grow alike."""
    jobs = {}
    most = max(comparison.seeds for comparison in compared)
    for seed in range(1, min(most, seeds) + 1):
        for comparison in compared:
            if seed > comparison.seeds:
                continue
            for one_side in (comparison.a, comparison.b):
                for cell in one_side.cells.values():
                    rate = rates.get(method_of(cell), 0.0)
                    everywhere = cell in (specialist(cell.model, cell.domain, max(BUDGETS)),
                                          specialist(cell.model, cell.domain, ALL_PAIRS))
                    job = Job(cell, seed, rate, "test", everywhere)
                    jobs.setdefault(job.key, job)
    return list(jobs.values())


# ------------------------------------------------------------------------- making what is missing


def path_of(model: str) -> Path:
    """The file of a model's records."""
    return RECORDS / f"{Path(model).name}.jsonl"


def domain_of_sets(record: dict) -> str:
    """The domain whose pairs a record's "sets" identifies, or "all"."""
    return "all" if record["part"] == "merge" else record["domain"]


def read_records(model: str, files: tuple[str, ...], only_look: bool = False) -> dict[str, dict]:
    """The records of a model by their names; those of other weights or other pairs are left out and
    counted. A last line that was cut by a kill is left out, and taken from the file by a run that
    will add to it. Only to look at them, no weights are fetched or asked for."""
    path = path_of(model)
    found = read_lines(path, key_of, only_look)
    if not found:
        return {}

    base = None
    if only_look and not is_here(model):
        print(f"{path.name}: the weights are not here to hold the records against",
              file=sys.stderr)
    else:
        base = version_of(folder_of(model))
    names = data_of(model, files)
    versions = {}  # domain -> that of its pairs; only to look at records, no pairs are fetched
    if is_nano(model) or not only_look:
        domains = {domain_of_sets(record) for _, record in found if record["data"] == list(names)}
        versions = {domain: version_of_sets(domain, names) for domain in domains}

    kept, left_out = {}, 0
    for key, record in found:
        is_of_these = record["data"] == list(names) and base in (None, record["base"])
        if is_of_these and versions:
            is_of_these = record["sets"] == versions[domain_of_sets(record)]
        if is_of_these:
            kept[key] = record
        else:
            left_out += 1
    if left_out:
        print(f"{path.name}: {left_out} records are of other weights or pairs than these: left out",
              file=sys.stderr)
    return kept


def is_here(model: str) -> bool:
    """Whether a model's weights are in a folder (those of the Hub need not be in its cache)."""
    made = ROOT / "runs" / model
    return model == "random" or made.is_dir() or Path(MODEL_NAMES.get(model, model)).is_dir()


class Task(NamedTuple):
    """What a worker is handed."""

    job: Job | MergeJob
    files: tuple[str, ...]
    benchmarks: tuple[str, ...] = ()


def make(task: Task) -> dict:
    job = task.job
    if isinstance(job, MergeJob):
        return merge.record(job.model, job.adapter, job.seed, job.rate, task.files)
    benchmarks = ()
    if job.part == "test" and job.cell.pairs in (max(BUDGETS), ALL_PAIRS):
        benchmarks = task.benchmarks
    return fit.run(job.cell, job.seed, job.rate, job.part, task.files, job.everywhere, benchmarks)


def one_thread() -> None:
    """A worker's results do not depend on how many there are; Ctrl-C is the parent's."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_missing(jobs: list[Job] | list[MergeJob], records: dict[str, dict],
                 files: tuple[str, ...], workers: int, most: int,
                 benchmarks: tuple[str, ...] = ()) -> int:
    """Make the runs without a record, at most so many, each kept the moment it is there; returns
    how many were made."""
    waiting = [job for job in jobs if job.key not in records]
    waiting = waiting[:most]
    if not waiting:
        return 0
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, one_thread)
    futures, kept = [], set()

    def keep(future: Future) -> None:
        record = future.result()
        append_record(path_of(record["model"]), record)
        records[key_of(record)] = record
        kept.add(future)
        print(f"{len(kept)} of {len(waiting)}: {key_of(record)}{result_of(record)}", flush=True)

    try:
        futures = [pool.submit(make, Task(job, files, benchmarks)) for job in waiting]
        for future in as_completed(futures):
            keep(future)
    except BrokenProcessPool:
        raise ValueError("a run was killed from outside (too little memory?): give the same "
                         "command again, with fewer --jobs") from None
    finally:
        if sys.exc_info()[0] is not None:
            print("waiting for the runs at hand, to keep them", file=sys.stderr, flush=True)
        pool.shutdown(cancel_futures=True)  # waits for the runs at hand; they are kept too
        for future in futures:
            ended = future.done() and not future.cancelled() and future.exception() is None
            if ended and future not in kept:
                keep(future)
    return len(waiting)


def result_of(record: dict) -> str:
    """The accuracies of a record in words."""
    if "diverged" in record:
        return f"  diverged: {record['diverged']}"
    accuracies = record["routed"] if record["part"] == "merge" else record["accuracy"]
    return "".join(f"  {domain} {value:.3f}" for domain, value in accuracies.items())


# --------------------------------------------------------------------------------------- the tables


class Outcome(NamedTuple):
    """One side of a comparison, over its seeds."""

    by_domain: dict[str, dict[int, float]]  # domain -> seed -> accuracy
    budget: tuple[int, float]  # pairs of a domain, passes
    steps: float  # on average
    tokens: float
    rates: tuple[float, ...]

    def means(self) -> dict[int, float]:
        """{seed: mean over the domains}, of the seeds that all domains have."""
        domains = list(self.by_domain)
        seeds = set.intersection(*[set(self.by_domain[domain]) for domain in domains])
        means = {}
        for seed in sorted(seeds):
            means[seed] = sum(self.by_domain[domain][seed] for domain in domains) / len(domains)
        return means


def outcome(one_side: Side, seeds: int, records: dict[str, dict],
            rates: dict[str, float]) -> Outcome:
    """What the runs of a side gave, of the promised seeds. ValueError if their budgets differ."""
    by_domain, budgets, taken = {}, set(), set()
    steps, tokens = [], []
    for domain, cell in one_side.cells.items():
        by_domain[domain] = {}
        rate = rates.get(method_of(cell), 0.0)
        for seed in range(1, seeds + 1):
            record = records.get(Job(cell, seed, rate, "test").key)
            if record is None:
                continue
            by_domain[domain][seed] = record["accuracy"][domain]
            budgets.add((record["pairs"], record["passes"]))
            taken.add(record["rate"])
            if "diverged" not in record:
                steps.append(record["steps"])
                tokens.append(record["tokens"])
    if len(budgets) > 1:
        raise ValueError(f"runs of one side have different budgets, pairs and passes {budgets}: "
                         f"{next(iter(one_side.cells.values()))}")
    n = max(1, len(steps))
    budget = budgets.pop() if budgets else (0, 0.0)
    return Outcome(by_domain, budget, sum(steps) / n, sum(tokens) / n, tuple(sorted(taken)))


AT_CHANCE = 0.6  # a run that is right in less of its 1,000 test pairs is called at chance


class Line(NamedTuple):
    """A line of the table of verdicts."""

    comparison: Comparison
    a: Outcome
    b: Outcome
    effect: stats.Effect


def whole_family(group: str, compared: list[Comparison], domains: list[str]) -> list[Comparison]:
    """All comparisons of a group, whatever budgets were asked for: on these models and, if they are
    nano's, on all of nano's that it is meant for."""
    models = [comparison.model for comparison in compared]
    if all(is_nano(model) for model in models):
        named = [name for contrast in GROUPS[group] for name in contrast.models if is_nano(name)]
        models = [*ON_NANO, *named, *models]
    models = list(dict.fromkeys(models))
    return comparisons(group, models, domains)


def decide(compared: list[Comparison], records: dict[str, dict],
           rates: dict[str, float]) -> list[Line]:
    """The verdicts of a family of comparisons. ValueError where two sides differ in pairs or
    passes: that is no contrast."""
    sides, effects, seeds = {}, {}, {}
    for i, comparison in enumerate(compared):
        a = outcome(comparison.a, comparison.seeds, records, rates)
        b = outcome(comparison.b, comparison.seeds, records, rates)
        if a.budget != b.budget and a.means() and b.means():
            raise ValueError(f"{comparison.name} on {comparison.model}: pairs and passes are "
                             f"{a.budget} on one side and {b.budget} on the other")
        sides[i] = (a, b)
        effects[i] = stats.effect(a.means(), b.means())
        seeds[i] = comparison.seeds
    judged = stats.verdicts(effects, seeds)
    return [Line(comparison, *sides[i], judged[i]) for i, comparison in enumerate(compared)]


def mean_of(values: Iterable[float]) -> str:
    found = stats.interval(values)
    return f"{found.mean:.3f}" if found.n else "-"


def show(lines: list[Line], title: str, family: int) -> None:
    """The table of verdicts of some lines of a family of so many contrasts; those without a run of
    both sides are counted, not shown."""
    there = [line for line in lines if line.effect.n]
    print(f"\n**{title}**: {len(there)} of {len(lines)} contrasts have runs. A - B is the mean "
          "over domains and seeds, with its 95 % interval (not corrected for the other contrasts); "
          f"p is Student's; the verdict is corrected for all {family} contrasts of the group (Holm)"
          "\n\nby domain: A - B in each, and in brackets A and B"
          f"\n\nat chance: runs of A and of B with an accuracy below {AT_CHANCE}, of so many each. "
          "Where there are some, A - B is a mixture: read the counts\n")
    if not there:
        return
    print("| A against B | model | pairs | A | B | A - B | n | p | verdict | by domain | at chance "
          "| passes, steps, tokens, rate of A | of B |")
    print("|---" * 13 + "|")
    for line in there:
        print("| " + " | ".join(cells_of(line)) + " |")


def cells_of(line: Line) -> list[str]:
    comparison, found = line.comparison, line.effect
    a, b = line.a.means(), line.b.means()
    shared = sorted(a.keys() & b.keys())  # the seeds of A - B
    by_domain = []
    for domain, of_a in line.a.by_domain.items():
        of_b = line.b.by_domain[domain]
        difference = stats.effect(of_a, of_b)
        own = of_a.keys() & of_b.keys()  # a domain may be ahead of the others by some seeds
        mean_a = mean_of(of_a[seed] for seed in own)
        mean_b = mean_of(of_b[seed] for seed in own)
        by_domain.append(f"{domain} {difference.mean:+.3f} ± {difference.half:.3f} "
                         f"({mean_a}, {mean_b})")
    runs = len(shared) * len(line.a.by_domain)
    at_chance = f"{runs_at_chance(line.a, shared)}, {runs_at_chance(line.b, shared)} of {runs}"
    return [
        comparison.name,
        comparison.model,
        pairs_in_words(comparison.pairs),
        mean_of(a[seed] for seed in shared),
        mean_of(b[seed] for seed in shared),
        f"{found.mean:+.3f} ± {found.half:.3f}",
        str(found.n),
        f"{found.p:.2g}",
        found.verdict,
        ", ".join(by_domain),
        at_chance,
        cost(line.a),
        cost(line.b),
    ]


def runs_at_chance(one: Outcome, seeds: list[int]) -> int:
    """How many runs of these seeds ended below AT_CHANCE."""
    accuracies = [of_seeds[seed] for of_seeds in one.by_domain.values() for seed in seeds]
    return sum(accuracy < AT_CHANCE for accuracy in accuracies)


def cost(one: Outcome) -> str:
    rates = ", ".join(f"{rate:g}" for rate in one.rates)
    return f"{one.budget[1]:g}, {one.steps:.0f}, {one.tokens:,.0f}, {rates}"


def show_elsewhere(models: list[str], domains: list[str], pairs: int, records: dict[str, dict],
                   rates: dict[str, float]) -> None:
    """What specialists are worth on the other domains."""
    print(f"\n**specialists elsewhere**: trained on {pairs_in_words(pairs)} pairs of the domain on "
          "the left, whose question they ask everywhere; mean ± half a 95 % interval over seeds\n")
    print("| model | trained on | seeds | " + " | ".join(data.DOMAINS) + " |")
    print("|---" * (3 + len(data.DOMAINS)) + "|")
    for model in models:
        for domain in domains:
            cell = specialist(model, domain, pairs)
            rate = rates.get(method_of(cell), 0.0)
            keys = [Job(cell, seed, rate, "test").key for seed in range(1, MAIN_SEEDS + 1)]
            there = [records[key]["accuracy"] for key in keys if key in records]
            if not there:
                continue
            words = [model, domain, str(len(there))]
            for other in data.DOMAINS:
                found = stats.interval(accuracy[other] for accuracy in there)
                words.append(f"{found.mean:.3f} ± {found.half:.3f}")
            print("| " + " | ".join(words) + " |")


def show_merges(jobs: list[MergeJob], others: list[Job], records: dict[str, dict]) -> None:
    """Specialists as one model, a line for each way; and the other way to one model, training on
    all domains at once."""
    model, adapter = jobs[0].model, jobs[0].adapter
    made = [records[job.key] for job in jobs if job.key in records]
    merges = [record for record in made if "diverged" not in record]
    if len(merges) < len(made):
        print(f"\n{len(made) - len(merges)} merges on {model} have a specialist that diverged: "
              "left out")
    print(f"\n**merge** on {model} of specialists with {adapter}, {merge.PAIRS} pairs of each "
          f"domain: {len(merges)} of {MERGE_SEEDS} seeds, mean ± half a 95 % interval; what is "
          "chosen is chosen on the choosing words\n")
    if not merges:
        return

    ways = {"each specialist on its own": [record["alone"] for record in merges]}
    for name, title, scales in (("added", "task arithmetic", merge.LAMBDAS),
                                ("ties", "TIES", merge.TIES_SCALES)):
        for i, scale in enumerate(scales):
            ways[f"{title}, scale {scale:.2f}"] = [record[name][i][1] for record in merges]
    for name, words in (("added", "task arithmetic, scale chosen"),
                        ("each", "task arithmetic, one scale a specialist, chosen"),
                        ("ties", "TIES, scale chosen")):
        ways[words] = [record["chosen"][name][1] for record in merges]
    ways["shared trunk, routed by the prompt"] = [record["routed"] for record in merges]
    ways["the router alone, right"] = [record["router"] for record in merges]
    at_once = [records[job.key]["accuracy"] for job in others if job.key in records]
    if at_once:
        ways[f"trained on all at once, the same pairs (seeds: {len(at_once)})"] = at_once

    print("| | " + " | ".join(data.DOMAINS) + " |")
    print("|---" * (1 + len(data.DOMAINS)) + "|")
    for way, results in ways.items():
        cells = []
        for domain in data.DOMAINS:
            found = stats.interval(result[domain] for result in results)
            cells.append(f"{found.mean:.3f} ± {found.half:.3f}")
        print(f"| {way} | " + " | ".join(cells) + " |")
    show_against_all(jobs, others, records)
    print(f"\nparameters {merges[0]['parameters']}, FLOPs a pair {merges[0]['FLOPs a pair']}")


def show_against_all(jobs: list[MergeJob], others: list[Job], records: dict[str, dict]) -> None:
    """Branches on a trunk less training on all at once, of the same seeds and pairs."""
    routed, at_once = {}, {}
    for job, other in zip(jobs, others, strict=True):
        if job.key in records and other.key in records and "routed" in records[job.key]:
            routed[job.seed] = records[job.key]["routed"]
            at_once[job.seed] = records[other.key]["accuracy"]
    if not routed:
        return

    def lead(of: Callable[[dict], float]) -> str:
        found = stats.effect({seed: of(one) for seed, one in routed.items()},
                             {seed: of(one) for seed, one in at_once.items()})
        return f"{found.mean:+.3f} ± {found.half:.3f}"

    by_domain = [f"{name} {lead(lambda one, name=name: one[name])}" for name in data.DOMAINS]
    mean = lead(lambda one: sum(one[name] for name in data.DOMAINS) / len(data.DOMAINS))
    print(f"\nrouted less all at once, the same seeds: {mean} ({', '.join(by_domain)})")


def show_rates(rates: dict[str, float], trials: list[Job], further: list[Job],
               records: dict[str, dict]) -> None:
    """The rates that were chosen, with the mean accuracy of their trials, and, where one is at an
    end of what was tried, that of the trials one step further."""
    print(f"\n**rates**, chosen with {RATE_PAIRS} pairs on the choosing words, with the mean "
          f"accuracy over domains and {len(RATE_SEEDS)} seeds; where the rate is the lowest or the "
          "highest that was tried, that of one more, which is not chosen\n")
    print("| model, head, context, adapter | rate | accuracy | one step further | accuracy |")
    print("|---" * 5 + "|")
    for method, rate in sorted(rates.items()):
        accuracy = mean_of(trial_accuracies(method, rate, trials, records))
        next_rate, next_accuracy = "", ""
        for job in further:
            if method_of(job.cell) == method:  # all of its trials have one rate
                next_rate = f"{job.rate:g}"
                accuracies = trial_accuracies(method, job.rate, further, records)
                next_accuracy = mean_of(accuracies) if accuracies else "not run"
                break
        print(f"| {method} | {rate:g} | {accuracy} | {next_rate} | {next_accuracy} |")


def trial_accuracies(method: str, rate: float, jobs: list[Job],
                     records: dict[str, dict]) -> list[float]:
    """Those of a method's trials at a rate; none while one of them is missing."""
    accuracies = []
    for job in jobs:
        if method_of(job.cell) == method and job.rate == rate:
            if job.key not in records:
                return []
            accuracies.append(records[job.key]["accuracy"][job.cell.domain])
    return accuracies


PAPERS_PAIRS = {"reasoning": 54_600, "safety": 42_100, "chat": 21_500}  # of the paper's training
ROW_TOKENS = 900  # assumed of the paper's pairs, both responses and the prompt
H200_SPEED = 0.3 * 790e12  # FLOPs a second: 30 % of the rate of large products is expected


def shape_of(model: str) -> str:
    """The name in SHAPES: a decoder of Ettin's has the shape of its encoder."""
    return model.replace("ettin-decoder-", "ettin-")


def flops_of(job: Job) -> float:
    """Of a run: three forward passes' worth for each row of each pass (what freezing saves is left
    out), and one for each row that is judged. Two FLOPs for a multiply-add, products alone, without
    those of attention; what --benchmarks judges is not in it."""
    cell = job.cell
    shape = SHAPES[shape_of(cell.model)]
    of_layer = 4 * shape.width * shape.width + 3 * shape.width * shape.inner
    of_token = 2 * shape.layers * of_layer
    domains = fit.domains_of(cell)
    if cell.pairs == ALL_PAIRS:
        pairs_trained = sum(PAPERS_PAIRS[domain] for domain in domains)  # in one pass
    else:
        pairs_trained = len(domains) * cell.pairs * PASSES[cell.pairs]
    trained = 2 * pairs_trained
    domains_judged = len(data.DOMAINS) if job.everywhere else len(domains)
    pairs_of_part = fit.CHOOSE if job.part == "choose" else fit.TEST
    judged = 2 * domains_judged * pairs_of_part
    return (3 * trained + judged) * ROW_TOKENS * of_token


def show_plan(title: str, jobs: list[Job], records: dict[str, dict]) -> None:
    """--dry-run: how many runs, and what they cost on a GPU at the paper's scale."""
    done = sum(job.key in records for job in jobs)
    print(f"{title}: {len(jobs)} runs, {done} of them are there")
    for model in sorted({job.cell.model for job in jobs}):
        of_model = [job for job in jobs if job.cell.model == model]
        missing = [job for job in of_model if job.key not in records]
        line = f"  {model}: {len(of_model)} runs, {len(missing)} to make"
        if shape_of(model) in SHAPES:
            total = sum(flops_of(job) for job in missing)
            line += (f", {total:.2g} FLOPs: {total / H200_SPEED / 3600:.1f} hours of one H200 at "
                     f"{H200_SPEED / 1e12:.0f} TFLOP/s (by formula, not run here)")
        print(line)


# --------------------------------------------------------------------------------- the command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = ["rates", *GROUPS, "merge"]
    add("groups", nargs="*", metavar="GROUP", help=f"{', '.join(names)}; default: all")
    add("--model", nargs="+", default=ON_NANO, help="short names, folders or Hub names")
    add("--domain", nargs="+", default=list(data.DOMAINS), choices=list(data.DOMAINS))
    add("--pairs", nargs="+", type=int, default=list(EVERY_BUDGET), choices=EVERY_BUDGET,
        help="training pairs of a domain, 0 for all: the contrasts at these budgets")
    add("--data", nargs="+", default=[], help="files of pairs; default: nano's own, else the hub's")
    add("--benchmarks", nargs="+", default=[], metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}, or files: scores that runs with most pairs keep in their "
             "records, shown in no table; one that has a record is not judged again")
    add("--seeds", type=int, default=MAIN_SEEDS,
        help="run the first so many of the promised seeds (the tables have all that are there)")
    add("--jobs", type=int, default=1, help="runs at once, each on one thread; on a GPU 1")
    add("--most", type=int, default=0, help="stop after so many runs; 0: all")
    looking = parser.add_mutually_exclusive_group()
    looking.add_argument("--print", action="store_true", help="print the tables, run nothing")
    looking.add_argument("--dry-run", action="store_true",
                         help="print what would run and what it costs")
    flags = parser.parse_args(argv)

    unknown = [group for group in flags.groups if group not in names]
    if unknown:
        raise ValueError(f"no group {', '.join(unknown)}: give {', '.join(names)}")
    for name, least in (("jobs", 1), ("seeds", 1), ("most", 0)):
        if getattr(flags, name) < least:
            raise ValueError(f"--{name} {getattr(flags, name)}: give {least} or more")
    if flags.jobs > 1 and torch.cuda.is_available():
        raise ValueError(f"--jobs {flags.jobs}: on a GPU one run at once, which takes its memory")
    if len({path_of(model) for model in flags.model}) < len(flags.model):
        raise ValueError(f"--model {' '.join(flags.model)}: two have the same last name, by which "
                         "records are kept: rename a folder")
    unfit = [model for model in flags.model if not is_cloze_encoder(model)]
    if "merge" in flags.groups and unfit:
        raise ValueError(f"merge: runs on nano's encoders, not on {', '.join(unfit)}: merge runs "
                         "of your own with python experiments/merge.py")
    if "merge" in flags.groups and set(flags.domain) != set(data.DOMAINS):
        raise ValueError("merge: is about all domains: leave out --domain")
    if not flags.groups:
        flags.groups = [name for name in names if has_runs(name, flags)]
    return flags


def is_decoder(model: str) -> bool:
    """Whether a short name is that of a decoder, which looks back only."""
    return "causal" in model or "decoder" in model


def has_runs(name: str, flags: argparse.Namespace) -> bool:
    """Whether a group, of which nobody has asked by name, has anything for these models."""
    if name == "rates":
        return True
    if name == "merge":
        return (set(flags.domain) == set(data.DOMAINS)
                and all(is_cloze_encoder(model) for model in flags.model))
    if name == "sight" and any(is_decoder(model) for model in flags.model):
        return False
    try:
        comparisons(name, flags.model, flags.domain, flags.pairs)
    except ValueError:
        return False
    return True


def check_domains(files: tuple[str, ...], domains: list[str]) -> None:
    """ValueError if files give several domains the same pairs: their rows name no domain."""
    if not files:
        return
    tests = {}  # the texts of the test pairs -> the domain that has them
    for domain in domains:
        test = fit.sets_of(domain, files).test
        texts = tuple((pair.prompt, pair.chosen, pair.rejected) for pair in test)
        if texts in tests:
            raise ValueError(f"--data {' '.join(files)}: {tests[texts]} and {domain} have the same "
                             "pairs, since their rows name no domain: give --domain ONE")
        tests[texts] = domain


def methods_of(families: dict[str, list[Comparison]], merged: list[str]) -> dict[str, str]:
    """{method: its model} of all that is compared and merged."""
    methods = {}
    for compared in families.values():
        for comparison in compared:
            for one_side in (comparison.a, comparison.b):
                for cell in one_side.cells.values():
                    methods[method_of(cell)] = cell.model
    for model in merged:
        for adapter in MERGED:
            methods[method_of(all_at_once(model, adapter))] = model
    return methods


def all_methods(models: list[str]) -> dict[str, str]:
    """{method: its model} of every method on these models."""
    methods = {}
    for model in models:
        for changes in METHODS:
            methods[method_of(Cell(model, "", 0)._replace(**changes))] = model
    return methods


def decide_family(family: list[Comparison], domains: list[str], files: tuple[str, ...],
                  records: dict[str, dict], rates: dict[str, float]) -> list[Line]:
    """The verdicts of a whole family. They depend on all of it, so the records of models that the
    command does not name are looked at too."""
    methods = methods_of({"": family}, [])
    models = list(dict.fromkeys(methods.values()))
    every_record = {}
    for model in models:
        every_record.update(read_records(model, files, only_look=True))
    every_record.update(records)
    every_rate = chosen_rates(every_record, rate_jobs(models, domains, set(methods)))
    return decide(family, every_record, every_rate | rates)


def with_encoders(compared: list[Comparison], named: list[str],
                  only_look: bool = False) -> list[Comparison]:
    """The comparisons that can run here. An encoder that the command does not name and that has not
    been made leaves its contrasts out, and a line says how to make it. ValueError for one that is
    named, and for a cell that is asked to hide what it cannot. Only to look, none is fetched from
    the Hub."""
    folders, missing = {}, {}
    for model in methods_of({"": compared}, []).values():
        if only_look and not is_nano(model):
            folders[model] = None
            continue
        try:
            folders[model] = folder_of(model)
        except ValueError as error:
            if model in named:
                raise
            missing[model] = error

    kept = []
    for comparison in compared:
        cells = [*comparison.a.cells.values(), *comparison.b.cells.values()]
        if all(cell.model in folders for cell in cells):
            for cell in cells:
                if folders[cell.model] is not None:
                    fit.architecture_of(folders[cell.model], cell)
            kept.append(comparison)
    if missing:
        print(f"{len(compared) - len(kept)} contrasts are left out:", file=sys.stderr)
    for error in missing.values():
        print(f"    {error}", file=sys.stderr)
    return kept


def main(argv: list[str] | None = None) -> None:
    flags = parse(argv)
    only_look = flags.print or flags.dry_run
    files = tuple(flags.data)
    if not only_look:  # what cannot be read is said before the first run
        for name in flags.benchmarks:
            load_eval_set(name)
    check_domains(files, flags.domain)

    # what is compared, and the rates that it needs
    families, to_run = {}, {}
    for group in flags.groups:
        if group in GROUPS:
            families[group] = comparisons(group, flags.model, flags.domain, flags.pairs)
            to_run[group] = families[group]
            if not flags.print:  # what is missing is said now, not after hours
                to_run[group] = with_encoders(families[group], flags.model, only_look)
    asked_for_more = "rates" in flags.groups or "merge" in flags.groups
    if families and not any(to_run.values()) and not asked_for_more:
        raise ValueError(f"{', '.join(families)}: nothing can run: make an encoder, as said above")
    merged = []
    if "merge" in flags.groups:
        merged = flags.model
    methods = methods_of(to_run, merged)
    if not families and not merged:  # the rates alone were asked for
        methods = all_methods(flags.model)
    models = list(dict.fromkeys(methods.values()))
    trials = rate_jobs(models, flags.domain, set(methods))

    records = {}
    for model in models:
        if not only_look:
            folder_of(model)
        records.update(read_records(model, files, only_look))

    # rates first: the other runs take what was chosen, and wait if --most ends here
    left = sys.maxsize
    if flags.most:
        left = flags.most
    if only_look:
        left = 0
    left -= make_missing(trials, records, files, flags.jobs, left)
    rates = chosen_rates(records, trials)
    further = jobs_beyond(models, flags.domain, rates)
    if flags.dry_run:
        show_plan("rates", trials, records)
        if further and "rates" in flags.groups:
            show_plan("rates one step further", further, records)
    unrated = [method for method in methods
               if method not in rates and not method.endswith(fit.RECIPE)]
    if unrated and left > 0:
        raise ValueError(f"{', '.join(unrated)}: no rate was chosen: add the method to METHODS")
    for group, compared in families.items():
        jobs = []
        if to_run[group]:
            jobs = jobs_of(to_run[group], flags.seeds, rates)
        if flags.dry_run:
            show_plan(group, jobs, records)
            continue
        left -= make_missing(jobs, records, files, flags.jobs, left, tuple(flags.benchmarks))
        family = whole_family(group, compared, flags.domain)
        lines = decide_family(family, flags.domain, files, records, rates)
        show([line for line in lines if line.comparison in compared], group, len(family))
        if group == "claims":
            show_elsewhere(flags.model, flags.domain, max(BUDGETS), records, rates)
        if group == "paper":
            show_elsewhere(flags.model, flags.domain, ALL_PAIRS, records, rates)
    for model in merged:
        for adapter in MERGED:
            jobs, others = merge_jobs(model, adapter, rates)
            if flags.dry_run:
                there = sum(job.key in records for job in jobs[:flags.seeds])
                print(f"merge of {adapter} on {model}: {len(jobs[:flags.seeds])} times three "
                      f"specialists, {there} of them are there")
                show_plan("training on all at once", others[:flags.seeds], records)
                continue
            for wanted in (jobs[:flags.seeds], others[:flags.seeds]):
                left -= make_missing(wanted, records, files, flags.jobs, left)
            show_merges(jobs, others, records)
    if not flags.dry_run:
        if "rates" in flags.groups:  # last: nothing waits for them
            make_missing(further, records, files, flags.jobs, left)
        show_rates(rates, trials, further, records)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
