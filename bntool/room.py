"""Memory for new weights, made ready while something else is worked out.

A process gets memory a page at a time, on the first touch of each: for a model's worth of weights that takes
longer than computing them. Another thread can touch the pages meanwhile.
"""

from __future__ import annotations

import threading
from itertools import accumulate
from mmap import PAGESIZE

import torch
from torch import Tensor, nn

from bntool.graphs.walk import modules_in

#: bytes below which a tensor is not worth the trouble
LARGE = 64 << 10
#: types of which anything can be made, filled and copied
COMMON = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: bytes whose pages can be touched while a plan is made; what writes the rest touches it with all its threads
MOST = 256 << 20


class Room:
    """Tensors like some parameters, each given away once."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = {id(p): p for p in parameters}
        self._ready = {id(p): torch.empty_like(p, requires_grad=False) for p in parameters}
        pages = [_one_of_each_page(t) for t in self._ready.values()]
        self._thread = threading.Thread(
            target=_touch, args=(pages, torch.is_inference_mode_enabled()), daemon=True
        )
        if pages:
            self._thread.start()

    def like(self, old: Tensor) -> Tensor:
        """An uninitialised tensor like `old`, which needs no gradient."""
        self.wait()
        ready = self._ready.pop(id(old), None)
        return torch.empty_like(old, requires_grad=False) if ready is None else ready

    def copies(self) -> dict[int, nn.Parameter]:
        """Copies of those parameters whose room nobody has taken, by id, as torch would make them."""
        left = [self._parameters[key] for key in self._ready]
        return {id(p): nn.Parameter(self.like(p).copy_(p.detach()), p.requires_grad) for p in left}

    def wait(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def _one_of_each_page(tensor: Tensor) -> Tensor:
    step = PAGESIZE // tensor.element_size()
    return tensor.as_strided((-(-tensor.numel() // step),), (step,))


def _touch(pages: list[Tensor], inference: bool) -> None:
    """(One call for all of them, which needs the interpreter no more once it has begun.)"""
    with torch.inference_mode(inference):  # each thread has a mode of its own
        torch._foreach_zero_(pages)


def large_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that are worth the trouble, as many as there is time for."""
    held = dict.fromkeys(p for _, module in modules_in(model) for p in module._parameters.values())
    plain = [p for p in held if type(p) is nn.Parameter and p.is_cpu and p.dtype in COMMON]
    large = [p for p in plain if p.layout == torch.strided and p.is_contiguous() and p.nbytes >= LARGE]
    upto = accumulate(p.nbytes for p in large)
    return [p for p, size in zip(large, upto, strict=True) if size <= MOST]
