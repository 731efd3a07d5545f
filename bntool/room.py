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

#: bytes below which a tensor is not worth the trouble
LARGE = 64 << 10
#: bytes whose pages can be touched while a plan is made; what writes the rest touches it with all its threads
MOST = 256 << 20


class Room:
    """Tensors like some others, each given away once."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._ready = {id(t): torch.empty_like(t, requires_grad=False) for t in tensors}
        pages = [t.view(-1)[:: PAGESIZE // t.element_size()] for t in self._ready.values()]
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

    def wait(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def _touch(pages: list[Tensor], inference: bool) -> None:
    """(One call for all of them, which needs the interpreter no more once it has begun.)"""
    with torch.inference_mode(inference):  # each thread has a mode of its own
        torch._foreach_zero_(pages)


def large_parameters(model: nn.Module) -> list[Tensor]:
    """Those that are worth the trouble, as many as there is time for."""
    plain = [p for p in model.parameters() if type(p) is nn.Parameter and p.is_cpu]
    large = [p for p in plain if p.layout == torch.strided and p.is_contiguous() and p.nbytes >= LARGE]
    upto = accumulate(p.nbytes for p in large)
    return [p for p, size in zip(large, upto, strict=True) if size <= MOST]
