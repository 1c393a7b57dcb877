"""The recipe table and the loop: `python train.py --domain reasoning`.

    recipe (model size, domain) -> pairs, packed cloze batches -> AdamW on what dora.py lets train
    -> runs/NAME/: model/ and adapter/ to use, run.json and metrics.jsonl to read, state/ to resume

One step sees `batch_size` rows, that is half as many pairs, each in both orders. Its gradient is
the mean over these rows however they are cut into micro-batches, or dealt over GPUs.
"""

import argparse
import atexit
import json
import math
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path

from tqdm import tqdm


class Later:
    """A module that is imported when first used: --help and a wrong flag do not wait for torch."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, key):
        return getattr(import_module(self.name), key)


data, dora, evaluate, tinyrm = map(Later, ("data", "dora", "evaluate", "tinyrm"))
safetensors, torch = Later("safetensors"), Later("torch")
HUB = ["hub"], ["hub:author"]  # values of --data
TINY = 1e-12  # more than 0


def flag(default, text, choices="", least=-math.inf):
    metadata = {"help": text, "choices": choices.split() or None, "least": least}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Each field is a flag; a flag that is given beats the recipe,
    the recipe beats the default, and the outcome is printed first and stored with the run."""

    domain: str = flag("", "what to be a specialist in, or all", "reasoning safety chat all")
    model: str = flag("auto", "nano, nano-causal, base, large, ettin-17m ... ettin-1b, "
                              "ettin-decoder-17m ..., a folder or a Hub name; "
                              "auto: large with CUDA, else nano")
    data: tuple[str, ...] = flag(("auto",), "nano, hub, hub:author or files of pairs; auto: hub "
                                            "with CUDA, else nano")
    head: str = flag("cloze", "a word at [MASK], or a fresh layer on [CLS]", "cloze cls")
    context: str = flag("pair", "both in one row, or each alone (Bradley-Terry)", "pair single")
    template: str = flag("option", "the paper's text, or the author's layout", "option choice")
    adapter: str = flag("dora", "what trains above the frozen layers", "dora lora full")
    rank: int = flag(128, "rank of the adapter", least=1)
    alpha: float = flag(8.0, "the adapter's scale is alpha / rank", least=TINY)
    freeze: int = flag(0, "layers frozen from the bottom, the embeddings with them", least=0)
    lr: float = flag(1e-4, "peak learning rate", least=TINY)
    epochs: float = flag(1.0, "passes over the training pairs", least=TINY)
    batch_size: int = flag(256, "rows a step: twice the pairs", least=2)
    max_length: int = flag(3600, "tokens of a row; longer ones are cut and counted", least=16)
    max_steps: int = flag(0, "stop the schedule after so many steps; 0: by epochs", least=0)
    limit: int = flag(0, "train on so many pairs, drawn by the seed; 0: all", least=0)
    held_out: float = flag(0.02, "pairs kept back to judge by: a share if below 1, else a number",
                           least=0)
    micro_tokens: int = flag(0, "tokens at once on the device; 0: by its memory. Changes memory "
                                "and speed, not the result", least=0)
    checkpoint_layers: bool = flag(False, "recompute layers in the backward pass: less memory")
    device: str = flag("auto", "auto, cpu, cuda")
    dtype: str = flag("auto", "compute in auto, fp32 or bf16; weights stay fp32")
    seed: int = flag(17, "of data order, split and fresh weights (17: the author's)")
    save_minutes: float = flag(10.0, "minutes between checkpoints", least=0)
    out: str = flag("", "run folder; default runs/MODEL-DOMAIN-...")
    revision: tuple[str, ...] = flag((), "COMMIT of the model on the Hub, OWNER/REPO=COMMIT of a "
                                         "data set; of others the newest, which is pinned")


# Peak rates, frozen layers and adapters of the large and base models: the author's best runs
# (configs no_sweep_* and best_* of the public fork, see README). Three things differ on purpose:
# his main.py never applied the freezing that the configs name, took rank 128 whatever they said,
# and adapted the tied decoder too; here layers do freeze and the decoder is left alone. Alpha was
# never set there, which is PEFT's 8: the scale 8/128 is kept, since it goes with these rates.
DORA = dict(adapter="dora", rank=128, alpha=8.0)
NANO = dict(adapter="dora", rank=16, alpha=16.0, freeze=1, lr=5e-3, batch_size=32, max_length=512)
RECIPES = {
    "large": {
        "reasoning": dict(DORA, freeze=15, lr=1.327475e-4),
        "safety": dict(adapter="full", freeze=27, lr=9.525447e-5),
        "chat": dict(adapter="full", freeze=26, lr=7.865216e-5),
        # no best run of the generalist was published: the reasoning one, half of its pairs
        "all": dict(DORA, freeze=15, lr=1.327475e-4)},
    "base": {
        "reasoning": dict(DORA, freeze=19, lr=2.138168e-5),
        "safety": dict(DORA, freeze=12, lr=1.477675e-5),
        "chat": dict(adapter="full", freeze=2, lr=7.64178e-5),
        "all": dict(DORA, freeze=19, lr=2.138168e-5)},
    "nano": {  # ours, measured in nano/README.md
        "reasoning": dict(NANO, epochs=16.0), "safety": dict(NANO, epochs=8.0),
        "chat": dict(NANO, epochs=16.0), "all": dict(NANO, epochs=12.0)}}


def recipe_of(config, domain):
    """(name, recipe) for a model's shape. A shape that the paper does not have takes base's rates
    and freezes the lower half."""
    layers = config.num_hidden_layers
    known = {(1024, 28): "large", (768, 22): "base"}.get((config.hidden_size, layers))
    if known or config.vocab_size < 10_000:
        return known or "nano", RECIPES[known or "nano"][domain]
    return "base, lower half frozen (ours, untuned)", dict(DORA, freeze=layers // 2, lr=1e-4)


# -------------------------------------------------------------------------------- flags and plans


def option(name):
    return "--" + name.replace("_", "-")


def parse(argv):
    """(what was said on the command line, --resume, --dry-run)."""
    p = argparse.ArgumentParser(
        description="Train a tiny reward model.", allow_abbrev=False,
        epilog="Defaults shown are those beneath the recipe of the model and domain.")
    for f in fields(Settings):
        kind = {"type": type(f.default), "choices": f.metadata["choices"]}
        kind = {"action": "store_true"} if f.default is False else kind
        kind = {"nargs": "+"} if isinstance(f.default, tuple) else kind
        text = f.metadata["help"] + (f" ({f.default})" if f.default else "")
        p.add_argument(option(f.name), default=argparse.SUPPRESS, help=text, **kind)
    p.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, as it was begun")
    p.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    said = vars(p.parse_args(argv))
    resume, dry = said.pop("resume"), said.pop("dry_run")
    if resume and said.keys() - {"device"}:
        flags = ", ".join(map(option, said))
        raise ValueError(f"--resume goes on as {resume} was begun: leave out {flags}")
    if not resume and "domain" not in said:
        raise ValueError("--domain is missing: give reasoning, safety, chat or all")
    return said, resume, dry


def resolve(said, cuda):
    """The Settings of a new run, and a line that says where they come from."""
    s = Settings(**said)
    model = s.model if s.model != "auto" else "large" if cuda else "nano"
    pairs = [*s.data]
    if pairs == ["auto"]:
        pairs = ["nano" if model in ("nano", "nano-causal") else "hub"]
    if pairs not in (["nano"], *HUB) and any(
            name.partition(":")[0] in ("auto", "nano", "hub") for name in pairs):
        raise ValueError(f"--data {' '.join(pairs)}: give nano, hub, hub:author or files of pairs")
    took = "" if (model, pairs) == (s.model, [*s.data]) else (
        f" (auto: {'CUDA is' if cuda else 'no CUDA'} here; the paper's run is --model large --data "
        "hub, a laptop's --model nano --data nano)")
    said = said | {"model": model, "data": pairs}
    folder = tinyrm.fetch(model, commits_of(Settings(**said)).get(""))
    name, recipe = recipe_of(tinyrm.read_config(folder), s.domain)
    s = replace(s, **recipe | said)
    parts = (s.adapter, recipe["adapter"]), (s.head, "cloze"), (s.context, "pair")
    stem = "-".join([Path(model).name, s.domain, *(p for p, usual in parts if p != usual)])
    free = (f"runs/{stem}-s{s.seed}{end}" for end in chain([""], map("-{}".format, count(2))))
    s = replace(s, out=s.out or next(out for out in free if not Path(out).exists()))
    check(s)
    return s, f"model {model}, data {' '.join(pairs)}, recipe {name}{took}"


def check(s):
    """Values that argparse lets through and nothing can be done with."""
    for f in fields(s):
        value, least = getattr(s, f.name), f.metadata["least"]
        if least > -math.inf and not least <= value < math.inf:
            need = "more than 0" if least == TINY else f"{least} or more"
            raise ValueError(f"{option(f.name)} {value}: give {need}")
    if s.batch_size % 2:
        raise ValueError(f"--batch-size {s.batch_size}: rows come in pairs, give an even number")
    if Path(s.out).exists():
        raise ValueError(f"--out {s.out} is already there: give another, or --resume {s.out}")


def commits_of(s):
    """{repository, "" for the model: commit} as --revision says, or as was pinned."""
    commits = dict(word.rpartition("=")[::2] for word in s.revision)
    repos = data.hub_repos(s.domain, s.data == ["hub:author"]) if s.data in HUB else []
    if (len(commits) < len(s.revision) or commits.keys() - {"", *repos}
            or any("" in word.split("=") for word in s.revision)):
        raise ValueError(f"--revision {' '.join(s.revision)}: give COMMIT for the model, and OWNER/"
                         f"REPO=COMMIT for data sets in use, here {', '.join(repos) or 'none'}")
    return commits


def find_pairs(s, commits):
    """(training pairs, their indices, pairs to judge by, their indices, a line on the source).

    nano brings its own test pairs, about words that no training pair contains. Any other source is
    split by prompt; RewardBench is never used to choose anything. For `commits` see hub_pairs.
    """
    if s.data == ["nano"]:
        domains = data.DOMAINS if s.domain == "all" else [s.domain]
        pairs, test = (data.Pairs([tinyrm.HERE / f"nano/pairs/{domain}.{part}.jsonl"
                                        for domain in domains]) for part in ("train", "test"))
        train, held = range(len(pairs)), range(len(test))
        source = "nano/pairs, judged on its test pairs, whose words no training pair has"
    else:
        files, source = s.data, " ".join(s.data)
        if s.data in HUB:
            files, source = data.hub_pairs(s.domain, s.data == ["hub:author"], commits)
        pairs = test = data.Pairs(files, s.domain)
        train, held = data.split(pairs, s.held_out, s.seed)
        source += f"; {s.held_out:g} held out, by prompt"
    if s.limit:
        train = sorted(train[i] for i in shuffled(len(train), s.seed)[:s.limit])
    return pairs, train, test, held, source


def shuffled(n, seed):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def step_indices(s, train, step):
    """The pairs of a step: its share of an endless stream of shuffled epochs. From the seed and
    the step alone, so a resumed run continues where it was without saying so anywhere."""
    size, n = s.batch_size // 2, len(train)
    places = range(step * size, (step + 1) * size)  # in the stream
    epochs = range(places[0] // n, places[-1] // n + 1)
    order = {epoch: shuffled(n, s.seed * 10**6 + epoch) for epoch in epochs}
    return [train[order[at // n][at % n]] for at in places]


def schedule(step, steps):
    """Share of the peak rate: up over the first 6 % of steps, then straight down to 2 %."""
    warm = max(1, round(0.06 * steps))
    if step < warm:
        return (step + 1) / warm
    return 1 - 0.98 * (step - warm) / max(1, steps - 1 - warm)


def memory(s, config, compute, parameters, trainable):
    """({what training keeps: bytes}, bytes that each token of a micro-batch takes beside them).

    In bf16 each layer is kept a second time, in fp32 the W' of those with an adapter. For the
    backward pass there are by layer the residual stream twice in float32, and in the compute
    precision the inputs and outputs of the four products and q, k, v once more after RoPE, 11 D +
    3 F; if layers are recomputed, the stream of each layer, and one layer. The layer that the
    backward pass is at takes about twice these in float32 (`tests/benchmark.py --memory`).
    """
    width, ffn, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    half, unfrozen = compute.itemsize < 4, max(1, layers - s.freeze)
    copied = layers if half else (s.adapter != "full") * (layers - s.freeze)
    fixed = {"weights": 4 * parameters, "gradients and moments": 12 * trainable,
             f"copies in {str(compute)[6:]}":
             copied * (4 * width**2 + 3 * width * ffn) * compute.itemsize}
    one = 8 * width + compute.itemsize * (11 * width + 3 * ffn)
    kept = one + 4 * width * unfrozen if s.checkpoint_layers else one * unfrozen
    return fixed, kept + 8 * (11 * width + 3 * ffn)


def losses(model, fmt, batch):
    """(sum of the loss over the rows, how many rows chose right), both as tensors.

    pair, cloze: cross-entropy of the label word over the whole vocabulary at [MASK] (section 2).
    pair, cls:   cross-entropy of the two classes (section 3.2).
    single:      Bradley-Terry, -log sigmoid(s_chosen - s_rejected), s the log-odds of the two label
                 words; once for each of the two rows, so that all losses are means over rows.
    """
    h, F = model(batch.tokens, batch.starts, batch.read), torch.nn.functional
    words = torch.tensor(fmt.words if fmt.head == "cloze" else (0, 1), device=h.device)
    if fmt.context == "single":
        z = model.logits(h, words).float()
        score = (z[:, 0] - z[:, 1]).unflatten(0, (-1, 2))  # rows 2i and 2i+1: chosen, rejected
        margin = score[:, 0] - score[:, 1]
        return -2 * F.logsigmoid(margin).sum(), 2 * (margin > 0).sum()
    z = model.logits(h).float()
    right = z[:, words].argmax(1) == batch.labels
    return F.cross_entropy(z, words[batch.labels], reduction="sum"), right.sum()


# --------------------------------------------------------------------------------- the run folder


@contextmanager
def replacing(path):
    """A path beside to write a file or folder to, which then takes the place of `path`: whole or
    not at all."""
    beside = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
    try:
        yield beside
        shutil.rmtree(path, ignore_errors=True)  # a file is replaced as it is
        os.replace(beside, path)
    finally:  # half of it would take the room that is short
        shutil.rmtree(beside, ignore_errors=True)
        beside.unlink(missing_ok=True)


def write_json(path, value):
    with replacing(path) as beside:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        beside.write_text(text, encoding="utf-8")


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_state(out, step, model, optimizer):
    """What resuming needs beyond the settings: trained weights and Adam's moments. The previous
    state is removed once this one is whole."""
    state = {f"{kind}/{name}": value.detach().cpu().contiguous()
             for name, p in trained(model).items()
             for kind, value in {"weight": p, **optimizer.state[p]}.items()}
    path = out / "state" / f"step-{step:06d}.safetensors"
    with replacing(path) as beside:
        safetensors.torch.save_file(state, beside)
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()


def load_state(out, model, optimizer):
    """Put the newest whole state in place and return its step; 0 without one."""
    for folder in (out / "state").glob("step-??????"):
        raise ValueError(f"{folder} is of an earlier version: resume with that, or begin a new run")
    found = sorted((out / "state").glob("step-??????.safetensors"))
    if not found:
        return 0
    state, named = safetensors.torch.load_file(found[-1]), trained(model)
    if {key.partition("/")[2] for key in state} != named.keys():
        raise ValueError(f"{found[-1]} is the state of another model: its tensors do not fit")
    for name, p in named.items():
        p.detach().copy_(state[f"weight/{name}"])
        moments = {kind: state[f"{kind}/{name}"].to(p.device) for kind in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": state[f"step/{name}"], **moments}
    return int(found[-1].stem[5:])


# ---------------------------------------------------------------------------------------- the run


class Run:
    """What the loop holds: settings `s`, the model, its optimizer, the pairs, and the judge."""

    def __init__(self, said, resume, rank, world):
        self.rank, self.world, self.began = rank, world, time.time()
        self.record = read_record(resume) if resume else {}
        said = self.record.get("settings", {}) | said
        self.device, dtype, reason = tinyrm.pick_device(said.get("device", "auto"),
                                                        said.get("dtype", "auto"))
        with rank_0_first(rank):  # what comes from the Hub is fetched and converted once
            s, how = (Settings(**said), f"resuming {resume}") if resume else (
                resolve(said, self.device.type == "cuda"))
            self.out = Path(resume or s.out)
            self.say(f"{how}\n{reason}" + (f", {world} processes" if world > 1 else ""))
            self.say(" ".join(f"{name}={value}" for name, value in asdict(s).items()))
            self.say("reading pairs and weights")
            self.commits = commits = commits_of(s)
            self.folder = tinyrm.fetch(s.model, commits.get(""))
            if self.folder.parent.name == "snapshots":  # of the Hub's cache
                commits[""] = self.folder.name
            elif "" in commits:
                raise ValueError(f"--revision {commits['']}: --model {s.model} is a folder, which "
                                 "has no commits: leave it out, or name a repository of the Hub")
            source = self.open_pairs(s)
            # pinned: resuming takes the very same, also when the Hub has moved on
            self.s = s = replace(s, revision=[f"{repo}={commit}".lstrip("=")
                                              for repo, commit in commits.items()])
            if commits:
                self.say(f"pinned: --revision {' '.join(s.revision)}")
        self.base = tinyrm.NAMES.get(s.model, s.model) if "" in commits else s.model
        self.build(dtype)
        self.record = self.record or {
            "settings": asdict(s), "command": " ".join(sys.argv), "device": reason,
            "source": source, "steps": self.steps, "train_pairs": len(self.train),
            "fingerprint": self.pairs.fingerprint,
            "trainable": self.trainable, "parameters": self.parameters,
            "versions": {name: version(name) for name in
                         ("torch", "tokenizers", "safetensors", "huggingface_hub")},
            "revisions": {"model": self.base + (f"@{commits['']}" if "" in commits else ""),
                          **{repo: commit for repo, commit in commits.items() if repo}},
            "dropped": {}}
        if self.record["fingerprint"] != self.pairs.fingerprint:
            raise ValueError(f"--resume {resume}: its pairs changed since then; begin a new run")

    def build(self, dtype):
        """The model, what trains of it, the optimizer, and how much fits into a micro-batch."""
        s = self.s
        self.model = model = tinyrm.load(self.folder, s.head, s.seed).to(self.device).dtype_(dtype)
        dora.adapt(model, s.adapter, s.rank, s.alpha, s.freeze, s.seed)
        model.checkpoint = s.checkpoint_layers
        self.rm = evaluate.RewardModel(model, self.fmt, self.device)
        self.params = list(trained(model).values())
        # AdamW decays by rate * weight_decay; decoupled from the rate this is 1e-5 a step at the
        # peak, following the schedule only (the author's optimizer does the same)
        groups = [dict(params=[p for p in self.params if (p.ndim > 1) == decays],
                       weight_decay=1e-5 / s.lr if decays else 0.0) for decays in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, 0.98), eps=1e-6)
        steps = max(1, round(s.epochs * len(self.train) / (s.batch_size // 2)))
        self.steps = min(steps, s.max_steps or steps)
        self.parameters, self.trainable = (sum(p.numel() for p in some)
                                           for some in (model.parameters(), self.params))
        self.fixed, self.kept = memory(s, model.config, dtype, self.parameters, self.trainable)
        if s.micro_tokens:
            self.budget, why = s.micro_tokens, "asked for"
        elif self.device.type == "cpu":
            self.budget, why = 4096, "a processor is no faster with more"
        else:
            free = torch.cuda.mem_get_info(self.device)[0]
            self.budget = max(2048, min(int(0.6 * free / self.kept), 131_072))
            why = f"0.6 of {free / 2**30:.0f} GiB free"
        self.say(f"{self.steps} steps; micro-batches of {self.budget:,} tokens ({why})")

    def say(self, text):
        if self.rank == 0:
            print(text, flush=True)

    def open_pairs(self, s):
        """The pairs and how they are shown; returns a line on their source."""
        causal = tinyrm.read_config(self.folder).causal
        self.fmt = data.Format(data.load_tokenizer(self.folder), s.template, s.context, s.head,
                               s.domain, s.max_length, causal)
        self.pairs, self.train, self.test, self.held, source = find_pairs(s, self.commits)
        self.say(f"data: {source}: {len(self.train):,} pairs to train on, "
                 f"{len(self.held):,} to judge by")
        # one odd row of a public set is dropped and counted; in a file of one's own it is an error
        self.drop_long = s.data in HUB
        for pairs, chosen in ((self.pairs, self.train), (self.test, self.held)):
            for pair in map(pairs.__getitem__, [] if self.drop_long else chosen):
                if len(pair.prompt.encode()) > s.max_length:  # a token is a byte or more
                    data.cloze_rows([pair], self.fmt)
        return source

    def plan(self):
        """--dry-run: what the run would do, and on what the estimates rest."""
        s, c, told = self.s, self.model.config, self.record
        sample = [self.pairs[i] for i in self.train[::max(1, len(self.train) // 500)]]
        both, drops = data.cloze_rows(sample, self.fmt, drop_long=True)
        sizes = [sum(len(row.tokens) for row in two) for two in both if two]
        pairs = self.steps * s.batch_size // 2
        tokens = pairs * sum(sizes) / max(1, len(sizes))
        unfrozen = (c.num_hidden_layers - s.freeze) * (2 if s.adapter == "full" else 1.4)
        weights = 4 * c.hidden_size**2 + 3 * c.hidden_size * c.intermediate_size  # of a layer
        flops = 2 * tokens * weights * (c.num_hidden_layers + unfrozen)
        at_once = min(self.budget, tokens / self.steps / self.world)
        parts = {**self.fixed,
                 f"the backward pass of {at_once:,.0f} tokens": self.kept * at_once}
        detail = ", ".join(f"{n / 2**30:.1f} {what}" for what, n in parts.items())
        self.say(f"plan: {pairs:,} pairs, {2 * pairs:,} rows, about {tokens:,.0f} tokens (mean of "
                 f"{len(sizes)} pairs; dropped of them: {dict(drops)}); {self.steps} steps\n"
                 f"      {told['trainable']:,} of {told['parameters']:,} parameters train\n"
                 f"      about {flops:.1e} FLOPs (products with weights: forward in all layers, "
                 "backward above the frozen ones)\n"
                 f"      about {sum(parts.values()) / 2**30:.1f} GiB in each process, without "
                 f"torch itself ({detail})")

    def loop(self, stop):
        """All steps that are left; returns False if a signal ended it early."""
        step = load_state(self.out, self.model, self.optimizer)
        if step:
            self.say(f"going on after step {step}")
        else:
            self.say(f"judging {len(self.held):,} pairs before training")
            self.record["result"] = {"accuracy_before": self.accuracy(), "n": len(self.held)}
        if self.rank == 0:
            write_json(self.out / "run.json", self.record)
            metrics = self.out / "metrics.jsonl"  # a killed run may have left lines beyond `step`
            lines = metrics.read_text("utf-8").splitlines(True) if metrics.exists() else []
            metrics.write_text("".join(lines[:step]), "utf-8")
        checks = {round(self.steps * q / 4) for q in (1, 2, 3)} - {0, self.steps}
        seen, saved = self.record["dropped"], time.time()
        quiet = self.rank != 0 or not sys.stderr.isatty()
        bar = tqdm(total=self.steps, initial=step, unit="step", disable=quiet)
        with bar, ThreadPoolExecutor(1) as ahead:
            ready = ahead.submit(self.prepare, step)
            while step < self.steps:
                began = time.time()
                batches, drops = ready.result()
                if step + 1 < self.steps:
                    ready = ahead.submit(self.prepare, step + 1)  # while the device works
                line, ended = self.step(step, batches, stop)
                step, line["seconds"] = step + 1, time.time() - began
                for reason, number in drops.items():
                    seen[reason] = seen.get(reason, 0) + number
                if step in checks:
                    line["held_out"] = self.accuracy()
                if self.rank == 0:
                    self.log(bar, line)
                if ended or time.time() - saved > 60 * self.s.save_minutes:
                    self.save(step)
                    saved = time.time()
                if ended:
                    return False
        return True

    def prepare(self, step):
        """The micro-batches of this rank for a step, (batch, the pairs in it), and what was
        dropped. Ranks deal the pairs by the length of their texts: each tokenizes only its own."""
        pairs = [self.pairs[i] for i in step_indices(self.s, self.train, step)]
        if self.world > 1:
            sizes = [len(p.prompt) + len(p.chosen) + len(p.rejected) + 1 for p in pairs]
            mine = data.deal(sizes, sum(sizes), self.world)[self.rank]
            pairs = [pairs[i] for part in mine for i in part]
        both, drops = data.cloze_rows(pairs, self.fmt, self.drop_long)
        kept = [(pair, two) for pair, two in zip(pairs, both, strict=True) if two]
        lengths = [sum(len(row.tokens) for row in two) for _, two in kept]
        batches = []
        for part in data.deal(lengths, self.budget)[0] if kept else []:
            part.sort(key=lambda i: lengths[i])  # rows of equal length attend in one call
            rows = [row for i in part for row in kept[i][1]]
            batches.append((data.pack(rows, self.device), [kept[i][0] for i in part]))
        cut = sum(row.cut > 0 for _, two in kept for row in two)
        return batches, drops | ({"rows cut to max_length": cut} if cut else {})

    def step(self, step, batches, stop):
        """One optimizer step -> (its line of metrics.jsonl, whether any rank was told to stop)."""
        rate = self.s.lr * schedule(step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for p in self.params:
            p.grad = torch.zeros_like(p)
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        sums[4] = len(stop)
        for batch, _ in batches:
            rows, tokens = len(batch.read), len(batch.tokens)
            try:
                loss, right = losses(self.model, self.fmt, batch)
                loss.backward()
            except torch.OutOfMemoryError:
                raise ValueError(f"out of GPU memory with {tokens} tokens at once: lower "
                                 f"--micro-tokens (say {tokens // 2}) or give --checkpoint-layers"
                                 ) from None
            sums[:2] += torch.stack([loss.detach(), right])
            sums[2:4] += sums.new_tensor([rows, tokens])
        # the sums over the ranks, once a step; the mean is over the rows that were not dropped
        for tensor in (sums, *(p.grad for p in self.params)):
            together("all_reduce", tensor, out=self.out)
        loss, right, rows, tokens, ended = sums.tolist()
        for p in self.params:
            p.grad.div_(max(rows, 1))
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            where = "; ".join(p.where or p.prompt[:40] for _, pairs in batches for p in pairs)
            raise ValueError(f"loss {loss} with gradient norm {norm:.3g} at step {step + 1}, rate "
                             f"{rate:.3g}: lower --lr; the rows were {where}")
        self.optimizer.step()
        line = {"step": step + 1, "loss": loss / max(rows, 1), "accuracy": right / max(rows, 1),
                "lr": rate, "gradient_norm": norm, "rows": int(rows), "tokens": int(tokens)}
        return line, ended > 0

    def accuracy(self):
        """On the held-out pairs, orders averaged; a tie is half right. Each rank its share."""
        mine = [self.test[i] for i in self.held[self.rank::self.world]]
        # the pairs of `all` keep their domain, whose question is then asked
        texts = [[getattr(pair, name) for pair in mine] for name in
                 ("prompt", "chosen", "rejected", "domain")]
        p = self.rm.compare(*texts, self.drop_long) if mine else []
        right = sum((x > 0.5) + 0.5 * (x == 0.5) for x in p)
        sums = torch.tensor([right, len(p)], dtype=torch.float64, device=self.device)
        together("all_reduce", sums, out=self.out)
        return (sums[0] / sums[1]).item()  # nan without pairs

    def log(self, bar, line):
        line["peak_bytes"] = tinyrm.peak_bytes(self.device)
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        text = (f"loss {line['loss']:.3f}  accuracy {line['accuracy']:.3f}  "
                f"{line['tokens'] / line['seconds']:,.0f} tokens/s  "
                f"{line['peak_bytes'] / 2**30:.1f} GiB")
        if "held_out" in line:
            text += f"  held-out {line['held_out']:.3f}"
        bar.update()
        bar.set_postfix_str(text)
        done, every = line["step"], max(1, self.steps // 10)
        if bar.disable and (done % every == 0 or done == self.steps or "held_out" in line):
            left = line["seconds"] * (self.steps - done)
            self.say(f"step {done}/{self.steps}  {text}  {left:.0f} s left")

    def save(self, step):
        if self.rank == 0:
            save_state(self.out, step, self.model, self.optimizer)
            write_json(self.out / "run.json", self.record)

    def finish(self):
        self.save(self.steps)
        self.say("judging and saving")
        result = self.record["result"]
        result["accuracy_after"] = after = self.accuracy()
        if self.rank:
            return
        lines = (self.out / "metrics.jsonl").read_text("utf-8").splitlines()
        result["seconds"] = round(sum(json.loads(line)["seconds"] for line in lines), 1)
        if self.s.adapter != "full":
            self.store("adapter", lambda folder: dora.save_adapter(self.model, folder, self.base))
            dora.merge(self.model)
        self.store("model", lambda folder: tinyrm.save(self.model, folder))
        write_json(self.out / "run.json", self.record)
        if self.record["dropped"]:
            self.say(f"dropped or cut, by reason: {self.record['dropped']}")
        self.say(f"held-out accuracy {result['accuracy_before']:.3f} -> {after:.3f} on "
                 f"{result['n']} pairs; {result['seconds']:.0f} s of training, "
                 f"{time.time() - self.began:.0f} s in all\nsaved {self.out}/model"
                 f"{'' if self.s.adapter == 'full' else ' and adapter'}; judge with: "
                 f"python evaluate.py {self.out} FILE.jsonl")

    def store(self, name, save):
        """Fill the folder `name` with weights, tokenizer, card, and tinyrm.json, which says how a
        pair has to be shown to this model."""
        with replacing(self.out / name) as beside:
            save(beside)
            for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                if (self.folder / file).exists():
                    shutil.copyfile(self.folder / file, beside / file)
            (beside / "README.md").write_text(card(self), "utf-8")
            keys = "template", "context", "head", "domain", "max_length"
            write_json(beside / "tinyrm.json", {key: getattr(self.fmt, key) for key in keys})


def card(run):
    """The model card, which the Hub shows."""
    s, fmt, result = run.s, run.fmt, run.record["result"]
    kind, task = (("SequenceClassification", "text-classification") if s.head == "cls" else
                  ("CausalLM", "text-generation") if fmt.causal else ("MaskedLM", "fill-mask"))
    words = "two classes" if s.head == "cls" else " and ".join(
        f"`{fmt.tokenizer.decode([word])}`" for word in fmt.words)
    shown = "two responses" if s.context == "pair" else "one response at a time"
    return f"""---
{f"base_model: {run.base}" if "" in run.commits else "# trained from a local folder"}
library_name: transformers
pipeline_tag: {task}
tags: [reward-model, tiny-reward-models, modernbert]
---
# {run.out.name}

A tiny reward model (arXiv 2507.09973) for {s.domain}: it reads a prompt and {shown} and says which
is better. Trained with tinyrm from {run.record["revisions"]["model"]} on {run.record["source"]}.

- held-out accuracy: {result["accuracy_before"]:.3f} before, {result["accuracy_after"]:.3f} after,
  on {result["n"]} pairs
- recipe: {s.adapter}, {s.freeze} layers frozen, peak rate {s.lr:g}, {run.steps} steps of
  {s.batch_size} rows; template `{s.template}`, labels {words}

```python
from evaluate import RewardModel  # from a checkout of tinyrm
rm = RewardModel.load("{run.out.name}")
rm.compare(prompt, a, b)  # the probability that a is better
```
`model/` opens with transformers' `AutoModelFor{kind}.from_pretrained`, `adapter/` (if trained with
one) with peft. Everything that the run depended on stands in `run.json`.
"""


# ----------------------------------------------------------------------- resuming, and processes


def read_record(folder):
    """The run.json of a run that is to go on."""
    try:
        record = json.loads(Path(folder, "run.json").read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ValueError(f"--resume {folder}: no readable run.json in it ({e})") from None
    if "accuracy_after" in record.get("result", {}):
        raise ValueError(f"--resume {folder}: this run is finished; judge it with evaluate.py")
    return record


def join():
    """(rank, number of processes) under torchrun; (0, 1) otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if cuda := torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # two hours: the others wait while rank 0 fetches models and data
        torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))
        # threads of gloo still running at the interpreter's end would abort it
        atexit.register(torch.distributed.destroy_process_group)
    return rank, world


def together(name, *tensors, out=None):
    """What all processes do at once, by its name in torch.distributed; nothing for one alone. When
    one has ended (gloo and nccl raise errors of their own) the others say so in a line."""
    try:
        if torch.distributed.is_initialized():
            getattr(torch.distributed, name)(*tensors)
    except RuntimeError as error:
        go = f", and go on with: torchrun ... train.py --resume {out}" if out else ""
        said = str(error).partition("\n")[0][:120]
        raise ValueError(f"another process ended: see what it said{go} ({said})") from None


@contextmanager
def rank_0_first(rank):
    """The others enter when rank 0 is through."""
    if rank:
        together("barrier")
    yield
    if not rank:
        together("barrier")


def main(argv=None):
    said, resume, dry = parse(argv)
    run, stop = Run(said, resume, *join()), []
    if dry:
        return run.plan()

    def ask(number, frame):
        stop.append(number)
        print("stopping after this step (again: at once)", file=sys.stderr, flush=True)
        signal.signal(number, signal.SIG_DFL)

    usual = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        if run.loop(stop):
            return run.finish()
    except (OSError, safetensors.SafetensorError) as e:
        raise ValueError(f"{run.out}: {e}; if the disk is full, make room and go on with: "
                         f"python train.py --resume {run.out}") from None
    finally:
        for number, handler in usual.items():  # a notebook goes on after this
            signal.signal(number, handler)
    run.say(f"stopped; go on with: python train.py --resume {run.out}")
    sys.exit(128 + stop[0] if stop else 1)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
