"""What the experiments measure on models, and what may be said after a few seeds.

    interval, verdict, power_law   a mean, a difference, an exponent, each with its interval
    record_of                      a finished run of train.py: its accuracies, and what training
                                   changed inside
    merged                         specialists in one model: averaged, added, or as branches on the
                                   trunk that they share

`run.py` calls these after each run; the notebooks 05 and 06 draw what they returned.

Shapes: N prompts or rows, T tokens of all rows, B rows of a batch, D hidden.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import tinyrm  # noqa: E402
from data import Batch, Item, Pair, PromptFormat, Row, RowTokenizer  # noqa: E402
from evaluate import RewardModel  # noqa: E402
from experiments.causal import CausalModernBERT, CausalPromptFormat  # noqa: E402
from experiments.flops import flops  # noqa: E402
from infra.hub import ROOT  # noqa: E402
from infra.pairs import load_pairs  # noqa: E402
from infra.sources import load_sets  # noqa: E402
from tinyrm import Config, ModernBERT, PackedLayout, read_json  # noqa: E402

NANO = ROOT / "nano"
# scales of what specialists changed; of three of them, 1/3 is the average of their weights
LAMBDAS = (0.25, 1 / 3, 0.5, 0.75, 1.0)

# ----------------------------------------------------------------------------- a few seeds, a trend

# Student's t for a 95 % interval, by the number of seeds; above ten that of ten, a little wide.
STUDENT_T = {
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262,
}


class Interval(NamedTuple):
    """A mean over n seeds, and half the width of its 95 % interval; nan where there is none."""

    mean: float
    half: float
    n: int


def interval(values: Iterable[float]) -> Interval:
    """t s / sqrt(n) to both sides of the mean. It speaks of seeds alone: the pairs of the test are
    the same for all."""
    values = np.array(list(values), float)
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, math.nan, 1)
    t = STUDENT_T[min(n, 10)]
    s = values.std(ddof=1)
    return Interval(mean, float(t * s / n**0.5), n)


class Verdict(NamedTuple):
    """The mean difference of two methods, its interval, and a word on the claim that it is
    above 0."""

    mean: float
    half: float
    n: int
    word: str


def verdict(a: dict[int, float], b: dict[int, float]) -> Verdict:
    """Is a above b? Both are {seed: value}. Differences are taken within a seed, which has the same
    pairs in the same order for both."""
    seeds = sorted(a.keys() & b.keys())
    found = interval(a[seed] - b[seed] for seed in seeds)
    if found.n == 0:
        word = "not run yet"
    elif found.n == 1:
        word = "one seed, no verdict"
    elif found.mean > found.half:
        word = "shows"
    elif found.mean < -found.half:
        word = "is turned round"
    else:
        word = "does not show"
    return Verdict(found.mean, found.half, found.n, word)


def power_law(x: Iterable[float], y: Iterable[float], floor: float = 0.0,
              draws: int = 1000) -> dict[str, float]:
    """y = floor + a x^-b, by least squares of the logarithms: {"a", "b", "low", "high"}.

    low and high are a 95 % bootstrap interval of b, for which the points (seeds) at each x are
    drawn anew. Where each x has one point there is nothing to draw, and they are nan. Raises
    ValueError for fewer than two x, and for a y that is not above the floor."""
    x = np.array(x, float)
    above_floor = np.array(y, float) - floor
    groups = [np.flatnonzero(x == value) for value in np.unique(x)]  # indices of the points at an x
    if len(groups) < 2 or (above_floor <= 0).any() or (x <= 0).any():
        raise ValueError("a power law needs two different x above 0, and all y above the floor")

    def fit(points):
        slope, level = np.polyfit(np.log(x[points]), np.log(above_floor[points]), 1)
        return float(np.exp(level)), float(-slope)

    a, b = fit(slice(None))
    law = {"a": a, "b": b, "low": math.nan, "high": math.nan}
    if max(len(group) for group in groups) > 1:
        random = np.random.default_rng(0)
        exponents = []
        for _ in range(draws):
            sample = np.concatenate([random.choice(group, len(group)) for group in groups])
            exponents.append(fit(sample)[1])
        law["low"], law["high"] = np.percentile(exponents, [2.5, 97.5]).tolist()
    return law


# --------------------------------------------------------------------------- models and their pairs


class Architecture(NamedTuple):
    """The classes that build a model and its rows."""

    model_class: type[ModernBERT]
    format_class: type[PromptFormat]


ENCODER = Architecture(ModernBERT, PromptFormat)
CAUSAL = Architecture(CausalModernBERT, CausalPromptFormat)


def architecture_of(folder: Path) -> Architecture:
    """What the config.json of a model folder asks for."""
    model_type = read_json(Path(folder) / "config.json").get("model_type")
    if model_type == CAUSAL.model_class.config_class.model_type:
        return CAUSAL
    return ENCODER


def nano_domains() -> list[str]:
    """The domains that the micro-world has pairs of."""
    return [name for name in data.DOMAINS if (NANO / f"pairs/{name}.test.jsonl").is_file()]


def test_pairs(domain: str) -> list[Pair]:
    """The test pairs of the micro-world, about words that no training pair has."""
    return load_pairs([NANO / f"pairs/{domain}.test.jsonl"], domain)


def accuracy(reward_model: RewardModel, pairs: list[Pair], **changes: str) -> float:
    """Share of the pairs that are judged right, both orders averaged; a tie is half right.

    `changes` are settings of the format that differ from the model's own, such as whose question is
    asked (domain="chat") or the protocol (context="single")."""
    prompt_format = replace(reward_model.prompt_format, **changes)
    judge = RewardModel(reward_model.model, prompt_format, reward_model.device)
    items = [Item(pair.prompt, (pair.chosen, pair.rejected), domain=pair.domain) for pair in pairs]

    right = 0.0
    for judged in judge.judge(items):
        p = judged.win_probabilities()[0, 1]  # that the chosen response is better
        if p > 0.5:
            right += 1
        elif p == 0.5:
            right += 0.5
    return right / max(1, len(pairs))


def rows_of(prompt_format: PromptFormat, pairs: list[Pair]) -> list[Row]:
    """The rows of all pairs, less those of pairs that are dropped."""
    rows = []
    for rows_of_pair in prompt_format.rows(pairs)[0]:
        if rows_of_pair is not None:
            rows.extend(rows_of_pair)
    return rows


# ---------------------------------------------------------------------------- what training changed


def states(model: ModernBERT, batch: Batch) -> list[torch.Tensor]:
    """The residual stream of all tokens after each layer, each (T, D)."""
    collected = []

    def collect(module, inputs, output):
        collected.append(output)

    hooks = [layer.register_forward_hook(collect) for layer in model.model.layers]
    with torch.inference_mode():
        model(batch.tokens, batch.starts)
    for hook in hooks:
        hook.remove()
    return collected


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA (arXiv 1905.00414) of two sets of hidden states of the same tokens, (T, D) each: 1
    if one is a turned and scaled copy of the other."""
    x = x.double() - x.double().mean(0)
    y = y.double() - y.double().mean(0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def changed_matrices(base: ModernBERT, model: ModernBERT) -> list[list]:
    """[name, mean relative change of the rows' length, mean 1 - cos of their direction] of each
    matrix of the layers and the head that changed: DoRA's magnitude and direction (section 3)."""
    before, found = base.state_dict(), []
    for name, w in model.state_dict().items():
        inside = ".layers." in name or name.endswith("head.dense.weight")
        if not inside or w.ndim != 2 or torch.equal(before[name], w):
            continue
        length_before, length = before[name].norm(dim=1), w.norm(dim=1)
        stretch = ((length - length_before).abs() / length_before).mean().item()
        turn = (1 - F.cosine_similarity(w, before[name])).mean().item()
        found.append([name, round(stretch, 5), round(turn, 5)])
    return found


def accuracy_by_depth(model: ModernBERT, prompt_format: PromptFormat, batch: Batch,
                      states_of_layers: list[torch.Tensor]) -> list[float]:
    """Accuracy of the head on the residual stream at the read position after each layer, each order
    by itself. Empty in context "single", where a row alone has no verdict."""
    if prompt_format.context == "single":
        return []
    words = torch.tensor(prompt_format.label_ids, device=batch.tokens.device)
    shares = []
    with torch.inference_mode():
        for x in states_of_layers:
            h = model.model.final_norm(x[batch.read_at])  # (B, D)
            verdicts = model.logits(h, words).argmax(1)  # (B,)
            shares.append((verdicts == batch.labels).double().mean().item())
    return [round(share, 4) for share in shares]


def changes(base: ModernBERT, model: ModernBERT, prompt_format: PromptFormat, pairs: list[Pair],
            device: torch.device | str = "cpu") -> dict:
    """What training changed, as small lists: "matrices" (see changed_matrices), "cka" of the
    residual stream after each layer before and after training, "depth" (see accuracy_by_depth), and
    how many "rows" the last two were measured on."""
    rows = rows_of(prompt_format, pairs)
    batch = data.pack(rows, device)
    before, after = states(base, batch), states(model, batch)
    return {
        "matrices": changed_matrices(base, model),
        "cka": [round(cka(x, y), 4) for x, y in zip(before, after, strict=True)],
        "depth": accuracy_by_depth(model, prompt_format, batch, after),
        "rows": len(rows),
    }


def record_of(folder: Path | str, base: Path) -> dict:
    """The record of a finished run of train.py: `folder`, which began with the weights in `base`.
    On nano it is judged on the test pairs of all domains, elsewhere on its held-out pairs."""
    run = read_json(Path(folder, "run.json"))
    settings, result = run["settings"], run["result"]
    domain = settings["domain"]
    sets = load_sets(settings["data"], domain, settings["held_out"], settings["limit"],
                     settings["seed"], settings["revision"])
    classes = architecture_of(base)
    judge = RewardModel.load(folder, device=settings["device"], model_class=classes.model_class,
                             format_class=classes.format_class)

    # accuracy where it was trained, and elsewhere
    tests = {domain: sets.held_out}
    if list(settings["data"]) == ["nano"]:
        tests = {name: test_pairs(name) for name in nano_domains()}
    accuracies = {}
    for name, pairs in tests.items():
        question = "all" if domain == "all" else name  # all: that of the pair's own domain
        accuracies[name] = accuracy(judge, pairs, domain=question)
    record = {
        "test": accuracies,
        "n": {name: len(pairs) for name, pairs in tests.items()},
        "train": accuracy(judge, sets.train[:400]),
        "before": result["accuracy_before"],
        "seconds": result["seconds"],
        "trainable": run["trainable"],
        "parameters": run["parameters"],
        "pairs": run["train_pairs"],
        "torch": run["versions"]["torch"],
    }

    # the same model asked in the other context, which only this template and head have
    if settings["head"] == "cloze" and settings["template"] == "option" and domain != "all":
        other = "single" if settings["context"] == "pair" else "pair"
        record["other context"] = accuracy(judge, sets.held_out, context=other)

    # inside, on a few pairs that are not long
    few = []
    for pair in sets.held_out[:100]:
        if len(pair.prompt) + len(pair.chosen) + len(pair.rejected) < 8000:
            few.append(pair)
    began = tinyrm.load(base, settings["head"], model_class=classes.model_class)
    began.set_compute_dtype(judge.model.compute_dtype).to(judge.device)
    record.update(changes(began, judge.model, judge.prompt_format, few, judge.device))
    return record


# -------------------------------------------------------------------- one generalist: added changes


def added(base: ModernBERT, experts: Iterable[ModernBERT], scale: float) -> ModernBERT:
    """Task arithmetic (arXiv 2212.04089): base + scale * the sum of what the experts changed."""
    states_of_experts = [expert.state_dict() for expert in experts]
    state = {}
    for name, w in base.state_dict().items():
        change = sum(expert[name] - w for expert in states_of_experts)
        state[name] = w + scale * change
    model = ModernBERT(base.config, base.head_kind).eval()
    model.load_state_dict(state)
    return model


# ---------------------------------------------- one generalist: branches on a trunk that they share


class Trunk(NamedTuple):
    """What all branches begin with."""

    x: torch.Tensor  # (T, D) the residual stream
    layout: PackedLayout  # which the layers above need


def trunk(model: ModernBERT, batch: Batch, layers: int) -> Trunk:
    """The embeddings and the bottom `layers`, run once for all branches."""
    layout = model.layout(batch.tokens, batch.starts, batch.read_at)
    x = model.model.embeddings.tok_embeddings(batch.tokens)  # (T, D)
    x = model.model.embeddings.norm(x)
    for layer in model.model.layers[:layers]:
        x = layer(x, layout)
    return Trunk(x, layout)


def branch(model: ModernBERT, x: torch.Tensor, layout: PackedLayout, layers: int) -> torch.Tensor:
    """A specialist's layers above the trunk, and its final norm, at the read positions: (B, D)."""
    above = model.model.layers[layers:]
    for layer in above[:-1]:
        x = layer(x, layout)
    return model.model.final_norm(above[-1].at_read(x, layout))


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


def tokenize_prompts(tokenizer: RowTokenizer, prompts: list[str]) -> list[list[int]]:
    """The token ids of each prompt alone."""
    encodings = tokenizer.library.encode_batch(prompts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def prompt_means(model: ModernBERT, tokenizer: RowTokenizer, prompts: list[str],
                 layers: int) -> torch.Tensor:
    """The mean of the trunk's output over the tokens of each prompt alone: without the template,
    whose question would give the domain away. (N, D)"""
    means = []
    for first in range(0, len(prompts), 500):
        ids = tokenize_prompts(tokenizer, prompts[first:first + 500])
        batch = data.pack([Row(tokens, 0, 0, 0, {}) for tokens in ids])
        x = trunk(model, batch, layers).x
        for part in x.split([len(tokens) for tokens in ids]):
            means.append(part.mean(0))
    return torch.stack(means)


def routes(known: dict[str, torch.Tensor], unknown: torch.Tensor) -> list[str]:
    """The domain of each of M prompts, (M, D), from training prompts {domain: (N, D)}: that of the
    nearest class mean, each number in units of its own spread. A router of a few hundred numbers,
    without a training loop."""
    spread = torch.cat(list(known.values())).std(0) + 1e-6  # (D,)
    means = torch.stack([x.mean(0) for x in known.values()])
    nearest = torch.cdist(unknown / spread, means / spread).argmin(1)  # (M,)
    names = list(known)
    return [names[i] for i in nearest.tolist()]


def trunk_flops(config: Config, sizes: list[int], layers: int) -> int:
    """FLOPs of the bottom layers for all tokens: what a model with them costs more than one without
    them. (The last layer, which is computed at one place of a row, is in both.)"""
    last = config.layer_types[-1:]

    def flops_of(layer_types):
        shape = replace(config, num_hidden_layers=len(layer_types), layer_types=layer_types)
        return flops(shape, sizes, torch.device("cpu"))

    return flops_of(config.layer_types[:layers] + last) - flops_of(last)


# ----------------------------------------------------------------- one generalist: the whole record


@torch.inference_mode()
def merged(folders: dict[str, Path], layers: int, tests: dict[str, list[Pair]],
           prompts: dict[str, list[str]], base: Path = NANO) -> dict:
    """The record of specialists as one model. folders {domain: folder}, all tuned in full above
    `layers` frozen bottom layers of `base`; tests {domain: pairs}; prompts {domain: training
    prompts}. ValueError if a branch on the trunk is not its specialist."""
    start, tokenizer = tinyrm.load(base), data.load_tokenizer(base)
    judges = {domain: RewardModel.load(folder, device="cpu") for domain, folder in folders.items()}
    experts = {domain: judge.model for domain, judge in judges.items()}
    trunk_names = same_trunk([start, *experts.values()], layers)

    record = {
        "alone": {domain: accuracy(judges[domain], tests[domain]) for domain in tests},
        "added": accuracies_added(start, judges, tests),
        "apart": largest_gap(start, judges, tests, layers),
    }

    # the domain is not given: it is told from the prompt
    known = {name: prompt_means(start, tokenizer, prompts[name], layers) for name in tests}
    record["router"], record["routed"] = {}, {}
    for domain, pairs in tests.items():
        texts = [pair.prompt for pair in pairs]
        chosen = routes(known, prompt_means(start, tokenizer, texts, layers))
        record["router"][domain] = chosen.count(domain) / len(chosen)
        record["routed"][domain] = routed_accuracy(judges, pairs, chosen)

    record["n"] = {domain: len(pairs) for domain, pairs in tests.items()}
    record["parameters"] = parameters_of(start, trunk_names, len(experts))
    record["FLOPs a pair"] = flops_a_pair(start.config, judges, tests, tokenizer, layers)
    return record


def accuracies_added(start: ModernBERT, judges: dict[str, RewardModel],
                     tests: dict[str, list[Pair]]) -> list[list]:
    """[scale, {domain: accuracy}] of the sum of all changes, for each of LAMBDAS."""
    found = []
    for scale in LAMBDAS:
        model = added(start, [judge.model for judge in judges.values()], scale)
        accuracies = {}
        for domain, pairs in tests.items():
            judge = RewardModel(model, judges[domain].prompt_format)
            accuracies[domain] = accuracy(judge, pairs)
        found.append([scale, accuracies])
    return found


def largest_gap(start: ModernBERT, judges: dict[str, RewardModel], tests: dict[str, list[Pair]],
                layers: int) -> float:
    """The largest difference of a logit between a branch on the shared trunk and its specialist.
    ValueError where they are not the same."""
    largest = 0.0
    for domain, judge in judges.items():
        batch = data.pack(rows_of(judge.prompt_format, tests[domain][:50]))
        words = torch.tensor(judge.prompt_format.label_ids)
        x, layout = trunk(start, batch, layers)
        on_trunk = judge.model.logits(branch(judge.model, x, layout, layers), words)
        h = judge.model(batch.tokens, batch.starts, batch.read_at)
        gap = (on_trunk - judge.model.logits(h, words)).abs().max().item()
        largest = max(largest, gap)
    if largest > 1e-5:
        raise ValueError(f"a branch differs from its specialist by {largest:.1e} in a logit")
    return largest


def routed_accuracy(judges: dict[str, RewardModel], pairs: list[Pair], chosen: list[str]) -> float:
    """Accuracy where each pair is judged by the specialist that was chosen for it."""
    right = 0.0
    for name in set(chosen):
        part = [pair for pair, domain in zip(pairs, chosen, strict=True) if domain == name]
        right += accuracy(judges[name], part, domain=name) * len(part)
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


def flops_a_pair(config: Config, judges: dict[str, RewardModel], tests: dict[str, list[Pair]],
                 tokenizer: RowTokenizer, layers: int) -> dict[str, float]:
    """FLOPs of judging a pair in both orders, on average: by one specialist, by all of them, and by
    the one that the router chooses, for which the trunk reads the prompt first."""
    sizes, prompts = [], []
    for domain, pairs in tests.items():
        rows = rows_of(judges[domain].prompt_format, pairs)
        sizes.extend(len(row.tokens) for row in rows)
        prompts.extend(pair.prompt for pair in pairs)
    one = flops(config, sizes, torch.device("cpu")) / (len(sizes) / 2)

    prompt_sizes = [len(ids) for ids in tokenize_prompts(tokenizer, prompts)]
    router = trunk_flops(config, prompt_sizes, layers) / len(prompt_sizes)
    return {
        "one specialist": one,
        "all, separate": len(judges) * one,
        "routed": one + router,
    }
