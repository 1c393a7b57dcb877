"""The causal twin: values and gradients against transformers and peft, the window by hand, rows
that end before the mask, and runs of the two commands.

    python -m pytest tests/test_causal.py
"""

import json
import shutil
import subprocess
import sys

import peft
import pytest
import torch
from oracles import (
    hub_config,
    logits_of,
    peer_of,
    random_rows,
    small_config,
    varlen_as_documented,
    wild,
)
from test_gpu import flash, gpu
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertDecoderForSequenceClassification,
)

import data
import dora
import evaluate
import tinyrm
import train
from experiments import causal
from experiments.causal import CausalConfig, CausalModernBERT, CausalPromptFormat
from infra.hub import ROOT

NANO, NANO_CAUSAL = ROOT / "nano", ROOT / "nano/causal"
VARLEN = "torch.nn.attention.varlen.varlen_attn"  # torch's flash kernel


def causal_config(**changes) -> CausalConfig:
    return CausalConfig.from_json(hub_config(model_type="modernbert-decoder", **changes))


def wild_causal(head="cloze", **changes) -> CausalModernBERT:
    return wild(causal_config(**changes), head, model_class=CausalModernBERT)


def causal_peer_of(model, peer_class=ModernBertDecoderForCausalLM):
    return peer_of(model, peer_class, ModernBertDecoderConfig)


def causal_rows(lengths):
    """Random rows, read at the last token of each."""
    made = random_rows(lengths)
    return made._replace(read_at=made.starts[1:] - 1)


@pytest.fixture(scope="module")
def tiny_causal(tiny, tmp_path_factory):
    """A folder with a random causal model and the tokenizer of `tiny`."""
    folder = tmp_path_factory.mktemp("tiny-causal")
    raw = json.loads((tiny / "config.json").read_text())
    raw["model_type"] = "modernbert-decoder"
    model = CausalModernBERT(CausalConfig.from_json(raw)).init_weights(0)
    tinyrm.save(model, folder)
    shutil.copyfile(tiny / "tokenizer.json", folder / "tokenizer.json")
    return folder


# --- the configuration -----------------------------------------------------------------------


def test_the_window_counts_the_token_itself():
    assert causal_config(local_attention=128).window == 63


def test_the_rest_of_the_configuration_reads_as_the_encoders():
    ours, encoder = causal_config(), small_config()
    for name in ("hidden_size", "num_hidden_layers", "layer_types", "global_rope_theta"):
        assert getattr(ours, name) == getattr(encoder, name), name


@pytest.mark.parametrize("head, name", [
    ("cloze", "ModernBertDecoderForCausalLM"),
    ("cls", "ModernBertDecoderForSequenceClassification"),
])
def test_what_is_saved_names_the_class_that_opens_it(head, name):
    raw = causal_config().to_json(head)
    assert raw["architectures"] == [name] and raw["model_type"] == "modernbert-decoder"


# --- against transformers --------------------------------------------------------------------

SHAPES = [  # layers, heads, width, feed-forward, lengths of the rows
    (2, 1, 64, 32, [3]),
    (3, 2, 32, 48, [5, 64, 65, 66]),
    (4, 2, 128, 100, [129, 7, 7, 300]),
    (7, 4, 64, 96, [700, 33, 128, 128, 128, 1]),
    (8, 3, 48, 64, [256, 255, 257]),
]


@pytest.mark.parametrize("layers, heads, width, feed_forward, lengths", SHAPES)
def test_logits_and_gradients_equal_transformers(layers, heads, width, feed_forward, lengths):
    model = wild_causal(num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
                        intermediate_size=feed_forward)
    peer = causal_peer_of(model)
    rows, tokens, starts, read_at = causal_rows(lengths)

    ours = model.logits(model(tokens, starts, read_at))
    theirs = logits_of(peer, rows, read_at, starts)
    assert (ours - theirs).abs().max() < 1e-4

    random = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 97, (len(rows),), generator=random)
    cross_entropy(ours, labels).backward()
    cross_entropy(theirs, labels).backward()
    their_parameters = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        wanted = their_parameters[name].grad
        scale = wanted.abs().max().clamp(min=1e-3)
        assert (p.grad - wanted).abs().max() / scale < 2e-4, name


def test_every_hidden_state_equals_transformers():
    model = wild_causal(num_hidden_layers=5)
    peer = causal_peer_of(model)
    rows, tokens, starts, _ = causal_rows([200, 3, 90])
    theirs = torch.cat([peer.model(row[None]).last_hidden_state[0] for row in rows])
    assert (model(tokens, starts) - theirs).abs().max() < 1e-4


def test_the_classifier_equals_transformers():
    model = wild_causal("cls")
    peer = causal_peer_of(model, ModernBertDecoderForSequenceClassification)
    rows, tokens, starts, read_at = causal_rows([20, 150])
    ours = model.logits(model(tokens, starts, read_at))
    theirs = torch.cat([peer(row[None]).logits for row in rows])
    assert (ours - theirs).abs().max() < 1e-4


def test_the_logits_of_some_words_are_those_of_all_words():
    model = wild_causal()
    _, tokens, starts, read_at = causal_rows([20, 150])
    h = model(tokens, starts, read_at)
    words = torch.tensor([5, 80])
    torch.testing.assert_close(model.logits(h, words), model.logits(h)[:, words])


# --- who sees whom ---------------------------------------------------------------------------


def layout_of(config, starts, dtype=torch.float32):
    """The layout that a model of this configuration makes for rows that begin at `starts`."""
    model = CausalModernBERT(config).set_compute_dtype(dtype)
    return model.layout(torch.zeros(int(starts[-1])).long(), starts, None)


def keys_seen(position, length):
    """(first, last, how many) of the keys that a query sees in a row of `length` tokens, which
    begins at 50 in the stream: those whose value reaches its output."""
    config = causal_config(local_attention=128)
    starts = torch.tensor([0, 50, 50 + length, 50 + length + 40])
    total = int(starts[-1])
    q = k = torch.zeros(total, 2, 16)
    v = torch.eye(total)[:, None].expand(-1, 2, -1)  # each key has a direction of its own
    out = causal.causal_attention(q, k, v, layout_of(config, starts), config.window)
    keys = out[50 + position, 0].nonzero()[:, 0] - 50
    return keys.min().item(), keys.max().item(), len(keys)


@pytest.mark.parametrize("position, expected", [
    (0, (0, 0, 1)), (63, (0, 63, 64)), (64, (1, 64, 64)), (299, (236, 299, 64)),
])
def test_the_window_of_a_row_of_300_tokens(position, expected):
    # 64 tokens: the token itself and 63 to its left
    assert keys_seen(position, 300) == expected


def test_in_a_row_shorter_than_the_window_a_token_sees_all_before_it():
    assert keys_seen(30, 40) == (0, 30, 31)


def to_the_left(starts, window):
    """(T, T) of tinyrm.may_attend, without what comes after a token."""
    allowed = tinyrm.may_attend(starts, window)
    return allowed & torch.ones_like(allowed).tril()


LENGTHS = [[1], [127], [128, 128], [129, 1, 3, 64], [500, 2, 2, 2, 77]]


def attention_case(lengths, window):
    """A configuration with this window, starts, and random q, k, v (T, H, K) in float64."""
    half = 64 if window is None else window + 1
    config = causal_config(local_attention=2 * half)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    random = torch.Generator().manual_seed(0)
    qkv = [torch.randn(int(starts[-1]), 2, 8, dtype=torch.float64, generator=random)
           for _ in range(3)]
    return config, starts, [x.requires_grad_() for x in qkv]


@pytest.mark.parametrize("window", [None, 1, 15, 63])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_and_its_gradients_equal_plain_attention(lengths, window):
    config, starts, qkv = attention_case(lengths, window)
    ours = causal.causal_attention(*qkv, layout_of(config, starts, torch.float64), window)
    plain = tinyrm.plain_attention(*qkv, to_the_left(starts, window))
    torch.testing.assert_close(ours, plain)

    random = torch.Generator().manual_seed(1)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=random)
    our_gradients = torch.autograd.grad((ours * weights).sum(), qkv)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), qkv)
    torch.testing.assert_close(our_gradients, plain_gradients)


@pytest.mark.parametrize("window", [None, 1, 15, 63])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_asks_the_flash_kernel_for_what_plain_attention_gives(lengths, window,
                                                                        monkeypatch):
    monkeypatch.setattr(VARLEN, varlen_as_documented)
    config, starts, qkv = attention_case(lengths, window)
    layout = layout_of(config, starts, torch.float64)._replace(flash=True, local_mask=None)
    ours = causal.causal_attention(*qkv, layout, window)
    torch.testing.assert_close(ours, tinyrm.plain_attention(*qkv, to_the_left(starts, window)))


def test_the_whole_model_on_the_flash_kernel_equals_itself_without(monkeypatch):
    model = wild_causal().double().eval()
    _, tokens, starts, read_at = causal_rows([150, 1, 40, 300])
    with torch.inference_mode():
        expected = model(tokens, starts, read_at)
        monkeypatch.setattr(tinyrm, "uses_flash", lambda device, dtype: True)
        monkeypatch.setattr(VARLEN, varlen_as_documented)
        assert model.layout(tokens, starts, read_at).local_mask is None
        torch.testing.assert_close(model(tokens, starts, read_at), expected)


@flash
@pytest.mark.parametrize("window", [None, 15, 63])
@pytest.mark.parametrize("lengths", [[1], [127], [129, 1, 3, 64], [500, 2, 2, 77], [3000, 5000]])
def test_the_flash_kernel_and_its_gradients_equal_plain_attention(lengths, window):
    half = 64 if window is None else window + 1
    config = causal_config(local_attention=2 * half)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.zeros(int(starts[-1]), dtype=torch.long, device="cuda")
    layout = tinyrm.pack_layout(config, tokens, starts, None, torch.bfloat16)
    assert layout.flash

    random = torch.Generator("cuda").manual_seed(0)
    q, k, v, weights = (
        torch.randn(len(tokens), 2, 32, device="cuda", generator=random).bfloat16()
        for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours = causal.causal_attention(*inputs, layout, window)
    gradients = torch.autograd.grad((ours * weights).sum(), inputs)

    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    plain = tinyrm.plain_attention(*exact, to_the_left(starts, window))
    wanted = torch.autograd.grad((plain * weights.cpu().double()).sum(), exact)
    for mine, right in zip((ours, *gradients), (plain, *wanted), strict=True):
        gap = (mine.cpu().double() - right).norm() / right.norm().clamp(min=1e-9)
        assert gap < 0.02 or right.norm() < 1e-6  # bf16: 1/256 an operation


@flash
def test_one_query_a_row_on_the_flash_kernel_is_that_row_of_all():
    model = wild_causal().eval().cuda().set_compute_dtype(torch.bfloat16)
    _, tokens, starts, read_at = causal_rows([150, 40, 300, 7])
    with torch.inference_mode():
        some = model(tokens.cuda(), starts, read_at.cuda())
        every = model(tokens.cuda(), starts)[read_at.cuda()]
    assert (some - every).abs().max() < 0.05 * every.abs().max()


@gpu
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_the_device_gives_what_the_processor_gives(dtype, most):
    model = wild_causal(num_hidden_layers=7)
    _, tokens, starts, read_at = causal_rows([150, 40, 700])
    results = []
    for device, compute_dtype in (("cpu", torch.float32), ("cuda", dtype)):
        model.to(device).set_compute_dtype(compute_dtype).zero_grad()
        h = model(tokens.to(device), starts, read_at.to(device))
        logits = model.logits(h).float()
        logits.logsumexp(1).sum().backward()
        gradients = [p.grad.cpu() for p in model.parameters()]
        results.append([logits.detach().cpu(), *gradients])
    for mine, right in zip(results[1], results[0], strict=True):
        assert (mine - right).norm() <= most * right.norm() + 1e-6


@gpu
def test_nothing_of_a_forward_pass_waits_for_the_device():
    model = wild_causal().eval().cuda().set_compute_dtype(torch.bfloat16)
    _, tokens, starts, read_at = causal_rows([150, 40])
    tokens, read_at = tokens.cuda(), read_at.cuda()
    model(tokens, starts, read_at)  # what is done once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(tokens, starts, read_at)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layers", [4, 5])  # the last layer global, and local
def test_what_is_read_of_the_last_layer_is_what_the_whole_layer_gives_there(layers):
    model = wild_causal(num_hidden_layers=layers).double()
    _, tokens, starts, read_at = causal_rows([150, 1, 40, 300])
    torch.testing.assert_close(model(tokens, starts, read_at), model(tokens, starts)[read_at])


def test_a_row_is_read_at_its_last_token_only():
    model = wild_causal()
    _, tokens, starts, read_at = causal_rows([20, 15])
    with pytest.raises(RuntimeError, match="a causal model is read at the end of each row"):
        model(tokens, starts, read_at - 1)


@pytest.mark.parametrize("order", [[0, 1, 2], [3, 1, 0], [5, 4, 1, 0, 2, 3], [0] * 9])
def test_a_row_scores_the_same_alone_and_among_others(order):
    model = wild_causal(num_hidden_layers=7).eval()
    rows = random_rows([150, 40, 40, 700, 65, 66]).rows

    def score_of_row_0(order):
        chosen = [rows[i] for i in order]
        starts = torch.tensor([0, *map(len, chosen)]).cumsum(0)
        with torch.inference_mode():
            logits = model.logits(model(torch.cat(chosen), starts, starts[1:] - 1))
        return logits[order.index(0)]

    assert (score_of_row_0(order) - score_of_row_0([0])).abs().max() < 1e-5


# --- files -----------------------------------------------------------------------------------


def test_what_we_save_opens_in_transformers(tmp_path):
    model = wild_causal()
    rows, tokens, starts, read_at = causal_rows([30])
    tinyrm.save(model, tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = model.logits(model(tokens, starts, read_at))
    assert (logits_of(peer, rows, read_at, starts) - ours).abs().max() < 1e-4


def test_what_transformers_saves_opens_here(tmp_path):
    model = wild_causal()
    causal_peer_of(model).save_pretrained(tmp_path)  # in the later schema
    again = tinyrm.load(tmp_path, model_class=CausalModernBERT)
    assert again.config == model.config
    for name, p in model.state_dict().items():
        assert torch.equal(p, again.state_dict()[name]), name


def test_a_classifier_that_we_save_opens_in_transformers_and_here(tmp_path):
    model = wild_causal("cls")
    rows, tokens, starts, read_at = causal_rows([30])
    ours = model.logits(model(tokens, starts, read_at))
    tinyrm.save(model, tmp_path)
    peer = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (peer(rows[0][None]).logits - ours).abs().max() < 1e-4
    again = tinyrm.load(tmp_path, model_class=CausalModernBERT)
    assert again.head_kind == "cls"
    torch.testing.assert_close(again.logits(again(tokens, starts, read_at)), ours)


def test_a_fresh_classifier_keeps_the_layer_below_it_under_its_other_name():
    model = tinyrm.load(NANO_CAUSAL, model_class=CausalModernBERT)
    fresh = tinyrm.load(NANO_CAUSAL, "cls", seed=3, model_class=CausalModernBERT)
    assert torch.equal(fresh.head.dense.weight, model.lm_head.dense.weight)
    assert torch.equal(fresh.head.norm.weight, model.lm_head.norm.weight)


def test_a_fresh_classifier_has_no_bias_and_follows_from_the_seed():
    one, same, other = (tinyrm.load(NANO_CAUSAL, "cls", seed, CausalModernBERT)
                        for seed in (3, 3, 4))
    assert one.classifier.bias is None
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


# --- adapters against peft -------------------------------------------------------------------


def targets_of(layers):
    """The products of these layers, and of the head, by their names."""
    names = ["lm_head.dense"]
    for i in layers:
        for part in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.Wo", "mlp.Wi", "mlp.Wo"):
            names.append(f"model.layers.{i}.{part}")
    return names


def peft_twin_of(model, freeze):
    """The same DoRA in peft on transformers' model, with A and B of ours."""
    settings = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True,
                               target_modules=targets_of(range(freeze, 4)))
    peer = peft.get_peft_model(causal_peer_of(wild_causal().double()), settings)
    with torch.no_grad():
        for name, ours in dora.adapters(model).items():
            theirs = peer.base_model.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(ours.A)
            theirs.lora_B["default"].weight.copy_(ours.B)
    return peer


def test_adapters_stand_on_the_six_products_of_a_layer_and_on_the_head():
    model = wild_causal()
    dora.adapt(model, "dora", rank=2, freeze=1)
    assert set(dora.adapters(model)) == set(targets_of([1, 2, 3]))


def test_training_with_dora_equals_peft():
    model = wild_causal().double()
    dora.adapt(model, "dora", rank=4, alpha=8.0, freeze=1)
    peer = peft_twin_of(model, freeze=1)
    rows, tokens, starts, read_at = causal_rows([140, 9, 40])
    labels = torch.tensor([5, 6, 5])
    our_optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    their_optimizer = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=0.05)

    for step in range(4):
        ours = model.logits(model(tokens, starts, read_at))
        theirs = logits_of(peer, rows, read_at, starts)
        # transformers rotates in float32 whatever the model is in, which moves these by up to 3e-7
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        cross_entropy(ours, labels).backward()
        cross_entropy(theirs, labels).backward()
        for name, adapted in dora.adapters(model).items():
            twin = peer.base_model.model.get_submodule(name)
            pairs = {"A": twin.lora_A["default"], "B": twin.lora_B["default"],
                     "m": twin.lora_magnitude_vector["default"]}
            for part, their_part in pairs.items():
                gradient = getattr(adapted, part).grad
                torch.testing.assert_close(gradient, their_part.weight.grad, rtol=1e-4, atol=1e-7,
                                           msg=f"step {step}: {name}.{part}")
        our_optimizer.step()
        their_optimizer.step()


@pytest.mark.parametrize("adapter", ["dora", "lora"])
def test_an_adapter_opens_in_peft_and_comes_back(tmp_path, adapter):
    model = wild_causal()
    dora.adapt(model, adapter, rank=4, alpha=6.0, freeze=2)
    with torch.no_grad():
        for adapted in dora.adapters(model).values():
            adapted.B.normal_(std=0.1)
    rows, tokens, starts, read_at = causal_rows([80, 12])
    ours = model.logits(model(tokens, starts, read_at))

    dora.save_adapter(model, tmp_path / "ours", "some/base")
    peer = peft.PeftModel.from_pretrained(causal_peer_of(wild_causal()), tmp_path / "ours").eval()
    assert (logits_of(peer, rows, read_at, starts) - ours).abs().max() < 1e-4

    peer.save_pretrained(tmp_path / "theirs")
    again = wild_causal()
    dora.load_adapter(again, tmp_path / "theirs")
    assert (again.logits(again(tokens, starts, read_at)) - ours).abs().max() < 1e-5


# --- rows ------------------------------------------------------------------------------------

PAIR = data.Pair("Two or three?", "three", "two", domain="reasoning")
FORMATS = [
    {"template": "option", "context": "pair"},
    {"template": "option", "context": "single"},
    {"template": "choice", "context": "pair"},
    {"template": "option", "context": "pair", "head": "cls"},
]


@pytest.mark.parametrize("settings", FORMATS)
def test_a_row_is_the_encoders_up_to_its_mask_and_read_at_the_end(settings):
    tokenizer = data.load_tokenizer(NANO)
    (encoder_rows,), _ = data.PromptFormat(tokenizer, **settings).rows([PAIR])
    (rows,), _ = CausalPromptFormat(tokenizer, **settings).rows([PAIR])
    mask_id = tokenizer.special_ids[data.MASK]
    for row, encoder_row in zip(rows, encoder_rows, strict=True):
        mask_at = encoder_row.tokens.index(mask_id)
        assert row.tokens == encoder_row.tokens[:mask_at]
        assert row.read_at == mask_at - 1
        assert row.label == encoder_row.label


def test_the_spans_that_are_left_stand_where_they_stood():
    tokenizer = data.load_tokenizer(NANO)
    (encoder_rows,), _ = data.PromptFormat(tokenizer).rows([PAIR])
    (rows,), _ = CausalPromptFormat(tokenizer).rows([PAIR])
    assert set(rows[0].spans) == {"cls", "prompt", "a", "b"}
    for name, span in rows[0].spans.items():
        assert span == encoder_rows[0].spans[name]


def test_a_long_row_is_cut_as_the_encoders():
    tokenizer = data.load_tokenizer(NANO)
    long = PAIR._replace(prompt="one two " * 300, chosen="three " * 90)
    (encoder_rows,), _ = data.PromptFormat(tokenizer, max_length=100).rows([long])
    (rows,), _ = CausalPromptFormat(tokenizer, max_length=100).rows([long])
    assert rows[0].cut == encoder_rows[0].cut > 0
    assert rows[0].tokens == encoder_rows[0].tokens[:len(rows[0].tokens)]


def test_equal_responses_are_dropped():
    equal = PAIR._replace(rejected=PAIR.chosen)
    rows, dropped = CausalPromptFormat(data.load_tokenizer(NANO)).rows([equal])
    assert rows == [None] and dropped == {"identical responses": 1}


# --- the two commands ------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {}, {"head": "cls"}, {"context": "single"}, {"template": "choice"}, {"adapter": "full"},
])
def test_a_run_trains_and_its_model_scores_as_in_transformers(flags, tiny_causal, tmp_path,
                                                              changes):
    causal.main(["train", *flags(model=tiny_causal, **changes)])
    run = tmp_path / "run"
    assert 0 <= json.loads((run / "run.json").read_text())["result"]["accuracy_after"] <= 1

    judge = evaluate.RewardModel.load(run, device="cpu", model_class=CausalModernBERT,
                                      format_class=CausalPromptFormat)
    (rows,), _ = judge.prompt_format.rows([PAIR])
    batch = data.pack(list(rows))
    with torch.inference_mode():
        ours = judge.model.logits(judge.model(batch.tokens, batch.starts, batch.read_at))

    classifier = changes.get("head") == "cls"
    peer_class = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    peer = peer_class.from_pretrained(run / "model").eval()
    for row, expected in zip(rows, ours, strict=True):
        logits = peer(input_ids=torch.tensor([row.tokens])).logits[0]
        if not classifier:
            logits = logits[-1]  # of the last token
        assert (logits - expected).abs().max() < 1e-4


def test_the_adapter_of_a_run_scores_in_peft_as_the_merged_model_does(flags, tiny_causal, tmp_path):
    causal.main(["train", *flags(model=tiny_causal)])
    base = AutoModelForCausalLM.from_pretrained(tiny_causal)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run/adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").eval()
    tokens = torch.randint(5, 300, (1, 90))
    assert (adapted(tokens).logits - merged(tokens).logits).abs().max() < 1e-4


def test_the_adapter_of_a_classifier_opens_here(flags, tiny_causal, tmp_path):
    causal.main(["train", *flags(model=tiny_causal, head="cls")])
    scores = []
    for folder in ("adapter", "model"):
        judge = evaluate.RewardModel.load(tmp_path / "run" / folder, device="cpu",
                                          model_class=CausalModernBERT,
                                          format_class=CausalPromptFormat)
        scores.append(judge.compare(PAIR.prompt, PAIR.chosen, PAIR.rejected))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_the_card_names_the_class_that_opens_the_model(flags, tiny_causal, tmp_path):
    causal.main(["train", *flags(model=tiny_causal, max_steps=1)])
    card = (tmp_path / "run/model/README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "AutoModelForCausalLM" in card


def test_a_stored_model_is_judged_by_the_command(tiny_causal, pairs_file, tmp_path, capsys):
    causal.main(["evaluate", str(tiny_causal), str(pairs_file), "--out", str(tmp_path / "out"),
                 "--device", "cpu"])
    assert "judging 48 items" in capsys.readouterr().out
    assert len((tmp_path / "out/scores.jsonl").read_text().splitlines()) == 48


def test_train_refuses_a_causal_model_in_one_line(flags, tiny_causal):
    with pytest.raises(ValueError, match="config.json: model_type is 'modernbert-decoder'"):
        train.main(flags(model=tiny_causal))


def test_evaluate_refuses_a_causal_model_in_one_line(tiny_causal, pairs_file, tmp_path):
    with pytest.raises(ValueError, match="config.json: model_type is 'modernbert-decoder'"):
        evaluate.main([str(tiny_causal), str(pairs_file), "--out", str(tmp_path / "out")])


def test_the_commands_here_refuse_an_encoder_in_one_line(flags):
    with pytest.raises(ValueError, match="config.json: model_type is 'modernbert'"):
        causal.main(["train", *flags()])


@pytest.mark.parametrize("words", [[], ["trian"], ["--domain", "chat"]])
def test_a_missing_command_is_named(words):
    with pytest.raises(ValueError, match="give train or evaluate first"):
        causal.main(words)


def test_the_script_prints_an_error_as_one_line_and_exits_with_2():
    script = [sys.executable, ROOT / "experiments/causal.py"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: give train or evaluate first, and then its flags; see --help\n"


def test_help_shows_the_two_commands(capsys):
    causal.main(["--help"])
    assert "causal.py evaluate runs/NAME my.jsonl" in capsys.readouterr().out
