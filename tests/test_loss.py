"""What a training step computes, in numbers worked out by hand: the paper's loss, the accuracy on
held-out pairs, the schedule, the decay, and one step of the optimizer.

    python -m pytest tests/test_loss.py

Most of these tests need no encoder: `GivenLogits` is a model whose rows have the logits that a
table gives them. Logits are written as logarithms, so that probabilities are simple fractions.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from oracles import random_rows, small_config, wild
from torch.nn.functional import cross_entropy, logsigmoid

import dora
import train
from data import Batch, Row, pack

CPU = torch.device("cpu")


def ln(*numbers):
    return [math.log(number) for number in numbers]


class GivenLogits(torch.nn.Module):
    """A model that gives row i of a batch the logits in row i of a table (B, V)."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table, dtype=torch.float64))

    def forward(self, tokens, starts, read_at):
        return self.table[tokens[read_at]]  # a row's only token is its number in the table

    def logits(self, h, word_ids=None):
        return h if word_ids is None else h[:, word_ids]


def given(table, head="cloze", context="pair", label_ids=(1, 2)):
    """A model, how its rows are read, and a batch: rows 2i show the better response first, rows
    2i + 1 second."""
    how = SimpleNamespace(head=head, context=context, label_ids=label_ids)
    rows = [Row([i], 0, i % 2, 0, {}) for i in range(len(table))]
    return GivenLogits(table), how, pack(rows)


def cut(batch, cuts):
    """The rows of a batch in several: [2, 6] cuts before rows 2 and 6."""
    edges = [0, *cuts, len(batch.labels)]
    batches = []
    for start, stop in zip(edges, edges[1:], strict=False):
        first, last = batch.starts[start], batch.starts[stop]
        batches.append(Batch(batch.tokens[first:last], batch.starts[start:stop + 1] - first,
                             batch.read_at[start:stop] - first, batch.labels[start:stop]))
    return batches


def loss_of(table, **how):
    return train.loss_and_correct(*given(table, **how))


def close_to(number):
    return pytest.approx(number, rel=1e-6)  # logits are taken in float32


# --- the loss: cloze -------------------------------------------------------------------------

# A vocabulary of four words, of which words 1 and 2 are the labels. The probabilities are 1, 4, 2
# and 3 tenths in both rows; in row 0 word 1 is right, in row 1 word 2.
CLOZE = [ln(1, 4, 2, 3), ln(1, 4, 2, 3)]


def test_the_cloze_loss_is_the_cross_entropy_over_all_words():
    # -ln(4/10) - ln(2/10). Over the two label words alone it would be -ln(4/6) - ln(2/6).
    assert loss_of(CLOZE).loss.item() == close_to(-math.log(4 / 10) - math.log(2 / 10))


def test_the_cloze_loss_lowers_the_other_words_too():
    # the gradient of a cross-entropy is the probabilities, less 1 at the right word
    model, how, batch = given(CLOZE)
    train.loss_and_correct(model, how, batch).loss.backward()
    expected = torch.tensor([[0.1, 0.4 - 1, 0.2, 0.3], [0.1, 0.4, 0.2 - 1, 0.3]])
    torch.testing.assert_close(model.table.grad.float(), expected)


def test_the_log_odds_are_those_of_the_two_label_words():
    # 4 : 2 for the first response, in both rows
    assert loss_of(CLOZE).log_odds.tolist() == pytest.approx(ln(2, 2))


@pytest.mark.parametrize("row_0, row_1, correct", [
    (ln(1, 4, 2, 3), ln(1, 4, 2, 3), 1),  # word 1 is chosen in both: right in row 0
    (ln(1, 2, 4, 3), ln(1, 2, 4, 3), 1),  # word 2 is chosen in both: right in row 1
    (ln(1, 4, 2, 3), ln(1, 2, 4, 3), 2),
    (ln(1, 2, 4, 3), ln(1, 4, 2, 3), 0),
    (ln(1, 4, 2, 9), ln(1, 2, 4, 9), 2),  # another word has more than either label
])
def test_the_label_word_with_the_higher_logit_is_chosen(row_0, row_1, correct):
    assert loss_of([row_0, row_1]).correct == correct


def test_the_label_ids_of_the_format_are_the_words_that_are_asked_for():
    # words 3 and 0: -ln(3/10) - ln(1/10), and 3 : 1
    result = loss_of(CLOZE, label_ids=(3, 0))
    assert result.loss.item() == close_to(-math.log(3 / 10) - math.log(1 / 10))
    assert result.log_odds.tolist() == pytest.approx(ln(3, 3))


# --- the loss: two classes at [CLS] ----------------------------------------------------------


def test_the_loss_at_cls_is_the_cross_entropy_of_two_classes():
    # 1 : 3 in both rows; class 0 is right in row 0, class 1 in row 1
    result = loss_of([ln(1, 3), ln(1, 3)], head="cls", label_ids=(0, 1))
    assert result.loss.item() == close_to(-math.log(1 / 4) - math.log(3 / 4))
    assert result.correct == 1
    assert result.log_odds.tolist() == pytest.approx(ln(1 / 3, 1 / 3))


# --- the loss: Bradley-Terry -----------------------------------------------------------------

# Rows 2i are chosen responses, rows 2i + 1 rejected ones. A score is the log-odds of words 1 and 2,
# whatever the other words have:
#     pair 0: 6 : 2 and 3 : 2, scores ln 3 and ln 3/2, margin ln 2, sigmoid(ln 2) = 2/3
#     pair 1: 1 : 1 and 3 : 1, scores 0 and ln 3, margin -ln 3, sigmoid(-ln 3) = 1/4
SINGLE = [ln(1, 6, 2, 5), ln(9, 3, 2, 1), ln(2, 1, 1, 7), ln(1, 3, 1, 8)]


def test_the_bradley_terry_loss_is_minus_the_log_of_the_sigmoid_of_the_margin():
    # once for each of the two rows: -2 ln(2/3) - 2 ln(1/4) = 2 ln 6
    assert loss_of(SINGLE, context="single").loss.item() == close_to(2 * math.log(6))


def test_the_scores_of_single_responses_are_the_log_odds():
    result = loss_of(SINGLE, context="single")
    assert result.log_odds.tolist() == pytest.approx(ln(3, 3 / 2, 1, 3), abs=1e-6)


def test_a_pair_is_right_when_the_chosen_response_scores_more():
    assert loss_of(SINGLE, context="single").correct == 2  # the two rows of pair 0
    assert loss_of(SINGLE[:2] + SINGLE[:2], context="single").correct == 4


def test_two_equal_scores_are_not_right():
    assert loss_of([ln(1, 6, 2, 5), ln(1, 6, 2, 5)], context="single").correct == 0


def test_single_responses_at_cls_score_the_difference_of_the_classes():
    # scores ln 4 and ln 2: margin ln 2
    result = loss_of([ln(4, 1), ln(2, 1)], head="cls", context="single", label_ids=(0, 1))
    assert result.loss.item() == close_to(-2 * math.log(2 / 3))
    assert result.correct == 2


# --- held-out pairs --------------------------------------------------------------------------

# Two classes with 1 of the second: x : 1 where the better response stands first, y : 1 where it
# stands second.
#     pair 0: x = 3, y = 1/3: right in both orders
#     pair 1: x = 3, y = 9: the first slot wins both times, and more so with the worse response
#     pair 2: x = 3, y = 3: equal
#     pair 3: x = 1/9, y = 1/27: the second slot wins both times, but less so against the better one
# Right are 1 + 0 + 1/2 + 1 of 4.
JUDGED = [ln(3, 1), ln(1 / 3, 1), ln(3, 1), ln(9, 1), ln(3, 1), ln(3, 1), ln(1 / 9, 1),
          ln(1 / 27, 1)]


def judge(table, cuts):
    """train.judge_pairs over the rows of a table, which are cut into batches."""
    model, how, whole = given(table, head="cls", label_ids=(0, 1))
    return train.judge_pairs(model, how, cut(whole, cuts), CPU)


CUTS = pytest.mark.parametrize("cuts", [[], [2], [4, 6]])


@CUTS
def test_the_held_out_accuracy_averages_both_orders_and_counts_equal_as_a_half(cuts):
    result = judge(JUDGED, cuts)
    assert result.accuracy == (1 + 0 + 1 / 2 + 1) / 4
    assert result.pairs == 4


@CUTS
def test_the_held_out_loss_is_the_mean_over_the_rows(cuts):
    # P(first) = x / (x + 1): 3/4, and in the row of the other order P(second) = 1 / (y + 1)
    right = [3 / 4, 3 / 4, 3 / 4, 1 / 10, 3 / 4, 1 / 4, 1 / 10, 27 / 28]
    expected = -sum(ln(*right)) / 8
    assert judge(JUDGED, cuts).loss == pytest.approx(expected, rel=1e-6)


def test_single_responses_that_are_held_out_are_right_by_their_scores():
    model, how, batch = given(SINGLE, context="single")
    result = train.judge_pairs(model, how, [batch], CPU)
    assert (result.accuracy, result.pairs) == (1 / 2, 2)  # pair 0
    assert result.loss == pytest.approx(2 * math.log(6) / 4, rel=1e-6)


def test_without_held_out_pairs_there_is_no_accuracy():
    model, how, _ = given(JUDGED, head="cls", label_ids=(0, 1))
    assert train.judge_pairs(model, how, [], CPU) == train.JudgingResult(None, None, 0)


# --- the schedule ----------------------------------------------------------------------------


@pytest.mark.parametrize("step, share", [
    (0, 1 / 6),  # 6 % of 100 steps are 6 of warm-up
    (5, 1),
    (6, 1),  # from here 93 steps down by 0.98
    (37, 1 - 0.98 * 31 / 93),  # a third of the way
    (68, 1 - 0.98 * 62 / 93),
    (99, 0.02),
])
def test_the_schedule_of_100_steps(step, share):
    assert train.schedule(step, 100) == pytest.approx(share)


def test_the_schedule_of_5_steps():
    # one step of warm-up at least, the peak, and a third of 0.98 at a time
    shares = [train.schedule(step, 5) for step in range(5)]
    assert shares == pytest.approx([1, 1, 1 - 0.98 / 3, 1 - 2 * 0.98 / 3, 0.02])


def test_a_single_step_is_at_the_peak():
    assert train.schedule(0, 1) == 1


# --- the optimizer ---------------------------------------------------------------------------


def one_parameter(value, peak_rate):
    """A parameter in float64 and its optimizer."""
    p = torch.nn.Parameter(torch.as_tensor(value, dtype=torch.float64))
    return p, train.make_optimizer({"p": p}, peak_rate)


@pytest.mark.parametrize("peak_rate", [1e-4, 1e-2])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
def test_a_matrix_decays_by_1e_5_at_the_peak_whatever_the_peak_rate_is(peak_rate, share):
    p, optimizer = one_parameter([[1.0]], peak_rate)
    p.grad = torch.zeros_like(p)  # it moves by the decay alone
    optimizer.param_groups[0]["lr"] = peak_rate * share
    optimizer.step()
    assert 1 - p.item() == pytest.approx(1e-5 * share, rel=1e-9)


def test_a_vector_does_not_decay():
    vector = torch.nn.Parameter(torch.ones(1))
    optimizer = train.make_optimizer({"p": vector}, 1e-2)
    vector.grad = torch.zeros_like(vector)
    optimizer.step()
    assert vector.item() == 1


@pytest.mark.parametrize("head", ["cloze", "cls"])
@pytest.mark.parametrize("adapter", dora.ADAPTERS)
def test_what_decays_of_a_model_are_its_matrices(adapter, head):
    trained = dora.adapt(wild(small_config(), head), adapter, 4, 8.0, 2)
    names = {id(p): name for name, p in trained.items()}
    optimizer = train.make_optimizer(trained, 1e-3)

    decays, stays = set(), set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            (decays if group["weight_decay"] else stays).add(names[id(p)])
    # biases, norms and magnitudes are vectors; all else is a matrix
    vectors = {name for name in trained if name.endswith(("bias", "norm.weight", ".m"))}
    assert stays == vectors
    assert decays == trained.keys() - vectors


def test_the_first_step_of_adam_has_eps_1e_6():
    # with the gradient g it moves by rate * g / (|g| + eps): by half of the rate for g = 1e-6
    p, optimizer = one_parameter([0.0], 1e-2)
    p.grad = torch.full_like(p, 1e-6)
    optimizer.step()
    assert p.item() == pytest.approx(-1e-2 / 2)


def test_the_second_step_of_adam_has_betas_of_0_9_and_0_98():
    # gradients 1, then 0: the moments are 0.1 * 0.9 and 0.02 * 0.98, and their corrections
    # 1 - 0.9^2 = 0.19 and 1 - 0.98^2 = 0.0396
    p, optimizer = one_parameter([0.0], 1e-2)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.item()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    expected = 1e-2 * (0.09 / 0.19) / (math.sqrt(0.0196 / 0.0396) + 1e-6)
    assert before - p.item() == pytest.approx(expected)


# --- one step, by hand -----------------------------------------------------------------------


def step(table, rate=0.1):
    """One step of plain gradient descent, which subtracts rate * gradient: the model, the
    result."""
    model, how, batch = given(table)
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    result = train.train_step(model, optimizer, how, [batch], rate)
    return model, result


def test_the_numbers_of_a_step():
    _, result = step(CLOZE)
    assert result.loss == pytest.approx(-(math.log(0.4) + math.log(0.2)) / 2)  # mean of two rows
    assert result.accuracy == 1 / 2
    # The gradients of the rows are 0.1, -0.6, 0.2, 0.3 and 0.1, 0.4, -0.8, 0.3, with squares of 0.5
    # and 0.9 in all; of the mean it is half of that.
    assert result.gradient_norm == pytest.approx(math.sqrt(1.4) / 2)
    assert (result.rows, result.tokens) == (2, 2)


def test_a_step_goes_down_the_gradient_of_the_mean_at_the_rate_it_is_given():
    model, _ = step(CLOZE, rate=0.1)
    gradient = torch.tensor([[0.1, -0.6, 0.2, 0.3], [0.1, 0.4, -0.8, 0.3]], dtype=torch.float64) / 2
    expected = torch.tensor(CLOZE, dtype=torch.float64) - 0.1 * gradient
    torch.testing.assert_close(model.table.detach(), expected, rtol=0, atol=1e-7)


def test_a_gradient_longer_than_1_is_cut_to_1_and_its_length_told():
    # One row, almost certain of word 2 where word 1 is right: the gradient is 0, -1, 1, 0, of
    # length sqrt(2), and is divided by it.
    table = [[0.0, 0.0, 50.0, 0.0]]
    model, result = step(table, rate=1.0)
    assert result.gradient_norm == pytest.approx(math.sqrt(2))
    moved = torch.tensor(table, dtype=torch.float64) - model.table.detach()
    expected = torch.tensor([[0, -1, 1, 0]], dtype=torch.float64) / math.sqrt(2)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_a_step_forgets_the_gradient_of_the_step_before():
    model, how, batch = given(CLOZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first = train.train_step(model, optimizer, how, [batch], 0.0)
    second = train.train_step(model, optimizer, how, [batch], 0.0)
    assert first == second


def test_a_step_without_rows_has_a_gradient_of_zero():
    # where all pairs of a step were dropped: the run goes on
    model, how, _ = given(CLOZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train.train_step(model, optimizer, how, [], 1.0)
    assert result == (0.0, 0.0, 0.0, 0, 0)
    assert model.table.tolist() == CLOZE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(bad):
    model, how, batch = given([[0.0, 0.0, bad, 0.0], ln(1, 4, 2, 3)])
    before = model.table.detach().clone()
    optimizer = train.make_optimizer({"table": model.table}, 0.1)
    with pytest.raises(ValueError, match=r"loss nan .* at rate 0.1: lower --lr"):
        train.train_step(model, optimizer, how, [batch], 0.1)
    assert torch.equal(model.table.nan_to_num(), before.nan_to_num())
    assert not optimizer.state  # no step was taken


# --- a step of the encoder -------------------------------------------------------------------

HOW = pytest.mark.parametrize("head, context", [
    ("cloze", "pair"), ("cls", "pair"), ("cloze", "single"), ("cls", "single"),
])
LENGTHS = [90, 90, 7, 8, 30, 31, 5, 5, 66, 64, 12, 13]  # of six pairs


def adapted_model(head):
    model = wild(small_config(), head).double()
    dora.adapt(model, "dora", 4, 8.0, 1)
    random = torch.Generator().manual_seed(0)
    for adapted in dora.adapters(model).values():  # where B is 0, A has no gradient
        adapted.B.data.normal_(generator=random)
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


def encoder_step(head, context, cuts):
    """The gradients of one step of a model in float64, whose rows are cut into micro-batches, and
    its result."""
    model, trained = adapted_model(head)
    _, tokens, starts, read_at = random_rows(LENGTHS)
    whole = Batch(tokens, starts, read_at, torch.arange(len(LENGTHS)) % 2)
    label_ids = (0, 1) if head == "cls" else (5, 6)
    how = SimpleNamespace(head=head, context=context, label_ids=label_ids)
    optimizer = train.make_optimizer(trained, 1e-3)
    result = train.train_step(model, optimizer, how, cut(whole, cuts), 1e-3)
    return {name: p.grad for name, p in trained.items()}, result


@HOW
@pytest.mark.parametrize("cuts", [[2], [8, 10], [2, 4, 6, 8, 10]])
def test_a_step_in_unequal_micro_batches_has_the_gradient_of_the_whole(head, context, cuts):
    whole, whole_result = encoder_step(head, context, cuts=[])
    in_parts, result = encoder_step(head, context, cuts)
    # the logits are taken in float32, and so is what comes back from them
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)
    assert result == pytest.approx(whole_result, rel=1e-5)


@HOW
def test_the_gradient_of_a_step_is_that_of_the_mean_loss_cut_to_1(head, context):
    # the same with torch's own functions on the logits, one row after the other
    model, trained = adapted_model(head)
    rows, _, starts, read_at = random_rows(LENGTHS)
    first, second = (5, 6) if head == "cloze" else (0, 1)
    logits = []
    for row, place in zip(rows, read_at - starts[:-1], strict=True):
        h = model(row, torch.tensor([0, len(row)]), place[None])
        logits.append(model.logits(h)[0])

    losses = []
    for i, z in enumerate(logits):
        if context == "pair":
            losses.append(cross_entropy(z, torch.tensor([first, second][i % 2])))
        else:
            chosen, rejected = logits[i - i % 2], logits[i - i % 2 + 1]
            scores = [row[first] - row[second] for row in (chosen, rejected)]
            losses.append(-logsigmoid(scores[0] - scores[1]))
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)

    gradients, _ = encoder_step(head, context, cuts=[])
    for name, p in trained.items():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)


# --- nothing waits ---------------------------------------------------------------------------


@HOW
@pytest.mark.parametrize("adapter, dtype", [("dora", torch.bfloat16), ("full", torch.float32)])
def test_nothing_of_a_micro_batch_asks_the_device_for_a_value(head, context, adapter, dtype):
    # Tensors on "meta" have shapes and no values: .item(), .tolist(), .cpu(), a mask as an index
    # and tensors of two devices raise. On a GPU these are what waits.
    model = wild(small_config(), head)
    dora.adapt(model, adapter, rank=4, alpha=8.0, freeze=1)
    model.to("meta").set_compute_dtype(dtype)

    rows = [Row([5] * length, length - 3, i % 2, 0, {}) for i, length in enumerate(LENGTHS)]
    batch = pack(rows, "meta")
    label_ids = (0, 1) if head == "cls" else (5, 6)
    how = SimpleNamespace(head=head, context=context, label_ids=label_ids)
    result = train.loss_and_correct(model, how, batch)
    result.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad.shape == p.shape for p in trained)
    with pytest.raises((RuntimeError, NotImplementedError)):
        result.loss.item()
