"""Scores of the same rows by another judge, from a file, next to ours.

A scores.jsonl of ours; or JSON lines, or one array, that name the row by its `id` (`pair_id`) or by
`line`, its number in the file from 1. Rows of benchmarks may also give `subset` or `split`, where
one id stands in several; a file of several judges gives `model`. Scores are numbers, of which a
higher one is better, in one of these forms:

    {"id": 7, "scores": [1.5, -0.2]}               the chosen responses first, in the row's order
    {"id": 7, "chosen": 1.5, "rejected": -0.2}     a list where the row has one; or score_chosen and
                                                   score_rejected, scores_chosen and ...
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.benchmarks import RAW_PREFIX, Measured, RowKey, row_id
from infra.printed import plural, show
from infra.report import report
from infra.results import JudgedSet
from infra.tables import read_rows

SIDES = [
    ("chosen", "rejected"),
    ("score_chosen", "score_rejected"),
    ("scores_chosen", "scores_rejected"),
]
LARGEST = 1e300
FORMS = '"scores", or "chosen" and "rejected" (or a scores.jsonl of evaluate.py)'


class OtherJudge(NamedTuple):
    """What another judge says about the items of a set."""

    name: str
    log_odds: dict[int, np.ndarray]  # index of an item -> (k, k), as evaluate.Judged has it
    unmatched: set  # names of rows that are of no item


class Rows:
    """Finds the item that a row of scores is of."""

    def __init__(self, keys: list[RowKey]):
        self.keys = keys
        self.by_line, self.by_id = {}, {}
        for index, key in enumerate(keys):
            self.by_line[key.split, key.line] = index
            if key.id is not None:
                self.by_id.setdefault(str(key.id), []).append(index)

    def find(self, row: dict, where: str) -> int | None:
        """The index of its item, or None."""
        name, line = row_id(row), row.get("line")
        if name is None and not isinstance(line, int):
            raise ValueError(f'{where}: no "id", and no number as "line": give what names the row')

        # by the id, if it names a single item
        same_id = self.by_id.get(str(name), [])
        if len(same_id) > 1 and "split" in row:
            same_id = [index for index in same_id if self.keys[index].split == row["split"]]
        if len(same_id) > 1 and "subset" in row:
            subset = plain_subset(row["subset"])
            same_id = [index for index in same_id if self.subset_of(index) == subset]
        if len(same_id) == 1:
            return same_id[0]

        # else by the line
        if not isinstance(line, int):
            if same_id:
                raise ValueError(f'{where}: id {name!r} is of {len(same_id)} rows: give "line"')
            return None
        index = self.by_line.get((str(row.get("split", "")), line))
        if index is None:
            return None
        own_name = self.keys[index].id
        if None not in (name, own_name) and str(name) != str(own_name):
            return None  # the line of another row
        return index

    def subset_of(self, index: int) -> str:
        return plain_subset(self.keys[index].subset)


def plain_subset(subset: object) -> str:
    """A subset as the rows of the benchmark name it, without our mark of RewardBench's raw ones."""
    return str(subset).removeprefix(RAW_PREFIX)


def read_other_judges(path: str, data_name: str, keys: list[RowKey]) -> list[OtherJudge]:
    """The judges whose scores are in a file: one, or each model of a scores.jsonl, where what is of
    other data than `data_name` is left out; an item of which a comparison is missing has no scores.
    ValueError if no row is of an item."""
    rows, judges = Rows(keys), {}
    is_of_this = picker_of(path, data_name)
    for _, where, row in read_rows(path):
        if is_ours(row) and not is_of_this(str(row.get("data"))):
            continue
        name = str(row.get("model", ""))
        judge = judges.setdefault(name, OtherJudge(f"{name} in {path}".strip(), {}, set()))

        index = rows.find(row, where)
        if index is None:
            judge.unmatched.add((str(row.get("split")), str(row.get("line")), row_id(row)))
        else:
            add_scores(judge, index, keys[index], row, where)

    for judge in judges.values():
        remove_incomplete(judge, keys)
    found = [judge for judge in judges.values() if judge.log_odds]
    if not found:
        raise ValueError(f"{path}: no row in it is of {data_name}, with all its comparisons: give "
                         "scores of the same rows")
    return found


def picker_of(path: str, data_name: str) -> Callable[[str], bool]:
    """Which `data` in a scores.jsonl of ours is the one that is judged: that of this very name;
    where none has it, that of the same file name, as the folder may have moved."""
    names = {str(row.get("data")) for _, _, row in read_rows(path) if is_ours(row)}
    if data_name in names:
        return lambda name: name == data_name
    return lambda name: Path(name).name == Path(data_name).name


def remove_incomplete(judge: OtherJudge, keys: list[RowKey]) -> None:
    """Take out the items of which a comparison is missing: that is no tie. What is not compared of
    an item (good with good ones) is 0, as in evaluate.Judged."""
    for index, table in list(judge.log_odds.items()):
        both_ways = np.isfinite(table).sum() - len(table)  # less the diagonal
        if both_ways < 2 * keys[index].comparisons:
            del judge.log_odds[index]
        else:
            judge.log_odds[index] = np.nan_to_num(table, nan=0.0)


def is_ours(row: dict) -> bool:
    """Whether it is a row of our scores.jsonl: of one comparison."""
    return "log_odds_a_first" in row


def add_scores(judge: OtherJudge, index: int, key: RowKey, row: dict, where: str) -> None:
    """Put what a row says about an item into the judge's table."""
    k = key.responses
    # ours: a row for each comparison
    if is_ours(row):
        if row.get("prompt") != key.prompt:
            raise ValueError(f"{where}: another prompt than in line {key.line} of what is judged: "
                             "these are scores of another file")
        a, b = row.get("a"), row.get("b")
        if type(a) is not int or type(b) is not int or not (0 <= a < k and 0 <= b < k):
            raise ValueError(f"{where}: a {a!r} and b {b!r}, but the row has {k} responses")
        if index not in judge.log_odds:
            judge.log_odds[index] = np.full((k, k), np.nan)
            np.fill_diagonal(judge.log_odds[index], 0)
        table = judge.log_odds[index]
        both = numbers([row["log_odds_a_first"], row.get("log_odds_b_first")], where)
        table[a, b], table[b, a] = both[0], -both[1]
        return

    # a row for all responses
    if index in judge.log_odds:
        raise ValueError(f"{where}: a second row for line {key.line} of what is judged")
    scores = scores_of(row, key.good, where)
    if len(scores) != k:
        raise ValueError(f"{where}: {len(scores)} scores, but the row has {k} responses")
    judge.log_odds[index] = scores[:, None] - scores[None, :]


def scores_of(row: dict, good: int, where: str) -> np.ndarray:
    """The scores in a row, the chosen responses first, of which there are `good`: (k,)."""
    if "scores" in row:
        return numbers(row["scores"], where)
    for chosen, rejected in SIDES:
        if chosen in row and rejected in row:
            sides = [numbers(row[side], where) for side in (chosen, rejected)]
            if len(sides[0]) != good:
                raise ValueError(f"{where}: {len(sides[0])} scores of chosen responses, but the "
                                 f"row has {good}")
            return np.concatenate(sides)
    raise ValueError(f"{where}: no scores: give {FORMS}")


def numbers(value: object, where: str) -> np.ndarray:
    """A number, or a list of numbers, as an array."""
    if not isinstance(value, list):
        value = [value]
    for number in value:
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not abs(number) <= LARGEST:  # nan neither
            raise ValueError(f"{where}: {number!r} is no number: give {FORMS}")
    return np.array(value, float)


def compare_with(
    measure: Callable[[list], Measured], judged_set: JudgedSet, other: OtherJudge
) -> dict:
    """The reports of both judges on the items that both have, for results.json and `show`."""
    matched = sorted(other.log_odds)
    ours = [judged_set.judged[index] for index in matched]
    theirs = [one._replace(log_odds=other.log_odds[index])
              for index, one in zip(matched, ours, strict=True)]
    first = report(measure, ours)
    second = report(measure, theirs, first.draws)

    model, data = judged_set.report["model"], judged_set.report["data"]
    return {
        "rows of both": len(matched),
        "rows without scores": len(judged_set.judged) - len(matched),
        "scores without a row": len(other.unmatched),
        "reports": [
            {"model": model, "data": data} | first.summary,
            {"model": other.name, "data": data} | second.summary,
        ],
    }


def show_comparison(comparison: dict) -> str:
    """The counts of what was matched, and the table of both."""
    both = plural(comparison["rows of both"], "row") + " of both"
    ours = plural(comparison["rows without scores"], "row") + " without scores"
    theirs = plural(comparison["scores without a row"], "score") + " without a row"
    return f"\n{both}, {ours}, {theirs}" + show(comparison["reports"])
