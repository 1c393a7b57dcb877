"""What trains: DoRA and LoRA adapters, full fine-tuning, and the frozen bottom of the model.

DoRA (arXiv 2402.09353) splits a weight into a magnitude m, one number for each output row, and a
direction that a low-rank product may turn:

    y = x W'^T,    W' = m / ||W + s B A|| * (W + s B A),    s = alpha / R

with A (R, in), B (out, R), the norm taken over each row. LoRA is the same without m and the norm.
Tiny Reward Models uses it at rank 128 above frozen bottom layers for reasoning (section 3.1).

How it is computed. W' changes only when the optimizer steps, so it is formed once a step, in the
precision of the weights, and kept in the compute precision; every micro-batch is then a single
product, as cheap as without adapter, and the same product that the merged model runs later. The
norm comes with W' for nothing. (It can be had without W', as ||W_i||^2 + 2 s B_i.(A W_i^T) +
s^2 B_i (A A^T) B_i^T, but A W^T costs as many operations as B A.) Only the backward pass takes the
low-rank way, where that is cheaper than a gradient for all of W.

Run `python dora.py` to see what trains at each setting.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tinyrm import Linear

KINDS = ("dora", "lora", "full")


class Adapted(Linear):
    """A frozen Linear under an adapter. `m` is None for LoRA."""

    def __init__(self, base, rank, alpha, kind="dora", generator=None):
        nn.Module.__init__(self)  # the base layer brings the weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.compute, self.rank, self.alpha = base.compute, rank, alpha
        self.bias = None
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        like = dict(dtype=base.weight.dtype)
        bound = 1 / math.sqrt(self.in_features)  # Kaiming's for a linear layer, as PEFT has it
        a = torch.empty(rank, self.in_features, **like).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(a.to(base.weight.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank, **like).to(base.weight.device))
        self.m = nn.Parameter(self.weight.norm(dim=1)) if kind == "dora" else None
        self.kept = None

    @torch.no_grad()
    def merged(self):
        """(W', m / norm) in the precision of the weights; for LoRA (W + s B A, ones)."""
        full = torch.addmm(self.weight, self.B, self.A, alpha=self.alpha / self.rank)
        if self.m is None:
            return full, torch.ones_like(full[:, 0])
        scale = self.m / full.norm(dim=1)
        return full.mul_(scale[:, None]), scale

    def current(self):
        """`merged` in the compute precision, formed anew only after one of its parts changed.

        In-place changes count up a tensor's _version, which is how an optimizer step is seen.
        """
        parts = [p for p in (self.weight, self.A, self.B, self.m) if p is not None]
        key = self.compute, [(p.data_ptr(), p._version) for p in parts]
        if self.kept is None or self.kept[0] != key:
            with torch.inference_mode(False):  # a copy made while judging must serve training too
                full, scale = self.merged()
                self.kept = key, full.to(self.compute or full.dtype), scale
        return self.kept[1:]

    def forward(self, x, out=slice(None)):
        weight, scale = self.current()
        x = x.to(weight.dtype)
        if not torch.is_grad_enabled():
            return F.linear(x, weight[out])
        m = None if self.m is None else self.m[out]
        scale = scale[out] * (self.alpha / self.rank)
        return LowRank.apply(x, self.A, self.B[out], m, weight[out], scale)


class LowRank(torch.autograd.Function):
    """x W'^T for x (N, in), and the gradients of x, A, B and m.

    "we suggest treating ||V + dV||_c in Eq. (5) as a constant" (DoRA, section 4.3): the norm is
    detached. With g = dL/dy, c = s m / norm and W' as above,

        dx = g W'    dA = (g cB)^T x    dB = c g^T (x A^T)    dm = sum_t g y / m

    so beyond the two products of a frozen layer only products of rank R are left.
    """

    @staticmethod
    def forward(ctx, x, A, B, m, weight, scale):
        y = F.linear(x, weight)
        ctx.save_for_backward(x, A, B, m, weight, scale, None if m is None else y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, A, B, m, weight, scale, y = ctx.saved_tensors
        dx = g @ weight if ctx.needs_input_grad[0] else None
        dA = (g @ (B * scale[:, None]).to(g.dtype)).T @ x
        dB = (g.T @ (x @ A.to(x.dtype).T)).to(B.dtype) * scale[:, None]
        dm = None if m is None else torch.linalg.vecdot(g.to(m.dtype), y.to(m.dtype), dim=0) / m
        return dx, dA.to(A.dtype), dB, dm, None, None


def adapt(model, kind="dora", rank=8, alpha=8.0, freeze=0, seed=0):
    """Make `model` trainable in place and return the names of what trains.

    kind "full" trains every parameter above the frozen bottom; "dora" and "lora" train adapters on
    all products of the layers above it and on head.dense, and never the tied decoder, whose adapter
    would change the embeddings when merged (peft #2018). The fresh classifier of head "cls" always
    trains. freeze=N with N >= 1 freezes the embeddings, hence the decoder matrix tied to them, and
    the N bottom layers; 0 freezes nothing.
    """
    layers = model.model.layers
    if kind not in KINDS:
        raise ValueError(f"--adapter {kind}: give one of {', '.join(KINDS)}")
    if not 0 <= freeze <= len(layers):
        raise ValueError(f"--freeze {freeze}: this model has {len(layers)} layers")
    if kind != "full" and rank < 1:
        raise ValueError(f"--rank {rank}: give 1 or more")
    model.requires_grad_(kind == "full")
    if kind == "full" and freeze:
        model.model.embeddings.requires_grad_(False)
        layers[:freeze].requires_grad_(False)
    if kind != "full":
        generator = torch.Generator().manual_seed(seed)
        names = [f"model.layers.{i}.{name}" for i in range(freeze, len(layers))
                 for name, module in layers[i].named_modules() if isinstance(module, Linear)]
        for name in [*names, f"{model.head_name}.dense"]:
            place(model, name, Adapted(model.get_submodule(name), rank, alpha, kind, generator))
    if model.head_kind == "cls":
        model.classifier.requires_grad_(True)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def place(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def adapters(model):
    """name -> Adapted, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def merge(model):
    """Replace each adapter by a plain layer with its W', in place. Nothing trains any more."""
    for name, module in adapters(model).items():
        plain = Linear(module.in_features, module.out_features).requires_grad_(False)
        plain.weight.data, plain.compute = module.merged()[0], module.compute
        place(model, name, plain)
    return model.requires_grad_(False)


# ----------------------------------------------------------------------------- the layout of PEFT


def save_adapter(model, folder, base):
    """adapter_config.json and adapter_model.safetensors, as peft writes them; `base` is the folder
    or Hub name of the model that the adapter belongs to. (One for a decoder's classifier opens here
    alone: transformers begins such a model with a fresh `head` beside the trained `lm_head`.)"""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = adapters(model)
    one = next(iter(found.values()))
    state = {}
    for name, module in found.items():
        parts = {"lora_A.weight": module.A, "lora_B.weight": module.B}
        if module.m is not None:
            parts["lora_magnitude_vector"] = module.m
        state |= {f"base_model.model.{name}.{k}": p for k, p in parts.items()}
    cls = model.head_kind == "cls"
    if cls:
        state |= {f"base_model.model.classifier.{k}": p
                  for k, p in model.classifier.named_parameters()}  # fmt: skip
    state = {k: p.detach().cpu().contiguous() for k, p in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dict(
        peft_type="LORA", task_type="SEQ_CLS" if cls else None, base_model_name_or_path=str(base),
        r=one.rank, lora_alpha=one.alpha, lora_dropout=0.0, use_dora=one.m is not None,
        bias="none", target_modules=list(found), modules_to_save=["classifier"] if cls else None,
        inference_mode=True,
    )  # fmt: skip
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def load_adapter(model, folder):
    """Put the adapter of a folder in PEFT's layout on `model`, in place.

    An adapter on the tied decoder, as the author's published one has it, becomes a decoder matrix
    of its own; the embeddings keep theirs. Raises ValueError for a kind of adapter that is not
    built here, and for tensors that do not fit.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        state = load_file(folder / "adapter_model.safetensors")
    except Exception as e:
        raise ValueError(f"{folder} holds no readable PEFT adapter ({e})") from None
    odd = [k for k in ("rank_pattern", "alpha_pattern", "use_rslora", "layer_replication",
                       "lora_bias", "fan_in_fan_out") if config.get(k)]  # fmt: skip
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ValueError(f"{folder}: only plain LoRA and DoRA adapters are built here"
                         f"{', not ' + ', '.join(odd) if odd else ''}")  # fmt: skip
    kind = "dora" if config.get("use_dora") else "lora"
    rank, alpha = config["r"], config["lora_alpha"]
    groups = {}
    for key, tensor in state.items():
        name, _, part = key.removeprefix("base_model.model.").rpartition(
            ".lora_" if ".lora_" in key else ".")  # fmt: skip
        groups.setdefault(name, {})[part.removesuffix(".weight")] = tensor.float()
    try:
        for name, parts in groups.items():
            if name == "classifier":
                model.classifier.load_state_dict(parts)
                continue
            adapted = Adapted(plain_of(model, name), rank, alpha, kind)
            want = {"A": adapted.A, "B": adapted.B, "magnitude_vector": adapted.m}
            with torch.no_grad():
                for part, p in want.items():
                    if p is not None and p.shape != parts[part].shape:
                        raise ValueError(f"{name}: {part} has shape {tuple(parts[part].shape)}, "
                                         f"needs {tuple(p.shape)}")  # fmt: skip
                    if p is not None:
                        p.copy_(parts[part])
            if name == "decoder":
                model.decoder.weight = nn.Parameter(adapted.merged()[0], requires_grad=False)
            else:
                place(model, name, adapted)
    except (AttributeError, KeyError, ValueError, RuntimeError) as e:
        raise ValueError(f"{folder} does not fit this model: {e}") from None


def plain_of(model, name):
    """The layer `name` that an adapter goes on; for the decoder a layer over the tied matrix."""
    if name != "decoder":
        return model.get_submodule(name)
    tied = model.model.embeddings.tok_embeddings.weight
    plain = Linear(tied.shape[1], tied.shape[0])
    plain.weight.data = tied.detach()
    return plain


def main():
    from tinyrm import fetch, load

    print("the nano encoder: trainable parameters, by adapter and frozen layers")
    for kind in KINDS:
        for freeze in (0, 2):
            model = load(fetch("nano"))
            names = adapt(model, kind, rank=8, alpha=8, freeze=freeze)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            print(f"  --adapter {kind:5} --freeze {freeze}   {count:8,} in {len(names)} tensors")


if __name__ == "__main__":
    main()
