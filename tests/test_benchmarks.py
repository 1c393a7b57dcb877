"""The judge's arithmetic on hand-made tables of scores, without any model. Expected numbers are
worked out in comments, or come from a second, plain implementation written here.

    python -m pytest tests/test_benchmarks.py
"""

import itertools
import math
import random

import numpy as np
import pytest

import evaluate as e


def judged(scores, good=1, subset="", tag="", prompt=0, lengths=None):
    """The table of a model that judges alone: odds[i, j] = s_i - s_j in either order."""
    s = np.array(scores, float)
    responses = tuple("x" * n for n in (range(len(s)) if lengths is None else lengths))
    return e.Item(str(prompt), responses, good, subset, tag=tag, odds=np.subtract.outer(s, s))


def report(bench, rows):
    return e.report(e.FORMS.get(bench) or e.BENCHES[bench][0], rows)[0]


def pair(first, second, **more):
    """A pair whose better response has log-odds `first` when shown first; when it is shown second
    the other one, then first, has log-odds `second`."""
    return judged([0, 0], **more)._replace(odds=np.array([[0.0, first], [second, 0.0]]))


def lines_of(bench, rows):
    """{name: line} of a report."""
    return {line["name"]: line for line in report(bench, rows)["lines"]}


def values_of(bench, rows):
    return {name: line["score"] for name, line in lines_of(bench, rows).items()}


# --- verdicts --------------------------------------------------------------------------------


def test_the_mean_of_both_orders_decides_and_its_table_is_antisymmetric():
    # shown first the better one has 2 : 1 (log-odds ln 2), so 2/3; shown second, its rival has
    # 1 : 3 (log-odds -ln 3), so it has 3/4 itself; the mean is (2/3 + 3/4) / 2 = 17/24
    table = e.win_table(np.array([[0, math.log(2)], [-math.log(3), 0]]))
    assert table[0, 1] == pytest.approx(17 / 24)
    assert table[1, 0] == pytest.approx(7 / 24)
    assert table[0, 0] == table[1, 1] == 0.5


def test_the_sign_of_the_log_odds_is_the_verdict_of_the_mean_even_where_sigmoids_saturate():
    for x, y in itertools.product((-60.0, -3.0, 0.0, 1e-9, 2.0, 50.0), repeat=2):
        j = pair(x, y)
        assert e.counts(j)[1] == (1 + np.sign(x - y)) / 2
    assert e.win_table(pair(60.0, 50.0).odds)[0, 1] == pytest.approx(0.5)  # rounded to a tie, but
    assert e.counts(pair(60.0, 50.0))[1] == 1  # the verdict is not


def test_counts_of_one_pair_by_hand():
    assert e.COUNTS == ("comparisons", "right", "better is shorter", "right there",
                        "both orders agree", "first slot wins", "right in one order")
    # first slot wins both rows: right when shown first, wrong when second; the mean is wrong
    # (1 < 2); the orders disagree; lengths 0 < 1, so the better one is the shorter
    assert e.counts(pair(1.0, 2.0)) == [1, 0, 1, 0, 0, 1, 0.5]
    # right in both orders: the first slot wins one row of two
    assert e.counts(pair(1.0, -2.0)) == [1, 1, 1, 1, 1, 0.5, 1]
    # a tie: half a win
    assert e.counts(pair(0.0, 0.0)) == [1, 0.5, 1, 0.5, 1, 0.5, 0.5]


def test_a_tie_is_half_right_in_an_own_file_and_a_loss_in_rewardbench():
    rows = [pair(1, 0, subset="donotanswer"), pair(1, 1, subset="donotanswer", prompt=1)]
    assert values_of("pairs", rows)["all"] == 0.75
    assert values_of("rewardbench", rows)["Safety"] == 0.5


# --- RewardBench -----------------------------------------------------------------------------


def test_rewardbench_by_hand():
    # hep-cpp: 1 of 2 right, weight 164; math-prm: 3 of 4 right, weight 984 whatever its rows
    # Reasoning = (0.5 * 164 + 0.75 * 984) / (164 + 984) = (82 + 738) / 1148 = 820/1148
    # Safety: donotanswer 1 of 1 = 1;  overall = (820/1148 + 1) / 2
    # raw: three rows, two right, all alike
    rows = [judged([1, 0], subset="hep-cpp"), judged([0, 1], subset="hep-cpp")]
    rows += [judged([r, 0.5], subset="math-prm") for r in (1, 1, 1, 0)]
    rows += [judged([1, 0], subset="donotanswer")]
    rows += [judged([r, 0.5], subset=s) for r, s in ((1, "raw hep-go"), (1, "raw math-prm"),
                                                     (0, "raw math-prm"))]
    got = values_of("rewardbench", rows)
    assert got["Reasoning"] == pytest.approx(820 / 1148)
    assert got["overall (mean of the sections)"] == pytest.approx((820 / 1148 + 1) / 2)
    assert got["raw split, every row alike"] == pytest.approx(2 / 3)
    assert got["hep-cpp"] == 0.5 and "Chat" not in got


# An oracle of its own: rows per subset as in the paper's table, and the weights by which the
# leaderboard's code multiplies.
ROWS = dict(zip(
    "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med mt-bench-hard "
    "llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual refusals-dangerous refusals-offensive xstest-should-refuse "
    "xstest-should-respond donotanswer math-prm hep-cpp hep-go hep-java hep-js hep-python "
    "hep-rust".split(), (100, 95, 95, 28, 40, 37, 100, 134, 92, 47, 46, 100, 100, 154, 250, 136,
                         447, 164, 164, 164, 164, 164, 164), strict=True))
ENDS = {"Chat": 5, "Chat Hard": 11, "Safety": 16, "Reasoning": 23}


def rewardbench_oracle(wins):
    """wins: subset -> list of bool."""
    names, start, sections = list(ROWS), 0, []
    for end in ENDS.values():
        top = bottom = 0.0
        for name in names[start:end]:
            weight = 984 if name == "math-prm" else ROWS[name]
            top += weight * sum(wins[name]) / len(wins[name])
            bottom += weight
        sections.append(top / bottom)
        start = end
    return dict(zip(ENDS, sections, strict=True)) | {"overall": sum(sections) / 4}


def test_rewardbench_equals_an_independent_implementation():
    assert len(ROWS) == 23 and sum(ROWS.values()) == 2985
    lot, rows, wins = random.Random(5), [], {}
    for subset, n in ROWS.items():
        for _ in range(n):
            chosen, rejected = lot.choice([0, 1, 2]), lot.choice([0, 1, 2])
            rows.append(judged([chosen, rejected], subset=subset, prompt=len(rows)))
            wins.setdefault(subset, []).append(chosen > rejected)  # a tie is a loss
    got, want = values_of("rewardbench", rows), rewardbench_oracle(wins)
    assert got.pop("overall (mean of the sections)") == pytest.approx(want.pop("overall"))
    for name, value in (want | {s: sum(w) / len(w) for s, w in wins.items()}).items():
        assert got[name] == pytest.approx(value)


def test_rewardbenchs_length_baseline_is_what_a_scorer_of_lengths_would_get():
    lot, rows, by_length = random.Random(6), [], {}
    for subset in ROWS:
        for _ in range(5):
            a, b = lot.randrange(3), lot.randrange(3)
            rows.append(judged([lot.random(), lot.random()], subset=subset, lengths=(a, b),
                               prompt=len(rows)))
            by_length.setdefault(subset, []).append(a > b)
    line = report("rewardbench", rows)["lines"][0]
    assert line["longer wins"] == pytest.approx(rewardbench_oracle(by_length)["overall"])


# --- RewardBench 2 ---------------------------------------------------------------------------


def test_best_of_four_shares_the_credit_among_those_tied_for_the_top():
    top = [judged(s, subset="Math", prompt=i) for i, s in enumerate(
        ([3, 1, 2, 0], [1, 2, 0, 0], [2, 2, 2, 1], [1, 1, 1, 1]))]
    # 1 + 0 + 1/3 + 1/4 over four items
    assert values_of("rewardbench2", top)["Math"] == pytest.approx((1 + 1 / 3 + 1 / 4) / 4)


def ties_oracle(scores):
    """RewardBench 2's formula for Ties; scores: k -> {"ref"|"tied": (right, wrong)}."""
    accuracy, easy, hard, small = {"ref": [], "tied": []}, [], [], []
    for both in scores.values():
        gap = {}
        for kind, (right, wrong) in both.items():
            gap[kind] = min(right) - max(wrong)
            accuracy[kind].append(gap[kind] > 0)
        right, _ = both["tied"]
        spread = max(right) - min(right)
        easy.append(gap["tied"] > spread)
        hard.append(min(gap.values()) > spread)
        small.append(math.tanh(min(gap.values()) / spread - 1))
    mean = lambda x: sum(x) / len(x)  # noqa: E731
    return (0.3 * mean(accuracy["tied"]) + 0.3 * mean(accuracy["ref"]) + 0.2 * mean(easy)
            + 0.2 * mean(hard) + 0.01 * mean(small))


def test_ties_by_hand():
    # tied: right 5, 4, wrong 1: gap 3, spread 1; ref: right 3, wrong 1: gap 2. All hold, and
    # tanh(2 / 1 - 1) = tanh 1:  0.3 + 0.3 + 0.2 + 0.2 + 0.01 tanh 1
    rows = [judged([5, 4, 1], 2, "Ties", "tied:7", 1), judged([3, 1], 1, "Ties", "ref:7", 2)]
    assert values_of("rewardbench2", rows)["Ties"] == pytest.approx(1 + 0.01 * math.tanh(1))


def test_ties_equals_an_independent_implementation_and_overall_is_the_mean_of_subsets():
    lot, rows, scores = random.Random(1), [], {}
    for k in range(30):
        scores[k] = {"ref": ([lot.gauss(1, 1)], [lot.gauss(0, 1) for _ in range(3)]),
                     "tied": ([lot.gauss(2, 0.5) for _ in range(lot.randint(2, 9))],
                              [lot.gauss(0, 1) for _ in range(lot.randint(1, 12))])}
        rows += [judged(right + wrong, len(right), "Ties", f"{kind}:{k}", len(rows))
                 for kind, (right, wrong) in scores[k].items()]
    rows += [judged([1, 0, 0, 0], subset="Focus", prompt=99), judged([0, 1, 1, 1], subset="Math")]
    got = values_of("rewardbench2", rows)
    assert got["Ties"] == pytest.approx(ties_oracle(scores))
    assert got["overall (mean of the subsets)"] == pytest.approx((got["Ties"] + 1 + 0) / 3)


def test_ties_resamples_a_prompt_together_with_its_partner():
    rows = [judged([1, 0], 1, "Ties", f"{kind}:{k}", 10 * k + len(kind))
            for k in range(4) for kind in ("ref", "tied")]
    assert report("rewardbench2", rows)["prompts"] == 4


# --- RM-Bench --------------------------------------------------------------------------------


def rmbench_oracle(rows):
    """{(domain, level): accuracy} by the benchmark's own description, from scores alone."""
    cells = {}
    for domain, chosen, rejected in rows:
        for i in range(3):
            for j in range(3):
                level = "hard" if i < j else "easy" if i > j else "normal"
                cells.setdefault((domain.split("-")[0], level), []).append(chosen[i] > rejected[j])
    return {key: sum(wins) / len(wins) for key, wins in cells.items()}


def test_rmbench_equals_an_independent_implementation():
    lot, rows, plain = random.Random(2), [], []
    for domain in e.STYLES:
        for _ in range(7 + len(domain)):
            s = [lot.choice([0, 1, 2, 3]) for _ in range(6)]
            rows.append(judged(s, 3, domain, prompt=len(rows)))
            plain.append((domain, s[:3], s[3:]))
    got, want = values_of("rmbench", rows), rmbench_oracle(plain)
    for (domain, level), value in want.items():
        assert got[f"{domain}, {level}"] == pytest.approx(value)
    for level in ("easy", "normal", "hard"):
        four = [want[d, level] for d in ("chat", "code", "math", "safety")]
        assert got[level] == pytest.approx(sum(four) / 4)
    assert got["overall (mean of the domains)"] == pytest.approx(sum(want.values()) / 12)
    for r, c in itertools.product(range(3), repeat=2):  # the matrix: the mean of four domains'
        wins = [[chosen[r] > rejected[c] for d, chosen, rejected in plain if d.startswith(domain)]
                for domain in ("chat", "code", "math", "safety")]
        assert got[f"style {r} over {c}"] == pytest.approx(sum(sum(w) / len(w) for w in wins) / 4)


def test_a_judge_of_lengths_gets_rmbenchs_easy_cells_and_none_of_the_hard_ones():
    # styles 0, 1, 2 have lengths 1, 2, 3 on both sides: longer wins = 1 (easy), 0, 0
    row = judged([0] * 6, 3, "chat", lengths=[1, 2, 3, 1, 2, 3])
    lines = lines_of("rmbench", [row])
    assert [lines[n]["longer wins"] for n in ("easy", "normal", "hard")] == [1, 0, 0]
    assert [lines[n]["score"] for n in ("easy", "normal", "hard")] == [0, 0, 0]  # ties are losses


# --- JudgeBench ------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second", "right"), [
    (1, -1, 1),  # right, right
    (1, 1, 0),  # right, wrong: a tie, which is not right
    (1, 0, 1),  # right, tied
    (0, 0, 0),
    (0, 1, 0),  # tied, wrong
    (-1, 1, 0),
])
def test_judgebench_needs_both_games_or_one_and_a_tie(first, second, right):
    rows = [pair(first, second, subset="gpt: mmlu-pro")]
    assert values_of("judgebench", rows)["gpt: two games"] == right


def test_judgebench_keeps_its_splits_apart_and_gpt_is_the_score():
    rows = [pair(1, -1, subset="gpt: mmlu-pro"), pair(-1, 1, subset="gpt: livecodebench", prompt=1),
            *[pair(-1, 1, subset="claude: mmlu-pro", prompt=2 + i) for i in range(3)]]
    r = report("judgebench", rows)
    assert r["score"] == 0.5 and r["n"] == 2
    assert values_of("judgebench", rows)["claude: two games"] == 0


# --- best of N -------------------------------------------------------------------------------


def brute(scores, good, n):
    """All draws of n, each with the tied tops by lot."""
    hits = []
    for draw in itertools.combinations(range(len(scores)), n):
        top = [i for i in draw if scores[i] == max(scores[k] for k in draw)]
        hits.append(sum(i < good for i in top) / len(top))
    return sum(hits) / len(hits)


def test_the_best_of_n_curve_equals_all_draws_enumerated():
    lot = random.Random(3)
    for _ in range(20):
        k, good = lot.randint(2, 7), lot.randint(1, 3)
        scores = np.array([lot.choice([0, 1, 2, 3]) for _ in range(k)])
        for n in range(1, k + 1):
            assert e.best_of(scores, good, n) == pytest.approx(brute(scores, good, n))


def test_best_of_n_lines_by_hand():
    # item 1: the right one is the best of 4: from 1 drawn 1/4, from 2 it is in half of the draws
    # item 2: the right one is the worst of 2: from 1 1/2, from 2 0; it has no 4 to draw
    rows = [judged([3, 2, 1, 0], prompt=0), judged([0, 1], prompt=1)]
    got = values_of("best of n", rows)
    assert got["the pick from 1"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert got["the pick from 2"] == pytest.approx((1 / 2 + 0) / 2)
    assert got["the pick from 4"] == 1
    assert got["the pick from all"] == 0.5


def test_strengths_are_mean_win_probabilities_over_opponents():
    # ln 3 against 0 is 3/4; 0 against 0 is 1/2
    s = e.strengths(judged([math.log(3), 0, 0]).odds)
    assert s == pytest.approx([3 / 4, (1 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2])
    assert s[1] == s[2]


def test_levels_of_a_single_judge_differ_as_its_scores_do():
    s = [3.0, -1.0, 0.5, 0.25]
    level = e.levels(judged(s).odds)
    assert np.subtract.outer(s, s) == pytest.approx(np.subtract.outer(level, level))


# --- intervals -------------------------------------------------------------------------------


def test_intervals_are_resampled_by_prompt():
    # 4 prompts of 25 rows that all agree within a prompt: by row the interval of 0.5 would be about
    # +-0.1; by prompt it must reach 0 and 1 (all four the same: 2 of 16 resamples, 6 % each side)
    rows = [judged([r, 0.5], prompt=p) for p, r in enumerate((0, 1, 0, 1)) for _ in range(25)]
    line = report("pairs", rows)["lines"][0]
    assert (line["low"], line["score"], line["high"]) == (0, 0.5, 1)


def test_intervals_of_independent_rows_match_the_normal_approximation():
    # 400 prompts, 300 right: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.0424
    rows = [judged([i % 4 != 0, 0.5], prompt=i) for i in range(400)]
    line = report("pairs", rows)["lines"][0]
    assert line["low"] == pytest.approx(0.75 - 0.0424, abs=0.006)
    assert line["high"] == pytest.approx(0.75 + 0.0424, abs=0.006)


def test_intervals_are_the_same_each_time():
    rows = [judged([i % 3, 1], prompt=i) for i in range(50)]
    assert lines_of("pairs", rows) == lines_of("pairs", rows)


def test_the_difference_of_two_models_is_paired():
    # Of 4 prompts model a has 2 right, b these 2 and a third: b - a = 1/4, and never below 0 in any
    # sample. A sample holds the third prompt X times, X binomial (4, 1/4), and then b - a = X / 4:
    # P(X = 0) = 0.316 and P(X <= 2) = 0.949 < 0.975 < P(X <= 3) = 0.996, so the interval is
    # [0, 3/4]. Unpaired it would begin below 0.
    rows = [[judged([r, 0.5], prompt=p) for p, r in enumerate(right)]
            for right in ((1, 1, 0, 0), (1, 1, 1, 0))]
    draws = e.report(e.pairs, rows[0])[1]
    reports = [{"model": m, "data": d, "seen": {}, **e.report(e.pairs, judged, first)[0]}
               for m, judged, first in zip("ab", rows, (None, draws), strict=True) for d in "xy"]
    first, other = ([line for r in reports if r["model"] == m for line in r["lines"]] for m in "ab")
    assert len(first) == len(other) == 2 and not any("difference" in line for line in first)
    assert [line["difference"] for line in other] == [[0.25, 0, 0.75]] * 2
    assert e.show(reports).count("+0.250 [+0.000 +0.750]") == 2


def test_an_interval_needs_no_item_of_every_subset_in_a_sample():
    # ten subsets of one prompt each: hardly a sample has all of them
    rows = [judged([i % 2, 0.5], subset=s, prompt=i) for i, s in enumerate(list(ROWS)[:10])]
    for line in report("rewardbench", rows)["lines"]:
        assert 0 <= line["low"] <= line["score"] <= line["high"] <= 1


def test_every_line_says_its_length_baseline_and_the_hard_half():
    # lengths 5 > 1: the chosen is longer, right; 1 < 5: the chosen is shorter, wrong
    rows = [judged([1, 0], lengths=(5, 1)), judged([0, 1], lengths=(1, 5), prompt=1)]
    line = report("pairs", rows)["lines"][0]
    assert line["longer wins"] == 0.5
    assert (line["better is shorter"], line["right there"]) == (1, 0)
