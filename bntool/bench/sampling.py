"""In which order candidates run, and when warm-up is over. No clock here: it works on what a clock
returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

#: rounds below which a replicate's median would be little more than one sample
FEWEST = 8


def balanced_orders(rng: np.random.Generator, candidates: int, rounds: int) -> list[list[int]]:
    """One order of all candidates a round, random, with each candidate in each place equally often.

    Every `candidates` rounds form a Latin square: the cyclic shifts of a random order, shuffled. For two
    candidates that is AB and BA in random order (ABBA or BAAB over two rounds), so a drift cancels to first
    order.
    """
    orders: list[list[int]] = []
    while len(orders) < rounds:
        base = rng.permutation(candidates)
        orders += [[int(c) for c in np.roll(base, -int(shift))] for shift in rng.permutation(candidates)]
    return orders[:rounds]


def in_time(
    orders: Sequence[list[int]],
    most_s: float,
    *,
    fewest: int = FEWEST,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, list[int]]]:
    """The rounds with their numbers, until `most_s` seconds are over: whole balanced blocks, `fewest`
    at least.
    """
    end = now() + most_s
    for number, order in enumerate(orders):
        if number >= fewest and number % len(order) == 0 and now() > end:
            return
        yield number, order


def steady(times_s: Sequence[float], window: int = 5, slack: float = 0.03) -> bool:
    """Whether warm-up is over: the last window's median is no faster than the one before by more than
    `slack`.

    Only a fall counts as still warming up: a rise is noise, and waiting for it to end could last for ever.
    """
    if len(times_s) < 2 * window:
        return False
    before, now = np.median(times_s[-2 * window : -window]), np.median(times_s[-window:])
    return bool(now >= before * (1.0 - slack))


def warm_up(
    run: Callable[[], float], *, least_s: float = 0.05, most_s: float = 3.0, most_runs: int = 200
) -> list[float]:
    """Run until steady, and return every time taken. Units: seconds."""
    times: list[float] = []
    while len(times) < most_runs and sum(times) < most_s:
        times.append(run())
        if sum(times) >= least_s and steady(times):
            break
    return times


def loops_for(single_s: float, least_s: float = 0.5e-3) -> int:
    """How many calls one sample needs so that the clock's own resolution and cost vanish in it."""
    return max(1, int(np.ceil(least_s / max(single_s, 1e-9))))


def rounds_for(
    budget_s: float, round_s: float, *, candidates: int = 2, fewest: int = FEWEST, most: int = 400
) -> int:
    """How many rounds of length `round_s` fit into `budget_s`, bounded, in whole balanced blocks."""
    fitting = min(most, int(budget_s / max(round_s, 1e-9)))
    return max(fitting - fitting % candidates, -(-fewest // candidates) * candidates)
