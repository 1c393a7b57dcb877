"""The causal twin: the decoders of the Ettin suite (arXiv 2507.11412) and nano/causal, trained and
judged as reward models. The paper has encoders only; this is the control that asks what looking in
both directions is worth.

    python experiments/causal.py train --domain chat --model nano-causal
    python experiments/causal.py train --domain chat --model ettin-decoder-17m --data my.jsonl
    python experiments/causal.py evaluate runs/NAME my.jsonl

What follows the command are the flags of train.py and of evaluate.py.

The twin has the encoder's shape, and differs in five things. A token sees itself and what stands
before it; in a sliding layer `local_attention // 2` tokens in all, itself among them. Queries, keys
and values have a matrix each (q_proj, k_proj, v_proj) in place of one Wqkv. What stands between the
encoder and the vocabulary is named `lm_head`; between the encoder and a classifier it is named
`head`, as in the encoder, and the classifier has no bias. A row ends where the mask would come, and
is read at its last token, which has seen all of it, under both heads.

An adapter of a classifier opens here only: transformers begins such a model with a fresh `head`,
and has no place for the trained `lm_head`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import evaluate  # noqa: E402
import tinyrm  # noqa: E402
import train  # noqa: E402
from data import PromptFormat, Row  # noqa: E402
from infra.flags import Programs  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import (  # noqa: E402
    Config,
    Linear,
    ModernBERT,
    PackedLayout,
    attention_where_read,
    local_attention,
    local_mask,
    split_rows,
)

# ---------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class CausalConfig(Config):
    """As Config, but `window` is how far a token sees to its left."""

    model_type = "modernbert-decoder"
    architectures = {
        "cloze": "ModernBertDecoderForCausalLM",
        "cls": "ModernBertDecoderForSequenceClassification",
    }

    @classmethod
    def from_json(cls, raw: dict) -> "CausalConfig":
        config = super().from_json(raw)
        # transformers counts the token itself as one of the half window
        return replace(config, window=config.window - 1)


class CausalAttention(nn.Module):
    """Attention of all heads to the left."""

    def __init__(self, config: CausalConfig, layer_type: str):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.layer_type = layer_type
        self.window = None
        if layer_type == "sliding_attention":
            self.window = config.window
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.Wo = Linear(width, width)

    def forward(self, x, layout):
        """x (T, D) -> (T, D)"""
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1))  # (T, H, K)
        k = self.k_proj(x).unflatten(-1, (self.num_heads, -1))
        v = self.v_proj(x).unflatten(-1, (self.num_heads, -1))

        cos, sin = layout.rope[self.layer_type]
        q = tinyrm.rotate(q, cos, sin)
        k = tinyrm.rotate(k, cos, sin)

        y = causal_attention(q, k, v, layout, self.window)  # (T, H, K)
        return self.Wo(y.flatten(1))  # (T, D)

    def forward_where_read(self, x, layout):
        """As `forward`, but at layout.read_at only: x (T, D) -> (B, D). What is read is the last
        token of each row, which sees the whole row, as every token of the encoder does."""
        if self.window is not None:
            return self.forward(x, layout)[layout.read_at]

        q = self.q_proj(x[layout.read_at]).unflatten(-1, (self.num_heads, -1))  # (B, H, K)
        k = self.k_proj(x).unflatten(-1, (self.num_heads, -1))  # (T, H, K)
        v = self.v_proj(x).unflatten(-1, (self.num_heads, -1))

        cos, sin = layout.rope[self.layer_type]
        q = tinyrm.rotate(q, cos[layout.read_at], sin[layout.read_at])
        k = tinyrm.rotate(k, cos, sin)

        y = attention_where_read(q, k, v, layout)  # (B, H, K)
        return self.Wo(y.flatten(1))  # (B, D)


def causal_attention(q, k, v, layout: PackedLayout, window: int | None = None):
    """Attention to the token itself and to what stands before it in its row, at most `window`
    tokens away. (T, H, K) each."""
    if layout.flash:
        from torch.nn.attention.varlen import varlen_attn  # which not every build of torch has

        left = -1 if window is None else window  # -1: no limit
        cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
        return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest,
                           window_size=(left, 0))

    if window is not None and layout.local_mask is not None:
        return local_attention(q, k, v, layout.local_mask, window)

    # whole rows: one call for each run of equally long ones
    sizes = [run.rows * run.length for run in layout.equal_runs]
    parts = zip(layout.equal_runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    out = []
    for run, q_run, k_run, v_run in parts:
        y = F.scaled_dot_product_attention(
            split_rows(q_run, run.rows), split_rows(k_run, run.rows), split_rows(v_run, run.rows),
            is_causal=True)  # (rows, H, length, K)
        out.append(y.transpose(1, 2).flatten(0, 1))  # (rows * length, H, K)
    return out[0] if len(out) == 1 else torch.cat(out)


class CausalModernBERT(ModernBERT):
    """The causal model under the same two heads. Modules and parameters have the names of the Hub's
    checkpoints."""

    config_class = CausalConfig

    def __init__(self, config: CausalConfig, head_kind: str = "cloze"):
        super().__init__(config, head_kind)
        for layer, layer_type in zip(self.model.layers, config.layer_types, strict=True):
            layer.attn = CausalAttention(config, layer_type)

        if head_kind == "cloze":
            # under its other name, and still before the decoder: the order of the parameters is
            # the order in which weights are drawn
            before_decoder, decoder = self.head, self.decoder
            del self.head, self.decoder
            self.lm_head = before_decoder
            self.decoder = decoder
        else:
            self.classifier = nn.Linear(config.hidden_size, 2, bias=False)

    def layout(self, tokens, starts, read_at):
        layout = super().layout(tokens, starts, read_at)
        if read_at is not None:
            at_end = (read_at == layout.cu_seqlens[1:] - 1).all()
            # a GPU checks this when it comes to it: nothing waits for the answer
            torch._assert_async(at_end, "a causal model is read at the end of each row")

        if layout.local_mask is not None:  # it is the encoder's, to both sides
            row = torch.arange(len(starts) - 1, device=tokens.device)
            lengths = layout.cu_seqlens.diff()  # (B,)
            row = row.repeat_interleave(lengths, output_size=len(tokens))  # (T,) of each token
            layout = layout._replace(local_mask=local_mask(row, self.config.window, 0))
        return layout

    def logits(self, h: torch.Tensor, word_ids: torch.Tensor | None = None) -> torch.Tensor:
        """h (N, D) -> (N, V), or (N, W) for the words word_ids (W,) only; (N, 2) under head
        "cls"."""
        if self.head_kind == "cls":
            return self.classifier(dense_gelu_norm(self.head, h))
        h = dense_gelu_norm(self.lm_head, h)  # (N, D)
        return self.decoder(h, self.model.embeddings.tok_embeddings.weight, word_ids)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """A fresh classifier takes over the head of a language model, under its other name."""
        if self.head_kind == "cls":
            state_dict = {name.removeprefix("lm_"): w for name, w in state_dict.items()}
        return super().load_state_dict(state_dict, strict, assign)


def dense_gelu_norm(head, h):
    """What stands between the encoder and either of its outputs: (N, D) -> (N, D)."""
    activated = F.gelu(head.dense(h))
    return head.norm(activated.to(h.dtype))


# ----------------------------------------------------------------------------------------- its rows


class CausalPromptFormat(PromptFormat):
    """The encoder's rows, each up to where its mask stands: what comes next there is the verdict.
    Under head "cls" too, since the last token is the only one that has seen the row."""

    def make_row(self, pieces, encoded, label: int) -> Row:
        row = super().make_row(pieces, encoded, label)
        end, _ = row.spans["mask"]
        spans = {name: span for name, span in row.spans.items() if span[1] <= end}
        return row._replace(tokens=row.tokens[:end], read_at=end - 1, spans=spans)


# ------------------------------------------------------------------------------------- the commands

THIS = "python experiments/causal.py"
PROGRAMS = Programs(f"{THIS} train", f"{THIS} evaluate")


def main(argv: list[str] | None = None):
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ("-h", "--help"):
        print(__doc__)
        return
    if words and words[0] == "train":
        train.main(words[1:], CausalModernBERT, CausalPromptFormat, PROGRAMS)
    elif words and words[0] == "evaluate":
        evaluate.main(words[1:], CausalModernBERT, CausalPromptFormat, PROGRAMS.evaluate)
    else:
        raise ValueError("give train or evaluate first, and then its flags; see --help")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
