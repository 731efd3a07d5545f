"""`make insert-zoo`: norms put into real plain networks and folded out again, and calibrate's throughput.

For each network: norms inserted, how far the outputs moved in eval mode and at a first training step of two
samples, and after folding how far the weights are from the original ones. Networks that have norms are folded
first; the sample models get back as many as went. Then accuracy on real digits, before and after.
"""

from __future__ import annotations

import copy
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
from sample_models.lenet import lenet
from tests.norms.digits import accuracy, split, trained
from tests.norms.test_distributed import run_two_processes, worst_difference
from tests.norms.way_back import weights_off
from tests.random_norms import randomise_norms
from tests.test_sample_models import NAMES, load
from tests.test_sample_models import build as sample
from tests.vision import network

NORMS = {"vgg16": 13, "alexnet": 5, "squeezenet1_1": 25, "googlenet": 57, "resnet50": 53}
EVAL_LIMIT = 1e-4
WEIGHTS_LIMIT = 1e-6
RANKS_LIMIT = 1e-6
THROUGHPUT = 0.8
#: network, size of the images, rounds
THROUGHPUTS = (("resnet18", 64, 7), ("mobilenet_v2", 160, 5), ("mobilenet_v2", 224, 3))


Inputs = tuple[torch.Tensor, ...]


def real(name: str) -> tuple[nn.Module, Inputs]:
    return network("torchvision", name), (
        torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )


def inserted(name: str) -> bool:
    """Print a line of the table. Returns: whether all is within its limits."""
    torch.manual_seed(0)
    network_, x = real(name) if name in NORMS else (sample(name), load(name).example_inputs())
    went = bntool.fold(randomise_norms(network_, x), x, verify=False)
    model, folded = went.model, len(went.report.folded)
    result = bntool.unfold(model, x, data=[x])
    moved, count = result.report.eval.max_rel_error, len(result.report.inserted)
    off = weights_off(model, bntool.fold(result.model, x, verify=False).model)
    unreached = sum("do not reach it" in reason for reason in result.report.left_out.values())
    wanted = NORMS.get(name, folded - unreached or count)
    good = 0 < count == wanted and moved <= EVAL_LIMIT and off <= WEIGHTS_LIMIT
    if name == "vgg16":
        network("torchvision", "vgg16_bn").load_state_dict(
            result.model.state_dict()
        )  # raises unless the same
    train = result.report.train[0].relative_change
    print(f"{name:16}{count:6}{moved:11.1e}{train:11.2f}{off:11.1e}  {verdict(good)}", flush=True)
    return good


def digits() -> bool:
    """A CNN on real digits: accuracy before norms, with them, at a first step, trained on, folded."""
    train, test = split()
    torch.manual_seed(0)
    plain = trained(lenet(), train, 10, 0.05)
    normed = bntool.insert(plain, train[0][:2], data=list(train[0].split(64))).model
    steps = [accuracy(normed, test, train_batch=n) for n in (2, 8, 32)]
    tuned = trained(copy.deepcopy(normed), train, 3, 0.01)
    folded = bntool.fold(tuned, train[0][:2]).model
    before, after, later, last = (accuracy(m, test) for m in (plain, normed, tuned, folded))
    good = after == before and min(steps) > before - 0.04 and later >= before and last == later
    in_train = " ".join(f"{step:.3f}" for step in steps)
    print(f"digits: {before:.3f} before, {after:.3f} with norms ({in_train} in train mode, batch 2 8 32)")
    print(f"        {later:.3f} trained on, {last:.3f} folded  {verdict(good)}", flush=True)
    return good


def two_processes() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        run_two_processes(Path(folder))
        off = worst_difference(Path(folder))
    print(f"two processes calibrate like one: off by {off:.1e}  {verdict(off <= RANKS_LIMIT)}", flush=True)
    return off <= RANKS_LIMIT


def throughput(name: str, size: int, rounds: int) -> bool:
    """Calibrate against plain eval forward passes over the same images: the median of paired ratios.

    (Each norm costs some 0.1 ms a batch besides reading it, which shows where a network has many norms and
    little to do for each: mobilenet_v2 on images of 64 pixels, which it was not made for, comes to 0.6.)
    """
    model = randomise_norms(network("torchvision", name), (torch.randn(2, 3, size, size),))
    batches, ratios = [torch.randn(16, 3, size, size) for _ in range(8)], []
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model(batch)
        middle = time.perf_counter()
        calibrate_(model, batches)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    ratio = statistics.median(ratios)
    good = ratio >= THROUGHPUT
    print(f"calibrate / plain passes, {name}, {size} pixels: {ratio:.2f}  {verdict(good)}", flush=True)
    return good


def verdict(good: bool) -> str:
    return "ok" if good else "NOT AS ASKED"


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'':16}{'norms':>6}{'eval':>11}{'train of 2':>11}{'weights':>11}")
    good = [inserted(name) for name in sys.argv[1:] or (*NORMS, *NAMES)]
    good += [digits(), two_processes(), *(throughput(*which) for which in THROUGHPUTS)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
