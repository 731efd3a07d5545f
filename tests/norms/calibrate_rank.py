"""One rank of several that calibrate, and train what insert made: run by test_distributed.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import bntool
from bntool.errors import RunError
from tests.norms.nets import seeded_chain, shifted_batches
from tests.norms.test_calibrate import seeded_branchy, ways


def main(target: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    batches = shifted_batches((7, 5, 2, 4, 6))
    mine = [batches[:2], batches[2:]][dist.get_rank()]  # the ranks have different numbers of samples
    for method in ("lockstep", "passes"):
        result = bntool.calibrate(seeded_chain(), mine, method=method)
        torch.save(result.model.state_dict(), f"{target}/{method}{dist.get_rank()}.pt")
        apart = bntool.calibrate(seeded_branchy(), ways()[dist.get_rank()], method=method)
        torch.save(apart.model.state_dict(), f"{target}/apart-{method}{dist.get_rank()}.pt")
    spoilt = [b.clone() for b in mine]
    spoilt[0][0] = float("nan") if dist.get_rank() == 1 else 0.0
    try:
        bntool.calibrate(seeded_chain(), spoilt)
    except RunError as refusal:
        Path(f"{target}/refusal{dist.get_rank()}.txt").write_text(str(refusal))
    torch.save(trained_together(), f"{target}/trained{dist.get_rank()}.pt")
    dist.barrier()  # a rank that leaves while the other still talks to it can end in an abort
    dist.destroy_process_group()


def trained_together() -> dict[str, torch.Tensor]:
    """The state after a step of DistributedDataParallel on different data, of a model with inserted norms."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)]
    made = bntool.insert(nn.Sequential(*layers), torch.randn(8, 4, 6, 6)).model.train()
    wrapped = nn.parallel.DistributedDataParallel(made)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    generator = torch.Generator().manual_seed(dist.get_rank())
    wrapped(torch.randn(8, 4, 6, 6, generator=generator)).square().sum().backward()
    optimizer.step()
    return {k: p.detach() for k, p in made.named_parameters()}


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(
        0
    )  # all is written; torch's own threads can abort the interpreter's way out, which is not the matter
