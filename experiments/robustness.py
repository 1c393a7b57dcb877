"""What nano's specialists score on the test, and whether accuracy falls with idle talk, with more
turns, or with what the answer of a conversation hangs on.

    python experiments/robustness.py                         # eight seeds of each domain
    python experiments/robustness.py --seeds 1 --model nano  # one seed of another encoder

Each run has the recipe's adapter, rate and batch, and four passes over the 1,000 training pairs
(train.py's recipe for reasoning has three). In the columns "idle on ..." the
answers of the test carry no idle sentence but one on the wrong, the right, or both of them; no
training pair contains any of these sentences. The last line is one seed of fresh weights with the
same budget, trained in full at 1e-3, nothing frozen. Means ± half a 95 % interval over the seeds.
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
from data import Pair, PromptFormat  # noqa: E402
from experiments import fit, stats  # noqa: E402
from experiments.fit import Cell  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import ModernBERT  # noqa: E402

FULL_RATE = 1e-3  # the recipe's is DoRA's
IDLE_ON = {"wrong": ("rejected",), "right": ("chosen",), "both": ("chosen", "rejected")}


def with_idle_talk(pairs: list[Pair], sides: tuple[str, ...]) -> list[Pair]:
    """The pairs, with an idle sentence of the test on these sides and none on the others."""
    rows = [{"chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    changed = microworld.add_idle(rows, sides, "test")
    return [pair._replace(**row) for pair, row in zip(pairs, changed, strict=True)]


def of_conversations(pairs: list[Pair]) -> dict[str, dict[str, list[Pair]]]:
    """Conversations by what their answer hangs on and by their number of turns ("persona, 2 turns"
    is a subset)."""
    groups = {"what the answer hangs on": {}, "turns": {}}
    for pair in pairs:
        kind, _, turns = pair.subset.partition(", ")
        groups["what the answer hangs on"].setdefault(kind, []).append(pair)
        groups["turns"].setdefault(turns, []).append(pair)
    return {name: dict(sorted(found.items())) for name, found in groups.items()}


class Specialist(NamedTuple):
    """Accuracies on the test, by the column of a table."""

    columns: dict[str, float]
    conversations: dict[str, dict[str, float]]  # table -> column -> accuracy


def judge(model: ModernBERT, prompt_format: PromptFormat, domain: str) -> Specialist:
    test = fit.sets_of(domain, ("nano",)).test
    columns = {"test": fit.accuracy(model, prompt_format, test)}
    for name, sides in IDLE_ON.items():
        changed = with_idle_talk(test, sides)
        columns[f"idle on {name}"] = fit.accuracy(model, prompt_format, changed)

    conversations = {}
    if domain == "chat":
        for table, groups in of_conversations(test).items():
            conversations[table] = {name: fit.accuracy(model, prompt_format, pairs)
                                    for name, pairs in groups.items()}
    return Specialist(columns, conversations)


def before(model: str, domain: str) -> Specialist:
    """The encoder, asked as its specialist will be."""
    folder = fit.folder_of(model)
    prompt_format = PromptFormat(data.load_tokenizer(folder), domain=domain)
    return judge(tinyrm.load(folder), prompt_format, domain)


def after(cell: Cell, seed: int, rate: float = 0.0) -> Specialist:
    """A specialist, trained at this rate (0: the recipe's)."""
    settings = fit.settings_of(cell, seed, rate)
    fitted = fit.fit(cell, settings, fit.training_pairs(cell, seed, settings.data))
    return judge(fitted.model, fitted.prompt_format, cell.domain)


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-instruct", help="an encoder of nano's")
    parser.add_argument("--seeds", type=int, default=8)
    flags = parser.parse_args(argv)
    if flags.seeds < 1:
        raise ValueError(f"--seeds {flags.seeds}: give 1 or more")
    if not fit.is_nano(flags.model):
        raise ValueError(f"--model {flags.model}: the pairs are nano's; give an encoder of nano's")
    torch.set_num_threads(1)  # the same numbers on any machine of a kind

    columns = ["test", *(f"idle on {name}" for name in IDLE_ON)]
    print(f"| {flags.model} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    of_chat = []  # its seeds
    for domain in data.DOMAINS:
        encoder = before(flags.model, domain)
        print(f"| {domain}, before | {cells_of([encoder.columns])} |", flush=True)
        seeds = [after(Cell(flags.model, domain, 1000), seed) for seed in range(1, flags.seeds + 1)]
        columns_of_seeds = [one.columns for one in seeds]
        print(f"| {domain}, after | {cells_of(columns_of_seeds)} |", flush=True)
        if domain == "chat":
            of_chat = seeds
    fresh = Cell("random", "reasoning", 1000, adapter="full", freeze=0)
    specialist = after(fresh, 1, FULL_RATE)
    print(f"| reasoning, fresh weights | {cells_of([specialist.columns])} |", flush=True)

    for table, columns in of_chat[0].conversations.items():
        print(f"\n| chat, by {table} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        print(f"| after | {cells_of([one.conversations[table] for one in of_chat])} |")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
