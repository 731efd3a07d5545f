"""What a norm costs: time of a training step and of inference, paired and interleaved, and memory exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bntool.bench.paired import compare_callables
from bntool.study.arms import PLAIN
from bntool.study.training import optimizer_of
from bntool.study.trial import Trial

if TYPE_CHECKING:
    from bntool.study.setting import Setting

#: error rate of the intervals: 5 % shared by seven claims
ALPHA = 0.05 / 7


def cost(setting: Setting, trial: Trial) -> dict[str, Any]:
    """Ratios of the trial's norm over the plain model: step, inference, folded inference; memory in bytes."""
    plain, normed = setting.build(trial.at(norm=PLAIN)), setting.build(trial)
    folded, note = folded_copy(normed, setting.example())
    batch = setting.data.train.first(trial.batch_size).to(setting.device)
    loss_of = setting.scoring.loss

    def stepping(model: nn.Module) -> Callable[[], object]:
        model = copy.deepcopy(model).train()
        optimizer = optimizer_of(model, trial.at(rate=1e-6))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(*batch.inputs), batch.targets).backward()
            optimizer.step()

        return step

    def inferring(model: nn.Module) -> Callable[[], object]:
        model = copy.deepcopy(model).eval()

        def forward() -> None:
            with torch.inference_mode():
                model(*batch.inputs)

        return forward

    budget = setting.cost_budget_s / 2.0
    steps = timed({"plain": stepping(plain), "norm": stepping(normed)}, budget)
    forwards = {"plain": inferring(plain), "norm": inferring(normed)}
    if folded is not None:
        forwards["folded"] = inferring(folded)
    memory = {n: saved_bytes(m, batch.inputs) for n, m in (("plain", plain), ("norm", normed))}
    weights = {n: weight_bytes(m) for n, m in (("plain", plain), ("norm", normed))}
    return {
        "step": steps,
        "inference": timed(forwards, budget),
        "saved_bytes": memory,
        "weight_bytes": weights,
        "fold_note": note,
    }


def timed(calls: dict[str, Callable[[], object]], budget_s: float) -> list[dict[str, Any]]:
    """Name, median time and ratio (with its interval) of each callable; the first is the baseline."""
    found = compare_callables(calls, budget_s=budget_s, alpha=ALPHA)
    return [{"name": t.name, "median_s": t.median_s, **asdict(t.ratio)} for t in found]


def folded_copy(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module | None, str]:
    """The network with its norms folded, and what could not be."""
    from bntool.errors import BntoolError
    from bntool.fold import fold

    try:
        result = fold(model.eval(), example)
    except BntoolError as problem:
        return None, str(problem)
    finally:
        model.train()
    return result.model, f"{len(result.report.folded)} of {result.report.found} norms folded"


def saved_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that one forward keeps for the backward pass (weights not counted, shared storage once)."""
    seen: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output: Any = model(*inputs)
    del output
    return sum(seen.values())


def weight_bytes(model: nn.Module) -> int:
    values = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in values)
