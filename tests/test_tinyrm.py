"""The encoder against transformers' ModernBERT, values and gradients; the window by hand; files.

    pytest tests/test_tinyrm.py
"""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertDecoderForSequenceClassification,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)

import tinyrm

torch.set_num_threads(1)


def hub_config(**change):
    raw = dict(
        model_type="modernbert", vocab_size=97, hidden_size=32, intermediate_size=48,
        num_hidden_layers=4, num_attention_heads=2, global_attn_every_n_layers=3,
        local_attention=128, global_rope_theta=160000.0, local_rope_theta=10000.0,
        max_position_embeddings=8192, norm_eps=1e-5, tie_word_embeddings=True,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return raw | change


def peer_of(model, cls=ModernBertForMaskedLM):
    """transformers' model with the same weights."""
    config, more = ModernBertConfig, {"classifier_pooling": "cls"}
    if model.config.causal:
        config, more = ModernBertDecoderConfig, {}
        cls = {ModernBertForMaskedLM: ModernBertDecoderForCausalLM,
               ModernBertForSequenceClassification: ModernBertDecoderForSequenceClassification}[cls]
    peer = cls(config(**model.config.raw, attn_implementation="sdpa", **more)).eval()
    missing = peer.load_state_dict(model.state_dict(), strict=False)
    assert set(missing.missing_keys) <= {"decoder.weight"} and not missing.unexpected_keys
    if hasattr(peer, "tie_weights"):
        peer.tie_weights()
    return peer.to(next(model.parameters()).dtype)


def random_rows(lengths, vocab=97, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, vocab, (n,), generator=random) for n in lengths]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    offsets = torch.stack([torch.randint(0, n, (), generator=random) for n in lengths])
    return rows, torch.cat(rows), starts, starts[:-1] + offsets


def wild(config, head="cloze", seed=1):
    """A random model whose every weight matters: init_weights leaves biases 0 and norms 1."""
    model = tinyrm.ModernBERT(config, head).init_weights(seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=random)
            p.mul_(3).add_(noise, alpha=0.1) if p.ndim > 1 else p.add_(noise, alpha=0.1)
    return model


KINDS = pytest.mark.parametrize("kind", ["modernbert", "modernbert-decoder"])
SHAPES = [  # layers, heads, width, ffn, lengths
    (2, 1, 64, 32, [3]),
    (3, 2, 32, 48, [5, 64, 65, 66]),
    (4, 2, 128, 100, [129, 7, 7, 300]),
    (7, 4, 64, 96, [700, 33, 128, 128, 128, 1]),
    (8, 3, 48, 64, [256, 255, 257]),
]


@KINDS
@pytest.mark.parametrize("layers, heads, width, ffn, lengths", SHAPES)
def test_logits_and_gradients_equal_transformers(kind, layers, heads, width, ffn, lengths):
    config = tinyrm.Config.read(hub_config(model_type=kind, num_hidden_layers=layers,
                                           num_attention_heads=heads, hidden_size=width,
                                           intermediate_size=ffn))  # fmt: skip
    model = wild(config)
    peer = peer_of(model)
    rows, tokens, starts, read = random_rows(lengths)
    read = starts[1:] - 1 if config.causal else read
    ours = model.logits(model(tokens, starts, read))
    theirs = torch.stack([
        peer(row[None]).logits[0, at] for row, at in zip(rows, read - starts[:-1], strict=True)
    ])  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-4
    labels = torch.randint(0, 97, (len(rows),), generator=torch.Generator().manual_seed(3))
    torch.nn.functional.cross_entropy(ours, labels).backward()
    torch.nn.functional.cross_entropy(theirs, labels).backward()
    theirs = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        scale = theirs[name].grad.abs().max().clamp(min=1e-3)
        assert (p.grad - theirs[name].grad).abs().max() / scale < 2e-4, name


@KINDS
def test_every_hidden_state_equals_transformers(kind):
    model = wild(tinyrm.Config.read(hub_config(model_type=kind, num_hidden_layers=5)))
    peer = peer_of(model)
    rows, tokens, starts, _ = random_rows([200, 3, 90])
    theirs = torch.cat([peer.model(row[None]).last_hidden_state[0] for row in rows])
    assert (model(tokens, starts) - theirs).abs().max() < 1e-4


@KINDS
def test_the_classifier_equals_transformers_with_cls_pooling(kind):
    model = wild(tinyrm.Config.read(hub_config(model_type=kind)), "cls")
    peer = peer_of(model, ModernBertForSequenceClassification)
    rows, tokens, starts, _ = random_rows([20, 150])
    read = starts[1:] - 1 if model.config.causal else starts[:-1]
    ours = model.logits(model(tokens, starts, read))
    theirs = torch.cat([peer(row[None]).logits for row in rows])
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("size", ["base", "large"])
def test_one_short_row_in_the_real_shapes(size, tmp_path):
    shape = {"base": (768, 1152, 22, 12), "large": (1024, 2624, 28, 16)}[size]
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    raw = hub_config(**dict(zip(names, shape, strict=True)), vocab_size=50368)
    torch.manual_seed(0)  # torch's own start, uniform up to 1 / sqrt(in), is quicker than ours
    model = tinyrm.ModernBERT(tinyrm.Config.read(raw))
    model.model.embeddings.tok_embeddings.weight.data.mul_(0.02)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / 1e6 - {"base": 149.66, "large": 395.88}[size]) < 0.01
    tinyrm.save(model, tmp_path)
    peer = ModernBertForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    (tmp_path / "model.safetensors").unlink()  # pytest keeps folders for a while
    rows, tokens, starts, read = random_rows([90], vocab=50368)
    with torch.inference_mode():
        theirs = peer(rows[0][None]).logits[0, read]
        assert (model.logits(model(tokens, starts, read)) - theirs).abs().max() < 1e-4
        some = torch.tensor([329, 378])
        few = model.logits(model(tokens, starts, read), some)
        assert (few - theirs[:, some]).abs().max() < 1e-4


def test_a_fresh_classifier_is_drawn_from_the_seed_and_the_head_below_it_kept():
    one, same, other = (tinyrm.load(tinyrm.HERE / "nano", "cls", seed) for seed in (3, 3, 4))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    scaled = one.classifier.weight.detach() * 128**0.5  # normal with D^-0.5, cut off at 2 of these
    assert scaled.abs().max() <= 2 and 0.75 < scaled.std() < 1  # 0.88 of 256, cut
    assert not one.classifier.bias.any()
    assert torch.equal(one.head.dense.weight, tinyrm.load(tinyrm.HERE / "nano").head.dense.weight)


def test_old_and_new_schema_read_alike():
    old = hub_config(local_rope_theta=9000.0)
    new = ModernBertConfig(**old).to_dict()
    assert "rope_parameters" in new and "layer_types" in new
    a, b = tinyrm.Config.read(old), tinyrm.Config.read(new)
    assert a == b
    assert a.layer_types == tuple(
        "full_attention" if i in (0, 3) else "sliding_attention" for i in range(4)
    )
    assert (a.global_rope_theta, a.local_rope_theta) == (160000.0, 9000.0)
    assert tinyrm.Config.read(hub_config(local_rope_theta=None)).local_rope_theta == 160000.0


@pytest.mark.parametrize("change, said", [
    (dict(model_type="bert"), "model_type"), (dict(mlp_bias=True), "mlp_bias"),
    (dict(hidden_activation="relu"), "hidden_activation"),
    (dict(rope_parameters={"full_attention": {"rope_type": "yarn"}}), "RoPE"),
    (dict(hidden_size=33), "multiple"), (dict(vocab_size=None), "size"),
    (dict(layer_types=["full_attention"]), "layer_types"),
])  # fmt: skip
def test_a_config_that_is_not_built_here_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        tinyrm.Config.read(hub_config(**change))


def seen(position, length, window=64, kind="modernbert"):
    """Which keys a query sees in local attention: those whose value reaches its output."""
    starts = torch.tensor([0, 50, 50 + length, 50 + length + 40])
    config = tinyrm.Config.read(hub_config(local_attention=2 * window, model_type=kind))
    total = int(starts[-1])
    plan = tinyrm.make_plan(config, torch.zeros(total).long(), starts, None, torch.float32)
    q = k = torch.zeros(total, 2, 16)
    v = torch.eye(total)[:, None].expand(-1, 2, -1)  # each key its own direction
    out = tinyrm.attention(q, k, v, plan, config.window)[50 + position, 0]
    keys = out.nonzero()[:, 0] - 50
    return keys.min().item(), keys.max().item(), len(keys)


def test_the_window_by_hand():
    # a row of 300 tokens that starts at 50 of the stream; 64 to each side, inclusive
    assert seen(0, 300) == (0, 64, 65)
    assert seen(64, 300) == (0, 128, 129)
    assert seen(65, 300) == (1, 129, 129)
    assert seen(200, 300) == (136, 264, 129)
    assert seen(299, 300) == (235, 299, 65)
    assert seen(30, 40) == (0, 39, 40)  # a row shorter than the window sees all of itself


def test_the_window_of_a_decoder_by_hand():
    # a window of 128 means 64 tokens here: the token itself and 63 to its left
    assert tinyrm.Config.read(hub_config(model_type="modernbert-decoder")).window == 63
    for position, want in ((0, (0, 0, 1)), (63, (0, 63, 64)), (64, (1, 64, 64)),
                           (299, (236, 299, 64))):  # fmt: skip
        assert seen(position, 300, kind="modernbert-decoder") == want
    assert seen(30, 40, kind="modernbert-decoder") == (0, 30, 31)


def test_a_decoder_is_read_at_the_end_of_a_row_only():
    model = wild(tinyrm.Config.read(hub_config(model_type="modernbert-decoder")))
    _, tokens, starts, _ = random_rows([20, 15])
    with pytest.raises(RuntimeError, match="read at the end of each row"):
        model(tokens, starts, starts[1:] - 2)


def plain_attention(q, k, v, starts, window=None, causal=False):
    """The oracle: one masked softmax over the whole stream."""
    row = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    at = torch.arange(len(row))
    may = row[:, None] == row
    if window is not None:
        may &= (at[:, None] - at).abs() <= window
    if causal:
        may &= at[:, None] >= at
    s = torch.einsum("ihk,jhk->hij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hij,jhk->ihk", s.masked_fill(~may, -torch.inf).softmax(-1), v)


@KINDS
@pytest.mark.parametrize("window", [None, 1, 16, 64])
@pytest.mark.parametrize("lengths", [[1], [127], [128, 128], [129, 1, 3, 64], [500, 2, 2, 2, 77]])
def test_attention_and_its_gradients_equal_a_masked_softmax(kind, lengths, window):
    config = tinyrm.Config.read(hub_config(local_attention=2 * (window or 64), model_type=kind))
    window = window and config.window
    starts = torch.tensor([0, *lengths]).cumsum(0)
    total = sum(lengths)
    plan = tinyrm.make_plan(config, torch.zeros(total).long(), starts, None, torch.float64)
    random = torch.Generator().manual_seed(0)
    qkv = [torch.randn(total, 2, 8, dtype=torch.float64, generator=random) for _ in range(4)]
    for x in qkv:
        x.requires_grad_()
    *qkv, weight = qkv
    ours = tinyrm.attention(*qkv, plan, window)
    theirs = plain_attention(*qkv, starts, window, config.causal)
    torch.testing.assert_close(ours, theirs)
    a = torch.autograd.grad((ours * weight).sum(), qkv)
    b = torch.autograd.grad((theirs * weight).sum(), qkv)
    torch.testing.assert_close(a, b)


@KINDS
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_scores_the_same_alone_first_last_and_among_others(threads, kind):
    model = wild(tinyrm.Config.read(hub_config(num_hidden_layers=7, model_type=kind))).eval()
    rows, *_ = random_rows([150, 40, 40, 700, 65, 66])

    def score(order):
        starts = torch.tensor([0, *(len(rows[i]) for i in order)]).cumsum(0)
        tokens = torch.cat([rows[i] for i in order])
        at = order.index(0)
        read = starts[1:] - 1 if model.config.causal else starts[:-1] + 7 % 40
        with torch.inference_mode():
            return model.logits(model(tokens, starts, read))[at]

    torch.set_num_threads(1)
    alone = score([0])
    torch.set_num_threads(threads)
    for order in ([0, 1, 2], [3, 1, 0], [5, 4, 1, 0, 2, 3], [0] * 9):
        assert (score(order) - alone).abs().max() < 1e-5, order


@KINDS
def test_saved_by_us_loads_in_transformers_and_the_reverse(tmp_path, kind):
    model = wild(tinyrm.Config.read(hub_config(model_type=kind)))
    rows, tokens, starts, read = random_rows([30])
    read = starts[1:] - 1 if model.config.causal else read
    first = read if model.config.causal else starts[:-1]
    want = model.logits(model(tokens, starts, read))
    tinyrm.save(model, tmp_path / "a")
    cloze, cls = ((AutoModelForCausalLM if model.config.causal else AutoModelForMaskedLM),
                  AutoModelForSequenceClassification)  # fmt: skip
    peer = cloze.from_pretrained(tmp_path / "a").eval()
    assert (peer(rows[0][None]).logits[0, read] - want).abs().max() < 1e-4
    peer.save_pretrained(tmp_path / "b")  # the later schema
    again = tinyrm.load(tmp_path / "b")
    for name, p in model.state_dict().items():
        assert torch.equal(p, again.state_dict()[name]), name
    assert again.config == model.config
    classifier = wild(model.config, "cls")
    tinyrm.save(classifier, tmp_path / "c")
    peer = cls.from_pretrained(tmp_path / "c").eval()
    ours = classifier.logits(classifier(tokens, starts, first))
    assert (peer(rows[0][None]).logits - ours).abs().max() < 1e-4
    assert tinyrm.load(tmp_path / "c").head_kind == "cls"
    fresh = tinyrm.load(tmp_path / "a", "cls")
    head = model.get_submodule(model.head_name)
    assert torch.equal(fresh.head.dense.weight, head.dense.weight)


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_the_tied_matrix_may_be_there_or_not_but_not_differ(tmp_path):
    model = wild(tinyrm.Config.read(hub_config()))
    tinyrm.save(model, tmp_path)
    name = "model.embeddings.tok_embeddings.weight"
    rewrite(tmp_path, lambda s: s.update({"decoder.weight": s[name].clone()}))
    assert torch.equal(tinyrm.load(tmp_path).state_dict()[name], model.state_dict()[name])
    rewrite(tmp_path, lambda s: s.update({"decoder.weight": s[name] + 1}))
    with pytest.raises(ValueError, match="decoder.weight differs"):
        tinyrm.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert torch.equal(tinyrm.load(tmp_path).decoder.weight, model.state_dict()[name] + 1)


@pytest.mark.parametrize("change, said", [
    (lambda s: s.pop("head.dense.weight"), "head.dense.weight is missing"),
    (lambda s: s.update({"model.layers.9.x": torch.zeros(2)}), "model.layers.9.x is not known"),
    (lambda s: s.update({"decoder.bias": torch.zeros(5)}), r"decoder.bias has shape \(5,\)"),
])  # fmt: skip
def test_a_wrong_tensor_is_named(tmp_path, change, said):
    tinyrm.save(tinyrm.ModernBERT(tinyrm.Config.read(hub_config())), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=said):
        tinyrm.load(tmp_path)


def test_folders_that_are_no_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        tinyrm.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        tinyrm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hub_config()))
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        tinyrm.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="cannot be read"):
        tinyrm.load(tmp_path)


def test_bf16_compute_keeps_the_weights_and_stays_close():
    model = wild(tinyrm.Config.read(hub_config())).eval()
    _, tokens, starts, read = random_rows([150, 30])
    with torch.inference_mode():
        want = model(tokens, starts, read)
        got = model.dtype_(torch.bfloat16)(tokens, starts, read)
    assert model.model.layers[1].mlp.Wi.weight.dtype == torch.float32
    assert 0 < (got - want).abs().max() < 0.1  # bf16 has 8 bits: 1/256 an operation, values of ~1
    model.logits(model(tokens, starts, read)).sum().backward()  # the kept copies serve training too
