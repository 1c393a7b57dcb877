"""One generalist out of specialists (the paper's first open question): their changes added up, or
their tops as branches on the trunk that they share.

    python experiments/merge.py RUN RUN RUN OUT

makes one folder of finished runs of train.py: OUT has what they share once and the tops of each
(infra/generalist.py), and evaluate.py opens it. What it costs, and its accuracy next to that of
each specialist on the test pairs of its run, is printed.

    record    the specialists of one seed, trained and merged in all ways, with their accuracies

Shapes: N prompts or rows, T tokens of all rows, B rows of a batch, D hidden.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from data import Item, Pair, RowTokenizer  # noqa: E402
from evaluate import RewardModel  # noqa: E402
from experiments.fit import (  # noqa: E402
    ENCODER,
    PASSES,
    Cell,
    Fitted,
    accuracy,
    architecture_of,
    data_of,
    fit,
    folder_of,
    sets_of,
    settings_of,
    training_pairs,
    version_of_sets,
)
from experiments.flops import flops  # noqa: E402
from experiments.measure import rows_of  # noqa: E402
from infra import generalist  # noqa: E402
from infra.checks import check_model, read_format  # noqa: E402
from infra.export import check_can_be_made  # noqa: E402
from infra.files import replacing, sha256_of  # noqa: E402
from infra.generalist import (  # noqa: E402
    Router,
    make_router,
    nearest,
    prompt_means,
    tokenize_prompts,
    trunk,
)
from infra.hub import version_of  # noqa: E402
from infra.machine import pick_device  # noqa: E402
from infra.pairs import fingerprint  # noqa: E402
from infra.run_folder import RECORD_FIELDS  # noqa: E402
from infra.sources import PairSets, load_sets  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import Config, ModernBERT, PackedLayout, read_json  # noqa: E402

# Scales of what specialists changed; with three specialists 1/3 averages their weights. All are
# shown on the test, and the one that is best on the choosing pairs is named.
LAMBDAS = (0.25, 1 / 3, 0.5, 0.75, 1.0)
TIES_SCALES = (0.5, 1.0, 1.5, 2.0)  # of changes that are averaged, not added
TIES_KEEP = 0.2  # share of the changes that TIES keeps, as in its paper
FROZEN = 1  # layers of the trunk
PAIRS = 300  # of each specialist

# -------------------------------------------------------------------- one generalist: added changes


def added(base: ModernBERT, experts: Iterable[ModernBERT], scales: Iterable[float]) -> ModernBERT:
    """Task arithmetic (arXiv 2212.04089): base + the sum of what each expert changed, times its
    scale."""
    states_of_experts = [expert.state_dict() for expert in experts]
    scales = list(scales)
    state = {}
    for name, w in base.state_dict().items():
        state[name] = w.clone()
        for expert, scale in zip(states_of_experts, scales, strict=True):
            state[name] += scale * (expert[name] - w)
    return with_weights(base, state)


def ties(base: ModernBERT, experts: Iterable[ModernBERT], scale: float,
         keep: float = TIES_KEEP) -> ModernBERT:
    """TIES-Merging (arXiv 2306.01708): base + scale * the merged change. Of each expert the largest
    `keep` of its changes are kept; a weight takes the mean of those that are left and have the sign
    of their sum. (The share is of the tensors that any expert changed.)"""
    start = base.state_dict()
    states_of_experts = [expert.state_dict() for expert in experts]
    names = []
    for name, w in start.items():
        if not all(torch.equal(expert[name], w) for expert in states_of_experts):
            names.append(name)

    # N changed numbers
    trimmed = []
    for expert in states_of_experts:
        change = torch.cat([(expert[name] - start[name]).flatten() for name in names])  # (N,)
        kept = max(1, round(keep * len(change)))
        least = change.abs().kthvalue(len(change) - kept + 1).values
        trimmed.append(torch.where(change.abs() >= least, change, 0.0))
    changes = torch.stack(trimmed)  # (experts, N)

    sign = changes.sum(dim=0).sign()  # (N,)
    agrees = (changes != 0) & (changes.sign() == sign)
    change = (changes * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)  # (N,)

    state = dict(start)
    sizes = [start[name].numel() for name in names]
    for name, part in zip(names, change.split(sizes), strict=True):
        state[name] = start[name] + scale * part.view_as(start[name])
    return with_weights(base, state)


def with_weights(base: ModernBERT, state: dict[str, torch.Tensor]) -> ModernBERT:
    """A model of the base's kind with these weights."""
    model = ModernBERT(base.config, base.head_kind).eval()
    model.load_state_dict(state)
    return model


# ---------------------------------------------- one generalist: branches on a trunk that they share


def branch(model: ModernBERT, x: torch.Tensor, layout: PackedLayout, layers: int) -> torch.Tensor:
    """A specialist's layers above the trunk, and its final norm, at the read positions: (B, D)."""
    above = model.model.layers[layers:]
    for layer in above[:-1]:
        x = layer(x, layout)
    return model.model.final_norm(above[-1].forward_where_read(x, layout))


def same_trunk(models: list[ModernBERT], layers: int) -> list[str]:
    """The names of the tensors that the trunk has. ValueError if they differ between the models."""
    beginnings = ["model.embeddings."]
    beginnings += [f"model.layers.{i}." for i in range(layers)]
    all_states = [model.state_dict() for model in models]
    first = all_states[0]
    names = [name for name in first if name.startswith(tuple(beginnings))]
    for name in names:
        if not all(torch.equal(first[name], other[name]) for other in all_states):
            raise ValueError(f"{name} differs: these models do not share {layers} bottom layers")
    return names


def trunk_flops(config: Config, sizes: list[int], layers: int) -> int:
    """FLOPs of the bottom layers for all tokens: what a model with them costs more than one without
    them. (The last layer, which is computed at one place of a row, is in both.)"""
    last = config.layer_types[-1:]

    def flops_of(layer_types):
        shape = replace(config, num_hidden_layers=len(layer_types), layer_types=layer_types)
        return flops(shape, sizes, torch.device("cpu"))

    return flops_of(config.layer_types[:layers] + last) - flops_of(last)


# ----------------------------------------------------------------- one generalist: the whole record


def record(model: str, adapter: str, seed: int, rate: float, files: tuple[str, ...] = (),
           pairs: int = PAIRS) -> dict:
    """Train a specialist of each domain above FROZEN layers of `model`, and judge them on the test
    pairs alone and as one model. Where one of them diverges there is nothing to merge, and the
    record says so."""
    names = data_of(model, files)
    about = {
        "model": model,
        "adapter": adapter,
        "seed": seed,
        "part": "merge",
        "data": list(names),
        "sets": version_of_sets("all", names),
        "rate": rate,
        "passes": PASSES[pairs],
        "pairs": pairs,
        "base": version_of(folder_of(model)),
        "torch": torch.__version__,
    }
    experts, choose, tests, prompts = {}, {}, {}, {}
    for domain in data.DOMAINS:
        cell = Cell(model, domain, pairs, adapter=adapter, freeze=FROZEN)
        settings = settings_of(cell, seed, rate, files)
        some = training_pairs(cell, seed, names)
        try:
            experts[domain] = fit(cell, settings, some)
        except train.NotFinite as error:
            return about | {"diverged": f"{domain}: {error}"}
        # what is merged is compared number by number: on one device, in one precision
        experts[domain].model.to("cpu").set_compute_dtype(torch.float32)
        choose[domain] = sets_of(domain, names).choose
        tests[domain] = sets_of(domain, names).test
        prompts[domain] = [pair.prompt for pair in some]
    start = tinyrm.load(folder_of(model))
    tokenizer = data.load_tokenizer(folder_of(model))
    return about | {
        "n": {domain: len(test) for domain, test in tests.items()},
        **merged(start, tokenizer, experts, choose, tests, prompts),
    }


@torch.inference_mode()
def merged(start: ModernBERT, tokenizer: RowTokenizer, experts: dict[str, Fitted],
           choose: dict[str, list[Pair]], tests: dict[str, list[Pair]],
           prompts: dict[str, list[str]]) -> dict:
    """The accuracies of specialists, alone and as one model, in each domain: choose and tests
    {domain: pairs}; prompts {domain: training prompts}. ValueError if a branch on the trunk is not
    its specialist."""
    models = {domain: expert.model for domain, expert in experts.items()}
    trunk_names = same_trunk([start, *models.values()], FROZEN)
    alone = {}
    for domain, expert in experts.items():
        alone[domain] = accuracy(expert.model, expert.prompt_format, tests[domain])

    # the domain is not given: the router takes it from the prompt
    known = {name: prompt_means(start, tokenizer, prompts[name], FROZEN) for name in tests}
    by_prompt = make_router(known, FROZEN)
    router, routed = {}, {}
    for domain, pairs in tests.items():
        texts = [pair.prompt for pair in pairs]
        chosen = nearest(by_prompt, prompt_means(start, tokenizer, texts, FROZEN))
        router[domain] = chosen.count(domain) / len(chosen)
        routed[domain] = routed_accuracy(experts, pairs, chosen)
    return {
        "alone": alone,
        **averages(start, experts, choose, tests),
        "apart": largest_gap(start, experts, tests, FROZEN),
        "router": router,
        "routed": routed,
        "parameters": parameters_of(start, trunk_names, len(experts)),
        "FLOPs a pair": flops_a_pair(start.config, experts, tests, tokenizer, FROZEN),
    }


def averages(start: ModernBERT, experts: dict[str, Fitted], choose: dict[str, list[Pair]],
             tests: dict[str, list[Pair]]) -> dict:
    """One set of weights for all domains:
        "added", "ties"    [[scale, {domain: accuracy on the test}]] at every scale
        "chosen"           {way: [scale, {domain: accuracy on the test}]} at the scale that has the
                           highest mean accuracy on the choosing pairs; the way "each" is "added"
                           with a list of scales, one for each specialist"""
    models = [expert.model for expert in experts.values()]

    def accuracies(model, pairs):
        found = {}
        for domain, expert in experts.items():
            found[domain] = round(accuracy(model, expert.prompt_format, pairs[domain]), 4)
        return found

    def mean_chosen(model):
        return sum(accuracies(model, choose).values()) / len(experts)

    ways = {
        "added": (LAMBDAS, lambda scale: added(start, models, [scale] * len(models))),
        "ties": (TIES_SCALES, lambda scale: ties(start, models, scale)),
    }
    found = {"chosen": {}}
    for way, (scales, make) in ways.items():
        found[way] = [[scale, accuracies(make(scale), tests)] for scale in scales]
        best = best_scale(scales, lambda scale, make=make: mean_chosen(make(scale)))
        on_test = dict(found[way])  # scale -> accuracies
        found["chosen"][way] = [best, on_test[best]]

    equal = [found["chosen"]["added"][0]] * len(models)
    scales = scale_for_each(equal, lambda scales: mean_chosen(added(start, models, scales)))
    found["chosen"]["each"] = [scales, accuracies(added(start, models, scales), tests)]
    return found


def best_scale(scales: Iterable[float], accuracy_at: Callable[[float], float]) -> float:
    """The scale of the highest accuracy; of equal ones the first, which is the smallest."""
    return max(scales, key=accuracy_at)


def scale_for_each(scales: list[float],
                   accuracy_at: Callable[[list[float]], float]) -> list[float]:
    """One pass over the specialists: each in turn takes the scale of LAMBDAS that is best while the
    others keep theirs."""
    for place in range(len(scales)):
        tried = {}
        for scale in LAMBDAS:
            changed = scales.copy()
            changed[place] = scale
            tried[scale] = accuracy_at(changed)
        scales = scales.copy()
        scales[place] = best_scale(tried, tried.get)
    return scales


def largest_gap(start: ModernBERT, experts: dict[str, Fitted], tests: dict[str, list[Pair]],
                layers: int) -> float:
    """The largest difference of a logit between a branch on the shared trunk and its specialist.
    ValueError where they are not the same."""
    largest = 0.0
    for domain, expert in experts.items():
        batch = data.pack(rows_of(expert.prompt_format, tests[domain][:50]))
        words = torch.tensor(expert.prompt_format.label_ids)
        x, layout = trunk(start, batch, layers)
        on_trunk = expert.model.logits(branch(expert.model, x, layout, layers), words)
        h = expert.model(batch.tokens, batch.starts, batch.read_at)
        gap = (on_trunk - expert.model.logits(h, words)).abs().max().item()
        largest = max(largest, gap)
    if largest > 1e-5:
        raise ValueError(f"a branch differs from its specialist by {largest:.1e} in a logit")
    return largest


def routed_accuracy(experts: dict[str, Fitted], pairs: list[Pair], chosen: list[str]) -> float:
    """Accuracy where each pair is judged by the specialist that was chosen for it."""
    right = 0.0
    for name in set(chosen):
        part = [pair for pair, domain in zip(pairs, chosen, strict=True) if domain == name]
        model, prompt_format = experts[name].model, experts[name].prompt_format
        right += accuracy(model, prompt_format, part) * len(part)
    return right / len(pairs)


def parameters_of(start: ModernBERT, trunk_names: list[str], experts: int) -> dict[str, int]:
    """Parameters of so many specialists, apart and on a shared trunk, and of the router."""
    one = sum(p.numel() for p in start.parameters())
    state = start.state_dict()
    shared = sum(state[name].numel() for name in trunk_names)
    return {
        "separate": experts * one,
        "shared trunk": shared + experts * (one - shared),
        "router": (experts + 1) * start.config.hidden_size,  # the means, and the spread
    }


def flops_a_pair(config: Config, experts: dict[str, Fitted | RewardModel],
                 tests: dict[str, list[Pair]], tokenizer: RowTokenizer,
                 layers: int) -> dict[str, float]:
    """FLOPs of judging a pair in both orders, on average: by one specialist, by all of them, and by
    the one that the router chooses, for which the trunk reads the prompt first."""
    sizes, prompts = [], []
    for domain, pairs in tests.items():
        rows = rows_of(experts[domain].prompt_format, pairs)
        sizes.extend(len(row.tokens) for row in rows)
        prompts.extend(pair.prompt for pair in pairs)
    one = flops(config, sizes, torch.device("cpu")) / (len(sizes) / 2)

    prompt_sizes = [len(ids) for ids in tokenize_prompts(tokenizer, prompts)]
    router = trunk_flops(config, prompt_sizes, layers) / len(prompt_sizes)
    return {
        "one specialist": one,
        "all, separate": len(experts) * one,
        "routed": one + router,
    }


# ---------------------------------------------------------------- one folder of one's own runs


class Run(NamedTuple):
    """A finished run of train.py."""

    path: Path
    record: dict  # its run.json
    settings: dict  # its tinyrm.json
    model: ModernBERT

    @property
    def domain(self) -> str:
        return self.settings["domain"]


RUN_SETTINGS = ("data", "domain", "held_out", "limit", "seed", "revision")  # what pairs it had


def read_run(path: Path) -> Run:
    """ValueError for what is no finished run of a specialist."""
    file, folder = path / "run.json", path / "model"
    if not file.is_file():
        raise ValueError(f"{path}: no run.json in it: give the folder of a run of train.py")
    record = read_json(file, RECORD_FIELDS)
    if "accuracy_after" not in (record.get("result") or {}) or not folder.is_dir():
        raise ValueError(f"{path}: this run is not finished: go on with python train.py --resume "
                         f"{path}")
    settings = record.get("settings") or {}
    missing = [name for name in RUN_SETTINGS if name not in settings]
    missing += [name for name in ("fingerprint", "weights") if name not in record]
    if missing:
        raise ValueError(f"{file}: no {', '.join(missing)}: it is of an earlier version of "
                         "train.py, train again")

    check_model(folder)
    if architecture_of(folder) != ENCODER:
        raise ValueError(f"{path} is a causal twin: only encoders are merged")
    shown = read_format(folder / "tinyrm.json")
    if shown.get("domain") not in data.DOMAINS:
        raise ValueError(f"{path} was trained on all domains: give specialists, of one each")
    return Run(path, record, shown, tinyrm.load(folder, shown.get("head")))


def check_alike(runs: list[Run]):
    """ValueError for runs that cannot share a trunk and a way to show a pair."""
    first, seen = runs[0], {}
    for run in runs:
        if run.domain in seen:
            raise ValueError(f"{seen[run.domain]} and {run.path} are both for {run.domain}: give "
                             "one run of each domain")
        seen[run.domain] = run.path

        if run.record["weights"] != first.record["weights"]:
            raise ValueError(f"{first.path} and {run.path} began with different models: "
                             f"{first.record.get('base')} and {run.record.get('base')}")
        for name in ("template", "context", "head"):
            ours, theirs = first.settings.get(name), run.settings.get(name)
            if ours != theirs:
                raise ValueError(f"{first.path} and {run.path} differ in --{name}: {ours} and "
                                 f"{theirs}")
        tokenizers = {sha256_of(one.path / "model/tokenizer.json") for one in (first, run)}
        if len(tokenizers) > 1 or run.model.config != first.model.config:
            raise ValueError(f"{first.path} and {run.path} have different tokenizers or "
                             "configurations: train them on one model")


def pairs_of(run: Run) -> PairSets:
    """The pairs of a run, which its run.json names. ValueError if they are others by now."""
    values = [run.record["settings"][name] for name in RUN_SETTINGS]
    try:
        pairs = load_sets(*values)
    except ValueError as error:
        raise ValueError(f"{run.path}: its pairs do not open: {error}") from None
    if fingerprint(pairs.train + pairs.held_out + pairs.test) != run.record["fingerprint"]:
        raise ValueError(f"{run.path}: its pairs changed since then: train again")
    return pairs


def router_of(runs: list[Run], pairs: dict[str, PairSets], layers: int) -> Router:
    """The router on the trunk of these runs, of their own training pairs."""
    model = runs[0].model
    tokenizer = data.load_tokenizer(runs[0].path / "model")
    machine = pick_device("auto", "auto")
    model.set_compute_dtype(machine.dtype).to(machine.device)
    known = {}
    for domain, sets in pairs.items():
        prompts = [pair.prompt for pair in sets.train]
        known[domain] = prompt_means(model, tokenizer, prompts, layers)
    model.to("cpu")
    return make_router(known, layers)


def merge_runs(paths: list[Path], out: Path):
    """Write the folder `out`, whole or not at all, and say what it is worth."""
    if os.path.lexists(out):
        raise ValueError(f"{out} is already there: give another folder")
    check_can_be_made(out)
    runs = [read_run(path) for path in paths]
    check_alike(runs)
    models = {run.domain: run.model for run in runs}
    equal = generalist.equal_tensors(list(models.values()))
    layers = generalist.shared_layers(runs[0].model, equal)
    if layers == 0:
        raise ValueError("no layer is equal in all of these runs: train with --freeze 1 or more")

    pairs = {run.domain: pairs_of(run) for run in runs}
    router = router_of(runs, pairs, layers)
    settings = {run.domain: run.settings for run in runs}
    with replacing(out) as temporary:
        generalist.save(temporary, models, settings, router, runs[0].path / "model")
    print(f"{out}: the embeddings and {layers} of {len(runs[0].model.model.layers)} layers of "
          f"{len(runs)} specialists are there once")
    tests = {domain: sets.test for domain, sets in pairs.items()}
    show_worth(runs, out, tests, layers)


def share_right(judge: RewardModel, pairs: list[Pair], domain: str) -> float:
    """Share of the pairs that are judged right, both orders averaged; equal is half right. Their
    domain is given as `domain`; "" gives none."""
    items = [Item(pair.prompt, (pair.chosen, pair.rejected), domain=domain) for pair in pairs]
    right = 0.0
    for judged in judge.judge(items):
        x = judged.log_odds
        if x[0, 1] > x[1, 0]:
            right += 1
        elif x[0, 1] == x[1, 0]:
            right += 0.5
    return right / len(pairs)


def show_worth(runs: list[Run], out: Path, tests: dict[str, list[Pair]], layers: int):
    """What the merged folder costs, and how right it is, next to its specialists."""
    whole = RewardModel.load(out)
    separate = sum(p.numel() for run in runs for p in run.model.parameters())
    share = whole.about["parameters"] / separate
    print(f"parameters: {whole.about['parameters']:,}, {share:.0%} of the {separate:,} of "
          f"{len(runs)} models")

    print("\naccuracy on the test pairs of each run\n")
    print("| domain | pairs | its specialist | merged, domain given | merged, by the prompt "
          "| sent to its own |")
    print("|---" * 6 + "|")
    for run in runs:
        pairs = tests[run.domain]
        if not pairs:
            print(f"| {run.domain} | 0 | - | - | - | - |")
            continue
        alone = share_right(RewardModel.load(run.path), pairs, run.domain)
        given = share_right(whole, pairs, run.domain)
        by_prompt = share_right(whole, pairs, "")
        unnamed = [Item(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
        sent = whole.domains_of(unnamed).count(run.domain) / len(pairs)
        print(f"| {run.domain} | {len(pairs):,} | {alone:.3f} | {given:.3f} | {by_prompt:.3f} "
              f"| {sent:.3f} |")

    if all(tests.values()):
        tokenizer = whole.prompt_format.tokenizer
        cost = flops_a_pair(whole.model.config, whole.specialists, tests, tokenizer, layers)
        print("\nMFLOPs a pair: " + ", ".join(f"{way} {n / 1e6:,.1f}" for way, n in cost.items()))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path,
                        help="finished runs of train.py, one for each domain: two or more")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write: a new one")
    flags = parser.parse_args(argv)
    if len(flags.runs) < 2:
        raise ValueError("give two runs or more, and a new folder behind them")
    merge_runs(flags.runs, flags.out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
