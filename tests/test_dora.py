"""DoRA and LoRA against peft in float64: forward, gradients, training, merging, files; freezing.

    pytest tests/test_dora.py
"""

import argparse
import json

import benchmark
import peft
import pytest
import torch
from test_tinyrm import hub_config, peer_of, random_rows, wild
from torch import nn
from torch.nn.functional import cross_entropy

import dora
import tinyrm

torch.set_num_threads(1)
WORDS = torch.tensor([5, 6])


def small(head="cloze", **change):
    return wild(tinyrm.Config.read(hub_config(**change)), head).double()


def peft_of(model, rank, alpha, freeze, use_dora):
    """The same adapter on transformers' model by peft, with A, B and m copied from ours."""
    layers = range(freeze, model.config.num_hidden_layers)
    causal = model.config.causal
    targets = ("attn.q_proj", "attn.k_proj", "attn.v_proj") if causal else ("attn.Wqkv",)
    names = [f"model.layers.{i}.{t}" for i in layers
             for t in (*targets, "attn.Wo", "mlp.Wi", "mlp.Wo")]
    names.append("lm_head.dense" if causal else "head.dense")
    plain = wild(model.config).double()
    peer = peft.get_peft_model(
        peer_of(plain), peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=use_dora,
                                        target_modules=names))  # fmt: skip
    with torch.no_grad():
        for name, ours in dora.adapters(model).items():
            theirs = peer.base_model.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(ours.A)
            theirs.lora_B["default"].weight.copy_(ours.B)
            if use_dora:
                torch.testing.assert_close(
                    theirs.lora_magnitude_vector["default"].weight, plain_norm(ours))  # fmt: skip
    return peer


def plain_norm(module):
    return module.weight.norm(dim=1)


def theirs_of(peer, name, part):
    module = peer.base_model.model.get_submodule(name)
    if part == "m":
        return module.lora_magnitude_vector["default"].weight
    return getattr(module, f"lora_{part}")["default"].weight


def run(peer, rows, offsets):
    return torch.stack([
        peer(row[None]).logits[0, at] for row, at in zip(rows, offsets, strict=True)])  # fmt: skip


@pytest.mark.parametrize("kind, rank, alpha, freeze, of", [
    ("dora", 1, 8.0, 0, "modernbert"), ("dora", 3, 1.5, 2, "modernbert"),
    ("dora", 16, 16.0, 3, "modernbert"), ("lora", 4, 8.0, 1, "modernbert"),
    ("dora", 4, 8.0, 4, "modernbert"), ("dora", 4, 8.0, 1, "modernbert-decoder"),
])  # fmt: skip
def test_training_with_an_adapter_equals_peft(kind, rank, alpha, freeze, of):
    # hidden 32, ffn 48: Wqkv (96, 32), Wi (96, 32), mlp.Wo (32, 48) are not square
    model = small(model_type=of)
    dora.adapt(model, kind, rank, alpha, freeze)
    peer = peft_of(model, rank, alpha, freeze, kind == "dora")
    rows, tokens, starts, read = random_rows([140, 9, 40])
    read = starts[1:] - 1 if model.config.causal else read
    labels = torch.tensor([5, 6, 5])
    ours = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    theirs = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=0.05)
    for step in range(4):
        a = model.logits(model(tokens, starts, read))
        b = run(peer, rows, read - starts[:-1])
        # transformers rotates in float32 whatever the model is in, which moves the decoder's logits
        # by up to 3e-7; what peft adds is held to float64 in the next test
        atol = 1e-6 if model.config.causal else 1e-7
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)
        ours.zero_grad(), theirs.zero_grad()
        cross_entropy(a, labels).backward(), cross_entropy(b, labels).backward()
        for name, module in dora.adapters(model).items():
            for part in ("A", "B", "m") if kind == "dora" else ("A", "B"):
                torch.testing.assert_close(getattr(module, part).grad,
                                           theirs_of(peer, name, part).grad,
                                           rtol=1e-4, atol=1e-7, msg=f"{step} {name} {part}")
        ours.step(), theirs.step()
    merged = peer.merge_and_unload()
    before = model.logits(model(tokens, starts, read))
    dora.merge(model)
    after = model.logits(model(tokens, starts, read))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after, run(merged, rows, read - starts[:-1]), rtol=1e-4, atol=1e-6)
    assert not dora.adapters(model)


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("inputs, outputs, rank, alpha", [(7, 11, 3, 2.0), (40, 8, 8, 32.0)])
def test_one_layer_equals_peft_in_float64(inputs, outputs, rank, alpha, use_dora):
    torch.manual_seed(0)
    base = tinyrm.Linear(inputs, outputs).double()
    ours = dora.Adapted(base, rank, alpha, "dora" if use_dora else "lora")
    plain = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=torch.float64))
    plain[0].weight.data.copy_(base.weight)
    peer = peft.get_peft_model(plain, peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=["0"], use_dora=use_dora,
        )).double()  # fmt: skip
    theirs = [theirs_of(peer, "0", part) for part in ("A", "B") + ("m",) * use_dora]
    mine = [ours.A, ours.B] + [ours.m] * use_dora
    with torch.no_grad():
        for a, b in zip(mine, theirs, strict=True):
            b.copy_(a)
    x = torch.randn(30, inputs, dtype=torch.float64)
    target = torch.randn(30, outputs, dtype=torch.float64)
    optimizers = [torch.optim.AdamW(p, lr=0.1) for p in (mine, theirs)]
    for _ in range(6):
        for optimizer, model in zip(optimizers, (ours, peer), strict=True):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-9, atol=1e-12)
    merged = peer.merge_and_unload()[0].weight
    torch.testing.assert_close(ours.merged()[0], merged, rtol=1e-9, atol=1e-12)


def test_gradients_equal_autograd_through_the_formula():
    """The hand-written backward pass against autograd on the formula of the docstring."""
    torch.manual_seed(0)
    base = tinyrm.Linear(7, 11).double()
    layer = dora.Adapted(base, 3, 2.0)
    with torch.no_grad():
        layer.B.normal_()
        layer.m.mul_(1.3)
    x, weight = torch.randn(5, 7).double().requires_grad_(), torch.randn(5, 11).double()
    full = layer.weight + 2.0 / 3 * layer.B @ layer.A
    plain = x @ (layer.m / full.norm(dim=1).detach())[:, None].mul(full).T
    want = torch.autograd.grad((plain * weight).sum(), [x, layer.A, layer.B, layer.m])
    ours = layer(x)
    torch.testing.assert_close(ours, plain)
    got = torch.autograd.grad((ours * weight).sum(), [x, layer.A, layer.B, layer.m])
    torch.testing.assert_close(got, want)
    # the last layer asks for some of the outputs alone, twice
    parts = torch.cat([layer(x, slice(4)), layer(x, slice(4, None))], 1)
    got = torch.autograd.grad((parts * weight).sum(), [x, layer.A, layer.B, layer.m])
    torch.testing.assert_close(got, want)


def test_the_kept_weight_follows_every_change_and_judging_does_not_spoil_training():
    model = small()
    dora.adapt(model, "dora", 4, 8.0, 2)
    layer = model.model.layers[3].mlp.Wi
    x = torch.randn(3, 32).double()
    with torch.inference_mode():
        first = layer(x)
    layer(x).sum().backward()  # would fail if the copy made while judging were an inference tensor
    assert layer.current()[0] is layer.current()[0]  # not formed anew for a micro-batch
    with torch.no_grad():
        layer.B.normal_()
    assert not torch.allclose(layer(x), first)
    with torch.no_grad():
        layer.B.zero_()
        layer.m.mul_(2)
    torch.testing.assert_close(layer(x), 2 * first)


@pytest.mark.parametrize("kind", dora.KINDS)
@pytest.mark.parametrize("freeze", [0, 1, 3])
def test_frozen_weights_get_no_gradient_and_do_not_move(kind, freeze):
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = dora.adapt(model, kind, 4, 8.0, freeze, seed=1)
    frozen = ["model.embeddings."] if freeze or kind != "full" else []
    frozen += [f"model.layers.{i}." for i in range(freeze)]
    assert not any(name.startswith(tuple(frozen)) for name in names if frozen)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    _, tokens, starts, read = random_rows([100, 20])
    for _ in range(2):
        cross_entropy(model.logits(model(tokens, starts, read)), torch.tensor([5, 6])).backward()
        optimizer.step()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert len(optimizer.state) == len(params)
    after = model.state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name not in trained), name
    # what trains is exactly what should: adapters on four matrices a layer and head.dense, or all
    if kind != "full":
        assert len(names) == ((4 - freeze) * 4 + 1) * (3 if kind == "dora" else 2)


def test_the_frozen_bottom_runs_without_autograd():
    model = small()
    dora.adapt(model, "dora", 4, 8.0, 2)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *a: seen.append(a[2].requires_grad))
    _, tokens, starts, read = random_rows([30])
    model(tokens, starts, read)
    assert seen == [False, False, True, True]


@pytest.mark.parametrize("of", ["modernbert", "modernbert-decoder"])
def test_an_adapter_saved_by_us_loads_in_peft_and_the_reverse(tmp_path, of):
    for kind in ("dora", "lora"):
        model = small(model_type=of).float()
        dora.adapt(model, kind, 4, 6.0, 2)
        with torch.no_grad():
            for module in dora.adapters(model).values():
                module.B.normal_(std=0.1)
                if module.m is not None:
                    module.m.mul_(1.1)
        rows, tokens, starts, read = random_rows([80, 12])
        read = starts[1:] - 1 if model.config.causal else read
        want = model.logits(model(tokens, starts, read))
        dora.save_adapter(model, tmp_path / "ours", "some/base")
        base = peer_of(wild(model.config))
        peer = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
        got = run(peer, rows, read - starts[:-1])
        assert (got - want).abs().max() < 1e-4
        peer.save_pretrained(tmp_path / "theirs")
        again = wild(model.config)
        dora.load_adapter(again, tmp_path / "theirs")
        assert (again.logits(again(tokens, starts, read)) - want).abs().max() < 1e-5


def test_a_classifier_travels_with_its_adapter(tmp_path):
    from transformers import ModernBertForSequenceClassification

    model = small("cls").float()
    dora.adapt(model, "dora", 2, 2.0, 3)
    with torch.no_grad():
        model.classifier.weight.add_(1)
        model.head.dense.B.normal_()
    rows, tokens, starts, _ = random_rows([50])
    want = model.logits(model(tokens, starts, starts[:-1]))
    dora.save_adapter(model, tmp_path, "some/base")
    peer = peer_of(wild(model.config, "cls"), ModernBertForSequenceClassification)
    peer = peft.PeftModel.from_pretrained(peer, tmp_path).eval()
    assert (peer(rows[0][None]).logits - want).abs().max() < 1e-4
    again = wild(model.config, "cls")
    dora.load_adapter(again, tmp_path)
    assert (again.logits(again(tokens, starts, starts[:-1])) - want).abs().max() < 1e-5


def test_an_adapter_on_the_tied_decoder_leaves_the_embeddings_alone(tmp_path):
    """The shape of the author's published adapter (facts: targets Wqkv, Wi, Wo, dense, decoder)."""
    config = tinyrm.Config.read(hub_config())
    peer = peft.get_peft_model(peer_of(wild(config)), peft.LoraConfig(
        r=4, use_dora=True, target_modules=["Wqkv", "Wi", "Wo", "dense", "decoder"]))  # fmt: skip
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
            if "magnitude" in name:
                p.mul_(1.2)
    peer.save_pretrained(tmp_path)
    model = wild(config)
    embeddings = model.model.embeddings.tok_embeddings.weight.clone()
    dora.load_adapter(model, tmp_path)
    rows, tokens, starts, read = random_rows([70, 11])
    want = run(peer.eval(), rows, read - starts[:-1])
    for _ in range(2):  # as loaded, and merged
        assert (model.logits(model(tokens, starts, read)) - want).abs().max() < 1e-4
        few = model.logits(model(tokens, starts, read), WORDS)
        assert (few - want[:, WORDS]).abs().max() < 1e-4
        dora.merge(model)
    assert torch.equal(model.model.embeddings.tok_embeddings.weight, embeddings)


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no readable PEFT adapter"):
        dora.load_adapter(small(), tmp_path)
    model = small().float()
    dora.adapt(model, "dora", 4, 8.0, 2)
    dora.save_adapter(model, tmp_path, "x")
    with pytest.raises(ValueError, match="does not fit"):
        dora.load_adapter(small(num_hidden_layers=3).float(), tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        dora.load_adapter(small(intermediate_size=40).float(), tmp_path)
    for bad in (dict(kind="qlora"), dict(freeze=5), dict(freeze=-1), dict(rank=0)):
        with pytest.raises(ValueError, match="--"):
            dora.adapt(small(), **bad)


@pytest.mark.parametrize("kind", dora.KINDS)
def test_bf16_gradients_are_those_of_float32_within_bf16(kind):
    _, tokens, starts, read = random_rows([100, 20])
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        model = small().float().dtype_(dtype)
        dora.adapt(model, kind, 4, 8.0, 1)
        cross_entropy(model.logits(model(tokens, starts, read)), torch.tensor([5, 6])).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert grads[1].dtype == torch.float32
    assert nn.functional.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_an_adapter_whose_config_lacks_a_number_is_one_line(tmp_path, key):
    model = tinyrm.load(tinyrm.HERE / "nano")
    dora.adapt(model, "dora", 2, 8.0, 3)
    dora.save_adapter(model, tmp_path, "nano")
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"does not fit this model: '{key}'"):
        dora.load_adapter(tinyrm.load(tinyrm.HERE / "nano"), tmp_path)


def test_the_benchmark_against_lora_gives_the_other_side_lora(tmp_path):
    tinyrm.save(tinyrm.ModernBERT(tinyrm.Config.read(benchmark.config_of("tiny"))), tmp_path)
    args = argparse.Namespace(base=tmp_path, size="tiny", adapter="dora", side="ours")
    assert all(x.m is not None for x in dora.adapters(benchmark.begin(args)).values())
    args.side = "lora"
    assert all(x.m is None for x in dora.adapters(benchmark.begin(args)).values())
