"""One rank of a calibration by several processes: run by torchrun from test_distributed.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

import bntool
from tests.norms.nets import seeded_chain, shifted_batches


def main(target: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    batches = shifted_batches((7, 5, 2, 4, 6))
    mine = [batches[:2], batches[2:]][dist.get_rank()]  # the ranks have different numbers of samples
    for method in ("lockstep", "passes"):
        result = bntool.calibrate(seeded_chain(), mine, method=method)
        torch.save(result.model.state_dict(), f"{target}/{method}{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
