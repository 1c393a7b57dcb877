"""What may be said after a few seeds: means, differences, and verdicts that know how many of them
there are.

A claim is a difference of two methods. Each seed gives one difference, of two runs with the same
pairs in the same order; over the seeds Student's t gives its interval and p, the probability of a
mean at least this far from 0 if the methods did not differ. Many differences are looked at
together, so one of them is called a finding only after Holm's correction (1979): the chance that
even one of a family's findings is false is at most 5 %.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # of a false finding among all contrasts of a family


def student_two_sided(t: float, dof: int) -> float:
    """P(|T| > |t|) of Student's t with `dof` degrees of freedom, by the finite sums for whole
    numbers of them (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan(abs(t) / math.sqrt(dof))
    cos, sin = math.cos(theta), math.sin(theta)

    # the sum over cos^0, cos^2, ... or cos^1, cos^3, ..., each term from the one before
    is_odd = dof % 2 == 1
    power = 1 if is_odd else 0
    term = cos if is_odd else 1.0
    total = 0.0
    while power <= dof - 2:
        total += term
        term *= cos * cos * (power + 1) / (power + 2)
        power += 2

    inside = sin * total
    if is_odd:
        inside = 2 / math.pi * (theta + inside)
    return max(0.0, 1 - inside)


def student_quantile(two_sided: float, dof: int) -> float:
    """The t that |T| exceeds with this probability: 12.7 for 0.05 and one degree of freedom."""
    low, high = 0.0, 1.0
    while student_two_sided(high, dof) > two_sided:
        high *= 2
    for _ in range(100):  # halving: to the last bit
        middle = (low + high) / 2
        if student_two_sided(middle, dof) > two_sided:
            low = middle
        else:
            high = middle
    return high


class Interval(NamedTuple):
    """A mean over n seeds, and half the width of its interval; nan where there is none."""

    mean: float
    half: float
    n: int


def interval(values: Iterable[float], level: float = LEVEL) -> Interval:
    """t s / sqrt(n) to both sides of the mean: 95 % for level 0.05. It speaks of seeds alone: the
    pairs of the test are the same for all."""
    values = np.array(list(values), float)
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, math.nan, 1)
    s = float(values.std(ddof=1))
    return Interval(mean, student_quantile(level, n - 1) * s / n**0.5, n)


class Effect(NamedTuple):
    """The mean difference A - B over n seeds, its 95 % interval, the probability of a mean at least
    this far from 0 if the two did not differ, and what Holm's correction makes of it."""

    mean: float
    half: float
    n: int
    p: float  # two-sided; nan below two seeds
    verdict: str = ""  # see `verdicts`


def effect(a: dict[int, float], b: dict[int, float]) -> Effect:
    """The difference of two methods, {seed: accuracy} each, over the seeds that both have."""
    seeds = sorted(a.keys() & b.keys())
    differences = [a[seed] - b[seed] for seed in seeds]
    found = interval(differences)
    if found.n < 2:
        return Effect(*found, p=math.nan)
    spread = float(np.std(differences, ddof=1)) / found.n**0.5
    if spread == 0:  # all seeds have exactly this difference
        return Effect(*found, p=1.0 if found.mean == 0 else 0.0)
    return Effect(*found, p=student_two_sided(found.mean / spread, found.n - 1))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of these are findings: in rising order, each is held against level / (how many are
    left), and the first that fails ends it."""
    findings = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for place, i in enumerate(order):
        if p_values[i] > level / (len(order) - place):
            break
        findings[i] = True
    return findings


def verdicts(effects: dict[str, Effect], seeds: dict[str, int]) -> dict[str, Effect]:
    """The effects of one family with their verdicts: "A", "B" (which is ahead), "no difference
    found", or how many of the promised seeds are missing. Those with missing seeds are not judged,
    but they count: the correction is for all."""
    p_of = {name: found.p for name, found in effects.items()}
    for name, found in effects.items():
        if found.n < seeds[name]:
            p_of[name] = 1.0  # whatever it is now, it is no finding
    is_finding = dict(zip(p_of, holm(list(p_of.values())), strict=True))

    judged = {}
    for name, found in effects.items():
        if found.n < seeds[name]:
            word = f"{found.n} of {seeds[name]} seeds"
        elif not is_finding[name]:
            word = "no difference found"
        elif found.mean > 0:
            word = "A"
        else:
            word = "B"
        judged[name] = found._replace(verdict=word)
    return judged


def power_law(x: Iterable[float], y: Iterable[float], floor: float = 0.0,
              draws: int = 1000) -> dict[str, float]:
    """y = floor + a x^-b, by least squares of the logarithms: {"a", "b", "low", "high"}.

    low and high are a 95 % bootstrap interval of b, for which the points (seeds) at each x are
    drawn anew. Where each x has one point there is nothing to draw, and they are nan. Raises
    ValueError for fewer than two x, and for a y that is not above the floor."""
    x = np.array(x, float)
    above_floor = np.array(y, float) - floor
    groups = [np.flatnonzero(x == value) for value in np.unique(x)]  # indices of the points at an x
    if len(groups) < 2 or (above_floor <= 0).any() or (x <= 0).any():
        raise ValueError("a power law needs two different x above 0, and all y above the floor")

    def fit(points):
        slope, level = np.polyfit(np.log(x[points]), np.log(above_floor[points]), 1)
        return float(np.exp(level)), float(-slope)

    a, b = fit(slice(None))
    law = {"a": a, "b": b, "low": math.nan, "high": math.nan}
    if max(len(group) for group in groups) > 1:
        random = np.random.default_rng(0)
        exponents = []
        for _ in range(draws):
            sample = np.concatenate([random.choice(group, len(group)) for group in groups])
            exponents.append(fit(sample)[1])
        law["low"], law["high"] = np.percentile(exponents, [2.5, 97.5]).tolist()
    return law
