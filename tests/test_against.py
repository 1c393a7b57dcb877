"""Scores of another judge next to ours: how rows find each other, and what is refused.

    python -m pytest tests/test_against.py
"""

import json

import pytest
from test_benchmarks import judged, pair
from test_report import coins, judged_set

from infra.against import compare_with, read_other_judges, show_comparison
from infra.benchmarks import RowKey, best_of_n, pairs
from infra.results import write_results


def key(line, id=None, subset="", split="", responses=2, good=1):
    return RowKey(line, split, line, id, subset, "", responses, good,
                  responses * (responses - 1) // 2)


KEYS = [key(1, "x"), key(2, 7), key(4, None)]  # line 3 was blank


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def read(tmp_path):
    """read(row, row ...) -> the judges in a file of these rows."""

    def read_rows(*rows, keys=KEYS):
        return read_other_judges(write(tmp_path / "other.jsonl", rows), "my.jsonl", keys)

    return read_rows


def verdicts(judge):
    """{index: log-odds that the first response wins}."""
    return {index: table[0, 1] for index, table in judge.log_odds.items()}


@pytest.mark.parametrize("scores", [
    {"scores": [3, 1.5]},
    {"chosen": 3, "rejected": 1.5},
    {"score_chosen": 3, "score_rejected": [1.5]},
    {"scores_chosen": [3], "scores_rejected": [1.5]},
])
def test_scores_are_read_in_each_form(read, scores):
    (judge,) = read({"id": "x"} | scores)
    assert judge.log_odds[0].tolist() == [[0, 1.5], [-1.5, 0]]


def test_rows_are_found_by_id_or_line(read):
    (judge,) = read(
        {"pair_id": "7", "scores": [1, 0]},  # an id as text or number
        {"line": 1, "scores": [2, 0]},
        {"line": 4, "id": "mine", "scores": [3, 0]},  # the row has no id of its own
    )
    assert verdicts(judge) == {1: 1, 0: 2, 2: 3}
    assert judge.unmatched == set()


def test_an_array_with_names_of_models_has_several_judges(tmp_path):
    rows = [{"id": "x", "model": name, "data": "v2", "score_chosen": [1], "score_rejected": [0]}
            for name in ("m", "n")]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    judges = read_other_judges(str(path), "my.jsonl", KEYS)
    assert [judge.name for judge in judges] == [f"m in {path}", f"n in {path}"]


def test_rows_of_nothing_here_are_counted(read):
    (judge,) = read(
        {"id": "x", "scores": [1, 0]},
        {"id": "y", "scores": [1, 0]},
        {"line": 3, "scores": [1, 0]},
        {"id": "z", "line": 1, "scores": [1, 0]},  # line 1 is row x
    )
    assert len(judge.log_odds) == 1 and len(judge.unmatched) == 3


def test_an_id_of_several_rows_needs_a_subset_or_a_line(read):
    keys = [key(1, 5, "hep-go"), key(2, 5, "hep-cpp"), key(1, 5, "hep-go", split="raw")]
    (judge,) = read({"id": 5, "subset": "hep-cpp", "scores": [1, 0]},
                    {"id": 5, "split": "raw", "line": 1, "scores": [2, 0]}, keys=keys)
    assert verdicts(judge) == {1: 1, 2: 2}
    with pytest.raises(ValueError, match='line 1: id 5 is of 3 rows: give "line"'):
        read({"id": 5, "scores": [1, 0]}, keys=keys)


@pytest.mark.parametrize(("row", "message"), [
    ({"id": "nobody", "scores": [1, 0]}, "no row in it is of my.jsonl"),
    ({"scores": [1, 0]}, 'line 2: no "id", and no number as "line"'),
    ({"line": "4", "scores": [1, 0]}, 'line 2: no "id", and no number as "line"'),
    ({"id": 7}, "line 2: no scores"),
    ({"id": 7, "chosen": "text", "rejected": "text"}, "line 2: 'text' is no number"),
    ({"id": 7, "scores": [1, None]}, "line 2: None is no number"),
    ({"id": 7, "scores": [1, float("nan")]}, "line 2: nan is no number"),
    ({"id": 7, "scores": [True, 1]}, "line 2: True is no number"),
    ({"id": 7, "scores": [10**400, 1]}, "line 2: 1000.* is no number"),
    ({"id": 7, "scores": [1, 2, 3]}, "line 2: 3 scores, but the row has 2 responses"),
])
def test_scores_that_do_not_fit_are_a_line_that_names_them(read, row, message):
    with pytest.raises(ValueError, match=message) as error:
        read({"id": "y", "scores": [0, 1]}, row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scores", [{"chosen": [1, 5], "rejected": [9]},
                                    {"chosen": [], "rejected": [1, 5, 9]}])
def test_scores_that_are_split_in_another_way_are_refused(read, scores):
    keys = [key(1, "x", responses=3)]
    (judge,) = read({"id": "x", "chosen": 1, "rejected": [5, 9]}, keys=keys)
    assert judge.log_odds[0].shape == (3, 3)
    with pytest.raises(ValueError, match="line 1: .* of chosen responses, but the row has 1"):
        read({"id": "x"} | scores, keys=keys)


@pytest.mark.parametrize("a, b", [(0.0, 1.0), (True, 0), (0, 2), (-1, 0), ("0", 1)])
def test_a_comparison_of_responses_that_are_none_is_refused(read, a, b):
    row = {"line": 1, "id": "x", "prompt": "", "data": "my.jsonl", "a": a, "b": b,
           "log_odds_a_first": 1.0, "log_odds_b_first": -1.0}
    with pytest.raises(ValueError, match="line 1: a .* and b .*, but the row has 2 responses"):
        read(row)


def test_a_second_row_is_refused(read):
    with pytest.raises(ValueError, match="line 2: a second row for line 2 of what is judged"):
        read({"id": 7, "scores": [1, 0]}, {"line": 2, "scores": [1, 0]})


@pytest.fixture
def stored(tmp_path):
    """A scores.jsonl of two models on two files."""
    sets = [judged_set(model, data, [pair(2.0, -1.0), pair(60.0, 50.0, prompt=1)])
            for model in "ab" for data in ("old/my.jsonl", "else.jsonl")]
    write_results(tmp_path, {}, sets)
    return tmp_path / "scores.jsonl"


def keys_with_prompts():
    return [key(1, 100)._replace(prompt="0"), key(2, 101)._replace(prompt="1")]


def test_our_own_scores_come_back_to_the_bit(stored):
    judges = read_other_judges(str(stored), "new/my.jsonl", keys_with_prompts())
    assert [judge.name for judge in judges] == [f"a in {stored}", f"b in {stored}"]
    for judge in judges:
        assert judge.unmatched == set()  # else.jsonl is left out
        assert [table.tolist() for table in judge.log_odds.values()] == [
            [[0, 2], [-1, 0]], [[0, 60], [50, 0]]]


def test_a_missing_comparison_is_no_tie(tmp_path):
    ours = judged_set("us", "my.jsonl", [judged([0, 3, 2]), judged([2, 1, 0], prompt=1)])
    ours = ours._replace(keys=[key._replace(prompt=str(key.place)) for key in ours.keys])
    write_results(tmp_path, {}, [ours])
    lines = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "less.jsonl").write_text("".join(lines[1:]))  # of row 1 two of three are left
    (other,) = read_other_judges(str(tmp_path / "less.jsonl"), "my.jsonl", ours.keys)
    assert list(other.log_odds) == [1]
    assert compare_with(best_of_n, ours, other)["rows without scores"] == 1


def test_of_two_files_of_one_name_the_scores_of_the_very_one_are_taken(tmp_path):
    sets = [judged_set("m", name, [pair(score, -score)])
            for name, score in (("a/my.jsonl", 2.0), ("b/my.jsonl", 3.0))]
    write_results(tmp_path, {}, sets)
    for name, expected in (("a/my.jsonl", 2), ("b/my.jsonl", 3)):
        (judge,) = read_other_judges(str(tmp_path / "scores.jsonl"), name, keys_with_prompts())
        assert verdicts(judge) == {0: expected}


def test_an_id_of_both_splits_is_found_by_the_split(read):
    keys = [key(1, 5, "hep-go", "filtered"), key(1, 5, "raw hep-go", "raw"),
            key(2, 5, "raw hep-cpp", "raw")]
    (judge,) = read({"id": 5, "split": "raw", "subset": "hep-go", "scores": [1, 0]},
                    {"id": 5, "split": "filtered", "subset": "hep-go", "scores": [2, 0]}, keys=keys)
    assert verdicts(judge) == {1: 1, 0: 2}


def test_our_own_scores_of_other_prompts_are_refused(stored):
    keys = keys_with_prompts()
    keys[1] = keys[1]._replace(prompt="another")
    with pytest.raises(ValueError, match="another prompt than in line 2"):
        read_other_judges(str(stored), "my.jsonl", keys)


def test_both_judges_are_compared_on_the_rows_of_both(read):
    # ours: right, wrong, right, right; theirs has three rows, all right: 2/3 against 1
    ours = judged_set("us", "my.jsonl", coins([1, 0, 1, 1]))
    (other,) = read(*({"id": 100 + i, "scores": [1, 0]} for i in range(3)),
                    {"id": "elsewhere", "scores": [1, 0]}, keys=ours.keys)
    made = compare_with(pairs, ours, other)
    first, second = made["reports"]
    assert (first["score"], second["score"]) == (pytest.approx(2 / 3), 1)
    assert second["lines"][0]["difference"][0] == pytest.approx(1 / 3)

    text = show_comparison(made)
    assert "3 rows of both, 1 row without scores, 1 score without a row" in text
    assert "A = us" in text and "B = " in text and " B - A +0.333 [" in text


def test_best_of_n_scores_are_compared_by_the_rules_of_the_file(read):
    ours = judged_set("us", "my.jsonl", [judged([0, 3, 2, 1])])
    (other,) = read({"line": 1, "scores": [9, 3, 2, 1]}, keys=ours.keys)
    first, second = compare_with(best_of_n, ours, other)["reports"]
    assert (first["score"], second["score"]) == (0, 1)
