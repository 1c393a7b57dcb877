"""What may be seen in a row: does it matter that both responses are read in one context (the
paper's first mechanism), or that the encoder looks in both directions?

The encoder, its weights and its rows stay the same; what is forbidden is attention.

    all       as it is: every token of a row sees the row, or its window
    apart     A and B cannot see each other until the verdict: the prompt sees the prompt, A the
              prompt and A, B the prompt and B; the tokens after B (the question and [MASK]) see all
    causal    a token sees itself and what stands before it

Training and judging may forbid different things: `fit.Cell` has the fields `sight` and
`judged_sight`.
`apart` is stricter than one response a context: there the response and the question see each other,
here neither the prompt nor a response sees the question, which would carry the other response to
them. And the encoder was pre-trained with full sight, so what forbidding costs is the change of
what it knows as well as what it no longer sees. These are slow forms, apart from tinyrm.py's hot
path.

Shapes: T tokens of all rows, B rows, D hidden, H heads, K head size.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import PromptFormat, Row  # noqa: E402
from tinyrm import Attention, Config, ModernBERT, PackedLayout, rotate, split_rows  # noqa: E402

SIGHTS = ("all", "apart", "causal")

# Parts of a row, in their order. A batch knows no parts, so each token carries the number of its
# own: token = id + PART * part.
BEFORE, IN_A, IN_B, AFTER = range(4)
PART = 2**20  # the stride: more than there are ids


class SightFormat(PromptFormat):
    """Rows whose tokens carry the part that they belong to. In context "pair" only."""

    def make_row(self, pieces, encoded, label: int) -> Row:
        row = super().make_row(pieces, encoded, label)
        _, prompt_end = row.spans["prompt"]
        _, a_end = row.spans["a"]
        _, b_end = row.spans["b"]
        # "Option A:" is of A, "Option B:" of B
        lengths = (prompt_end, a_end - prompt_end, b_end - a_end, len(row.tokens) - b_end)
        parts = []
        for part, length in zip((BEFORE, IN_A, IN_B, AFTER), lengths, strict=True):
            parts.extend([part] * length)
        tokens = [token + PART * part for token, part in zip(row.tokens, parts, strict=True)]
        return row._replace(tokens=tokens)


def may_see(parts: torch.Tensor, sight: str, window: int | None) -> torch.Tensor:
    """(rows, length, length), True where query i may see key j; parts (rows, length) of equally
    long rows. In a sliding layer they are at most `window` tokens apart."""
    place = torch.arange(parts.shape[1], device=parts.device)
    distance = place[:, None] - place[None, :]  # (length, length) of query i from key j
    allowed = torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        allowed = distance.abs() <= window
    if sight == "causal":
        allowed = allowed & (distance >= 0)
    allowed = allowed.expand(len(parts), -1, -1)
    if sight != "apart":
        return allowed

    query, key = parts[:, :, None], parts[:, None, :]
    sees = (query == key) | (query == AFTER)
    sees |= (key == BEFORE) & (query != BEFORE)
    return allowed & sees


class SightLayout(NamedTuple):
    """PackedLayout, and what may be seen: layer type -> (rows, 1, length, length) of each run of
    equally long rows."""

    plain: PackedLayout
    allowed: dict[str, list[torch.Tensor]]

    @property
    def read_at(self) -> torch.Tensor | None:
        return self.plain.read_at


class SightAttention(Attention):
    """Attention to what a token may see."""

    def forward(self, x, layout: SightLayout):
        """x (T, D) -> (T, D)"""
        qkv = self.Wqkv(x).unflatten(-1, (3, self.num_heads, -1))  # (T, 3, H, K)
        q, k, v = qkv.unbind(dim=1)  # each (T, H, K)
        cos, sin = layout.plain.rope[self.layer_type]
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)

        runs = layout.plain.equal_runs
        sizes = [run.rows * run.length for run in runs]
        parts = zip(runs, q.split(sizes), k.split(sizes), v.split(sizes),
                    layout.allowed[self.layer_type], strict=True)
        out = []
        for run, q_run, k_run, v_run, allowed in parts:
            y = F.scaled_dot_product_attention(
                split_rows(q_run, run.rows), split_rows(k_run, run.rows),
                split_rows(v_run, run.rows), attn_mask=allowed)  # (rows, H, length, K)
            out.append(y.transpose(1, 2).flatten(0, 1))  # (rows * length, H, K)
        return self.Wo(torch.cat(out).flatten(1))  # (T, D)

    def forward_where_read(self, x, layout: SightLayout):
        """As `forward`, at the B positions that are read: x (T, D) -> (B, D)."""
        return self.forward(x, layout)[layout.read_at]


class SightModernBERT(ModernBERT):
    """The encoder over rows of SightFormat. `sight` may be changed between training and judging."""

    sight = "all"

    def __init__(self, config: Config, head: str = "cloze"):
        super().__init__(config, head)
        for layer, layer_type in zip(self.model.layers, config.layer_types, strict=True):
            layer.attn = SightAttention(config, layer_type)

    def forward(self, tokens, starts, read_at=None):
        layout = self.layout(tokens, starts, read_at)
        return self.model(tokens % PART, layout, self.recompute_layers)

    def layout(self, tokens, starts, read_at=None) -> SightLayout:
        plain = super().layout(tokens % PART, starts, read_at)
        parts = tokens // PART  # (T,)
        sizes = [run.rows * run.length for run in plain.equal_runs]
        allowed = {layer_type: [] for layer_type in plain.rope}
        for run, of_run in zip(plain.equal_runs, parts.split(sizes), strict=True):
            of_run = of_run.view(run.rows, run.length)
            for layer_type in allowed:
                window = self.config.window if layer_type == "sliding_attention" else None
                mask = may_see(of_run, self.sight, window)
                allowed[layer_type].append(mask[:, None])
        return SightLayout(plain, allowed)
