"""The numbers of judged items: scores with their intervals, and counts.

    report              judged items -> the numbers of results.json
      value_tables          the named values of a benchmark as tables
      line_scores           the score of each line, where items can count more than once
      bootstrap_draws       these scores for all items, and for 1,000 samples of the prompts
      score_interval        the score, and the bounds within which it lies with 95 % confidence
      difference_interval   the same for the difference of two judges

infra/printed.py prints them, infra/results.py stores them.
Shapes: N items, M names, L lines, U prompts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from infra.benchmarks import Line, Measured, PairStats, names_of, pair_tables
from infra.calibration import calibration, comparisons_of, orders
from infra.intervals import Z, wilson
from infra.pairs import prompt_key

RESAMPLES = 1000  # samples of the bootstrap
FEW = 10  # right or wrong prompts: with fewer the samples say too little

# The counts of a line: field of PairStats -> key in results.json.
STAT_KEYS = {
    "comparisons": "comparisons",
    "right": "right",
    "better_is_shorter": "better is shorter",
    "right_where_shorter": "right there",
    "both_orders_agree": "both orders agree",
    "first_slot_wins": "first slot wins",
    "right_in_one_order": "right in one order",
}

# ------------------------------------------------------------------------------------- judged items


class RemovedText:
    """Stands where a text was; only its length is still known."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length


def without_texts(judged):
    """A judged item without its texts, so that memory does not grow with them: the prompt becomes
    its hash, and of the responses the lengths are kept. A report is the same."""
    item = judged.item
    responses = tuple(RemovedText(len(response)) for response in item.responses)
    prompt = prompt_key(item.prompt)
    return judged._replace(item=item._replace(prompt=prompt, responses=responses, where=""))


def longer_wins(judged):
    """The item as a judge would see it to whom the longer response is the better one: the log-odds
    are differences of length in characters."""
    lengths = np.array([len(response) for response in judged.item.responses])
    return judged._replace(log_odds=lengths[:, None] - lengths[None, :])


# -------------------------------------------------------------------------------------- the numbers


class Values(NamedTuple):
    """The values of a benchmark as tables of items and names."""

    has: np.ndarray  # (N, M), 1 where the item has the name, else 0
    value: np.ndarray  # (N, M), 0 where it has not


def value_tables(values: list[dict], names: list) -> Values:
    has = np.zeros((len(values), len(names)))
    table = np.zeros((len(values), len(names)))
    column_of = {name: column for column, name in enumerate(names)}
    for row, of_item in enumerate(values):
        for name, value in of_item.items():
            column = column_of[name]
            has[row, column] = 1
            table[row, column] = value
    return Values(has, table)


class LineTables(NamedTuple):
    """The lines of a benchmark, as tables of names and lines."""

    weights: np.ndarray  # (M, L)
    bonus: np.ndarray  # (M, L)


def line_tables(lines: list[Line], names: list) -> LineTables:
    weights = np.zeros((len(names), len(lines)))
    bonus = np.zeros((len(names), len(lines)))
    for column, line in enumerate(lines):
        for row, name in enumerate(names):
            weights[row, column] = line.weights.get(name, 0)
            bonus[row, column] = line.bonus.get(name, 0)
    return LineTables(weights, bonus)


@np.errstate(invalid="ignore")
def line_scores(values: Values, times: np.ndarray, tables: LineTables) -> np.ndarray:
    """The score of each line, (L,), where item i counts times[i] times: (N,).

    Names that no item has are left out of the lines, and a line without any is nan."""
    # the mean of each name, over the items that have it
    counts = times @ values.has  # (M,)
    totals = times @ values.value  # (M,)
    means = totals / np.maximum(counts, 1)

    # the mean of each line, over the names that are there; what is a bonus is not divided by
    divisor = (counts > 0) @ tables.weights  # (L,)
    return means @ (tables.weights + tables.bonus) / divisor


def prompt_numbers(judged: list) -> np.ndarray:
    """A number for each item, (N,), counted from 0; the same for items that are drawn together:
    those of one prompt, or of one group ("tied:7" and "ref:7")."""
    number_of, numbers = {}, []
    for one in judged:
        group = one.item.tag.partition(":")[2]
        key = one.item.prompt
        if group:
            key = group
        numbers.append(number_of.setdefault(key, len(number_of)))
    return np.array(numbers)


def bootstrap_draws(values: Values, prompts: np.ndarray, tables: LineTables) -> np.ndarray:
    """The scores of all items, and below them those of the samples: (1 + RESAMPLES, L). In a sample
    U prompts are drawn from the U, with replacement. prompts (N,) as `prompt_numbers` has them."""
    # always the same samples: two models on the same items are compared on the same draws
    random = np.random.default_rng(0)
    count = prompts.max() + 1  # U

    draws = [line_scores(values, np.ones(len(prompts)), tables)]
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)  # (U,) numbers of prompts
        times = np.bincount(drawn, minlength=count).astype(float)  # (U,) how often each was drawn
        draws.append(line_scores(values, times[prompts], tables))
    return np.array(draws)


class Interval(NamedTuple):
    """A number of each line, (L,), and the bounds within which it lies with 95 % confidence."""

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray


def percentiles(draws: np.ndarray) -> Interval:
    """Where 95 % of the samples lie, of `bootstrap_draws` or of the difference of two of them."""
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5], axis=0)
    return Interval(draws[0], low, high)


def counted_prompts(values: Values, prompts: np.ndarray, tables: LineTables) -> np.ndarray:
    """How many prompts, weighing alike, each line is worth: (sum w)^2 / sum w^2 over the weights w
    of its prompts (Kish), (L,). prompts (N,)"""
    share_of_item = values.has / np.maximum(values.has.sum(axis=0), 1)  # (N, M)
    of_item = share_of_item @ tables.weights  # (N, L)
    of_prompt = np.zeros((prompts.max() + 1, of_item.shape[1]))  # (U, L)
    np.add.at(of_prompt, prompts, of_item)
    return of_prompt.sum(axis=0) ** 2 / (of_prompt**2).sum(axis=0)


def are_shares(values: Values, tables: LineTables) -> np.ndarray:
    """The lines that are means of values between 0 and 1: (L,)."""
    outside = (values.value < 0) | (values.value > 1)  # (N, M)
    return ~(outside.any(axis=0) @ (tables.weights > 0))


@np.errstate(divide="ignore", invalid="ignore")
def score_interval(draws: np.ndarray, counted: np.ndarray, shares: np.ndarray) -> Interval:
    """The score of each line, and the percentiles of its samples. Of a share p with fewer than FEW
    right or wrong prompts samples say too little: it has Wilson's interval, for the number n of
    independent prompts that would vary as the samples do, but at most those counted."""
    score, low, high = percentiles(draws)
    p = np.clip(score, 0, 1)  # a bonus can lift it above 1

    # p (1 - p) / n is the variance of a share; where all are right both are 0, and fmin passes over
    # the nan of their ratio
    n = np.fmin(p * (1 - p) / np.nanvar(draws[1:], axis=0), counted)
    few = shares & (n * np.minimum(p, 1 - p) < FEW)
    bounds = wilson(p, n)
    low = np.where(few, np.minimum(bounds.low, score), low)
    high = np.where(few, np.maximum(bounds.high, score), high)
    return Interval(score, low, high)


def difference_interval(draws: np.ndarray, counted: np.ndarray, shares: np.ndarray) -> Interval:
    """The difference d of two judges on the same samples, and the percentiles; where they differ on
    fewer than FEW of n prompts, the interval of Agresti and Min (2005), which adds half a prompt to
    each of the four outcomes (right or wrong by the one, and by the other)."""
    d, low, high = percentiles(draws)
    n = counted
    # on how many prompts they differ: a difference of one prompt is -1, 0 or 1, so its mean square,
    # variance + d^2, is the share of those where it is not 0
    differ = n * (n * np.nanvar(draws[1:], axis=0) + d**2)
    few = shares & (differ < FEW)

    middle = d * n / (n + 2)
    reach = Z * np.sqrt(differ + 1 - (d * n) ** 2 / (n + 2)) / (n + 2)
    low = np.where(few, np.minimum(middle - reach, d), low)
    high = np.where(few, np.maximum(middle + reach, d), high)
    return Interval(d, low, high)


def length_baseline(measure, judged: list, names: list, tables: LineTables) -> np.ndarray:
    """What each line would be for a judge to whom the longer response is the better one: (L,)."""
    by_length = measure([longer_wins(one) for one in judged])
    values = value_tables(by_length.values, names)
    return line_scores(values, np.ones(len(judged)), tables)


def name_stats(judged: list, measured: Measured) -> dict:
    """The counts of PairStats for each name that is in `comparisons`, (7,), over the items that
    have it. Right is what the name's value says: in most benchmarks a tie is a loss."""
    stats = {name: np.zeros(len(PairStats._fields)) for name in measured.comparisons}
    for one, of_item in zip(judged, measured.values, strict=True):
        tables = pair_tables(one)
        for name, value in of_item.items():
            if name not in stats:
                continue
            better, worse = measured.comparisons[name]
            counts = PairStats._make(table[better, worse - one.item.good] for table in tables)
            right_there = value * counts.better_is_shorter
            counts = counts._replace(right=value, right_where_shorter=right_there)
            stats[name] += np.array(counts, float)
    return stats


def line_counts(line: Line, stats: dict) -> dict:
    """The counts of a line, those of its names together; none if a value is no verdict on a pair,
    but a pick from many, or a margin."""
    if not line.weights.keys() <= stats.keys():
        return {}
    together = sum(stats[name] for name in line.weights)  # (7,)
    counts = {}
    for field, count in zip(PairStats._fields, together.tolist(), strict=True):
        counts[STAT_KEYS[field]] = whole(count)
    return counts


def whole(number: float) -> int | float:
    """A count as an integer, unless it has halves of ties."""
    if number == int(number):
        return int(number)
    return number


def lines_found(measured: Measured, names: list) -> list[Line]:
    """The lines with those of their names that an item has; without lines that have none."""
    lines = []
    for line in measured.lines:
        found = {name: line.weights[name] for name in names if name in line.weights}
        if found:
            lines.append(line._replace(weights=found))
    return lines


def kind_of(lines: list[Line], measured: Measured) -> str:
    """What the numbers of the lines are called: "accuracy" where each is the share of verdicts that
    are right, else "score"."""
    for line in lines:
        if len(line.weights) > 1 or not line.weights.keys() <= measured.comparisons.keys():
            return "score"
    return "accuracy"


class Report(NamedTuple):
    summary: dict  # for results.json
    draws: np.ndarray  # from bootstrap_draws; what another model's report takes as `first_draws`


def report(
    measure: Callable[[list], Measured], judged: list, first_draws: np.ndarray | None = None
) -> Report:
    """The numbers of one model on one set of items.

    `first_draws` are another model's on the same items: each line then has the "difference" to it,
    with an interval of its own. As both have the same samples, it is paired."""
    # the values as tables; lines whose names nobody has are not shown
    measured = measure(judged)
    names = names_of(measured.values)
    lines = lines_found(measured, names)
    values = value_tables(measured.values, names)
    tables = line_tables(lines, names)
    belongs = (values.has @ tables.weights > 0).T  # (L, N) items that a line is made of

    # one column for each number, (L,)
    prompts = prompt_numbers(judged)
    draws = bootstrap_draws(values, prompts, tables)
    counted, shares = counted_prompts(values, prompts, tables), are_shares(values, tables)
    columns = score_interval(draws, counted, shares)._asdict()
    columns["n"] = belongs.sum(axis=1)
    columns["longer wins"] = length_baseline(measure, judged, names, tables)
    if first_draws is not None:
        difference = difference_interval(draws - first_draws, counted, shares)
        columns["difference"] = np.stack(difference, axis=1)  # (L, 3)

    # and one dict for each line
    stats = name_stats(judged, measured)
    rows = []
    for number, line in enumerate(lines):
        row = {"name": line.title}
        for key, column in columns.items():
            row[key] = column[number].tolist()
        rows.append(row | line_counts(line, stats))

    # the first line is the score; of its items also all comparisons of a better with a worse one
    score = rows[0]
    of_score = np.flatnonzero(belongs[0])
    compared = comparisons_of([judged[i] for i in of_score], prompts[of_score])
    summary = {
        "measure": kind_of(lines, measured),
        "score": score["score"],
        "low": score["low"],
        "high": score["high"],
        "n": score["n"],
        "prompts": int(prompts.max()) + 1,
        "lines": rows,
        "orders": {key: whole(count) for key, count in orders(compared).items()},
        "calibration": calibration(compared),
    }
    return Report(summary, draws)
