"""The same study on a real Ray cluster of two workers, one of them killed half way."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import MLP, setting_of

from bntool.study.backends import Here
from bntool.study.ray_backend import OnRay
from bntool.study.trial import Trial

pytest.importorskip("ray")


class Marking:
    """A loss that leaves its process's number behind, and is slow enough to be caught at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, output: Any, target: Any) -> Any:
        import torch

        (self.folder / str(os.getpid())).touch()
        time.sleep(0.01)
        return torch.nn.functional.cross_entropy(output, target)


def told(results: dict[str, Any]) -> str:
    return json.dumps(
        {k: {n: v for n, v in r.items() if n != "wall_s"} for k, r in results.items()}, sort_keys=True
    )


@pytest.mark.slow
def test_a_killed_ray_worker_changes_no_result(tmp_path: Path) -> None:
    setting = setting_of(MLP)
    trials = [Trial("batch", seed, 0.1, 60) for seed in range(6)]
    marked = tmp_path / "workers"
    marked.mkdir()
    watched = replace(setting, loss_fn=Marking(marked))
    cluster = OnRay(workers=2)
    found: dict[str, Any] = {}
    killed = []
    try:
        assert cluster.workers == 2
        for trial, result in cluster.run(watched, trials):
            found[trial.key] = result
            if len(found) == 2:
                victim = max(marked.iterdir(), key=lambda p: p.stat().st_mtime)
                killed.append(int(victim.name))
                os.kill(killed[0], signal.SIGKILL)
    finally:
        cluster.close()
    assert killed
    assert len(list(marked.iterdir())) >= 3, "a worker has to have taken the killed one's place"
    here = {t.key: r for t, r in Here().run(watched, trials)}
    assert told(found) == told(here)
