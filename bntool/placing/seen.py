"""What the modules of a model took and gave when it ran once: sizes, order, who called whom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bntool.pooling.batches import Call


class Seen:
    """What the modules of a model took and gave in one run, and how often they ran."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, list[Tensor]] = {}
        self.outputs: dict[nn.Module, list[Tensor]] = {}
        self.extra: set[nn.Module] = set()
        self.by_hand: set[nn.Module] = set()
        """Modules that others called than the one whose child they are."""
        self.last: nn.Module | None = None
        """The layer that ran last."""
        self.running: list[nn.Module] = []

    def enter(self, module: nn.Module, _: Any) -> None:
        if self.running and module not in self.running[-1]._modules.values():
            self.by_hand.add(module)
        self.running.append(module)

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        while self.running and self.running.pop() is not module:
            pass  # what raised, and whose error was caught
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(module, _ConvNd | nn.Linear):
            self.last = module
        if len(args) + len(kwargs) > 1:
            self.extra.add(module)
        for values, value in ((self.inputs, first), (self.outputs, output)):
            sizes = value.detach().to("meta") if isinstance(value, Tensor) else torch.empty(0, device="meta")
            values.setdefault(module, []).append(sizes)


def watch(model: nn.Module, call: Call) -> Seen:
    """Run `call` and note what every module took and gave."""
    seen = Seen()
    handles = [m.register_forward_pre_hook(seen.enter) for m in model.modules()]
    handles += [m.register_forward_hook(seen.note, with_kwargs=True) for m in model.modules()]
    try:
        call.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen
