"""The report on hand-made judged items: intervals, differences, length baselines, the printed
tables, and the files that are written.

    python -m pytest tests/test_report.py
"""

import json

import numpy as np
import pytest
from test_benchmarks import SUBSETS, judged, lines_of, pair

from data import Item
from evaluate import Judged
from infra.benchmarks import Line, Measured, pair_stats, pairs
from infra.report import (
    RESAMPLES,
    check_writable,
    report,
    results_folder,
    score_rows,
    show,
    without_texts,
    write_results,
)


def coins(rights):
    """Pairs of a prompt each, right or wrong."""
    items = []
    for prompt, right in enumerate(rights):
        items.append(judged([right, 0.5], prompt=prompt))
    return items


def in_all_lines(lines, key):
    """What a report says under this key, in each of its lines."""
    return [line[key] for line in lines]


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


def test_intervals_are_resampled_by_prompt():
    # 4 prompts of 25 rows that all agree within a prompt: by row the interval of 0.5 would be about
    # +-0.1; by prompt it must reach 0 and 1 (all four the same: 2 of 16 resamples, 6 % each side)
    items = []
    for prompt, right in enumerate((0, 1, 0, 1)):
        items += [judged([right, 0.5], prompt=prompt)] * 25
    summary = report(pairs, items).summary
    assert summary["score"] == 0.5
    assert (summary["low"], summary["high"]) == (0, 1)
    assert (summary["prompts"], summary["n"]) == (4, 100)


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


# Of 4 prompts model a has 2 right, b these 2 and a third: b - a = 1/4, and never below 0 in any
# sample. A sample holds the third prompt X times, X binomial (4, 1/4), and then b - a = X / 4:
# P(X = 0) = 0.316 and P(X <= 2) = 0.949 < 0.975 < P(X <= 3) = 0.996, so the interval is
# [0, 3/4]. Unpaired it would begin below 0.
MODEL_A, MODEL_B = coins([1, 1, 0, 0]), coins([1, 1, 1, 0])


def test_the_difference_of_two_models_is_paired():
    first = report(pairs, MODEL_A)
    second = report(pairs, MODEL_B, first.draws)
    assert "difference" not in first.summary["lines"][0]
    assert second.summary["lines"][0]["difference"] == [0.25, 0, 0.75]


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
    assert show([full_report("runs/a", "dir/some.jsonl", items)]) == """
                                                                runs/a
                                              score [95 %]  if shorter  longer wins      n
some: all                                   0.667 [0.000 1.000]  0.500        0.333      3
some: x                                     1.000 [1.000 1.000]  1.000        0.500      2
3 prompts, 6 rows, 0 truncated rows
both orders agree 0.667, first slot wins 0.667, right in one order 0.833, right 0.667"""


def test_accuracy_where_the_better_one_is_shorter_is_a_dash_where_it_never_is():
    text = show([full_report("a", "f.jsonl", [judged([1, 0], lengths=(5, 1))])])
    assert "1.000 [1.000 1.000]      -        1.000      1" in text


def test_single_context_has_no_orders_to_print():
    one = full_report("a", "f.jsonl", MODEL_A) | {"format": {"context": "single"}}
    assert show([one]).endswith("\n4 prompts, 8 rows, 0 truncated rows")


def test_several_models_stand_side_by_side_with_their_differences():
    draws = report(pairs, MODEL_A).draws
    reports = [full_report("a", "x", MODEL_A), full_report("b", "x", MODEL_B, draws)]
    _, names, heads, row, difference = show(reports).splitlines()
    assert names.split() == ["a", "b"]
    assert heads.count("score [95 %]") == 2
    assert "0.500 [" in row and "0.750 [" in row
    assert difference.startswith("    less that of the first model  ")
    assert difference.rstrip().endswith("+0.250 [+0.000 +0.750]")


def test_of_several_files_the_first_lines_are_shown():
    items = [pair(1, -1, subset="part")]
    text = show([full_report("a", "x", items), full_report("a", "y", items)])
    assert "x: all" in text and "y: all" in text
    assert "part" not in text


# ------------------------------------------------------------------------------------ the files


def test_rows_of_scores_have_each_comparison_in_both_orders_and_their_mean():
    # ln 2: 2/3 for the first slot; shown second, its rival has -ln 3: 1/4, so it has 3/4
    item = Item("p", ("a", "b"), subset="s", tag="t:1")
    table = np.array([[0, np.log(2)], [-np.log(3), 0]])
    (row,) = score_rows(Judged(item, table))
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
    }


def test_rows_of_scores_are_those_that_were_asked():
    item = Item("p", tuple("abcd"), good=2, good_against_bad=True)
    rows = score_rows(Judged(item, np.zeros((4, 4))))
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


def test_results_are_written_whole(tmp_path):
    items = [without_texts(item) for item in MODEL_A]
    reports = [full_report("a", "x", MODEL_A), full_report("b", "x", MODEL_B)]
    out = tmp_path / "out"
    write_results(out, "python evaluate.py a b x", reports, [items, items])
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "scores.jsonl"]

    results = read_results(out)
    assert results["command"] == "python evaluate.py a b x"
    assert results["versions"].keys() == {"tinyrm", "torch", "python"}
    assert results["resamples"] == RESAMPLES
    assert results["reports"] == reports


def test_each_row_of_scores_says_which_report_it_is_of(tmp_path):
    reports = [full_report("a", "x", MODEL_A), full_report("b", "y", MODEL_B)]
    write_results(tmp_path, "command", reports, [MODEL_A, MODEL_B])
    lines = (tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["model"], row["data"]) for row in rows] == [("a", "x")] * 4 + [("b", "y")] * 4
    (row, *_) = score_rows(MODEL_A[0])
    assert rows[0] == {"model": "a", "data": "x"} | row


def test_results_that_cannot_be_written_leave_those_of_before(tmp_path):
    reports = [full_report("a", "x", MODEL_A)]
    write_results(tmp_path, "first", reports, [MODEL_A])
    broken = reports[0] | {"score": float("nan")}  # no JSON
    with pytest.raises(ValueError):
        write_results(tmp_path, "second", [broken], [MODEL_B])
    assert read_results(tmp_path)["command"] == "first"
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written


def test_results_go_into_the_run_or_under_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert str(results_folder([str(run)], ["a/x.jsonl", "rmbench"])) == "runs/eval-run/x+rmbench"
    (run / "run.json").write_text("{}")
    assert results_folder([str(run)], ["a/x.jsonl"]) == run / "eval" / "x"
    assert str(results_folder([str(run), "org/b"], ["x.jsonl"])) == "runs/eval-run+b/x"


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_writable(tmp_path / "new" / "folder")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="is no folder to write in"):
            check_writable(path)
    assert list(tmp_path.iterdir()) == [file]
