"""What is stored and printed about judged items: scores with their intervals, and counts.

    report          judged items -> the numbers of results.json
      value_tables      the named values of a benchmark as tables
      line_scores       the score of each line, where items can count more than once
      bootstrap_draws   these scores for all items, and for 1,000 samples of the prompts
      score_interval    the score, and between what it lies with 95 % confidence
    show            reports -> the tables that are printed
    write_results   results.json, and scores.jsonl with a row for each comparison

Shapes: N items, M names, L lines, U prompts.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from infra.benchmarks import Line, Measured, PairStats, RowKey, names_of, pair_tables
from infra.calibration import TEMPERATURES, calibration, comparisons_of, orders
from infra.files import read_json, replacing
from infra.hub import ROOT
from infra.pairs import prompt_key

RESAMPLES = 1000  # samples of the bootstrap
FEW = 10  # right or wrong prompts: with fewer the samples say too little
Z = 1.96  # 95 % of a normal distribution lie within so many standard deviations

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
    """A number of each line, (L,), and between what it lies with 95 % confidence."""

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
    """The score of each line, and the percentiles of its samples; of a share p with fewer than FEW
    right or wrong prompts, of which samples say too little, Wilson's interval:

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    with the number n of prompts that would vary as the samples do, but at most those counted."""
    score, low, high = percentiles(draws)
    p = np.clip(score, 0, 1)  # a bonus can lift it above 1
    n = np.fmin(p * (1 - p) / np.nanvar(draws[1:], axis=0), counted)  # all right: 0 / 0
    few = shares & (n * np.minimum(p, 1 - p) < FEW)

    middle = p + Z**2 / (2 * n)
    reach = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    whole = 1 + Z**2 / n
    low = np.where(few, np.minimum((middle - reach) / whole, score), low)
    high = np.where(few, np.maximum((middle + reach) / whole, score), high)
    return Interval(score, low, high)


def difference_interval(draws: np.ndarray, counted: np.ndarray, shares: np.ndarray) -> Interval:
    """The difference d of two judges on the same samples, and the percentiles; where they differ on
    fewer than FEW of n prompts, the interval of Agresti and Min (2005), which adds half a prompt to
    each of the four outcomes (right or wrong by the one, and by the other)."""
    d, low, high = percentiles(draws)
    n = counted
    differ = n * (n * np.nanvar(draws[1:], axis=0) + d**2)  # the mean square is variance + d^2
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


# ---------------------------------------------------------------------- the tables that are printed


def show(reports: list[dict]) -> str:
    """A table for each set of items, with its lines; of several models each line has a row for each
    model, and one for what it differs from the first. Under a single report stands what else is
    known of it."""
    # the reports by what was judged, and the models by a letter
    files = list(dict.fromkeys(each["data"] for each in reports))
    models = list(dict.fromkeys(each["model"] for each in reports))
    letters = {models[0]: ""}  # one needs none
    text = []
    if len(models) > 1:
        letters = {model: letter(number) for number, model in enumerate(models)}
        text = [""] + [f"{letters[model]} = {model}" for model in models]
    for file in files:
        of_file = [each for each in reports if each["data"] == file]
        text += [""] + table(file, of_file, letters)
    if len(reports) == 1:
        text += details(reports[0])
    return "\n".join(text)


def letter(number: int) -> str:
    """A, B, C ... for 0, 1, 2 ..."""
    if number < 26:
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
    return f"M{number + 1}"


def table(file: str, reports: list[dict], letters: dict[str, str]) -> list[str]:
    """All lines of the reports on one set of items."""
    width = max(len(line["name"]) for line in reports[0]["lines"])  # no name is cut
    measure = f"{reports[0]['measure']} [95 %]"
    text = [file, f"  {'':{width}} {'':6}  {measure:23}{'right/n':>15}{'if shorter':>17}"
                  "  longer wins"]

    for rows in zip(*(each["lines"] for each in reports), strict=True):
        # the same line of all models
        name = rows[0]["name"]
        for each, line in zip(reports, rows, strict=True):
            text.append(f"  {name:{width}} {letters[each['model']]:>6}  {cells(line)}")
            name = ""  # once
        for each, line in zip(reports[1:], rows[1:], strict=True):
            tag = f"{letters[each['model']]} - {letters[reports[0]['model']]}"
            difference, low, high = line["difference"]
            text.append(f"  {name:{width}} {tag:>6} {difference:+.3f} [{low:+.3f} {high:+.3f}]")
    return text


def cells(line: dict) -> str:
    """Score [95 % interval], right of how many, the same where the better response is the shorter
    one, and the baseline of lengths."""
    interval = f"{line['score']:.3f} [{line['low']:.3f} {line['high']:.3f}]"
    right_of, if_shorter = f"-/{line['n']:,}", "-"  # no verdicts on pairs
    if "comparisons" in line:
        right_of = f"{line['right']:,}/{line['comparisons']:,}"
        if line["better is shorter"]:
            share = line["right there"] / line["better is shorter"]
            if_shorter = f"{share:.3f} of {line['better is shorter']:,}"
    return f"{interval:23}{right_of:>15}{if_shorter:>17}{line['longer wins']:13.3f}"


def details(report: dict) -> list[str]:
    """How much was judged; and of the comparisons of the first line what the order of two responses
    does, and how well the probabilities hold."""
    seen = [f"{count:,} {what}" for what, count in report["seen"].items()]
    text = [", ".join([f"{report['prompts']:,} prompts"] + seen)]

    counts = report["orders"]
    total, right = counts["comparisons"], counts["right"]
    text.append(f"{report['lines'][0]['name']}, {total:,} comparisons:")
    # a response alone in its row has no order
    if report["format"]["context"] == "pair":
        agree, right_there = counts["both orders agree"], counts["right where they agree"]
        first_slot, one_order = counts["first slot wins"], counts["right in one order"]
        text.append(f"  both orders agree {agree / total:.3f}: right there "
                    f"{share_of(right_there, agree)}, elsewhere "
                    f"{share_of(right - right_there, total - agree)}")
        text.append(f"  first slot wins {first_slot / total:.3f}; right in one order "
                    f"{one_order / total:.3f}, by both {right / total:.3f}")
    text.append("  " + calibration_line(report["calibration"]))
    return text


def share_of(right: float, count: int) -> str:
    if count == 0:
        return "- of 0"
    return f"{right / count:.3f} of {count:,}"


def calibration_line(numbers: dict) -> str:
    beyond = ""  # at the end of what is tried the judge is always right, or not at all
    if not 2 * TEMPERATURES[0] < numbers["temperature"] < TEMPERATURES[-1] / 2:
        beyond = "beyond "
    text = (f"mean confidence {numbers['mean confidence']:.3f}, ECE {numbers['ECE']:.3f}, Brier "
            f"{numbers['Brier']:.3f}; best temperature {beyond}{numbers['temperature']:.2f}")
    mended = numbers.get("with a temperature")
    if mended is not None:
        text += f"; that of one half of the prompts gives the other ECE {mended['ECE']:.3f}"
    return text


LEGEND = f"""
accuracy     share of the verdicts, by both orders, that are right
score        what the benchmark makes of them
[95 %]       from {RESAMPLES:,} samples of the prompts; Wilson's if under {FEW} are right, or wrong
right/n      verdicts that are right, of how many; without weights, a tie as the benchmark counts it
if shorter   the same where the better response is the shorter one
longer wins  what a judge would score that always takes the longer response
B - A        how far B is above A on the same prompts, with its own (paired) interval
ECE          mean gap between confidence and accuracy; a temperature divides all log-odds"""


# -------------------------------------------------------------------- results.json and scores.jsonl


def results_folder(models: list[str], data: list[str], asked: dict) -> Path:
    """Where results go by default: RUN/eval/DATA for one run folder, else runs/eval-MODEL/DATA; or
    DATA-2, DATA-3 ..., so that only the results of the same question are replaced."""
    data_names = "+".join(Path(name).stem for name in data)[:100]
    if len(models) == 1 and Path(models[0], "run.json").is_file():
        parent = Path(models[0], "eval")
    else:
        model_names = "+".join(Path(name).name for name in models)[:100]
        parent = Path("runs", f"eval-{model_names}")

    folder, number = parent / data_names, 2
    while answers_another(folder / "results.json", asked):
        folder = parent / f"{data_names}-{number}"
        number += 1
    return folder


def answers_another(results: Path, asked: dict) -> bool:
    """Whether there are results of something else there."""
    return results.is_file() and read_json(results).get("asked") != asked


def check_writable(folder: Path) -> None:
    """ValueError if no results could be written there."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--out {folder}: {existing} is no folder to write in: give another")


def score_rows(judged) -> Iterator[dict]:
    """A row for each comparison of an item: P(a is better) with a shown first, with b shown first,
    and their mean; and the log-odds of the first two, which keep their difference where
    probabilities round to 1. Responses are counted from 0; the `good` better ones come first."""
    item, log_odds = judged.item, judged.log_odds
    first_wins = (1 + np.tanh(log_odds / 2)) / 2  # (k, k): the sigmoid of the log-odds
    mean = judged.win_probabilities()  # (k, k)
    for a, b in item.comparisons():
        yield {
            "prompt": item.prompt,
            "subset": item.subset,
            "tag": item.tag,
            "good": item.good,
            "a": a,
            "b": b,
            "a_first": first_wins[a, b],
            "b_first": 1 - first_wins[b, a],
            "mean": mean[a, b],
            "log_odds_a_first": log_odds[a, b],
            "log_odds_b_first": -log_odds[b, a],
        }


def checkout_version() -> str:
    """The commit of this checkout, with "-dirty" where files were changed."""
    # --git-dir: of this folder's own repository, and of none that it may lie in
    command = ["git", "-C", str(ROOT), "--git-dir=.git", "describe", "--always", "--dirty"]
    command += ["--abbrev=12"]  # digits
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return "not a checkout"
    if git.returncode != 0:
        return "not a checkout"
    return git.stdout.strip()


class JudgedSet(NamedTuple):
    """A set of items that one model has judged."""

    report: dict  # its entry in results.json
    judged: list
    keys: list[RowKey]  # of each item
    draws: np.ndarray  # from `report`


def write_results(folder: Path, about: dict, judged_sets: list[JudgedSet]) -> None:
    """Write scores.jsonl and results.json, whose beginning is `about`; each file appears whole or
    not at all."""
    results = about | {
        "versions": {
            "tinyrm": checkout_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "resamples": RESAMPLES,
        "reports": [each.report for each in judged_sets],
    }
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    with writing(folder / "scores.jsonl") as path:
        write_scores(path, judged_sets)
    with writing(folder / "results.json") as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`; what the disk refuses is a ValueError that names the file."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: make room, or give another --out") from None


def write_scores(path: Path, judged_sets: list[JudgedSet]) -> None:
    """The rows of all items, in the order of their files."""
    with open(path, "w", encoding="utf-8") as file:
        for each in judged_sets:
            origin = {"model": each.report["model"], "data": each.report["data"]}
            in_order = sorted(range(len(each.keys)), key=lambda index: each.keys[index].place)
            for index in in_order:
                key, judged = each.keys[index], each.judged[index]
                row_of_file = {"split": key.split, "line": key.line, "id": key.id}
                for row in score_rows(judged):
                    file.write(json.dumps(origin | row_of_file | row) + "\n")
