"""Intervals against SciPy and by simulation; what verdicts they lead to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bntool.study.statistics import Interval, paired_t
from bntool.study.verdict import Verdict, decide, every, some


@pytest.mark.parametrize("level", [0.95, 0.993])
def test_paired_t_is_students_interval(level: float) -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 7)
    found = paired_t(values, level)
    low, high = stats.t.interval(level, 6, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_one_seed_tells_nothing() -> None:
    assert paired_t([0.5]).low == -math.inf
    assert decide(paired_t([0.5]), 0.01) is Verdict.INCONCLUSIVE


def interval(low: float, estimate: float, high: float) -> Interval:
    return Interval(estimate, low, high, 5, 0.95)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (interval(0.01, 0.03, 0.05), Verdict.SHOWN),
        (interval(0.001, 0.005, 0.009), Verdict.NOT_SHOWN),
        (interval(0.001, 0.009, 0.017), Verdict.INCONCLUSIVE),
        (interval(-0.05, -0.03, -0.01), Verdict.REVERSED),
        (interval(-0.004, -0.003, -0.002), Verdict.NOT_SHOWN),
        (interval(-0.2, 0.05, 0.3), Verdict.INCONCLUSIVE),
        (interval(0.0, 0.0, 0.0), Verdict.NOT_SHOWN),
        (interval(-0.2, math.nan, 0.3), Verdict.INCONCLUSIVE),
    ],
)
def test_a_verdict_needs_both_size_and_certainty(effect: Interval, verdict: Verdict) -> None:
    assert decide(effect, 0.01) is verdict


def test_a_wider_interval_never_makes_a_claim_stronger() -> None:
    draws = np.random.default_rng(3)
    for _ in range(500):
        middle, half = draws.normal(0, 0.03), abs(draws.normal(0, 0.02))
        narrow = decide(interval(middle - half, middle, middle + half), 0.01)
        wide = decide(interval(middle - 2 * half, middle, middle + 2 * half), 0.01)
        assert wide in (narrow, Verdict.INCONCLUSIVE, Verdict.NOT_SHOWN)


def test_all_conditions_or_some() -> None:
    shown, absent, reverse, open_ = Verdict.SHOWN, Verdict.NOT_SHOWN, Verdict.REVERSED, Verdict.INCONCLUSIVE
    assert every([shown, shown]) is shown
    assert every([shown, absent]) is absent
    assert every([shown, open_]) is open_
    assert every([shown, reverse]) is absent
    assert some([shown, reverse]) is shown
    assert some([absent, open_]) is open_
    assert some([reverse, reverse]) is reverse


def test_pairing_by_seed_takes_the_seeds_own_luck_out() -> None:
    draws = np.random.default_rng(4)
    luck = draws.normal(0.0, 0.1, 6)
    treated, base = luck + 0.02 + draws.normal(0, 0.002, 6), luck + draws.normal(0, 0.002, 6)
    assert decide(paired_t(treated - base), 0.01) is Verdict.SHOWN
    unpaired = stats.ttest_ind(treated, base).confidence_interval(0.95)
    assert unpaired.low < 0.0 < unpaired.high


def test_false_alarms_of_a_family_of_seven_stay_below_five_percent() -> None:
    draws = np.random.default_rng(5)
    level = 1.0 - 0.05 / 7
    alarms = 0
    for _ in range(600):
        family = [decide(paired_t(draws.normal(0, 0.02, 5), level), 0.01) for _ in range(7)]
        alarms += any(v in (Verdict.SHOWN, Verdict.REVERSED) for v in family)
    # 5 % and three standard deviations of 600 draws
    assert alarms / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
