"""What trains: DoRA and LoRA adapters, full fine-tuning, and the frozen bottom of the model.

DoRA (arXiv 2402.09353) splits a weight into a magnitude m, one number for each output, and a
direction that a low-rank product may turn (equation 5):

    y = x W'^T,    W' = m / ||V|| * V,    V = W + s B A,    s = alpha / R

with W (out, in), A (R, in), B (out, R), m (out,) for rank R. In that paper W is (in, out), and its
norm is taken of each column; here, as in PEFT, that is each row of W. Training starts at B = 0 and
m = ||W||, where W' = W. LoRA is the same without m and the norm: W' = V. Tiny Reward Models uses
DoRA at rank 128 above frozen bottom layers for reasoning (section 3.1).

In this file A, B and m are always these; N is any number of tokens. The file goes from the formula,
through the layer that computes it and its backward pass, to where adapters are placed in a model,
and how they are stored in PEFT's layout.

`python dora.py` shows what trains at each setting.
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tinyrm import Cached, Field, Linear, ModernBERT, load, read_json, read_weights

ADAPTERS = ("dora", "lora", "full")

# ------------------------------------------------------------------------------------- the formula


def plain_dora(x: torch.Tensor, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor,
               m: torch.Tensor | None, s: float) -> torch.Tensor:
    """x W'^T as DoRA's paper writes it; m None is LoRA. x (N, in) -> (N, out)

    The tests check it against peft, and check AdaptedLinear against it. "We suggest treating
    ||V + dV||_c in Eq. (5) as a constant" (section 4.3; our V is the paper's V + dV): no gradient
    flows through the norm, it is detached."""
    V = W + s * B @ A  # (out, in)
    if m is None:
        return x @ V.T
    norm = V.norm(dim=1).detach()  # (out,)
    W_new = (m / norm)[:, None] * V
    return x @ W_new.T


# --------------------------------------------------------------------------------------- the layer
#
# How it is computed. W' changes only when the optimizer steps, so it is formed once a step, in the
# precision of the weights, and kept in the compute precision. Every micro-batch is then a single
# product, as cheap as without an adapter, and to rounding what the merged model computes later. The
# backward pass uses products of rank R, since these are cheaper than a gradient for all of W.


class Merged(NamedTuple):
    """W' and what the backward pass needs of it."""

    weight: torch.Tensor  # W' (out, in)
    gradient_scale: torch.Tensor  # s m / norm (out,); s for LoRA


class AdaptedLinear(nn.Module):
    """A frozen Linear layer under an adapter. `m` is None for LoRA."""

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, adapter: str = "dora",
                 generator: torch.Generator | None = None):
        super().__init__()
        weight = base_layer.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = getattr(base_layer, "compute_dtype", None)  # an embedding has none
        self.rank = rank
        self.alpha = alpha
        self.cache = Cached()

        self.weight = nn.Parameter(weight, requires_grad=False)
        # As in PEFT: kaiming_uniform with a = sqrt(5) is uniform within 1 / sqrt(in). Drawn on the
        # CPU, where the generator is.
        bound = 1 / math.sqrt(self.in_features)
        A = torch.empty(rank, self.in_features, dtype=weight.dtype)
        A.uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(A.to(weight.device))
        # B = 0: training begins at W' = W
        self.B = nn.Parameter(weight.new_zeros(self.out_features, rank))
        self.m = nn.Parameter(weight.norm(dim=1)) if adapter == "dora" else None

    @torch.no_grad()
    def merged_weight(self) -> Merged:
        """W', in the precision of the weights."""
        s = self.alpha / self.rank
        weight = torch.addmm(self.weight, self.B, self.A, alpha=s)  # W + s B A
        if self.m is None:
            return Merged(weight, torch.full_like(weight[:, 0], s))
        norm = weight.norm(dim=1)
        scale = torch.where(norm > 0, self.m / norm, 0)  # (out,) zeros stay zeros
        weight.mul_(scale[:, None])
        return Merged(weight, s * scale)

    def effective_weight(self) -> Merged:
        """`merged_weight` in the compute precision, formed again only after one of its parts has
        changed."""

        def make():
            weight, gradient_scale = self.merged_weight()
            if self.compute_dtype is not None:
                weight = weight.to(self.compute_dtype)
            return Merged(weight, gradient_scale)

        return self.cache.get(list(self.parameters()), self.compute_dtype, make)

    def forward(self, x):
        """x (N, in) -> (N, out)"""
        return self.outputs(x, slice(None))

    def outputs(self, x: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns of the output only: x (N, in) -> (N, how many)."""
        weight, gradient_scale = self.effective_weight()
        m = None if self.m is None else self.m[columns]
        return DoRAProduct.apply(x.to(weight.dtype), self.A, self.B[columns], m, weight[columns],
                                 gradient_scale[columns])


class DoRAProduct(torch.autograd.Function):
    """y = x W'^T for x (N, in), and the gradients of x, A, B and m.

    With g = dL/dy (N, out), c = s m / norm (out,), and diag(c) B written as cB:

        dL/dx = g W'
        dL/dA = (g cB)^T x              since W' depends on A through cB A
        dL/dB = c * g^T (x A^T)         the same for B, row by row
        dL/dm = sum over N of g * y / m    since y is proportional to m

    Beyond the two products of a frozen layer these are products of rank R only."""

    @staticmethod
    def forward(ctx, x, A, B, m, weight, c):
        """weight is W' (out, in)."""
        y = F.linear(x, weight)
        kept_y = None if m is None else y
        ctx.save_for_backward(x, A, B, m, weight, c, kept_y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, A, B, m, weight, c, y = ctx.saved_tensors
        dx = g @ weight if ctx.needs_input_grad[0] else None

        cB = (B * c[:, None]).to(g.dtype)  # (out, R)
        dA = (g @ cB).T @ x  # (R, in)

        xA = x @ A.to(x.dtype).T  # (N, R)
        dB = (g.T @ xA).to(B.dtype) * c[:, None]  # (out, R)

        dm = None
        if m is not None:
            dm = column_dots(g, y, m.dtype) / m  # (out,)
            dm = torch.where(m != 0, dm, 0)  # a row of zeros does not train
        return dx, dA.to(A.dtype), dB, dm, None, None


ROWS_AT_ONCE = 128  # whose casts stay in a processor's cache


def column_dots(g: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sum over N of g * y, added up in `dtype`: (N, out) each -> (out,).

    Where g and y have another precision, a processor casts a few rows at a time: all at once are
    16 MB each in a layer of base, which took it eight times as long."""
    if g.dtype == dtype or g.device.type != "cpu":
        return column_dots_at_once(g, y, dtype)
    total = torch.zeros(g.shape[1], dtype=dtype)
    for some_g, some_y in zip(g.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
        total += column_dots_at_once(some_g, some_y, dtype)
    return total


def column_dots_at_once(g, y, dtype):
    """Of g and y (N, out) the sum over N of their products: (out,)"""
    return torch.linalg.vecdot(g.to(dtype), y.to(dtype), dim=0)


# -------------------------------------------------------------------------------- in a whole model


def adapt(model: ModernBERT, adapter: str = "dora", rank: int = 8, alpha: float = 8.0,
          freeze: int = 0, seed: int = 0) -> dict[str, nn.Parameter]:
    """Make `model` trainable in place and return {name: parameter} of all that trains.

    adapter "full": all parameters. "dora" and "lora": adapters on every product of the layers and
    on head.dense, and never on the tied decoder, where merging would change the embeddings (peft
    #2018). The fresh classifier of head "cls" always trains.

    Under an adapter nothing else of the encoder trains: not W, not the norms, not the embeddings.
    freeze=N with N >= 1 freezes the embeddings, hence the decoder matrix that is tied to them, and
    the N bottom layers; in full fine-tuning all else trains. 0 freezes no layer (under an adapter
    each gets one). Rank and alpha of 8 are PEFT's defaults; the paper's rank of 128 is in train.py.
    Raises ValueError for settings that this model cannot have."""
    layers = model.model.layers
    if adapter not in ADAPTERS:
        raise ValueError(f"--adapter {adapter}: give one of {', '.join(ADAPTERS)}")
    if not 0 <= freeze <= len(layers):
        raise ValueError(f"--freeze {freeze}: this model has {len(layers)} layers")
    if adapter != "full" and rank < 1:
        raise ValueError(f"--rank {rank}: give 1 or more")

    model.requires_grad_(adapter == "full")
    if freeze:
        model.model.embeddings.requires_grad_(False)
        layers[:freeze].requires_grad_(False)

    if adapter != "full":
        generator = torch.Generator().manual_seed(seed)
        frozen = set(layers[:freeze].modules())
        for name, module in list(model.named_modules()):
            # Linear are the four products of a layer, and head.dense; never the Decoder
            if isinstance(module, Linear) and module not in frozen:
                adapted = AdaptedLinear(module, rank, alpha, adapter, generator)
                model.set_submodule(name, adapted)

    if model.head_kind == "cls":
        model.classifier.requires_grad_(True)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapters(model: nn.Module) -> dict[str, AdaptedLinear]:
    """{name: layer} of all adapters, in the order of the model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            found[name] = module
    return found


def merge(model: ModernBERT) -> ModernBERT:
    """Replace every adapter by a plain layer with its W', in place. Nothing trains any more."""
    for name, adapted in adapters(model).items():
        plain = Linear(adapted.in_features, adapted.out_features)
        plain.weight.data = adapted.merged_weight().weight
        plain.compute_dtype = adapted.compute_dtype
        model.set_submodule(name, plain)
    return model.requires_grad_(False)


# ------------------------------------------------------------------------------------------- files
#
# PEFT's layout: adapter_config.json, and adapter_model.safetensors with names such as
#     base_model.model.model.layers.3.attn.Wqkv.lora_A.weight
#     base_model.model.model.layers.3.attn.Wqkv.lora_magnitude_vector
#     base_model.model.classifier.weight

PREFIX = "base_model.model."
ADAPTER_CONFIG = "adapter_config.json"
PEFT_NAMES = {"A": ".lora_A.weight", "B": ".lora_B.weight", "m": ".lora_magnitude_vector"}


def save_adapter(model: ModernBERT, folder: str | Path, base: str, revision: str | None = None):
    """Store the adapters of `model` as peft does; `base` is the folder or Hub name of the model
    that they belong to, `revision` its commit on the Hub."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = adapters(model)
    has_classifier = model.head_kind == "cls"

    state = {}
    for name, adapted in found.items():
        for part, peft_name in PEFT_NAMES.items():
            if getattr(adapted, part) is not None:
                state[PREFIX + name + peft_name] = getattr(adapted, part)
    if has_classifier:
        for name, p in model.classifier.named_parameters():
            state[f"{PREFIX}classifier.{name}"] = p
    state = {name: p.detach().cpu().contiguous() for name, p in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    first = next(iter(found.values()))
    # with it peft's AutoPeftModel finds the class of the base
    model_type = model.config.model_type.replace("-", "_")
    base_class = {
        "base_model_class": model.config.architectures[model.head_kind],
        "parent_library": f"transformers.models.{model_type}.modeling_{model_type}",
    }
    config = {
        "peft_type": "LORA",
        "auto_mapping": None if has_classifier else base_class,
        "task_type": "SEQ_CLS" if has_classifier else None,
        "base_model_name_or_path": str(base),
        "revision": revision,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "use_dora": first.m is not None,
        "bias": "none",
        "target_modules": list(found),
        "modules_to_save": ["classifier"] if has_classifier else None,
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


# What adapter_config.json may say. Other keys may only be null, false or empty.
ADAPTER_FIELDS = {
    "r": Field(int, 1, 10**6),
    "lora_alpha": Field(float, 0, 1e9),
    "use_dora": Field(bool),
    "peft_type": Field(str),
    "base_model_name_or_path": Field(str),
    "revision": Field(str),  # of the base model: a commit on the Hub
}
# Keys that do not change what an adapter computes, or that say what its tensors say again.
ADAPTER_NO_EFFECT = {
    "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "eva_config",
    "qalora_group_size", "runtime_config",
}
# Keys of which one value is computed here. Other starts than these change W itself.
COMPUTED = {
    "peft_type": ["LORA"],
    "bias": ["none"],
    "task_type": ["SEQ_CLS", "CAUSAL_LM"],
    "init_lora_weights": [True, "gaussian", "eva", "orthogonal"],
    "modules_to_save": [["classifier"], ["classifier", "score"]],
}


@torch.no_grad()
def load_adapter(model: ModernBERT, folder: str | Path):
    """Put the adapter of a folder in PEFT's layout on `model`, in place.

    One on the tied decoder, as the author's published adapter has it, becomes a decoder matrix of
    its own, and the embeddings keep theirs. Raises ValueError for a kind of adapter that is not
    built here and for tensors that do not fit."""
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no readable PEFT adapter: it has no {ADAPTER_CONFIG}")
    config = read_json(folder / ADAPTER_CONFIG, ADAPTER_FIELDS)
    check_adapter_config(folder / ADAPTER_CONFIG, config, model.head_kind)
    groups = group_by_layer(read_weights(folder / "adapter_model.safetensors"))
    check_adapter_layers(folder, config, groups, model)

    try:
        for name, tensors in groups.items():
            if name == "classifier":
                model.classifier.load_state_dict(tensors)
                continue
            base_layer = model.get_submodule(name)
            if name == "decoder" and base_layer.weight is None:  # tied
                base_layer = model.model.embeddings.tok_embeddings
            elif name != "decoder" and not isinstance(base_layer, Linear):
                raise ValueError(f"{name} has no adapter here")
            adapted = make_adapted(name, base_layer, config, tensors)
            if name == "decoder":
                weight = adapted.merged_weight().weight
                model.decoder.weight = nn.Parameter(weight, requires_grad=False)
            else:
                model.set_submodule(name, adapted)
    except (AttributeError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{folder} does not fit this model: {message}") from None


def check_adapter_config(file: Path, config: dict, head_kind: str):
    """ValueError for an adapter that is computed in another way than here."""
    for key in ("peft_type", "r", "lora_alpha"):
        if config.get(key) is None:
            raise ValueError(f"{file}: {key} is missing")
    known = ADAPTER_NO_EFFECT | ADAPTER_FIELDS.keys()
    for key, value in config.items():
        if key in COMPUTED:
            odd = bool(value) and value not in COMPUTED[key]
        else:
            odd = bool(value) and key not in known
        if odd:
            raise ValueError(f"{file}: only plain LoRA and DoRA adapters are built here, not those "
                             f"with {key[:60]!r} {str(value)[:60]!r}")
    is_classifier = config.get("task_type") == "SEQ_CLS" or config.get("modules_to_save")
    if head_kind == "cloze" and is_classifier:
        raise ValueError(f"{file}: this adapter (task_type, modules_to_save) is of a classifier, "
                         "but no tinyrm.json beside it says head cls")


def check_adapter_layers(folder: Path, config: dict, groups: dict, model: ModernBERT):
    """ValueError where the tensors of an adapter lack what its config names."""
    targets = config.get("target_modules")
    if isinstance(targets, str):  # a regular expression of whole names, or all of a kind
        names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
        try:
            if targets != "all-linear":
                names = [name for name in names if re.fullmatch(targets, name)]
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: target_modules {targets[:60]!r} is no "
                             f"regular expression ({error})") from None
        targets = names
    if not isinstance(targets, list):
        targets = []
    for target in targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in groups):
            raise ValueError(f"{folder}: target_modules names {str(target)[:60]!r}, for which "
                             "adapter_model.safetensors has no tensors")
    # a fresh classifier would judge at random
    trained = "classifier" in groups or model.config.saved_head == "cls"
    if not groups or (model.head_kind == "cls" and not trained):
        raise ValueError(f"{folder}: adapter_model.safetensors lacks the trained classifier")


def group_by_layer(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{layer: {"A", "B", "m": tensor}} from PEFT's names; of a classifier {"weight", "bias"}."""
    groups = {}
    for key, tensor in state.items():
        key = key.removeprefix(PREFIX)
        layer, _, part = key.rpartition(".")  # right for classifier.weight
        for name, ending in PEFT_NAMES.items():
            if key.endswith(ending):
                layer, part = key.removesuffix(ending), name
        groups.setdefault(layer, {})[part] = tensor
    return groups


def make_adapted(name: str, base_layer: nn.Module, config: dict,
                 tensors: dict[str, torch.Tensor]) -> AdaptedLinear:
    """The adapter of a layer, with A, B and m of exactly the shapes that they must have."""
    rank = config["r"]
    outputs, inputs = base_layer.weight.shape
    shapes = {"A": (rank, inputs), "B": (outputs, rank)}
    adapter = "lora"
    if config.get("use_dora"):
        adapter = "dora"
        shapes["m"] = (outputs,)
    # compared before memory is taken for r
    found = {part: tuple(tensor.shape) for part, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{name}: the shapes of its adapter are {found}, needed are {shapes}")

    adapted = AdaptedLinear(base_layer, rank, config["lora_alpha"], adapter)
    for part, tensor in tensors.items():
        getattr(adapted, part).copy_(tensor)
    return adapted


def main():
    nano = Path(__file__).parent / "nano"
    print("what trains of the nano encoder, by adapter (rank 16) and frozen layers")
    for adapter in ADAPTERS:
        for freeze in (0, 2):
            model = load(nano)
            everything = sum(p.numel() for p in model.parameters())
            found = adapt(model, adapter, rank=16, alpha=16.0, freeze=freeze)
            total = sum(p.numel() for p in found.values())
            share = total / everything  # of the encoder
            print(f"  --adapter {adapter:5} --freeze {freeze}   {total:8,} in {len(found)} tensors "
                  f"({share:.0%})")

    print("\nthe adapters above two frozen layers: W' = m / ||W + s B A|| (W + s B A)")
    model = load(nano)
    adapt(model, "dora", rank=16, alpha=16.0, freeze=2)
    print(f"  {'':26}{'W, frozen':14}{'A':14}{'B':14}m")
    for name, adapted in adapters(model).items():
        line = f"  {name:26}"
        for tensor in (adapted.weight, adapted.A, adapted.B, adapted.m):
            shape = str(tuple(tensor.shape))
            line += f"{shape:14}"
        print(line.rstrip())


if __name__ == "__main__":
    main()
