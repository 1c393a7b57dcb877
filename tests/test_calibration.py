"""Calibration and the two orders on log-odds that are made by hand or drawn from a known judge.

    python -m pytest tests/test_calibration.py
"""

import numpy as np
import pytest
from test_benchmarks import judged, pair

from infra.calibration import (
    Comparisons,
    calibration,
    comparisons_of,
    expected_error,
    fit_temperature,
    log_probability,
    orders,
)
from infra.printed import calibration_lines


def compared(first, second=None):
    """Comparisons of a prompt each, with the same log-odds in both orders if not given."""
    first = np.array(first, float)
    second = first if second is None else np.array(second, float)
    return Comparisons(first, second, np.arange(len(first)))


def overconfident(temperature, count=4000):
    """A judge whose log-odds are `temperature` times those that would be right."""
    true = np.random.default_rng(0).normal(size=count) * 2
    wins = np.random.default_rng(1).random(count) < 1 / (1 + np.exp(-true))
    return compared(temperature * np.where(wins, true, -true))


def test_comparisons_are_of_each_better_response_with_each_worse_one():
    made = comparisons_of([judged([3, 2, 0], good=2), pair(1.0, 5.0)], np.array([7, 8]))
    assert made.first.tolist() == [3, 2, 1]
    assert made.second.tolist() == [3, 2, -5]  # shown second its rival has 5
    assert made.prompts.tolist() == [7, 7, 8]


def test_orders_count_where_they_agree_and_what_is_right_there():
    # agree and right; agree and wrong; disagree and right (2 > 1); disagree and a tie
    counts = orders(compared([1, -1, 2, 1], [1, -1, -1, -1]))
    assert counts == {
        "comparisons": 4,
        "right": 2.5,
        "both orders agree": 2,
        "right where they agree": 1,
        "first slot wins": 3,  # once in each that agrees (of two rows), always in the others
        "right in one order": 2,
    }


def test_the_probability_is_the_mean_of_both_orders_also_where_it_rounds_to_0():
    both = compared([np.log(2), -2000], [np.log(3), -2000])
    logs = log_probability(both, 1)
    assert logs == pytest.approx([np.log((2 / 3 + 3 / 4) / 2), -2000])


def test_the_expected_error_by_hand():
    # bins of 0.05 from 0.5: 0.52 and 0.54 share one (right 1 of 2: gap |1.06 - 1|), 0.98 another
    # (gap |0.98 - 0|): (0.06 + 0.98) / 3
    error = expected_error(np.array([0.52, 0.54, 0.98]), np.array([1, 0, 0]))
    assert error == pytest.approx((0.06 + 0.98) / 3)
    assert expected_error(np.array([0.5]), np.array([0.5])) == 0  # a tie


def test_the_brier_score_by_hand():
    # 0.8 of the better one and 0.2 of it: (0.04 + 0.64) / 2
    numbers = calibration(compared([np.log(4), -np.log(4)]))
    assert numbers["Brier"] == pytest.approx(0.34)
    assert numbers["mean confidence"] == pytest.approx(0.8)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_a_judge_is_found(temperature):
    assert fit_temperature(overconfident(temperature)) == pytest.approx(temperature, rel=0.06)


def test_a_temperature_mends_a_judge_that_is_too_sure():
    numbers = calibration(overconfident(3))
    assert numbers["ECE"] > 0.1
    assert numbers["with a temperature"]["ECE"] < 0.03
    assert numbers["with a temperature"]["Brier"] < numbers["Brier"]


def test_a_half_is_mended_by_what_the_other_half_says():
    # even prompts are always right, odd ones always wrong: each half makes the other worse
    numbers = calibration(compared([2, -2] * 20))
    assert numbers["with a temperature"]["Brier"] > numbers["Brier"]


def test_one_prompt_has_no_other_half():
    one = comparisons_of([judged([3, 2, 0], good=2)], np.array([0]))
    assert "with a temperature" not in calibration(one)
    assert calibration_lines(calibration(one))[-1].startswith("  best temperature beyond 0.02")
    assert "half" not in calibration_lines(calibration(one))[-1]


def test_a_judge_that_is_always_right_cannot_be_too_sure():
    *_, line = calibration_lines(calibration(compared([1] * 8)))
    assert line.startswith("  best temperature beyond 0.02; that of one half")
