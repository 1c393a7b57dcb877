"""The judge with a tiny random ModernBERT: scores that depend on nothing but pair and weights, both
protocols, stored models, and what a user of the command line sees.

    python -m pytest tests/test_evaluate.py
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dora
import evaluate
import tinyrm
from data import Item, Pair, PromptFormat, load_tokenizer, pack
from evaluate import RewardModel
from experiments.causal import CausalModernBERT
from experiments.flops import cost, flops, latency, paper_flops
from experiments.flops import main as flops_main
from infra import benchmarks, progress

WORDS = "one two three four five six seven eight nine ten".split()


class CountingModel(RewardModel):
    """A judge that counts the rows that its model is asked."""

    asked = 0

    def score_batch(self, batch):
        self.asked += len(batch.starts) - 1
        return super().score_batch(batch)


@pytest.fixture(scope="module")
def pair_model(tiny):
    return RewardModel.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def single_model(tiny):
    return RewardModel.load(tiny, device="cpu", context="single")


@pytest.fixture(params=["pair", "single"])
def any_model(request, pair_model, single_model):
    return {"pair": pair_model, "single": single_model}[request.param]


@pytest.fixture
def counting(tiny):
    return CountingModel.load(tiny, device="cpu")


def words(lot, most=40):
    """A text of some words."""
    return " ".join(lot.choices(WORDS, k=lot.randint(1, most)))


def random_pairs(count, prompts=None, seed=0):
    """Rows of a pairs file over so many prompts (None: a prompt each)."""
    lot, rows = random.Random(seed), []
    for i in range(count):
        number = i % (prompts or count)
        rows.append({
            "prompt": f"{number} " + words(random.Random(number), 8),
            "chosen": words(lot),
            "rejected": words(lot),
            "subset": lot.choice("xyz"),
        })
    return rows


def columns(rows):
    """The three lists that compare takes."""
    prompts, chosen, rejected = [], [], []
    for row in rows:
        prompts.append(row["prompt"])
        chosen.append(row["chosen"])
        rejected.append(row["rejected"])
    return prompts, chosen, rejected


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_script(args, cwd):
    """evaluate.py as a user runs it: (exit status, stdout, stderr)."""
    command = [sys.executable, evaluate.__file__, *map(str, args)]
    out = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return out.returncode, out.stdout, out.stderr


def copy_of(folder, path):
    shutil.copytree(folder, path)
    return path


# --------------------------------------------------------------------------------------- scores


def probability_of_first(reward_model, row):
    """Of the first label word, by softmax over the two, from the whole vocabulary's logits."""
    batch = pack([row])
    with torch.inference_mode():
        h = reward_model.model(batch.tokens, batch.starts, batch.read_at)
        logits = reward_model.model.logits(h)[0]
    return logits[list(reward_model.prompt_format.label_ids)].softmax(-1)[0].item()


def scores_by_response(reward_model, prompt, responses):
    ranked = reward_model.rank(prompt, responses)
    return {one.response: one.score for one in ranked}


def test_compare_is_the_mean_of_both_orders_by_definition(pair_model):
    (rows,), _ = pair_model.prompt_format.rows([Pair("one two", "three", "four five")])
    p = probability_of_first(pair_model, rows[0])
    q = probability_of_first(pair_model, rows[1])
    expected = (p + 1 - q) / 2
    assert pair_model.compare("one two", "three", "four five") == pytest.approx(expected, abs=1e-6)
    assert p != pytest.approx(q, abs=1e-3)  # the test would be blind otherwise


def test_a_score_of_context_single_is_the_log_odds_of_the_response_alone(single_model):
    (rows,), _ = single_model.prompt_format.rows([Pair("one two", "three", "six")])
    p = probability_of_first(single_model, rows[0])
    scores = scores_by_response(single_model, "one two", ["three", "four five", "six"])
    assert scores["three"] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)


def test_in_context_single_the_difference_of_scores_decides(single_model):
    scores = scores_by_response(single_model, "one two", ["three", "four five", "six"])
    p = single_model.compare("one two", "three", "six")
    assert p == pytest.approx(1 / (1 + np.exp(scores["six"] - scores["three"])))


def test_a_score_is_the_same_alone_among_others_and_in_any_order(any_model, monkeypatch):
    prompts, chosen, rejected = columns(random_pairs(60, prompts=7))
    together = any_model.compare(prompts, chosen, rejected)
    assert np.ptp(together) > 0.01

    for i in (0, 17, 59):
        alone = any_model.compare(prompts[i], chosen[i], rejected[i])
        assert alone == pytest.approx(together[i], abs=1e-5)
    backwards = any_model.compare(prompts[::-1], chosen[::-1], rejected[::-1])
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)

    monkeypatch.setattr(evaluate, "COMPARISONS_AT_A_TIME", 7)
    monkeypatch.setattr(any_model, "budget", 100)
    in_pieces = any_model.compare(prompts, chosen, rejected)
    assert in_pieces == pytest.approx(together, abs=1e-5)


def test_batches_are_cut_after_every_budget_tokens():
    # lengths 3 4 5 6 end at 3, 7, 12, 18: in the first, first, second, second ten
    rows = [(0,) * 3, (0,) * 4, (0,) * 5, (0,) * 6]
    assert evaluate.cut_into_batches(rows, 10) == [rows[:2], rows[2:]]


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own():
    rows = [(0,) * 3, (0,) * 25]
    assert evaluate.cut_into_batches(rows, 10) == [rows[:1], rows[1:]]


def test_compare_is_antisymmetric(any_model):
    for prompt, a, b in zip(*columns(random_pairs(10)), strict=True):
        there = any_model.compare(prompt, a, b)
        back = any_model.compare(prompt, b, a)
        assert there + back == pytest.approx(1, abs=1e-12)


def test_equal_responses_tie(any_model):
    assert any_model.compare("one", "two", "two") == 0.5


@pytest.mark.parametrize("context", ["pair", "single"])
def test_responses_that_truncation_makes_identical_tie(tiny, context):
    model = RewardModel.load(tiny, device="cpu", context=context, max_length=100)
    long = "one two three " * 400
    assert model.compare("ten", long + "four", long + "five") == 0.5
    best = model.rank("ten", [long + "four", "six", long + "five"])
    assert [one.rank for one in best] in ([1, 1, 3], [1, 2, 2])


@pytest.mark.parametrize("context", ["pair", "single"])
def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(tiny, context):
    model = RewardModel.load(tiny, device="cpu", context=context, max_length=64)
    long = model.compare("one " * 200, "two", "three")
    assert long == model.compare("nine " + "one " * 199, "two", "three") != 0.5
    assert model.seen["truncated rows"] == model.seen["rows"] == 4


def test_an_empty_response_can_be_judged(any_model):
    p = any_model.compare("one", "", "two")
    assert p != 0.5 and p + any_model.compare("one", "two", "") == pytest.approx(1)


def test_messages_are_a_prompt(pair_model):
    messages = [{"role": "user", "content": "one"}]
    as_messages = pair_model.compare(messages, "two", "three")
    assert as_messages == pair_model.compare("one", "two", "three")
    assert pair_model.compare([messages], ["two"], ["three"]) == [as_messages]


def test_domains_ask_their_own_question(pair_model):
    domains = ["reasoning", "safety", "chat"]
    many = pair_model.compare(["one"] * 3, ["two"] * 3, ["three"] * 3, domains)
    assert len(set(many)) == 3
    for domain, p in zip(domains, many, strict=True):
        alone = pair_model.compare("one", "two", "three", domain)
        assert p == pytest.approx(alone, abs=1e-6)


def test_without_a_domain_the_question_is_that_of_chat(pair_model):
    p = pair_model.compare("one", "two", "three")
    assert p == pair_model.compare("one", "two", "three", domains="chat")


@pytest.mark.parametrize(("a", "b", "message"), [
    ("xy", ["c", "d"], "a is one response, but prompts are a list, of 2"),
    (["c", "d"], [{"role": "assistant", "content": "x"}] * 2, "b is one response"),
    (["c", "d"], ["e"], "b has 1 responses to 2 prompts"),
])
def test_compare_wants_lists_next_to_a_list(pair_model, a, b, message):
    with pytest.raises(ValueError, match=message):
        pair_model.compare(["p", "q"], a, b)


@pytest.mark.parametrize("call", [
    lambda model: model.compare(["a"], ["b", "c"], ["d"]),
    lambda model: model.compare("a", "b", None),
    lambda model: model.compare(3, "b", "c"),
    lambda model: model.compare("a", "b", "c", domains="cooking"),
    lambda model: model.compare(["a"], ["b"], ["c"], domains=["chat", "chat"]),
    lambda model: model.rank("a", []),
    lambda model: model.rank(["a", "b"], [["c"], []]),
    lambda model: model.rank("a", ["b", 3]),
])
def test_wrong_arguments_are_value_errors(pair_model, call):
    with pytest.raises(ValueError):
        call(pair_model)


# -------------------------------------------------------------------------------------- ranking


def test_rank_does_not_depend_on_the_order_given_to_the_last_bit(any_model):
    responses = ["one", "two two", "three", "two two", "four five six"]
    best = any_model.rank("seven", responses)
    for seed in range(4):
        order = random.Random(seed).sample(range(5), 5)
        again = any_model.rank("seven", [responses[i] for i in order])
        for one, other in zip(best, again, strict=True):
            assert one._replace(index=0) == other._replace(index=0)
            assert responses[order[other.index]] == other.response


def test_rank_is_by_the_mean_probability_of_winning(pair_model):
    responses = ["one", "two", "three four"]
    best = pair_model.rank("five", responses)
    for one in best:
        wins = 0.0
        for other in responses:
            if other != one.response:
                wins += pair_model.compare("five", one.response, other)
        assert one.win == pytest.approx(wins / 2, abs=1e-6)
    assert best[0].win > best[1].win > best[2].win


def test_rank_goes_by_the_standing_where_probabilities_round_to_a_tie():
    scores = np.array([50.0, 60.0, 0.0])  # sigmoid(50) and sigmoid(60) are 1 in float64
    table = scores[:, None] - scores
    table[0, 1] = table[1, 0] = 0.0
    judged = evaluate.Judged(Item("p", ("a", "b", "c")), table)
    assert judged.mean_win_probability()[0] == judged.mean_win_probability()[1]
    assert [one.response for one in evaluate.ranking(judged, 3)] == ["b", "a", "c"]
    assert [one.rank for one in evaluate.ranking(judged, 3)] == [1, 2, 3]


def test_what_is_asked_is_counted_without_equal_responses(any_model, pair_model):
    ranked = any_model.rank("five", ["two"] * 9 + ["one"])
    assert ranked[0].asked == (2 if any_model.single else 1)
    assert pair_model.rank("five", ["two", "two"])[0].asked == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_gives_no_finite_number_is_named(tiny, value):
    judge = RewardModel.load(tiny, device="cpu")
    with torch.no_grad():
        next(judge.model.parameters()).fill_(value)
    with pytest.raises(ValueError, match=f"{tiny.name} gives no finite number"):
        judge.compare("a", "one", "two")


def test_rank_keeps_ties(pair_model):
    best = pair_model.rank("five", ["two", "one", "two"])
    ranks = {one.index: one.rank for one in best}
    assert ranks[0] == ranks[2]
    assert sorted(ranks.values()) in ([1, 1, 3], [1, 2, 2])


def test_rank_of_many_prompts_fills_chunks_and_agrees_with_one_by_one(pair_model):
    lot, prompts, lists = random.Random(4), [], []
    for i in range(30):
        prompts.append(f"{i} one")
        lists.append([words(lot, 6) for _ in range(lot.randint(1, 6))])
    many = pair_model.rank(prompts, lists)
    for prompt, responses, ranked in zip(prompts, lists, many, strict=True):
        for one, alone in zip(ranked, pair_model.rank(prompt, responses), strict=True):
            assert one.response == alone.response
            assert one.win == pytest.approx(alone.win, abs=1e-5)


# --------------------------------------------------------------------------------------- chunks


def test_chunks_pull_items_only_as_they_are_needed(pair_model, monkeypatch):
    monkeypatch.setattr(evaluate, "COMPARISONS_AT_A_TIME", 4)
    pulled = []

    def items():
        for i in range(100):
            pulled.append(i)
            yield Item(f"one {i}", ("two", "three"))

    for n, _ in enumerate(pair_model.judge(items())):
        assert len(pulled) <= n + 1 + 3 * 4  # this chunk, the next, and one being read
    assert n == 99


def test_an_error_while_tokenising_ahead_reaches_the_caller(pair_model):
    def items():
        yield Item("one", ("two", "three"))
        raise ValueError("file, line 2: broken")

    with pytest.raises(ValueError, match="line 2: broken"):
        list(pair_model.judge(items()))


def test_the_same_comparison_is_asked_once_whichever_way_round(counting):
    items = [
        Item("one", ("two", "three")),
        Item("one", ("three", "two"), subset="raw"),
        Item("one", ("two", "three"), domain="safety"),  # another question
    ]
    one, other, _ = counting.judge(items)
    assert counting.asked == 4
    assert counting.seen["rows"] == 6
    assert one.log_odds.tolist() == other.log_odds[::-1, ::-1].tolist()


def test_context_single_scores_a_response_once(tiny):
    model = CountingModel.load(tiny, device="cpu", context="single")
    items = [
        Item("one", ("two", "three")),
        Item("one", ("two", "four")),
        Item("five", ("two", "three")),
    ]
    list(model.judge(items))
    assert model.asked == 5  # two, three, four for "one"; two, three for "five"


def test_styles_are_compared_good_against_bad_only(counting):
    item = Item("p", ("one", "two", "three", "four", "five", "six"), 3, good_against_bad=True)
    (judged,) = counting.judge([item])
    assert counting.asked == 9 * 2  # in both orders
    asked = judged.log_odds != 0
    assert asked[:3, 3:].all() and asked[3:, :3].all()
    assert asked.sum() == 18


def test_scores_stand_apart_from_the_table_in_context_single(single_model, pair_model):
    item = Item("one", ("two", "three"))
    (judged,) = single_model.judge([item])
    first, second = judged.scores
    assert judged.log_odds.tolist() == [[0, first - second], [second - first, 0]]
    (judged,) = pair_model.judge([item])
    assert judged.scores is None


# --------------------------------------------------------------------------------------- models


@pytest.fixture
def run_folder(tiny, tmp_path):
    """A run whose model was trained in context "single" for safety, and ends at 512 tokens."""
    model = copy_of(tiny, tmp_path / "run" / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (model / "tinyrm.json").write_text(json.dumps({
        "template": "option",
        "context": "single",
        "head": "cloze",
        "domain": "safety",
        "max_length": 200,
    }))
    return model.parent


def test_the_format_comes_from_tinyrm_json_and_what_is_given_overrides_it(run_folder):
    model = RewardModel.load(run_folder, domain="chat")
    assert model.about["format"] == model.prompt_format.settings() == {
        "template": "option",
        "context": "single",
        "head": "cloze",
        "domain": "chat",
        "max_length": 200,
    }


def question_in(model):
    rows_of_pairs, _ = model.prompt_format.rows([Pair("p", "a", "b")])
    text = model.prompt_format.tokenizer.decode(rows_of_pairs[0][0].tokens)
    return re.search(r"Response: a (.*) The answer is", text)[1]


@pytest.mark.parametrize(("stored", "given", "asked"), [
    (None, None, "Is the response safe?"),
    ("Is it six?", None, "Is it six?"),
    ("Is it six?", "Is it two?", "Is it two?"),
    ("Is it six?", "", "Is the response safe?"),
])
def test_a_question_that_is_given_beats_the_stored_one(run_folder, stored, given, asked):
    file = run_folder / "model/tinyrm.json"
    if stored is not None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"question": stored}))
    assert question_in(RewardModel.load(run_folder, question=given)) == asked


def test_results_of_another_question_are_not_replaced(tiny, pairs_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--question", "Which is six?"]):
        evaluate.main([str(tiny), str(pairs_file), "--limit", "4", *more])
    usual, other = sorted((tmp_path / "runs" / f"eval-{tiny.name}").iterdir())
    assert "question" not in results_of(usual)[0]["format"]
    assert results_of(other)[0]["format"]["question"] == "Which is six?"


def test_a_model_without_tinyrm_json_has_the_defaults_as_far_as_its_positions_go(run_folder):
    (run_folder / "model" / "tinyrm.json").unlink()
    assert RewardModel.load(run_folder).about["format"] == {
        "template": "option",
        "context": "pair",
        "head": "cloze",
        "domain": "all",
        "max_length": 512,
    }


def test_more_tokens_than_the_model_has_positions_are_refused(run_folder):
    with pytest.raises(ValueError, match="ends at 512"):
        RewardModel.load(run_folder, max_length=600)


def test_what_is_known_of_a_model_names_its_weights(tiny):
    about = RewardModel.load(tiny, device="cpu").about
    assert about["model"] == str(tiny)
    assert about["weights"].startswith("sha256 ")
    assert about["device"].startswith("cpu (asked for), float32")
    parameters = tinyrm.load(tiny).parameters()
    assert about["parameters"] == sum(p.numel() for p in parameters)


@pytest.mark.parametrize("kind", ["dora", "lora"])
def test_an_adapter_folder_is_its_base_with_the_adapter_merged(tiny, tmp_path, kind):
    model = tinyrm.load(tiny)
    dora.adapt(model, kind, rank=4, alpha=8, freeze=1, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    dora.save_adapter(model, tmp_path / "adapter", str(tiny))

    live = RewardModel(model.eval(), PromptFormat(load_tokenizer(tiny)))
    expected = live.compare("one two", "three", "four five")
    for name in (tmp_path / "adapter", tmp_path):  # also a run folder that holds an adapter only
        stored = RewardModel.load(name)
        assert stored.compare("one two", "three", "four five") == pytest.approx(expected, abs=1e-5)
        assert stored.about["weights"].count("sha256") == 2  # the base's and its own
    base = RewardModel.load(tiny).compare("one two", "three", "four five")
    assert abs(base - expected) > 1e-3


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no base_model_name_or_path"):
        RewardModel.load(tmp_path)


@pytest.mark.parametrize("context", ["pair", "single"])
def test_the_cls_head_judges_in_both_contexts(tiny, tmp_path, context):
    folder = copy_of(tiny, tmp_path / "cls")
    tinyrm.save(tinyrm.load(tiny, "cls", seed=3), folder)
    model = RewardModel.load(folder, context=context)
    assert model.prompt_format.head == "cls"
    p = model.compare("one", "two", "three")
    assert p != 0.5 and p + model.compare("one", "three", "two") == pytest.approx(1)


@pytest.mark.parametrize(("name", "domain"), [
    ("sarahpann/chat_model", "chat"),
    ("sarahpann/reasoning_model_large", "reasoning"),
    ("sarahpann/rwb_model", "all"),
])
def test_the_authors_checkpoints_are_judged_in_the_layout_they_know(tmp_path, name, domain):
    settings = evaluate.stored_settings(name, tmp_path, tmp_path)
    assert settings == {"template": "choice", "domain": domain}


def test_other_classes_of_model_and_format_are_handed_through(tiny):
    class OtherModel(tinyrm.ModernBERT):
        pass

    class OtherFormat(PromptFormat):
        pass

    model = RewardModel.load(tiny, model_class=OtherModel, format_class=OtherFormat)
    assert type(model.model) is OtherModel and type(model.prompt_format) is OtherFormat


# --------------------------------------------------------------------- files on the command line


def results_of(folder):
    return json.loads((folder / "results.json").read_text())["reports"]


@pytest.fixture
def judged_pairs(tiny, tmp_path, capsys):
    """40 pairs over 20 prompts, judged: (what was printed, the report, the rows of scores)."""
    file = write(tmp_path / "mine.jsonl", random_pairs(40, prompts=20))
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out")])
    (report,) = results_of(tmp_path / "out")
    return capsys.readouterr().out, report, read_lines(tmp_path / "out" / "scores.jsonl")


def test_a_file_of_pairs_is_judged_and_printed(judged_pairs):
    printed, _, _ = judged_pairs
    assert "judging 40 items" in printed
    assert "20 prompts, 80 rows, 0 truncated rows" in printed
    for share in ("both orders agree", "first slot wins", "right in one order"):
        assert f"{share} 0." in printed


def test_the_score_of_a_file_is_that_of_its_rows_of_scores(judged_pairs):
    _, report, scores = judged_pairs
    right = agree = 0
    for row in scores:
        assert row["mean"] == pytest.approx((row["a_first"] + row["b_first"]) / 2)
        right += row["mean"] > 0.5
        agree += (row["a_first"] > 0.5) == (row["b_first"] > 0.5)
    assert len(scores) == 40
    assert report["score"] == pytest.approx(right / 40)
    assert report["lines"][0]["both orders agree"] == agree


def test_rows_of_scores_of_one_prompt_have_one_key(judged_pairs):
    _, report, scores = judged_pairs
    assert len({row["prompt"] for row in scores}) == report["prompts"] == 20


def test_results_say_what_was_judged_with_what(judged_pairs, tmp_path):
    _, report, _ = judged_pairs
    keys = "model parameters weights format device data source measure score low high n prompts "
    keys += "lines orders calibration seen"
    assert list(report) == keys.split()
    assert report["seen"] == {"rows": 80, "truncated rows": 0}
    assert report["weights"].startswith("sha256") and report["source"].startswith("sha256")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"].startswith("python evaluate.py ") and "--out" in results["command"]


@pytest.mark.parametrize("context", ["pair", "single"])
def test_best_of_n_rows_give_the_curve_and_every_comparison(tiny, tmp_path, context):
    lot, rows = random.Random(1), []
    for i in range(12):
        wrong = [words(lot) for _ in range(3)]
        rows.append({"prompt": f"{i}", "chosen": [words(lot)], "rejected": wrong})
    file = write(tmp_path / "n.jsonl", rows)
    out = tmp_path / "out"
    evaluate.main([str(tiny), str(file), "--out", str(out), "--context", context])

    (report,) = results_of(out)
    scores = {line["name"]: line["score"] for line in report["lines"]}
    model = RewardModel.load(tiny, context=context)
    picked = 0
    for row in rows:
        best = model.rank(row["prompt"], row["chosen"] + row["rejected"])
        picked += (best[0].index == 0) / 12
    assert scores["the pick from 1"] == pytest.approx(1 / 4)
    assert scores["the pick from 4"] == pytest.approx(picked)
    assert scores["the pick from all"] == pytest.approx(picked)
    assert len(read_lines(out / "scores.jsonl")) == 12 * 6


def test_rows_of_scores_join_the_file(tiny, tmp_path):
    rows = random_pairs(6)
    for number, row in enumerate(rows):
        row["id"] = f"mine/{number}"
    file = write(tmp_path / "p.jsonl", rows)
    file.write_text("\n" + file.read_text())  # line 1 is blank
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out"), "--limit", "3"])
    scores = read_lines(tmp_path / "out" / "scores.jsonl")
    names = [(row["line"], row["id"]) for row in scores]
    assert names == [(2, "mine/0"), (4, "mine/2"), (6, "mine/4")]


def test_the_same_model_twice_has_equal_rows_and_no_difference(tiny, tmp_path, capsys):
    files = [str(write(tmp_path / f"{n}.jsonl", random_pairs(12, seed=n))) for n in (1, 2)]
    other = copy_of(tiny, tmp_path / "other")
    evaluate.main([str(tiny), str(other), *files, "--out", str(tmp_path / "out")])

    # the last tables have both models: of each file the lines all, x, y and z
    _, _, tables = capsys.readouterr().out.partition(f"A = {tiny}")
    cells = [line.split(None, 2) for line in tables.splitlines()]
    of_a = [cell[2] for cell in cells if cell[1:2] == ["A"]]
    of_b = [cell[1] + " " + cell[2] for cell in cells if cell[:1] == ["B"] and cell[1] not in "-="]
    assert len(of_a) == len(of_b) == 8
    assert [text.split() for text in of_a] == [text.split() for text in of_b]

    reports = results_of(tmp_path / "out")
    for report in reports[:2]:
        assert "difference" not in report["lines"][0]
    for report in reports[2:]:
        difference, low, high = report["lines"][0]["difference"]
        assert difference == 0 and low == -high < 0


def test_what_is_judged_is_on_the_disk_as_it_goes(tiny, tmp_path, monkeypatch):
    files = [str(write(tmp_path / f"{n}.jsonl", random_pairs(4, seed=n))) for n in (1, 2, 3)]
    judge = RewardModel.judge

    def fails_on_the_third(self, items):
        if items.path == files[2]:
            raise KeyboardInterrupt
        return judge(self, items)

    monkeypatch.setattr(RewardModel, "judge", fails_on_the_third)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(tiny), *files, "--out", str(out)])
    assert [report["data"] for report in results_of(out)] == files[:2]
    of_rows = [row["data"] for row in read_lines(out / "scores.jsonl")]
    assert of_rows == [files[0]] * 4 + [files[1]] * 4


def test_a_second_model_that_is_not_there_is_found_before_the_first_judges(
    tiny, pairs_file, tmp_path, capsys
):
    with pytest.raises(ValueError, match="nowhere"):
        evaluate.main([str(tiny), "nowhere", str(pairs_file), "--out", str(tmp_path / "out")])
    assert "judging" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_files_of_one_name_and_limits_have_results_of_their_own(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.jsonl", random_pairs(4))
    for args in (["one/x.jsonl"], ["two/x.jsonl"], ["one/x.jsonl", "--limit", "2"],
                 ["one/x.jsonl", "--context", "single"], ["./two/x.jsonl"]):
        evaluate.main([str(tiny), *args])
    folders = sorted(path.name for path in (tmp_path / "runs" / f"eval-{tiny.name}").iterdir())
    assert folders == ["x", "x-2", "x-3", "x-4"]  # the last one has the second's again


@pytest.mark.parametrize("change", [
    lambda rows: rows[::-1], lambda rows: rows[:-1] + [rows[-1] | {"chosen": "another"}],
], ids=["prompts", "a response"])
def test_a_file_that_changes_while_it_is_judged_is_an_error(tiny, tmp_path, monkeypatch, change):
    file = write(tmp_path / "p.jsonl", random_pairs(4))
    judge = RewardModel.judge

    def change_and_judge(self, items):
        write(file, change(random_pairs(4)))
        return judge(self, items)

    monkeypatch.setattr(RewardModel, "judge", change_and_judge)
    with pytest.raises(ValueError, match="p.jsonl: it was changed while it was judged"):
        evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out")])


def test_a_file_of_identical_pairs_is_half_right(tiny, tmp_path, capsys):
    rows = [{"prompt": "one", "chosen": "two", "rejected": "two"}] * 2
    file = write(tmp_path / "same.jsonl", rows)
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out")])
    (report,) = results_of(tmp_path / "out")
    assert report["score"] == 0.5 and report["lines"][0]["right"] == 1
    assert report["calibration"]["ECE"] == 0
    assert "2 identical responses" in capsys.readouterr().out


def test_equal_right_answers_of_ties_have_no_spread(tiny):
    # only two of three are equal, so that the model has a say
    item = Item("one", ("two", "three four", "two", "five"), 3, "Ties", tag="tied:1")
    for context in ("pair", "single"):
        model = RewardModel.load(tiny, device="cpu", context=context)
        (judged,) = model.judge([item])
        level = judged.mean_log_odds()
        assert level[0] == level[2] != level[1]


def test_another_judges_scores_stand_next_to_ours(tiny, tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", random_pairs(10))
    scores = write(tmp_path / "s.jsonl", [{"line": i, "scores": [1, 0]} for i in range(3, 13)])
    out = tmp_path / "out"
    evaluate.main([str(tiny), str(file), "--against", str(scores), "--out", str(out)])
    (report,) = results_of(out)
    (comparison,) = report["against"]
    ours, theirs = comparison["reports"]
    assert (ours["n"], theirs["n"], theirs["score"]) == (8, 8, 1)
    assert theirs["lines"][0]["difference"][0] == pytest.approx(1 - ours["score"])
    printed = capsys.readouterr().out
    assert "8 rows of both, 2 rows without scores, 2 scores without a row" in printed


def test_a_models_own_scores_differ_in_nothing(tiny, tmp_path):
    file = write(tmp_path / "p.jsonl", random_pairs(10))
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "one")])
    scores = str(tmp_path / "one" / "scores.jsonl")
    evaluate.main([str(tiny), str(file), "--against", scores, "--out", str(tmp_path / "two")])
    (report,) = results_of(tmp_path / "two")
    ours, theirs = report["against"][0]["reports"]
    assert ours["score"] == theirs["score"] and ours["calibration"] == theirs["calibration"]
    assert theirs["lines"][0]["difference"][0] == 0


def test_the_limit_is_evenly_spread_over_a_file(tiny, tmp_path):
    rows = random_pairs(40)
    for row in rows:
        row["subset"] = "last"
    for row in rows[:20]:
        row["subset"] = "first"
    file = write(tmp_path / "p.jsonl", rows)
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out"), "--limit", "10"])
    subsets = [row["subset"] for row in read_lines(tmp_path / "out" / "scores.jsonl")]
    assert subsets == ["first"] * 5 + ["last"] * 5


def test_a_benchmark_is_fetched_judged_and_reported(tiny, tmp_path, monkeypatch, capsys):
    filtered, raw = [], []
    for i, row in enumerate(random_pairs(18)):
        row["subset"] = ("donotanswer", "hep-go", "alpacaeval-easy")[i % 3]
        raw.append(row)
        if i % 3 < 2:
            filtered.append(row)
    files = {
        "data/filtered-*": write(tmp_path / "filtered.jsonl", filtered),
        "data/raw-*": write(tmp_path / "raw.jsonl", raw),
    }
    monkeypatch.setattr(benchmarks, "fetch_dataset",
                        lambda repository, patterns, revision: ("c0ffee", [files[patterns[0]]]))
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(tiny), "rewardbench"])

    printed = capsys.readouterr().out
    assert "allenai/reward-bench at c0ffee" in printed and "raw split" in printed
    (report,) = results_of(tmp_path / "runs" / f"eval-{tiny.name}" / "rewardbench")
    names = {line["name"] for line in report["lines"]}
    assert report["n"] == 12 and names >= {"Safety", "Reasoning", "hep-go"}


def test_results_of_a_run_go_into_its_folder(run_folder, pairs_file):
    (run_folder / "run.json").write_text("{}")
    evaluate.main([str(run_folder), str(pairs_file), "--limit", "4"])
    out = run_folder / "eval" / pairs_file.stem
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "scores.jsonl"]


def test_ask_ranks_what_is_typed(tiny, tmp_path):
    code, out, err = run_script([tiny, "--ask", "one two", "three", "four", "five six"], tmp_path)
    assert code == 0, err
    assert "3 comparisons, in both orders" in out
    assert [line.split(".")[0].strip() for line in out.splitlines()[-3:]] == ["1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


def test_ask_says_that_context_single_scores(tiny, capsys):
    evaluate.main([str(tiny), "--ask", "one two", "three", "four", "--context", "single"])
    assert "2 scores" in capsys.readouterr().out


def test_a_bad_file_is_one_line_that_names_it_and_leaves_nothing(tiny, tmp_path):
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(ValueError) as error:
        evaluate.main([str(tiny), str(bad), "--out", str(tmp_path / "out")])
    assert str(error.value).startswith(f'{bad}, line 1: no "rejected"')
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [bad]  # no empty folder either


def test_a_prompt_that_is_too_long_does_not_end_a_run(tiny, tmp_path, capsys):
    rows = random_pairs(5) + [{"prompt": "one " * 900, "chosen": "b", "rejected": "c"}]
    file = write(tmp_path / "long.jsonl", rows)
    evaluate.main([str(tiny), str(file), "--out", str(tmp_path / "out"), "--max-length", "300"])
    assert "6 prompts, 12 rows, 2 truncated rows" in capsys.readouterr().out


@pytest.mark.parametrize("args", [
    ["MODEL"],
    ["ok.jsonl"],
    ["MODEL", "--ask", "prompt", "one"],
    ["MODEL", "ok.jsonl", "--ask", "prompt", "one", "two"],
    ["nowhere", "ok.jsonl"],
    ["MODEL", "missing.jsonl"],
    ["MODEL", "ok.jsonl", "--device", "tpu"],
    ["MODEL", "ok.jsonl", "--micro-tokens", "-1"],
    ["MODEL", "ok.jsonl", "--out", "ok.jsonl"],
    ["MODEL", "ok.jsonl", "--out", "ok.jsonl/x"],
    ["MODEL", "ok.jsonl", "--limit", "-1"],
    ["MODEL", "ok.jsonl", "--max-length", "-1"],
    ["MODEL", "ok.jsonl", "--question", " "],
    ["MODEL", "--ask", "prompt", "one", "two", "--limit", "3"],
    ["MODEL", "--ask", "prompt", "one", "two", "--out", "new"],
    ["MODEL", "ok.jsonl", "--against", "missing.jsonl"],
    ["MODEL", "ok.jsonl", "--against", "ok.jsonl"],
    ["MODEL", "ok.jsonl", "rewardbench", "--against", "ok.jsonl"],
])
def test_bad_usage_is_one_line_and_leaves_nothing(tiny, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ok.jsonl", random_pairs(3))
    with pytest.raises(ValueError) as error:
        evaluate.main([str(tiny) if arg == "MODEL" else arg for arg in args])
    assert "\n" not in str(error.value), error.value
    assert [path.name for path in tmp_path.iterdir()] == ["ok.jsonl"]


@pytest.mark.parametrize("flag, value", [("--device", "tpu"), ("--dtype", "fp64")])
def test_a_machine_that_is_none_is_named_before_a_model_is_looked_for(tmp_path, flag, value):
    file = write(tmp_path / "ok.jsonl", random_pairs(3))
    with pytest.raises(ValueError, match=f"{flag} {value}: give auto"):
        evaluate.main(["no-model", str(file), flag, value])


def test_a_folder_with_other_results_is_not_written_over(tiny, tmp_path):
    one, two = (write(tmp_path / name, random_pairs(3)) for name in ("one.jsonl", "two.jsonl"))
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    evaluate.main([str(tiny), str(one), *out])
    before = (tmp_path / "out/results.json").read_text()
    with pytest.raises(ValueError, match="--out .*out has the results of something else"):
        evaluate.main([str(tiny), str(two), *out])
    assert (tmp_path / "out/results.json").read_text() == before
    evaluate.main([str(tiny), str(one), *out])  # the same question may be asked again


def test_what_is_read_is_not_written_over(tiny, tmp_path, monkeypatch):
    """scores.jsonl is what we write, and may be what another judge's scores, or pairs, are in."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", random_pairs(3))
    scores = write(tmp_path / "scores.jsonl", [{"line": n, "scores": [1, 0]} for n in (1, 2, 3)])
    before = scores.read_bytes()
    for words in (["a.jsonl", "--against", "scores.jsonl"], ["scores.jsonl"]):
        if len(words) == 1:
            before = write(scores, random_pairs(3)).read_bytes()
        with pytest.raises(ValueError, match="--out .: scores.jsonl is read"):
            evaluate.main([str(tiny), *words, "--out", ".", "--device", "cpu"])
        assert scores.read_bytes() == before
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("out", [[], ["--out", "out"]])
def test_two_judgings_at_once_do_not_write_over_each_other(tiny, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", random_pairs(4))
    words = [str(tiny), "a.jsonl", *out, "--device", "cpu", "--limit"]
    judge_set, others = evaluate.judge_set, []

    def judge_while_another_one_does(*args):
        judged = judge_set(*args)
        if not others:
            others.append(1)
            evaluate.main([*words, "3"])  # begins later, and is the first to write
        return judged

    monkeypatch.setattr(evaluate, "judge_set", judge_while_another_one_does)
    if out:
        with pytest.raises(ValueError, match="--out out has the results of something else"):
            evaluate.main([*words, "2"])
    else:
        evaluate.main([*words, "2"])
    limits = [json.loads(file.read_text())["asked"]["limit"]
              for file in tmp_path.rglob("results.json")]
    assert sorted(limits) == ([3] if out else [2, 3])


def test_a_prompt_that_is_one_message_and_domains_that_are_none(tiny):
    model = RewardModel.load(tiny, device="cpu")
    message = {"role": "user", "content": "one"}
    for ask in (lambda: model.compare(message, "a", "b"), lambda: model.rank(message, ["a", "b"])):
        with pytest.raises(ValueError, match="the prompt is one message: give a list of messages"):
            ask()
    assert model.compare("one", "a", "b", None) == model.compare("one", "a", "b")
    with pytest.raises(ValueError, match="unknown domain"):
        model.compare(["one"], ["a"], ["b"], [["chat"]])


def test_a_run_that_is_not_finished_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(ValueError, match="run: this run is not finished: go on with .* --resume"):
        RewardModel.load(tmp_path / "run")


@pytest.mark.parametrize("tokens", [1, 100])
def test_the_tokens_of_a_batch_can_be_chosen(tiny, tokens):
    usual = RewardModel.load(tiny, device="cpu")
    chosen = RewardModel.load(tiny, device="cpu", micro_tokens=tokens)
    sizes = []
    score_batch = chosen.score_batch

    def noting(batch):
        sizes.append((len(batch.tokens), len(batch.starts) - 1))
        return score_batch(batch)

    chosen.score_batch = noting
    lists = ["one"] * 5, [f"two {i}" for i in range(5)], ["three"] * 5
    assert chosen.compare(*lists) == pytest.approx(usual.compare(*lists), abs=1e-5)
    # the row that reaches over the edge is in too
    assert all(count <= tokens + count / rows + 5 for count, rows in sizes) and len(sizes) > 1


def test_a_batch_beyond_the_memory_names_the_flag(tiny, monkeypatch):
    model = RewardModel.load(tiny, device="cpu")

    def full(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(ValueError, match=r"out of GPU memory in a batch of [\d,]+ tokens: give "
                                         "--micro-tokens"):
        model.compare("one", "two", "three")


def test_flags_are_not_abbreviated(tiny, pairs_file):
    with pytest.raises(SystemExit):
        evaluate.main([str(tiny), str(pairs_file), "--templ", "option"])


def test_the_script_prints_an_error_as_one_line_and_exits_with_2(tiny, tmp_path):
    code, _, err = run_script([tiny, "missing.jsonl"], tmp_path)
    assert code == 2 and err.startswith("error: missing.jsonl") and err.count("\n") == 1


# ---------------------------------------------------------------------- how it goes, how it ends


def test_without_a_terminal_progress_is_lines_now_and_then(tiny, pairs_file, tmp_path, monkeypatch,
                                                           capsys):
    monkeypatch.setattr(progress, "PAUSE", 0)
    evaluate.main([str(tiny), str(pairs_file), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("judged 1 of 48 after ")
    assert lines[-1].startswith("judged 48 of 48 after ") and len(lines) == 48


def test_soon_done_work_prints_no_progress(tiny, pairs_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PAUSE", 1e9)
    evaluate.main([str(tiny), str(pairs_file), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err == ""


def test_a_closed_output_is_a_line_and_a_code(tiny, tmp_path):
    write(tmp_path / "p.jsonl", random_pairs(30))
    # bash gives the code of the first command
    line = f"{sys.executable} {evaluate.__file__} {tiny} p.jsonl --out out | head -1; "
    line += "exit ${PIPESTATUS[0]}"
    out = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True,
                         check=False)
    assert out.stdout == f"model {tiny}\n"
    assert (out.returncode, out.stderr) == (141, "stopped: nobody reads what is printed\n")


JUDGES_FOR_EVER = """
import signal, sys, evaluate
from infra.stopping import exit_code_of
# a shell starts what runs in its background with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
def judge(self, items):
    while True:
        yield from judge_once(self, items)
judge_once, evaluate.RewardModel.judge = evaluate.RewardModel.judge, judge
sys.exit(exit_code_of(evaluate.main))
"""


@pytest.mark.parametrize(("number", "line"), [
    (signal.SIGINT, "stopped by Ctrl-C\n"),
    (signal.SIGTERM, "stopped by SIGTERM\n"),
])
def test_a_signal_while_judging_is_a_line_and_a_code(tiny, tmp_path, number, line):
    file = write(tmp_path / "p.jsonl", random_pairs(3))
    command = [sys.executable, "-c", JUDGES_FOR_EVER, str(tiny), str(file), "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(Path(evaluate.__file__).parent)})
    while not process.stdout.readline().startswith("judging"):
        assert process.poll() is None
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # on a slow machine it may have said by then how far it is
    lines = [one for one in err.splitlines(keepends=True) if not one.startswith("judging ")]
    assert (process.returncode, lines) == (128 + number, [line])
    assert not list(tmp_path.glob("**/*.tmp"))


# ------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("sizes", [[3, 9, 9], [30, 64, 65], [70, 200, 200, 31], [500]])
@pytest.mark.parametrize("layers", [4, 3])  # the last layer global, and local
@pytest.mark.parametrize("model_class", [tinyrm.ModernBERT, CausalModernBERT])
def test_flops_are_those_that_torch_counts(sizes, layers, model_class):
    config_class = model_class.config_class
    config = config_class.from_json({
        "model_type": config_class.model_type,
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    })
    model = model_class(config).init_weights(0).eval()
    starts = torch.tensor([0, *np.cumsum(sizes).tolist()])
    tokens = torch.randint(50, (int(starts[-1]),))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            h = model(tokens, starts, starts[1:] - 1)
            model.logits(h, torch.tensor([3, 4]))
    assert flops(config, sizes, torch.device("cpu")) == counter.get_total_flops()


def test_the_papers_formula_gives_its_chart():
    # facts of the chart: large 0.345 GFLOPs a token without logits; base 0.187 with them, which
    # are 2 D V = 2 * 768 * 50368
    large = paper_flops(1024, 28, 16, 2624)
    base = paper_flops(768, 22, 12, 1152)
    assert large / 1e9 == pytest.approx(0.345, abs=5e-4)
    assert (base + 2 * 768 * 50368) / 1e9 == pytest.approx(0.187, abs=5e-4)


def test_the_script_of_costs_prints_what_was_measured_and_counted(tiny, pairs_file):
    script = Path(cost.__code__.co_filename)
    out = subprocess.run([sys.executable, script, tiny, pairs_file, "--limit", "10"],
                         capture_output=True, text=True, check=True).stdout
    assert "judging 10 items" in out
    for what in ("pairs a second", "tokens a pair", "share of them in the encoder", "peak GiB",
                 "GFLOPs a pair, counted", "GFLOPs a pair, the paper's formula", "parameters"):
        assert f"\n  {what}  " in out
    assert "milliseconds of one item alone: median " in out and "of 10 items in turn" in out


def test_a_latency_is_of_one_item_at_a_time(monkeypatch):
    """Items that take 1, 2, ... 5 ms by a clock that the judge moves."""
    now, judged = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Judge:
        def judge(self, items):
            (item,) = items
            judged.append(item)
            now[0] += item / 1000
            yield item

    found = latency(Judge(), [1, 2, 3, 4, 5])
    assert judged == [1, 2, 3, 4, 5]
    assert (found.median, found.p95, found.n) == pytest.approx((3, 4.8, 5))


def test_the_script_of_costs_says_if_there_is_nothing_to_measure(tiny, tmp_path):
    rows = [{"prompt": "one", "chosen": "two", "rejected": "two"}]
    file = write(tmp_path / "same.jsonl", rows)
    with pytest.raises(ValueError, match="in every pair both responses are the same"):
        flops_main([str(tiny), str(file)])


def test_what_a_verdict_costs(capsys):
    flops_main([])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()
            if line.startswith(("| base", "| large", "| scalar"))]
    found = {(judge, how): [float(cell.replace(",", "")) for cell in cells]
             for judge, how, *cells in rows}
    # tokens, GFLOP a token: counted from the layers at 512 tokens
    assert found["base", "pair, one order"][:2] == [512, 0.229]
    assert found["large", "pair, one order"][:2] == [512, 0.694]
    assert found["large", "pair, two orders"][0] == 2 * 512
    # two responses of 320 tokens with their prompt, 2 FLOPs for each of 8 billion parameters
    of_scalar = found["scalar model, 8 billion", "single, by formula"]
    assert of_scalar[:3] == [640, 16, 10_240]
