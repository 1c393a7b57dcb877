"""A generalist out of specialists: what is equal in all of them is stored and held once, and each
item is judged by the specialist of its domain. One that names no domain goes to the specialist
whose training prompts its own is most like, as the layers see them that all specialists share.

    trunk.safetensors              what all have: the embeddings, the bottom layers, other equals
    specialist-DOMAIN.safetensors  the other tensors of each
    specialist-DOMAIN.json         how a pair is shown to it, as in tinyrm.json
    generalist.json                the domains
    config.json, tokenizer.json    as of any model

`python experiments/merge.py RUN RUN RUN OUT` writes such a folder, evaluate.RewardModel.load opens
it.

Shapes: N or M prompts, T tokens of all, D hidden.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

import data
import tinyrm
from data import Batch, Item, Row, RowTokenizer, clean
from infra.checks import read_format, shapes_in
from infra.files import write_json
from tinyrm import Field, ModernBERT, PackedLayout, read_json

FILE = "generalist.json"
TRUNK = "trunk.safetensors"
MODEL_FOLDER = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

# ---------------------------------------------------------------------- the trunk of several models


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


def equal_tensors(models: list[ModernBERT]) -> set[str]:
    """The names of the tensors that are equal in all models."""
    states = [model.state_dict() for model in models]
    equal = set()
    for name, w in states[0].items():
        if all(torch.equal(w, other[name]) for other in states):
            equal.add(name)
    return equal


def shared_layers(model: ModernBERT, equal: set[str]) -> int:
    """How many bottom layers have equal tensors only; 0 too where the embeddings have not."""
    differing = model.state_dict().keys() - equal
    if any(name.startswith("model.embeddings.") for name in differing):
        return 0
    for i in range(len(model.model.layers)):
        if any(name.startswith(f"model.layers.{i}.") for name in differing):
            return i
    return len(model.model.layers)


# -------------------------------------------------------------------------------------- the router

TOKENS = 16_384  # in a batch of prompts
# Of a prompt only the end is read: so many characters, and of these so many tokens.
LAST_CHARACTERS = 20_000
LAST_TOKENS = 1024


def tokenize_prompts(tokenizer: RowTokenizer, prompts: list[str]) -> list[list[int]]:
    """The token ids of each prompt alone."""
    texts = [clean(prompt[-LAST_CHARACTERS:]) for prompt in prompts]
    encodings = tokenizer.library.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids[-LAST_TOKENS:] for encoding in encodings]


@torch.inference_mode()
def prompt_means(model: ModernBERT, tokenizer: RowTokenizer, prompts: list[str],
                 layers: int) -> torch.Tensor:
    """The mean of the trunk's output over the tokens of each prompt alone: without the template,
    whose question would give the domain away. (N, D), on the CPU; zeros for an empty prompt."""
    device = next(model.parameters()).device
    ids = tokenize_prompts(tokenizer, prompts)
    lengths = [len(tokens) for tokens in ids]
    means = torch.zeros(len(prompts), model.config.hidden_size, device=device)
    for members in data.make_micro_batches(lengths, TOKENS):
        members = [i for i in members if lengths[i] > 0]
        if not members:
            continue
        batch = data.pack([Row(ids[i], 0, 0, 0, {}) for i in members], device)
        x = trunk(model, batch, layers).x  # (T, D)
        parts = x.split([lengths[i] for i in members])
        for i, part in zip(members, parts, strict=True):
            means[i] = part.mean(0)
    return means.cpu()


class Router(NamedTuple):
    """A few hundred numbers, found without a training loop."""

    means: dict[str, torch.Tensor]  # domain: (D,) the mean over its training prompts
    spread: torch.Tensor  # (D,) the standard deviation over the training prompts of all domains
    layers: int  # of the trunk, whose output this is


def make_router(known: dict[str, torch.Tensor], layers: int) -> Router:
    """Of the training prompts of each domain, {domain: (N, D)}, after so many layers."""
    means = {domain: x.mean(0) for domain, x in known.items()}
    spread = torch.cat(list(known.values())).std(0) + 1e-6
    return Router(means, spread, layers)


def nearest(router: Router, prompts: torch.Tensor) -> list[str]:
    """The domain of each of M prompts, (M, D): that of the nearest class mean, each number in units
    of its spread."""
    means = torch.stack(list(router.means.values()))  # one row for each domain
    closest = torch.cdist(prompts / router.spread, means / router.spread).argmin(1)  # (M,)
    domains = list(router.means)
    return [domains[i] for i in closest.tolist()]


def domains_of(items: list[Item], router: Router, model: ModernBERT,
               tokenizer: RowTokenizer) -> list[str]:
    """The domain of the specialist of each item: its own, or where it names none that has a
    specialist, the one that its prompt is nearest to. `model` is any of the specialists."""
    unknown = {}  # as a set that keeps its order
    for item in items:
        if item.domain not in router.means:
            unknown[item.prompt] = None
    chosen = {}
    if unknown:
        means = prompt_means(model, tokenizer, list(unknown), router.layers)
        chosen = dict(zip(unknown, nearest(router, means), strict=True))

    domains = []
    for item in items:
        if item.domain in router.means:
            domains.append(item.domain)
        else:
            domains.append(chosen[item.prompt])
    return domains


# ----------------------------------------------------------------------------------------- writing


def save(folder: Path, models: dict[str, ModernBERT], settings: dict[str, dict], router: Router,
         model_folder: Path):
    """Fill a new folder with specialists, {domain: model} and {domain: what its tinyrm.json says}.
    The configuration and the tokenizer are those of `model_folder`. What makes a generalist of it,
    generalist.json, comes last."""
    folder.mkdir()
    equal = equal_tensors(list(models.values()))
    for name in MODEL_FOLDER:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, folder / name)

    shared = {"router.spread": router.spread}
    for domain, model in models.items():
        own = {"router.mean": router.means[domain]}
        for name, w in model.state_dict().items():
            place = shared if name in equal else own
            place[name] = w.detach().cpu().contiguous()
        save_file(own, folder / f"specialist-{domain}.safetensors")
        write_json(folder / f"specialist-{domain}.json", settings[domain])
    save_file(shared, folder / TRUNK)
    write_json(folder / FILE, {"domains": list(models)})


# ----------------------------------------------------------------------------------------- opening


def is_generalist(folder: Path) -> bool:
    return (folder / FILE).is_file()


class Specialists(NamedTuple):
    models: dict[str, ModernBERT]  # by domain; on the trunk that they share
    settings: dict[str, dict]  # how a pair is shown to each
    router: Router


def load(folder: Path, model_class: type[ModernBERT]) -> Specialists:
    """The specialists of a folder: float32, in eval mode. What they share is in memory once.
    ValueError names the file that is not as `save` wrote it."""
    config = tinyrm.read_config(folder, model_class.config_class)
    domains = read_domains(folder)
    settings = {name: read_format(folder / f"specialist-{name}.json") for name in domains}
    models = {}
    for name in domains:
        with torch.device("meta"):  # shapes without memory
            models[name] = model_class(config, settings[name].get("head", config.saved_head))
    for name, model in models.items():
        check_shapes(folder, name, model)

    # the same parameter in all models
    shared = tinyrm.read_weights(folder / TRUNK)
    spread = shared.pop("router.spread")
    shared = {name: torch.nn.Parameter(w) for name, w in shared.items()}
    means = {}
    for name, model in models.items():
        own = tinyrm.read_weights(folder / f"specialist-{name}.safetensors")
        means[name] = own.pop("router.mean")
        model.load_state_dict(shared | own, assign=True)
        model.eval()

    # the same modules too, so that copies of their weights in another precision are made once
    first = models[domains[0]]
    layers = shared_layers(first, set(shared))
    if layers == 0:
        raise ValueError(f"{folder}/{TRUNK} has no whole layer: merge the runs again")
    for model in models.values():
        model.model.embeddings = first.model.embeddings
        for i in range(layers):
            model.model.layers[i] = first.model.layers[i]
    return Specialists(models, settings, Router(means, spread, layers))


def read_domains(folder: Path) -> list[str]:
    """What generalist.json names. They are parts of names of files, so none is strange."""
    file = folder / FILE
    domains = read_json(file, {"domains": Field(list)}).get("domains") or []
    known = [name for name in data.DOMAINS if name in domains]
    if len(known) < 2 or len(known) != len(domains):
        raise ValueError(f"{file}: domains is {str(domains)[:60]}: give two or more of "
                         f"{', '.join(data.DOMAINS)}, each once")
    return domains


def check_shapes(folder: Path, domain: str, model: ModernBERT):
    """ValueError if the trunk and a specialist's own tensors are not just those of the model. No
    memory was taken for them yet."""
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    expected["router.spread"] = expected["router.mean"] = (model.config.hidden_size,)
    own_file = folder / f"specialist-{domain}.safetensors"
    shared, own = shapes_in(folder / TRUNK), shapes_in(own_file)
    twice = shared.keys() & own.keys()
    found = shared | own
    odd = [name for name in sorted(found.keys() | expected.keys())
           if found.get(name) != expected.get(name) or name in twice]
    if odd:
        raise ValueError(f"{own_file} and {TRUNK} do not make up the model of config.json: "
                         f"{', '.join(odd)[:200]}: merge the runs again")
