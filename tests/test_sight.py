"""What may be seen: rows carry their parts, the masks are those of a few lines by hand, nothing
forbidden is the encoder itself.

    python -m pytest tests/test_sight.py
"""

import pytest
import torch
from oracles import small_config, wild

import data
import tinyrm
from data import Pair, PromptFormat
from experiments.sight import (
    AFTER,
    BEFORE,
    IN_A,
    IN_B,
    PART,
    SightFormat,
    SightModernBERT,
    may_see,
)
from infra.hub import ROOT
from tinyrm import plain_attention

NANO = ROOT / "nano"
PAIRS = [
    Pair("Which one is heavier?", "The tamlix.", "I would name the kelrit.", domain="reasoning"),
    Pair("Say no.", "No.", "Yes, and it rained all morning.", domain="chat"),
]


def batch_of(format_class):
    prompt_format = format_class(data.load_tokenizer(NANO), domain="reasoning", max_length=512)
    rows_of_pairs, _ = prompt_format.rows(PAIRS)
    rows = [row for both in rows_of_pairs for row in both]
    rows.sort(key=lambda row: len(row.tokens))
    return rows, data.pack(rows)


def test_each_token_carries_its_part():
    rows, _ = batch_of(SightFormat)
    plain_rows, _ = batch_of(PromptFormat)
    tokenizer = data.load_tokenizer(NANO)
    for row, plain in zip(rows, plain_rows, strict=True):
        assert [token % PART for token in row.tokens] == plain.tokens
        texts = {part: [] for part in (BEFORE, IN_A, IN_B, AFTER)}
        for token in row.tokens:
            texts[token // PART].append(token % PART)
        texts = {part: tokenizer.decode(ids) for part, ids in texts.items()}
        assert "Option" not in texts[BEFORE]
        assert texts[IN_A].strip().startswith("Option A:")
        assert texts[IN_B].strip().startswith("Option B:")
        assert "[MASK]" in texts[AFTER]


def test_the_masks_by_hand():
    parts = torch.tensor([[BEFORE, IN_A, IN_B, AFTER]])
    rows = {sight: may_see(parts, sight, None)[0].int().tolist()
            for sight in ("all", "apart", "causal")}
    assert rows["all"] == [[1] * 4] * 4
    assert rows["apart"] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    assert rows["causal"] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # a window of one token: the verdict no longer sees the prompt and A
    assert may_see(parts, "all", 1)[0, 3].tolist() == [False, False, True, True]
    assert may_see(parts, "causal", 1)[0, 1].tolist() == [True, True, False, False]


def test_where_nothing_is_forbidden_it_is_the_encoder():
    _, with_parts = batch_of(SightFormat)
    _, plain = batch_of(PromptFormat)
    seen = tinyrm.load(NANO, model_class=SightModernBERT).eval()
    model = tinyrm.load(NANO).eval()
    with torch.inference_mode():
        expected = model(plain.tokens, plain.starts, plain.read_at)
        torch.testing.assert_close(
            seen(with_parts.tokens, with_parts.starts, with_parts.read_at), expected,
            atol=1e-4, rtol=1e-4)


def test_apart_a_response_does_not_change_the_other():
    """The hidden states of A are the same whatever stands in B; where all is seen they are not."""
    _, batch = batch_of(SightFormat)
    model = tinyrm.load(NANO, model_class=SightModernBERT).eval()
    changed = batch.tokens.clone()
    in_b = (changed // PART) == IN_B
    changed[in_b] = changed[in_b].flip(0)
    in_a = (changed // PART) == IN_A
    gaps = {}
    for sight in ("all", "apart", "causal"):
        model.sight = sight
        with torch.inference_mode():
            gap = model(batch.tokens, batch.starts) - model(changed, batch.starts)
        gaps[sight] = gap[in_a].abs().max().item()
    assert gaps["all"] > 0.01
    assert gaps["apart"] == gaps["causal"] == 0


@pytest.mark.parametrize("sight", ["apart", "causal"])
def test_a_layer_is_plain_attention_under_the_mask(sight):
    config = small_config()
    model = wild(config, model_class=SightModernBERT).eval()
    model.sight = sight
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 50, (24,), generator=generator)
    tokens += PART * torch.tensor([BEFORE] * 6 + [IN_A] * 7 + [IN_B] * 8 + [AFTER] * 3)
    layout = model.layout(tokens, torch.tensor([0, 24]))
    for layer in model.model.layers:
        attention = layer.attn
        x = torch.randn(24, config.hidden_size, generator=generator, dtype=torch.float64)
        attention.double()
        q, k, v = attention.Wqkv(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        cos, sin = layout.plain.rope[attention.layer_type]
        allowed = may_see((tokens // PART)[None], sight, attention.window)[0]
        y = plain_attention(tinyrm.rotate(q, cos, sin), tinyrm.rotate(k, cos, sin), v, allowed)
        torch.testing.assert_close(attention(x, layout), attention.Wo(y.flatten(1)))
