"""What nano's specialists score on the test, and whether accuracy falls with idle talk, with more
turns, or with what the answer of a conversation hangs on.

    python experiments/robustness.py                         # eight seeds of each domain
    python experiments/robustness.py --seeds 1 --model nano  # one seed of another encoder
    python experiments/robustness.py --print                 # the tables of what is there

Each run has the recipe's adapter, rate and batch, and four passes over the 1,000 training pairs
(train.py's recipe for reasoning has three). In the columns "idle on ..." the answers of the test
carry no idle sentence but one on the wrong, the right, or both of them; no training pair contains
any of these sentences. "worst sentence" is the lowest accuracy on the pairs whose wrong answer
carries the same one of them (the lowest of many, so that sentence does better on other pairs). The
last line is one seed of fresh weights of nano's shape with the same budget, trained in full at
1e-3, nothing frozen. Means ± half a 95 % interval over the seeds. Records, a line a run:
experiments/records/robustness.jsonl; a killed script goes on with the run it was at.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "nano")]
import microworld  # noqa: E402

import data  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from data import Pair, PromptFormat  # noqa: E402
from experiments import fit, stats  # noqa: E402
from experiments.fit import Cell  # noqa: E402
from experiments.record_files import append_record, read_lines  # noqa: E402
from experiments.run import is_cloze_encoder  # noqa: E402
from infra.hub import version_of  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import ModernBERT  # noqa: E402

RECORDS = ROOT / "experiments/records/robustness.jsonl"
PAIRS = 1000
FULL_RATE = 1e-3  # the recipe's is DoRA's
IDLE_ON = {"wrong": ("rejected",), "right": ("chosen",), "both": ("chosen", "rejected")}


def with_idle_talk(pairs: list[Pair], sides: tuple[str, ...]) -> list[Pair]:
    """The pairs, with an idle sentence of the test on these sides and none on the others."""
    rows = [{"chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    changed = microworld.add_idle(rows, sides, "test")
    return [pair._replace(**row) for pair, row in zip(pairs, changed, strict=True)]


def by_sentence(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Pairs by the idle sentence that their wrong answer carries."""
    groups = {}
    for pair in pairs:
        (sentence,) = [one for one in microworld.IDLE["test"] if one in pair.rejected]
        groups.setdefault(sentence, []).append(pair)
    return dict(sorted(groups.items()))


def of_conversations(pairs: list[Pair]) -> dict[str, dict[str, list[Pair]]]:
    """Conversations by what their answer hangs on, by their number of turns, and by both
    ("persona, 2 turns"): one turn has kinds of its own, so the first two hide the third."""
    groups = {"what the answer hangs on": {}, "turns": {}, "both": {}}
    for pair in pairs:
        kind, _, turns = pair.subset.partition(", ")
        groups["what the answer hangs on"].setdefault(kind, []).append(pair)
        groups["turns"].setdefault(turns, []).append(pair)
        groups["both"].setdefault(pair.subset, []).append(pair)
    return {name: dict(sorted(found.items())) for name, found in groups.items()}


# ------------------------------------------------------------------------------------------ a run


class Run(NamedTuple):
    model: str
    what: str  # "before" training, "after" it, or trained from "fresh weights"
    domain: str
    seed: int


def runs_of(model: str, seeds: int) -> list[Run]:
    """All runs of a model, in the order of the table."""
    runs = []
    for domain in data.DOMAINS:
        runs.append(Run(model, "before", domain, 0))
        runs.extend(Run(model, "after", domain, seed) for seed in range(1, seeds + 1))
    return [*runs, Run(model, "fresh weights", "reasoning", 1)]


def cell_of(run: Run) -> Cell:
    if run.what == "fresh weights":
        return Cell("random", run.domain, PAIRS, adapter="full", freeze=0)
    return Cell(run.model, run.domain, PAIRS)


def settings_of(run: Run) -> train.Settings:
    rate = FULL_RATE if run.what == "fresh weights" else 0.0  # 0: that of the recipe
    return fit.settings_of(cell_of(run), run.seed, rate)


def make(run: Run) -> dict:
    """The record of a run. ValueError if it diverges."""
    if run.what == "before":
        folder = fit.folder_of(run.model)
        model = tinyrm.load(folder)
        prompt_format = PromptFormat(data.load_tokenizer(folder), domain=run.domain)
    else:
        cell, settings = cell_of(run), settings_of(run)
        pairs = fit.training_pairs(cell, run.seed, settings.data)
        try:
            fitted = fit.fit(cell, settings, pairs)
        except train.NotFinite as error:
            raise ValueError(f"{run.domain}, {run.what}, seed {run.seed}: {error}: take fewer "
                             "--seeds") from None
        model, prompt_format = fitted.model, fitted.prompt_format
    return {**run._asdict(), **setup(run), "torch": torch.__version__,
            **judge(model, prompt_format, run.domain)}


def setup(run: Run) -> dict:
    """What a record has to have been made with: the weights, the pairs, and how it was trained."""
    about = {"base": version_of(fit.folder_of(run.model)), "pairs": PAIRS,
             "passes": fit.PASSES[PAIRS], "sets": fit.version_of_sets(run.domain, ("nano",)),
             "rate": 0.0}
    if run.what != "before":
        about["rate"] = settings_of(run).lr
    return about


def judge(model: ModernBERT, prompt_format: PromptFormat, domain: str) -> dict:
    """Accuracies on the test, by the column of a table."""
    test = fit.sets_of(domain, ("nano",)).test

    def accuracies(groups: dict[str, list[Pair]]) -> dict[str, float]:
        return {name: round(fit.accuracy(model, prompt_format, pairs), 4)
                for name, pairs in groups.items()}

    groups = {"test": test}
    for name, sides in IDLE_ON.items():
        groups[f"idle on {name}"] = with_idle_talk(test, sides)
    found = {"columns": accuracies(groups),
             "sentences": accuracies(by_sentence(groups["idle on wrong"]))}
    if domain == "chat":
        found["conversations"] = {table: accuracies(some)
                                  for table, some in of_conversations(test).items()}
    return found


def key_of(record: dict) -> Run:
    return Run(*(record[name] for name in Run._fields))


def read_records(model: str, only_look: bool = False) -> dict[Run, dict]:
    """The records of a model whose weights, pairs and recipe are today's; others are counted."""
    records, left_out = {}, 0
    for run, record in read_lines(RECORDS, key_of, only_look):
        if run.model != model:
            continue
        if all(record.get(name) == value for name, value in setup(run).items()):
            records[run] = record
        else:
            left_out += 1
    if left_out:
        print(f"{RECORDS.name}: {left_out} records are of other weights, pairs or recipes than "
              "these: left out", file=sys.stderr)
    return records


# ------------------------------------------------------------------------------------- the tables


def cells_of(found: list[dict[str, float]]) -> str:
    """A cell for each column: the mean over the seeds."""
    texts = []
    for column in found[0]:
        mean, half, n = stats.interval(one[column] for one in found)
        if n > 1:
            texts.append(f"{mean:.3f} ± {half:.3f}")
        else:
            texts.append(f"{mean:.3f}")
    return " | ".join(texts)


def worst_sentence(found: list[dict]) -> str:
    """The sentence with the lowest mean over the seeds, with that mean."""
    of_seeds = [record["sentences"] for record in found]
    means = {sentence: stats.interval(one[sentence] for one in of_seeds)
             for sentence in of_seeds[0]}
    worst = min(means, key=lambda sentence: means[sentence].mean)
    return f"{means[worst].mean:.3f}: {worst}"


def show(model: str, seeds: int, records: dict[Run, dict]) -> None:
    lines = {}  # its beginning -> the records of its seeds
    for run in runs_of(model, seeds):
        if run in records:
            lines.setdefault(f"{run.domain}, {run.what}", []).append(records[run])
    columns = ["test", *(f"idle on {name}" for name in IDLE_ON)]
    print(f"| {model} | seeds | {' | '.join(columns)} | worst sentence |")
    print("|---" * (len(columns) + 3) + "|")
    for name, found in lines.items():
        cells = cells_of([record["columns"] for record in found])
        print(f"| {name} | {len(found)} | {cells} | {worst_sentence(found)} |")

    of_chat = [record["conversations"] for record in lines.get("chat, after", [])]
    if of_chat:
        for table, columns in of_chat[0].items():
            print(f"\n| chat, by {table} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
            print(f"| after | {cells_of([one[table] for one in of_chat])} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-instruct", help="an encoder of nano's")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--print", action="store_true", help="print the tables, run nothing")
    flags = parser.parse_args(argv)
    if flags.seeds < 1:
        raise ValueError(f"--seeds {flags.seeds}: give 1 or more")
    if not is_cloze_encoder(flags.model):
        raise ValueError(f"--model {flags.model}: the pairs are nano's; give an encoder of nano's "
                         "with weights, under the cloze")
    torch.set_num_threads(1)  # the same numbers on any machine of a kind

    records = read_records(flags.model, flags.print)
    if not flags.print:
        for run in runs_of(flags.model, flags.seeds):
            if run not in records:
                records[run] = make(run)
                append_record(RECORDS, records[run])
                print(f"{run.domain}, {run.what}, seed {run.seed}: "
                      f"{records[run]['columns']['test']:.3f}", flush=True)
    show(flags.model, flags.seeds, records)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
