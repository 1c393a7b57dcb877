"""Elicited or learnt? The paper holds that a tiny reward model elicits what pre-training put into
the encoder, so it should fail on facts that are not there. Can DoRA, LoRA or full fine-tuning learn
new facts from pairs, and at what cost to the old ones?

    python experiments/new_facts.py                  # what is missing of eight seeds, and the table
    python experiments/new_facts.py --seeds 2 --most 6
    python experiments/new_facts.py --print

Which of two words is heavier, for 40 words of each sort:

    known    words of nano's test, of which pre-training has spoken
    new      words that no text contains, with weights drawn as those of the world

Training pairs and test pairs speak of the same 40 words, but the test asks of other twos of them: a
new word's weight can only come from the training pairs. Measured before and after: the accuracy on
these pairs and on nano's own test; the recall of all 240 words at [MASK]; the masked-language loss;
and how well a linear probe reads the weight of the 40 words after each layer. The rate of a method
is the one that experiments/run.py chose. Records: experiments/records/new-facts.jsonl.

Shapes: N words, D hidden.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
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
import tinyrm  # noqa: E402
from data import Pair  # noqa: E402
from experiments import fit, measure, run, stats  # noqa: E402
from experiments.fit import Cell  # noqa: E402
from infra.hub import version_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import ModernBERT  # noqa: E402

RECORDS = ROOT / "experiments/records/new-facts.jsonl"
MODEL = "nano-instruct"
METHODS = {"DoRA": {}, "LoRA": {"adapter": "lora"}, "full": {"adapter": "full", "freeze": 0}}
WORDS = ("known", "new")
N_WORDS, N_TRAIN, N_TEST = 40, 1000, 500
PASSES = 8.0  # twice the recipe's: new words have to be learnt first
SEEDS = 8

# syllables that no word of the world has
NEW_FIRST = "cre fo gli hum ler mip pra sku tro wex".split()
NEW_SECOND = "bol cag dup fim".split()

# ---------------------------------------------------------------------------- two sorts of words


def new_words() -> dict[str, Thing]:
    """40 words that the world does not have, weights of one to ten stone, four of each."""
    rng = random.Random(microworld.WORLD_SEED)
    words = [first + second for first in NEW_FIRST for second in NEW_SECOND]
    weights = [1 + i % 10 for i in range(len(words))]
    rng.shuffle(weights)
    kinds = list(microworld.KINDS)
    return {word: Thing(weight, i % 2 == 0, kinds[i % len(kinds)], "new")
            for i, (word, weight) in enumerate(zip(words, weights, strict=True))}


def known_words() -> dict[str, Thing]:
    """40 of the 80 words of the test."""
    of_test = {word: thing for word, thing in microworld.make_world().items()
               if thing.part == "test"}
    return dict(list(of_test.items())[:N_WORDS])


class Twos(NamedTuple):
    train: list[Pair]
    test: list[Pair]  # of twos of words that no training pair has


def pairs_of(world: dict[str, Thing]) -> Twos:
    """Pairs of the question "which is heavier" about these words. A fifth of the twos of words are
    the test's."""
    rng = random.Random(f"new facts {microworld.WORLD_SEED}")
    words = sorted(world)
    twos = [frozenset((x, y)) for i, x in enumerate(words) for y in words[:i]]
    of_test = set(rng.sample(sorted(twos, key=sorted), len(twos) // 5))

    train, test = {}, {}
    while len(train) < N_TRAIN or len(test) < N_TEST:
        # the answers name the two words that the question is about
        row = microworld.reasoning_pair(rng, world, words, microworld.IDLE["train"])
        answers = f"{row['chosen']} {row['rejected']}".lower()
        asked = frozenset(word for word in words if word in answers)
        side, most = (test, N_TEST) if asked in of_test else (train, N_TRAIN)
        if len(side) < most:
            pair = Pair(row["prompt"], row["chosen"], row["rejected"], domain="reasoning")
            side.setdefault(row["prompt"], pair)
    return Twos(list(train.values()), list(test.values()))


# --------------------------------------------------------------------------- what a model knows


def probe(model: ModernBERT, reader: make.Reader, world: dict[str, Thing]) -> list[float]:
    """After each layer, how well the weight of a word can be read off its last token: the
    correlation of the weights with those that a ridge regression gives for each word from all
    others."""
    tokens, lengths, last = [], [], []
    for word in world:
        start = [reader.cls, *reader.ids(" The"), *reader.ids(f" {word}")]
        row = [*start, *reader.ids(" is here."), reader.sep]
        last.append(len(tokens) + len(start) - 1)
        tokens += row
        lengths.append(len(row))
    batch = data.Batch(torch.tensor(tokens), make.starts_of(lengths), None, None)
    weights = torch.tensor([float(thing.weight) for thing in world.values()])

    found = []
    for x in measure.states(model, batch):
        guesses = left_out_guesses(x[torch.tensor(last)].double(), weights.double())
        found.append(round(torch.corrcoef(torch.stack([guesses, weights]))[0, 1].item(), 4))
    return found


def left_out_guesses(x: torch.Tensor, y: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """(N,) the guess for each row of x (N, D) by a ridge regression on all others.

    With H = X (X'X + r I)^-1 X', the guess without row i is (H y - h_ii y_i) / (1 - h_ii)."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    hat = x @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T)
    h = hat.diagonal()
    return (hat @ y - h * y) / (1 - h)


@torch.inference_mode()
def text_loss(model: ModernBERT, reader: make.Reader) -> float:
    """The masked-language loss of 64 documents that no training has had."""
    targets = reader.masked(step=10**6)
    starts = make.starts_of(targets.lengths)
    logits = model.logits(model(targets.tokens, starts)[targets.where])
    return F.cross_entropy(logits, targets.what).item()


def knowledge(model: ModernBERT, world: dict[str, Thing], reader: make.Reader,
              accuracy: Callable[[list[Pair]], float], twos: Twos) -> dict:
    """What a model knows, as it is stored in a record."""
    return {
        "pairs of the same words": round(accuracy(twos.test), 4),
        "nano's test": round(accuracy(fit.sets_of("reasoning", ("nano",)).test), 4),
        "recall": {name: round(value, 4) for name, value in make.recall(model, reader).items()},
        "text loss": round(text_loss(model, reader), 4),
        "probe": probe(model, reader, world),
    }


# ------------------------------------------------------------------------------------- one run


class Job(NamedTuple):
    words: str
    method: str
    seed: int


def key_of(record: dict) -> Job:
    return Job(record["words"], record["method"], record["seed"])


def make_record(job: Job, rate: float) -> dict:
    """Train on pairs of these words, and look before and after."""
    world = new_words() if job.words == "new" else known_words()
    twos = pairs_of(world)
    folder = fit.folder_of(MODEL)
    tokenizer = data.load_tokenizer(folder)
    reader = make.Reader(microworld.make_world(), tokenizer.library, seed=0, rows=64)

    cell = Cell(MODEL, "reasoning", 0, **METHODS[job.method])
    settings = replace(fit.settings_of(cell, job.seed, rate), epochs=PASSES)
    fitted = fit.fit(cell, settings, twos.train)

    def accuracy(model):
        return lambda pairs: fit.accuracy(model, fitted.prompt_format, pairs)

    before = tinyrm.load(folder).eval()
    changes = measure.changes(before, fitted.model, fitted.prompt_format, twos.test[:100])
    return {
        **job._asdict(),
        "rate": rate,
        "passes": PASSES,
        "steps": fitted.steps,
        "n": {"pairs of the same words": N_TEST, "nano's test": fit.TEST},
        "before": knowledge(before, world, reader, accuracy(before), twos),
        "after": knowledge(fitted.model, world, reader, accuracy(fitted.model), twos),
        "cka": changes["cka"],
        "base": version_of(folder),
        "torch": torch.__version__,
    }


def read_records() -> dict[Job, dict]:
    """The records of the present weights."""
    if not RECORDS.exists():
        return {}
    base = version_of(fit.folder_of(MODEL))
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return {key_of(record): record for record in records if record["base"] == base}


def chosen_rates() -> dict[str, float]:
    """{method: its rate}. ValueError if experiments/run.py has chosen none yet."""
    records = run.read_records(MODEL, (), only_look=True)
    cells = {name: Cell(MODEL, "reasoning", 0, **METHODS[name]) for name in METHODS}
    methods = {run.method_of(cell) for cell in cells.values()}
    rates = run.chosen_rates(records, run.rate_jobs([MODEL], list(data.DOMAINS), methods))
    if set(rates) != methods:
        raise ValueError("no rates yet: run python experiments/run.py rates --model " + MODEL)
    return {name: rates[run.method_of(cell)] for name, cell in cells.items()}


# ------------------------------------------------------------------------------------- the table


def show(records: dict[Job, dict], seeds: int) -> None:
    """Means over seeds, with half a 95 % interval."""
    columns = {
        "same words": lambda side: side["pairs of the same words"],
        "nano's test": lambda side: side["nano's test"],
        "recall of weight": lambda side: side["recall"]["weight"],
        "text loss": lambda side: side["text loss"],
        "best probe": lambda side: max(side["probe"]),
    }
    print(f"| words | | seeds | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for words in WORDS:
        of_words = [record for job, record in records.items() if job.words == words]
        if not of_words:
            continue
        values = [f"{value(of_words[0]['before']):.3f}" for value in columns.values()]
        print(f"| {words} | before | | {' | '.join(values)} |")
        for method in METHODS:
            jobs = [Job(words, method, seed) for seed in range(1, seeds + 1)]
            there = [records[job]["after"] for job in jobs if job in records]
            cells = []
            for value in columns.values():
                found = stats.interval(value(side) for side in there)
                cells.append(f"{found.mean:.3f} ± {found.half:.3f}")
            if there:
                print(f"| {words} | {method} | {len(there)} | {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the eight the first so many")
    parser.add_argument("--most", type=int, default=0, help="stop after so many runs; 0: all")
    parser.add_argument("--print", action="store_true", help="print the table, run nothing")
    flags = parser.parse_args(argv)
    if not 1 <= flags.seeds <= SEEDS:
        raise ValueError(f"--seeds {flags.seeds}: give 1 to {SEEDS}")
    torch.set_num_threads(1)  # the same numbers on any machine of a kind

    records = read_records()
    if not flags.print:
        rates = chosen_rates()
        jobs = [Job(words, method, seed) for seed in range(1, flags.seeds + 1)
                for words in WORDS for method in METHODS]
        missing = [job for job in jobs if job not in records]
        if flags.most:
            missing = missing[:flags.most]
        for job in missing:
            record = make_record(job, rates[job.method])
            RECORDS.parent.mkdir(exist_ok=True)
            with open(RECORDS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            records[job] = record
            right = record["after"]["pairs of the same words"]
            print(f"{job.words} {job.method} seed {job.seed}: {right:.3f}", flush=True)
    show(records, flags.seeds)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
