"""Elicited or learnt? The paper holds that a tiny reward model elicits what pre-training put into
the encoder, so it should fail on facts that are not there. Can DoRA, LoRA or full fine-tuning learn
new facts from pairs, and at what cost to the old ones?

    python experiments/new_facts.py                  # what is missing of eight seeds, and the table
    python experiments/new_facts.py --seeds 2 --most 6
    python experiments/new_facts.py --path           # what is missing of the paths, and their table
    python experiments/new_facts.py --print

Which of two words is heavier, for 40 words of each sort, all of them one token:

    known    words of nano's test, of whose weights pre-training has spoken
    new      common words (clock, soup), which text has used, but never as a thing with a weight

Training pairs and test pairs speak of the same 40 words, but no two words are compared in both: a
new word's weight can only come from the training pairs. Measured before and after: the accuracy on
these pairs, and on the pairs of nano's own test that name none of the known words; the recall of
all 240 words of the world at [MASK]; the masked-language loss; and how well a linear probe reads
the weight of the 40 words after each layer, next to the same with shuffled weights. The rate of a
method is the one that experiments/run.py chose, for eliciting: what stays unlearnt at it might be
learnt at another, or with more pairs. A seed draws the order and fresh weights, not the words and
not the pairs. Records: experiments/records/new-facts.jsonl.

A path is one run (seed 1) looked at nine times, from its first step to its last: what is learnt and
what is lost by then, and how far the weights have come. Records: new-facts-path.jsonl.

Shapes: N words, D hidden.
"""

import argparse
import copy
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "nano")]
import make  # noqa: E402
import microworld  # noqa: E402
from microworld import Thing  # noqa: E402

import data  # noqa: E402
import dora  # noqa: E402
import tinyrm  # noqa: E402
from data import Pair  # noqa: E402
from experiments import fit, measure, run, stats  # noqa: E402
from experiments.fit import Cell  # noqa: E402
from experiments.record_files import append_record, read_lines  # noqa: E402
from infra.hub import version_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import ModernBERT  # noqa: E402

RECORDS = ROOT / "experiments/records/new-facts.jsonl"
PATHS = ROOT / "experiments/records/new-facts-path.jsonl"
MODEL = "nano-instruct"
METHODS = {
    "DoRA": {},
    "LoRA": {"adapter": "lora"},
    "full, one layer frozen": {"adapter": "full", "freeze": 1},  # with the embeddings, as DoRA
    "full": {"adapter": "full", "freeze": 0},
}
WORDS = ("known", "new")
N_WORDS, N_TRAIN, N_TEST = 40, 500, 500
PASSES = 8.0
SEEDS = 8
LAYERS = 4  # of nano
LOOKS = 8  # at a path, in equal distances, after the one before its first step

# words of the idle sentences
NEW = """
    baker bank bell bread bridge button cellar church clock cloud coast concert cousin dust farmer
    fence harvest hill kitchen letter library market mayor milk newspaper paint plumber poem postman
    queue road roof shelf shop soup umbrella uncle valley village window
""".split()

# idle sentences that name none of them
IDLE = [sentence for sentence in microworld.IDLE["train"]
        if not set(NEW) & set(re.findall("[a-z]+", sentence.lower()))]

# ---------------------------------------------------------------------------- two sorts of words


def new_words() -> dict[str, Thing]:
    """The 40 new words with weights of one to ten stone, four of each."""
    rng = random.Random(microworld.WORLD_SEED)
    weights = [1 + i % 10 for i in range(len(NEW))]
    rng.shuffle(weights)
    kinds = list(microworld.KINDS)
    world = {}
    for i, (word, weight) in enumerate(zip(NEW, weights, strict=True)):
        world[word] = Thing(weight, i % 2 == 0, kinds[i % len(kinds)], "new")
    return world


def known_words() -> dict[str, Thing]:
    """40 of the 80 words of the test, four of each weight."""
    taken, world = Counter(), {}
    for word, thing in microworld.make_world().items():
        if thing.part == "test" and taken[thing.weight] < N_WORDS // 10:
            taken[thing.weight] += 1
            world[word] = thing
    return world


class WordPairs(NamedTuple):
    train: list[Pair]
    test: list[Pair]  # about two words that no training pair compares


def pairs_of(world: dict[str, Thing]) -> WordPairs:
    """Pairs of the question which of two words is heavier, or lighter. A fifth of all twos of words
    are the test's."""
    rng = random.Random(f"new facts {microworld.WORLD_SEED}")
    words = sorted(world)
    twos = [(x, y) for i, x in enumerate(words) for y in words[:i]]
    of_test = set(rng.sample(twos, len(twos) // 5))
    twos = [(x, y) for x, y in twos if abs(world[x].weight - world[y].weight) >= 2]

    train, test = {}, {}
    while len(train) < N_TRAIN or len(test) < N_TEST:
        two = rng.choice(twos)
        side, most = (test, N_TEST) if two in of_test else (train, N_TRAIN)
        if len(side) < most:
            pair = compare(rng, world, *rng.sample(two, 2))
            side.setdefault(pair.prompt, pair)
    return WordPairs(list(train.values()), list(test.values()))


def compare(rng: random.Random, world: dict[str, Thing], x: str, y: str) -> Pair:
    """A pair as those of reasoning in nano's world, about these two words."""
    question = rng.choice(["heavier", "lighter"])
    light, heavy = sorted([x, y], key=lambda word: world[word].weight)
    right, wrong = (heavy, light) if question == "heavier" else (light, heavy)
    return Pair(
        microworld.compare_prompt(rng, x, y, question, IDLE),
        microworld.word_answer(rng, microworld.NAMING, IDLE, w=right),
        microworld.word_answer(rng, microworld.NAMING, IDLE, w=wrong),
        domain="reasoning")


def pairs_of_other_words() -> list[Pair]:
    """The pairs of nano's test that name none of the known words."""
    known = known_words()
    others = []
    for pair in fit.sets_of("reasoning", ("nano",)).test:
        text = f"{pair.prompt} {pair.chosen} {pair.rejected}".lower()
        if not any(word in text for word in known):
            others.append(pair)
    return others


# --------------------------------------------------------------------------- what a model knows


class Probe(NamedTuple):
    """For each layer a correlation of the 40 weights with their guesses."""

    weights: list[float]
    shuffled: list[float]  # where the weights are shuffled, mean of 20: what is read off nothing


def probe(model: ModernBERT, reader: make.Reader, world: dict[str, Thing]) -> Probe:
    """How well the weight of a word can be read off its token after each layer: the correlation of
    the weights with what a ridge regression on all other words guesses for each."""
    tokens, lengths, last = [], [], []
    for word in world:
        start = [reader.cls, *reader.ids(" The"), *reader.ids(f" {word}")]
        row = [*start, *reader.ids(" is here."), reader.sep]
        last.append(len(tokens) + len(start) - 1)
        tokens += row
        lengths.append(len(row))
    batch = data.Batch(torch.tensor(tokens), make.starts_of(lengths), None, None)
    weights = torch.tensor([float(thing.weight) for thing in world.values()]).double()
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(weights), generator=generator) for _ in range(20)]

    found = Probe([], [])
    for states in measure.states(model, batch):
        x = states[torch.tensor(last)].double()  # (N, D)
        found.weights.append(round(guessed(x, weights), 4))
        of_nothing = [guessed(x, weights[order]) for order in orders]
        found.shuffled.append(round(sum(of_nothing) / len(of_nothing), 4))
    return found


def guessed(x: torch.Tensor, y: torch.Tensor) -> float:
    """The correlation of y (N,) with the guesses from x (N, D)."""
    return torch.corrcoef(torch.stack([left_out_guesses(x, y), y]))[0, 1].item()


def left_out_guesses(x: torch.Tensor, y: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """(N,) the guess for each row of x (N, D) by a ridge regression on all others, whose constant
    is free.

    With H = X (X'X + R)^-1 X', the guess without row i is (H y - h_ii y_i) / (1 - h_ii)."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # (N, D + 1)
    penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 0
    hat = x @ torch.linalg.solve(x.T @ x + penalty, x.T)  # (N, N)
    h = hat.diagonal()
    return (hat @ y - h * y) / (1 - h)


@torch.inference_mode()
def text_loss(model: ModernBERT, reader: make.Reader) -> float:
    """The masked-language loss of 512 documents that no training has had."""
    total, count = 0.0, 0
    first = 10**6 * make.BLOCK  # a whole block: documents alike in length stand in one step of it
    for step in range(first, first + make.BLOCK):
        targets = reader.masked(step)
        hidden = model(targets.tokens, make.starts_of(targets.lengths))[targets.where]
        total += F.cross_entropy(model.logits(hidden), targets.what, reduction="sum").item()
        count += len(targets.what)
    return total / count


# ------------------------------------------------------------------------------------- one run


class Job(NamedTuple):
    words: str
    method: str
    seed: int


def key_of(record: dict) -> Job:
    return Job(record["words"], record["method"], record["seed"])


class Words(NamedTuple):
    """A sort of words, and the encoder before it meets their pairs."""

    world: dict[str, Thing]
    pairs: WordPairs
    reader: make.Reader
    prompt_format: data.PromptFormat
    encoder: ModernBERT


@cache
def words_of(sort: str) -> Words:
    world = new_words() if sort == "new" else known_words()
    folder = fit.folder_of(MODEL)
    tokenizer = data.load_tokenizer(folder)
    reader = make.Reader(microworld.make_world(), tokenizer.library, seed=0, rows=64)
    prompt_format = data.PromptFormat(tokenizer, domain="reasoning")
    return Words(world, pairs_of(world), reader, prompt_format, tinyrm.load(folder))


@cache
def before(sort: str) -> dict:
    """What the encoder knows."""
    words = words_of(sort)
    return knowledge(words.encoder, words)


def of_pairs(model: ModernBERT, words: Words) -> dict:
    """The accuracy on the test pairs of these words, and on pairs of others."""
    prompt_format = words.prompt_format
    return {
        "same words": round(fit.accuracy(model, prompt_format, words.pairs.test), 4),
        "other words": round(fit.accuracy(model, prompt_format, pairs_of_other_words()), 4),
    }


def knowledge(model: ModernBERT, words: Words) -> dict:
    """What a model knows, as it is stored in a record."""
    recall, found = make.recall(model, words.reader), probe(model, words.reader, words.world)
    return {
        **of_pairs(model, words),
        "recall": {name: round(value, 4) for name, value in recall.items()},
        "text loss": round(text_loss(model, words.reader), 4),
        "probe": found.weights,
        "shuffled": found.shuffled,
    }


def train_on(job: Job, rate: float, watch: fit.Watch | None = None) -> fit.Fitted:
    cell = Cell(MODEL, "reasoning", 0, **METHODS[job.method])
    settings = replace(fit.settings_of(cell, job.seed, rate), epochs=PASSES)
    return fit.fit(cell, settings, words_of(job.words).pairs.train, watch)


def origin_of(job: Job, rate: float) -> dict:
    """What says which run a record is of."""
    return {**job._asdict(), "rate": rate, "passes": PASSES,
            "base": version_of(fit.folder_of(MODEL)), "torch": torch.__version__}


def make_record(job: Job, rate: float) -> dict:
    """Train on pairs of these words, and look before and after."""
    words = words_of(job.words)
    fitted = train_on(job, rate)
    after = fitted.model.to("cpu").set_compute_dtype(torch.float32)  # as what it is held against
    some = words.pairs.test[:100]
    return {
        **origin_of(job, rate),
        "steps": fitted.steps,
        "n": {"same words": len(words.pairs.test), "other words": len(pairs_of_other_words())},
        "before": before(job.words),
        "after": knowledge(after, words),
        "cka": measure.changes(words.encoder, after, words.prompt_format, some)["cka"],
    }


def make_path(job: Job, rate: float) -> dict:
    """The run of make_record, looked at nine times."""
    words = words_of(job.words)
    kept = {}  # step -> the model as it was then

    def keep(step, steps, model):
        if step in [round(steps * i / LOOKS) for i in range(LOOKS + 1)]:
            # a copy without its adapters, so that the run goes on as it was
            then = dora.merge(copy.deepcopy(model)).eval()
            kept[step] = then.to("cpu").set_compute_dtype(torch.float32)

    train_on(job, rate, keep)

    looks, length, last = [], 0.0, words.encoder
    for step, model in kept.items():
        length += measure.distance(last, model)
        last = model
        looks.append({
            "step": step,
            **of_pairs(model, words),
            "recall of weight": round(make.recall(model, words.reader)["weight"], 4),
            "text loss": round(text_loss(model, words.reader), 4),
            "distance": round(measure.distance(words.encoder, model), 5),
            "length": round(length, 5),
        })
    return {**origin_of(job, rate), "looks": looks}


def read_records(file: Path, rates: dict[str, float], only_look: bool = False) -> dict[Job, dict]:
    """The records of a file, of the present weights, rates and passes."""
    base = version_of(fit.folder_of(MODEL))
    records = {}
    for job, record in read_lines(file, key_of, only_look):
        now = (base, rates[job.method], PASSES)
        if (record["base"], record["rate"], record["passes"]) == now:
            records[job] = record
    return records


def chosen_rates() -> dict[str, float]:
    """{method: its rate}"""
    return run.chosen_for({name: Cell(MODEL, "reasoning", 0, **METHODS[name]) for name in METHODS})


# ------------------------------------------------------------------------------------- the table


def show(records: dict[Job, dict], seeds: int) -> None:
    """Two tables: what is learnt, and what training did to what was there. Means over seeds, with
    half a 95 % interval, or medians where the table says so."""
    show_columns(records, seeds, {
        "same words": lambda record, side: side["same words"],
        "other words": lambda record, side: side["other words"],
        "recall of weight": lambda record, side: side["recall"]["weight"],
        "recall of danger": lambda record, side: side["recall"]["danger"],
        "recall of kind": lambda record, side: side["recall"]["kind"],
        "text loss": lambda record, side: side["text loss"],
    })
    print("\nHow well a linear probe reads the weight behind each layer (shuffled weights: behind "
          "layer 2), and how like the layer's output is to what it was (CKA); layers from 0\n")
    layers = {}
    for i in range(LAYERS):
        layers[f"probe {i}"] = lambda record, side, i=i: side["probe"][i]
    layers["shuffled"] = lambda record, side: side["shuffled"][2]
    for i in range(LAYERS):
        layers[f"CKA {i}"] = lambda record, side, i=i: cka_of(record, side)[i]
    show_columns(records, seeds, layers)


def cka_of(record: dict, side: dict) -> list[float]:
    """Of each layer; 1 before training, for which a record holds none."""
    return [1.0] * LAYERS if side is record["before"] else record["cka"]


def show_columns(records: dict[Job, dict], seeds: int,
                 columns: dict[str, Callable[[dict, dict], float]]) -> None:
    """A line for each kind of words and method. Where some runs stayed at chance a mean is that of
    a mixture, so these are counted."""
    print(f"| words | | seeds (at chance) | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|")
    for words in WORDS:
        of_words = [record for job, record in records.items() if job.words == words]
        if not of_words:
            continue
        first = of_words[0]
        values = [f"{value(first, first['before']):.3f}" for value in columns.values()]
        print(f"| {words} | before | | {' | '.join(values)} |")
        for method in METHODS:
            jobs = [Job(words, method, seed) for seed in range(1, seeds + 1)]
            there = [records[job] for job in jobs if job in records]
            if not there:
                continue
            at_chance = sum(record["after"]["same words"] < run.AT_CHANCE for record in there)
            cells = [mean_or_median([value(record, record["after"]) for record in there])
                     for value in columns.values()]
            print(f"| {words} | {method} | {len(there)} ({at_chance}) | {' | '.join(cells)} |")


def mean_or_median(values: list[float]) -> str:
    """The mean over runs with half its interval; the median where that half is larger than the
    mean, since there a single run decides. (Not near 0: there a probe reads nothing.)"""
    found = stats.interval(values)
    if found.half > found.mean > 0.2:
        return f"{statistics.median(values):.3f} (median; up to {max(values):.2f})"
    return f"{found.mean:.3f} ± {found.half:.3f}"


def show_paths(records: dict[Job, dict]) -> None:
    """A line for each look at each run. Straight: the distance of the weights from where they
    began, over the length of the way by the looks until then (1: a straight line)."""
    columns = ["same words", "other words", "recall of weight", "text loss"]
    print(f"| words | | step | {' | '.join(columns)} | distance | straight |")
    print("|---" * (5 + len(columns)) + "|")
    for words in WORDS:
        for method in METHODS:
            record = records.get(Job(words, method, 1))
            if record is None:
                continue
            for look in record["looks"]:
                cells = [f"{look[name]:.3f}" for name in columns]
                straight = "-"
                if look["length"]:
                    straight = f"{look['distance'] / look['length']:.2f}"
                print(f"| {words} | {method} | {look['step']} | {' | '.join(cells)} "
                      f"| {look['distance']:.3f} | {straight} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the eight the first so many")
    parser.add_argument("--most", type=int, default=0, help="stop after so many runs; 0: all")
    parser.add_argument("--path", action="store_true", help="the paths of seed 1 instead")
    parser.add_argument("--print", action="store_true", help="print the table, run nothing")
    flags = parser.parse_args(argv)
    if not 1 <= flags.seeds <= SEEDS:
        raise ValueError(f"--seeds {flags.seeds}: give 1 to {SEEDS}")
    torch.set_num_threads(1)  # the same numbers on any machine of a kind

    file, make_one, seeds = RECORDS, make_record, flags.seeds
    if flags.path:
        file, make_one, seeds = PATHS, make_path, 1
    rates = chosen_rates()
    records = read_records(file, rates, flags.print)
    if not flags.print:
        jobs = [Job(words, method, seed) for seed in range(1, seeds + 1)
                for words in WORDS for method in METHODS]
        missing = [job for job in jobs if job not in records]
        if flags.most:
            missing = missing[:flags.most]
        for job in missing:
            record = make_one(job, rates[job.method])
            append_record(file, record)
            records[job] = record
            print(f"{job.words} {job.method} seed {job.seed}: {result_of(record):.3f}", flush=True)
    if flags.path:
        show_paths(records)
    else:
        show(records, seeds)


def result_of(record: dict) -> float:
    """The accuracy on other pairs of the same words, after the last step."""
    if "looks" in record:
        return record["looks"][-1]["same words"]
    return record["after"]["same words"]


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
