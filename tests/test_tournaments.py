"""What a ranking loses with fewer comparisons: experiments/tournaments.py.

    python -m pytest tests/test_tournaments.py
"""

import json
import random
import shutil

import numpy as np
import pytest

import evaluate
from data import Item, Pair
from evaluate import Judged
from experiments import best_of_n, tournaments
from experiments.tournaments import by_all_pairs, by_knockout, by_tournament, compare_with
from infra.sources import load_sets


def additive(count):
    """A judge whose log-odds are differences: the best is the last text."""
    x = np.arange(count) / 4.0
    item = Item("p", tuple(f"{i:03}" for i in range(count)))
    return Judged(item, x[:, None] - x[None, :])


@pytest.mark.parametrize("count", [3, 8, 33])
def test_without_noise_every_way_finds_the_best(count):
    judged = additive(count)
    reference = [by_all_pairs(judged).scores]
    for way in (by_all_pairs, by_tournament, by_knockout):
        line = compare_with(reference, [way(judged)], [1])
        assert line.best_found == [1.0]
        assert line.better_first == [0.0]  # the pair's better one is the first text
    assert compare_with(reference, [by_tournament(judged)], [1]).correlation == pytest.approx([1.0])


def test_rows_are_two_for_each_comparison():
    judged = additive(64)
    assert by_all_pairs(judged).rows == 64 * 63
    assert 2 * 180 < by_tournament(judged).rows <= 2 * 192
    assert by_knockout(judged).rows == 2 * 63


def test_a_tournament_is_what_rank_plays(tiny):
    judge = evaluate.RewardModel.load(tiny, device="cpu")
    texts = tuple(f"one {i}" for i in range(12))
    (judged,) = judge.judge([Item("two", texts)])
    ranking = by_tournament(judged)
    ranked = judge.rank("two", list(texts))
    assert ranking.rows == 2 * ranked[0].asked
    for one in ranked:
        assert ranking.scores[one.index] == pytest.approx(one.win, abs=1e-5)


def test_the_correlation_is_spearmans():
    a = np.array([1.0, 2, 3, 4])
    assert tournaments.correlation(a, a**3) == pytest.approx(1)
    assert tournaments.correlation(a, -a) == pytest.approx(-1)
    assert tournaments.ranks(np.array([5.0, 1, 5])).tolist() == [1.5, 0, 1.5]
    assert tournaments.correlation(a, np.ones(4)) == 0


def test_candidates_are_the_pair_and_different_others():
    pairs = [Pair(f"p{i}", f"good {i}", f"bad {i % 3}") for i in range(9)]
    items = tournaments.make_candidates(pairs, 4, 7, seed=1)
    assert items == tournaments.make_candidates(pairs, 4, 7, seed=1)
    by_prompt = {pair.prompt: pair for pair in pairs}
    for item in items:
        pair = by_prompt[item.prompt]
        assert item.responses[:2] == (pair.chosen, pair.rejected)
        assert len(set(item.responses)) == 7
    with pytest.raises(ValueError, match="--candidates 13: there are 12 different"):
        tournaments.make_candidates(pairs, 4, 13, seed=1)


@pytest.mark.parametrize("count, right", [(8, 1), (64, 4)])
def test_candidates_of_nano_are_right_where_they_name_the_right_word(count, right):
    items = tournaments.known_candidates(3, count, seed=1)
    assert items == tournaments.known_candidates(3, count, seed=1)
    pair_of = {pair.prompt: pair for pair in load_sets(["nano"], "reasoning", 0, 0, 0).test}
    world = best_of_n.microworld.make_world()
    words = [word for word in world if world[word].part == "test"]
    for item in items:
        assert (len(set(item.responses)), item.good) == (count, right)
        pair = pair_of[item.prompt]
        heavy = best_of_n.word_in(pair.chosen, words)
        for place, text in enumerate(item.responses):
            named = [word for word in words if word in text]
            assert (named == [heavy]) == (place < right)


def test_better_first_counts_any_of_the_better_ones():
    judged = additive(4)  # the last one is first
    reference = [by_all_pairs(judged).scores]
    lines = [compare_with(reference, [by_all_pairs(judged)], [good]) for good in (3, 4)]
    assert [line.better_first for line in lines] == [[0.0], [1.0]]


def test_the_table_has_a_line_for_each_way_and_model(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tournaments, "RECORDS", tmp_path / "tournaments.jsonl")
    single = shutil.copytree(tiny, tmp_path / "single")
    (single / "tinyrm.json").write_text(json.dumps({"context": "single"}))
    file = tmp_path / "pairs.jsonl"
    lot = random.Random(0)
    with open(file, "w") as out:
        for i in range(12):
            row = {"prompt": f"one {i}", "chosen": f"two {lot.random()}", "rejected": f"six {i}"}
            out.write(json.dumps(row) + "\n")
    tournaments.main([str(tiny), str(single), str(file), "--candidates", "4", "9", "--prompts", "3",
                      "--device", "cpu", "--keep"])
    kept = [json.loads(line) for line in (tmp_path / "tournaments.jsonl").read_text().splitlines()]
    assert [one["candidates"] for one in kept] == [4] * 4 + [9] * 4
    assert tournaments.key_of(kept[-1]) == (str(file), 9, "single")
    assert kept[-1]["model"] == str(single) and kept[-1]["rows"] == [9] * 3
    printed = capsys.readouterr().out
    for count in (4, 9):
        table = printed.split(f"\n{count} candidates, 3 prompts")[1].split("\n\n")[0]
        names = [line.split(",")[0] for line in table.splitlines()[2:]]
        assert names == ["all pairs", "tournament", "knockout", "single"]
        assert f" {count * (count - 1)} " in table and "  1.000 ± 0.000" in table
    with pytest.raises(ValueError, match="give one of context pair first"):
        tournaments.main([str(single), str(file), "--device", "cpu"])
