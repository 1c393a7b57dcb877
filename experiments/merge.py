"""One generalist out of specialists (the paper's first open question): their changes added up, or
their tops as branches on the trunk that they share.

    record    the specialists of one seed, trained and merged in both ways, with their accuracies

Shapes: N prompts or rows, T tokens of all rows, B rows of a batch, D hidden.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import tinyrm  # noqa: E402
from data import Batch, Pair, Row, RowTokenizer  # noqa: E402
from experiments.fit import (  # noqa: E402
    Cell,
    Fitted,
    accuracy,
    fit,
    folder_of,
    sets_of,
    settings_of,
    training_pairs,
)
from experiments.flops import flops  # noqa: E402
from experiments.measure import rows_of  # noqa: E402
from infra.hub import version_of  # noqa: E402
from tinyrm import Config, ModernBERT, PackedLayout  # noqa: E402

# scales of what specialists changed; with three specialists 1/3 averages their weights. All are
# shown, on the test: whoever wants to take the best one has to choose it on other pairs.
LAMBDAS = (0.25, 1 / 3, 0.5, 0.75, 1.0)
FROZEN = 1  # layers of the trunk

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


def record(model: str, seed: int, rate: float, files: tuple[str, ...] = (),
           pairs: int = 1000) -> dict:
    """Train a specialist of each domain in full above FROZEN layers of `model`, and judge them on
    the test pairs alone and as one model."""
    experts, tests, prompts = {}, {}, {}
    for domain in data.DOMAINS:
        cell = Cell(model, domain, pairs, adapter="full", freeze=FROZEN)
        settings = settings_of(cell, seed, rate, files)
        some = training_pairs(cell, seed, settings.data)
        experts[domain] = fit(cell, settings, some)
        tests[domain] = sets_of(domain, settings.data).test
        prompts[domain] = [pair.prompt for pair in some]
    start = tinyrm.load(folder_of(model))
    tokenizer = data.load_tokenizer(folder_of(model))
    return {
        "model": model,
        "seed": seed,
        "part": "merge",
        "data": list(settings.data),
        "rate": rate,
        "passes": settings.epochs,
        "pairs": pairs,
        "n": {domain: len(test) for domain, test in tests.items()},
        **merged(start, tokenizer, experts, tests, prompts),
        "base": version_of(folder_of(model)),
        "torch": torch.__version__,
    }


@torch.inference_mode()
def merged(start: ModernBERT, tokenizer: RowTokenizer, experts: dict[str, Fitted],
           tests: dict[str, list[Pair]], prompts: dict[str, list[str]]) -> dict:
    """The accuracies of specialists, alone and as one model, in each domain: tests {domain: pairs};
    prompts {domain: training prompts}. ValueError if a branch on the trunk is not its
    specialist."""
    models = {domain: expert.model for domain, expert in experts.items()}
    trunk_names = same_trunk([start, *models.values()], FROZEN)
    alone = {}
    for domain, expert in experts.items():
        alone[domain] = accuracy(expert.model, expert.prompt_format, tests[domain])

    # the domain is not given: it is told from the prompt
    known = {name: prompt_means(start, tokenizer, prompts[name], FROZEN) for name in tests}
    router, routed = {}, {}
    for domain, pairs in tests.items():
        texts = [pair.prompt for pair in pairs]
        chosen = routes(known, prompt_means(start, tokenizer, texts, FROZEN))
        router[domain] = chosen.count(domain) / len(chosen)
        routed[domain] = routed_accuracy(experts, pairs, chosen)
    return {
        "alone": alone,
        "added": accuracies_added(start, experts, tests),
        "apart": largest_gap(start, experts, tests, FROZEN),
        "router": router,
        "routed": routed,
        "parameters": parameters_of(start, trunk_names, len(experts)),
        "FLOPs a pair": flops_a_pair(start.config, experts, tests, tokenizer, FROZEN),
    }


def accuracies_added(start: ModernBERT, experts: dict[str, Fitted],
                     tests: dict[str, list[Pair]]) -> list[list]:
    """[scale, {domain: accuracy}] of the sum of all changes, for each of LAMBDAS."""
    found = []
    for scale in LAMBDAS:
        model = added(start, [expert.model for expert in experts.values()], scale)
        accuracies = {}
        for domain, pairs in tests.items():
            accuracies[domain] = accuracy(model, experts[domain].prompt_format, pairs)
        found.append([scale, accuracies])
    return found


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


def flops_a_pair(config: Config, experts: dict[str, Fitted], tests: dict[str, list[Pair]],
                 tokenizer: RowTokenizer, layers: int) -> dict[str, float]:
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
