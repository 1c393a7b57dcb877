"""The encoder: ModernBERT (arXiv 2412.13663) with its masked-language-model head, in plain PyTorch.
Its causal twin, of the Ettin suite (arXiv 2507.11412), is the same but for who sees whom.

One legend of shapes for all files of this project:

    B rows, T tokens of all rows, D hidden, H heads, K head size, V vocabulary, R rank

There is no padding here. The rows of a batch lie end to end in one stream of T tokens, and
`starts` (B+1,) marks them: row b is tokens[starts[b]:starts[b+1]]. Attention never crosses a row,
so what a row scores cannot depend on its neighbours.

Modules and parameters carry the names of the Hub checkpoints, so loading is one strict comparison.
Run `python tinyrm.py [MODEL]` to see the parts of a model and fill one mask.
"""

import json
import math
import os
import sys
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
NAMES = {  # short names for `--model`; anything else is a folder or a Hub repository
    "nano": str(HERE / "nano"),
    "base": "answerdotai/ModernBERT-base",
    "large": "answerdotai/ModernBERT-large",
    "nano-causal": str(HERE / "nano/causal"),
    **{f"ettin-{short}{size}": f"jhu-clsp/ettin-{kind}-{size}"
       for short, kind in (("", "encoder"), ("decoder-", "decoder"))
       for size in "17m 32m 68m 150m 400m 1b".split()},
}
# queries in a block of local attention: 15 % faster on a CPU than 128 (keys: 192, not 256)
BLOCK = 64


# ------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Config:
    """What config.json says of the shape of the model. Build it with `Config.read`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", one for each layer
    global_rope_theta: float
    local_rope_theta: float
    local_attention: int = 128  # window of the sliding layers, both sides together
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    tie_word_embeddings: bool = True
    causal: bool = False  # model type modernbert-decoder: a token sees those before it alone
    raw: dict = field(default_factory=dict, repr=False, compare=False)  # config.json as it was

    @property
    def window(self):
        """How far a token sees in a sliding layer: to each side; in a decoder to the left, and
        one less, since there transformers counts the token itself."""
        return self.local_attention // 2 - self.causal

    @classmethod
    def read(cls, raw):
        """From the dict of a config.json, in the first schema (`global_attn_every_n_layers`,
        `global_rope_theta`) or the later one (`layer_types`, `rope_parameters`). Raises ValueError
        for anything this file does not build."""
        kind, rope = raw.get("model_type"), raw.get("rope_parameters") or {}
        usual = dict(hidden_activation="gelu", classifier_activation="gelu", attention_bias=False,
                     mlp_bias=False, norm_bias=False, classifier_bias=False)
        odd = [key for key, value in usual.items() if (raw.get(key) or value) != value]
        odd += [f"{r['rope_type']} RoPE" for r in rope.values()
                if r.get("rope_type", "default") != "default"]
        if odd or kind not in ("modernbert", "modernbert-decoder"):
            raise ValueError(f"model_type {kind!r} with {', '.join(odd) or 'no oddity'} is not the "
                             "ModernBERT that is built here")
        try:
            every, layers = raw.get("global_attn_every_n_layers", 3), raw["num_hidden_layers"]
            types = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
            theta, local = (rope.get(f"{name}_attention", {}).get("rope_theta", raw.get(key, usual))
                            for name, key, usual in (("full", "global_rope_theta", 160_000.0),
                                                     ("sliding", "local_rope_theta", 10_000.0)))
            given = {f.name: raw[f.name] for f in fields(cls) if raw.get(f.name) is not None}
            config = cls(**given | dict(
                layer_types=tuple(raw.get("layer_types") or types), raw=dict(raw),
                causal=kind == "modernbert-decoder",
                global_rope_theta=theta, local_rope_theta=local or theta))
        except (KeyError, TypeError) as e:
            raise ValueError(f"a size is missing: {e}") from None
        if config.hidden_size % config.num_attention_heads:
            raise ValueError("hidden_size is not a multiple of num_attention_heads")
        if len(config.layer_types) != config.num_hidden_layers:
            raise ValueError("layer_types does not have num_hidden_layers entries")
        return config

    def write(self, head="cloze"):
        """The dict for config.json: as it was read, with the class that opens it."""
        kind = ("SequenceClassification" if head == "cls" else
                "CausalLM" if self.causal else "MaskedLM")
        name = f"ModernBert{'Decoder' * self.causal}For{kind}"
        raw = {**self.raw, "architectures": [name], "dtype": "float32",
               "tie_word_embeddings": self.tie_word_embeddings, "classifier_pooling": "cls"}
        raw.pop("torch_dtype", None)
        return raw


# ------------------------------------------------------------------------------------ attention


class Plan(NamedTuple):
    """What all layers need to know of a batch, worked out once."""

    rope: dict  # layer type -> cos, sin, each (T, 1, K/2) in float32
    runs: list  # (rows, length) of neighbouring rows of equal length, in order
    mask: torch.Tensor | None  # of block_mask, for the local layers
    read: torch.Tensor | None  # (B,)
    cu: torch.Tensor  # starts, int32, on the device
    longest: int
    flash: bool  # torch's variable-length flash kernel
    causal: bool


def make_plan(config, tokens, starts, read, dtype):
    device, total = tokens.device, len(tokens)
    lengths = starts.cpu().diff()  # starts is best kept on the CPU: then nothing waits here
    sizes = lengths.tolist()
    longest = max(sizes)
    if min(sizes) < 1 or sum(sizes) != total or longest > config.max_position_embeddings:
        raise ValueError(f"rows of {min(sizes)} to {longest} tokens, {sum(sizes)} of {total} in "
                         f"all: need 1 to {config.max_position_embeddings} each")
    cu = starts.to(device, torch.int32, non_blocking=True)
    if config.causal and read is not None:  # without waiting for the GPU
        torch._assert_async((read == cu[1:] - 1).all(), "a decoder is read at the end of each row")
    row = torch.arange(len(sizes)).repeat_interleave(lengths).to(device, non_blocking=True)
    position = torch.arange(total, device=device) - cu[row]
    rope = {}
    for kind in set(config.layer_types):
        theta = config.global_rope_theta if kind == "full_attention" else config.local_rope_theta
        size = config.hidden_size // config.num_attention_heads
        inverse = 1 / theta ** (torch.arange(0, size, 2, device=device).float() / size)
        angle = (position[:, None].float() * inverse)[:, None]  # (T, 1, K/2)
        rope[kind] = angle.cos(), angle.sin()
    runs = [(len(list(rows)), length) for length, rows in groupby(sizes)]
    flash = flash_reason(device, dtype)[0]
    mask = None
    if not flash and longest > config.window + 1:  # else every row fits into the window
        mask = block_mask(row, config.window, 0 if config.causal else config.window)
    return Plan(rope, runs, mask, read, cu, longest, flash, config.causal)


def block_mask(row, left, right):
    """(blocks, 1, BLOCK, left + BLOCK + right), True where a query may see a key: query i of a
    block sits over key i + left of it, so the window is 0 <= j - i <= left + right; and both must
    lie in the same row. Room beyond the stream counts as a row of its own, which keeps NaN away."""
    blocks, width = -(-len(row) // BLOCK), left + BLOCK + right
    room = blocks * BLOCK - len(row)
    i, j = torch.arange(BLOCK)[:, None], torch.arange(width)
    band = ((j - i >= 0) & (j - i <= left + right)).to(row.device)
    queries = F.pad(row, (0, room), value=-1).view(blocks, BLOCK, 1)
    keys = F.pad(row, (left, right + room), value=-1).unfold(0, width, BLOCK)
    return (band & (queries == keys[:, None]))[:, None]


def attention(q, k, v, plan, window=None):
    """softmax(q k^T / sqrt(K)) v within each row; with `window`, over |i - j| <= window only; in
    a decoder (plan.causal) over j <= i only.

    q (T, H, K), or (B, H, K) for one query a row (which sees its whole row); k, v (T, H, K).
    On CUDA in bf16 this is torch's variable-length flash kernel; elsewhere
    scaled_dot_product_attention, one call for each run of equally long rows, or for local layers
    one call over the whole stream in blocks. No mask of T x T is ever built.
    """
    if plan.flash:
        from torch.nn.attention.varlen import varlen_attn

        one = len(q) != len(k)
        cu_q = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) if one else plan.cu
        far = -1 if window is None else window
        sides = (far, 0 if plan.causal and not one else far)
        longest = 1 if one else plan.longest
        return varlen_attn(q, k, v, cu_q, plan.cu, longest, plan.longest, window_size=sides)
    if window is not None and plan.mask is not None:
        return local_attention(q, k, v, plan.mask, window)
    sizes = [n * length for n, length in plan.runs]
    every = len(q) == len(k)
    queries = q.split(sizes if every else [n for n, _ in plan.runs])
    out, causal = [], plan.causal and every
    for (n, _), *qkv in zip(plan.runs, queries, k.split(sizes), v.split(sizes), strict=True):
        qkv = (x.unflatten(0, (n, -1)).transpose(1, 2) for x in qkv)  # (rows, H, length, K)
        y = F.scaled_dot_product_attention(*qkv, is_causal=causal)
        out.append(y.transpose(1, 2).flatten(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def local_attention(q, k, v, mask, window):
    """Sliding-window attention over the whole stream: BLOCK queries see the keys of their block
    and `window` more to each side (in a decoder, to the left), so the work is linear in T."""
    total, room, width = len(q), len(mask) * BLOCK - len(q), mask.shape[-1]
    q = F.pad(q, (0, 0, 0, 0, 0, room)).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    after = width - BLOCK - window + room
    k, v = (F.pad(x, (0, 0, 0, 0, window, after)).unfold(0, width, BLOCK).mT
            for x in (k, v))  # (blocks, H, width, K)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(0, 1)[:total]


def rotate(x, cos, sin):
    """RoPE, the two halves of a head as real and imaginary part. x (T, H, K)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


# --------------------------------------------------------------------------------------- modules


class Linear(nn.Linear):
    """x W^T without bias, computed in `self.compute` (None: as the weight is stored).

    The weight stays in its own precision. Its copy in the compute precision is made once and kept
    for as long as the weight does not change, so frozen weights are never cast twice.
    """

    compute = None

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x, out=slice(None)):
        """x (..., in) -> (..., out); `out` picks a slice of the output features."""
        weight = cast(self, self.weight, self.compute)[out]
        return F.linear(x.to(weight.dtype), weight)


def cast(module, weight, dtype):
    """`weight` in `dtype`; the copy is kept on `module` until the weight changes."""
    if dtype in (None, weight.dtype):
        return weight
    if weight.requires_grad and torch.is_grad_enabled():
        return weight.to(dtype)  # autograd has to see this one
    key = (weight.data_ptr(), weight._version, dtype)
    if module.__dict__.get("kept", (None,))[0] != key:
        with torch.inference_mode(False), torch.no_grad():  # training may use this copy as well
            module.__dict__["kept"] = key, weight.detach().to(dtype)
    return module.__dict__["kept"][1]


class GeGLU(torch.autograd.Function):
    """gelu(a) * b for ab = [a | b], the activation on the first half. Keeps only its input for
    the backward pass; autograd would keep gelu(a) beside it, half as much again."""

    @staticmethod
    def forward(ctx, ab):
        ctx.save_for_backward(ab)
        a, b = ab.chunk(2, -1)
        return F.gelu(a) * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors[0].chunk(2, -1)
        return torch.cat((torch.ops.aten.gelu_backward(grad * b, a), grad * F.gelu(a)), -1)


class Norm(nn.LayerNorm):
    """LayerNorm without bias."""

    def __init__(self, config):
        super().__init__(config.hidden_size, eps=config.norm_eps, bias=False)


class Attention(nn.Module):
    def __init__(self, config, kind):
        super().__init__()
        width = config.hidden_size
        self.heads, self.kind = config.num_attention_heads, kind
        self.window = config.window if kind == "sliding_attention" else None
        self.causal = config.causal
        if self.causal:
            self.q_proj, self.k_proj, self.v_proj = (Linear(width, width) for _ in range(3))
        else:
            self.Wqkv = Linear(width, 3 * width)
        self.Wo = Linear(width, width)

    def qkv(self, x, read=None):
        """Each (T, D); q (B, D) of the tokens `read` alone, if given."""
        at, width = x if read is None else x[read], x.shape[-1]
        if self.causal:
            return self.q_proj(at), self.k_proj(x), self.v_proj(x)
        if read is None:
            return self.Wqkv(x).chunk(3, -1)
        return self.Wqkv(at, slice(width)), *self.Wqkv(x, slice(width, None)).chunk(2, -1)

    def forward(self, x, plan, last=False):
        """x (T, D) -> (T, D), or (B, D) for the last layer: there only plan.read is ever read,
        and a global layer needs no other queries."""
        cos, sin = plan.rope[self.kind]
        one = plan.read if last and self.window is None else None
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x, one))
        q = rotate(q, *(cos, sin) if one is None else (cos[one], sin[one]))
        y = attention(q, rotate(k, cos, sin), v, plan, self.window).flatten(1)
        if last and self.window is not None:
            y = y[plan.read]
        return self.Wo(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.Wi = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.Wo = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.Wo(GeGLU.apply(self.Wi(x)))


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        # the norm after the embedding already stands before layer 0
        self.attn_norm = Norm(config) if index else nn.Identity()
        self.attn = Attention(config, config.layer_types[index])
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config)

    def forward(self, x, plan, last=False):
        y = self.attn(self.attn_norm(x), plan, last)
        x = (x[plan.read] if last else x) + y
        return x + self.mlp(self.mlp_norm(x))


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = Norm(config)


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = Norm(config)


class Head(nn.Module):
    """Dense, GELU, norm: what stands between the encoder and either of its outputs."""

    def __init__(self, config):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = Norm(config)

    def forward(self, h):
        return self.norm(F.gelu(self.dense(h)).to(h.dtype))


class Decoder(nn.Module):
    """h -> logits over the vocabulary. Its matrix is the embedding's (weight None) unless a
    checkpoint says otherwise; the bias is its own."""

    compute = None

    def __init__(self, config):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.weight = None
        if not config.tie_word_embeddings:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, h, tied, words):
        weight = tied if self.weight is None else self.weight
        if words is not None:  # a handful of rows: always in full precision
            return F.linear(h.to(weight.dtype), weight[words], self.bias[words])
        weight = cast(self, weight, self.compute)
        return F.linear(h.to(weight.dtype), weight).to(self.bias.dtype) + self.bias


class ModernBERT(nn.Module):
    """The encoder with the pretrained head "cloze", where a verdict is a word at [MASK] (Tiny
    Reward Models, section 2), or a fresh layer "cls", the paper's baseline (section 3.2). In a
    decoder (config.causal) both are read at the end of the row, where the word would come next."""

    def __init__(self, config, head="cloze"):
        super().__init__()
        self.config, self.head_kind = config, head
        self.checkpoint = False  # recompute unfrozen layers in the backward pass, to save memory
        self.model = Encoder(config)
        self.head_name = "lm_head" if config.causal and head == "cloze" else "head"
        self.add_module(self.head_name, Head(config))
        if head == "cloze":
            self.decoder = Decoder(config)
        else:
            self.classifier = nn.Linear(config.hidden_size, 2, bias=not config.causal)

    def forward(self, tokens, starts, read=None):
        """Hidden states: tokens (T,), starts (B+1,) -> (T, D); or with read (B,), one position of
        each row (of a decoder its last), -> (B, D) and nothing else of the last layer.

        The residual stream has the precision of the weights, the layers compute in theirs. Frozen
        bottom layers have no input that needs a gradient, so autograd keeps nothing of them."""
        compute = self.model.layers[0].attn.Wo.compute
        embeddings, dtype = self.model.embeddings, self.model.final_norm.weight.dtype
        plan = make_plan(self.config, tokens, starts, read, compute or dtype)
        x = embeddings.norm(embeddings.tok_embeddings(tokens))
        for i, layer in enumerate(self.model.layers):
            last = read is not None and i == self.config.num_hidden_layers - 1
            if self.checkpoint and x.requires_grad:
                x = torch.utils.checkpoint.checkpoint(layer, x, plan, last, use_reentrant=False)
            else:
                x = layer(x, plan, last)
        return self.model.final_norm(x)

    def logits(self, h, words=None):
        """h (N, D) -> (N, V), or (N, len(words)) for some words of the vocabulary alone.
        Under head "cls" always (N, 2)."""
        h = self.get_submodule(self.head_name)(h)
        if self.head_kind == "cls":
            return self.classifier(h)
        return self.decoder(h, self.model.embeddings.tok_embeddings.weight, words)

    def dtype_(self, dtype):
        """Compute in `dtype` over weights that stay as they are stored. Returns self."""
        for module in self.modules():
            if hasattr(module, "compute"):
                module.compute = dtype
        return self

    def init_weights(self, seed=0, only=""):
        """ModernBERT's initialisation, of the parameters with `only` in their name: normal cut off
        at 2 standard deviations; the matrices that write to the residual stream narrower by
        sqrt(2 layers); the classifier D^-0.5."""
        c, random = self.config, torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if only not in name:
                continue
            if p.ndim == 1:
                nn.init.constant_(p, float(name.endswith("norm.weight")))
                continue
            std = c.initializer_range
            if name.endswith(("Wo.weight", "dense.weight", "decoder.weight")):
                std /= math.sqrt(2 * c.num_hidden_layers)
            if name == "classifier.weight":
                std = c.hidden_size**-0.5
            cut = c.initializer_cutoff_factor * std
            nn.init.trunc_normal_(p, std=std, a=-cut, b=cut, generator=random)
        return self


# ----------------------------------------------------------------------- files, and the machine


def load(folder, head=None, seed=0):
    """The model of a folder in the Hub layout, float32, in eval mode.

    head None takes the head that the checkpoint has. "cls" over a masked-language-model
    checkpoint keeps its head.dense and head.norm under a fresh classifier, drawn from `seed`.
    Raises ValueError naming each tensor that is missing, not known, or of another shape. Only
    safetensors are read: nothing is unpickled.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    config = read_config(folder)
    found = "cls" if "Classification" in str(config.raw.get("architectures")) else "cloze"
    head = head or found
    if (head, found) == ("cloze", "cls"):
        raise ValueError(f"{folder} holds a classifier: it has no decoder for head 'cloze'")
    state = {}
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            state |= {name: tensor.float() for name, tensor in load_file(file).items()}
        except Exception as e:  # safetensors has its own error type for a cut-off file
            raise ValueError(f"{file} cannot be read ({e}); fetch or save it again") from None
    if not state:
        raise ValueError(f"{folder} has no model.safetensors (other formats are not read)")
    if config.tie_word_embeddings and "decoder.weight" in state:
        tied = state.pop("decoder.weight")
        if not torch.equal(tied, state.get("model.embeddings.tok_embeddings.weight", tied[:0])):
            raise ValueError(f"{folder}: decoder.weight differs from the embedding it is tied to; "
                             "set tie_word_embeddings to false in config.json to use it")
    with torch.device("meta"):
        model = ModernBERT(config, head)
    want = model.state_dict()
    if head != found:
        state = {k.removeprefix("lm_"): v for k, v in state.items() if not k.startswith("decoder.")}
        state |= {k: torch.zeros(v.shape) for k, v in want.items() if k.startswith("classifier.")}
    wrong = [f"{k} is missing" for k in want.keys() - state.keys()]
    wrong += [f"{k} is not known" for k in state.keys() - want.keys()]
    wrong += [f"{k} has shape {tuple(state[k].shape)}, config.json says {tuple(want[k].shape)}"
              for k in want.keys() & state.keys() if state[k].shape != want[k].shape]
    if wrong:
        raise ValueError(f"{folder}: {'; '.join(sorted(wrong)[:5])}{' ...' * (len(wrong) > 5)}")
    model.load_state_dict(state, assign=True)
    if head != found:
        model.init_weights(seed, "classifier")
    return model.requires_grad_(True).eval()


def read_config(folder):
    """The Config of a folder; ValueError names the file and what is wrong with it."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    try:
        return Config.read(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as e:
        raise ValueError(f"{file}: {e}") from None


def save(model, folder):
    """config.json and model.safetensors in the Hub layout; the tied matrix is stored once."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(model.config.write(model.head_kind), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def fetch(name, revision=None):
    """The folder of a model: `name` is one of NAMES, a folder, or a repository on the Hub, of
    which the files that are read here are fetched, or taken from the Hub's cache."""
    name = NAMES.get(str(name), str(name))
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{name}: no such folder (and no Hub name, which is OWNER/NAME)")
    from huggingface_hub import snapshot_download

    files = ["*.json", "model*.safetensors", "adapter_model.safetensors"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as e:  # the client raises its own, httpx's and the system's errors
        said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise ValueError(f"{name} could not be fetched from the Hub ({said}); check the name, the "
                         "network and HF_TOKEN, or give a folder") from None


def flash_reason(device, dtype):
    """(whether attention runs on torch's variable-length flash kernel, why)."""
    if torch.device(device).type != "cuda":
        return False, "sdpa in blocks (no CUDA)"
    if dtype not in (torch.bfloat16, torch.float16):
        return False, f"sdpa in blocks (the flash kernel has no {str(dtype)[6:]})"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False, "sdpa in blocks (the flash kernel needs an Ampere GPU or newer)"
    return True, "variable-length flash"


def pick_device(device="auto", dtype="auto"):
    """(device, compute dtype, the reason in words) for what the user asked and the machine has."""
    cuda, types = torch.cuda.is_available(), {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: give auto, cpu or cuda")
    if dtype not in ("auto", *types):
        raise ValueError(f"--dtype {dtype}: give auto, fp32 or bf16")
    if device == "cuda" and not cuda:
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")
    why = "asked for" if device != "auto" else "CUDA is there" if cuda else "no CUDA here"
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    kind = types.get(dtype, torch.bfloat16 if device == "cuda" else torch.float32)
    why_type = f"the default on {device}" if dtype == "auto" else "asked for"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    attention = flash_reason(device, kind)[1]
    reason = f"{device} ({why}), {str(kind)[6:]} ({why_type}), attention: {attention}"
    return torch.device(device), kind, reason


def peak_bytes(device):
    """The most memory that was used so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB, but bytes on a Mac


def main(name="nano"):
    from tokenizers import Tokenizer

    folder = fetch(name)
    model, tokenizer = load(folder, "cloze"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.config}")
    ids = tokenizer.encode("The better option is[MASK].").ids
    at = ids.index(tokenizer.token_to_id("[MASK]"))
    if model.config.causal:  # what comes next
        ids, at = ids[:at], at - 1
    at = torch.tensor([at])
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor(ids), torch.tensor([0, len(ids)]), at))[0]
    words = [tokenizer.decode([i]) for i in logits.topk(5).indices.tolist()]
    print(f"The better option is[MASK].  ->  {words}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
