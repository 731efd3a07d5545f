"""What the runtimes that call a torch module share: the call itself, its mode, threads, clock and profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from bntool.bench.clock import Clock, clock_for
from bntool.bench.source import Source
from bntool.bench.torch_facts import torch_facts
from bntool.copying import own_inputs
from bntool.sources.outputs import named_arrays
from bntool.sources.running import Outputs

#: what torch chose by itself, before any session set it
OWN_THREADS = torch.get_num_threads()


class TorchSession:
    """A callable module under a case's conditions.

    `plain` makes the module that facts are counted on where `module` hides its operators (it is compiled).
    """

    def __init__(
        self,
        source: Source,
        module: Callable[..., Any],
        plain: Callable[[], torch.nn.Module] | None = None,
    ) -> None:
        conditions = source.conditions
        self.module, self.plain = module, plain
        self.given = source.call
        self.args, self.kwargs = own_inputs(self.given)  # a model may write into them
        self.threads = int(source.candidate.options.get("threads", conditions.threads)) or OWN_THREADS
        self.device = conditions.device
        self.clock: Clock = clock_for(conditions.device, flush_l2=conditions.flush_l2)
        self.run: Callable[[], object] = self.infer
        if conditions.mode == "train":
            assert isinstance(module, torch.nn.Module)
            self.run = training_step(module, self.args, self.kwargs)

    def activate(self) -> None:
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def infer(self) -> object:
        with torch.inference_mode():
            return self.module(*self.args, **self.kwargs)

    def outputs(self) -> Outputs:
        args, kwargs = own_inputs(self.given)
        with in_eval(self.module), torch.no_grad():
            return list(named_arrays(self.module(*args, **kwargs)))

    def facts(self) -> dict[str, Any]:
        """Counted on the calls made, or where those are hidden on the module before it was compiled."""
        counted = self.plain() if self.plain else self.module
        assert isinstance(counted, torch.nn.Module)
        on = "the module before it was compiled" if self.plain else "the calls made"
        with in_eval(counted):
            return torch_facts(counted, lambda: counted(*self.args, **self.kwargs)) | {"counted_on": on}

    def profile(self) -> dict[str, float]:
        from torch.profiler import ProfilerActivity, profile

        calls, cuda = 10, self.device.startswith("cuda")
        if self.device == "mps":
            return {}  # the profiler sees what launches kernels there, not the kernels
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as seen:
            for _ in range(calls):
                self.run()
            self.clock.ready()
        return spent_in(seen.key_averages(), calls, cuda)


def spent_in(events: Any, calls: int, cuda: bool) -> dict[str, float]:
    """Seconds per operator and call, most first.

    On CUDA the time of the kernels that an operator launched: the profiler also lists every kernel by itself,
    which would count it twice, and the time to launch one runs beside the kernels. Where operators launch
    none (a graph is replayed), the kernels themselves.
    Units: the profiler's are microseconds.
    """
    operators = [e for e in events if e.device_type.name == "CPU"]
    us = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in operators]
    if not any(time for _, time in us):
        us = [(e.key, e.self_device_time_total) for e in events]
    spent: Counter[str] = Counter()
    for key, time in us:
        spent[key.removeprefix("aten::")] += time / (1e6 * calls)
    return {key: seconds for key, seconds in spent.most_common() if seconds > 0}


class in_eval:  # reads as a phrase in a with statement
    """Evaluation mode for a moment; what is not a module has no mode."""

    def __init__(self, module: object) -> None:
        self.modules = list(module.modules()) if isinstance(module, torch.nn.Module) else []

    def __enter__(self) -> None:
        self.before = [m.training for m in self.modules]
        for module in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, training in zip(self.modules, self.before, strict=True):
            module.training = training


def training_step(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], object]:
    """Forward, backward and one step of SGD with momentum. The rate is zero: the same work, and no drift."""
    from torch.utils import _pytree

    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        results = [t for t in _pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]
        loss = sum(t.float().square().mean() for t in results if t.is_floating_point())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimiser.step()

    return step
