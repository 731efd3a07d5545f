"""Trials on a Ray cluster: one task each, lost workers retried, one GPU a trial where there are GPUs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from bntool.errors import LoadError, RunError
from bntool.study.setting import Setting, run_trial
from bntool.study.trial import Trial

#: times a task is started again when the worker or machine that ran it is lost
RETRIES = 5


class OnRay:
    """`address` as ray.init takes it; empty starts a cluster on this machine with `workers` cores."""

    def __init__(self, address: str = "", workers: int = 2) -> None:
        try:
            import ray
        except ImportError as problem:
            raise LoadError(
                "Ray is not installed", where="--ray", next="pip install 'bntool[ray]'"
            ) from problem
        self.ray: Any = ray
        self.mine = not ray.is_initialized()
        if self.mine:
            begin(ray, address, workers)
        self.workers = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self.sent: Any = None

    def run(self, setting: Setting, trials: Iterable[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
        ray = self.ray
        if self.sent is None:
            send_code(ray, setting)
            self.sent = ray.put(setting)
        gpus = 1 if setting.device.startswith("cuda") else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(run_trial)
        pending = {remote.remote(self.sent, t): t for t in trials}
        while pending:
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                trial = pending.pop(reference)
                try:
                    yield trial, ray.get(reference)
                except ray.exceptions.RayTaskError as problem:
                    raise problem.as_instanceof_cause() from None
                except ray.exceptions.RayError as problem:
                    raise RunError(f"a trial was lost {RETRIES} times: {problem}", where="--ray") from problem

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def send_code(ray: Any, setting: Setting) -> None:
    """The user's own loss and model travel as code: their files need not be importable on the workers."""
    maker = setting.source.maker
    mine = [setting.loss_fn, getattr(maker, "factory", None), getattr(maker, "model", None)]
    for thing in mine:
        name = getattr(thing, "__module__", None) or type(thing).__module__
        if thing is not None and name.split(".")[0] not in ("bntool", "torch", "__main__", "builtins"):
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])


def begin(ray: Any, address: str, workers: int) -> None:
    local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except Exception as problem:
        advice = "Start one with: ray start --head"
        raise RunError(f"no Ray cluster there: {problem}", where=address or "--ray", next=advice) from problem
