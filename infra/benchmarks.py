"""The benchmarks: what each one measures, and how its rows become items to judge.

One function a benchmark. Judged items (`evaluate.Judged`) go in; out come the named values of each
item, and the lines of the report, which are weighted means of the means of names:

    values = [{"hep-go": 1}, {"hep-go": 0}, {"hep-cpp": 1}]      one dict for each item
    Line("Reasoning", {"hep-go": 164, "hep-cpp": 164})           (164 * 1/2 + 164 * 1) / 328 = 3/4

An item has no say in the mean of a name that it does not have, and a name that no item has drops
out of its lines. The first line is the score. Where a value is the verdict on one comparison, its
name is in `comparisons`, for the counts of its lines. `infra/report.py` turns this into numbers.

`load_eval_set` fetches a benchmark from the Hub, or opens a file of one's own: the items, and the
function that measures them.
"""

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import Item
from infra.hub import fetch_dataset, version_of
from infra.pairs import parse_item, prompt_key
from infra.tables import read_rows


class Line(NamedTuple):
    """A line of a report: the mean of its names' means, each with its weight."""

    title: str
    weights: dict  # name -> weight
    bonus: dict = {}  # name -> weight; these come on top, and are not part of what is divided by


class Measured(NamedTuple):
    """What a benchmark function returns."""

    values: list[dict]  # of each item: {name: value}
    lines: list[Line]  # the first one is the score
    comparisons: dict = {}  # name -> (i, j), if its value is the verdict on responses i and j


def names_of(values: list[dict]) -> list:
    """Every name once, in the order in which they first appear."""
    names = {}
    for of_item in values:
        names.update(dict.fromkeys(of_item))
    return list(names)


def line_for_each(names) -> list[Line]:
    """A line for each name that is the mean of that name."""
    return [Line(name, {name: 1}) for name in names]


BETTER_AND_WORSE = (0, 1)  # the responses of a pair


def pair_of_each(names) -> dict:
    """`comparisons` of names whose values are all verdicts on a pair."""
    return dict.fromkeys(names, BETTER_AND_WORSE)


# ----------------------------------------------------------------------------------------- one item


class PairStats(NamedTuple):
    """Counts over the comparisons of each better response with each worse one of an item; of
    `pair_tables` the same for each comparison, (better, worse).

    A tie is half right. In a single row it is half a win of the first slot.
    """

    comparisons: float
    right: float  # by the mean of both orders
    better_is_shorter: float
    right_where_shorter: float
    both_orders_agree: float
    first_slot_wins: float
    right_in_one_order: float  # the mean over the two orders


def pair_tables(judged) -> PairStats:
    """What each comparison of one judged item counts."""
    item, log_odds = judged.item, judged.log_odds
    better, worse = slice(None, item.good), slice(item.good, None)

    # Tables of (better, worse): 1 where the better response wins, 0 for a tie, -1 where it loses.
    shown_first = np.sign(log_odds[better, worse])
    shown_second = -np.sign(log_odds[worse, better]).T
    both_orders = np.sign(log_odds - log_odds.T)[better, worse]
    right = (1 + both_orders) / 2

    lengths = np.array([len(response) for response in item.responses])
    shorter = lengths[better, None] < lengths[None, worse]

    # In a row that shows the better response second, the first slot wins where that one loses.
    first_slot = (1 + shown_first) / 2 + (1 - shown_second) / 2
    one_order = (1 + shown_first) / 2 + (1 + shown_second) / 2
    return PairStats(
        comparisons=np.ones_like(right),
        right=right,
        better_is_shorter=shorter,
        right_where_shorter=right * shorter,
        both_orders_agree=shown_first == shown_second,
        first_slot_wins=first_slot / 2,
        right_in_one_order=one_order / 2,
    )


def pair_stats(judged) -> PairStats:
    """The counts of one judged item."""
    return PairStats._make(table.sum() for table in pair_tables(judged))


def best_of(scores, good: int, n: int) -> float:
    """The chance that the best of n responses, drawn without replacement from all of them, is one
    of the first `good`; a tie for the top is drawn by lot. Exact, not sampled.

    A response with score s is on top of C(lower + same, n) - C(lower, n) draws, together with the
    others that have just this score: those whose n responses are at most s, but not all below it.
    """
    hits = 0.0
    for score in scores[:good]:
        lower = int((scores < score).sum())
        same = int((scores == score).sum())
        draws = math.comb(lower + same, n) - math.comb(lower, n)
        hits += draws / same
    return hits / math.comb(len(scores), n)


# ------------------------------------------------------------------------------- files of one's own


def pairs(judged: list) -> Measured:
    """Accuracy on all pairs, and on each subset; a tie is half right."""
    values = []
    for one in judged:
        right = pair_stats(one).right
        of_item = {"all": right}
        if one.item.subset:
            of_item[one.item.subset] = right
        values.append(of_item)
    names = names_of(values)
    return Measured(values, line_for_each(names), pair_of_each(names))


def best_of_n(judged: list) -> Measured:
    """How often the pick is a good response: from all responses, and from 1, 2, 4, 8 ... of them,
    drawn at random; on each subset that from all. The pick is the first by the mean win
    probability."""
    values, of_subsets = [], {}
    for one in judged:
        scores, good = one.standing(), one.item.good  # (k,)
        chances = {"the pick from all": best_of(scores, good, len(scores))}
        n = 1
        while n <= len(scores):
            chances[f"the pick from {n}"] = best_of(scores, good, n)
            n *= 2
        if one.item.subset:
            name = f"the pick from all: {one.item.subset}"
            chances[name] = chances["the pick from all"]
            of_subsets[name] = True
        values.append(chances)

    # the lines of all rows first
    picks = [name for name in names_of(values) if name not in of_subsets]
    return Measured(values, line_for_each([*picks, *of_subsets]))


# ------------------------------------------------------------------- RewardBench (arXiv 2403.13787)

# A subset weighs as many as it has rows; but math-prm, which has 447, weighs 984, as many as the
# six subsets of code together. (Early releases of RewardBench's code had the weights of the two
# xstest subsets swapped.)
SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
RAW_PREFIX = "raw "  # before the subset of a row from RewardBench's unfiltered split
RAW = "raw split, every row alike"  # how the paper's author counted


def rewardbench(judged: list) -> Measured:
    """The plain mean of the four sections; a section is the weighted mean of its subsets. A tie is
    a loss. A section or subset that has no rows is left out."""
    values = []
    for one in judged:
        name = one.item.subset
        if name.startswith(RAW_PREFIX):
            name = RAW
        values.append({name: pair_stats(one).right == 1})

    # The mean of sections: the subsets of a section that are there share a weight of 1.
    names = set(names_of(values))
    overall = {}
    for section in SECTIONS.values():
        found = section.keys() & names
        whole = sum(section[subset] for subset in found)
        for subset in found:
            overall[subset] = section[subset] / whole

    # The score, then each section, then each subset.
    lines = [Line("overall (mean of the sections)", overall), Line(RAW, {RAW: 1})]
    for title, section in SECTIONS.items():
        lines.append(Line(title, section))
    for section in SECTIONS.values():
        lines.extend(line_for_each(section))
    return Measured(values, lines, pair_of_each(names))


# ----------------------------------------------------------------- RewardBench 2 (arXiv 2506.01937)

# The subset Ties has prompts with several right answers ("tied:7"), each of which has a partner
# with one right answer ("ref:7"). Its score, with the gap and the spread of `TieMargins`:
#   0.3 * share of tied prompts with gap > 0     + 0.2 * share with gap > spread
# + 0.3 * share of ref prompts with gap > 0      + 0.2 * share with smaller gap > spread
# + 0.01 * mean of tanh(smaller gap / spread - 1)
# where the smaller gap is that of a tied prompt or of its partner: 1.01 at most.
SEVERAL = "Ties, right of several"  # tied prompts with gap > 0
ONE = "Ties, right of one"  # ref prompts with gap > 0
GAP = "Ties, gap above spread"
SMALLER_GAP = "Ties, smaller gap above spread"
TANH = "Ties, tanh of smaller gap over spread"
TIES = {SEVERAL: 0.3, ONE: 0.3, GAP: 0.2, SMALLER_GAP: 0.2}
TIES_BONUS = {TANH: 0.01}


class TieMargins(NamedTuple):
    """How far apart a prompt's answers are, in mean log-odds."""

    gap: float  # worst right answer - best wrong answer
    spread: float  # best right answer - worst right answer


def tie_margins(judged) -> TieMargins:
    scores = judged.mean_log_odds()  # (k,), the right ones first
    right, wrong = scores[: judged.item.good], scores[judged.item.good :]
    return TieMargins(gap=right.min() - wrong.max(), spread=right.max() - right.min())


def tie_values(tag: str, margins: dict[str, TieMargins]) -> dict:
    """The values of one prompt of Ties."""
    kind, _, group = tag.partition(":")
    gap, spread = margins[tag]
    if kind == "ref":
        return {ONE: gap > 0}

    # The smaller gap is its own if --limit left the partner out.
    partner = margins.get(f"ref:{group}", margins[tag])
    smaller = min(gap, partner.gap)

    # With right answers that are all equal the spread is 0.
    if spread > 0:
        bonus = math.tanh(smaller / spread - 1)
    else:
        bonus = np.sign(smaller)  # what tanh comes to as the spread goes to 0
    return {SEVERAL: gap > 0, GAP: gap > spread, SMALLER_GAP: smaller > spread, TANH: bonus}


def rewardbench2(judged: list) -> Measured:
    """The plain mean of the subsets. In Ties the formula above; in the others the chance that the
    best of all four responses is the right one, shared by those that are tied for the top."""
    # Ties need the margins of their partners.
    margins = {}
    for one in judged:
        if one.item.subset == "Ties":
            margins[one.item.tag] = tie_margins(one)

    values, subsets = [], {}
    for one in judged:
        item = one.item
        if item.subset == "Ties":
            values.append(tie_values(item.tag, margins))
        else:
            subsets[item.subset] = 1
            scores = one.standing()
            values.append({item.subset: best_of(scores, item.good, len(scores))})

    # The weights of Ties sum to 1, so that it counts as much as each other subset.
    lines = [Line("overall (mean of the subsets)", subsets | TIES, TIES_BONUS)]
    lines.extend(line_for_each(subsets))
    lines.append(Line("Ties", TIES, TIES_BONUS))
    lines.extend(line_for_each(TIES))
    lines.extend(line_for_each(TIES_BONUS))
    return Measured(values, lines)


# ---------------------------------------------------------------------- RM-Bench (arXiv 2410.16184)


class Cell(NamedTuple):
    """The name of a cell of the 3 x 3 matrix: a better response against a worse one."""

    domain: str  # chat, code, math, safety
    level: str  # easy, normal, hard
    style: str  # "style 0 over 2": that of the better response, that of the worse one

    def part(self) -> str:
        return f"{self.domain}, {self.level}"


def level_of(better_style: int, worse_style: int) -> str:
    """Easy is where the better response has the fancier style."""
    if better_style > worse_style:
        return "easy"
    if better_style < worse_style:
        return "hard"
    return "normal"


def rmbench(judged: list) -> Measured:
    """Does the better response win over the worse one, each in three styles (0 concise, 1 detailed,
    2 markdown)? A tie is a loss. All means are plain: of the three cells of a level, of the three
    levels of a domain, of the domains."""
    values, comparisons = [], {}
    for one in judged:
        wins = one.log_odds > one.log_odds.T  # (6, 6): three better responses, three worse ones
        domain = one.item.subset.partition("-")[0]  # safety-refuse and safety-response are one
        of_item = {}
        for better in range(3):
            for worse in range(3):
                style = f"style {better} over {worse}"
                cell = Cell(domain, level_of(better, worse), style)
                of_item[cell] = wins[better, 3 + worse]
                comparisons[cell] = (better, 3 + worse)
        values.append(of_item)

    # As every domain has all nine cells, a mean over cells is the mean of means.
    cells = names_of(values)
    lines = [Line("overall (mean of the domains)", dict.fromkeys(cells, 1))]
    for level in ("easy", "normal", "hard"):
        lines.append(Line(level, {cell: 1 for cell in cells if cell.level == level}))
    for domain in dict.fromkeys(cell.domain for cell in cells):
        lines.append(Line(domain, {cell: 1 for cell in cells if cell.domain == domain}))
    for part in dict.fromkeys(cell.part() for cell in cells):
        lines.append(Line(part, {cell: 1 for cell in cells if cell.part() == part}))
    for style in dict.fromkeys(cell.style for cell in cells):
        lines.append(Line(style, {cell: 1 for cell in cells if cell.style == style}))
    return Measured(values, lines, comparisons)


# -------------------------------------------------------------------- JudgeBench (arXiv 2410.12784)

# Both responses of a pair are by GPT-4o, or by Claude 3.5 Sonnet. The first split is the score.
JUDGEBENCH_SPLITS = ("gpt", "claude")
JUDGEBENCH_SOURCES = ("mmlu-pro", "livecodebench", "livebench-reasoning", "livebench-math")


def judgebench(judged: list) -> Measured:
    """Two games, one in each order: 1 for a right verdict, -1 for a wrong one, 0 for a tie; their
    sum must be positive. Next to it accuracy by the mean of both orders. The splits stand apart."""
    values = []
    for one in judged:
        first_game = np.sign(one.log_odds[0, 1])  # the better response is shown first
        second_game = -np.sign(one.log_odds[1, 0])
        won = first_game + second_game > 0
        split = one.item.subset.partition(":")[0]
        values.append({
            f"{split}: two games": won,
            f"{split}: orders averaged": pair_stats(one).right,
            one.item.subset: won,
        })

    # A line for each, in this order; a source that is not known comes last.
    titles = []
    for split in JUDGEBENCH_SPLITS:
        for part in ("two games", "orders averaged", *JUDGEBENCH_SOURCES):
            titles.append(f"{split}: {part}")
    names = names_of(values)
    others = [name for name in names if name not in titles]
    return Measured(values, line_for_each(titles + others), pair_of_each(names))


# -------------------------------------------------------------------------------- rows from the Hub
#
# Each function makes a row of a benchmark a row of a file of one's own, whose forms are described
# in infra/pairs.py. `split` is a key of the benchmark's `files`. The domain says whose question a
# model for all domains is asked.

REWARDBENCH_SUBSETS = {subset for section in SECTIONS.values() for subset in section}
SAFETY_SUBSETS = SECTIONS["Safety"].keys() | {"Safety"}  # of RewardBench 1 | and 2
REASONING_SUBSETS = SECTIONS["Reasoning"].keys() | {"Math"}


def domain_of(subset: str) -> str:
    if subset in SAFETY_SUBSETS:
        return "safety"
    if subset in REASONING_SUBSETS:
        return "reasoning"
    return "chat"


def rewardbench_row(row: dict, split: str) -> dict:
    subset = row["subset"]
    row = row | {"domain": domain_of(subset)}
    # Both splits have the same subsets, which count apart.
    if split == "raw":
        row["subset"] = RAW_PREFIX + subset
    return row


def rewardbench2_row(row: dict, split: str) -> dict:
    row_id = str(row["id"])
    if row["subset"] == "Ties" and not row_id.startswith(("tied:", "ref:")):
        raise ValueError(f"id {row_id!r} in Ties, but not tied:N or ref:N: give another revision")
    return row | {"domain": domain_of(row["subset"])}


def rmbench_row(row: dict, split: str) -> dict:
    # Where RM-Bench's domain has the name of one of ours, the id says that these are styles.
    return row | {"id": f"{row['domain']}/"}


def judgebench_row(row: dict, split: str) -> dict:
    better, worse, label = row["response_A"], row["response_B"], row["label"]
    if label == "B>A":
        better, worse = worse, better
    elif label != "A>B":
        raise ValueError(f"label {label!r}: give A>B or B>A")
    source = row["source"]
    if not isinstance(source, str):
        raise ValueError(f"source {source!r}: give the name of a part, as mmlu-pro-law")
    # "mmlu-pro-law" -> "mmlu-pro"; "livebench-math" and "livecodebench" stay as they are
    source = re.match("mmlu-pro|livebench-[a-z]+|[a-z]*", source)[0]
    return {
        "prompt": row["question"],
        "chosen": better,
        "rejected": worse,
        "subset": f"{split}: {source}",
        "domain": "reasoning",
    }


# In a file of one's own a row with these, in one of the subsets, is RewardBench 2's.
REWARDBENCH2_COLUMNS = {"id", "subset", "num_correct", "num_incorrect"}
REWARDBENCH2_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")

# In a file of one's own a row with these is JudgeBench's.
JUDGEBENCH_COLUMNS = {"question", "response_A", "response_B", "label", "source"}


def judgebench_split(row: dict) -> str:
    """The split that a row of JudgeBench's own files belongs to."""
    writer = str(row.get("response_model", ""))
    for split in JUDGEBENCH_SPLITS:
        if split in writer:  # "gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"
            return split
    raise ValueError(f"response_model {writer!r}: give one of {', '.join(JUDGEBENCH_SPLITS)}")


class Benchmark(NamedTuple):
    measure: Callable[[list], Measured]
    repository: str  # on the Hub
    files: dict[str, str]  # split -> pattern of its files' paths
    to_row: Callable[[dict, str], dict]


BENCHMARKS = {
    "rewardbench": Benchmark(
        rewardbench,
        "allenai/reward-bench",
        {"filtered": "data/filtered-*", "raw": "data/raw-*"},
        rewardbench_row,
    ),
    "rewardbench2": Benchmark(
        rewardbench2,
        "allenai/reward-bench-2",
        {"test": "data/test-*"},
        rewardbench2_row,
    ),
    "rmbench": Benchmark(
        rmbench,
        "THU-KEG/RM-Bench",
        {"all": "total_dataset.json"},
        rmbench_row,
    ),
    "judgebench": Benchmark(
        judgebench,
        "ScalerLab/JudgeBench",
        {"gpt": "data/gpt-*", "claude": "data/claude-*"},
        judgebench_row,
    ),
}
OWN_FORMS = {  # form of a file, as infra/pairs.py names it -> function
    "pairs": pairs,
    "pairs without a prompt": pairs,
    "best of n": best_of_n,
    "3 x 3 styles": rmbench,
    # benchmarks in files of one's own
    "pairs of RewardBench": rewardbench,
    "rows of RewardBench 2": rewardbench2,
    "pairs of JudgeBench": judgebench,
}


# ------------------------------------------------------------------------ what a model is judged on


class RowKey(NamedTuple):
    """Where an item came from, and how scores of the same row find it."""

    place: int  # among all rows, in the order of the splits and their lines
    split: str  # of a benchmark; of a file of one's own ""
    line: int  # of the file, or the number of the row in its split, from 1
    id: str | int | None  # the row's own, under one of ID_KEYS
    subset: str
    prompt: str  # its hash
    responses: int  # how many there are
    good: int  # the first ones, which are the better ones
    comparisons: int  # how many pairs of them are compared


def row_key(place: int, split: str, line: int, row: dict, item: Item) -> RowKey:
    """The key of an item that was made of this row."""
    return RowKey(
        place=place,
        split=split,
        line=line,
        id=row_id(row),
        subset=item.subset,
        prompt=prompt_key(item.prompt),
        responses=len(item.responses),
        good=item.good,
        comparisons=len(item.comparisons()),
    )


class EvalSet(NamedTuple):
    measure: Callable[[list], Measured]
    items: Collection[Item]  # has a length, and can be iterated again for each model
    source: str  # the Hub's commit, or the hash of the file
    keys: list[RowKey]  # of each item


ID_KEYS = ("id", "pair_id")  # JudgeBench has the second


def row_id(row: dict) -> str | int | None:
    """What the row calls itself."""
    for key in ID_KEYS:
        if isinstance(row.get(key), (str, int)):
            return row[key]
    return None


def load_eval_set(name: str, limit: int = 0) -> EvalSet:
    """A benchmark or a file; with a limit that many of its items, evenly spread."""
    if name in BENCHMARKS:
        return load_benchmark(name, limit)
    return load_file(name, limit)


def load_benchmark(name: str, limit: int = 0) -> EvalSet:
    """A benchmark from the Hub: all its splits, from one commit."""
    benchmark = BENCHMARKS[name]
    rows = []  # (item, key)
    commit = None  # the newest one for the first split, and the same for the others
    for split, pattern in benchmark.files.items():
        commit, paths = fetch_dataset(benchmark.repository, [pattern], commit)
        line = 0
        for path in paths:
            for _, _, row in read_rows(path):
                line += 1
                item = benchmark_item(benchmark, row, split)
                rows.append((item, row_key(len(rows), split, line, row, item)))

    picked = evenly_spread(len(rows), limit)
    rows = [row for i, row in enumerate(rows) if i in picked]

    # RewardBench's filtered rows are raw rows too: next to each other, both are asked once.
    rows.sort(key=lambda row: (row[0].prompt, row[0].responses))
    items = [item for item, _ in rows]
    keys = [key for _, key in rows]
    return EvalSet(benchmark.measure, items, f"{benchmark.repository} at {commit}", keys)


def benchmark_item(benchmark: Benchmark, row: dict, split: str) -> Item:
    repository = benchmark.repository
    try:
        row = benchmark.to_row(row, split)
    except KeyError as column:
        raise ValueError(f"{repository}: no column {column}: give another revision") from None
    except ValueError as error:
        raise ValueError(f"{repository}: {error}") from None
    return parse_item(row, repository)[1]


def load_file(path: str, limit: int = 0) -> EvalSet:
    """A file of one's own, in one of the forms that infra/pairs.py describes, or with a benchmark's
    own rows."""
    items = FileItems(path, limit)
    return EvalSet(OWN_FORMS[items.form], items, version_of(Path(path)), items.keys)


class FileItems:
    """The items of a file. All lines are checked at once, and read again in each pass over the
    items, so that memory does not grow with the texts of a file."""

    def __init__(self, path: str, limit: int = 0):
        self.path = path
        self.form = ""
        keys, subsets = [], set()
        for number, where, row in read_rows(path):
            # one form in all lines
            form, item = self.parse(where, row)
            if not keys:
                self.form = form
            if form != self.form:
                raise ValueError(
                    f"{item.where}: {form}, after lines of {self.form}: keep to one form"
                )
            subsets.add(item.subset)
            keys.append(row_key(number, "", number, row, item))

        if not keys:
            raise ValueError(f"{path}: empty: give JSON lines with prompt, chosen and rejected")
        self.picked = evenly_spread(len(keys), limit)
        self.keys = [keys[i] for i in sorted(self.picked)]

        # with RewardBench's subsets alone it has its sections
        if self.form == "pairs" and subsets <= REWARDBENCH_SUBSETS:
            self.form = "pairs of RewardBench"

    def parse(self, where: str, row: dict) -> tuple[str, Item]:
        """(form, item) of a row."""
        if JUDGEBENCH_COLUMNS <= row.keys():
            try:
                row = judgebench_row(row, judgebench_split(row))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            return "pairs of JudgeBench", parse_item(row, where)[1]

        if REWARDBENCH2_COLUMNS <= row.keys() and row["subset"] in REWARDBENCH2_SUBSETS:
            try:
                row = rewardbench2_row(row, "")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            return "rows of RewardBench 2", parse_item(row, where)[1]

        form, item = parse_item(row, where)
        if item.domain == "" and item.subset in REWARDBENCH_SUBSETS:
            item = item._replace(domain=domain_of(item.subset))
        return form, item

    def __len__(self):
        return len(self.picked)

    def __iter__(self):
        for index, found in enumerate(read_rows(self.path)):
            if index in self.picked:
                yield self.parse(found.where, found.row)[1]


def evenly_spread(total: int, limit: int) -> Collection[int]:
    """`limit` of the indices 0 ... total - 1, evenly spread; all of them with limit 0."""
    if limit == 0 or limit >= total:
        return range(total)
    return {i * total // limit for i in range(limit)}
