"""Evidence of contention: read from this machine, and put into words."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bntool.bench.contention import Contention, Moment, between, in_words, waited_s, waits


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.skipif(not waits(), reason="the kernel keeps no scheduler statistics")
def test_a_process_that_shares_its_cpu_is_seen_to_wait() -> None:
    """Two processes that never rest on one CPU: each waits about half of the time."""
    cpu = min(os.sched_getaffinity(0))
    allowed = os.sched_getaffinity(0)
    rival = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"]
    )
    try:
        os.sched_setaffinity(0, {cpu})
        time.sleep(0.3)
        before = waits()
        busy(0.5)
        assert waited_s(before, waits()) > 0.1
    finally:
        os.sched_setaffinity(0, allowed)
        rival.kill()
        rival.wait()


def test_the_thread_that_waited_most_counts() -> None:
    assert waited_s({"1": 10**9, "2": 5 * 10**9}, {"1": 3 * 10**9, "2": 5 * 10**9, "3": 10**8}) == 2.0
    assert waited_s({}, {}) == 0.0


def test_shares_of_a_replicate() -> None:
    before = Moment(steal=10, total=1000, stalled_us=0, load=1.0, mhz=None)
    after = Moment(steal=60, total=1200, stalled_us=500_000, load=2.0, mhz=2000.0)
    seen = between(before, after, 2.0, waited=0.1, switches=3)
    assert seen.steal == pytest.approx(0.25)
    assert seen.pressure == pytest.approx(0.25)
    assert (seen.load, seen.mhz) == (2.0, 2000.0)


def test_a_machine_that_says_nothing_is_no_quiet_machine() -> None:
    silent = Moment(steal=0, total=0, stalled_us=None, load=0.0, mhz=None)
    seen = between(silent, silent, 1.0, waited=0.0, switches=0)
    assert seen.steal is None
    assert seen.pressure is None


def test_words_only_where_there_is_something_to_say() -> None:
    quiet = Contention(1.0, 0.0, 0.01, 0.0, 0, 0.5, None)
    loud = Contention(1.0, 0.3, 0.9, 0.4, 100, 9.0, None)
    assert in_words([quiet]) == ""
    said = in_words([loud])
    for part in ("40%", "90%", "30%"):
        assert part in said
