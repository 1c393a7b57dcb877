"""What is stored and printed about judged items: scores with their intervals, and counts.

    report          judged items -> the numbers of results.json
      value_table       the named values of a benchmark as one table
      line_scores       the score of each line, where items can count more than once
      bootstrap_draws   these scores for all items, and for 1,000 samples of the prompts
      with_interval     the score, and where 95 % of the samples lie
    show            reports -> the tables that are printed
    write_results   results.json, and scores.jsonl with a row for each comparison

Shapes: N items, M names, L lines, U prompts.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from infra.benchmarks import Line, Measured, PairStats, names_of, pair_stats
from infra.files import replacing
from infra.hub import ROOT
from infra.pairs import prompt_hash

RESAMPLES = 1000  # samples of the bootstrap

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
    prompt = f"{prompt_hash(item.prompt):016x}"
    return judged._replace(item=item._replace(prompt=prompt, responses=responses, where=""))


def longer_wins(judged):
    """The item as a judge would see it to whom the longer response is the better one: the log-odds
    are differences of length in characters."""
    lengths = np.array([len(response) for response in judged.item.responses])
    return judged._replace(log_odds=lengths[:, None] - lengths[None, :])


# -------------------------------------------------------------------------------------- the numbers


def value_table(values: list[dict], names: list) -> np.ndarray:
    """The values of a benchmark as (N, M), nan where an item does not have the name."""
    table = np.zeros((len(values), len(names)))
    for row, of_item in enumerate(values):
        for column, name in enumerate(names):
            table[row, column] = of_item.get(name, np.nan)
    return table


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
def line_scores(values: np.ndarray, times: np.ndarray, tables: LineTables) -> np.ndarray:
    """The score of each line, (L,), where item i counts times[i] times. values (N, M), times (N,).

    Names that no item has are left out of the lines, and a line without any is nan."""
    # the mean of each name, over the items that have it
    counts = times @ ~np.isnan(values)  # (M,)
    totals = times @ np.nan_to_num(values)  # (M,)
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


def bootstrap_draws(values: np.ndarray, prompts: np.ndarray, tables: LineTables) -> np.ndarray:
    """The scores of all items, and below them those of the samples: (1 + RESAMPLES, L). In a sample
    U prompts are drawn from the U, with replacement. values (N, M); prompts (N,) as numbered by
    `prompt_numbers`."""
    # always the same samples: two models on the same items are compared on the same draws
    random = np.random.default_rng(0)
    count = prompts.max() + 1  # U

    draws = [line_scores(values, np.ones(len(values)), tables)]
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)  # (U,) numbers of prompts
        times = np.bincount(drawn, minlength=count)  # (U,) how often each was drawn
        draws.append(line_scores(values, times[prompts], tables))
    return np.array(draws)


class Interval(NamedTuple):
    """A number of each line, (L,), and where 95 % of the samples lie."""

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray


def with_interval(draws: np.ndarray) -> Interval:
    """From what `bootstrap_draws` returns, or from the difference of two of them."""
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5], axis=0)
    return Interval(draws[0], low, high)


def length_baseline(measure, judged: list, names: list, tables: LineTables) -> np.ndarray:
    """What each line would be for a judge to whom the longer response is the better one: (L,)."""
    by_length = measure([longer_wins(one) for one in judged])
    values = value_table(by_length.values, names)
    return line_scores(values, np.ones(len(judged)), tables)


def line_stats(judged: list, belongs: np.ndarray) -> np.ndarray:
    """The counts of PairStats, summed over the items of each line: (L, 7). belongs (L, N)"""
    stats = np.array([pair_stats(one) for one in judged], float)  # (N, 7)
    return belongs @ stats


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
    lines = [line for line in measured.lines if line.weights.keys() & set(names)]
    values = value_table(measured.values, names)  # (N, M)
    tables = line_tables(lines, names)
    belongs = (~np.isnan(values) @ tables.weights > 0).T  # (L, N) items that a line is made of

    # one column for each number, (L,)
    prompts = prompt_numbers(judged)
    draws = bootstrap_draws(values, prompts, tables)
    columns = with_interval(draws)._asdict()
    columns["n"] = belongs.sum(axis=1)
    columns["longer wins"] = length_baseline(measure, judged, names, tables)
    stats = line_stats(judged, belongs)
    for field, column in zip(PairStats._fields, stats.T, strict=True):
        columns[STAT_KEYS[field]] = column
    if first_draws is not None:
        difference = with_interval(draws - first_draws)
        columns["difference"] = np.stack(difference, axis=1)  # (L, 3)

    # and one dict for each line
    rows = []
    for number, line in enumerate(lines):
        row = {"name": line.title}
        for key, column in columns.items():
            row[key] = column[number].tolist()
        rows.append(row)

    score = rows[0]  # the first line
    summary = {
        "score": score["score"],
        "low": score["low"],
        "high": score["high"],
        "n": score["n"],
        "prompts": int(prompts.max()) + 1,
        "lines": rows,
    }
    return Report(summary, draws)


# ---------------------------------------------------------------------- the tables that are printed

NAME_WIDTH = 42  # characters of the first column
MODEL_WIDTH = 28  # and of the column of a model


def show(reports: list[dict]) -> str:
    """A table with a row for each set of items and a column for each model. Of one set all lines
    are shown, of several only the first. Under a single report stands what else is known of it."""
    # the reports by what was judged, in rows, and by model, in columns
    files, models = [], []
    for each in reports:
        if each["data"] not in files:
            files.append(each["data"])
        if each["model"] not in models:
            models.append(each["model"])

    # the heading: names of models, and under each what stands in its column
    name_line = " " * NAME_WIDTH
    head_line = " " * NAME_WIDTH
    for model in models:
        name_line += f"{model[-26:]:>{MODEL_WIDTH}}"
        head_line += f"{'score [95 %]  if shorter':>{MODEL_WIDTH}}"
    text = ["", name_line, head_line + "  longer wins      n"]

    for file in files:
        of_file = [each["lines"] for each in reports if each["data"] == file]
        rows = list(zip(*of_file, strict=True))  # the same line of all models
        text.append(table_row(file, rows[0]))
        if len(models) > 1:
            text.append(difference_row(rows[0]))
        if len(files) == 1:
            for row in rows[1:]:
                text.append(table_row(file, row))

    if len(reports) == 1:
        text += details(reports[0])
    return "\n".join(text)


def table_row(file: str, lines: tuple[dict, ...]) -> str:
    """One line of the report, for all models."""
    first = lines[0]
    file_name = Path(file).stem[:14]
    title = f"{file_name}: {first['name']}"
    text = f"{title:{NAME_WIDTH}.{NAME_WIDTH}}"  # filled up, or cut off
    for line in lines:
        text += f"{cell(line):>{MODEL_WIDTH}}"
    # these are the same for all models
    return text + f"{first['longer wins']:13.3f}{first['n']:7,}"


def cell(line: dict) -> str:
    """Score [95 % interval], and the accuracy where the better response is the shorter one."""
    if_shorter = "-"  # it never is
    if line["better is shorter"]:
        if_shorter = f"{line['right there'] / line['better is shorter']:.3f}"
    return f"{line['score']:.3f} [{line['low']:.3f} {line['high']:.3f}] {if_shorter:>6}"


def difference_row(lines: tuple[dict, ...]) -> str:
    """Under the first line: how far each further model is above the first one."""
    text = f"{'    less that of the first model':{NAME_WIDTH + MODEL_WIDTH}}"
    for line in lines[1:]:
        difference, low, high = line["difference"]
        text += f"{difference:+.3f} [{low:+.3f} {high:+.3f}]      "
    return text


def details(report: dict) -> list[str]:
    """How much was judged, and what the order of two responses does."""
    seen = [f"{count:,} {what}" for what, count in report["seen"].items()]
    text = [", ".join([f"{report['prompts']:,} prompts"] + seen)]

    # shares of all comparisons; a response alone in its row has no order
    if report["format"]["context"] == "pair":
        line = report["lines"][0]
        shares = []
        for key in ("both orders agree", "first slot wins", "right in one order", "right"):
            shares.append(f"{key} {line[key] / line['comparisons']:.3f}")
        text.append(", ".join(shares))
    return text


# -------------------------------------------------------------------- results.json and scores.jsonl


def results_folder(models: list[str], data: list[str]) -> Path:
    """Where results go by default: RUN/eval/DATA for one run folder, else runs/eval-MODEL/DATA."""
    data_names = "+".join(Path(name).stem for name in data)
    if len(models) == 1 and Path(models[0], "run.json").is_file():
        return Path(models[0], "eval", data_names)
    model_names = "+".join(Path(name).name for name in models)
    return Path("runs", f"eval-{model_names}", data_names)


def check_writable(folder: Path) -> None:
    """ValueError if no results could be written there."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--out {folder}: {existing} is no folder to write in: give another")


def score_rows(judged) -> Iterator[dict]:
    """A row for each comparison of an item: P(a is better) with a shown first, with b shown first,
    and their mean. Responses are counted from 0; the `good` better ones come first."""
    item = judged.item
    first_wins = (1 + np.tanh(judged.log_odds / 2)) / 2  # (k, k): the sigmoid of the log-odds
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


def write_results(folder: Path, command: str, reports: list[dict], judged: list[list]) -> None:
    """Write results.json and scores.jsonl; each file appears whole or not at all. `judged` are the
    items of each report."""
    results = {
        "command": command,
        "versions": {
            "tinyrm": checkout_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "resamples": RESAMPLES,
        "reports": reports,
    }
    scores_path, results_path = folder / "scores.jsonl", folder / "results.json"
    with replacing(scores_path) as scores_file, replacing(results_path) as results_file:
        write_scores(scores_file, reports, judged)
        text = json.dumps(results, indent=2, allow_nan=False)
        results_file.write_text(text + "\n", encoding="utf-8")


def write_scores(path: Path, reports: list[dict], judged: list[list]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for each, items in zip(reports, judged, strict=True):
            origin = {"model": each["model"], "data": each["data"]}
            for one in items:
                for row in score_rows(one):
                    file.write(json.dumps(origin | row) + "\n")
