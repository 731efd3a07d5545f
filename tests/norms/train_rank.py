"""One rank of two that train a model with inserted norms: run by test_surviving.py."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from tests.norms.test_surviving import made


def main(form: str, target: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = made(form).train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    generator = torch.Generator().manual_seed(dist.get_rank())
    wrapped(torch.randn(8, 3, 8, 8, generator=generator)).square().mean().backward()
    optimizer.step()
    torch.save(model.state_dict(), f"{target}/{dist.get_rank()}.pt")
    dist.barrier()  # a rank that leaves while the other still talks to it can end in an abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # torch's own threads can abort the interpreter's way out, which is not the matter
