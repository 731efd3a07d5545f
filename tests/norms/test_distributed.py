"""Several processes give the statistics that one gives, and train a model with inserted norms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import bntool
from tests.norms.nets import seeded_chain, shifted_batches

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_calibrate_like_one_and_train_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = ["-m", "tests.norms.calibrate_rank", str(tmp_path)]
    subprocess.run([*command, *script], check=True, cwd=ROOT, env=environment, timeout=120)
    alone = bntool.calibrate(seeded_chain(), shifted_batches((7, 5, 2, 4, 6))).model.state_dict()
    for method in ("lockstep", "passes"):
        ranks = [torch.load(tmp_path / f"{method}{r}.pt", weights_only=True) for r in (0, 1)]
        for key, value in alone.items():
            assert torch.equal(ranks[0][key], ranks[1][key]), key
            assert torch.allclose(ranks[0][key], value, rtol=8 * torch.finfo(torch.float32).eps, atol=0), key
    refusals = [(tmp_path / f"refusal{r}.txt").read_text() for r in (0, 1)]
    assert "another process" in refusals[0]
    assert "batch 0 is NaN" in refusals[1]
    first, second = (torch.load(tmp_path / f"trained{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(key.endswith("1.weight") for key in first), "the inserted norm is among them"
