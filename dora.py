"""What trains: DoRA and LoRA adapters, full fine-tuning, and the frozen bottom of the model.

DoRA (arXiv 2402.09353) splits a weight into a magnitude m, one number for each output row, and a
direction that a low-rank product may turn:

    y = x W'^T,    W' = m / ||W + s B A|| * (W + s B A),    s = alpha / R

with A (R, in), B (out, R), the norm taken over each row. LoRA is the same without m and the norm.
Tiny Reward Models uses it at rank 128 above frozen bottom layers for reasoning (section 3.1).

How it is computed. W' changes only when the optimizer steps, so it is formed once a step, in the
precision of the weights, and kept in the compute precision; every micro-batch is then a single
product, as cheap as without adapter, and the same product that the merged model runs later. The
norm comes with W' for nothing; had without it, from A W^T, it costs as many operations. Only the
backward pass takes the low-rank way, where that is cheaper than a gradient for all of W.

`python dora.py` shows what trains at each setting.
"""

import json
import math
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from tinyrm import Linear, fetch, load

KINDS = ("dora", "lora", "full")
PEFT = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}  # its names


class Adapted(Linear):
    """A frozen layer under an adapter. `m` is None for LoRA."""

    def __init__(self, base, rank, alpha, kind="dora", generator=None):
        nn.Module.__init__(self)  # the base layer brings the weight
        weight = base.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.bias = self.kept = None
        self.compute, self.rank, self.alpha = getattr(base, "compute", None), rank, alpha
        self.weight = nn.Parameter(weight, requires_grad=False)
        bound = 1 / math.sqrt(self.in_features)  # Kaiming's for a linear layer, as PEFT has it
        A = torch.empty(rank, self.in_features, dtype=weight.dtype)  # on the CPU, as the generator
        self.A = nn.Parameter(A.uniform_(-bound, bound, generator=generator).to(weight.device))
        self.B = nn.Parameter(weight.new_zeros(self.out_features, rank))
        self.m = nn.Parameter(weight.norm(dim=1)) if kind == "dora" else None

    @torch.no_grad()
    def merged(self):
        """(W' (out, in), s m / norm (out,)) in the precision of the weights; for LoRA m = norm."""
        s = self.alpha / self.rank
        full = torch.addmm(self.weight, self.B, self.A, alpha=s)
        scale = torch.ones_like(full[:, 0]) if self.m is None else self.m / full.norm(dim=1)
        return full.mul_(scale[:, None]), scale * s

    def current(self):
        """`merged` in the compute precision, formed anew only after one of its parts changed:
        in-place changes count up a tensor's _version, which is how an optimizer step is seen."""
        key = self.compute, [(p.data_ptr(), p._version) for p in self.parameters()]
        if self.kept is None or self.kept[0] != key:
            with torch.inference_mode(False):  # a copy made while judging must serve training too
                full, c = self.merged()
                self.kept = key, full.to(self.compute or full.dtype), c
        return self.kept[1:]

    def forward(self, x, out=slice(None)):
        weight, c = self.current()
        m = None if self.m is None else self.m[out]
        return LowRank.apply(x.to(weight.dtype), self.A, self.B[out], m, weight[out], c[out])


class LowRank(torch.autograd.Function):
    """x W'^T for x (N, in), and the gradients of x, A, B and m.

    "we suggest treating ||V + dV||_c in Eq. (5) as a constant" (DoRA, section 4.3): the norm is
    detached. With g = dL/dy, c = s m / norm and W' as above,

        dx = g W'    dA = (g cB)^T x    dB = c g^T (x A^T)    dm = sum_t g y / m

    so beyond the two products of a frozen layer only products of rank R are left."""

    @staticmethod
    def forward(ctx, x, A, B, m, weight, c):
        y = F.linear(x, weight)
        ctx.save_for_backward(x, A, B, m, weight, c, None if m is None else y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, A, B, m, weight, c, y = ctx.saved_tensors
        dx = g @ weight if ctx.needs_input_grad[0] else None
        dA = (g @ (B * c[:, None]).to(g.dtype)).T @ x
        dB = (g.T @ (x @ A.to(x.dtype).T)).to(B.dtype) * c[:, None]
        dm = None if m is None else torch.linalg.vecdot(g.to(m.dtype), y.to(m.dtype), dim=0) / m
        return dx, dA.to(A.dtype), dB, dm, None, None


def adapt(model, kind="dora", rank=8, alpha=8.0, freeze=0, seed=0):
    """Make `model` trainable in place and return the names of what trains: with kind "full" every
    parameter, with "dora" and "lora" adapters on all products of the layers and on head.dense, and
    never on the tied decoder, where merging would change the embeddings (peft #2018). The fresh
    classifier of head "cls" always trains. freeze=N with N >= 1 freezes the embeddings, hence the
    decoder matrix tied to them, and the N bottom layers; 0 freezes nothing."""
    layers = model.model.layers
    if kind not in KINDS:
        raise ValueError(f"--adapter {kind}: give one of {', '.join(KINDS)}")
    if not 0 <= freeze <= len(layers):
        raise ValueError(f"--freeze {freeze}: this model has {len(layers)} layers")
    if kind != "full" and rank < 1:
        raise ValueError(f"--rank {rank}: give 1 or more")
    model.requires_grad_(kind == "full")
    if freeze:
        model.model.embeddings.requires_grad_(False)
        layers[:freeze].requires_grad_(False)
    if kind != "full":
        generator = torch.Generator().manual_seed(seed)
        frozen = [*layers[:freeze].modules()]
        for name, base in [*model.named_modules()]:
            if isinstance(base, Linear) and base not in frozen:
                model.set_submodule(name, Adapted(base, rank, alpha, kind, generator))
    if model.head_kind == "cls":
        model.classifier.requires_grad_(True)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def adapters(model):
    """name -> Adapted, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def merge(model):
    """Replace each adapter by a plain layer with its W', in place. Nothing trains any more."""
    for name, module in adapters(model).items():
        plain = Linear(module.in_features, module.out_features)
        plain.weight.data, plain.compute = module.merged()[0], module.compute
        model.set_submodule(name, plain)
    return model.requires_grad_(False)


def save_adapter(model, folder, base):
    """adapter_config.json and adapter_model.safetensors, as peft writes them; `base` is the folder
    or Hub name of the model that the adapter belongs to. (One for a decoder's classifier opens here
    alone: transformers begins such a model with a fresh `head` beside the trained `lm_head`.)"""
    folder, found, cls = Path(folder), adapters(model), model.head_kind == "cls"
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"{name}.{PEFT[part]}": p for name, module in found.items()
             for part, p in module.named_parameters() if part in PEFT}
    if cls:
        state |= {f"classifier.{part}": p for part, p in model.classifier.named_parameters()}
    state = {f"base_model.model.{name}": p.detach().cpu() for name, p in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    one = next(iter(found.values()))
    config = dict(
        peft_type="LORA", task_type="SEQ_CLS" if cls else None, base_model_name_or_path=str(base),
        r=one.rank, lora_alpha=one.alpha, lora_dropout=0.0, use_dora=one.m is not None,
        bias="none", target_modules=list(found), modules_to_save=["classifier"] if cls else None,
        inference_mode=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def load_adapter(model, folder):
    """Put the adapter of a folder in PEFT's layout on `model`, in place. One on the tied decoder,
    as the author's published one has it, becomes a decoder matrix of its own; the embeddings keep
    theirs. Raises ValueError for a kind that is not built here and for tensors that do not fit."""
    folder, groups = Path(folder), {}
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        state = load_file(folder / "adapter_model.safetensors")
    except Exception as e:
        raise ValueError(f"{folder} holds no readable PEFT adapter ({e})") from None
    odd = [key for key in ("rank_pattern", "alpha_pattern", "use_rslora", "layer_replication",
                           "lora_bias", "fan_in_fan_out") if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ValueError(f"{folder}: only plain LoRA and DoRA adapters are built here"
                         f"{', not ' + ', '.join(odd) if odd else ''}")
    kind = "dora" if config.get("use_dora") else "lora"
    for key, tensor in state.items():  # "base_model.model." LAYER ".lora_A.weight"
        mark = ".lora_" if ".lora_" in key else "."
        name, _, part = key.removeprefix("base_model.model.").rpartition(mark)
        groups.setdefault(name, {})[part.removesuffix(".weight")] = tensor.float()
    try:
        if "classifier" in groups:
            model.classifier.load_state_dict(groups.pop("classifier"))
        for name, parts in groups.items():
            tied = name == "decoder"
            base = model.model.embeddings.tok_embeddings if tied else model.get_submodule(name)
            adapted = Adapted(base, config["r"], config["lora_alpha"], kind)
            _, *ours = adapted.parameters()  # after the weight
            for part, p in zip(("A", "B", "magnitude_vector"), ours, strict=False):  # LoRA: no m
                if p.shape != parts[part].shape:
                    raise ValueError(f"{name}: {part} has shape {tuple(parts[part].shape)}, "
                                     f"needs {tuple(p.shape)}")
                p.copy_(parts[part])
            if tied:
                model.decoder.weight = nn.Parameter(adapted.merged()[0], requires_grad=False)
            else:
                model.set_submodule(name, adapted)
    except (AttributeError, KeyError, ValueError, RuntimeError) as e:
        raise ValueError(f"{folder} does not fit this model: {e}") from None


if __name__ == "__main__":
    print("the nano encoder: trainable parameters, by adapter and frozen layers")
    for kind, freeze in product(KINDS, (0, 2)):
        model = load(fetch("nano"))
        names = adapt(model, kind, rank=8, alpha=8, freeze=freeze)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"  --adapter {kind:5} --freeze {freeze}   {trained:8,} in {len(names)} tensors")
