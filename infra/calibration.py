"""How far the probabilities of a judge can be believed, and what its two orders say about that.

A judge that is right in 8 of 10 verdicts to which it gives 0.8 is calibrated. A temperature T
divides all log-odds: no verdict of one order changes, but how sure it is. T above 1 makes a judge
less sure.

Shapes: C comparisons of a better response with a worse one.
"""

from typing import NamedTuple

import numpy as np

BINS = 10  # of the expected calibration error, between 1/2 and 1
TEMPERATURES = np.geomspace(1 / 64, 64, 121)  # that are tried, and then finer ones around the best


class Comparisons(NamedTuple):
    """The log-odds that the better response wins, (C,), and the number of its prompt."""

    first: np.ndarray  # it is shown first
    second: np.ndarray  # it is shown second
    prompts: np.ndarray

    def verdicts(self) -> np.ndarray:
        """1 where the better response wins by both orders, 1/2 for a tie: (C,)."""
        return (1 + np.sign(self.first + self.second)) / 2

    def agree(self) -> np.ndarray:
        """Whether both orders have one verdict: (C,)."""
        return np.sign(self.first) == np.sign(self.second)


def comparisons_of(judged: list, prompts: np.ndarray) -> Comparisons:
    """Each better response of judged items with each worse one. prompts (N,): of each item."""
    first = []
    second = []
    numbers = []
    for one, prompt in zip(judged, prompts, strict=True):
        better, worse = slice(None, one.item.good), slice(one.item.good, None)
        # tables of (better, worse)
        shown_first = one.log_odds[better, worse]
        shown_second = -one.log_odds[worse, better].T
        first.append(shown_first.ravel())
        second.append(shown_second.ravel())
        numbers.append(np.full(shown_first.size, prompt))
    return Comparisons(np.concatenate(first), np.concatenate(second), np.concatenate(numbers))


def orders(compared: Comparisons) -> dict:
    """How often both orders agree, how often the verdict is right where they do and where not, and
    what one order alone gives. A tie is half right, and half a win of the first slot."""
    verdicts = compared.verdicts()
    agree = compared.agree()
    shown_first = np.sign(compared.first)
    shown_second = np.sign(compared.second)

    # The first slot wins a row that shows the better response second where that one loses; two rows
    # of halves are quarters.
    first_slot = (1 + shown_first) + (1 - shown_second)
    one_order = (1 + shown_first) + (1 + shown_second)
    return {
        "comparisons": len(verdicts),
        "right": float(verdicts.sum()),
        "both orders agree": int(agree.sum()),
        "right where they agree": float(verdicts[agree].sum()),
        "first slot wins": float(first_slot.sum() / 4),
        "right in one order": float(one_order.sum() / 4),
    }


def log_probability(compared: Comparisons, temperature: float) -> np.ndarray:
    """log of P(better wins) = (sigmoid(first / T) + sigmoid(second / T)) / 2: (C,), finite also
    where the probability is 0 in floating point."""
    first = -np.logaddexp(0, -compared.first / temperature)  # log sigmoid
    second = -np.logaddexp(0, -compared.second / temperature)
    return np.logaddexp(first, second) - np.log(2)


def fit_temperature(compared: Comparisons) -> float:
    """The temperature with the smallest mean of -log P(better wins)."""
    last = len(TEMPERATURES) - 1
    index = best_of_these(TEMPERATURES, compared)
    low = TEMPERATURES[max(0, index - 1)]
    high = TEMPERATURES[min(last, index + 1)]

    finer = np.geomspace(low, high, 41)
    return float(finer[best_of_these(finer, compared)])


def best_of_these(temperatures: np.ndarray, compared: Comparisons) -> int:
    losses = []
    for temperature in temperatures:
        loss = -log_probability(compared, temperature).mean()
        losses.append(loss)
    return int(np.argmin(losses))


def expected_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE: the gap between the mean confidence and the share that is right, in each of ten equal
    bins of the confidence, weighted by how many are in it."""
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def probability_errors(probability: np.ndarray, right: np.ndarray) -> dict:
    """ECE, and the Brier score: the mean of (1 - P(better wins))^2."""
    confidence = np.maximum(probability, 1 - probability)
    return {
        "ECE": expected_error(confidence, right),
        "Brier": float(np.mean((1 - probability) ** 2)),
    }


def calibration(compared: Comparisons) -> dict:
    """ECE and Brier score as they are; the temperature that would mend them, fitted on all; and
    what one would give that was fitted on the other half of the prompts."""
    right = compared.verdicts()
    probability = np.exp(log_probability(compared, 1))
    numbers = {"mean confidence": float(np.maximum(probability, 1 - probability).mean())}
    numbers.update(probability_errors(probability, right))
    numbers["temperature"] = fit_temperature(compared)

    # each half of the prompts with the temperature of the other
    _, numbered = np.unique(compared.prompts, return_inverse=True)
    in_half = numbered % 2 == 1
    if not in_half.any():
        return numbers  # a single prompt
    mended = np.zeros_like(probability)
    for half in (in_half, ~in_half):
        temperature = fit_temperature(take(compared, ~half))
        mended[half] = np.exp(log_probability(take(compared, half), temperature))
    numbers["with a temperature"] = probability_errors(mended, right)
    return numbers


def take(compared: Comparisons, chosen: np.ndarray) -> Comparisons:
    """Some of the comparisons: chosen (C,) of bool."""
    return Comparisons._make(column[chosen] for column in compared)
