"""Deterministic figures of a torch model: what one forward dispatches, multiplies and holds. No clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

#: a kernel is a norm if its ATen name contains one of these
NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
#: names that only make a new view of the same memory: no work
VIEWS = (
    "view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
)


class CountKernels(TorchDispatchMode):
    """Counts every ATen operator that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def norm_of(kernel: str) -> str:
    return next((norm for norm in NORMS if norm in kernel), "")


def kernels(call: Callable[[], object]) -> Counter[str]:
    with torch.no_grad(), CountKernels() as counter:
        call()
    return Counter({name: n for name, n in counter.seen.items() if name not in VIEWS})


def macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of convolutions, matrix products and attention in one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def torch_facts(module: torch.nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """Counts for one forward: parameters, bytes (parameters and buffers), MACs, ops, norms left by kind."""
    seen = kernels(call)
    norms: Counter[str] = Counter()
    for name, count in seen.items():
        if norm_of(name):
            norms[norm_of(name)] += count
    held = [*module.parameters(), *module.buffers()]
    unique = {id(t): t for t in held}.values()
    return {
        "params": sum(p.numel() for p in module.parameters()),
        "size_bytes": sum(t.numel() * t.element_size() for t in unique),
        "macs": macs(call),
        "ops": sum(seen.values()),
        "norms": sum(norms.values()),
        "norms_by_kind": dict(norms),
    }
