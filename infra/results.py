"""What judging leaves on the disk: results.json with the reports, and scores.jsonl with a row for
each comparison."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from infra.benchmarks import RowKey
from infra.files import replacing
from infra.hub import ROOT
from infra.report import RESAMPLES
from tinyrm import read_json


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


def check_out(folder: Path, asked: dict, read: list[str | Path]) -> None:
    """ValueError if results there would take the place of those of something else, or of a file
    that is read."""
    if answers_another(folder / "results.json", asked):
        raise ValueError(f"--out {folder} has the results of something else: give another folder, "
                         "or remove its results.json")
    for name in ("results.json", "scores.jsonl"):
        written = folder / name
        for source in read:
            if written.exists() and Path(source).exists() and os.path.samefile(written, source):
                raise ValueError(f"--out {folder}: {source} is read: give another folder")


def check_writable(folder: Path) -> None:
    """ValueError if no results could be written there."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--out {folder}: {existing} is no folder to write in: give another")


def score_lines(judged) -> Iterator[dict]:
    """A line for each comparison of an item: P(a is better) with a shown first, with b shown first,
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
                for row in score_lines(judged):
                    file.write(json.dumps(origin | row_of_file | row) + "\n")
