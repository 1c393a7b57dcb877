"""What the experiments measure on models, and what may be said of a few seeds.

    record_of   a finished run of train.py: accuracies, and what training changed inside
    merged      specialists in one model: averaged, added, or as branches on their shared trunk
    interval, verdict, power_law     a mean, a difference, an exponent, each with its interval

`run.py` calls these after each run; the notebooks 05 and 06 draw what they returned.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import evaluate  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from evaluate import RewardModel  # noqa: E402

NANO = tinyrm.HERE / "nano"
LAMBDAS = (0.25, 1 / 3, 0.5, 0.75, 1.0)  # of three specialists, 1/3 is the average of their weights
# Student's t for a 95 % interval of n = 2, 3, ... 10 seeds; for more seeds the last, a little wide
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# -------------------------------------------------------------------------- a few seeds, a trend


def interval(values):
    """(mean, half width of its 95 % interval over seeds, n): t s / sqrt(n), nan for one seed. It
    speaks of seeds alone: the pairs of the test are the same for all."""
    values = np.array([*values], float)
    n = len(values)
    half = T[min(n, len(T) + 1) - 2] * values.std(ddof=1) / n**0.5 if n > 1 else math.nan
    return (float(values.mean()) if n else math.nan), float(half), n


def verdict(a, b):
    """(mean difference, half width, n, a word on the claim that a is above b), for two
    {seed: value}. Differences are taken within a seed, which has the same pairs in the same order
    for both."""
    mean, half, n = interval(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))
    if n < 2:
        return mean, half, n, "one seed, no verdict" if n else "not run yet"
    word = "shows" if mean > half else "is turned round" if mean < -half else "does not show"
    return mean, half, n, word


def power_law(x, y, floor=0.0, draws=1000):
    """y = floor + a x^-b, by least squares of the logarithms -> {"a", "b", "low", "high"}, the last
    two a 95 % bootstrap interval of b. Drawn anew are the points (seeds) at each x; where each x
    has one point there is nothing to draw, and they are nan."""
    x, y = np.array(x, float), np.array(y, float) - floor
    places = [np.flatnonzero(x == value) for value in np.unique(x)]
    if len(places) < 2 or (y <= 0).any() or (x <= 0).any():
        raise ValueError("a power law needs two different x above 0, and all y above the floor")

    def fit(some):
        slope, level = np.polyfit(np.log(x[some]), np.log(y[some]), 1)
        return float(np.exp(level)), float(-slope)

    a, b = fit(slice(None))
    random, low, high = np.random.default_rng(0), math.nan, math.nan
    if max(map(len, places)) > 1:
        drawn = [fit(np.concatenate([random.choice(p, len(p)) for p in places]))[1]
                 for _ in range(draws)]
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return {"a": a, "b": b, "low": low, "high": high}


# ------------------------------------------------------------------------------ accuracy, insides


def accuracy(rm, pairs, **shown):
    """Share of pairs judged right, orders averaged, ties half; `shown` changes the format, such as
    whose question is asked (domain) or the protocol (context)."""
    rm = RewardModel(rm.model, replace(rm.fmt, **shown), rm.device)
    p = rm.compare(*([getattr(pair, key) for pair in pairs] for key in
                     ("prompt", "chosen", "rejected", "domain")), drop_long=True)
    return sum((x > 0.5) + 0.5 * (x == 0.5) for x in p) / max(1, len(p))


def test_pairs(domain):
    return [*data.Pairs([NANO / "pairs" / f"{domain}.test.jsonl"])]


def states(model, batch):
    """The residual stream of all tokens after each layer: a list of (T, D)."""
    out = []
    hooks = [layer.register_forward_hook(lambda module, x, y: out.append(y))
             for layer in model.model.layers]
    with torch.inference_mode():
        model(batch.tokens, batch.starts)
    for hook in hooks:
        hook.remove()
    return out


def cka(x, y):
    """Linear CKA (arXiv 1905.00414) of two sets of hidden states of the same tokens, (T, D): 1 if
    one is a turned and scaled copy of the other."""
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def changes(base, model, fmt, pairs, device="cpu"):
    """What training changed, as small lists:

    matrices  [name, mean relative change of the rows' length, mean 1 - cos of their direction]
              of each matrix of the layers and the head that changed (DoRA, section 3)
    cka       of the residual stream of all tokens after each layer, before and after
    depth     accuracy of the head on the residual stream at the read position after each layer, one
              order; empty in context "single", where a row alone has no verdict
    """
    old, new = base.state_dict(), model.state_dict()
    out = {"matrices": []}
    for name, w in new.items():
        layer = ".layers." in name or name.endswith("head.dense.weight")
        if layer and w.ndim == 2 and not torch.equal(old[name], w):
            before, after = old[name].norm(dim=1), w.norm(dim=1)
            turn = (1 - F.cosine_similarity(w, old[name])).mean().item()
            length = ((after - before).abs() / before).mean().item()
            out["matrices"].append([name, round(length, 5), round(turn, 5)])
    rows = [row for two in data.cloze_rows(pairs, fmt, True)[0] if two for row in two]
    batch = data.pack(rows, device)
    now = states(model, batch)
    out["cka"] = [round(cka(x, y), 4) for x, y in zip(states(base, batch), now, strict=True)]
    words = torch.tensor(fmt.words, device=device)
    with torch.inference_mode():
        said = [model.logits(model.model.final_norm(x[batch.read]), words).argmax(1) for x in now]
    out["depth"] = [round((z == batch.labels).double().mean().item(), 4) for z in said
                    ] if fmt.context == "pair" else []
    return out | {"rows": len(rows)}


def record_of(folder, base):
    """The record of a finished run of train.py: `folder`, which began with the weights in `base`.
    On nano it is judged on the test pairs of all domains, elsewhere on its held-out pairs."""
    run = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))
    s, result = train.Settings(**run["settings"]), run["result"]
    pairs, chosen, test, held, _ = train.find_pairs(s, train.commits_of(s))
    rm = RewardModel.load(folder, device=s.device)
    own = [test[i] for i in held]
    tests = {s.domain: own}
    if s.data == ["nano"]:
        tests = {domain: test_pairs(domain) for domain in data.DOMAINS}
    asked = {name: name for name in tests} if s.domain != "all" else dict.fromkeys(tests, "all")
    record = {"test": {name: accuracy(rm, some, domain=asked[name])
                       for name, some in tests.items()},
              "n": {name: len(some) for name, some in tests.items()},
              "train": accuracy(rm, [pairs[i] for i in chosen[:400]]),
              "before": result["accuracy_before"], "seconds": result["seconds"],
              "trainable": run["trainable"], "parameters": run["parameters"],
              "pairs": run["train_pairs"], "torch": run["versions"]["torch"]}
    if s.head == "cloze" and s.template == "option" and s.domain != "all":
        other = "single" if s.context == "pair" else "pair"
        record["other context"] = accuracy(rm, own, context=other)
    few = [pair for pair in own[:100] if len(pair.prompt + pair.chosen + pair.rejected) < 8000]
    compute = next(m.compute for m in rm.model.modules() if hasattr(m, "compute"))
    began = tinyrm.load(base, s.head).dtype_(compute).to(rm.device)
    return record | changes(began, rm.model, rm.fmt, few, rm.device)


# ----------------------------------------------------------------------------------- one generalist


def added(base, experts, scale):
    """Task arithmetic (arXiv 2212.04089): base + scale * the sum of what the experts changed."""
    states = [expert.state_dict() for expert in experts]
    model = tinyrm.ModernBERT(base.config, base.head_kind).eval()
    model.load_state_dict({name: w + scale * sum(state[name] - w for state in states)
                           for name, w in base.state_dict().items()})  # fmt: skip
    return model


def trunk(model, batch, layers):
    """(the residual stream after the embeddings and the bottom `layers`, (T, D); the plan that the
    layers above need): run once for all branches."""
    plan = tinyrm.make_plan(model.config, batch.tokens, batch.starts, batch.read, torch.float32)
    x = model.model.embeddings.norm(model.model.embeddings.tok_embeddings(batch.tokens))
    for layer in model.model.layers[:layers]:
        x = layer(x, plan)
    return x, plan


def branch(model, x, plan, layers):
    """A specialist's layers above the trunk, and its final norm, at the read positions: (B, D)."""
    for i, layer in enumerate(model.model.layers[layers:], layers):
        x = layer(x, plan, i == len(model.model.layers) - 1)
    return model.model.final_norm(x)


def same_trunk(models, layers):
    """The names of the tensors that the trunk has; they must be equal in all models."""
    bottom = ("model.embeddings.", *(f"model.layers.{i}." for i in range(layers)))
    first, *others = [model.state_dict() for model in models]
    names = [name for name in first if name.startswith(bottom)]
    for name in names:
        if not all(torch.equal(first[name], other[name]) for other in others):
            raise ValueError(f"{name} differs: these models do not share {layers} bottom layers")
    return names


def prompt_means(model, tokenizer, prompts, layers):
    """The mean of the trunk's output over the tokens of each prompt alone: without the template,
    whose question would give the domain away. (N, D)"""
    out = []
    for at in range(0, len(prompts), 500):
        ids = [e.ids for e in tokenizer.encode_batch(prompts[at:at + 500],
                                                     add_special_tokens=False)]
        batch = data.pack([data.Row(row, 0, 0, 0) for row in ids])
        x, _ = trunk(model, batch, layers)
        out += [part.mean(0) for part in x.split([len(row) for row in ids])]
    return torch.stack(out)


def routes(known, unknown):
    """The nearest class mean, each number in units of its own spread: {domain: (N, D)} of training
    prompts, (M, D) -> the M domains. A router of a few hundred numbers, and no training loop."""
    spread = torch.cat([*known.values()]).std(0) + 1e-6
    means = torch.stack([x.mean(0) for x in known.values()])
    names = [*known]
    return [names[i] for i in torch.cdist(unknown / spread, means / spread).argmin(1).tolist()]


def trunk_flops(config, sizes, layers):
    """FLOPs of the bottom layers for all tokens: what a model with them costs more than one without
    them (the last layer, which is cut short, stays in both)."""
    def of(kinds):
        shape = replace(config, num_hidden_layers=len(kinds), layer_types=kinds)
        return evaluate.flops(shape, sizes, torch.device("cpu"))

    kinds = config.layer_types
    return of((*kinds[:layers], kinds[-1])) - of(kinds[-1:])


@torch.inference_mode()
def merged(folders, layers, tests, prompts, base=NANO):
    """Specialists as one model. folders {domain: folder}, all tuned in full above `layers` frozen
    bottom layers of `base`; tests {domain: pairs}; prompts {domain: training prompts}."""
    start, tokenizer = tinyrm.load(base), data.load_tokenizer(base)
    rms = {domain: RewardModel.load(folder, device="cpu") for domain, folder in folders.items()}
    experts = {domain: rm.model for domain, rm in rms.items()}
    formats = {domain: rm.fmt for domain, rm in rms.items()}
    names = same_trunk([start, *experts.values()], layers)
    record = {"alone": {d: accuracy(rms[d], tests[d]) for d in tests}, "added": []}
    for scale in LAMBDAS:
        model = added(start, experts.values(), scale)
        record["added"].append([scale, {d: accuracy(RewardModel(model, formats[d]), tests[d])
                                        for d in tests}])  # fmt: skip
    # given the domain, the branch on the shared trunk is that specialist
    apart = 0.0
    for d, model in experts.items():
        batch = data.pack([row for two in data.cloze_rows(tests[d][:50], formats[d])[0] if two
                           for row in two])  # fmt: skip
        words = torch.tensor(formats[d].words)
        mine = model.logits(branch(model, *trunk(start, batch, layers), layers), words)
        apart = max(apart, (mine - model.logits(model(*batch[:3]), words)).abs().max().item())
    if apart > 1e-5:
        raise ValueError(f"a branch differs from its specialist by {apart:.1e} in a logit")
    # not given: chosen by the prompt
    known = {d: prompt_means(start, tokenizer, prompts[d], layers) for d in tests}
    right, routed = {}, {}
    for d, pairs in tests.items():
        to = routes(known, prompt_means(start, tokenizer, [p.prompt for p in pairs], layers))
        right[d] = to.count(d) / len(to)
        parts = {name: [p for p, way in zip(pairs, to, strict=True) if way == name]
                 for name in set(to)}  # fmt: skip
        routed[d] = sum(accuracy(rms[name], part, domain=name) * len(part)
                        for name, part in parts.items()) / len(pairs)  # fmt: skip
    one = sum(p.numel() for p in start.parameters())
    shared = sum(start.state_dict()[name].numel() for name in names)
    width, k = start.config.hidden_size, len(experts)
    rows = [row for d in tests for two in data.cloze_rows(tests[d], formats[d])[0] if two
            for row in two]  # fmt: skip
    n, sizes = len(rows) / 2, [len(row.tokens) for row in rows]
    asked = [len(e.ids) for e in tokenizer.encode_batch([p.prompt for d in tests for p in tests[d]],
                                                        add_special_tokens=False)]
    whole = evaluate.flops(start.config, sizes, torch.device("cpu")) / n
    return record | {
        "apart": apart, "router": right, "routed": routed, "n": {d: len(tests[d]) for d in tests},
        "parameters": {"separate": k * one, "shared trunk": shared + k * (one - shared),
                       "router": (k + 1) * width},
        "FLOPs a pair": {"one specialist": whole, "all, separate": k * whole, "routed": whole +
                         trunk_flops(start.config, asked, layers) / len(asked)}}
