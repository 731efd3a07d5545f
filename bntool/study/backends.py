"""Where trials run: in this process, or in processes over the cores. Each yields results as they come."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import torch

from bntool.errors import RunError
from bntool.study.setting import Setting, run_trial
from bntool.study.trial import Trial

Done = tuple[Trial, dict[str, Any]]
#: times that lost workers are replaced before giving up
RETRIES = 3


class Backend(Protocol):
    """Runs trials in any order; closing it lets go of what it holds."""

    workers: int

    def run(self, setting: Setting, trials: Iterable[Trial]) -> Iterator[Done]: ...

    def close(self) -> None: ...


class Here:
    """One after the other in this process."""

    workers = 1

    def run(self, setting: Setting, trials: Iterable[Trial]) -> Iterator[Done]:
        for trial in trials:
            yield trial, run_trial(setting, trial)

    def close(self) -> None:
        pass


_setting: Setting | None = None


def _begin(setting: Setting) -> None:
    """In a new worker: keep the setting, leave Ctrl-C to the parent, use one thread."""
    global _setting
    _setting = setting
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _work(trial: Trial) -> dict[str, Any]:
    assert _setting is not None
    return run_trial(_setting, trial)


class Processes:
    """A pool of worker processes. A worker that dies is replaced and its trials run again."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def start(self, setting: Setting) -> ProcessPoolExecutor:
        if self.pool is None:
            context = multiprocessing.get_context(start_method())
            self.pool = ProcessPoolExecutor(self.workers, context, _begin, (setting,))
        return self.pool

    def run(self, setting: Setting, trials: Iterable[Trial]) -> Iterator[Done]:
        left = {t.key: t for t in trials}
        for _ in range(RETRIES):
            try:
                for trial, result in self.attempt(setting, list(left.values())):
                    del left[trial.key]
                    yield trial, result
                return
            except BrokenProcessPool:
                self.close()
        what = f"worker processes keep dying, {len(left)} trials are left"
        raise RunError(what, next="Is there enough memory? Try --workers 1.")

    def attempt(self, setting: Setting, trials: list[Trial]) -> Iterator[Done]:
        pool = self.start(setting)
        pending = {pool.submit(_work, t): t for t in trials}
        try:
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        if self.pool is not None:
            workers = list((self.pool._processes or {}).values())
            self.pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            self.pool = None


def start_method() -> str:
    """fork where it is safe: it starts at once and needs no guard in the user's script."""
    forkable = "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"
    return "fork" if forkable and not torch.cuda.is_available() else "spawn"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local(setting: Setting, workers: int) -> Backend:
    """Processes over the cores; this process for one worker or for a setting that cannot be sent."""
    if workers <= 1:
        return Here()
    if start_method() != "fork":
        try:
            pickle.dumps(setting)
        except Exception:
            return Here()
    return Processes(workers)
