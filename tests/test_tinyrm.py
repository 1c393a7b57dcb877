"""The encoder: its plain forms against transformers, its fast forms against the plain ones, the
whole model against transformers' ModernBERT, values and gradients; the window by hand; files.

    python -m pytest tests/test_tinyrm.py
"""

import json
import math
import runpy

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
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP, apply_rotary_pos_emb

import tinyrm
from infra.hub import ROOT

GLOBAL, SLIDING = "full_attention", "sliding_attention"


def randn(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def assert_same_with_gradients(ours, theirs, inputs):
    """Two outputs of the same inputs: equal values, and equal gradients of a random sum of them."""
    torch.testing.assert_close(ours, theirs)
    weights = randn(*ours.shape, seed=9)
    our_gradients = torch.autograd.grad((ours * weights).sum(), inputs)
    their_gradients = torch.autograd.grad((theirs * weights).sum(), inputs)
    torch.testing.assert_close(our_gradients, their_gradients)


# --- the configuration -----------------------------------------------------------------------


def test_the_old_and_the_later_schema_read_alike():
    old = hub_config(local_rope_theta=9000.0)
    later = ModernBertConfig(**old).to_dict()
    assert "rope_parameters" in later and "layer_types" in later
    assert tinyrm.Config.from_json(old) == tinyrm.Config.from_json(later)


def test_every_third_layer_is_global_from_the_first_on():
    assert small_config().layer_types == (GLOBAL, SLIDING, SLIDING, GLOBAL)


def test_each_kind_of_layer_has_its_rope_theta():
    config = small_config(global_rope_theta=160000.0, local_rope_theta=9000.0)
    assert (config.global_rope_theta, config.local_rope_theta) == (160000.0, 9000.0)


def test_without_a_local_theta_both_kinds_have_the_global_one():
    assert small_config(local_rope_theta=None).local_rope_theta == 160000.0


def test_local_attention_counts_both_sides_and_the_window_one():
    assert small_config(local_attention=128).window == 64
    assert small_config(local_attention=None).window == 64  # what every ModernBERT has


def test_the_head_that_a_checkpoint_has_is_read_from_its_class():
    assert small_config().saved_head == "cloze"
    classifier = small_config(architectures=["ModernBertForSequenceClassification"])
    assert classifier.saved_head == "cls"


def test_a_head_size_that_follows_from_the_others_may_stand_there():
    assert small_config(head_dim=small_config().head_size).head_size == small_config().head_size


def test_what_is_not_understood_is_written_back():
    raw = small_config(something_else=[1, 2]).to_json("cls")
    assert raw["something_else"] == [1, 2]
    assert raw["architectures"] == ["ModernBertForSequenceClassification"]


@pytest.mark.parametrize("changes, message", [
    (dict(model_type="bert"), "model_type is 'bert'"),
    (dict(mlp_bias=True), "mlp_bias is True"),
    (dict(hidden_activation="relu"), "hidden_activation is 'relu'"),
    (dict(rope_parameters={GLOBAL: {"rope_type": "yarn"}}), "rope_type 'yarn' is not built here"),
    (dict(hidden_size=33), "hidden_size is not a multiple"),
    (dict(vocab_size=None), "a size is missing: vocab_size"),
    (dict(layer_types=[GLOBAL]), "layer_types does not have num_hidden_layers entries"),
    (dict(layer_types=["mamba"] * 4), "layer_types"),
    (dict(rope_parameters={GLOBAL: {"rope_theta": 0}}), "rope_theta is '0': give 1 to"),
    (dict(rope_parameters={GLOBAL: {"rope_theta": float("nan")}}), "rope_theta is 'nan'"),
    (dict(rope_parameters={SLIDING: {"rope_theta": "abc"}}), "rope_theta is 'abc'"),
    (dict(rope_parameters={SLIDING: {"rope_theta": True}}), "rope_theta is 'True'"),
    (dict(rope_parameters={"rope_theta": 1e4}), "rope_parameters: unknown entry 'rope_theta'"),
])
def test_a_config_that_is_not_built_here_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


# --- the plain forms -------------------------------------------------------------------------


def test_a_token_may_attend_to_its_own_row_only():
    # two rows, of 2 and of 3 tokens
    assert tinyrm.may_attend(torch.tensor([0, 2, 5])).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]


def test_a_window_of_one_is_one_token_to_each_side():
    assert tinyrm.may_attend(torch.tensor([0, 2, 5]), window=1).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("window", [None, 2])
def test_plain_attention_equals_transformers(window):
    q, k, v = (randn(20, 2, 8, seed=i).requires_grad_() for i in range(3))  # (T, H, K)
    allowed = tinyrm.may_attend(torch.tensor([0, 12, 20]), window)

    ours = tinyrm.plain_attention(q, k, v, allowed)
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]  # (1, H, T, K)
    theirs, _ = sdpa_attention_forward(torch.nn.Module(), *by_head, allowed[None, None],
                                       scaling=8**-0.5, is_causal=False)
    assert_same_with_gradients(ours, theirs[0], (q, k, v))


def test_rotate_by_hand():
    # K = 4: two complex numbers, which turn by theta^0 = 1 and theta^(-1/2) = 1/10 a position.
    # At position 3 the angles are 3 and 0.3; 1 becomes cos + i sin, and i becomes -sin + i cos.
    cos, sin = tinyrm.rope_tables(torch.tensor([3]), head_size=4, theta=100.0)
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # (T, H, K): the numbers 1 + 0i and 0 + 1i
    expected = [math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]
    torch.testing.assert_close(tinyrm.rotate(x, cos, sin)[0, 0], torch.tensor(expected))


def test_rotate_equals_transformers():
    x = randn(50, 2, 8).float()
    cos, sin = tinyrm.rope_tables(torch.arange(50), head_size=8, theta=10000.0)
    both_halves = [torch.cat([table, table], -1)[:, 0][None] for table in (cos, sin)]  # (1, T, K)
    by_head = x.transpose(0, 1)[None]  # (1, H, T, K)
    theirs, _ = apply_rotary_pos_emb(by_head, by_head, *both_halves)
    torch.testing.assert_close(tinyrm.rotate(x, cos, sin), theirs[0].transpose(0, 1))


def test_plain_geglu_equals_transformers():
    x = randn(30, 32).requires_grad_()
    peer = ModernBertMLP(ModernBertConfig(**hub_config())).double()
    ours = tinyrm.plain_geglu(x @ peer.Wi.weight.T) @ peer.Wo.weight.T
    assert_same_with_gradients(ours, peer(x), (x, peer.Wi.weight, peer.Wo.weight))


# --- the fast forms --------------------------------------------------------------------------

# With a window of 64 the first two fit into it (one call a run of equal rows), the others take the
# blocks of local attention: 128 and 129 end at a block and beyond one.
LENGTHS = [[1], [40, 40, 40, 7], [127], [128, 128], [129, 1, 3, 64], [500, 2, 2, 2, 77]]


def layout_of(lengths, window=64, dtype=torch.float64, read_at=None):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    config = small_config(local_attention=2 * window)
    tokens = torch.zeros(int(starts[-1]), dtype=torch.long)
    return tinyrm.pack_layout(config, tokens, starts, read_at, dtype)


@pytest.mark.parametrize("window", [None, 1, 16, 64])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_equals_plain_attention(lengths, window):
    layout = layout_of(lengths, window or 64)
    q, k, v = (randn(sum(lengths), 2, 8, seed=i).requires_grad_() for i in range(3))

    ours = tinyrm.attention(q, k, v, layout, window)
    allowed = tinyrm.may_attend(layout.cu_seqlens.long(), window)
    plain = tinyrm.plain_attention(q, k, v, allowed)
    assert_same_with_gradients(ours, plain, (q, k, v))


def test_the_lengths_above_take_both_ways_of_local_attention():
    assert layout_of([40, 40, 40, 7]).local_mask is None
    assert layout_of([65]).local_mask is None  # the first token sees 64 more: all of the row
    assert layout_of([66]).local_mask is not None


def test_equally_long_neighbours_attend_in_one_call():
    runs = layout_of([7, 7, 7, 5, 7]).equal_runs
    assert runs == [(3, 7), (1, 5), (1, 7)]  # rows, length


@pytest.mark.parametrize("lengths", LENGTHS)
def test_one_query_a_row_equals_plain_attention_at_that_place(lengths):
    _, _, starts, read_at = random_rows(lengths)
    q, k, v = (randn(sum(lengths), 2, 8, seed=i).requires_grad_() for i in range(3))

    ours = tinyrm.attention_where_read(q[read_at], k, v, layout_of(lengths))
    plain = tinyrm.plain_attention(q, k, v, tinyrm.may_attend(starts))[read_at]
    assert_same_with_gradients(ours, plain, (q, k, v))


@pytest.mark.parametrize("window", [None, 1, 16, 64])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_asks_the_flash_kernel_for_what_plain_attention_gives(lengths, window,
                                                                        monkeypatch):
    # the kernel is not on every machine: a stand-in does what its documentation says
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_as_documented)
    monkeypatch.setattr(tinyrm, "uses_flash", lambda *_: True)
    _, _, starts, read_at = random_rows(lengths)
    layout = layout_of(lengths, window or 64)
    assert layout.flash and layout.local_mask is None
    q, k, v = (randn(sum(lengths), 2, 8, seed=i) for i in range(3))

    plain = tinyrm.plain_attention(q, k, v, tinyrm.may_attend(starts, window))
    torch.testing.assert_close(tinyrm.attention(q, k, v, layout, window), plain)
    if window is None:
        one_a_row = tinyrm.attention_where_read(q[read_at], k, v, layout)
        torch.testing.assert_close(one_a_row, plain[read_at])


def test_geglu_equals_its_plain_form():
    ab = randn(30, 2 * 48).requires_grad_()
    assert_same_with_gradients(tinyrm.GeGLU.apply(ab), tinyrm.plain_geglu(ab), (ab,))


def test_geglu_keeps_only_its_input_for_the_backward_pass():
    kept = []

    def note(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tinyrm.GeGLU.apply(randn(30, 96).requires_grad_())
    assert kept == [(30, 96)]


@pytest.mark.parametrize("layers, last", [(4, GLOBAL), (5, SLIDING)])
def test_what_is_read_of_the_last_layer_is_what_the_whole_layer_gives_there(layers, last):
    model = wild(small_config(num_hidden_layers=layers)).double()
    assert model.config.layer_types[-1] == last
    _, tokens, starts, read_at = random_rows([150, 9, 40])
    ours, whole = model(tokens, starts, read_at), model(tokens, starts)[read_at]
    used = [p for name, p in model.named_parameters() if name.startswith("model.")]
    assert_same_with_gradients(ours, whole, used)


def test_some_outputs_of_a_linear_layer_are_those_of_all():
    layer = tinyrm.Linear(7, 11).double()
    x = randn(5, 7)
    torch.testing.assert_close(layer.outputs(x, slice(4, 9)), layer(x)[:, 4:9])


def test_layers_that_are_recomputed_give_the_same_gradients():
    _, tokens, starts, read_at = random_rows([100, 20])
    gradients = []
    for recompute in (False, True):
        model = wild(small_config())
        model.recompute_layers = recompute
        model.logits(model(tokens, starts, read_at)).logsumexp(1).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


# --- the window, by hand ---------------------------------------------------------------------


def seen(position, length):
    """Which keys a query of a sliding layer sees, in a row between two others: first, last and
    number of those whose value reaches its output."""
    layout = layout_of([50, length, 40], dtype=torch.float32)
    total = 50 + length + 40
    q = k = torch.zeros(total, 2, 16)
    v = torch.eye(total)[:, None].expand(-1, 2, -1)  # each key has a direction of its own
    out = tinyrm.attention(q, k, v, layout, window=64)[50 + position, 0]
    keys = out.nonzero()[:, 0] - 50
    return keys.min().item(), keys.max().item(), len(keys)


@pytest.mark.parametrize("position, expected", [
    (0, (0, 64, 65)),  # itself and 64 to the right
    (64, (0, 128, 129)),  # 64 to each side, and itself
    (65, (1, 129, 129)),
    (200, (136, 264, 129)),
    (299, (235, 299, 65)),
])
def test_the_window_of_a_row_of_300_tokens(position, expected):
    assert seen(position, 300) == expected


def test_a_row_shorter_than_the_window_sees_all_of_itself():
    assert seen(30, 40) == (0, 39, 40)


# --- the whole model against transformers ----------------------------------------------------

SHAPES = [  # layers, heads, width, feed-forward, lengths
    (2, 1, 64, 32, [3]),
    (3, 2, 32, 48, [5, 64, 65, 66]),
    (4, 2, 128, 100, [129, 7, 7, 300]),
    (7, 4, 64, 96, [700, 33, 128, 128, 128, 1]),
    (8, 3, 48, 64, [256, 255, 257]),
]


@pytest.mark.parametrize("layers, heads, width, feed_forward, lengths", SHAPES)
def test_logits_and_gradients_equal_transformers(layers, heads, width, feed_forward, lengths):
    model = wild(small_config(num_hidden_layers=layers, num_attention_heads=heads,
                              hidden_size=width, intermediate_size=feed_forward))
    peer = peer_of(model)
    rows, tokens, starts, read_at = random_rows(lengths)

    ours = model.logits(model(tokens, starts, read_at))
    theirs = logits_of(peer, rows, read_at, starts)
    assert (ours - theirs).abs().max() < 1e-4

    labels = torch.arange(len(rows)) + 5
    cross_entropy(ours, labels).backward()
    cross_entropy(theirs, labels).backward()
    their_parameters = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        wanted = their_parameters[name].grad
        scale = wanted.abs().max().clamp(min=1e-3)
        assert (p.grad - wanted).abs().max() / scale < 2e-4, name


def test_every_hidden_state_equals_transformers():
    model = wild(small_config(num_hidden_layers=5))
    peer = peer_of(model)
    rows, tokens, starts, _ = random_rows([200, 3, 90])
    theirs = torch.cat([peer.model(row[None]).last_hidden_state[0] for row in rows])
    assert (model(tokens, starts) - theirs).abs().max() < 1e-4


def test_the_classifier_equals_transformers_with_cls_pooling():
    model = wild(small_config(), "cls")
    peer = peer_of(model, ModernBertForSequenceClassification)
    rows, tokens, starts, _ = random_rows([20, 150])
    ours = model.logits(model(tokens, starts, starts[:-1]))
    theirs = torch.cat([peer(row[None]).logits for row in rows])
    assert (ours - theirs).abs().max() < 1e-4


def test_the_logits_of_some_words_are_those_of_all_words():
    model = wild(small_config())
    _, tokens, starts, read_at = random_rows([20, 15])
    h = model(tokens, starts, read_at)
    words = torch.tensor([7, 3])
    torch.testing.assert_close(model.logits(h, words), model.logits(h)[:, words])


# width, feed-forward, layers, heads; millions of parameters
REAL_SHAPES = {"base": ((768, 1152, 22, 12), 149.66), "large": ((1024, 2624, 28, 16), 395.88)}


def real_config(size):
    width, feed_forward, layers, heads = REAL_SHAPES[size][0]
    return small_config(vocab_size=50368, hidden_size=width, intermediate_size=feed_forward,
                        num_hidden_layers=layers, num_attention_heads=heads)


@pytest.mark.parametrize("size", REAL_SHAPES)
def test_the_real_shapes_have_the_parameters_of_the_published_models(size):
    with torch.device("meta"):  # shapes without memory
        model = tinyrm.ModernBERT(real_config(size))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(REAL_SHAPES[size][1], abs=0.01)


@pytest.mark.parametrize("size", REAL_SHAPES)
def test_a_short_row_in_the_real_shapes_equals_transformers_through_a_folder(size, tmp_path):
    torch.manual_seed(0)  # torch's own start, uniform up to 1 / sqrt(in), is quicker than ours
    model = tinyrm.ModernBERT(real_config(size))
    model.model.embeddings.tok_embeddings.weight.data.mul_(0.02)
    tinyrm.save(model, tmp_path)
    peer = ModernBertForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    (tmp_path / "model.safetensors").unlink()  # pytest keeps folders for a while

    rows, tokens, starts, read_at = random_rows([90], vocab=50368)
    with torch.inference_mode():
        ours = model.logits(model(tokens, starts, read_at))
        assert (ours - logits_of(peer, rows, read_at, starts)).abs().max() < 1e-4


# --- rows beside each other ------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2], [3, 1, 0], [5, 4, 1, 0, 2, 3], [0] * 9])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_scores_the_same_alone_and_among_others(threads, order):
    model = wild(small_config(num_hidden_layers=7))
    rows = random_rows([150, 40, 40, 700, 65, 66]).rows

    def logits_of_row_0(order):
        starts = torch.tensor([0, *(len(rows[i]) for i in order)]).cumsum(0)
        tokens = torch.cat([rows[i] for i in order])
        with torch.inference_mode():
            return model.logits(model(tokens, starts, starts[:-1] + 7))[order.index(0)]

    alone = logits_of_row_0([0])
    torch.set_num_threads(threads)
    try:
        assert (logits_of_row_0(order) - alone).abs().max() < 1e-5
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("starts", [[0, 3, 3, 10], [0, 9], [0, 11], [0, 5, 10, 10]])
def test_starts_that_do_not_fit_ten_tokens_are_refused(starts):
    model = wild(small_config())
    with pytest.raises(ValueError, match=r"rows of \d+ to \d+ tokens, \d+ of 10 in all"):
        model(torch.full((10,), 5), torch.tensor(starts))


def test_a_row_beyond_the_positions_of_the_model_is_refused():
    model = wild(small_config(max_position_embeddings=20))
    _, tokens, starts, _ = random_rows([5, 21])
    with pytest.raises(ValueError, match="need 1 to 20 each"):
        model(tokens, starts)


# --- the compute precision -------------------------------------------------------------------


def test_bf16_compute_stays_close_over_weights_that_are_kept():
    model = wild(small_config())
    _, tokens, starts, read_at = random_rows([150, 30])
    with torch.inference_mode():
        exact = model(tokens, starts, read_at)
        rounded = model.set_compute_dtype(torch.bfloat16)(tokens, starts, read_at)
    assert model.model.layers[1].mlp.Wi.weight.dtype == torch.float32
    # bf16 has 8 bits: 1/256 an operation, on values of about 1
    assert 0 < (rounded - exact).abs().max() < 0.1


def test_copies_made_while_judging_serve_training_too():
    model = wild(small_config()).set_compute_dtype(torch.bfloat16)
    model.model.layers.requires_grad_(False)
    _, tokens, starts, read_at = random_rows([30])
    with torch.inference_mode():
        model(tokens, starts, read_at)
    # this fails if the copies are inference tensors
    model.logits(model(tokens, starts, read_at)).sum().backward()


def test_a_copy_in_the_compute_precision_is_made_once_for_each_change():
    layer = tinyrm.Linear(3, 4).requires_grad_(False)
    layer.compute_dtype = torch.bfloat16
    x = torch.ones(1, 3)

    first = layer(x)
    copy = layer.cache.value
    layer(x)
    assert layer.cache.value is copy
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), 2 * first)


# --- a fresh classifier ----------------------------------------------------------------------


def test_a_fresh_classifier_follows_from_the_seed():
    nano = ROOT / "nano"
    first, same, other = (tinyrm.load(nano, "cls", seed) for seed in (3, 3, 4))
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_fresh_classifier_is_normal_and_cut_off_at_two_deviations():
    classifier = tinyrm.load(ROOT / "nano", "cls", seed=3).classifier
    scaled = classifier.weight.detach() * 128**0.5  # drawn with D^-0.5, D = 128
    assert scaled.abs().max() <= 2
    # a normal variable cut off at 2 has the deviation 0.88; there are 256 numbers
    assert 0.75 < scaled.std() < 1
    assert not classifier.bias.any()


def test_a_fresh_classifier_keeps_the_pretrained_layer_below_it():
    nano = ROOT / "nano"
    fresh, cloze = tinyrm.load(nano, "cls"), tinyrm.load(nano)
    assert torch.equal(fresh.head.dense.weight, cloze.head.dense.weight)
    assert torch.equal(fresh.head.norm.weight, cloze.head.norm.weight)


# --- files -----------------------------------------------------------------------------------


def save_wild(folder, head="cloze", **changes):
    model = wild(small_config(**changes), head)
    tinyrm.save(model, folder)
    return model


def test_what_we_save_opens_in_transformers(tmp_path):
    model = save_wild(tmp_path)
    rows, tokens, starts, read_at = random_rows([30])
    peer = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ours = model.logits(model(tokens, starts, read_at))
    assert (logits_of(peer, rows, read_at, starts) - ours).abs().max() < 1e-4


def test_what_transformers_saves_opens_here(tmp_path):
    model = wild(small_config())
    peer_of(model).save_pretrained(tmp_path)  # the later schema
    again = tinyrm.load(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert again.config == model.config


def test_a_classifier_that_we_save_opens_in_transformers_and_here(tmp_path):
    model = save_wild(tmp_path, "cls")
    rows, tokens, starts, _ = random_rows([30])
    peer = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ours = model.logits(model(tokens, starts, starts[:-1]))
    assert (peer(rows[0][None]).logits - ours).abs().max() < 1e-4
    assert tinyrm.load(tmp_path).head_kind == "cls"


def test_a_classifier_has_no_decoder_to_read(tmp_path):
    save_wild(tmp_path, "cls")
    with pytest.raises(ValueError, match="holds a classifier: it has no decoder"):
        tinyrm.load(tmp_path, "cloze")


def rewrite(folder, name, tensor):
    """Change one tensor of a folder's weights; None takes it away."""
    state = load_file(folder / "model.safetensors")
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    save_file(state, folder / "model.safetensors")


def test_a_second_copy_of_the_tied_matrix_is_left_out(tmp_path):
    model = save_wild(tmp_path)
    embedding = model.model.embeddings.tok_embeddings.weight.detach()
    rewrite(tmp_path, "decoder.weight", embedding.clone())
    assert tinyrm.load(tmp_path).decoder.weight is None


def test_a_second_copy_that_differs_is_refused(tmp_path):
    model = save_wild(tmp_path)
    embedding = model.model.embeddings.tok_embeddings.weight.detach()
    rewrite(tmp_path, "decoder.weight", embedding + 1)
    with pytest.raises(ValueError, match="decoder.weight differs from the embedding"):
        tinyrm.load(tmp_path)


def test_an_untied_decoder_has_a_matrix_of_its_own(tmp_path):
    model = save_wild(tmp_path, tie_word_embeddings=False)
    again = tinyrm.load(tmp_path)
    assert torch.equal(again.decoder.weight, model.decoder.weight)
    rows, tokens, starts, read_at = random_rows([30])
    theirs = logits_of(peer_of(model), rows, read_at, starts)
    assert (again.logits(again(tokens, starts, read_at)) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name, tensor, message", [
    ("head.dense.weight", None, 'Missing key.*"head.dense.weight"'),
    ("model.layers.9.x", torch.zeros(2), 'Unexpected key.*"model.layers.9.x"'),
    ("decoder.bias", torch.zeros(5), r"size mismatch for decoder.bias.*\[5\].*\[97\]"),
])
def test_a_wrong_tensor_is_named_in_one_line(tmp_path, name, tensor, message):
    save_wild(tmp_path)
    rewrite(tmp_path, name, tensor)
    with pytest.raises(ValueError, match=message) as error:
        tinyrm.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ") and "\n" not in str(error.value)


def test_a_folder_without_a_config_is_no_model_folder(tmp_path):
    with pytest.raises(ValueError, match="no model folder: it has no config.json"):
        tinyrm.load(tmp_path)


@pytest.mark.parametrize("text, message", [
    ("{", r"config\.json: not valid JSON \(Expecting property name"),
    (json.dumps(hub_config(model_type="bert")), r"config\.json: model_type is 'bert'"),
])
def test_a_bad_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        tinyrm.load(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hub_config()))
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        tinyrm.load(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hub_config()))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        tinyrm.load(tmp_path)


# --- the script ------------------------------------------------------------------------------


def test_the_script_shows_the_model_and_fills_a_mask(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tinyrm.py"])
    runpy.run_path(tinyrm.__file__, run_name="__main__")
    size, _, sentence, best = capsys.readouterr().out.splitlines()[:4]
    assert size.startswith("nano/instruct: 901,")
    assert sentence == "A planop weighs[MASK] stone." == tinyrm.FILLED

    # a planop weighs nine stone: nano/microworld.py, seed 3
    probability, found = best.split()
    assert found == "nine" and float(probability) > 0.5


def test_the_script_wants_one_mask():
    with pytest.raises(ValueError, match="'Two.': give a text with one"):
        tinyrm.main(text="Two.")


def test_the_script_prints_an_error_as_one_line_and_exits_with_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["tinyrm.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(tinyrm.__file__, run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is no model folder: it has no " \
                                      "config.json\n"


def test_a_folder_without_a_tokenizer_is_one_line(tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    with pytest.raises(ValueError, match="tokenizer.json: .*: fetch it again"):
        tinyrm.main(tmp_path)


# --- reordered weights -----------------------------------------------------------------------

REORDERED = pytest.mark.skipif(not tinyrm.reordered_dtypes(), reason="not so here (not x86)")


def wide_layer():
    layer = tinyrm.Linear(512, 96)
    random = torch.Generator().manual_seed(0)
    layer.weight.data = torch.randn(96, 512, generator=random)
    return layer, torch.randn(70, 2, 512, generator=random)[:, 0]  # not contiguous


@REORDERED
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_a_reordered_product_is_the_plain_one(dtype, most):
    layer, x = wide_layer()
    if dtype not in tinyrm.reordered_dtypes():
        pytest.skip("no bf16 in oneDNN here")
    layer.compute_dtype = dtype
    exact = x.double() @ layer.weight.double().T
    with torch.inference_mode():
        assert tinyrm.reordering_serves(x, layer.weight, dtype)
        y = layer(x)
        assert y.dtype == dtype and (y - exact).norm() < most * exact.norm()
        assert torch.equal(layer(x[3:4]), y[3:4])  # a token alone
        layer.weight.mul_(2)  # as training and then judging: packed anew
        assert torch.equal(layer(x), 2 * y)


@REORDERED
def test_what_needs_a_gradient_and_what_is_narrow_is_not_packed():
    layer, x = wide_layer()
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert not tinyrm.reordering_serves(x.clone().requires_grad_(), layer.weight, torch.float32)
    assert layer.reordered.value is None
    assert tinyrm.reordering_serves(x, layer.weight, torch.float32)  # a frozen bottom layer
    assert not tinyrm.reordering_serves(x[:, :511], layer.weight[:, :511], torch.float32)


@REORDERED
def test_a_wide_model_gives_the_same_packed_and_plain(monkeypatch):
    config = small_config(hidden_size=512, intermediate_size=640, num_attention_heads=8)
    model = tinyrm.ModernBERT(config).init_weights(0).eval()
    _, tokens, starts, read_at = random_rows([90, 7])
    with torch.inference_mode():
        packed = model.logits(model(tokens, starts, read_at))
        monkeypatch.setattr(tinyrm, "WIDE", 10**6)
        plain = model.logits(model(tokens, starts, read_at))
    assert not torch.equal(packed, plain)
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
