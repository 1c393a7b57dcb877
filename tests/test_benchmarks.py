"""The benchmarks' arithmetic on hand-made tables of log-odds, without any model, and how their rows
become items. Expected numbers are worked out in comments, or come from a second, plain
implementation written here.

    python -m pytest tests/test_benchmarks.py
"""

import itertools
import json
import math
import random
import tracemalloc

import numpy as np
import pytest

from data import Item
from evaluate import Judged
from infra import benchmarks
from infra.benchmarks import BENCHMARKS, OWN_FORMS, PairStats, best_of, load_eval_set, pair_stats
from infra.report import report, without_texts

RM_BENCH_DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")


def judged(scores, good=1, subset="", tag="", prompt=0, lengths=None):
    """The table of a model that scores each response alone: s_i - s_j in either order. The
    responses have 0, 1, 2 ... characters if no lengths are given."""
    scores = np.array(scores, float)
    if lengths is None:
        lengths = range(len(scores))
    responses = tuple("x" * length for length in lengths)
    item = Item(str(prompt), responses, good, subset, tag=tag)
    return Judged(item, scores[:, None] - scores[None, :])


def pair(first, second, **more):
    """A pair whose better response has log-odds `first` when it is shown first; when it is shown
    second, the worse one, then first, has log-odds `second`."""
    return judged([0, 0], **more)._replace(log_odds=np.array([[0.0, first], [second, 0.0]]))


def lines_of(name, items):
    """{title: line} of the report of a benchmark, or of a form of own files."""
    measure = OWN_FORMS[name] if name in OWN_FORMS else BENCHMARKS[name].measure
    return {line["name"]: line for line in report(measure, items).summary["lines"]}


def scores_of(name, items):
    return {title: line["score"] for title, line in lines_of(name, items).items()}


def mean(values):
    return sum(values) / len(values)


# -------------------------------------------------------------------------------- a judged item


def test_the_probability_of_winning_is_the_mean_of_both_orders():
    # shown first the better one has 2 : 1 (log-odds ln 2), so 2/3; shown second, its rival has
    # 1 : 3 (log-odds -ln 3), so it has 3/4 itself; the mean is (2/3 + 3/4) / 2 = 17/24
    table = pair(math.log(2), -math.log(3)).win_probabilities()
    assert table[0, 1] == pytest.approx(17 / 24)
    assert table[1, 0] == pytest.approx(7 / 24)
    assert table[0, 0] == table[1, 1] == 0.5


@pytest.mark.parametrize("first", [-60.0, -3.0, 0.0, 1e-9, 2.0, 50.0])
@pytest.mark.parametrize("second", [-60.0, -3.0, 0.0, 1e-9, 2.0, 50.0])
def test_the_sign_of_the_log_odds_is_the_verdict_of_the_mean(first, second):
    assert pair_stats(pair(first, second)).right == (1 + np.sign(first - second)) / 2


def test_the_verdict_holds_where_sigmoids_saturate():
    one = pair(60.0, 50.0)
    assert one.win_probabilities()[0, 1] == 0.5  # rounded to a tie
    assert pair_stats(one).right == 1


def test_mean_win_probability_is_over_the_opponents():
    # ln 3 against 0 is 3/4; 0 against 0 is 1/2
    wins = judged([math.log(3), 0, 0]).mean_win_probability()
    assert wins == pytest.approx([3 / 4, (1 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2])
    assert wins[1] == wins[2]


def test_mean_log_odds_of_single_scores_differ_as_the_scores_do():
    scores = np.array([3.0, -1.0, 0.5, 0.25])
    level = judged(scores).mean_log_odds()
    assert level[:, None] - level == pytest.approx(scores[:, None] - scores)


def test_equal_responses_have_exactly_equal_means_in_any_order():
    # responses 2 and 5 are equal: the same log-odds against all others, and 0 against each other
    random_numbers = np.random.default_rng(0)
    for _ in range(50):
        table = random_numbers.normal(size=(7, 7))
        table[5], table[:, 5] = table[2], table[:, 2]
        table[[2, 5, 2, 5], [2, 5, 5, 2]] = 0
        one = Judged(Item("p", tuple("abcdefg")), table)
        for means in (one.mean_win_probability(), one.mean_log_odds()):
            assert means[2] == means[5]


def test_standing_counts_those_below_and_equals_stand_alike():
    assert judged([2, 0, 2, 1]).standing().tolist() == [2, 0, 2, 1]


def test_standing_tells_apart_what_rounds_to_a_tie():
    one = pair(60.0, 50.0)
    wins = one.mean_win_probability()
    assert wins[0] == wins[1]
    assert one.standing().tolist() == [1, 0]
    assert scores_of("best of n", [one])["the pick from all"] == 1


def test_one_response_alone_wins_a_half():
    one = judged([3.0])
    assert one.mean_win_probability() == [0.5] and one.mean_log_odds() == [0]


# ----------------------------------------------------------------------------------- one item


def test_counts_of_a_pair_whose_orders_disagree():
    # The first slot wins both rows: right when shown first, wrong when second; the mean is wrong
    # (1 < 2). The lengths are 0 < 1: the better one is the shorter.
    assert pair_stats(pair(1.0, 2.0)) == PairStats(
        comparisons=1,
        right=0,
        better_is_shorter=1,
        right_where_shorter=0,
        both_orders_agree=0,
        first_slot_wins=1,
        right_in_one_order=0.5,
    )


def test_counts_of_a_pair_that_is_right_in_both_orders():
    # the first slot wins one row of two
    assert pair_stats(pair(1.0, -2.0)) == PairStats(
        comparisons=1,
        right=1,
        better_is_shorter=1,
        right_where_shorter=1,
        both_orders_agree=1,
        first_slot_wins=0.5,
        right_in_one_order=1,
    )


def test_counts_of_a_tie_are_halves():
    assert pair_stats(pair(0.0, 0.0)) == PairStats(
        comparisons=1,
        right=0.5,
        better_is_shorter=1,
        right_where_shorter=0.5,
        both_orders_agree=1,
        first_slot_wins=0.5,
        right_in_one_order=0.5,
    )


def test_counts_are_over_each_better_response_against_each_worse_one():
    # 2 and 0 against 1: one of two is right; lengths 0 and 1 are below 2
    stats = pair_stats(judged([2, 0, 1], good=2))
    assert (stats.comparisons, stats.right, stats.better_is_shorter) == (2, 1, 2)


def brute_best_of(scores, good, n):
    """All draws of n, each with the tied tops by lot."""
    hits = []
    for draw in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in draw)
        top = [i < good for i in draw if scores[i] == best]
        hits.append(mean(top))
    return mean(hits)


def test_the_best_of_n_equals_all_draws_enumerated():
    lot = random.Random(3)
    for _ in range(20):
        k, good = lot.randint(2, 7), lot.randint(1, 3)
        scores = np.array(lot.choices([0, 1, 2, 3], k=k))
        for n in range(1, k + 1):
            assert best_of(scores, good, n) == pytest.approx(brute_best_of(scores, good, n))


# ------------------------------------------------------------------------------------ own files


def test_a_tie_is_half_right_in_a_file_of_pairs():
    items = [pair(1, 0, subset="donotanswer"), pair(1, 1, subset="donotanswer", prompt=1)]
    assert scores_of("pairs", items) == {"all": 0.75, "donotanswer": 0.75}


def test_best_of_n_lines_by_hand():
    # item 1: the right one is the best of 4: from 1 drawn 1/4, from 2 it is in half of the draws
    # item 2: the right one is the worst of 2: from 1 1/2, from 2 0; it has no 4 to draw
    items = [judged([3, 2, 1, 0], prompt=0), judged([0, 1], prompt=1)]
    assert scores_of("best of n", items) == pytest.approx({
        "the pick from all": 0.5,
        "the pick from 1": (1 / 4 + 1 / 2) / 2,
        "the pick from 2": (1 / 2 + 0) / 2,
        "the pick from 4": 1,
    })


# ---------------------------------------------------------------------------------- RewardBench


def test_a_tie_is_a_loss_in_rewardbench():
    items = [pair(1, 0, subset="donotanswer"), pair(1, 1, subset="donotanswer", prompt=1)]
    assert scores_of("rewardbench", items)["Safety"] == 0.5


def test_rewardbench_by_hand():
    # hep-cpp: 1 of 2 right, weight 164; math-prm: 3 of 4 right, weight 984 whatever its rows
    # Reasoning = (0.5 * 164 + 0.75 * 984) / (164 + 984) = (82 + 738) / 1148 = 820/1148
    # Safety: donotanswer 1 of 1 = 1;  overall = (820/1148 + 1) / 2
    # raw: three rows, two right, all alike
    items = [
        judged([1, 0], subset="hep-cpp"),
        judged([0, 1], subset="hep-cpp"),
        judged([1, 0.5], subset="math-prm"),
        judged([1, 0.5], subset="math-prm"),
        judged([1, 0.5], subset="math-prm"),
        judged([0, 0.5], subset="math-prm"),
        judged([1, 0], subset="donotanswer"),
        judged([1, 0.5], subset="raw hep-go"),
        judged([1, 0.5], subset="raw math-prm"),
        judged([0, 0.5], subset="raw math-prm"),
    ]
    assert scores_of("rewardbench", items) == pytest.approx({
        "overall (mean of the sections)": (820 / 1148 + 1) / 2,
        "raw split, every row alike": 2 / 3,
        "Safety": 1,
        "Reasoning": 820 / 1148,
        "donotanswer": 1,
        "math-prm": 0.75,
        "hep-cpp": 0.5,
    })


# An oracle of its own: rows per subset as in the paper's table, and the weights by which the
# leaderboard's code multiplies.
ROWS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
SUBSETS = {subset: rows for section in ROWS.values() for subset, rows in section.items()}


def rewardbench_oracle(wins):
    """wins {subset: list of bool} -> {section, "overall": score}."""
    scores = {}
    for section, subsets in ROWS.items():
        top = bottom = 0.0
        for subset, rows in subsets.items():
            weight = 984 if subset == "math-prm" else rows
            top += weight * mean(wins[subset])
            bottom += weight
        scores[section] = top / bottom
    return scores | {"overall": mean(scores.values())}


def test_rewardbench_equals_an_independent_implementation():
    assert len(SUBSETS) == 23 and sum(SUBSETS.values()) == 2985
    lot, items, wins = random.Random(5), [], {}
    for subset, rows in SUBSETS.items():
        for _ in range(rows):
            chosen, rejected = lot.choice([0, 1, 2]), lot.choice([0, 1, 2])
            items.append(judged([chosen, rejected], subset=subset, prompt=len(items)))
            wins.setdefault(subset, []).append(chosen > rejected)  # a tie is a loss

    expected = rewardbench_oracle(wins)
    expected["overall (mean of the sections)"] = expected.pop("overall")
    for subset in wins:
        expected[subset] = mean(wins[subset])
    assert scores_of("rewardbench", items) == pytest.approx(expected)


def test_rewardbenchs_length_baseline_is_what_a_judge_of_lengths_would_get():
    lot, items, longer = random.Random(6), [], {}
    for subset in SUBSETS:
        for _ in range(5):
            lengths = lot.randrange(3), lot.randrange(3)
            scores = [lot.random(), lot.random()]
            items.append(judged(scores, subset=subset, lengths=lengths, prompt=len(items)))
            longer.setdefault(subset, []).append(lengths[0] > lengths[1])
    line = lines_of("rewardbench", items)["overall (mean of the sections)"]
    assert line["longer wins"] == pytest.approx(rewardbench_oracle(longer)["overall"])


# -------------------------------------------------------------------------------- RewardBench 2


def test_best_of_four_shares_the_credit_among_those_tied_for_the_top():
    items = [
        judged([3, 1, 2, 0], subset="Math", prompt=0),  # 1
        judged([1, 2, 0, 0], subset="Math", prompt=1),  # 0
        judged([2, 2, 2, 1], subset="Math", prompt=2),  # 1/3
        judged([1, 1, 1, 1], subset="Math", prompt=3),  # 1/4
    ]
    assert scores_of("rewardbench2", items)["Math"] == pytest.approx((1 + 1 / 3 + 1 / 4) / 4)


def tie(right, wrong, tag, prompt=0):
    return judged([*right, *wrong], len(right), "Ties", tag, prompt)


def test_ties_by_hand():
    # tied: right 5, 4, wrong 1: gap 3, spread 1; ref: right 3, wrong 1: gap 2. All hold, and
    # tanh(2 / 1 - 1) = tanh 1:  0.3 + 0.3 + 0.2 + 0.2 + 0.01 tanh 1
    items = [tie([5, 4], [1], "tied:7", 1), tie([3], [1], "ref:7", 2)]
    scores = scores_of("rewardbench2", items)
    assert scores == pytest.approx({
        "overall (mean of the subsets)": 1 + 0.01 * math.tanh(1),
        "Ties": 1 + 0.01 * math.tanh(1),
        "Ties, right of several": 1,
        "Ties, right of one": 1,
        "Ties, gap above spread": 1,
        "Ties, smaller gap above spread": 1,
        "Ties, tanh of smaller gap over spread": math.tanh(1),
    })


@pytest.mark.parametrize(("wrong", "bonus"), [
    (1, 1),  # gap 3 over spread 0: tanh(infinity)
    (4, 0),  # 0 / 0, which the benchmark's code takes for 0
    (5, -1),  # gap -1
])
def test_ties_with_equal_right_answers_have_the_limit_of_the_formula(wrong, bonus):
    scores = scores_of("rewardbench2", [tie([4, 4], [wrong], "tied:1")])
    assert scores["Ties, tanh of smaller gap over spread"] == bonus


def test_a_tied_prompt_whose_partner_is_left_out_stands_for_both():
    # gap 3, spread 1; no line for the partner: (0.3 + 0.2 + 0.2 + 0.01 tanh 2) / 0.7
    scores = scores_of("rewardbench2", [tie([5, 4], [1], "tied:7")])
    assert scores["Ties"] == pytest.approx((0.7 + 0.01 * math.tanh(2)) / 0.7)


def ties_oracle(prompts):
    """RewardBench 2's formula for Ties; prompts: list of {"ref" and "tied": (right, wrong)}."""
    right_of_one, right_of_several, easy, hard, bonus = [], [], [], [], []
    for prompt in prompts:
        gap = {}
        for kind, (right, wrong) in prompt.items():
            gap[kind] = min(right) - max(wrong)
        right_of_one.append(gap["ref"] > 0)
        right_of_several.append(gap["tied"] > 0)

        right, _ = prompt["tied"]
        spread = max(right) - min(right)
        smaller = min(gap["ref"], gap["tied"])
        easy.append(gap["tied"] > spread)
        hard.append(smaller > spread)
        bonus.append(math.tanh(smaller / spread - 1))
    shares = 0.3 * mean(right_of_several) + 0.3 * mean(right_of_one)
    return shares + 0.2 * mean(easy) + 0.2 * mean(hard) + 0.01 * mean(bonus)


def gaussians(lot, center, spread, count):
    return [lot.gauss(center, spread) for _ in range(count)]


def some_ties(lot):
    """(thirty prompts with their partners, the judged items)."""
    prompts, items = [], []
    for k in range(30):
        prompt = {
            "ref": (gaussians(lot, 1, 1, 1), gaussians(lot, 0, 1, 3)),
            "tied": (
                gaussians(lot, 2, 0.5, lot.randint(2, 9)),
                gaussians(lot, 0, 1, lot.randint(1, 12)),
            ),
        }
        prompts.append(prompt)
        for kind, (right, wrong) in prompt.items():
            items.append(tie(right, wrong, f"{kind}:{k}", len(items)))
    return prompts, items


def test_ties_equals_an_independent_implementation():
    prompts, items = some_ties(random.Random(1))
    assert scores_of("rewardbench2", items)["Ties"] == pytest.approx(ties_oracle(prompts))


def test_rewardbench2_is_the_mean_of_its_subsets():
    prompts, items = some_ties(random.Random(2))
    items.append(judged([1, 0, 0, 0], subset="Focus", prompt=99))
    items.append(judged([0, 1, 1, 1], subset="Math"))
    overall = scores_of("rewardbench2", items)["overall (mean of the subsets)"]
    assert overall == pytest.approx((ties_oracle(prompts) + 1 + 0) / 3)


def test_ties_resamples_a_prompt_together_with_its_partner():
    items = []
    for k in range(4):
        items += [tie([1], [0], f"ref:{k}", f"a {k}"), tie([1], [0], f"tied:{k}", f"b {k}")]
    assert report(BENCHMARKS["rewardbench2"].measure, items).summary["prompts"] == 4


# ------------------------------------------------------------------------------------- RM-Bench


def rmbench_oracle(rows):
    """{(domain, level): accuracy}, {(domain, r, c): accuracy} by the benchmark's own description,
    from rows (domain, chosen scores, rejected scores)."""
    levels, cells = {}, {}
    for domain, chosen, rejected in rows:
        domain = domain.split("-")[0]
        for i, j in itertools.product(range(3), repeat=2):
            level = "hard" if i < j else "easy" if i > j else "normal"
            win = chosen[i] > rejected[j]
            levels.setdefault((domain, level), []).append(win)
            cells.setdefault((domain, i, j), []).append(win)
    return ({key: mean(wins) for key, wins in levels.items()},
            {key: mean(wins) for key, wins in cells.items()})


@pytest.fixture(scope="module")
def rmbench():
    """(scores of the report, the oracle's levels, the oracle's cells) of random rows."""
    lot, items, rows = random.Random(2), [], []
    for domain in RM_BENCH_DOMAINS:
        for _ in range(7 + len(domain)):
            scores = lot.choices([0, 1, 2, 3], k=6)
            items.append(judged(scores, 3, domain, prompt=len(items)))
            rows.append((domain, scores[:3], scores[3:]))
    return scores_of("rmbench", items), *rmbench_oracle(rows)


def test_rmbenchs_levels_of_a_domain_equal_an_independent_implementation(rmbench):
    scores, levels, _ = rmbench
    assert len(levels) == 4 * 3  # safety-refuse and safety-response are one domain
    for (domain, level), value in levels.items():
        assert scores[f"{domain}, {level}"] == pytest.approx(value)


def test_rmbenchs_levels_and_domains_are_plain_means(rmbench):
    scores, levels, _ = rmbench
    means = {}
    for (domain, level), value in levels.items():
        means.setdefault(level, []).append(value)
        means.setdefault(domain, []).append(value)
    assert len(means) == 3 + 4
    for title, values in means.items():
        assert scores[title] == pytest.approx(mean(values))
    assert scores["overall (mean of the domains)"] == pytest.approx(mean(levels.values()))


def test_rmbenchs_matrix_is_the_mean_of_the_four_domains(rmbench):
    scores, _, cells = rmbench
    for r, c in itertools.product(range(3), repeat=2):
        four = [cells[domain, r, c] for domain in ("chat", "code", "math", "safety")]
        assert scores[f"style {r} over {c}"] == pytest.approx(mean(four))


def test_a_judge_of_lengths_gets_rmbenchs_easy_cells_and_none_of_the_hard_ones():
    # styles 0, 1, 2 have lengths 1, 2, 3 on both sides: longer wins = 1 (easy), 0, 0
    lines = lines_of("rmbench", [judged([0] * 6, 3, "chat", lengths=[1, 2, 3, 1, 2, 3])])
    levels = ("easy", "normal", "hard")
    assert [lines[level]["longer wins"] for level in levels] == [1, 0, 0]
    assert [lines[level]["score"] for level in levels] == [0, 0, 0]  # ties are losses


# ----------------------------------------------------------------------------------- JudgeBench


@pytest.mark.parametrize(("first", "second", "right"), [
    (1, -1, 1),  # right, right
    (1, 1, 0),  # right, wrong: a tie, which is not right
    (1, 0, 1),  # right, tied
    (0, 0, 0),
    (0, 1, 0),  # tied, wrong
    (-1, 1, 0),
])
def test_judgebench_needs_both_games_or_one_and_a_tie(first, second, right):
    items = [pair(first, second, subset="gpt: mmlu-pro")]
    assert scores_of("judgebench", items)["gpt: two games"] == right


def test_judgebench_keeps_its_splits_apart_and_gpt_is_the_score():
    items = [
        pair(-1, 1, subset="claude: mmlu-pro", prompt=0),
        pair(-1, 1, subset="claude: mmlu-pro", prompt=1),
        pair(1, -1, subset="gpt: mmlu-pro", prompt=2),
        pair(-1, 1, subset="gpt: livecodebench", prompt=3),
    ]
    summary = report(BENCHMARKS["judgebench"].measure, items).summary
    assert summary["score"] == 0.5 and summary["n"] == 2
    assert scores_of("judgebench", items) == {
        "gpt: two games": 0.5,
        "gpt: orders averaged": 0.5,
        "gpt: mmlu-pro": 1,
        "gpt: livecodebench": 0,
        "claude: two games": 0,
        "claude: orders averaged": 0,
        "claude: mmlu-pro": 0,
    }


def test_a_source_that_judgebench_did_not_have_gets_a_line_too():
    assert scores_of("judgebench", [pair(1, -1, subset="gpt: poetry")])["gpt: poetry"] == 1


# --------------------------------------------------------------------------- rows and files


def item_of(name, row, split):
    return benchmarks.benchmark_item(BENCHMARKS[name], row, split)


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": 3}
RANKS = {"id": "4", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math"}
GAME = {
    "question": "q",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
    "source": "mmlu-pro-law",
}


def test_rows_of_rewardbench_become_items():
    item = item_of("rewardbench", PAIR, "filtered")
    assert (item.prompt, item.responses, item.good) == ("p", ("c", "r"), 1)
    assert (item.subset, item.domain) == ("hep-go", "reasoning")


def test_rows_of_rewardbenchs_raw_split_keep_apart_but_ask_the_same():
    item = item_of("rewardbench", PAIR, "raw")
    assert (item.subset, item.domain) == ("raw hep-go", "reasoning")


@pytest.mark.parametrize(("name", "subset", "domain"), [
    ("rewardbench", "donotanswer", "safety"),
    ("rewardbench", "math-prm", "reasoning"),
    ("rewardbench", "llmbar-natural", "chat"),
    ("rewardbench2", "Safety", "safety"),
    ("rewardbench2", "Math", "reasoning"),
    ("rewardbench2", "Focus", "chat"),
])
def test_the_subset_says_whose_question_is_asked(name, subset, domain):
    assert item_of(name, PAIR | {"subset": subset}, "").domain == domain


def test_rows_of_rewardbench2_become_items():
    row = {"id": "tied:4", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    item = item_of("rewardbench2", row, "test")
    assert (item.responses, item.good, item.subset) == (("a", "b", "c"), 2, "Ties")
    assert item.tag == "tied:4" and not item.good_against_bad


def test_rows_of_rmbench_become_items():
    row = {"id": 1, "prompt": "p", "chosen": [*"abc"], "rejected": [*"def"], "domain": "code"}
    item = item_of("rmbench", row, "all")
    assert (item.responses, item.good) == (tuple("abcdef"), 3)
    assert (item.subset, item.domain, item.good_against_bad) == ("code", "reasoning", True)


def test_rows_of_judgebench_become_items():
    item = item_of("judgebench", GAME, "gpt")
    assert (item.prompt, item.responses, item.good) == ("q", ("b", "a"), 1)
    assert (item.subset, item.domain) == ("gpt: mmlu-pro", "reasoning")
    item = item_of("judgebench", GAME | {"label": "A>B", "source": "livebench-math"}, "claude")
    assert (item.responses, item.subset) == (("a", "b"), "claude: livebench-math")


@pytest.mark.parametrize(("name", "row", "message"), [
    ("rewardbench", {"prompt": "p", "chosen": "c", "rejected": "r"}, "no column 'subset'"),
    ("rewardbench", PAIR | {"chosen": None}, '"chosen" is missing or null'),
    ("rewardbench2", PAIR | {"subset": "Ties", "id": "7"}, "not tied:N or ref:N"),
    ("judgebench", {"prompt": "p"}, "no column 'response_A'"),
])
def test_a_row_that_a_benchmark_does_not_have_is_an_error_that_names_it(name, row, message):
    with pytest.raises(ValueError, match=message) as error:
        item_of(name, row, "")
    assert BENCHMARKS[name].repository in str(error.value)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rewardbench(monkeypatch, tmp_path):
    """RewardBench with 20 rows, each in both splits; [(patterns, revision)] of what is fetched."""
    rows = [PAIR | {"prompt": f"{i:02}"} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    fetched = []

    def fetch_dataset(repository, patterns, revision):
        fetched.append((patterns, revision))
        return "c0ffee", [path]

    monkeypatch.setattr(benchmarks, "fetch_dataset", fetch_dataset)
    return fetched


def test_a_benchmark_is_fetched_whole_from_one_commit(rewardbench):
    eval_set = load_eval_set("rewardbench")
    assert eval_set.measure is benchmarks.rewardbench
    assert eval_set.source == "allenai/reward-bench at c0ffee"
    assert len(eval_set.items) == 40
    assert rewardbench == [(["data/filtered-*"], None), (["data/raw-*"], "c0ffee")]


def test_equal_rows_of_both_splits_are_neighbours(rewardbench):
    items = load_eval_set("rewardbench").items
    for one, other in zip(items[::2], items[1::2], strict=True):
        assert one.prompt == other.prompt
        assert {one.subset, other.subset} == {"hep-go", "raw hep-go"}


def test_a_limit_takes_rewardbenchs_filtered_and_raw_rows_alike(rewardbench):
    # each raw row is a filtered row too: every second of the sorted rows would be raw ones only
    subsets = [item.subset for item in load_eval_set("rewardbench", 10).items]
    assert sorted(subsets) == ["hep-go"] * 5 + ["raw hep-go"] * 5


@pytest.mark.parametrize(("row", "measure"), [
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, benchmarks.pairs),
    ({"chosen": "one two three", "rejected": "one two four"}, benchmarks.pairs),
    ({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"]}, benchmarks.best_of_n),
    ({"id": "math/1", "prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3},
     benchmarks.rmbench),
    (PAIR, benchmarks.rewardbench),
    (PAIR | {"subset": "my own"}, benchmarks.pairs),
    (GAME | {"response_model": "gpt-4o-2024-05-13"}, benchmarks.judgebench),
    (RANKS | {"num_correct": 1, "num_incorrect": 2}, benchmarks.rewardbench2),
    (RANKS, benchmarks.best_of_n),  # of anyone
])
def test_an_own_file_is_measured_by_its_form(tmp_path, row, measure):
    path = write(tmp_path / "own.jsonl", [row, row])
    eval_set = load_eval_set(str(path))
    assert eval_set.measure is measure and len(eval_set.items) == 2
    assert eval_set.source.startswith("sha256 ")


def test_best_of_n_rows_have_a_line_for_each_subset():
    items = [judged([2, 1], subset="sums"), judged([1, 2], subset="sums"), judged([2, 1])]
    scores = scores_of("best of n", items)
    assert scores["the pick from all"] == pytest.approx(2 / 3)
    assert scores["the pick from all: sums"] == 0.5
    assert list(scores)[-1] == "the pick from all: sums"


def test_rewardbenchs_subsets_among_others_are_pairs(tmp_path):
    path = write(tmp_path / "own.jsonl", [PAIR, PAIR | {"subset": "my own"}])
    assert load_eval_set(str(path)).measure is benchmarks.pairs


def test_rewardbenchs_rows_in_an_own_file_ask_their_domains_question(tmp_path):
    rows = [PAIR | {"subset": "donotanswer"}, PAIR, PAIR | {"domain": "chat"}]
    items = load_eval_set(str(write(tmp_path / "own.jsonl", rows))).items
    assert [item.domain for item in items] == ["safety", "reasoning", "chat"]


def test_rmbenchs_own_files_are_arrays_with_its_domains(tmp_path):
    rows = []
    for domain in RM_BENCH_DOMAINS:
        row = {"id": f"{domain}/7", "prompt": "p", "chosen": [*"abc"], "rejected": [*"def"]}
        rows.append(row | {"domain": domain})
    rows[1]["id"] = 12  # the domain alone says what it is
    path = tmp_path / "total_dataset.json"
    path.write_text(json.dumps(rows))
    eval_set = load_eval_set(str(path))
    assert eval_set.measure is benchmarks.rmbench
    assert [item.subset for item in eval_set.items] == list(RM_BENCH_DOMAINS)
    domains = [item.domain for item in eval_set.items]
    assert domains == ["chat", "reasoning", "reasoning", "safety", "safety"]
    assert [(key.line, key.id) for key in eval_set.keys][:2] == [(1, "chat/7"), (2, 12)]


def test_three_against_three_of_a_domain_of_ours_is_best_of_n(tmp_path):
    row = {"prompt": "p", "chosen": [*"abc"], "rejected": [*"def"], "domain": "chat"}
    path = write(tmp_path / "own.jsonl", [row])
    assert load_eval_set(str(path)).measure is benchmarks.best_of_n


def test_judgebenchs_own_file_is_of_the_split_of_its_writer(tmp_path):
    row = GAME | {"pair_id": "c0", "response_model": "claude-3-5-sonnet-20240620"}
    eval_set = load_eval_set(str(write(tmp_path / "own.jsonl", [row])))
    (item,) = eval_set.items
    assert (item.prompt, item.responses) == ("q", ("b", "a"))
    assert (item.subset, item.domain) == ("claude: mmlu-pro", "reasoning")
    assert eval_set.keys[0].id == "c0"


@pytest.mark.parametrize(("change", "message"), [
    ({"label": "A=B"}, "line 1: label 'A=B': give A>B or B>A"),
    ({"source": None}, "line 1: source None: give the name of a part"),
    ({"response_model": "mine"}, "line 1: response_model 'mine': give one of gpt, claude"),
])
def test_a_game_that_is_not_judgebenchs_is_refused(tmp_path, change, message):
    row = GAME | {"response_model": "gpt-4o"} | change
    with pytest.raises(ValueError, match=message):
        load_eval_set(str(write(tmp_path / "own.jsonl", [row])))


@pytest.mark.parametrize(("text", "message"), [
    ("[{", "not valid JSON"),
    ("[3]", "row 1: no object"),
    ("[]", "empty"),
])
def test_an_array_that_is_none_of_rows_is_refused(tmp_path, text, message):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_eval_set(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_keys_of_a_benchmark_have_its_splits_rows_in_their_order(rewardbench):
    eval_set = load_eval_set("rewardbench", 10)
    for item, key in zip(eval_set.items, eval_set.keys, strict=True):
        split = "raw" if item.subset.startswith("raw") else "filtered"
        assert (key.split, key.line, key.id) == (split, int(item.prompt) + 1, 3)
    in_order = sorted(eval_set.keys)
    assert [key.split for key in in_order] == ["filtered"] * 5 + ["raw"] * 5
    assert [key.line for key in in_order[:5]] == sorted(key.line for key in in_order[:5])


def test_the_limit_is_evenly_spread(tmp_path):
    rows = [PAIR | {"prompt": str(i)} for i in range(10)]
    path = write(tmp_path / "own.jsonl", rows)
    items = load_eval_set(str(path), 4).items
    assert [item.prompt for item in items] == ["0", "2", "5", "7"] and len(items) == 4  # 10 i / 4
    assert len(list(load_eval_set(str(path), 99).items)) == 10


def test_the_items_of_a_file_can_be_read_once_for_each_model(tmp_path):
    path = write(tmp_path / "own.jsonl", [PAIR, PAIR | {"prompt": "other"}])
    items = load_eval_set(str(path)).items
    assert list(items) == list(items)
    assert [item.where for item in items] == [f"{path}, line 1", f"{path}, line 2"]


BEST_OF_N = {"prompt": "a", "chosen": ["b"], "rejected": ["c"]}
NO_PROMPT = {"chosen": "a b", "rejected": "a c"}


@pytest.mark.parametrize(("rows", "message"), [
    ([], "empty"),
    ([PAIR, {"prompt": "a", "chosen": "b"}], 'line 2: no "rejected"'),
    ([PAIR, BEST_OF_N], "line 2: best of n, after lines of pairs"),
    ([PAIR, NO_PROMPT], "line 2: pairs without a prompt, after lines of pairs"),
    ([NO_PROMPT, PAIR], "line 2: pairs, after lines of pairs without a prompt"),
])
def test_a_file_keeps_to_one_form_and_has_lines(tmp_path, rows, message):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message) as error:
        load_eval_set(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_memory_does_not_grow_with_the_texts_of_a_file(tmp_path):
    path = tmp_path / "big.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(2000):
            row = {"prompt": f"{i} " * 1000, "chosen": f"a{i} " * 500, "rejected": "b " * 500}
            file.write(json.dumps(row) + "\n")
    assert path.stat().st_size > 10e6

    tracemalloc.start()
    items = load_eval_set(str(path)).items
    kept = [without_texts(Judged(item, np.zeros((2, 2)))) for item in items]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(items) == len(kept) == 2000 and peak < 4e6
