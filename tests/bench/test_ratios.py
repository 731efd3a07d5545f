"""The statistics, on numbers made up by a seeded generator: coverage, false alarms under stopping, power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bntool.bench.percentiles import percentile
from bntool.bench.sampling import balanced_orders, loops_for, rounds_for, steady
from bntool.bench.sequential import SHARED, Looks, fixed, look_at
from bntool.bench.statistics import Ratio, blocks, center, interval, log_ratios
from bntool.bench.student import two_sided_p, two_sided_quantile
from bntool.bench.verdict import Verdict, decide, holm_levels

BETWEEN, WITHIN = 0.008, 0.03  # of the log-ratio: what one process draws, what one round adds


def replicates(rng: np.random.Generator, count: int, effect: float = 0.0, rounds: int = 40) -> list[float]:
    """A number per process: its own luck, heavy-tailed rounds, now and then a round that something
    interrupted.
    """
    shape = (count, rounds)
    noise = WITHIN * rng.standard_t(3, shape) + (rng.random(shape) < 0.05) * rng.normal(0, 0.7, shape)
    luck = BETWEEN * rng.standard_normal((count, 1))
    return [float(m) for m in np.median(effect + luck + noise, axis=1)]


def most_by_chance(rate: float, trials: int) -> float:
    """The largest share of `trials` that a true rate gives in 999 of 1000 simulations."""
    return float(stats.binom.ppf(0.999, trials, rate)) / trials


@pytest.mark.parametrize("df", [1, 2, 3, 8, 30, 200])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.01, 1e-4])
def test_student_agrees_with_scipy(df: int, alpha: float) -> None:
    exact = stats.t.isf(alpha / 2, df)
    assert two_sided_quantile(alpha, df) == pytest.approx(exact, rel=1e-9)
    assert two_sided_p(exact, df) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("count", [4, 6, 9])
def test_the_interval_covers_the_truth_with_few_replicates(count: int) -> None:
    rng, trials, effect = np.random.default_rng(count), 1500, 0.04
    ratios = [interval(replicates(rng, count, effect), 0.05) for _ in range(trials)]
    missed = float(np.mean([not r.low <= math.exp(effect) <= r.high for r in ratios]))
    assert missed <= most_by_chance(0.05, trials)


def test_a_bootstrap_over_four_replicates_would_be_too_narrow() -> None:
    """Why the interval is Student's: the percentile bootstrap misses far more often than it says."""
    rng, trials = np.random.default_rng(3), 400
    missed = 0
    for _ in range(trials):
        values = np.array(replicates(rng, 4))
        means = values[rng.integers(0, 4, (600, 4))].mean(axis=1)
        missed += not np.quantile(means, 0.025) <= 0.0 <= np.quantile(means, 0.975)
    assert missed / trials > 0.10


def test_rounds_of_one_process_would_be_too_narrow() -> None:
    """Why replicates: the interval over one process's rounds knows nothing of that process's luck."""
    rng, trials = np.random.default_rng(4), 400
    missed = 0
    for _ in range(trials):
        rounds = BETWEEN * rng.standard_normal() + 0.01 * rng.standard_normal(120)
        within = interval([center(b) for b in blocks(rounds)], 0.05)
        missed += not within.low <= 1.0 <= within.high
    assert missed / trials > 0.5


def run_looks(rng: np.random.Generator, looks: Looks, alpha: float, effect: float = 0.0) -> bool:
    """Whether any look's interval excludes "no difference": the most eager stopping there could be."""
    centers = replicates(rng, looks.most, effect)
    for index, count in enumerate(looks.replicates):
        ratio = look_at(centers[:count], looks, index, alpha).ratio
        if not ratio.low <= 1.0 <= ratio.high:
            return True
    return False


def test_false_alarms_hold_whatever_made_the_run_stop() -> None:
    rng, trials = np.random.default_rng(5), 1200
    alarms = np.mean([run_looks(rng, SHARED, 0.05) for _ in range(trials)])
    assert alarms <= most_by_chance(0.05, trials)


def test_peeking_after_every_replicate_at_full_alpha_does_not_hold() -> None:
    """The test above can fail: the same data with a naive stopping rule do."""
    rng, trials = np.random.default_rng(5), 600
    alarms = 0
    for _ in range(trials):
        centers = replicates(rng, 9)
        naive = [interval(centers[:n], 0.05) for n in range(3, 10)]
        alarms += any(not r.low <= 1.0 <= r.high for r in naive)
    assert alarms / trials > most_by_chance(0.05, trials)


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(6)
    assert np.mean([run_looks(rng, SHARED, 0.05, math.log(1.04)) for _ in range(200)]) > 0.95


def test_precision_stopping_keeps_coverage() -> None:
    rng, trials, missed = np.random.default_rng(7), 1200, 0
    for _ in range(trials):
        centers = replicates(rng, SHARED.most)
        for index, count in enumerate(SHARED.replicates):
            ratio = look_at(centers[:count], SHARED, index, 0.05).ratio
            if ratio.half_width <= 0.015:
                break
        missed += not ratio.low <= 1.0 <= ratio.high
    assert missed / trials <= most_by_chance(0.05, trials)


def test_p_value_and_interval_agree_at_every_look() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        centers = replicates(rng, 9, 0.01)
        for index, count in enumerate(SHARED.replicates):
            ratio = look_at(centers[:count], SHARED, index, 0.05).ratio
            assert (ratio.p_value < 0.05) == (not ratio.low <= 1.0 <= ratio.high)


def test_holm_keeps_the_family_below_alpha_and_beats_bonferroni() -> None:
    rng, trials, family = np.random.default_rng(9), 800, 5
    plain = corrected = 0
    for _ in range(trials):
        p_values = [interval(0.01 * rng.standard_normal(6), 0.05).p_value for _ in range(family)]
        plain += min(p_values) <= 0.05
        corrected += any(p <= level for p, level in zip(p_values, holm_levels(p_values, 0.05), strict=True))
    assert corrected / trials <= most_by_chance(0.05, trials) < plain / trials
    assert holm_levels([0.2, 0.001, 0.02], 0.05) == [0.05, 0.05 / 3, 0.025]


def ratio(low: float, estimate: float, high: float) -> Ratio:
    return Ratio(estimate, low, high, 0.95, 0.5)


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((1.02, 1.08, 1.14), Verdict.SLOWER),
        ((1.02, 1.04, 1.06), Verdict.INCONCLUSIVE),  # slower for certain, but maybe not by the tolerance
        ((0.99, 1.08, 1.17), Verdict.INCONCLUSIVE),
        ((1.01, 1.03, 1.049), Verdict.SAME),
        ((0.96, 1.00, 1.04), Verdict.SAME),
        ((0.80, 0.85, 0.90), Verdict.FASTER),
        ((0.80, 0.90, 1.01), Verdict.INCONCLUSIVE),
        ((0.955, 0.96, 0.97), Verdict.SAME),  # really faster, by less than anybody asked about
        ((0.0, 1.3, math.inf), Verdict.INCONCLUSIVE),
        ((math.nan, math.nan, math.nan), Verdict.INCONCLUSIVE),  # NaN never switches a gate off
    ],
)
def test_verdicts(numbers: tuple[float, float, float], verdict: Verdict) -> None:
    assert decide(ratio(*numbers), 0.05) is verdict


def test_a_floor_forgives_a_large_share_of_little() -> None:
    slow = ratio(1.08, 1.10, 1.12)
    assert decide(slow, 0.05, floor_s=1e-4, baseline_s=4e-4) is Verdict.SAME
    assert decide(slow, 0.05, floor_s=1e-4, baseline_s=4e-2) is Verdict.SLOWER


@pytest.mark.parametrize("candidates", [2, 3, 5])
def test_orders_are_balanced_and_random(candidates: int) -> None:
    orders = np.array(balanced_orders(np.random.default_rng(0), candidates, 20 * candidates))
    assert all(sorted(o) == list(range(candidates)) for o in orders.tolist())
    for place in range(candidates):
        assert np.bincount(orders[:, place]).tolist() == [20] * candidates
    assert len({tuple(o) for o in orders.tolist()}) > 1


def test_a_drift_cancels_in_balanced_pairs_and_not_in_blocks() -> None:
    drift = 1.0 + 0.3 * np.arange(400) / 400
    times: list[list[float]] = [[], []]
    tick = iter(drift)
    for order in balanced_orders(np.random.default_rng(1), 2, 200):
        for index in order:
            times[index].append(next(tick))
    paired = center(log_ratios(np.array(times[1]), np.array(times[0])))
    sequential = math.log(np.median(drift[200:]) / np.median(drift[:200]))
    assert abs(paired) < 1e-3 < abs(sequential)


def test_warm_up_ends_when_it_no_longer_gets_faster() -> None:
    assert not steady([5.0, 4.0, 3.0, 2.5, 2.2, 2.0, 1.8, 1.6, 1.5, 1.4])
    assert steady([1.0] * 5 + [1.01, 0.99, 1.0, 1.02, 5.0])
    assert not steady([1.0] * 9)


def test_loops_and_rounds() -> None:
    assert loops_for(1e-5) == 50
    assert loops_for(0.02) == 1
    assert rounds_for(1.0, 0.0101) == 98
    assert rounds_for(1.0, 0.5) == 8


def test_a_tail_that_the_samples_cannot_carry_is_hidden() -> None:
    rng = np.random.default_rng(2)
    assert percentile(rng.random(300), 0.99) is None
    assert percentile(rng.random(30), 0.9) is None
    assert percentile(rng.random(1000), 0.99) is not None


def test_percentile_intervals_cover() -> None:
    rng, trials, missed = np.random.default_rng(3), 600, 0
    for _ in range(trials):
        found = percentile(rng.random(100), 0.9)
        assert found is not None
        missed += not found.low_s <= 0.9 <= found.high_s
    assert missed / trials <= most_by_chance(0.05, trials)


def test_one_look_spends_everything() -> None:
    values = [0.01, 0.02, 0.03, 0.015]
    assert look_at(values, fixed(4), 0, 0.05).ratio == interval(values, 0.05)
