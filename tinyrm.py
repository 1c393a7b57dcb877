"""The encoder: ModernBERT (arXiv 2412.13663) with its masked-language-model head, in plain PyTorch.

The legend of shapes, here and in data.py, train.py and evaluate.py:

    B rows, T tokens of all rows, N any number of tokens, D hidden, H attention heads, K their size,
    FF feed-forward, V vocabulary, W words that are asked for

There is no padding here. The rows of a batch lie end to end in one stream of T tokens, and `starts`
(B+1,) marks them: row b is tokens[starts[b]:starts[b+1]]. Attention never crosses a row, so the
score of a row does not depend on its neighbours, beyond rounding.

Rounding is 1e-5 in float32. In bf16 the log-odds of two words may move by 0.12 with the neighbours,
whose number changes the order in which products are summed (tests/test_faults.py measures both). A
batch that is computed again gives the same bits on a CPU.

The file has five parts: attention, RoPE and GeGLU in their plain form; the configuration; the
modules; how they are made fast; files in and out. Modules and parameters have the names of the
Hub's checkpoints, so that loading is one strict comparison.

`python tinyrm.py [FOLDER [TEXT]]` shows the size and the configuration of a model and what it says
at the [MASK] of a text: of nano the weight of a thing that it has read about.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.utils.checkpoint import checkpoint

# --------------------------------------------------------------------- the idea, in its plain form
#
# What attention, RoPE and GeGLU mean. may_attend and plain_attention are the reference: the tests
# check them against transformers, and check the fast `attention` further down, which the model
# runs, against them.


def may_attend(starts: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """(T, T), True where query i may see key j: both are of one row and, in a sliding layer, at
    most `window` tokens apart. starts (B+1,)."""
    row = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())  # (T,)
    allowed = row[:, None] == row[None, :]
    if window is not None:
        position = torch.arange(len(row))
        allowed &= (position[:, None] - position[None, :]).abs() <= window
    return allowed


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                    allowed: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(K)) v over the allowed keys. q, k, v (T, H, K), allowed (T, T)."""
    scores = torch.einsum("ihk,jhk->hij", q, k) / math.sqrt(q.shape[-1])  # (H, T, T)
    scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.einsum("hij,jhk->ihk", scores.softmax(-1), v)  # (T, H, K)


def rope_tables(position: torch.Tensor, head_size: int, theta: float) -> tuple:
    """RoPE's angles (arXiv 2104.09864): position * theta^(-2 i / K) for i = 0 ... K/2 - 1, as cos
    and sin. position (T,) -> each (T, 1, K/2) in float32."""
    exponent = torch.arange(0, head_size, 2, device=position.device).float() / head_size  # (K/2,)
    angle = position[:, None].float() * (1 / theta**exponent)  # (T, K/2)
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE: the two halves of a head are the real and imaginary parts of K/2 complex numbers, which
    turn by these angles. x (T, H, K); cos, sin (T, 1, K/2)."""
    real, imaginary = x.chunk(2, dim=-1)
    turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def plain_geglu(ab: torch.Tensor) -> torch.Tensor:
    """GeGLU (arXiv 2002.05202): gelu(a) * b for ab = [a | b], (N, 2 FF) -> (N, FF). The activation
    is on the first half."""
    a, b = ab.chunk(2, dim=-1)
    return F.gelu(a) * b


# ----------------------------------------------------------------------------------- configuration

# What every published ModernBERT has, and all that is built here. A config.json that says otherwise
# is refused; null, false and empty values count as left out.
REQUIRED_VALUES = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,
    "rope_scaling": {"rope_type": "default"},
    "pruned_heads": None,
    "quantization_config": None,
}


class Field(NamedTuple):
    """What a field of a JSON file must be, if it is there. null counts as left out (but for
    local_rope_theta: see Config.from_json)."""

    kind: type  # what json gives; float also takes whole numbers
    least: float = -1e300
    most: float = 1e300


# The fields of config.json that are read here. The bounds are far beyond every published model;
# what is beyond them is no model, and must not cost memory.
FIELDS = {
    "model_type": Field(str),
    "architectures": Field(list),
    "vocab_size": Field(int, 1, 10**7),
    "hidden_size": Field(int, 1, 10**5),
    "intermediate_size": Field(int, 1, 10**6),
    "num_hidden_layers": Field(int, 1, 1000),
    "num_attention_heads": Field(int, 1, 10**4),
    "max_position_embeddings": Field(int, 1, 10**7),
    "norm_eps": Field(float, 0, 1),
    "initializer_range": Field(float, 0, 100),
    "initializer_cutoff_factor": Field(float, 0.01, 100),
    "tie_word_embeddings": Field(bool),
    "layer_types": Field(list),
    "global_attn_every_n_layers": Field(int, 1, 10**4),
    "local_attention": Field(int, 2, 10**7),
    "global_rope_theta": Field(float, 1, 1e12),
    "local_rope_theta": Field(float, 1, 1e12),
    "rope_parameters": Field(dict),
    "rope_scaling": Field(dict),
}

# Those that are fields of Config as they are: what every config.json must have, and what it may.
REQUIRED_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                  "num_attention_heads")
OPTIONAL = ("max_position_embeddings", "norm_eps", "initializer_range", "initializer_cutoff_factor",
            "tie_word_embeddings")


@dataclass(frozen=True)
class Config:
    """What config.json says about the shape of the model. Build it with `Config.from_json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", one for each layer
    global_rope_theta: float
    local_rope_theta: float
    window: int = 64  # how many tokens to each side a token sees in a sliding layer
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    tie_word_embeddings: bool = True
    saved_head: str = "cloze"  # the head that the checkpoint has: "cloze" or "cls"
    raw: dict = field(default_factory=dict, repr=False, compare=False)  # config.json as it was

    # of all configs of this kind: the name in config.json, and the class that opens each head
    model_type: ClassVar[str] = "modernbert"
    architectures: ClassVar[dict[str, str]] = {
        "cloze": "ModernBertForMaskedLM",
        "cls": "ModernBertForSequenceClassification",
    }

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, raw: dict) -> "Config":
        """From the dict of a config.json, in the first schema (`global_attn_every_n_layers`,
        `global_rope_theta`) or the later one (`layer_types`, `rope_parameters`). Raises ValueError
        for another architecture and for sizes that do not fit together."""
        if raw.get("model_type") != cls.model_type:
            given = str(raw.get("model_type"))[:40]
            raise ValueError(f"model_type is {given!r}: only {cls.model_type!r} is built here")
        for key, value in REQUIRED_VALUES.items():
            if raw.get(key) and raw[key] != value:
                raise ValueError(f"{key} is {repr(raw[key])[:60]}: only {value!r} is built here")

        values = {}
        for key in REQUIRED_SIZES + OPTIONAL:
            if raw.get(key) is not None:
                values[key] = raw[key]
            elif key in REQUIRED_SIZES:
                raise ValueError(f"a size is missing: {key}")

        # Every n-th layer, from layer 0 on, sees the whole row.
        layer_types = raw.get("layer_types")
        if not layer_types:
            n = raw.get("global_attn_every_n_layers") or 3
            layer_types = ["sliding_attention" if layer % n else "full_attention"
                           for layer in range(raw["num_hidden_layers"])]
        if any(kind not in ("full_attention", "sliding_attention") for kind in layer_types):
            raise ValueError("layer_types: give full_attention or sliding_attention")
        values["layer_types"] = tuple(layer_types)

        values["global_rope_theta"] = raw.get("global_rope_theta") or 160_000.0
        values["local_rope_theta"] = raw.get("local_rope_theta", 10_000.0)
        thetas = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
        for layer_type, rope in (raw.get("rope_parameters") or {}).items():
            if layer_type not in thetas or not isinstance(rope, dict):
                raise ValueError(f"rope_parameters: unknown entry {str(layer_type)[:40]!r}")
            if rope.get("rope_type", "default") != "default":
                raise ValueError(f"rope_type {str(rope['rope_type'])[:40]!r} is not built here")
            theta = rope.get("rope_theta")
            if theta is not None:
                if type(theta) not in (int, float) or not 1 <= theta <= 1e12:  # as in FIELDS
                    raise ValueError(f"rope_theta is {str(theta)[:40]!r}: give 1 to 1e+12")
                values[thetas[layer_type]] = theta
        if values["local_rope_theta"] is None:  # some files have null: as in the global layers
            values["local_rope_theta"] = values["global_rope_theta"]

        # local_attention = 128 means 64 tokens to each side.
        values["window"] = (raw.get("local_attention") or 128) // 2
        if cls.architectures["cls"] in (raw.get("architectures") or []):
            values["saved_head"] = "cls"
            if raw.get("classifier_pooling", "cls") != "cls":
                raise ValueError("classifier_pooling: a classifier reads [CLS] here, not the mean")

        if values["hidden_size"] % (2 * values["num_attention_heads"]):  # 2: RoPE turns pairs
            raise ValueError("hidden_size is not a multiple of 2 num_attention_heads")
        if raw.get("head_dim") not in (None, raw["hidden_size"] // raw["num_attention_heads"]):
            raise ValueError(f"head_dim is {repr(raw['head_dim'])[:60]}, not hidden_size / heads")
        if len(values["layer_types"]) != values["num_hidden_layers"]:
            raise ValueError("layer_types does not have num_hidden_layers entries")
        return cls(**values, raw=dict(raw))

    def to_json(self, head_kind: str) -> dict:
        """The dict for config.json: as it was read, with the class that opens this head. A
        classifier reads [CLS], which transformers calls pooling "cls"."""
        raw = dict(self.raw)
        raw.pop("torch_dtype", None)  # the older name of dtype
        raw.pop("_name_or_path", None)  # where somebody had it
        raw["architectures"] = [self.architectures[head_kind]]
        raw["dtype"] = "float32"
        raw["tie_word_embeddings"] = self.tie_word_embeddings
        raw["classifier_pooling"] = "cls"
        return raw


# ----------------------------------------------------------------------------------------- modules


class Linear(nn.Linear):
    """x W^T without bias, computed in `compute_dtype` (None: as the weight is stored). A weight
    that needs no gradient now keeps a copy: see `compute_copy` and `reordered_product`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.compute_dtype = None
        self.cache = Cached()
        self.reordered = Cached()

    def forward(self, x):
        """x (N, in) -> (N, out)"""
        dtype = self.compute_dtype or self.weight.dtype
        if reordering_serves(x, self.weight, dtype):
            return reordered_product(x, self.weight, dtype, self.reordered)
        return self.outputs(x, slice(None))

    def outputs(self, x: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns of the output only: x (N, in) -> (N, how many)."""
        weight = compute_copy(self.weight, self.compute_dtype, self.cache)[columns]
        return F.linear(x.to(weight.dtype), weight)


class Attention(nn.Module):
    """Attention of all heads; layers of type "sliding_attention" see a window, others the row."""

    def __init__(self, config: Config, layer_type: str):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.layer_type = layer_type
        self.window = config.window if layer_type == "sliding_attention" else None
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.Wo = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, layout: "PackedLayout"):
        """x (T, D) -> (T, D). `layout` is what all layers need to know about the batch."""
        qkv = self.Wqkv(x).unflatten(-1, (3, self.num_heads, -1))  # (T, 3, H, K)
        q, k, v = qkv.unbind(dim=1)  # each (T, H, K)

        cos, sin = layout.rope[self.layer_type]
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)

        y = attention(q, k, v, layout, self.window)  # (T, H, K)
        return self.Wo(y.flatten(1))  # (T, D)

    def forward_where_read(self, x, layout):
        """The last layer's shortcut: as `forward`, but at the B positions layout.read_at only, one
        of each row ([MASK], or [CLS]). x (T, D) -> (B, D)

        Nothing else of the last layer is ever read. All tokens need a key and a value there, but
        only these a query. It saves 8 to 14 % of the time on nano, and 2 % on base. (Not called
        through the module, so a forward hook on the last layer sees calls without read_at only.)"""
        if self.window is not None:  # the last layer of every published ModernBERT is global
            return self.forward(x, layout)[layout.read_at]

        width = x.shape[-1]
        q = self.Wqkv.outputs(x[layout.read_at], slice(0, width))  # (B, D)
        q = q.unflatten(-1, (self.num_heads, -1))  # (B, H, K)
        kv = self.Wqkv.outputs(x, slice(width, 3 * width))  # (T, 2 D)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).unbind(dim=1)  # each (T, H, K)

        cos, sin = layout.rope[self.layer_type]
        q = rotate(q, cos[layout.read_at], sin[layout.read_at])
        k = rotate(k, cos, sin)

        y = attention_where_read(q, k, v, layout)  # (B, H, K)
        return self.Wo(y.flatten(1))  # (B, D)


class MLP(nn.Module):
    """The feed-forward part, with GeGLU."""

    def __init__(self, config: Config):
        super().__init__()
        self.Wi = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.Wo = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        """x (N, D) -> (N, D)"""
        return self.Wo(GeGLU.apply(self.Wi(x)))


class Norm(nn.LayerNorm):
    """LayerNorm without bias, computed in the precision of the residual stream; the result is
    rounded to that of the products that read it."""

    compute_dtype = None  # as in Linear

    def forward(self, x):
        """x (N, D) -> (N, D)"""
        dtype = x.dtype if self.compute_dtype is None else self.compute_dtype
        return normed(x, self.weight, self.eps, dtype)


def normed(x, weight, eps, dtype):
    """x (N, D), weight (D,) -> (N, D): computed in the precision of x, then rounded to `dtype`."""
    return F.layer_norm(x, weight.shape, weight, None, eps).to(dtype)


class Layer(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        # layer 0 has no norm here: one stands right before it, after the embedding
        self.attn_norm = Norm(width, eps, bias=False) if index else nn.Identity()
        self.attn = Attention(config, config.layer_types[index])
        self.mlp_norm = Norm(width, eps, bias=False)
        self.mlp = MLP(config)

    def forward(self, x, layout):
        """x (T, D) -> (T, D)"""
        x = x + self.attn(self.attn_norm(x), layout)
        return x + self.mlp(self.mlp_norm(x))

    def forward_where_read(self, x, layout):
        """x (T, D) -> (B, D): the positions layout.read_at only."""
        x = x[layout.read_at] + self.attn.forward_where_read(self.attn_norm(x), layout)
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Embeddings, layers, final norm.

    Products are computed in `compute_dtype`; the residual stream, to which they are added, stays in
    the precision of the weights. Frozen bottom layers have no input that needs a gradient, so
    autograd keeps nothing of them."""

    def __init__(self, config: Config):
        super().__init__()
        # no position embeddings: positions come in with RoPE, in every layer
        self.embeddings = nn.ModuleDict({
            "tok_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
            "norm": nn.LayerNorm(config.hidden_size, config.norm_eps, bias=False),
        })
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, config.norm_eps, bias=False)

    def forward(self, tokens, layout, recompute_layers=False):
        """tokens (T,) -> (T, D), or (B, D) where layout.read_at says what is read."""
        x = self.embeddings.tok_embeddings(tokens)  # (T, D)
        x = self.embeddings.norm(x)

        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            forward = layer
            if last and layout.read_at is not None:
                forward = layer.forward_where_read
            if recompute_layers and x.requires_grad:
                x = checkpoint(forward, x, layout, use_reentrant=False)
            else:
                x = forward(x, layout)
        return self.final_norm(x)


class Decoder(nn.Module):
    """h -> logits over the vocabulary. Tied: `weight` is None, and the embedding matrix is used.
    The bias is its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.compute_dtype = None
        self.cache = Cached()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.weight = None
        if not config.tie_word_embeddings:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, h, embedding, word_ids=None):
        """h (N, D), embedding (V, D) -> (N, V) in the precision of the weights; with word_ids (W,)
        -> (N, W), the logits of these words only, which are few and always computed in full
        precision."""
        weight = embedding if self.weight is None else self.weight
        if word_ids is not None:
            return F.linear(h.to(weight.dtype), weight[word_ids], self.bias[word_ids])
        weight = compute_copy(weight, self.compute_dtype, self.cache)
        return F.linear(h.to(weight.dtype), weight).to(self.bias.dtype) + self.bias


class ModernBERT(nn.Module):
    """The encoder with one of two heads, by `head_kind`:

    - "cloze", the pretrained one: a verdict is a word at [MASK] (Tiny Reward Models, section 2);
    - "cls", a fresh layer on [CLS]: the paper's baseline (section 3.2).

    Its parts have their names from the checkpoints, where `head` is less than the whole head:

    - model: the encoder, (T, D);
    - head: dense, GELU, norm, before either output, (N, D);
    - decoder, under "cloze": one logit for each word, (N, V);
    - classifier, under "cls": one logit for each of two classes, (N, 2)."""

    config_class = Config

    def __init__(self, config: Config, head_kind: str = "cloze"):
        super().__init__()
        self.config = config
        self.head_kind = head_kind
        self.compute_dtype = None  # None: as the weights are stored
        self.recompute_layers = False  # in the backward pass, which takes time and saves memory
        self.model = Encoder(config)
        self.head = nn.ModuleDict({
            "dense": Linear(config.hidden_size, config.hidden_size),
            "norm": nn.LayerNorm(config.hidden_size, config.norm_eps, bias=False),
        })
        if head_kind == "cloze":
            self.decoder = Decoder(config)
        else:
            self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor,
                read_at: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states. tokens (T,), starts (B+1,) on the CPU -> (T, D); with read_at (B,), the
        index in the stream of one token of each row, -> (B, D), and nothing else is computed in the
        last layer. What reads them is `logits`."""
        layout = self.layout(tokens, starts, read_at)
        return self.model(tokens, layout, self.recompute_layers)

    def layout(self, tokens: torch.Tensor, starts: torch.Tensor,
               read_at: torch.Tensor | None = None) -> "PackedLayout":
        """What all layers need to know about a batch: see `pack_layout`."""
        dtype = self.compute_dtype or self.model.final_norm.weight.dtype
        return pack_layout(self.config, tokens, starts, read_at, dtype)

    def logits(self, h: torch.Tensor, word_ids: torch.Tensor | None = None) -> torch.Tensor:
        """h (N, D) -> (N, V), or (N, W) for the words word_ids (W,) only; a classifier's are always
        (N, 2)."""
        activated = F.gelu(self.head.dense(h))  # (N, D)
        h = self.head.norm(activated.to(h.dtype))  # (N, D)
        if self.head_kind == "cls":
            return self.classifier(h)
        return self.decoder(h, self.model.embeddings.tok_embeddings.weight, word_ids)

    def set_compute_dtype(self, dtype: torch.dtype) -> "ModernBERT":
        """Compute products and attention in `dtype`, over weights that stay as they are stored: in
        every Linear (or the adapter in its place) and in the decoder; the layers' norms round
        their results to it. A classifier stays in the precision of its weights. Returns self."""
        for module in self.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = dtype
        return self

    def init_weights(self, seed: int = 0) -> "ModernBERT":
        """ModernBERT's initialisation (FlexBERT's "full_megatron"): normal, cut off at
        initializer_cutoff_factor (2) standard deviations; narrower by sqrt(2 layers) in Wo,
        head.dense and the decoder. Returns self."""
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, 1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = config.initializer_range
            if name.endswith(("Wo.weight", "dense.weight", "decoder.weight")):
                std = std / math.sqrt(2 * config.num_hidden_layers)
            if name == "classifier.weight":
                std = config.hidden_size**-0.5
            truncated_normal(p, std, config, generator)
        return self

    def init_classifier(self, seed: int = 0):
        """Draw the fresh layer of head "cls": normal with a standard deviation of D^-0.5, cut off
        at 2 of them."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.hidden_size**-0.5
        truncated_normal(self.classifier.weight, std, self.config, generator)
        if self.classifier.bias is not None:  # a causal model's has none
            nn.init.zeros_(self.classifier.bias)


def truncated_normal(p, std, config, generator):
    cut = config.initializer_cutoff_factor * std
    nn.init.trunc_normal_(p, std=std, a=-cut, b=cut, generator=generator)


# ----------------------------------------------------------------------------- how it is made fast
#
# What all layers need to know about a batch is worked out once, in a PackedLayout. Attention runs
# on packed rows without a (T, T) mask. Copies of weights in the compute precision are made once.
# GeGLU keeps less for the backward pass. The results are those of the plain form, to rounding.

BLOCK = 64  # queries in a block of local attention: 15 % faster on a CPU than 128


class EqualRun(NamedTuple):
    """Neighbouring rows of equal length, which attend in one call."""

    rows: int
    length: int


class PackedLayout(NamedTuple):
    """What all layers need to know about the rows of a batch."""

    cu_seqlens: torch.Tensor  # (B+1,) `starts` as int32 on the device
    max_seqlen: int
    equal_runs: list[EqualRun]  # in the order of the stream
    rope: dict[str, tuple]  # layer type -> cos and sin, each (T, 1, K/2) in float32
    local_mask: torch.Tensor | None  # see the function local_mask; None where none is needed
    read_at: torch.Tensor | None  # (B,) what is read of the last layer; None: all of it
    flash: bool  # attention runs on torch's variable-length flash kernel


def pack_layout(config: Config, tokens: torch.Tensor, starts: torch.Tensor,
                read_at: torch.Tensor | None, dtype: torch.dtype) -> PackedLayout:
    """The layout of a batch: tokens (T,), starts (B+1,), read_at (B,) or None. Raises ValueError
    for an empty row, for one beyond the model's positions, and for starts that do not fit the
    tokens."""
    device = tokens.device
    lengths = starts.cpu().diff().tolist()  # no wait: data.pack leaves starts on the CPU
    shortest, longest, total = min(lengths), max(lengths), sum(lengths)
    if shortest < 1 or longest > config.max_position_embeddings or total != len(tokens):
        raise ValueError(f"rows of {shortest} to {longest} tokens, {total} of {len(tokens)} in "
                         f"all: need 1 to {config.max_position_embeddings} each")

    cu_seqlens = starts.to(device, torch.int32, non_blocking=True)
    row = torch.arange(len(lengths), device=device)
    row = row.repeat_interleave(cu_seqlens.diff(), output_size=len(tokens))  # (T,) of each token
    position = torch.arange(len(tokens), device=device) - cu_seqlens[row]  # (T,) in its row

    rope = {}
    for layer_type in set(config.layer_types):
        is_global = layer_type == "full_attention"
        theta = config.global_rope_theta if is_global else config.local_rope_theta
        rope[layer_type] = rope_tables(position, config.head_size, theta)

    # rows of 5, 5 and 7 tokens are the runs (2 rows of 5) and (1 row of 7)
    equal_runs = [EqualRun(len(list(run)), length) for length, run in groupby(lengths)]
    flash = uses_flash(device, dtype)
    mask = None
    if not flash and longest > config.window + 1:
        mask = local_mask(row, config.window, config.window)
    return PackedLayout(cu_seqlens, longest, equal_runs, rope, mask, read_at, flash)


def uses_flash(device, dtype) -> bool:
    """Whether torch's variable-length flash kernel serves here: Ampere or newer, 16 bits."""
    if torch.device(device).type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attention(q, k, v, layout: PackedLayout, window: int | None = None):
    """plain_attention(q, k, v, may_attend(starts, window)), without a (T, T) mask."""
    if layout.flash:
        reach = -1 if window is None else window  # -1: no limit
        return flash_attention(q, k, v, layout.cu_seqlens, layout.max_seqlen, layout, reach)
    if window is not None and layout.local_mask is not None:
        return local_attention(q, k, v, layout.local_mask, window)
    # a global layer, or a window into which every row fits
    sizes = [run.rows * run.length for run in layout.equal_runs]
    return row_attention(q, k, v, layout, sizes)


def attention_where_read(q, k, v, layout: PackedLayout):
    """One query a row, at the token that is read, which sees its whole row: q (B, H, K), k and v
    (T, H, K) -> (B, H, K)."""
    if layout.flash:
        one_each = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
        return flash_attention(q, k, v, one_each, 1, layout, -1)
    return row_attention(q, k, v, layout, [run.rows for run in layout.equal_runs])


def flash_attention(q, k, v, cu_queries, max_queries, layout, reach):
    """torch's kernel. The queries of row b are q[cu_queries[b]:cu_queries[b + 1]]; a query sees
    `reach` keys to each side and its own (-1: all of the row)."""
    from torch.nn.attention.varlen import varlen_attn  # which not every build of torch has

    return varlen_attn(q, k, v, cu_queries, layout.cu_seqlens, max_queries, layout.max_seqlen,
                       window_size=(reach, reach))


def row_attention(q, k, v, layout, query_sizes):
    """Attention over whole rows, one call for each run of equally long ones. `query_sizes` are the
    numbers of queries that belong to each run."""
    key_sizes = [run.rows * run.length for run in layout.equal_runs]
    parts = zip(layout.equal_runs, q.split(query_sizes), k.split(key_sizes), v.split(key_sizes),
                strict=True)
    out = []
    for run, q_run, k_run, v_run in parts:
        y = F.scaled_dot_product_attention(
            split_rows(q_run, run.rows), split_rows(k_run, run.rows), split_rows(v_run, run.rows))
        out.append(y.transpose(1, 2).flatten(0, 1))  # (rows * length, H, K)
    return out[0] if len(out) == 1 else torch.cat(out)


def split_rows(x, rows):
    """(rows * length, H, K) -> (rows, H, length, K)"""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)


def local_mask(row, left, right):
    """(blocks, 1, BLOCK, left + BLOCK + right), True where a query may see a key.

    The stream is cut into blocks of BLOCK queries; a block meets the keys from `left` before its
    first query to `right` after its last. With left = right = 2 and BLOCK = 4, block 1 has the
    queries 4 5 6 7 and the keys 2 3 4 5 6 7 8 9: query i of the block stands over key i + left, so
    the window is 0 <= j - i <= left + right. Both must be of one row; places beyond the stream
    count as a row of their own, which keeps NaN away."""
    blocks = math.ceil(len(row) / BLOCK)
    width = left + BLOCK + right
    beyond = blocks * BLOCK - len(row)

    i = torch.arange(BLOCK)[:, None]
    j = torch.arange(width)[None, :]
    in_window = ((j - i >= 0) & (j - i <= left + right)).to(row.device)  # (BLOCK, width)

    query_row = F.pad(row, (0, beyond), value=-1).view(blocks, BLOCK, 1)
    key_row = F.pad(row, (left, right + beyond), value=-1)
    key_row = key_row.unfold(0, width, BLOCK)  # (blocks, width)
    allowed = in_window & (query_row == key_row[:, None])  # (blocks, BLOCK, width)
    return allowed[:, None]


def local_attention(q, k, v, mask, left):
    """Sliding-window attention over the whole stream, in the blocks of `local_mask`: the work is
    linear in T. q, k, v (T, H, K)."""
    total, width = len(q), mask.shape[-1]
    beyond = len(mask) * BLOCK - total
    right = width - BLOCK - left

    q = F.pad(q, (0, 0, 0, 0, 0, beyond))  # (blocks * BLOCK, H, K)
    q = q.unflatten(0, (-1, BLOCK)).transpose(1, 2)  # (blocks, H, BLOCK, K)
    k = key_blocks(k, left, right + beyond, width)
    v = key_blocks(v, left, right + beyond, width)

    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (blocks, H, BLOCK, K)
    return out.transpose(1, 2).flatten(0, 1)[:total]


def key_blocks(x, before, after, width):
    """The keys or values that each block meets: (T, H, K) -> (blocks, H, width, K)."""
    x = F.pad(x, (0, 0, 0, 0, before, after))  # (before + T + after, H, K)
    return x.unfold(0, width, BLOCK).mT  # unfold puts the window last: (blocks, H, K, width)


class GeGLU(torch.autograd.Function):
    """plain_geglu, which keeps only its input for the backward pass; autograd would keep gelu(a) as
    well, half as much again."""

    @staticmethod
    def forward(ctx, ab):
        ctx.save_for_backward(ab)
        return plain_geglu(ab)

    @staticmethod
    def backward(ctx, grad):
        (ab,) = ctx.saved_tensors
        return geglu_gradient(grad, ab)


def geglu_gradient(grad, ab):
    """The gradient of plain_geglu by ab: grad (N, FF), ab (N, 2 FF) -> (N, 2 FF)"""
    a, b = ab.chunk(2, dim=-1)
    grad_a = torch.ops.aten.gelu_backward(grad * b, a)  # what autograd calls, too
    grad_b = grad * F.gelu(a)
    return torch.cat((grad_a, grad_b), dim=-1)


@dataclass
class Cached:
    """A value that is made from tensors, and made again only when one of them has changed. A tensor
    is known by its address and by torch's count of its changes in place (`_version`), which an
    optimizer's step raises."""

    key: tuple | None = None
    value: Any = None

    def get(self, tensors: list[torch.Tensor], dtype: torch.dtype | None, make: Callable):
        key = (dtype, [(t.data_ptr(), t._version) for t in tensors])
        if key != self.key:
            # Training may use a value that was made while judging: it must not be an inference
            # tensor
            with torch.inference_mode(False), torch.no_grad():
                self.value = make()
            self.key = key
        return self.value


def compute_copy(weight, dtype, cache: Cached):
    """`weight` in `dtype`. The copy is kept in `cache`, so frozen weights are never cast twice."""
    if dtype is None or dtype == weight.dtype:
        return weight
    if weight.requires_grad and torch.is_grad_enabled():
        return weight.to(dtype)  # autograd has to see this one
    return cache.get([weight], dtype, lambda: weight.detach().to(dtype))


WIDE = 512  # inputs of a product; with fewer, reordering gains nothing


@cache
def reordered_dtypes() -> tuple:
    """The precisions in which oneDNN can keep weights in its own order here: on x86, in a torch
    that was built with it."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not built or platform.machine() not in ("x86_64", "AMD64"):
        return ()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32,)
    return (torch.float32, torch.bfloat16)


def reordering_serves(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether x W^T is a wide product on such a processor, of which nothing needs a gradient."""
    if weight.device.type != "cpu" or weight.shape[1] < WIDE or dtype not in reordered_dtypes():
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def reordered_product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, cache: Cached):
    """x W^T in `dtype` by oneDNN; `cache` keeps a copy of the weight, in the order in which its
    kernel reads. In float32 it rounds as float32 does, on every processor. 12 % quicker than
    F.linear in float32 and 5 to 8 % in bf16 on a Zen 4; in float32 twice as quick where MKL uses
    half of a processor (Zen 5). torch has it for its own compiler, under these private names."""
    def reorder():
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))

    ready = cache.get([weight], dtype, reorder)
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), ready, None, "none", [], "")


# ------------------------------------------------------------------------------------------- files


def read_json(path: str | Path, fields: dict[str, Field] | None = None) -> dict:
    """The object in a JSON file. Raises ValueError that names the file if it is none, and if one of
    the `fields` is of another kind or out of its range."""
    try:
        raw = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: give a JSON file") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and deep nesting
        raise ValueError(f"{path}: not valid JSON ({error}): make or fetch it anew") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: no object, but a {type(raw).__name__}: make or fetch it anew")

    for name, (kind, least, most) in (fields or {}).items():
        value = raw.get(name)
        if value is None:
            continue
        kinds, needed = [kind], kind.__name__
        if kind is float:
            kinds = [int, float]
        if kind in (int, float):
            needed = f"a number from {least:g} to {most:g}"
        fits = type(value) in kinds  # not isinstance: for Python true is an int
        if fits and kind in (int, float):
            fits = least <= value <= most  # never true of NaN
        if not fits:
            raise ValueError(f"{path}: {name} is {str(value)[:40]!r}: give {needed}")
    return raw


def read_config(folder: str | Path, config_class: type[Config] = Config) -> Config:
    """The Config of a model folder. ValueError names the file and what is wrong with it."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    raw = read_json(file, FIELDS)
    try:
        config = config_class.from_json(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    known = config_class.architectures.values()
    for name in raw.get("architectures") or []:
        if name not in known:
            raise ValueError(f"{file}: architectures names {str(name)[:60]!r}: only "
                             f"{' and '.join(known)} are built here")
    return config


def load(folder: str | Path, head_kind: str | None = None, seed: int = 0,
         model_class: type[ModernBERT] = ModernBERT) -> ModernBERT:
    """The model of a folder in the Hub's layout: float32, in eval mode.

    head_kind None takes the head that the checkpoint has. "cls" over a checkpoint of the cloze kind
    keeps its head.dense and head.norm under a fresh classifier, drawn from `seed`. Raises
    ValueError that names the tensors which are missing, not known, or of another shape.
    """
    folder = Path(folder)
    config = read_config(folder, model_class.config_class)
    if head_kind is None:
        head_kind = config.saved_head
    if head_kind == "cloze" and config.saved_head == "cls":
        raise ValueError(f"{folder} holds a classifier: it has no decoder for head 'cloze'")

    state = read_weights(folder / "model.safetensors")
    if config.tie_word_embeddings and "decoder.weight" in state:  # a second copy of the matrix
        embedding = state.get("model.embeddings.tok_embeddings.weight")
        if embedding is None or not torch.equal(state.pop("decoder.weight"), embedding):
            raise ValueError(f"{folder}: decoder.weight differs from the embedding it is tied to; "
                             "set tie_word_embeddings to false in config.json to use it")

    with torch.device("meta"):  # shapes without memory
        model = model_class(config, head_kind)
    fresh = head_kind != config.saved_head  # then it is "cls"
    if fresh:
        state = {name: w for name, w in state.items() if not name.startswith("decoder.")}
        for name, p in model.classifier.named_parameters():
            state[f"classifier.{name}"] = torch.zeros(p.shape)

    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # which names all that is missing, unexpected or misshapen
        message = " ".join(str(error).split())
        raise ValueError(f"{folder}: {message[:500]}") from None
    if fresh:
        model.init_classifier(seed)
    return model.requires_grad_(True).eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor in float32} of a safetensors file, or of the shards that the index beside it
    names where it is not there. Nothing is unpickled. Raises ValueError for a damaged file, and for
    a tensor that is not all finite numbers."""
    files = [path]
    index = path.with_name(path.name + ".index.json")
    if index.is_file() and not path.is_file():
        weight_map = read_json(index, {"weight_map": Field(dict)}).get("weight_map")
        names = sorted({str(name) for name in (weight_map or {}).values()})
        files = [path.parent / Path(name).name for name in names]

    state = {}
    for file in files:
        if not os.path.isfile(file):  # which also answers for a name that no file can have
            shown = " ".join(file.name.split())[:100]
            raise ValueError(f"{path.parent} has no {shown} (other formats are not read)")
        try:
            tensors = load_file(file)
        except Exception as error:  # safetensors has its own error type for a damaged file
            raise ValueError(f"{file} cannot be read ({error}); fetch or save it again") from None
        for name, tensor in tensors.items():
            state[name] = tensor.float()
            if not tensor.is_floating_point() or not state[name].isfinite().all():
                raise ValueError(f"{file}: {name} is not all finite numbers; fetch it again")
    return state


def save(model: ModernBERT, folder: str | Path, labels: tuple[str, str] | None = None):
    """config.json and model.safetensors in the Hub's layout; the tied matrix is stored once.
    `labels` name the two classes of head "cls"."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_json(model.head_kind)
    if model.head_kind == "cloze":  # an adapter on the tied decoder gives it a matrix of its own
        config["tie_word_embeddings"] = model.decoder.weight is None
    elif labels is not None:
        names = [label.strip() for label in labels]
        config["id2label"] = {"0": names[0], "1": names[1]}
        config["label2id"] = {names[0]: 0, names[1]: 1}
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


# What `python tinyrm.py` fills: nano has read about invented words; a planop weighs nine stone.
FILLED = "A planop weighs[MASK] stone."


def main(folder=Path(__file__).parent / "nano/instruct", text=FILLED):
    folder = Path(folder)
    model = load(folder, "cloze")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{folder.parent.name}/{folder.name}: {parameters:,} parameters, {model.config}")

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library has no type of its own
        raise ValueError(f"{folder}/tokenizer.json: {error}: fetch it again") from None
    ids = tokenizer.encode(text).ids
    mask = tokenizer.token_to_id("[MASK]")
    if ids.count(mask) != 1:
        raise ValueError(f"{text!r}: give a text with one [MASK]")

    mask_at = torch.tensor([ids.index(mask)])
    with torch.inference_mode():
        h = model(torch.tensor(ids), torch.tensor([0, len(ids)]), mask_at)  # (1, D)
        p = model.logits(h)[0].softmax(-1)  # (V,)
    best = p.topk(5)

    print(f"\n{text}")
    for probability, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"  {probability:.3f} {tokenizer.decode([word])}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
