"""`make insert-zoo`: norms put into real plain networks and folded out again, and calibrate's throughput.

For each network: norms inserted, how far the outputs moved in eval mode and at a first training step of two
samples, and after folding how far the weights are from the original ones. ResNet and GoogLeNet are folded
first.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import bntool
from bntool.calibrate import calibrate_
from tests.norms.test_distributed import run_two_processes, worst_difference
from tests.norms.way_back import weights_off
from tests.random_norms import randomise_norms
from tests.vision import network

NORMS = {"vgg16": 13, "alexnet": 5, "squeezenet1_1": 25, "googlenet": 57, "resnet50": 53}
EVAL_LIMIT = 1e-4
WEIGHTS_LIMIT = 1e-6
RANKS_LIMIT = 1e-6
THROUGHPUT = 0.8
ROUNDS = 7


def plain(name: str, x: torch.Tensor) -> nn.Module:
    """The network without norms: folded where it has some."""
    torch.manual_seed(0)
    return bntool.fold(randomise_norms(network("torchvision", name), (x,)), x, verify=False).model


def inserted(name: str) -> bool:
    """Print a line of the table. Returns: whether all is within its limits."""
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = plain(name, x)
    result = bntool.insert(model, x, data=[x])
    assert result.report.eval is not None
    moved, count = result.report.eval.max_rel_error, len(result.report.inserted)
    off = weights_off(model, bntool.fold(result.model, x, verify=False).model)
    good = count == NORMS[name] and moved <= EVAL_LIMIT and off <= WEIGHTS_LIMIT
    if name == "vgg16":
        network("torchvision", "vgg16_bn").load_state_dict(
            result.model.state_dict()
        )  # raises unless the same
    train = result.report.train[0].relative_change
    print(f"{name:16}{count:6}{moved:11.1e}{train:11.2f}{off:11.1e}  {verdict(good)}", flush=True)
    return good


def two_processes() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        run_two_processes(Path(folder))
        off = worst_difference(Path(folder))
    print(f"two processes calibrate like one: off by {off:.1e}  {verdict(off <= RANKS_LIMIT)}", flush=True)
    return off <= RANKS_LIMIT


def throughput() -> bool:
    """Calibrate against plain eval forward passes over the same data: the median of paired ratios."""
    model = randomise_norms(network("torchvision", "resnet18"), (torch.randn(2, 3, 64, 64),))
    batches, ratios = [torch.randn(16, 3, 64, 64) for _ in range(8)], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model(batch)
        middle = time.perf_counter()
        calibrate_(model, batches)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    ratio = statistics.median(ratios)
    print(f"calibrate / plain forward passes, resnet18: {ratio:.2f}  {verdict(ratio >= THROUGHPUT)}")
    return ratio >= THROUGHPUT


def verdict(good: bool) -> str:
    return "ok" if good else "NOT AS ASKED"


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'':16}{'norms':>6}{'eval':>11}{'train of 2':>11}{'weights':>11}")
    good = [inserted(name) for name in sys.argv[1:] or NORMS]
    return 0 if all([*good, two_processes(), throughput()]) else 1


if __name__ == "__main__":
    sys.exit(main())
