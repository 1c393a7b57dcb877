"""How many comparisons a ranking of many responses needs, and what it loses with fewer.

    python experiments/tournaments.py runs/PAIR runs/SINGLE my.jsonl
    python experiments/tournaments.py runs/nano-instruct-reasoning-s17 nano --keep
    python experiments/tournaments.py runs/PAIR my.jsonl --candidates 8 16 32 64 --prompts 20

The candidates for a prompt are its two responses and those of other pairs, drawn by the seed. With
`nano` they are of the kinds of best_of_n.py, whose truth is known: one in sixteen is right (at
least one), the others are wrong in several ways. A model of context "pair" compares all of them
once. From this table each way of ranking takes what it asks for:

    all pairs    k (k - 1) / 2 comparisons, each with each
    tournament   what evaluate.RewardModel.rank does with many: log2(k) rounds of k / 2
    knockout     k - 1: who loses is out; the rank is the round in which that was

A model of context "single" scores each response once: k rows, where a comparison is two.

Columns: rows that the model reads; how often the best of all pairs comes first; the rank
correlation (Spearman's) with all pairs (both by the first model that is named); how often the
pair's chosen response, or of nano's candidates a right one, comes first; and how much more often
than by all pairs, over the same prompts. --keep writes them to experiments/records/
tournaments.jsonl, from which notebook 08 draws.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import Item, Pair  # noqa: E402
from evaluate import Judged, RewardModel, Tournament, play  # noqa: E402
from experiments import best_of_n  # noqa: E402
from experiments.record_files import append_record  # noqa: E402
from experiments.stats import interval  # noqa: E402
from infra.pairs import load_pairs  # noqa: E402
from infra.sources import load_sets  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402

RECORDS = Path(__file__).resolve().parent / "records/tournaments.jsonl"


def key_of(record: dict) -> tuple[str, int, str]:
    """(the candidates' source, how many, the way to rank): the last record of a key counts."""
    return record["data"], record["candidates"], record["way"]


# ---------------------------------------------------------------------------------- what is ranked


def make_candidates(pairs: list[Pair], prompts: int, count: int, seed: int) -> list[Item]:
    """Items of `count` different responses: the pair's better one first, then its other one, then
    those of other pairs."""
    lot = random.Random(seed)
    pool = sorted({text for pair in pairs for text in (pair.chosen, pair.rejected)})
    if len(pool) < count:
        raise ValueError(f"--candidates {count}: there are {len(pool)} different responses")

    items = []
    for pair in lot.sample(pairs, min(prompts, len(pairs))):
        own = (pair.chosen, pair.rejected)
        others = [text for text in lot.sample(pool, len(pool)) if text not in own]
        responses = (*own, *others[:count - 2])
        items.append(Item(pair.prompt, responses, domain=pair.domain))
    return items


def known_candidates(prompts: int, count: int, seed: int) -> list[Item]:
    """Items of `count` different responses to prompts of nano's test in reasoning: the right ones
    first, at least one; the others of the kinds of best_of_n.py, as often as there."""
    lot = random.Random(seed)
    world = best_of_n.microworld.make_world()
    words = [word for word in world if world[word].part == "test"]
    kinds = [kind for kind in best_of_n.ANSWER_KINDS if kind != "right"]
    how_often = [best_of_n.ANSWER_KINDS[kind] for kind in kinds]

    items = []
    for pair in lot.sample(load_sets(["nano"], "reasoning", 0, 0, 0).test, prompts):
        right = best_of_n.word_in(pair.chosen, words)
        wrong = best_of_n.word_in(pair.rejected, words)
        other = lot.choice([word for word in words if word not in (right, wrong)])
        good, bad = {}, {}  # sets that keep their order
        while len(good) < max(1, count // 16):
            good[best_of_n.answer(lot, "right", right, wrong, other)] = True
        while len(good) + len(bad) < count:
            kind = lot.choices(kinds, how_often)[0]
            bad[best_of_n.answer(lot, kind, right, wrong, other)] = True
        items.append(Item(pair.prompt, (*good, *bad), good=len(good), domain=pair.domain))
    return items


# ---------------------------------------------------------------------------------- ways of ranking


class Ranking(NamedTuple):
    rows: int  # that the model reads: two a comparison
    scores: np.ndarray  # (k,) the better the higher


def by_all_pairs(judged: Judged) -> Ranking:
    k = len(judged.log_odds)
    return Ranking(k * (k - 1), judged.mean_win_probability())


def by_tournament(judged: Judged) -> Ranking:
    tournament = Tournament.of(judged.item)
    play([tournament], from_table(judged))
    rows = int(tournament.played.sum())
    return Ranking(rows, tournament.judged(judged.item).mean_win_probability())


def from_table(judged: Judged) -> Callable:
    """A judge that knows the answers already."""
    place = {text: index for index, text in enumerate(judged.item.responses)}

    def judge(items: list[Item]) -> Iterator[Judged]:
        for item in items:
            places = [place[text] for text in item.responses]
            yield Judged(item, judged.log_odds[np.ix_(places, places)])

    return judge


def by_knockout(judged: Judged) -> Ranking:
    """Neighbours in the order of the texts meet; of an odd number the last one waits."""
    k = len(judged.log_odds)
    wins = judged.win_probabilities()
    scores = np.zeros(k)
    left = sorted(range(k), key=lambda i: judged.item.responses[i])
    while len(left) > 1:
        winners = []
        for first, second in zip(left[0::2], left[1::2], strict=False):
            winners.append(first if wins[first, second] >= 0.5 else second)
        if len(left) % 2:
            winners.append(left[-1])
        scores[winners] += 1  # a round more
        left = winners
    return Ranking(2 * (k - 1), scores)


def by_score(judged: Judged) -> Ranking:
    return Ranking(len(judged.scores), judged.scores)


WAYS = {"all pairs": by_all_pairs, "tournament": by_tournament, "knockout": by_knockout}

# ------------------------------------------------------------------------------- what is lost by it


def ranks(values: np.ndarray) -> np.ndarray:
    """From 0 for the lowest; equals share the mean of theirs: (k,)"""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    not_above = (values[None, :] <= values[:, None]).sum(axis=1)
    return (below + not_above - 1) / 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: of the ranks. 0 where one of them tells nothing apart."""
    a, b = ranks(a), ranks(b)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


class Line(NamedTuple):
    """A number for each prompt."""

    rows: list[int]
    best_found: list[float]
    correlation: list[float]
    better_first: list[float]


def compare_with(reference: list[np.ndarray], rankings: list[Ranking], good: list[int]) -> Line:
    """For each prompt: `reference`, the scores of all pairs; `good`, how many of the responses, the
    first ones, are the better ones."""
    line = Line([], [], [], [])
    for expected, ranking, better in zip(reference, rankings, good, strict=True):
        first = int(ranking.scores.argmax())
        line.rows.append(ranking.rows)
        line.best_found.append(float(expected[first] == expected.max()))
        line.correlation.append(correlation(expected, ranking.scores))
        line.better_first.append(float(first < better))
    return line


def measure(judges: dict[str, RewardModel], items: list[Item]) -> dict[str, Line]:
    """The lines of the table, for candidates of one number."""
    reference, lines = None, {}
    good = [item.good for item in items]
    for name, judge in judges.items():
        judged = list(judge.judge(items))
        ways = {"single": by_score} if judge.single else WAYS
        for way, rank in ways.items():
            rankings = [rank(one) for one in judged]
            if reference is None:
                reference = [ranking.scores for ranking in rankings]  # all pairs come first
            lines[f"{way}, {name}"] = compare_with(reference, rankings, good)
    return lines


def show(count: int, lines: dict[str, Line]):
    width = max(len(name) for name in lines)
    prompts = len(next(iter(lines.values())).rows)
    print(f"\n{count} candidates, {prompts} prompts: mean ± half a 95 % interval over prompts")
    print(f"{'':{width}}  {'rows':>6}  {'best found':>15}  {'correlation':>15}  "
          f"{'better first':>15}  {'less all pairs':>15}")
    all_pairs = next(iter(lines.values()))
    for name, line in lines.items():
        gain = np.array(line.better_first) - np.array(all_pairs.better_first)
        cells = [f"{np.mean(line.rows):6.0f}"]
        for values in (line.best_found, line.correlation, line.better_first, gain):
            cells.append(cell(values))
        print(f"{name:{width}}  {'  '.join(cells)}")


def cell(values: list[float]) -> str:
    mean, half = interval(values)[:2]
    return f"{mean:7.3f} ± {half:5.3f}"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME",
        help="models, one of context pair first, and files of pairs (.jsonl) or the word nano")
    add("--candidates", type=int, nargs="+", default=[8, 16, 32, 64], metavar="K")
    add("--prompts", type=int, default=40, metavar="N")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--keep", action="store_true", help=f"add the numbers to {RECORDS.name}")
    flags = parser.parse_intermixed_args(argv)

    files = [name for name in flags.names if name == "nano" or name.endswith((".jsonl", ".json"))]
    models = [name for name in flags.names if name not in files]
    if not files or not models or min(flags.candidates) < 3 or flags.prompts < 2:
        raise ValueError("give models and files of pairs (or nano), --candidates 3 or more, and "
                         "--prompts 2 or more")
    if "nano" in files and len(files) > 1:
        raise ValueError("give nano, or files of pairs, not both")

    judges = {name: RewardModel.load(name, device=flags.device) for name in models}
    if judges[models[0]].single:
        raise ValueError(f"{models[0]} is of context single: give one of context pair first")
    for judge in judges.values():
        print(judge.about)

    if files == ["nano"]:
        make = known_candidates
    else:
        make = partial(make_candidates, load_pairs(files))
    for count in flags.candidates:
        items = make(flags.prompts, count, flags.seed)
        lines = measure(judges, items)
        show(count, lines)
        if flags.keep:
            for name, line in lines.items():
                way, model = name.split(", ", 1)
                append_record(RECORDS, {
                    "data": " ".join(files), "candidates": count, "way": way, "model": model,
                    "weights": judges[model].about["weights"], "prompts": flags.prompts,
                    "seed": flags.seed, **line._asdict()})


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
