"""Several processes give the statistics that one gives, and train a model with inserted norms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import bntool
from tests.norms.nets import seeded_chain, shifted_batches
from tests.norms.test_calibrate import seeded_branchy, ways

ROOT = Path(__file__).resolve().parents[2]


def run_two_processes(folder: Path) -> None:
    """Both ranks of calibrate_rank.py, which leave what they have in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = ["-m", "tests.norms.calibrate_rank", str(folder)]
    subprocess.run([*command, *script], check=True, cwd=ROOT, env=environment, timeout=120)


def worst_difference(folder: Path) -> float:
    """The largest relative difference of any rank's statistics, by any method, to those of one process."""
    alone = bntool.calibrate(seeded_chain(), shifted_batches((7, 5, 2, 4, 6))).model.state_dict()
    ranks = [
        torch.load(folder / f"{method}{r}.pt", weights_only=True)
        for method in ("lockstep", "passes")
        for r in (0, 1)
    ]
    assert all(torch.equal(ranks[i][key], ranks[i + 1][key]) for i in (0, 2) for key in alone)
    return max(
        float(((rank[key].double() - value) / value.double()).nan_to_num(0.0).abs().max())
        for rank in ranks
        for key, value in alone.items()
    )


def test_two_processes_calibrate_like_one_and_train_together(tmp_path: Path) -> None:
    run_two_processes(tmp_path)
    assert worst_difference(tmp_path) <= 8 * torch.finfo(torch.float32).eps
    one_process = bntool.calibrate(seeded_branchy(), [batch for way in ways() for batch in way]).model
    for method in ("lockstep", "passes"):  # one process's data all go another way than the other's
        for rank in (0, 1):
            apart = torch.load(tmp_path / f"apart-{method}{rank}.pt", weights_only=True)
            assert all(torch.allclose(v, one_process.state_dict()[k], rtol=1e-6) for k, v in apart.items())
    refusals = [(tmp_path / f"refusal{r}.txt").read_text() for r in (0, 1)]
    assert "another process" in refusals[0]
    assert "batch 0 is NaN" in refusals[1]
    first, second = (torch.load(tmp_path / f"trained{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(key.endswith("1.weight") for key in first), "the inserted norm is among them"
