"""One fine-tuning run of an experiment: a cell of the grid, a seed, a learning rate -> a record.

It trains as train.py does (its batches, its step, its judging), without a run folder, since a cell
is measured and not kept. A cell says everything that differs between two runs; what a seed draws
again is which training pairs are taken, their order, and fresh weights (DoRA's A, a [CLS] layer).
The words of the test are the same for all seeds.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import dora  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from data import Pair, PromptFormat  # noqa: E402
from evaluate import GPU_TOKENS, RewardModel, judge_all  # noqa: E402
from experiments.causal import CausalModernBERT, CausalPromptFormat  # noqa: E402
from experiments.sight import SightFormat, SightModernBERT  # noqa: E402
from infra.benchmarks import load_eval_set  # noqa: E402
from infra.hub import NANOS, ROOT, fetch_model, version_of  # noqa: E402
from infra.machine import pick_device, pick_micro_tokens  # noqa: E402
from infra.pairs import fingerprint, split  # noqa: E402
from infra.report import report  # noqa: E402
from infra.sources import load_sets  # noqa: E402
from tinyrm import ModernBERT, read_json  # noqa: E402

RECIPE = "recipe"  # as train.py's recipe for the model and the domain has it

# Passes over the training pairs, by their number: fewer pairs make fewer steps a pass, so they get
# more passes. They are the same for all methods.
PASSES = {30: 24.0, 100: 12.0, 300: 8.0, 1000: 4.0}


class Cell(NamedTuple):
    """A way to train, and what is trained. Two cells of a contrast differ in what it is about."""

    model: str  # a name as train.py takes it; "random" is nano, "random-X" X with fresh weights
    domain: str  # or "all"
    pairs: int  # training pairs of each domain; 0: all there are, with the recipe's passes
    head: str = "cloze"
    context: str = "pair"
    template: str = "option"
    adapter: str = "dora"
    freeze: int | str = RECIPE
    question: str = ""  # "": that of the domain
    labels: str = ""  # two words that name the options, a space between; "": the template's
    sight: str = "all"  # what may be seen in training: see experiments/sight.py
    # in judging; "": as in training
    judged_question: str = ""
    judged_template: str = ""
    judged_sight: str = ""


# Fields that came when there were records already: one without the field has its default.
LATER_FIELDS = ("question", "labels", "sight",
                "judged_question", "judged_template", "judged_sight")


class Architecture(NamedTuple):
    """The classes that build a model and its rows."""

    model_class: type[ModernBERT]
    format_class: type[PromptFormat]


ENCODER = Architecture(ModernBERT, PromptFormat)
CAUSAL = Architecture(CausalModernBERT, CausalPromptFormat)
SEEING = Architecture(SightModernBERT, SightFormat)


def architecture_of(folder: Path, cell: Cell | None = None) -> Architecture:
    """What the config.json of a model folder asks for, and a cell that forbids to see something.
    ValueError if it cannot be forbidden there."""
    model_type = read_json(Path(folder) / "config.json").get("model_type")
    if model_type == CAUSAL.model_class.config_class.model_type:
        if cell is not None and forbids(cell):
            raise ValueError(f"{folder}: a decoder, in which nothing more can be forbidden to see: "
                             "leave out the group sight")
        return CAUSAL
    if cell is not None and forbids(cell):
        if cell.context != "pair" or cell.template != "option":
            raise ValueError("what may be seen can be forbidden in context pair and template "
                             "option alone")
        return SEEING
    return ENCODER


def forbids(cell: Cell) -> bool:
    """Whether something may not be seen, in training or in judging."""
    return cell.sight != "all" or cell.judged_sight not in ("", "all")


# ------------------------------------------------------------------------------- a cell's settings


def folder_of(model: str) -> Path:
    """Where a model's weights are. An encoder of nano's that is not shipped lies in runs/, where
    nano/make.py puts it. ValueError, with the command, if it is not there."""
    if model == "random":
        return fetch_model("nano")
    if model.startswith("random-"):
        return fetch_model(model.removeprefix("random-"))
    made = ROOT / "runs" / model
    if model.startswith("nano") and model not in NANOS:
        if not (made / "model.safetensors").is_file():
            raise ValueError(f"{made} is not there: make it with {how_to_make(model)}")
        return made
    return fetch_model(model)


def how_to_make(model: str) -> str:
    """The command that makes an encoder that is not shipped."""
    command = "python nano/make.py"
    if model == "nano-text":
        return f"{command} --instruct nano --no-tasks --out runs/nano-text"
    if model == "nano-cls":
        return f"{command} --instruct nano --head cls --out runs/nano-cls"
    # nano of another width: nano-64, and what comes of it: nano-instruct-64, nano-causal-64
    kind, _, width = model.rpartition("-")
    if not width.isdigit() or kind not in ("nano", "nano-instruct", "nano-causal"):
        raise ValueError(f"no model {model}: nano's are {', '.join(NANOS)}, nano-text, nano-cls, "
                         "and nano-, nano-instruct- or nano-causal- with a width")
    if kind == "nano":
        return f"{command} --width {width} --out runs/{model}"
    plain, flag = f"nano-{width}", ""
    if kind == "nano-causal":
        plain, flag = f"nano-{width}-causal", " --causal"
    return (f"{command} --width {width}{flag} --out runs/{plain}, then "
            f"{command} --instruct runs/{plain} --out runs/{model}")


def is_random(model: str) -> bool:
    """Whether it is the shape of a model with fresh weights."""
    return model == "random" or model.startswith("random-")


@lru_cache
def is_nano(model: str) -> bool:
    """Whether it is of the micro-world, whose pairs come with the checkout: by its name, or a
    folder with a vocabulary as small."""
    if model == "random" or model.startswith("nano"):
        return True
    config = Path(model) / "config.json"
    return config.is_file() and read_json(config).get("vocab_size", 0) < train.NANO_VOCABULARY


def domains_of(cell: Cell) -> list[str]:
    if cell.domain == "all":
        return list(data.DOMAINS)
    return [cell.domain]


def data_of(model: str, files: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What --data of train.py would be: your files, else the model's own pairs."""
    if files:
        return files
    if is_nano(model):
        return ("nano",)
    return ("hub",)


def settings_of(cell: Cell, seed: int, rate: float, files: tuple[str, ...] = ()) -> train.Settings:
    """train.py's settings for a run of the cell. What the cell leaves to the recipe, and the
    batch, are those of the recipe for the model's shape and the domain."""
    folder = folder_of(cell.model)
    config = tinyrm.read_config(folder, architecture_of(folder).model_class.config_class)
    chosen = dict(train.recipe_for(config, cell.domain).settings)
    if cell.adapter != RECIPE:
        # The recipe's frozen layers were meant for its own adapter: of large, training in full
        # stands above 26 in chat, DoRA above 15 in reasoning.
        if chosen["adapter"] == "full" and cell.adapter != "full":
            chosen["freeze"] = train.recipe_for(config, "reasoning").settings["freeze"]
        if chosen["adapter"] != "full" and cell.adapter == "full":
            chosen["freeze"] = 0
        chosen["adapter"] = cell.adapter
    if cell.freeze != RECIPE:
        chosen["freeze"] = cell.freeze
    if rate:
        chosen["lr"] = rate
    if cell.pairs:
        chosen["epochs"] = PASSES[cell.pairs]

    return train.Settings(
        domain=cell.domain, model=cell.model, data=data_of(cell.model, files), head=cell.head,
        context=cell.context, template=cell.template, question=cell.question, seed=seed, **chosen)


# ---------------------------------------------------------------------------------------- its pairs


class Sets(NamedTuple):
    """The pairs of a domain. No prompt (on nano: no word) is in two of them."""

    train: list[Pair]
    choose: list[Pair]  # rates are chosen by these
    test: list[Pair]


CHOOSE, TEST = 200, 1000  # of a model's own data, held out for choosing and for the test


@lru_cache(maxsize=8)
def sets_of(domain: str, names: tuple[str, ...]) -> Sets:
    """nano's three sets, or a split of other pairs, which no seed changes."""
    if names == ("nano",):
        sets = load_sets(names, domain, held_out=-1, limit=0, seed=0)
        return Sets(sets.train, sets.held_out, sets.test)
    try:
        sets = load_sets(names, domain, held_out=CHOOSE + TEST, limit=0, seed=0)
    except ValueError as error:
        raise ValueError(f"{error} (experiments keep {CHOOSE} pairs to choose by and {TEST:,} to "
                         "test, of each domain)") from None
    # what is held out (sets.test) is split once more: CHOOSE to choose by, the rest is the test
    again = split(sets.test, CHOOSE, seed=1)
    choose = [sets.test[i] for i in again.held_out]
    test = [sets.test[i] for i in again.train]
    return Sets(sets.train, choose, test)


def version_of_sets(domain: str, names: tuple[str, ...]) -> str:
    """What identifies the pairs of a domain, or of "all": a file may change under its name."""
    domains = list(data.DOMAINS) if domain == "all" else [domain]
    pairs = []
    for one in domains:
        for part in sets_of(one, names):
            pairs.extend(part)
    return fingerprint(pairs)


def training_pairs(cell: Cell, seed: int, names: tuple[str, ...]) -> list[Pair]:
    """So many pairs of each of the cell's domains, drawn by the seed: a specialist and the
    generalist of a seed have the same ones of a domain. ValueError if there are not so many."""
    pairs = []
    for domain in domains_of(cell):
        everything = sets_of(domain, names).train
        if len(everything) < cell.pairs:
            raise ValueError(f"{domain}: {len(everything)} training pairs in {' '.join(names)}, "
                             f"fewer than {cell.pairs}: give more with --data")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(everything), generator=generator).tolist()
        if cell.pairs:
            drawn = drawn[:cell.pairs]
        pairs.extend(everything[i] for i in drawn)
    return pairs


# ------------------------------------------------------------------------------------------ one run


class Fitted(NamedTuple):
    model: ModernBERT
    prompt_format: PromptFormat
    steps: int
    tokens: int
    losses: list[float]  # of each step


Watch = Callable[[int, int, ModernBERT], None]  # steps made, steps in all, the model as it is


def fit(cell: Cell, settings: train.Settings, pairs: list[Pair],
        watch: Watch | None = None) -> Fitted:
    """Train on these pairs: train.py's recipe, without a run folder. `watch` is called before the
    first step and after each. The template is the cell's, with its label words. train.NotFinite
    where the run diverges."""
    machine = pick_device(settings.device, settings.dtype)
    folder = folder_of(cell.model)
    classes = architecture_of(folder, cell)
    prompt_format = classes.format_class(
        data.load_tokenizer(folder), template=template_of(cell), context=settings.context,
        head=settings.head, domain=settings.domain, max_length=settings.max_length,
        question=settings.question)

    model = tinyrm.load(folder, settings.head, settings.seed, classes.model_class)
    if is_random(cell.model):
        model.init_weights(settings.seed)
    if forbids(cell):
        model.sight = cell.sight
    model.to(machine.device).set_compute_dtype(machine.dtype)
    trained = dora.adapt(model, settings.adapter, settings.rank, settings.alpha, settings.freeze,
                         settings.seed)
    optimizer = train.make_optimizer(trained, settings.lr)
    budget = pick_micro_tokens(settings.micro_tokens, model, machine).tokens

    pairs_a_step = settings.batch_size // 2
    steps = max(1, round(settings.epochs * math.ceil(len(pairs) / pairs_a_step)))
    tokens, losses = 0, []
    if watch is not None:
        watch(0, steps, model)
    for step, some in enumerate(
            train.step_pairs(pairs, pairs_a_step, range(steps), settings.seed)):
        batches = train.make_batches(some, prompt_format, budget, machine.device).batches
        rate = settings.lr * train.schedule(step, steps)
        result = train.train_step(model, optimizer, prompt_format, batches, rate)
        tokens += result.tokens
        losses.append(result.loss)
        if watch is not None:
            watch(step + 1, steps, model)
    dora.merge(model)
    return Fitted(model.eval(), prompt_format, steps, tokens, losses)


def template_of(cell: Cell) -> str:
    """The cell's template. One with the cell's own label words is added to data.TEMPLATES: its
    options have these words for names, and one of them is found at [MASK]."""
    if not cell.labels:
        return cell.template
    usual = data.TEMPLATES[cell.template, cell.context]
    # they stand behind a word, as those of `option` do, so they bring their own space
    label_words = tuple(f" {word}" for word in cell.labels.split())

    renamed = {}
    for old, new in zip(usual.label_words, label_words, strict=True):
        renamed[f" Option{old}:"] = f" Option{new}:"
    pieces = []
    for piece in usual.pieces:
        pieces.append(tuple(renamed.get(part, part) for part in piece))

    name = f"{cell.template}, {cell.labels}"
    data.TEMPLATES[name, cell.context] = usual._replace(label_words=label_words,
                                                        pieces=tuple(pieces))
    return name


def to_judge(fitted: Fitted, cell: Cell) -> Fitted:
    """The same weights with the prompt and the sight that the cell has in judging."""
    changes = {}
    if cell.judged_question:
        changes["question"] = cell.judged_question
    if cell.judged_template:
        changes["template"] = cell.judged_template
    if forbids(cell):
        fitted.model.sight = cell.judged_sight if cell.judged_sight else cell.sight
    return fitted._replace(prompt_format=replace(fitted.prompt_format, **changes))


def judged(model: ModernBERT, prompt_format: PromptFormat,
           pairs: list[Pair]) -> train.JudgingResult:
    """How well pairs are judged, and how many they are: a pair whose responses are the same after
    they were cut is left out. ValueError if all are."""
    device = next(model.parameters()).device
    # one thread of a processor is slower with more tokens in a batch (nano: 1.3x at 8,192)
    budget = 2048 if device.type == "cpu" else GPU_TOKENS
    batches = train.make_batches(pairs, prompt_format, budget, device).batches
    result = train.judge_pairs(model, prompt_format, batches, device)
    if result.accuracy is None:
        raise ValueError(f"{len(pairs):,} pairs, in each of which both responses are the same "
                         "once they are cut: nothing to judge")
    return result


def accuracy(model: ModernBERT, prompt_format: PromptFormat, pairs: list[Pair]) -> float:
    """Share of the pairs that are judged right, both orders averaged; equal is half right."""
    return judged(model, prompt_format, pairs).accuracy


def benchmark_scores(fitted: Fitted, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """{benchmark or file: {line of its report: score}}"""
    device = next(fitted.model.parameters()).device
    judge = RewardModel(fitted.model, fitted.prompt_format, device)
    scores = {}
    for name in names:
        eval_set = load_eval_set(name)
        summary, _ = report(eval_set.measure, judge_all(judge, eval_set))
        scores[name] = {line["name"]: round(line["score"], 4) for line in summary["lines"]}
    return scores


def run(cell: Cell, seed: int, rate: float, part: str = "test", files: tuple[str, ...] = (),
        everywhere: bool = False, benchmarks: tuple[str, ...] = ()) -> dict:
    """Train, judge on a part ("choose" or "test") of the cell's domains (with `everywhere` of
    all domains) and on benchmarks, and return the record."""
    settings = settings_of(cell, seed, rate, files)
    pairs = training_pairs(cell, seed, settings.data)
    record = {
        **cell._asdict(),
        "seed": seed,
        "part": part,
        "data": list(settings.data),
        "sets": version_of_sets(cell.domain, settings.data),
        "rate": settings.lr,
        "passes": settings.epochs,
        "base": version_of(folder_of(cell.model)),
        "torch": torch.__version__,
    }
    began = time.perf_counter()
    try:
        fitted = fit(cell, settings, pairs)
    except train.NotFinite as error:
        # In choosing nothing is right: this rate will not be chosen. On the test such a run knows
        # nothing, which is right by chance in half of the pairs. The grid goes on.
        right = 0.0 if part == "choose" else 0.5
        nothing = dict.fromkeys(data.DOMAINS if everywhere else domains_of(cell), right)
        return record | {"accuracy": nothing, "steps": 0, "tokens": 0, "diverged": str(error)}
    seconds = time.perf_counter() - began
    fitted = to_judge(fitted, cell)

    accuracies, n = {}, {}
    for domain in data.DOMAINS if everywhere else domains_of(cell):
        judged_by = getattr(sets_of(domain, settings.data), part)
        found = judged(fitted.model, fitted.prompt_format, judged_by)
        accuracies[domain] = round(found.accuracy, 4)
        n[domain] = found.pairs
    return record | {
        "accuracy": accuracies,
        "n": n,
        "benchmarks": benchmark_scores(fitted, benchmarks),
        "steps": fitted.steps,
        "tokens": fitted.tokens,
        "first loss": round(fitted.losses[0], 3),
        "last loss": round(fitted.losses[-1], 3),
        "seconds": round(seconds, 1),
    }
