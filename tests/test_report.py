"""The report on hand-made judged items: counts, intervals, differences, length baselines, the
printed tables, and the files that are written.

    python -m pytest tests/test_report.py
"""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks import SUBSETS, judged, lines_of, pair

from data import Item
from evaluate import Judged
from infra import intervals
from infra.benchmarks import BENCHMARKS, Line, Measured, RowKey, pair_stats, pairs
from infra.printed import LEGEND, show
from infra.report import RESAMPLES, report, without_texts
from infra.results import JudgedSet, check_writable, results_folder, score_lines, write_results


def coins(rights):
    """Pairs of a prompt each, right or wrong."""
    items = []
    for prompt, right in enumerate(rights):
        items.append(judged([right, 0.5], prompt=prompt))
    return items


def in_all_lines(lines, key):
    """What a report says under this key, in each of its lines."""
    return [line[key] for line in lines]


def keys_of(items):
    """Keys of items that are the lines of a file, with ids from 100."""
    keys = []
    for index, one in enumerate(items):
        size = len(one.item.responses)
        keys.append(RowKey(index, "", index + 1, 100 + index, one.item.subset, "", size,
                           one.item.good, len(one.item.comparisons())))
    return keys


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------ the lines


def test_a_line_is_the_weighted_mean_of_the_means_of_its_names():
    # a: (1 + 0) / 2 = 0.5; b: 1; nobody has c, so a weighs 1 of 1 + 3: (1 * 0.5 + 3 * 1) / 4
    # the bonus comes on top: + 2 * 1 / 4
    measured = Measured(
        values=[{"a": 1, "bonus": 1}, {"a": 0}, {"b": 1}],
        lines=[
            Line("mixed", {"a": 1, "b": 3, "c": 5}),
            Line("more", {"a": 1, "b": 3}, bonus={"bonus": 2}),
        ],
    )
    summary = report(lambda judged: measured, coins([1, 1, 1])).summary
    assert in_all_lines(summary["lines"], "score") == [3.5 / 4, 5.5 / 4]
    assert summary["score"] == 3.5 / 4  # the first line


def test_a_line_that_nobody_has_a_part_in_is_left_out():
    measured = Measured([{"a": 1}], [Line("a", {"a": 1}), Line("b", {"b": 1})])
    summary = report(lambda judged: measured, coins([1])).summary
    assert in_all_lines(summary["lines"], "name") == ["a"]


def test_a_line_counts_the_items_that_have_a_part_in_it():
    items = [pair(1, -1, subset="x"), pair(1, 2, subset="y", prompt=1)]
    lines = report(pairs, items).summary["lines"]
    assert in_all_lines(lines, "name") == ["all", "x", "y"]
    assert in_all_lines(lines, "n") == [2, 1, 1]
    assert in_all_lines(lines, "comparisons") == [2, 1, 1]
    assert in_all_lines(lines, "right") == [1, 1, 0]
    assert in_all_lines(lines, "both orders agree") == [1, 1, 0]


def test_a_line_of_rmbench_counts_its_own_cells():
    # Better lengths 1, 2, 3 against 2, 2, 2; only the first style of the better ones wins, against
    # all. Hard is 0 over 1, 0 over 2, 1 over 2: two of three right; its better one is the shorter
    # in the first two, which are right.
    one = judged([5, 0, 0, 1, 1, 1], 3, "chat", lengths=[1, 2, 3, 2, 2, 2])
    lines = lines_of("rmbench", [one])
    counts = [(line["comparisons"], line["right"]) for line in lines.values()]
    assert counts[:4] == [(9, 3), (3, 0), (3, 1), (3, 2)]  # overall, easy, normal, hard
    hard = lines["hard"]
    assert (hard["better is shorter"], hard["right there"]) == (2, 2)
    assert lines["style 2 over 0"]["comparisons"] == 1


def test_the_accuracy_where_shorter_follows_the_rule_of_its_line():
    # one game won, one lost: right by the mean of both orders, and not by JudgeBench's two games
    lines = lines_of("judgebench", [pair(3, 1, subset="gpt: mmlu-pro")])
    assert lines["gpt: two games"]["right"] == lines["gpt: two games"]["right there"] == 0
    assert lines["gpt: orders averaged"]["right there"] == 1


@pytest.mark.parametrize("name", ["best of n", "rewardbench2"])
def test_a_line_of_picks_has_no_counts_of_pairs(name):
    for line in lines_of(name, [judged([3, 1, 2, 0], subset="Math")]).values():
        assert line.keys() == {"name", "score", "low", "high", "n", "longer wins"}


def test_counts_are_integers_unless_they_have_halves_of_ties():
    line = lines_of("pairs", [pair(1, -1), pair(0, 0, prompt=1)])["all"]
    assert repr(line["comparisons"]) == repr(line["both orders agree"]) == "2"
    assert line["right"] == 1.5


def test_shares_of_right_verdicts_are_called_accuracy_and_all_else_score():
    items = [judged([1, 0], subset="hep-go"), judged([1, 0], subset="math-prm", prompt=1)]
    assert report(pairs, items).summary["measure"] == "accuracy"
    assert report(BENCHMARKS["rewardbench"].measure, items).summary["measure"] == "score"


def test_every_line_says_its_length_baseline_and_the_hard_half():
    # lengths 5 > 1: the chosen is longer, right; 1 < 5: the chosen is shorter, wrong
    items = [
        judged([1, 0], lengths=(5, 1)),
        judged([0, 1], lengths=(1, 5), prompt=1),
    ]
    line = lines_of("pairs", items)["all"]
    assert line["longer wins"] == 0.5
    assert line["better is shorter"] == 1
    assert line["right there"] == 0


def test_equally_long_responses_are_a_tie_for_the_length_baseline():
    assert lines_of("pairs", [judged([1, 0], lengths=(3, 3))])["all"]["longer wins"] == 0.5


# ------------------------------------------------------------------------------------ intervals


def clusters(rights):
    """25 rows of each prompt, all with one verdict."""
    items = []
    for prompt, right in enumerate(rights):
        items += [judged([right, 0.5], prompt=prompt)] * 25
    return items


@pytest.mark.parametrize(
    "accuracy, n, expected",  # Wilson's, by hand: 5 of 10; 10 of 10: 10 / (10 + 1.96^2)
    [(0.5, 10, (0.2366, 0.7634)), (1.0, 10, (0.7225, 1.0)), (0.0, 10, (0.0, 0.2775))],
)
def test_wilsons_interval_by_hand(accuracy, n, expected):
    assert intervals.wilson(accuracy, n) == pytest.approx(expected, abs=1e-4)


def test_intervals_are_resampled_by_prompt():
    # 40 prompts, half of them right: 0.5 +- 1.96 sqrt(0.25 / 40) = 0.5 +- 0.155, whatever their
    # rows; by row it would be +- 0.031
    summary = report(pairs, clusters([i % 2 for i in range(40)])).summary
    assert (summary["prompts"], summary["n"]) == (40, 1000)
    assert summary["low"] == pytest.approx(0.5 - 0.155, abs=0.02)
    assert summary["high"] == pytest.approx(0.5 + 0.155, abs=0.02)


def wilson(right, n):
    """By the roots p of (share - p)^2 = z^2 p (1 - p) / n."""
    z2, share = 1.96**2 / n, right / n
    return sorted(np.roots([1 + z2, -2 * share - z2, share**2]))


@pytest.mark.parametrize(("right", "n"), [(5, 5), (0, 12), (400, 400), (3, 7), (395, 400)])
def test_intervals_of_few_right_or_few_wrong_are_wilsons(right, n):
    summary = report(pairs, coins([i < right for i in range(n)])).summary
    low, high = wilson(right, n)
    assert summary["low"] == pytest.approx(low, abs=0.004)  # n is estimated from 1,000 samples
    assert summary["high"] == pytest.approx(high, abs=0.004)
    assert 0 <= summary["low"] <= summary["score"] <= summary["high"] <= 1


def test_wilsons_interval_counts_prompts_and_not_rows():
    summary = report(pairs, clusters([1] * 4)).summary
    assert (summary["low"], summary["high"]) == (pytest.approx(4 / (4 + 1.96**2)), 1)


def test_a_line_of_margins_has_no_interval_of_shares():
    # tanh can be negative: the percentiles of one prompt are its value
    items = [judged([4, 4, 5], 2, "Ties", "tied:1")]
    line = lines_of("rewardbench2", items)["Ties, tanh of smaller gap over spread"]
    assert line["low"] == line["score"] == line["high"] == -1


def test_intervals_of_independent_rows_match_the_normal_approximation():
    # 400 prompts, 300 right: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.0424
    summary = report(pairs, coins([i % 4 != 0 for i in range(400)])).summary
    assert summary["low"] == pytest.approx(0.75 - 0.0424, abs=0.006)
    assert summary["high"] == pytest.approx(0.75 + 0.0424, abs=0.006)


def test_intervals_are_the_same_each_time():
    items = coins([i % 3 for i in range(50)])
    assert report(pairs, items).summary == report(pairs, items).summary


def test_an_interval_needs_no_item_of_every_subset_in_a_sample():
    # ten subsets of one prompt each: hardly a sample has all of them
    items = []
    for i, subset in enumerate(list(SUBSETS)[:10]):
        items.append(judged([i % 2, 0.5], subset=subset, prompt=i))
    for line in lines_of("rewardbench", items).values():
        assert 0 <= line["low"] <= line["score"] <= line["high"] <= 1


# Of 400 prompts model a has 200 right, b these and 40 more: b - a = 0.1, with a standard deviation
# of sqrt(0.1 * 0.9 / 400) = 0.015. Unpaired it would be 0.035.
MODEL_A = coins([i < 200 for i in range(400)])
MODEL_B = coins([i < 240 for i in range(400)])


def difference(first, second):
    draws = report(pairs, first).draws
    return report(pairs, second, draws).summary["lines"][0]["difference"]


def test_the_difference_of_two_models_is_paired():
    assert "difference" not in report(pairs, MODEL_A).summary["lines"][0]
    expected = [0.1, 0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015]
    assert difference(MODEL_A, MODEL_B) == pytest.approx(expected, abs=0.003)


def test_models_that_differ_on_few_prompts_are_not_known_to_be_equal():
    # Agresti and Min with b = c = 0 of n = 12: 0 +- 1.96 sqrt(1 / 2 + 1 / 2) / 14
    items = coins([1] * 12)
    reach = 1.96 / 14
    assert difference(items, items) == pytest.approx([0, -reach, reach])


def test_one_differing_prompt_of_four_shows_no_difference():
    # b = 1, c = 0: d = 1/6, +- 1.96 sqrt(1.5 + 0.5 - 1/6) / 6
    d, low, high = difference(coins([1, 1, 0, 0]), coins([1, 1, 1, 0]))
    assert d == 0.25
    assert low == pytest.approx(1 / 6 - 1.96 * np.sqrt(2 - 1 / 6) / 6, abs=0.02)
    assert high == pytest.approx(1 / 6 + 1.96 * np.sqrt(2 - 1 / 6) / 6, abs=0.02)


# ----------------------------------------------------------------------------------- the tables


def full_report(model, data, items, first_draws=None):
    """A report as results.json has it."""
    about = {
        "model": model,
        "data": data,
        "format": {"context": "pair"},
        "seen": {"rows": 2 * len(items), "truncated rows": 0},
    }
    return about | report(pairs, items, first_draws).summary


def test_a_table_of_one_report_has_all_its_lines():
    items = [
        pair(1, -1, subset="x", lengths=(3, 5)),
        pair(1, 2, prompt=1),
        pair(1, -1, subset="x", lengths=(5, 3), prompt=2),
    ]
    text = show([full_report("runs/a", "dir/some.jsonl", items)])
    assert text.startswith("""
dir/some.jsonl
              accuracy [95 %]                right/n       if shorter  longer wins
  all         0.667 [0.202 0.940]                2/3       0.500 of 2        0.333
  x           1.000 [0.342 1.000]                2/2       1.000 of 1        0.500
3 prompts, 6 rows, 0 truncated rows
all, 3 comparisons:
  both orders agree 0.667: right there 1.000 of 2, elsewhere 0.000 of 1
  first slot wins 0.667; right in one order 0.833, by both 0.667
  mean confidence 0.""")


def test_accuracy_where_the_better_one_is_shorter_is_a_dash_where_it_never_is():
    text = show([full_report("a", "f.jsonl", [judged([1, 0], lengths=(5, 1))])])
    (row,) = [line.split() for line in text.splitlines() if line.startswith("  all ")]
    assert row[-3:] == ["1/1", "-", "1.000"]


def test_single_context_has_no_orders_to_print():
    one = full_report("a", "f.jsonl", MODEL_A) | {"format": {"context": "single"}}
    *_, seen, _, calibration, _ = show([one]).splitlines()
    assert seen == "400 prompts, 800 rows, 0 truncated rows"
    assert calibration.startswith("  mean confidence ")


def test_no_name_is_cut():
    names = ["long " * 30 + end for end in ("a", "b")]
    items = [judged([1, 0], subset=name, prompt=name) for name in names]
    models = ["m" * 90 + end for end in "ab"]
    draws = report(pairs, items).draws
    reports = [full_report(model, "d" * 90, items, draws) for model in models]
    for text in (*names, *models, "d" * 90):
        assert text in show(reports)


def test_several_models_are_compared_line_by_line_in_every_file():
    reports = []
    for file in ("x", "y"):
        items = [judged([1, 0], subset="s", prompt=i) for i in range(3)]
        draws = report(pairs, items).draws
        reports += [full_report("a", file, items), full_report("b", file, items, draws)]
    text = show(reports).splitlines()
    assert text[:3] == ["", "A = a", "B = b"]
    differences = [line.split() for line in text if "B - A" in line]
    assert len(differences) == 4  # two lines of two files
    assert differences[0][:4] == ["B", "-", "A", "+0.000"]


def test_the_legend_has_a_line_for_each_column():
    heads = show([full_report("a", "f", MODEL_A)]).splitlines()[2]
    for column in ("accuracy", "[95 %]", "right/n", "if shorter", "longer wins"):
        assert column in heads
        assert f"\n{column}  " in LEGEND
    for line in LEGEND.splitlines():
        assert len(line) <= 100


# ------------------------------------------------------------------------------------ the files


def test_rows_of_scores_have_each_comparison_in_both_orders_and_their_mean():
    # ln 2: 2/3 for the first slot; shown second, its rival has -ln 3: 1/4, so it has 3/4
    item = Item("p", ("a", "b"), subset="s", tag="t:1")
    table = np.array([[0, np.log(2)], [-np.log(3), 0]])
    (row,) = score_lines(Judged(item, table))
    assert row == {
        "prompt": "p",
        "subset": "s",
        "tag": "t:1",
        "good": 1,
        "a": 0,
        "b": 1,
        "a_first": pytest.approx(2 / 3),
        "b_first": pytest.approx(3 / 4),
        "mean": pytest.approx(17 / 24),
        "log_odds_a_first": np.log(2),
        "log_odds_b_first": np.log(3),
    }


def test_rows_of_scores_keep_a_difference_that_rounds_to_a_tie():
    (row,) = score_lines(pair(60.0, 50.0))
    assert row["mean"] == 0.5
    assert row["log_odds_a_first"] + row["log_odds_b_first"] == 10


def test_rows_of_scores_are_those_that_were_asked():
    item = Item("p", tuple("abcd"), good=2, good_against_bad=True)
    rows = score_lines(Judged(item, np.zeros((4, 4))))
    asked = [(row["a"], row["b"]) for row in rows]
    assert asked == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_what_is_kept_without_texts_is_enough():
    item = Item("some  Prompt", ("one", "three"), subset="s", where="f, line 1")
    whole = Judged(item, np.array([[0, 1.0], [-2.0, 0]]))
    kept = without_texts(whole)
    assert pair_stats(kept) == pair_stats(whole)
    assert kept.item.comparisons() == [(0, 1)]
    assert report(pairs, [kept]).summary == report(pairs, [whole]).summary


def test_what_is_kept_without_texts_has_none():
    item = Item("some  Prompt", ("one", "three"), where="f, line 1")
    kept = without_texts(Judged(item, np.zeros((2, 2))))
    for text in ("Prompt", "one", "three", "line"):
        assert text not in str(kept.item)


def test_without_texts_equal_prompts_stay_equal_and_others_differ():
    def key(prompt):
        item = Item(prompt, ("a", "b"))
        return without_texts(Judged(item, np.zeros((2, 2)))).item.prompt

    assert key("One  two") == key("one two")  # case and white space do not count
    assert key("one two") != key("one three")


ABOUT = {"command": "python evaluate.py a b x", "asked": {"limit": 0}}


def judged_set(model, data, items):
    made = report(pairs, items)
    return JudgedSet(full_report(model, data, items), items, keys_of(items), made.draws)


def read_scores(folder):
    text = (folder / "scores.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_results_are_written_whole(tmp_path):
    sets = [judged_set("a", "x", MODEL_A), judged_set("b", "x", MODEL_B)]
    out = tmp_path / "out"
    write_results(out, ABOUT, sets)
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "scores.jsonl"]

    results = read_results(out)
    assert results["command"] == "python evaluate.py a b x"
    assert results["versions"].keys() == {"tinyrm", "torch", "python"}
    assert results["resamples"] == RESAMPLES
    assert results["reports"] == [each.report for each in sets]


def test_each_row_of_scores_says_which_row_of_which_file_it_is_of(tmp_path):
    items = MODEL_A[:4]
    write_results(tmp_path, ABOUT, [judged_set("a", "x", items), judged_set("b", "y", items)])
    rows = read_scores(tmp_path)
    assert [(row["model"], row["data"]) for row in rows] == [("a", "x")] * 4 + [("b", "y")] * 4
    assert [(row["line"], row["id"]) for row in rows[:4]] == [(i, 99 + i) for i in (1, 2, 3, 4)]
    (row,) = score_lines(items[0])
    origin = {"model": "a", "data": "x", "split": "", "line": 1, "id": 100}
    assert rows[0] == origin | row


def test_rows_of_scores_come_in_the_order_of_the_file(tmp_path):
    one = judged_set("a", "x", MODEL_A[:4])
    in_other_order = one._replace(keys=one.keys[::-1], judged=one.judged[::-1])
    write_results(tmp_path, ABOUT, [in_other_order])
    rows = read_scores(tmp_path)
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert [row["prompt"] for row in rows] == ["0", "1", "2", "3"]


def test_results_that_cannot_be_written_leave_those_of_before(tmp_path):
    one = judged_set("a", "x", MODEL_A)
    write_results(tmp_path, ABOUT, [one])
    broken = one._replace(report=one.report | {"score": float("nan")})  # no JSON
    with pytest.raises(ValueError):
        write_results(tmp_path, {"command": "second"}, [broken])
    assert read_results(tmp_path)["command"] == ABOUT["command"]
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written


def test_a_full_disk_is_a_line_that_names_the_file(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="No space left on device.*--out") as error:
        write_results(out, ABOUT, [judged_set("a", "x", MODEL_A[:4])])
    assert str(error.value).startswith(f"{out / 'results.json'}: ")
    assert "\n" not in str(error.value)
    assert [path.name for path in out.iterdir()] == ["scores.jsonl"]  # whole, and no *.tmp


def test_results_go_into_the_run_or_under_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    folder = results_folder([str(run)], ["a/x.jsonl", "rmbench"], {})
    assert str(folder) == "runs/eval-run/x+rmbench"
    (run / "run.json").write_text("{}")
    assert results_folder([str(run)], ["a/x.jsonl"], {}) == run / "eval" / "x"
    assert str(results_folder([str(run), "org/b"], ["x.jsonl"], {})) == "runs/eval-run+b/x"


def test_results_of_another_question_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, limit in enumerate([0, 10, 20, 10], 1):
        folder = results_folder(["m"], ["x.jsonl"], {"limit": limit})
        assert folder.name == ["x", "x-2", "x-3", "x-2"][number - 1]
        write_results(folder, {"asked": {"limit": limit}}, [judged_set("m", "x", MODEL_A[:2])])


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_writable(tmp_path / "new" / "folder")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="is no folder to write in"):
            check_writable(path)
    assert list(tmp_path.iterdir()) == [file]
