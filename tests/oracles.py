"""What several test files build from and compare with: small configurations, random weights and
rows, the same model in transformers, and attention kernels as their documentation describes them.
There are no tests in here.

    from oracles import hub_config, peer_of, random_rows, wild
"""

from typing import NamedTuple

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

import tinyrm

VOCABULARY = 97  # words of the small models


def hub_config(**changes) -> dict:
    """The config.json of a small model, as the Hub has them."""
    raw = dict(
        model_type="modernbert", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48,
        num_hidden_layers=4, num_attention_heads=2, global_attn_every_n_layers=3,
        local_attention=128, global_rope_theta=160000.0, local_rope_theta=10000.0,
        max_position_embeddings=8192, norm_eps=1e-5, tie_word_embeddings=True,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )
    raw.update(changes)
    return raw


def small_config(**changes) -> tinyrm.Config:
    return tinyrm.Config.from_json(hub_config(**changes))


def wild(config, head="cloze", seed=1, model_class=tinyrm.ModernBERT):
    """A random model in which every weight matters: init_weights leaves biases 0 and norms 1."""
    model = model_class(config, head).init_weights(seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(3)
            p.add_(torch.randn(p.shape, generator=random), alpha=0.1)
    return model


class RandomRows(NamedTuple):
    rows: list[torch.Tensor]  # the token ids of each row
    tokens: torch.Tensor  # (T,) the same, end to end
    starts: torch.Tensor  # (B+1,)
    read_at: torch.Tensor  # (B,) a random place of each row, as an index into the stream


def random_rows(lengths, vocab=VOCABULARY, seed=0) -> RandomRows:
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, vocab, (n,), generator=random) for n in lengths]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    offsets = [torch.randint(0, n, (), generator=random) for n in lengths]
    return RandomRows(rows, torch.cat(rows), starts, starts[:-1] + torch.stack(offsets))


def peer_of(model, peer_class=ModernBertForMaskedLM, config_class=ModernBertConfig, **settings):
    """transformers' model with the weights of ours, in its precision."""
    raw = {"classifier_pooling": "cls", "attn_implementation": "sdpa"}
    raw.update(model.config.raw)
    raw.update(settings)
    config = config_class(**raw)
    peer = peer_class(config).eval()
    found = peer.load_state_dict(model.state_dict(), strict=False)
    # the tied matrix, which we store once
    assert set(found.missing_keys) <= {"decoder.weight"}
    assert not found.unexpected_keys
    if hasattr(peer, "tie_weights"):
        peer.tie_weights()
    return peer.to(next(model.parameters()).dtype)


def logits_of(peer, rows, read_at, starts) -> torch.Tensor:
    """The logits of transformers' model at one place of each row, row by row: (B, V)."""
    out = []
    for row, offset in zip(rows, read_at - starts[:-1], strict=True):
        out.append(peer(row[None]).logits[0, offset])
    return torch.stack(out)


def varlen_as_documented(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
    """What torch's documentation says of varlen_attn, row by row, for a machine without it.

    Row b has the queries q[cu_q[b]:cu_q[b+1]] and the keys k[cu_k[b]:cu_k[b+1]]. Query i sees key j
    if j is at most `left` before it and at most `right` after it; -1 is no limit."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    left, right = window_size

    out = []
    for b in range(len(cu_q) - 1):
        q_row = q[cu_q[b]:cu_q[b + 1]]
        k_row, v_row = k[cu_k[b]:cu_k[b + 1]], v[cu_k[b]:cu_k[b + 1]]
        i = torch.arange(len(q_row))[:, None]
        j = torch.arange(len(k_row))[None, :]
        allowed = torch.ones(len(q_row), len(k_row), dtype=torch.bool)
        if left >= 0:
            allowed &= i - j <= left
        if right >= 0:
            allowed &= j - i <= right
        scores = torch.einsum("ihk,jhk->hij", q_row, k_row) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        out.append(torch.einsum("hij,jhk->ihk", weights, v_row))
    return torch.cat(out)
