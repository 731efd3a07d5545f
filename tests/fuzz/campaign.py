"""Folds N random networks in a few processes and prints a small reproducer of every failure."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz import exports
from tests.fuzz.cases import Case, build
from tests.fuzz.judge import norms_left
from tests.fuzz.oracle import complaints
from tests.fuzz.shrink import shrink

CHUNK = 20
#: networks after which it says how far it is
EVERY = 200
PROCESSES = min(2, os.cpu_count() or 1)


def bntool_fold(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> nn.Module:
    """(Where outputs are rounding and nothing else, the oracle alone is to judge.)"""
    from bntool import fold
    from bntool.errors import VerificationError

    try:
        return fold(model, inputs, **options).model
    except VerificationError as refusal:
        if "which tells nothing" not in str(refusal):
            raise
        return fold(model, inputs, verify=False, **options).model


def graph_fold(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Graph form with all it may do beyond module form."""
    return bntool_fold(model, inputs, form="graph", merge=True, split=True)


def all_complaints(case: Case) -> list[str]:
    """Both forms; the class is kept in module form alone."""
    return complaints(case, bntool_fold) + graph_complaints(case)


def graph_complaints(case: Case) -> list[str]:
    found = complaints(case, graph_fold, thorough=False)
    return [f"graph form: {text}" for text in found if not text.startswith("the class became")]


def kind(complaint: str) -> str:
    """What sort of complaint it is: shrinking must not wander from one bug to another."""
    head, _, rest = complaint.partition(": ")
    return head + rest[:20] if head == "graph form" else head[:20]


def reproducer(case: Case, found: list[str]) -> str:
    kinds = {kind(text) for text in found}
    small = shrink(case, lambda c: bool(kinds & {kind(text) for text in all_complaints(c)}))
    head = f"seed {case.seed}, {case.dtype}, input {tuple(case.inputs[0].shape)}"
    return "\n".join([head, *(f"  {text}" for text in found), small.model.describe()])


def one(seed: int) -> tuple[int, int, str]:
    """Norms before, norms left, and the failure if any."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = build(seed)
    found = all_complaints(case)
    if found:
        return 0, 0, reproducer(case, found)
    left = norms_left(bntool_fold(case.model, (case.inputs[0],)))
    return len(norms_left(case.model)), len(left), ""


def main() -> int:
    arguments = [a for a in sys.argv[1:] if a != "--exports"]
    exported = len(arguments) < len(sys.argv) - 1
    count, first, *_ = [*map(int, arguments), *(3000, 0)[len(arguments) :]]
    judge, words = (
        (exports.one, "forms, {1} norms folded") if exported else (one, "norms in eval mode: {1} left")
    )
    totals: Counter[str] = Counter()
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for before, left, failure in pool.imap(judge, range(first, first + count), CHUNK):
            totals.update(before=before, left=left, failures=int(bool(failure)), networks=1)
            if failure:
                print(failure, end="\n\n", flush=True)
            if totals["networks"] % EVERY == 0:
                print(f"{totals['networks']} of {count} networks", file=sys.stderr)
    figures = ("{0} " + words).format(totals["before"], totals["left"])
    print(f"{totals['networks']} networks, {figures}")
    print(f"{totals['failures']} failures in {time.monotonic() - start:.0f} s")
    return 1 if totals["failures"] else 0
