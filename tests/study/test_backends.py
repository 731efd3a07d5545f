"""Trials run anywhere give the same results; what is finished is never lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import MLP, TINY, findings_of, setting_of

from bntool.errors import RunError, UsageError
from bntool.study.backends import Here, Processes
from bntool.study.journal import Journal, stored_plan
from bntool.study.plan import Plan
from bntool.study.setting import Setting
from bntool.study.trial import Trial

PLAN = replace(TINY, claims=("stability", "small-batches"))
TRIALS = [Trial("batch", seed, 0.1, 20) for seed in range(4)]


def told(results: dict[str, Any]) -> str:
    """Results without the time they took."""
    return json.dumps(
        {k: {n: v for n, v in r.items() if n != "wall_s"} for k, r in results.items()}, sort_keys=True
    )


def test_processes_give_what_this_process_gives() -> None:
    setting = setting_of(MLP)
    here = {t.key: r for t, r in Here().run(setting, TRIALS)}
    pool = Processes(2)
    try:
        there = {t.key: r for t, r in pool.run(setting, TRIALS)}
    finally:
        pool.close()
    assert told(here) == told(there)


def test_a_killed_worker_is_replaced() -> None:
    setting = setting_of(MLP)
    pool = Processes(2)
    found = {}
    long = [t.at(steps=200) for t in TRIALS]
    try:
        for trial, result in pool.run(setting, long):
            if not found:
                os.kill(next(iter(pool.pool._processes)), signal.SIGKILL)
            found[trial.key] = result
    finally:
        pool.close()
    assert told(found) == told({t.key: r for t, r in Here().run(setting, long)})


class Interrupted(Here):
    """Ctrl-C after some trials."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.count = 0

    def run(self, setting: Setting, trials: Iterable[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
        for done in super().run(setting, trials):
            if self.count == self.after:
                raise KeyboardInterrupt
            self.count += 1
            yield done


def journal(folder: Path, resume: bool = False, plan: Plan = PLAN) -> Journal:
    return Journal(folder, {"plan": plan.to_dict()}, resume=resume)


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    setting = setting_of(MLP)
    with pytest.raises(KeyboardInterrupt):
        findings_of(setting, PLAN, Interrupted(7), journal(tmp_path))
    kept = journal(tmp_path, resume=True)
    assert len(kept.results) == 7
    counting = Interrupted(10**6)
    resumed = findings_of(setting, PLAN, counting, kept)
    whole = Journal(None, {})
    straight = findings_of(setting, PLAN, Here(), whole)
    assert counting.count == len(whole.results) - 7
    assert told(kept.results) == told(whole.results)
    assert resumed == straight
    assert Plan.from_dict(stored_plan(tmp_path) or {}) == PLAN


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.add(TRIALS[0], {"x": 1})
    first.add(TRIALS[1], {"x": 2})
    file = tmp_path / "trials.jsonl"
    file.write_text(file.read_text()[:-9])
    assert journal(tmp_path, resume=True).results == {TRIALS[0].key: {"x": 1}}
    assert file.read_text().endswith("\n")


def test_another_studys_folder_is_refused(tmp_path: Path) -> None:
    journal(tmp_path)
    with pytest.raises(UsageError, match="another study"):
        journal(tmp_path, resume=True, plan=replace(PLAN, seed=9))


def test_a_model_that_fails_is_named_with_its_arm() -> None:
    setting = setting_of(MLP)
    bad = Trial("batch", 0, 0.1, 2, vary=(("depth", 2), ("nothing", 1)))
    pool = Processes(1)
    try:
        with pytest.raises(Exception, match="nothing"):
            list(pool.run(setting, [bad]))
    finally:
        pool.close()
    with pytest.raises(RunError, match="norm batch"):
        list(Here().run(replace(setting, loss_fn=lambda o, t: 1 / 0), [TRIALS[0]]))
