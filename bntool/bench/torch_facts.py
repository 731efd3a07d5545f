"""Deterministic figures of a torch model: what one forward dispatches, multiplies and holds. No clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bntool.bench.norm_names import norm_of

#: kernels that multiply by weights; what these call in turn is counted once, by these names
PRODUCTS = (
    "convolution",
    "addmm",
    "mm",
    "bmm",
    "linear",
    "baddbmm",
    "_scaled_dot_product_flash_attention_for_cpu",
)
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


def dtype_of(tensors: Sequence[torch.Tensor]) -> str:
    """The dtype of the first floating parameter or buffer, as "float32"."""
    return next((str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()), "float32")


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
        "layers": sum(n for name, n in seen.items() if name in PRODUCTS),
        "dtype": dtype_of(held),
        "norms": sum(norms.values()),
        "norms_by_kind": dict(norms),
    }
