"""How accuracy grows (the paper's third open question): with training pairs, with the FLOPs of
training, and with parameters; for encoders and for their causal twins.

    python experiments/scaling.py                       the instructed encoders of nano, and twins
    python experiments/scaling.py --model ettin-17m ettin-32m ettin-decoder-17m ettin-decoder-32m
    python experiments/scaling.py --model large --domain reasoning    # as run.py was given them

It trains nothing: it reads the runs of the usual way (the cloze, DoRA above frozen layers), with
the same --domain and --data. `run.py causal --model ENCODER` makes those of an encoder and its
twin, and `run.py claims --model ENCODER` those of an encoder, with all that it is contrasted with.
The error is 1 - accuracy, the mean over the domains. A law is error = a x^-b; b has a 95 %
bootstrap interval over the seeds, which says nothing about whether a power law is the right form.
Fewer pairs get more passes (fit.PASSES), so the law over pairs is not the law at one pass.

The FLOPs of training are three forward passes' worth of products for each token, two FLOPs for a
multiply-add; attention, and what frozen layers save, are left out. The parameters are all of them,
embeddings included; the FLOPs are of the layers alone.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "nano")]
import make  # noqa: E402

import data  # noqa: E402
from experiments import fit, run, stats  # noqa: E402
from experiments.causal import CausalModernBERT  # noqa: E402
from experiments.fit import Cell  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import read_json  # noqa: E402

# ------------------------------------------------------------------------------------- the points


NANOS = ["nano-instruct", "nano-causal"]
for width in run.NANO_WIDTHS:
    NANOS += [f"nano-instruct-{width}", f"nano-causal-{width}"]


class Point(NamedTuple):
    """The runs of a seed, one for each domain."""

    model: str
    is_causal: bool
    parameters: int
    pairs: int  # of each domain
    seed: int
    flops: float  # of training, the mean over the domains
    error: float  # the mean over the domains


class Size(NamedTuple):
    is_causal: bool
    parameters: int
    flops_of_token: int  # forward, the products of the layers


def size_of_model(model: str) -> Size:
    """What a model's config.json says; no weight is read."""
    raw = config_of(model)
    model_class = make.class_of(raw)
    with torch.device("meta"):  # shapes without numbers
        shape = model_class(model_class.config_class.from_json(raw))
    parameters = sum(weight.numel() for weight in shape.parameters())
    in_layers = sum(weight.numel() for weight in shape.model.layers.parameters()
                    if weight.ndim == 2)
    # a matrix of a layer multiplies each token once
    return Size(model_class is CausalModernBERT, parameters, 2 * in_layers)


def config_of(model: str) -> dict:
    """The config.json of a model. One of nano's other widths need not have been made here."""
    if run.is_here(model) or not fit.is_nano(model):
        return read_json(fit.folder_of(model) / "config.json")
    kind, _, width = model.rpartition("-")
    tokenizer = Tokenizer.from_file(str(ROOT / "nano/tokenizer.json"))
    return make.config_of(tokenizer, kind == "nano-causal", int(width))


def points_of(model: str, domains: list[str], records: dict[str, dict],
              rates: dict[str, float]) -> list[Point]:
    """A point for each budget and seed of which all domains have runs that did not diverge."""
    size, points = size_of_model(model), []
    for pairs in run.BUDGETS:
        for seed in range(1, run.MAIN_SEEDS + 1):
            found = []
            for domain in domains:
                cell = Cell(model, domain, pairs)
                job = run.Job(cell, seed, rates.get(run.method_of(cell), 0.0), "test")
                found.append(records.get(job.key))
            if any(record is None or "diverged" in record for record in found):
                continue
            errors, tokens = [], []
            for domain, record in zip(domains, found, strict=True):
                errors.append(1 - record["accuracy"][domain])
                tokens.append(record["tokens"])
            flops = 3 * size.flops_of_token * sum(tokens) / len(tokens)
            points.append(Point(model, size.is_causal, size.parameters, pairs, seed, flops,
                                sum(errors) / len(errors)))
    return points


# ------------------------------------------------------------------------------------- the tables


def show_points(points: list[Point]):
    print("| model | parameters | training pairs | seeds | FLOPs of training | error |")
    print("|---" * 6 + "|")
    for model in dict.fromkeys(point.model for point in points):
        for pairs in run.BUDGETS:
            own = [point for point in points if (point.model, point.pairs) == (model, pairs)]
            if own:
                error = stats.interval(point.error for point in own)
                flops = stats.interval(point.flops for point in own).mean
                print(f"| {model} | {own[0].parameters:,} | {pairs:,} | {len(own)} | {flops:.2g} | "
                      f"{error.mean:.3f} ± {error.half:.3f} |")


def show_laws(points: list[Point]):
    """The exponents: over pairs and FLOPs for each model, over parameters for each kind."""
    print("\n| error against | of | exponent b, error = a x^-b | points |\n|---|---|---|---|")
    for model in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == model]
        show_law("training pairs", model, own, lambda point: point.pairs)
        show_law("FLOPs of training", model, own, lambda point: point.flops)
    for is_causal, kind in ((False, "encoders"), (True, "causal twins")):
        for pairs in run.BUDGETS:
            own = [point for point in points
                   if (point.is_causal, point.pairs) == (is_causal, pairs)]
            show_law("parameters", f"{kind}, {pairs:,} pairs", own, lambda point: point.parameters)


def show_law(against: str, of: str, points: list[Point], x_of: Callable[[Point], float]):
    """A line of the table, if there are three different x: a line goes through any two."""
    groups = {}  # all seeds of a budget and a size stand at one x
    for point in points:
        groups.setdefault((point.model, point.pairs), []).append(x_of(point))
    means = {key: sum(values) / len(values) for key, values in groups.items()}
    if len(set(means.values())) < 3:
        return
    if any(point.error <= 0 for point in points):
        print(f"| {against} | {of} | none: a run without an error | {len(points)} |")
        return
    law = stats.power_law([means[point.model, point.pairs] for point in points],
                          [point.error for point in points])
    print(f"| {against} | {of} | {law['b']:.2f} [{law['low']:.2f}, {law['high']:.2f}] "
          f"| {len(points)} |")


CAUTION = " (not corrected for the other lines, and no proof that they are equal)"


def show_twins(points: list[Point], twins: list[tuple[str, str]]):
    """The encoder's lead over its twin at each size and budget, and from which size on its interval
    reaches 0."""
    print("\n| encoder against its twin | training pairs | seeds | accuracy, A - B |")
    print("|---" * 4 + "|")
    level = {}  # pairs -> the sizes, from the smallest, and whether the twin is behind there
    for encoder, twin in twins:
        for pairs in run.BUDGETS:
            sides = []
            for model in (encoder, twin):
                sides.append({point.seed: 1 - point.error for point in points
                              if (point.model, point.pairs) == (model, pairs)})
            found = stats.effect(*sides)
            if found.n < 2:
                continue
            print(f"| {encoder} | {pairs:,} | {found.n} | {found.mean:+.3f} ± {found.half:.3f} |")
            level.setdefault(pairs, []).append((encoder, found.mean - found.half > 0))
    for pairs, sizes in level.items():
        behind = [name for name, is_behind in sizes if is_behind]
        names = [name for name, _ in sizes]
        if not behind:
            print(f"\n{pairs:,} pairs: the interval reaches 0 at {', '.join(names)}{CAUTION}")
        elif behind[-1] == names[-1]:
            print(f"\n{pairs:,} pairs: the twin is still behind at the largest size, {names[-1]}")
        else:
            first_level = names[names.index(behind[-1]) + 1]
            print(f"\n{pairs:,} pairs: the interval reaches 0 from {first_level} on{CAUTION}")


def twins_of(models: list[str]) -> list[tuple[str, str]]:
    """(encoder, its twin) of these models, from the contrasts of run.py; the smallest first."""
    found = []
    for contrast in run.GROUPS["causal"]:
        (encoder,), twin = contrast.models, contrast.b["model"]
        if encoder in models and twin in models:
            found.append((encoder, twin))
    return sorted(found, key=lambda pair: size_of_model(pair[0]).parameters)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=NANOS,
                        help="names as run.py takes them")
    parser.add_argument("--domain", nargs="+", default=list(data.DOMAINS),
                        choices=list(data.DOMAINS))
    parser.add_argument("--data", nargs="+", default=[], help="the files of pairs of the runs")
    flags = parser.parse_args(argv)

    methods = {run.method_of(Cell(model, "", 0)) for model in flags.model}
    records = {}
    for model in flags.model:
        records.update(run.read_records(model, tuple(flags.data), only_look=True))
    rates = run.chosen_rates(records, run.rate_jobs(flags.model, flags.domain, methods))
    points = []
    for model in flags.model:
        points.extend(points_of(model, flags.domain, records, rates))
    if not points:
        raise ValueError(f"no runs of {', '.join(flags.model)} yet, with this --domain and --data: "
                         "make them with python experiments/run.py causal --model ENCODER, which "
                         "takes its twin too, or run.py claims")
    show_points(points)
    show_laws(points)
    show_twins(points, twins_of(flags.model))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
