"""DoRA and LoRA against peft in float64: the formula, one layer, training, merging, files; and what
freezing freezes.

    python -m pytest tests/test_dora.py
"""

import argparse
import json

import benchmark
import peft
import pytest
import torch
from oracles import logits_of, peer_of, random_rows, small_config, wild
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import ModernBertForSequenceClassification

import dora
import tinyrm
from infra.hub import ROOT

EXACT = dict(rtol=1e-9, atol=1e-12)  # in float64


def small(head="cloze", **changes):
    """A model with hidden size 32 and feed-forward 48: Wqkv is (96, 32), Wi (96, 32), mlp.Wo
    (32, 48), none of them square."""
    return wild(small_config(**changes), head).double()


def randn(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def move_adapters(model):
    """Away from where training begins: there B is 0, which hides A."""
    with torch.no_grad():
        for i, adapted in enumerate(dora.adapters(model).values()):
            adapted.B.copy_(randn(*adapted.B.shape, seed=i) / 10)
            if adapted.m is not None:
                adapted.m.mul_(1.1)


def parts_of(adapted):
    """{name: parameter} of what trains in our layer."""
    parts = {"A": adapted.A, "B": adapted.B}
    if adapted.m is not None:
        parts["m"] = adapted.m
    return parts


def peft_parts_of(layer, use_dora):
    """The same of a layer of peft."""
    parts = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    if use_dora:
        parts["m"] = layer.lora_magnitude_vector["default"].weight
    return parts


# --- the formula and one layer ---------------------------------------------------------------

LAYERS = pytest.mark.parametrize("inputs, outputs, rank, alpha", [
    (7, 11, 3, 2.0),
    (40, 8, 8, 32.0),
])
USE_DORA = pytest.mark.parametrize("use_dora", [True, False])


def one_layer(inputs, outputs, rank, alpha, use_dora):
    """Our layer and peft's, with equal weights, away from where training begins."""
    base = tinyrm.Linear(inputs, outputs).double()
    ours = dora.AdaptedLinear(base, rank, alpha, "dora" if use_dora else "lora")
    with torch.no_grad():
        ours.B.copy_(randn(outputs, rank, seed=3))
        if use_dora:
            ours.m.mul_(1.3)

    plain = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=torch.float64))
    plain[0].weight.data.copy_(base.weight)
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=use_dora, target_modules=["0"])
    peer = peft.get_peft_model(plain, settings).double()
    their_parts = peft_parts_of(peer.base_model.model[0], use_dora)
    with torch.no_grad():
        for name, p in parts_of(ours).items():
            their_parts[name].copy_(p)
    return ours, peer, their_parts


@USE_DORA
@LAYERS
def test_the_plain_formula_equals_peft(inputs, outputs, rank, alpha, use_dora):
    ours, peer, their_parts = one_layer(inputs, outputs, rank, alpha, use_dora)
    x, weights = randn(30, inputs).requires_grad_(), randn(30, outputs, seed=1)

    plain = dora.plain_dora(x, ours.weight, ours.A, ours.B, ours.m, alpha / rank)
    torch.testing.assert_close(plain, peer(x), **EXACT)
    got = torch.autograd.grad((plain * weights).sum(), [x, *parts_of(ours).values()])
    wanted = torch.autograd.grad((peer(x) * weights).sum(), [x, *their_parts.values()])
    torch.testing.assert_close(got, wanted, **EXACT)


@USE_DORA
@LAYERS
def test_the_layer_equals_the_plain_formula(inputs, outputs, rank, alpha, use_dora):
    """Values, and the hand-written backward pass against autograd through the formula."""
    ours, _, _ = one_layer(inputs, outputs, rank, alpha, use_dora)
    x, weights = randn(30, inputs).requires_grad_(), randn(30, outputs, seed=1)
    inputs_and_parts = [x, *parts_of(ours).values()]

    plain = dora.plain_dora(x, ours.weight, ours.A, ours.B, ours.m, alpha / rank)
    torch.testing.assert_close(ours(x), plain, **EXACT)
    got = torch.autograd.grad((ours(x) * weights).sum(), inputs_and_parts)
    wanted = torch.autograd.grad((plain * weights).sum(), inputs_and_parts)
    torch.testing.assert_close(got, wanted, **EXACT)


def test_two_halves_of_the_outputs_are_the_layer():
    # as the last layer asks: the queries apart from the keys and values
    ours, _, _ = one_layer(7, 11, 3, 2.0, use_dora=True)
    x, weights = randn(5, 7).requires_grad_(), randn(5, 11, seed=1)
    inputs_and_parts = [x, *parts_of(ours).values()]

    halves = torch.cat([ours.outputs(x, slice(0, 4)), ours.outputs(x, slice(4, 11))], 1)
    torch.testing.assert_close(halves, ours(x), **EXACT)
    got = torch.autograd.grad((halves * weights).sum(), inputs_and_parts)
    wanted = torch.autograd.grad((ours(x) * weights).sum(), inputs_and_parts)
    torch.testing.assert_close(got, wanted, **EXACT)


@USE_DORA
@LAYERS
def test_a_layer_trains_and_merges_as_in_peft(inputs, outputs, rank, alpha, use_dora):
    ours, peer, their_parts = one_layer(inputs, outputs, rank, alpha, use_dora)
    our_parts = parts_of(ours)
    x, target = randn(30, inputs), randn(30, outputs, seed=1)

    our_optimizer = torch.optim.AdamW(our_parts.values(), lr=0.1)
    their_optimizer = torch.optim.AdamW(their_parts.values(), lr=0.1)
    for _ in range(6):
        for model, optimizer in ((ours, our_optimizer), (peer, their_optimizer)):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        for name, p in our_parts.items():
            torch.testing.assert_close(p.grad, their_parts[name].grad, **EXACT)

    torch.testing.assert_close(ours(x), peer(x), **EXACT)
    merged = peer.merge_and_unload()[0].weight
    torch.testing.assert_close(ours.merged_weight().weight, merged, **EXACT)


def test_training_begins_at_the_weight_itself():
    base = tinyrm.Linear(7, 11).double()
    torch.testing.assert_close(dora.AdaptedLinear(base, 3, 2.0).merged_weight().weight, base.weight)


# --- the weight that is kept -----------------------------------------------------------------


def test_the_weight_is_formed_once_for_all_micro_batches_of_a_step():
    layer = dora.AdaptedLinear(tinyrm.Linear(7, 11), 3, 2.0)
    assert layer.effective_weight().weight is layer.effective_weight().weight


@pytest.mark.parametrize("part", ["weight", "A", "B", "m"])
def test_the_weight_follows_every_change(part):
    ours, _, _ = one_layer(7, 11, 3, 2.0, use_dora=True)
    x = randn(5, 7)
    before = ours(x)
    with torch.no_grad():
        getattr(ours, part).mul_(2)
    plain = dora.plain_dora(x, ours.weight, ours.A, ours.B, ours.m, 2.0 / 3)
    assert not torch.allclose(ours(x), before)
    torch.testing.assert_close(ours(x), plain, **EXACT)


def test_a_weight_that_was_formed_while_judging_serves_training_too():
    layer = dora.AdaptedLinear(tinyrm.Linear(7, 11), 3, 2.0)
    x = torch.ones(5, 7)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()  # this fails if the weight is an inference tensor


# --- training a whole model ------------------------------------------------------------------


def peft_of(model, rank, alpha, freeze, use_dora):
    """The same adapters on transformers' model by peft, with A and B copied from ours; m follows
    from the weights."""
    names = []
    for i in range(freeze, model.config.num_hidden_layers):
        for target in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"):
            names.append(f"model.layers.{i}.{target}")
    names.append("head.dense")

    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=use_dora, target_modules=names)
    peer = peft.get_peft_model(peer_of(small()), settings)
    with torch.no_grad():
        for name, ours in dora.adapters(model).items():
            theirs = peft_parts_of(peer.base_model.model.get_submodule(name), use_dora)
            theirs["A"].copy_(ours.A)
            theirs["B"].copy_(ours.B)
    return peer


@pytest.mark.parametrize("adapter, rank, alpha, freeze", [
    ("dora", 1, 8.0, 0),
    ("dora", 3, 1.5, 2),
    ("dora", 16, 16.0, 3),
    ("dora", 4, 8.0, 4),  # the head alone
    ("lora", 4, 8.0, 1),
])
def test_training_a_model_with_adapters_equals_peft(adapter, rank, alpha, freeze):
    model = small()
    dora.adapt(model, adapter, rank, alpha, freeze)
    peer = peft_of(model, rank, alpha, freeze, use_dora=adapter == "dora")
    rows, tokens, starts, read_at = random_rows([140, 9, 40])
    labels = torch.tensor([5, 6, 5])

    our_parameters = [p for p in model.parameters() if p.requires_grad]
    their_parameters = [p for p in peer.parameters() if p.requires_grad]
    our_optimizer = torch.optim.AdamW(our_parameters, lr=0.05)
    their_optimizer = torch.optim.AdamW(their_parameters, lr=0.05)
    for _ in range(4):
        ours = model.logits(model(tokens, starts, read_at))
        theirs = logits_of(peer, rows, read_at, starts)
        # transformers rotates in float32, whatever the model is in
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)

        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        cross_entropy(ours, labels).backward()
        cross_entropy(theirs, labels).backward()
        for name, adapted in dora.adapters(model).items():
            layer = peer.base_model.model.get_submodule(name)
            their_parts = peft_parts_of(layer, adapter == "dora")
            for part, p in parts_of(adapted).items():
                torch.testing.assert_close(p.grad, their_parts[part].grad, rtol=1e-4, atol=1e-7,
                                           msg=f"{name} {part}")
        our_optimizer.step()
        their_optimizer.step()

    before = model.logits(model(tokens, starts, read_at))
    dora.merge(model)
    after = model.logits(model(tokens, starts, read_at))
    torch.testing.assert_close(after, before, **EXACT)
    merged = logits_of(peer.merge_and_unload(), rows, read_at, starts)
    torch.testing.assert_close(after, merged, rtol=1e-4, atol=1e-6)


def test_nothing_is_left_of_an_adapter_that_was_merged():
    model = small()
    dora.adapt(model, "dora", 4, 8.0, 2)
    dora.merge(model)
    assert not dora.adapters(model)
    assert not any(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == small().state_dict().keys()


def test_the_adapter_is_drawn_from_the_seed():
    drawn = []
    for seed in (1, 1, 2):
        parameters = dora.adapt(small(), "dora", 4, 8.0, 3, seed)
        drawn.append(parameters["head.dense.A"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("adapter", dora.ADAPTERS)
def test_bf16_gradients_are_those_of_float32_within_bf16(adapter):
    _, tokens, starts, read_at = random_rows([100, 20])
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = small().float().set_compute_dtype(dtype)
        trained = dora.adapt(model, adapter, 4, 8.0, 1)
        logits = model.logits(model(tokens, starts, read_at))
        cross_entropy(logits, torch.tensor([5, 6])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained.values()]))
    assert gradients[1].dtype == torch.float32
    assert cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("adapter", dora.ADAPTERS)
def test_layers_that_are_recomputed_give_the_same_gradients(adapter):
    _, tokens, starts, read_at = random_rows([100, 20])
    gradients = []
    for recompute in (False, True):
        model = small()
        trained = dora.adapt(model, adapter, 4, 8.0, 1)
        model.recompute_layers = recompute
        model.logits(model(tokens, starts, read_at)).logsumexp(1).sum().backward()
        gradients.append([p.grad for p in trained.values()])
    torch.testing.assert_close(gradients[0], gradients[1])


# --- what trains, and what is frozen ---------------------------------------------------------


@pytest.mark.parametrize("adapter", dora.ADAPTERS)
@pytest.mark.parametrize("freeze", [0, 1, 3])
def test_only_what_trains_moves(adapter, freeze):
    model = small()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = dora.adapt(model, adapter, 4, 8.0, freeze, seed=1)
    _, tokens, starts, read_at = random_rows([100, 20])

    # with a decay, which would move a frozen weight that the optimizer has
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        logits = model.logits(model(tokens, starts, read_at))
        cross_entropy(logits, torch.tensor([5, 6])).backward()
        optimizer.step()

    after = model.state_dict()
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved == trained.keys() & before.keys()


@pytest.mark.parametrize("adapter", dora.ADAPTERS)
def test_freezing_freezes_the_embeddings_and_the_bottom_layers(adapter):
    trained = dora.adapt(small(), adapter, 4, 8.0, freeze=2)
    layers = {name.split(".")[2] for name in trained if name.startswith("model.layers.")}
    assert layers == {"2", "3"}
    assert not any(name.startswith("model.embeddings.") for name in trained)


def test_full_fine_tuning_without_freezing_trains_everything():
    model = small()
    assert dora.adapt(model, "full").keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("adapter, parts", [("dora", 3), ("lora", 2)])
@pytest.mark.parametrize("freeze", [0, 1, 4])
def test_adapters_stand_on_four_products_a_layer_and_on_the_head(adapter, parts, freeze):
    model = small()
    trained = dora.adapt(model, adapter, 4, 8.0, freeze)
    assert len(dora.adapters(model)) == 4 * (4 - freeze) + 1  # of the 4 layers, and head.dense
    assert "head.dense" in dora.adapters(model)
    assert len(trained) == parts * len(dora.adapters(model))


@pytest.mark.parametrize("adapter", dora.ADAPTERS)
def test_the_fresh_classifier_always_trains(adapter):
    trained = dora.adapt(small("cls"), adapter, 4, 8.0, freeze=4)
    assert {"classifier.weight", "classifier.bias"} <= trained.keys()


def test_the_frozen_bottom_runs_without_autograd():
    model = small()
    dora.adapt(model, "dora", 4, 8.0, freeze=2)
    needs_gradient = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *call: needs_gradient.append(call[2].requires_grad))
    _, tokens, starts, _ = random_rows([30])
    model(tokens, starts)
    assert needs_gradient == [False, False, True, True]


@pytest.mark.parametrize("settings, message", [
    (dict(adapter="qlora"), "--adapter qlora: give one of dora, lora, full"),
    (dict(freeze=5), "--freeze 5: this model has 4 layers"),
    (dict(freeze=-1), "--freeze -1"),
    (dict(rank=0), "--rank 0: give 1 or more"),
])
def test_settings_that_a_model_cannot_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dora.adapt(small(), **settings)


# --- files -----------------------------------------------------------------------------------


def save_adapted(folder, adapter="dora", head="cloze", rank=4, alpha=6.0, freeze=2):
    """A model under adapters that are stored in a folder."""
    model = small(head).float()
    dora.adapt(model, adapter, rank, alpha, freeze)
    move_adapters(model)
    dora.save_adapter(model, folder, "some/base")
    return model


@pytest.mark.parametrize("adapter", ["dora", "lora"])
def test_an_adapter_that_we_save_opens_in_peft(tmp_path, adapter):
    model = save_adapted(tmp_path, adapter)
    rows, tokens, starts, read_at = random_rows([80, 12])
    peer = peft.PeftModel.from_pretrained(peer_of(small().float()), tmp_path).eval()
    ours = model.logits(model(tokens, starts, read_at))
    assert (logits_of(peer, rows, read_at, starts) - ours).abs().max() < 1e-4


@pytest.mark.parametrize("adapter", ["dora", "lora"])
def test_an_adapter_that_peft_saves_opens_here(tmp_path, adapter):
    model = save_adapted(tmp_path / "ours", adapter)
    peer = peft.PeftModel.from_pretrained(peer_of(small().float()), tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")

    again = small().float()
    dora.load_adapter(again, tmp_path / "theirs")
    _, tokens, starts, read_at = random_rows([80, 12])
    ours = model.logits(model(tokens, starts, read_at))
    assert (again.logits(again(tokens, starts, read_at)) - ours).abs().max() < 1e-5


def test_the_classifier_travels_with_its_adapter_to_peft(tmp_path):
    model = save_adapted(tmp_path, head="cls")
    base = peer_of(small("cls").float(), ModernBertForSequenceClassification)
    base.classifier.weight.data.zero_()  # it comes with the adapter
    peer = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    rows, tokens, starts, _ = random_rows([50])
    ours = model.logits(model(tokens, starts, starts[:-1]))
    assert (peer(rows[0][None]).logits - ours).abs().max() < 1e-4


def test_the_classifier_travels_with_its_adapter_to_us(tmp_path):
    model = save_adapted(tmp_path, head="cls")
    again = small("cls").float()
    again.classifier.weight.data.zero_()
    dora.load_adapter(again, tmp_path)
    _, tokens, starts, _ = random_rows([50])
    ours = model.logits(model(tokens, starts, starts[:-1]))
    assert (again.logits(again(tokens, starts, starts[:-1])) - ours).abs().max() < 1e-5


def test_an_adapter_names_its_base(tmp_path):
    save_adapted(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"


@pytest.fixture
def decoder_adapter(tmp_path):
    """An adapter on the tied decoder too, as the author's published one has it (targets Wqkv, Wi,
    Wo, dense, decoder), made by peft; and peft's model."""
    targets = ["Wqkv", "Wi", "Wo", "dense", "decoder"]
    settings = peft.LoraConfig(r=4, use_dora=True, target_modules=targets)
    peer = peft.get_peft_model(peer_of(small().float()), settings).eval()
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
            if "magnitude" in name:
                p.mul_(1.2)
    peer.save_pretrained(tmp_path)
    return tmp_path, peer


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_on_the_tied_decoder_scores_as_in_peft(decoder_adapter, merged):
    folder, peer = decoder_adapter
    model = small().float()
    dora.load_adapter(model, folder)
    if merged:
        dora.merge(model)
    rows, tokens, starts, read_at = random_rows([70, 11])
    theirs = logits_of(peer, rows, read_at, starts)

    h = model(tokens, starts, read_at)
    assert (model.logits(h) - theirs).abs().max() < 1e-4
    words = torch.tensor([5, 6])
    assert (model.logits(h, words) - theirs[:, words]).abs().max() < 1e-4


def test_an_adapter_on_the_tied_decoder_leaves_the_embeddings_alone(decoder_adapter):
    folder, _ = decoder_adapter
    model = small().float()
    embeddings = model.model.embeddings.tok_embeddings.weight.clone()
    dora.load_adapter(model, folder)
    dora.merge(model)
    assert torch.equal(model.model.embeddings.tok_embeddings.weight, embeddings)


def test_a_folder_without_an_adapter_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no readable PEFT adapter"):
        dora.load_adapter(small(), tmp_path)


@pytest.mark.parametrize("changes", [dict(num_hidden_layers=3), dict(intermediate_size=40)])
def test_an_adapter_of_another_model_does_not_fit(tmp_path, changes):
    save_adapted(tmp_path)
    with pytest.raises(ValueError, match="does not fit this model"):
        dora.load_adapter(small(**changes).float(), tmp_path)


def rewrite_config(folder, change):
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_an_adapter_whose_config_lacks_a_number_is_one_line(tmp_path, key):
    save_adapted(tmp_path)
    rewrite_config(tmp_path, lambda config: config.pop(key))
    with pytest.raises(ValueError, match=f"adapter_config.json: {key} is missing"):
        dora.load_adapter(small().float(), tmp_path)


@pytest.mark.parametrize("key, value", [
    ("peft_type", "IA3"), ("bias", "all"), ("use_rslora", True), ("rank_pattern", {"Wi": 2}),
])
def test_an_adapter_that_is_computed_in_another_way_is_refused(tmp_path, key, value):
    save_adapted(tmp_path)
    rewrite_config(tmp_path, lambda config: config.update({key: value}))
    with pytest.raises(ValueError, match="only plain LoRA and DoRA adapters are built here"):
        dora.load_adapter(small().float(), tmp_path)


# --- the benchmark and the script ------------------------------------------------------------


def test_the_script_shows_what_trains_at_each_setting(capsys):
    dora.main()
    out = capsys.readouterr().out
    for adapter in dora.ADAPTERS:
        assert out.count(f"--adapter {adapter:5}") == 2
    everything = sum(p.numel() for p in tinyrm.load(ROOT / "nano").parameters())
    assert f"--adapter full  --freeze 0   {everything:8,}" in out
    # of an adapter above two frozen layers: two layers of four products, and head.dense
    shapes = out.partition("the adapters above")[2].splitlines()[2:]
    assert len(shapes) == 2 * 4 + 1
    assert shapes[0].split(None, 1) == [
        "model.layers.2.attn.Wqkv",
        "(384, 128)    (16, 128)     (384, 16)     (384,)",
    ]


@pytest.mark.parametrize("side, has_magnitudes", [("ours", True), ("lora", False)])
def test_the_benchmark_against_lora_gives_the_other_side_lora(tmp_path, side, has_magnitudes):
    config = tinyrm.Config.from_json(benchmark.config_of("tiny"))
    tinyrm.save(tinyrm.ModernBERT(config), tmp_path)
    args = argparse.Namespace(base=tmp_path, size="tiny", adapter="dora", side=side)
    adapters = dora.adapters(benchmark.adapted_model(args)).values()
    assert len(adapters) > 0
    assert all((adapted.m is not None) == has_magnitudes for adapted in adapters)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 1e-6), (torch.float32, 1e-6)])
def test_the_sums_for_the_magnitude_are_added_up_in_its_precision(rows, dtype, most):
    generator = torch.Generator().manual_seed(rows)
    g, y = torch.randn(2, rows, 40, generator=generator).to(dtype)
    exact = (g.double() * y.double()).sum(0)
    found = dora.column_dots(g, y, torch.float32)
    assert found.dtype == torch.float32
    size = (g.double() * y.double()).abs().sum(0)  # what rounding is a share of
    assert ((found - exact).abs() / size).max() < most
