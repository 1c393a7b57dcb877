"""Is a specialist safe as a reward? Best of N: as N grows, how often is the chosen answer right,
and how high is its score, by the judge and in truth? Where the truth turns down while the judge's
score still rises, the judge is over-optimised.

    python experiments/best_of_n.py                            what is missing, then the tables
    python experiments/best_of_n.py --context pair --seeds 1 --pairs 100
    python experiments/best_of_n.py --print                    the tables of what is there

The order is known, since nano's world is. The prompts are pairs of the test: two things, which one
is heavier (or lighter)? To each there are 256 different candidates, of which one in twenty names
the right thing alone. The others name the wrong one, both, a third one, or say something else.
Every kind has one to three idle sentences, so that neither idle talk nor length tells what is
right; no answer of a training pair has more than one of them.

A candidate's score is its win rate, the mean of P(it is better than a reference) over four
reference answers to the same prompt, made as the candidates are but not among them: in both orders
for --context pair, from the scores of the answers alone for single. In truth a right answer is
better than one that is not, and others are level, so that each candidate has a true win rate over
the same references. The best of N is the one with the highest score of N different candidates; the
mean over all draws of N is computed exactly, not sampled, and equal scores share it. Idle sentences
and words of what is chosen show whether the judge has a taste for them.

The same models show what a cheaper verdict loses: on the pairs of the test, the accuracy by both
orders, by one order, and by each response alone, next to its FLOPs.

Each context is trained by the recipe at its own rate, the one that run.py chose. A model is one
line of records/best-of-n.jsonl, written the moment it is judged, and never made again.
"""

import argparse
import math
import random
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "nano")]
import microworld  # noqa: E402

import train  # noqa: E402
from data import Item, Pair  # noqa: E402
from evaluate import RewardModel  # noqa: E402
from experiments import fit, stats  # noqa: E402
from experiments.fit import PASSES, Cell  # noqa: E402
from experiments.flops import flops  # noqa: E402
from experiments.measure import rows_of  # noqa: E402
from experiments.record_files import append_record, read_lines  # noqa: E402
from experiments.run import chosen_for  # noqa: E402
from infra.hub import version_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402

RECORDS = ROOT / "experiments/records/best-of-n.jsonl"
SEEDS = 8
MODEL, DOMAIN = "nano-instruct", "reasoning"
CONTEXTS = ["pair", "single"]
PROMPTS = 32
REFERENCES = 4
NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Of 256 candidates so many are of each kind.
ANSWER_KINDS = {"right": 13, "wrong": 115, "both": 43, "other": 43, "beside": 42}

BOTH = ["The {x} or the {y}.", "It is the {x}, or it is the {y}.", "The {x}, and the {y} too.",
        "I would say the {x}, and the {y} as well."]

# ------------------------------------------------------------------------------- the candidates


class Candidates(NamedTuple):
    """Answers to a prompt."""

    prompt: str
    texts: list[str]
    kinds: list[str]  # of each text
    references: list[str]
    reference_kinds: list[str]


def word_in(text: str, words: list[str]) -> str:
    """The invented word that a text names."""
    (found,) = [word for word in words if word in text]
    return found


def answer(rng: random.Random, kind: str, right: str, wrong: str, other: str) -> str:
    """An answer of a kind, with one to three idle sentences around it. (Without any there are
    fewer wordings than wrong answers, and candidates must differ.)"""
    if kind == "right":
        text = rng.choice(microworld.NAMING).format(w=right)
    elif kind == "wrong":
        text = rng.choice(microworld.NAMING).format(w=wrong)
    elif kind == "other":
        text = rng.choice(microworld.NAMING).format(w=other)
    elif kind == "both":
        x, y = rng.sample([right, wrong], 2)
        text = rng.choice(BOTH).format(x=x, y=y)
    else:
        topic = rng.choice(microworld.TOPICAL).format(k=rng.choice(list(microworld.KINDS)))
        text = rng.choice([topic, *microworld.HELP, *microworld.REFUSALS])
    for _ in range(rng.randint(1, 3)):
        text = microworld.with_idle(rng, text, microworld.IDLE["test"])
    return text


def make_candidates(pair: Pair, words: list[str], rng: random.Random) -> Candidates:
    """The candidates and the references of a pair's prompt, in any order, no two alike."""
    right, wrong = word_in(pair.chosen, words), word_in(pair.rejected, words)
    other = rng.choice([word for word in words if word not in (right, wrong)])

    kinds = []
    for kind, count in ANSWER_KINDS.items():
        kinds += [kind] * count
    rng.shuffle(kinds)
    reference_kinds = rng.sample(kinds, REFERENCES)
    different = {}  # a set that keeps its order: the candidates, then the references
    for kind in (*kinds, *reference_kinds):
        count = len(different)
        while len(different) == count:
            different[answer(rng, kind, right, wrong, other)] = True
    texts = list(different)
    return Candidates(pair.prompt, texts[:len(kinds)], kinds, texts[len(kinds):], reference_kinds)


def all_candidates() -> list[Candidates]:
    """Those of all prompts. No seed changes them."""
    world = microworld.make_world()
    words = [word for word in world if world[word].part == "test"]
    rng = random.Random("best of n")
    pairs = rng.sample(fit.sets_of(DOMAIN, ("nano",)).test, PROMPTS)
    return [make_candidates(pair, words, rng) for pair in pairs]


def win_rates(judge: RewardModel, candidates: Candidates) -> np.ndarray:
    """The mean of P(a candidate is better than a reference) over the references: (k,)"""
    k = len(candidates.texts)
    item = Item(candidates.prompt, (*candidates.texts, *candidates.references), good=k,
                domain=DOMAIN, good_against_bad=True)
    (judged,) = judge.judge([item])
    return judged.win_probabilities()[:k, k:].mean(axis=1)


# ------------------------------------------------------------------------------------- best of N


@cache
def chances(k: int, n: int) -> np.ndarray:
    """P(the best of n different ones of k is the one of rank r), for r = 0 (the best) ... k - 1:
    the others of the n are among the k - 1 - r below it, C(k - 1 - r, n - 1) / C(k, n)."""
    ways = math.comb(k, n)
    return np.array([math.comb(k - 1 - r, n - 1) / ways for r in range(k)])


def best_of(scores: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean value of the one that is chosen, over all draws of n. scores, values (k,)"""
    # equal scores: each is as likely to be taken, so each counts as their mean
    _, group = np.unique(-scores, return_inverse=True)  # (k,) from 0 for the highest score
    means = np.bincount(group, weights=values) / np.bincount(group)
    best_first = np.sort(group)
    return float(chances(len(scores), n) @ means[best_first])


def qualities(candidates: Candidates) -> dict[str, np.ndarray]:
    """What is true of each candidate, whoever judges: {quality: (k,)}"""
    kinds = np.array(candidates.kinds)
    found = {kind: (kinds == kind).astype(float) for kind in ANSWER_KINDS}

    # a right answer wins against one that is not, and two alike are level
    reference_right = np.array([kind == "right" for kind in candidates.reference_kinds])
    lead = found["right"][:, None] - reference_right  # (k, REFERENCES): 1, 0 or -1
    found["true win rate"] = ((1 + lead) / 2).mean(axis=1)

    found["idle sentences"] = np.array([idle_sentences(text) for text in candidates.texts], float)
    found["words"] = np.array([len(text.split()) for text in candidates.texts], float)
    return found


def idle_sentences(text: str) -> int:
    return sum(text.count(sentence) for sentence in microworld.IDLE["test"])


QUALITIES = (*ANSWER_KINDS, "true win rate", "idle sentences", "words")
SCORE = "score"  # the judge's own


def curves(scores: list[np.ndarray], candidates: list[Candidates]) -> dict[str, list[float]]:
    """At each N of NS the judge's score (of each prompt (k,)) and the qualities of the chosen
    answer, means over the prompts: {SCORE or quality: [one number for each N]}"""
    values = [qualities(one) | {SCORE: own} for own, one in zip(scores, candidates, strict=True)]
    found = {}
    for what in (SCORE, *QUALITIES):
        found[what] = []
        for n in NS:
            means = [best_of(own, of_prompt[what], n)
                     for own, of_prompt in zip(scores, values, strict=True)]
            found[what].append(float(np.mean(means)))
    return found


# ------------------------------------------------------------------------- what a verdict is worth


class Worth(NamedTuple):
    """Verdicts on pairs; equal is half right."""

    accuracy: float  # by both orders, or by the scores of each response alone
    one_order: float  # by the row of one order, the mean of the two orders
    flops: float  # of a verdict by both orders or both responses, on average


def worth(judge: RewardModel, pairs: list[Pair]) -> Worth:
    items = [Item(pair.prompt, (pair.chosen, pair.rejected), domain=pair.domain or DOMAIN)
             for pair in pairs]
    both = one = 0.0
    for judged in judge.judge(items):
        # x: log-odds of the chosen response where it stands first; y: of the rejected one where
        # that does. Both orders are right if x > y; one is if x > 0, the other if y < 0.
        x, y = judged.log_odds[0, 1], judged.log_odds[1, 0]
        both += credit(x - y)
        one += (credit(x) + credit(-y)) / 2

    rows = rows_of(judge.prompt_format, pairs)
    sizes = [len(row.tokens) for row in rows]
    of_all = flops(judge.model.config, sizes, torch.device("cpu"))
    return Worth(both / len(items), one / len(items), of_all / len(items))


def credit(log_odds: float) -> float:
    """1 for a verdict whose log-odds are on the right side, that is above 0; 1/2 for none."""
    if log_odds == 0:
        return 0.5
    return float(log_odds > 0)


# ------------------------------------------------------------------------------------- the runs


class Run(NamedTuple):
    context: str
    pairs: int
    seed: int


def make(run: Run, rate: float, candidates: list[Candidates]) -> dict:
    """Train a model and let it choose: the record."""
    cell = Cell(MODEL, DOMAIN, run.pairs, context=run.context)
    settings = fit.settings_of(cell, run.seed, rate)
    try:
        fitted = fit.fit(cell, settings, fit.training_pairs(cell, run.seed, settings.data))
    except train.NotFinite:
        raise ValueError(f"{run.context}, {run.pairs} pairs, seed {run.seed}: diverged at the rate "
                         f"{rate:g}, which run.py chose: leave it out with --context, --pairs or "
                         "--seeds") from None
    device = next(fitted.model.parameters()).device
    judge = RewardModel(fitted.model, fitted.prompt_format, device)

    scores = [win_rates(judge, one) for one in candidates]
    found = curves(scores, candidates)
    return {
        **run._asdict(),
        **setup(),
        "curves": {what: [round(value, 5) for value in line] for what, line in found.items()},
        "verdicts": worth(judge, fit.sets_of(DOMAIN, settings.data).test)._asdict(),
        "rate": settings.lr,
        "torch": torch.__version__,
    }


def setup() -> dict:
    """What all records that are looked at together share, but for the rates."""
    return {"base": version_of(fit.folder_of(MODEL)),
            "sets": fit.version_of_sets(DOMAIN, ("nano",)),
            "prompts": PROMPTS, "references": REFERENCES, "candidates": ANSWER_KINDS,
            "N": list(NS), "measured": [SCORE, *QUALITIES]}


def key_of(record: dict) -> Run:
    return Run(record["context"], record["pairs"], record["seed"])


def chosen_rates() -> dict[str, float]:
    """{context: its rate}"""
    return chosen_for({context: Cell(MODEL, DOMAIN, 0, context=context) for context in CONTEXTS})


def read_records(path: Path, rates: dict[str, float],
                 only_look: bool = False) -> dict[Run, dict]:
    """The records of this setup and of these rates, {context: rate}; others are counted."""
    records, shared, left_out = {}, setup(), 0
    for run, record in read_lines(path, key_of, only_look):
        wanted = {**shared, "rate": rates.get(run.context)}
        if {name: record.get(name) for name in wanted} == wanted:
            records[run] = record
        else:
            left_out += 1
    if left_out:
        print(f"{path.name}: {left_out} records are of another setup or rate than this: left out",
              file=sys.stderr)
    return records


# ------------------------------------------------------------------------------------ the tables


def show(records: dict[Run, dict], contexts: list[str], budgets: list[int]):
    """For each N the share of right answers, the score by the judge and in truth, and what else is
    chosen."""
    titles = {"right": "the chosen answer is right", SCORE: "the judge's own score of it",
              "true win rate": "its true win rate, on the scale of that score",
              "idle sentences": "idle sentences around it", "words": "words of it"}
    for what, title in titles.items():
        print(f"\n**{title}**, best of N: mean ± half a 95 % interval over seeds\n")
        may_turn = what in ("right", SCORE, "true win rate")
        heads = [str(n) for n in NS]
        if may_turn:
            heads.append("turns at")
        print(f"| context, training pairs | seeds | {' | '.join(heads)} |")
        print("|---" * (len(heads) + 2) + "|")
        for context in contexts:
            for pairs in budgets:
                of_cell = of(records, context, pairs)
                if of_cell:
                    columns = [column(of_cell, what, place) for place in range(len(NS))]
                    texts = [cell_text(values) for values in columns]
                    if may_turn:
                        texts.append(turning_point(columns))
                    print(f"| {context}, {pairs:,} | {len(of_cell)} | {' | '.join(texts)} |")

    print(f"\n**what the best of {NS[-1]} is**, mean over seeds\n")
    print("| context, training pairs | " + " | ".join(ANSWER_KINDS) + " |")
    print("|---" * (len(ANSWER_KINDS) + 1) + "|")
    for context in contexts:
        for pairs in budgets:
            of_cell = of(records, context, pairs)
            if of_cell:
                texts = []
                for kind in ANSWER_KINDS:
                    share = np.mean([one["curves"][kind][-1] for one in of_cell])
                    texts.append(f"{share:.3f}")
                print(f"| {context}, {pairs:,} | {' | '.join(texts)} |")


def show_worth(records: dict[Run, dict], budgets: list[int]):
    """Accuracy and FLOPs of a verdict, for each way to read two responses."""
    print("\n**a verdict** on the pairs of the test: mean ± half a 95 % interval over seeds, and "
          "MFLOPs of a verdict (two for a multiply-add)\n")
    print("| how the responses are read | training pairs | seeds | accuracy | MFLOPs |")
    print("|---|---|---|---|---|")
    for how, context, what, part in (("both in a row, two orders", "pair", "accuracy", 1.0),
                                     ("both in a row, one order", "pair", "one_order", 0.5),
                                     ("each alone", "single", "accuracy", 1.0)):
        for pairs in budgets:
            verdicts = [record["verdicts"] for record in of(records, context, pairs)]
            if verdicts:
                found = cell_text([one[what] for one in verdicts])
                cost = part * np.mean([one["flops"] for one in verdicts]) / 1e6
                print(f"| {how} | {pairs:,} | {len(verdicts)} | {found} | {cost:.1f} |")


def of(records: dict[Run, dict], context: str, pairs: int) -> list[dict]:
    found = []
    for run, record in sorted(records.items()):
        if run.context == context and run.pairs == pairs:
            found.append(record)
    return found


def column(of_cell: list[dict], what: str, place: int) -> list[float]:
    """A number of each seed at one N."""
    return [record["curves"][what][place] for record in of_cell]


def cell_text(values: list[float]) -> str:
    mean, half, n = stats.interval(values)
    if n == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {half:.3f}"


def turning_point(columns: list[list[float]]) -> str:
    """The N with the highest mean, if the last one is lower: the interval of the difference, over
    the seeds, is above 0. The same seeds picked the N, and each line of the table is tested by
    itself, so it finds a turn more often than one in twenty times by chance."""
    means = [np.mean(values) for values in columns]
    best = int(np.argmax(means))
    differences = np.array(columns[best]) - np.array(columns[-1])
    mean, half, n = stats.interval(differences)
    if n > 1 and mean - half > 0:
        return str(NS[best])
    return "-"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    budgets = list(PASSES)
    add("--context", nargs="+", default=CONTEXTS, choices=CONTEXTS)
    add("--pairs", nargs="+", type=int, default=budgets, choices=budgets)
    add("--seeds", type=int, default=SEEDS, help="the first so many")
    add("--print", action="store_true", help="print the tables, make nothing")
    flags = parser.parse_args(argv)
    if flags.seeds < 1:
        raise ValueError(f"--seeds {flags.seeds}: give 1 or more")
    torch.set_num_threads(1)  # the same numbers on any machine of a kind

    rates = chosen_rates()
    records = read_records(RECORDS, rates, flags.print)
    candidates = [] if flags.print else all_candidates()
    # seed by seed, so that all cells grow alike
    for seed in range(1, flags.seeds + 1):
        for context in flags.context:
            for pairs in flags.pairs:
                run = Run(context, pairs, seed)
                if flags.print or run in records:
                    continue
                records[run] = make(run, rates[context], candidates)
                append_record(RECORDS, records[run])
                print(f"{context}, {pairs} pairs, seed {seed}: right at {NS[-1]} "
                      f"{records[run]['curves']['right'][-1]:.3f}", file=sys.stderr, flush=True)
    shown = {run: record for run, record in records.items()
             if run.context in flags.context and run.seed <= flags.seeds}
    show(shown, flags.context, flags.pairs)
    show_worth(shown, flags.pairs)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
