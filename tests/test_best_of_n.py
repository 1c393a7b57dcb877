"""Best of N: the curves of judges whose choice is known, by hand; the candidates; the records.

    python -m pytest tests/test_best_of_n.py
"""

import json
import math
import random

import numpy as np
import pytest
import torch

from data import Pair
from evaluate import Judged, RewardModel
from experiments import best_of_n
from experiments.best_of_n import (
    ANSWER_KINDS,
    NS,
    best_of,
    chances,
    curves,
    make_candidates,
    qualities,
)
from experiments.flops import flops
from infra.hub import ROOT

PAIR = Pair("Which one is heavier, the brabin or the clodax?", "The brabin.", "It is the clodax.")
WORDS = ["brabin", "clodax", "drefer", "fligle"]


@pytest.fixture
def candidates():
    return make_candidates(PAIR, WORDS, random.Random(0))


def right_at(scores, candidates):
    return curves([np.array(scores, float)], [candidates])["right"]


def test_a_judge_that_is_always_right(candidates):
    scores = [kind == "right" for kind in candidates.kinds]
    # it misses where none of the N is among the 13 right ones of 256
    expected = [1 - math.comb(243, n) / math.comb(256, n) for n in NS]
    assert right_at(scores, candidates) == pytest.approx(expected)


def test_a_judge_that_tells_nothing_apart_is_right_as_often_as_the_candidates(candidates):
    assert right_at(np.zeros(256), candidates) == pytest.approx([13 / 256] * len(NS))


def test_a_judge_by_chance_stays_at_the_share_of_right_ones(candidates):
    draws = np.random.default_rng(0)
    shares = [right_at(draws.random(256), candidates) for _ in range(200)]
    assert np.mean(shares, axis=0) == pytest.approx([13 / 256] * len(NS), abs=0.06)


def test_a_judge_of_length_chooses_the_longest(candidates):
    # no two alike
    lengths = [len(text) + i / 1000 for i, text in enumerate(candidates.texts)]
    longest = candidates.kinds[int(np.argmax(lengths))]
    found = curves([np.array(lengths)], [candidates])
    assert found[longest][-1] == pytest.approx(1)
    assert found["score"][0] == pytest.approx(np.mean(lengths))
    assert found["score"][-1] == max(lengths)
    words = [len(text.split()) for text in candidates.texts]
    assert found["words"][0] == pytest.approx(np.mean(words))
    assert found["words"][-1] == words[int(np.argmax(lengths))] > found["words"][0] + 5


def test_what_is_true_of_the_candidates(candidates):
    references = ["right", "wrong", "right", "beside"]
    found = qualities(candidates._replace(reference_kinds=references))
    for kind, rate in zip(candidates.kinds, found["true win rate"], strict=True):
        # level with the two right ones and ahead of two, or behind two and level with two
        assert rate == (0.75 if kind == "right" else 0.25)
    assert set(found["idle sentences"]) == {1, 2, 3}
    assert sum(found[kind] for kind in ANSWER_KINDS).tolist() == [1] * len(candidates.kinds)


def test_a_judge_that_knows_the_truth_scores_as_the_truth_does(candidates):
    truth = qualities(candidates)["true win rate"]
    found = curves([truth], [candidates])
    assert found["score"] == found["true win rate"]


def test_references_are_of_the_kinds_that_are_kept(candidates):
    for kind, text in zip(candidates.reference_kinds, candidates.references, strict=True):
        named = {word for word in WORDS if word in text}
        assert named == {"right": {"brabin"}, "wrong": {"clodax"}, "beside": set(),
                         "both": {"brabin", "clodax"}}.get(kind, named)
        assert kind != "other" or named <= {"drefer", "fligle"} and named


def test_best_of_n_is_the_mean_over_all_draws():
    # of three, by hand: the draws of two are (a, b), (a, c), (b, c)
    scores, values = np.array([0.1, 0.3, 0.2]), np.array([5.0, 7.0, 1.0])
    assert best_of(scores, values, 2) == pytest.approx((7 + 1 + 7) / 3)
    assert chances(3, 2).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    for n in NS:
        assert chances(256, n).sum() == pytest.approx(1)


def test_candidates_are_of_the_kinds_that_are_promised(candidates):
    assert {kind: candidates.kinds.count(kind) for kind in ANSWER_KINDS} == ANSWER_KINDS
    assert len(candidates.texts) == NS[-1] and len(candidates.references) == 4
    assert len({*candidates.texts, *candidates.references}) == NS[-1] + 4
    for kind, text in zip(candidates.kinds, candidates.texts, strict=True):
        named = {word for word in WORDS if word in text}
        if kind in ("right", "wrong", "both"):
            assert named == {"right": {"brabin"}, "wrong": {"clodax"},
                             "both": {"brabin", "clodax"}}[kind]
        elif kind == "other":
            assert named <= {"drefer", "fligle"} and len(named) == 1
        else:
            assert not named


def test_no_answer_of_two_names_says_which_one_it_means():
    for wording in best_of_n.BOTH:
        assert not any(word in wording for word in ("my answer", "but", "rather"))


def test_neither_idle_talk_nor_length_tells_what_is_right():
    words, idle = {}, {}
    for seed in range(20):
        made = make_candidates(PAIR, WORDS, random.Random(seed))
        for kind, text in zip(made.kinds, made.texts, strict=True):
            words.setdefault(kind, []).append(len(text.split()))
            talk = sum(sentence in text for sentence in best_of_n.microworld.IDLE["test"])
            idle.setdefault(kind, []).append(talk)
    assert np.mean(words["right"]) == pytest.approx(np.mean(words["wrong"]), rel=0.07)
    for kind in idle:
        assert np.mean(idle[kind]) == pytest.approx(np.mean(idle["right"]), rel=0.1), kind
    rest = [length for kind in words if kind != "right" for length in words[kind]]
    longer = np.mean([[one > other for other in rest] for one in words["right"]])
    equal = np.mean([[one == other for other in rest] for one in words["right"]])
    assert longer + equal / 2 == pytest.approx(0.5, abs=0.05)  # the area under the curve


def test_it_turns_where_the_last_is_lower_than_the_best_by_more_than_chance():
    rising = [[0.1 * place, 0.1 * place + 0.01] for place in range(len(NS))]
    assert best_of_n.turning_point(rising) == "-"
    falling = rising[:5] + [[0.2, 0.21]] * 4
    assert best_of_n.turning_point(falling) == str(NS[4])
    assert best_of_n.turning_point([values[:1] for values in falling]) == "-"  # one seed


class TwoVerdicts:
    """Of the first pair it is right in both orders, of the second in one order by more than it is
    wrong in the other."""

    def __init__(self, judge):
        self.model, self.prompt_format = judge.model, judge.prompt_format

    def judge(self, items):
        for item, (x, y) in zip(items, ((1.0, -1.0), (3.0, 2.0)), strict=True):
            yield Judged(item, np.array([[0.0, x], [y, 0.0]]))


def test_a_verdict_by_one_order_and_by_both():
    judge = RewardModel.load("nano-instruct", device="cpu")
    pairs = best_of_n.fit.sets_of("reasoning", ("nano",)).test[:2]
    found = best_of_n.worth(TwoVerdicts(judge), pairs)
    assert (found.accuracy, found.one_order) == (1.0, 0.75)

    # a pair's two rows, on average over the pairs
    rows, _ = judge.prompt_format.rows(pairs)
    sizes = [len(row.tokens) for both in rows for row in both]
    assert found.flops == flops(judge.model.config, sizes, torch.device("cpu")) / 2


def test_equal_log_odds_are_half_right():
    assert [best_of_n.credit(x) for x in (1.0, 0.0, -1.0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("context", ["pair", "single"])
def test_a_run_is_kept_and_made_once(context, tmp_path, monkeypatch, capsys):
    """The model has one step of training, and two prompts."""
    monkeypatch.setattr(best_of_n, "RECORDS", tmp_path / "best-of-n.jsonl")
    monkeypatch.setattr(best_of_n, "PROMPTS", 2)
    few_kinds = {"right": 2, "wrong": 2, "both": 2, "other": 1, "beside": 1}
    monkeypatch.setattr(best_of_n, "ANSWER_KINDS", few_kinds)
    monkeypatch.setattr(best_of_n, "NS", (1, 2, 8))
    sets = best_of_n.fit.sets_of("reasoning", ("nano",))
    few = sets._replace(test=sets.test[:40])
    monkeypatch.setattr(best_of_n.fit, "sets_of", lambda *args: few)
    monkeypatch.setattr(best_of_n.fit, "PASSES", {30: 0.01})
    monkeypatch.setattr(best_of_n, "chosen_for", lambda cells: dict.fromkeys(cells, 1e-3))
    argv = ["--context", context, "--pairs", "30", "--seeds", "1"]
    best_of_n.main(argv)
    (record,) = map(json.loads, (tmp_path / "best-of-n.jsonl").read_text().splitlines())
    found = record["curves"]
    assert found["right"][0] == pytest.approx(2 / 8)  # of one: the share among all
    assert sum(found[kind][-1] for kind in few_kinds) == pytest.approx(1)
    assert found["score"] == sorted(found["score"])
    printed = capsys.readouterr().out
    assert f"| {context}, 30 | 1 | 0.250 |" in printed
    assert printed.count("MFLOPs |") == 1 and " | 30 | 1 | 0." in printed

    assert record["rate"] == 1e-3
    monkeypatch.setattr(best_of_n, "make", None)  # nothing is made again
    with open(tmp_path / "best-of-n.jsonl", "a") as file:
        file.write('{"context": "pa')  # cut by a kill
    best_of_n.main(argv)
    assert capsys.readouterr().out == printed
    assert len((tmp_path / "best-of-n.jsonl").read_text().splitlines()) == 1
    other = best_of_n.read_records(best_of_n.RECORDS, {context: 2e-3})
    assert not other  # another rate was chosen since
    assert "1 records are of another setup or rate" in capsys.readouterr().err


def test_a_run_that_diverges_is_one_line(monkeypatch):
    def diverge(*args):
        raise best_of_n.train.NotFinite("the loss is nan: lower --lr")

    monkeypatch.setattr(best_of_n.fit, "fit", diverge)
    with pytest.raises(ValueError, match="pair, 30 pairs, seed 2: diverged at the rate 0.01"):
        best_of_n.make(best_of_n.Run("pair", 30, 2), 1e-2, [])


def test_tables_are_of_the_contexts_and_seeds_that_are_asked_for(monkeypatch, capsys):
    shown = []
    runs = [best_of_n.Run(context, 30, seed) for context in ("pair", "single") for seed in (1, 2)]
    monkeypatch.setattr(best_of_n, "read_records", lambda *args: dict.fromkeys(runs, {}))
    for name in ("show", "show_worth"):
        monkeypatch.setattr(best_of_n, name, lambda records, *args: shown.append(set(records)))
    best_of_n.main(["--print", "--context", "single", "--seeds", "1"])
    assert shown == [{best_of_n.Run("single", 30, 1)}] * 2


def test_the_records_are_of_the_checkout():
    assert best_of_n.RECORDS == ROOT / "experiments/records/best-of-n.jsonl"
