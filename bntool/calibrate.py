"""Recompute running statistics from data: pooled exactly, every norm after those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bntool.copying import copied
from bntool.errors import UsageError
from bntool.globs import listed, matches, selected
from bntool.graphs.islands import wrapped
from bntool.lazy import give_sizes, has_lazy_parts, insist_on_data, is_lazy, stand_ins
from bntool.norms.layers import FrozenBatchNorm
from bntool.norms.submodules import state_kept
from bntool.pooling import ranks
from bntool.pooling.batches import Call, calls, device_of
from bntool.pooling.lockstep import MOST, side_by_side
from bntool.pooling.memory import free_bytes, with_peak_bytes
from bntool.pooling.own_forward import normalise_others
from bntool.pooling.rounds import Book, Norms, Outcome, Settled, Trails, one_pass_each
from bntool.pooling.route import Route, traced
from bntool.pooling.update_bn import updated
from bntool.progress import Progress, silent
from bntool.result import SCHEMA_VERSION, Result
from bntool.sources.opening import given_module


@dataclass(frozen=True)
class CalibrateEntry:
    """How far one norm's statistics moved.

    `mean_moved` is the largest |new mean - old mean| in old standard deviations; `var_ratio_min` and `_max`
    are new variance over old. `update_bn_*` is what `torch.optim.swa_utils.update_bn` makes of the same data:
    its mean's distance from the new one in new standard deviations, its variance over the new one. None
    unless that was asked for.
    """

    name: str
    count: int
    mean_moved: float
    var_ratio_min: float
    var_ratio_max: float
    update_bn_mean_off: float | None = None
    update_bn_var_ratio_min: float | None = None
    update_bn_var_ratio_max: float | None = None
    note: str = ""


@dataclass(frozen=True)
class CalibrateReport:
    """What was calibrated on how much, and what was left alone and why.

    `method` is "lockstep" (all batches side by side, one pass) or "passes" (one pass per norm);
    `forwards` counts the forward passes over the data.
    """

    batches: int
    samples: int
    method: str
    forwards: int
    calibrated: list[CalibrateEntry] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def calibrate(model: Any, data: Iterable[Any], **options: Any) -> Result[nn.Module, CalibrateReport]:
    """A copy of `model`, given as such or by reference, with the pooled running statistics of `data`.

    Options and errors are those of `calibrate_`.
    """
    model, _ = given_module(model, None, "calibrate")
    fresh = copied(model, stand_ins(model))
    report = calibrate_(fresh, data, **options)
    return Result(fresh, report)


def calibrate_(
    model: nn.Module,
    data: Iterable[Any],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    method: str = "auto",
    memory_bytes: int | None = None,
    inputs: int | None = None,
    compare: bool = False,
    progress: Progress = silent,
) -> CalibrateReport:
    """Set running_mean and running_var to mean and unbiased variance of each norm's input over all of `data`.

    Every norm sees its input as eval mode will give it: with the norms before it already calibrated. That
    takes one pass where all batches fit in memory side by side ("lockstep"; `memory_bytes`, by default a
    third of what is free), else one pass per norm, ended early ("passes").
    Momentum plays no part. Frozen norms, norms in eval mode inside a model in train mode, and norms whose
    parameters alone are frozen stay as they are. With torch.distributed, all ranks' values are pooled. If
    anything raises, every statistic is as it was.
    With `compare` a copy goes through `update_bn` too, one more pass, and the report has both; with
    torch.distributed `update_bn` knows the process's own data only.

    Raises: UsageError (nothing to calibrate, no data), RunError (NaN or inf, one value per channel).
    """
    if method not in ("auto", "lockstep", "passes"):
        raise UsageError(
            f"unknown method {method!r}", where="calibrate", next="Use auto, lockstep or passes."
        )
    model = getattr(model, "_orig_mod", model)
    insist_on_data(model)
    work = list(calls(model, data, inputs=inputs))
    _refuse_no_data(work, model)
    if has_lazy_parts(model):
        give_sizes(model, work[0])
    norms, skipped = targets(model, listed(include), listed(exclude))
    for name in normalise_others(model, norms, work[0]):
        del norms[name]
        skipped[name] = "its own forward normalises something else than it is given"
    if not norms:
        raise UsageError("no norm to calibrate", where="calibrate", next=_why(skipped))
    others = updated(model, work, list(norms)) if compare else {}
    before = {m: _snapshot(m) for m in norms.values()}
    with state_kept(model, set(norms.values())), _restored_on_error(before), torch.no_grad():
        model.eval()
        outcome = _settle(model, work, norms, method, memory_bytes, progress)
    notes = [f"not compared: update_bn raised {others}"] if isinstance(others, str) else []
    statistics = {} if isinstance(others, str) else others
    entries = [
        _entry(name, before[m], outcome.settled[m], statistics.get(name))
        for name, m in norms.items()
        if m in outcome.settled
    ]
    missed = {name: "the data never reached it" for name, m in norms.items() if m not in outcome.settled}
    samples = sum(call.size for call in work)
    return CalibrateReport(
        len(work), samples, outcome.method, outcome.forwards, entries, {**skipped, **missed}, notes
    )


def _settle(
    model: nn.Module, work: Sequence[Call], norms: Norms, method: str, memory: int | None, progress: Progress
) -> Outcome:
    trails = Trails(model, norms)
    held, (sample, outputs) = with_peak_bytes(model, lambda: trails.probe(work[0]))
    peak = held * sum(call.size for call in work)
    fits = method == "lockstep" or (peak <= (memory or free_bytes(model) // 3) and len(work) <= MOST)
    graph = traced(model)
    same_way = graph is not None or not ranks.several()  # control flow may take processes different ways
    together = ranks.smallest(int(fits and same_way and method != "passes"), device_of(model))
    book = Book(norms, ranks.total(len(work), device_of(model)), trails, progress)
    if together:
        route = None if graph is None else Route(model, graph, trails.names)
        known = route is not None and route.agrees(sample, outputs, trails.trails[0])
        return side_by_side(work, book, route if known else None)
    for call in work if graph is None else []:
        trails.follow(call)  # control flow: batches may go different ways
    trails.share()
    return one_pass_each(work, book)


def targets(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    """The norms to calibrate by name, and for every other one why not."""
    found: dict[str, _BatchNorm] = {}
    skipped = {}
    trained = any(p.requires_grad for p in model.parameters())
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm | _InstanceNorm | FrozenBatchNorm) and not _looks_frozen(module):
            continue
        reason = _left_alone(model, name, module, include, exclude, trained)
        if reason:
            skipped[name] = reason
        else:
            assert isinstance(module, _BatchNorm)
            found[name] = module
    return found, skipped


def _left_alone(
    model: nn.Module,
    name: str,
    module: nn.Module,
    include: Sequence[str],
    exclude: Sequence[str],
    trained: bool,
) -> str:
    """Why the norm is not calibrated; empty when it is."""
    if is_lazy(module):
        return "lazy, and without a size yet: the first batch does not reach it"
    if not isinstance(module, _BatchNorm):
        kind = "frozen" if not isinstance(module, _InstanceNorm) else "an instance norm"
        return f"{kind}: it has no statistics of the batch"
    if module.running_mean is None or module.running_var is None:
        return "it keeps no running statistics"
    if not selected(name, include, exclude):
        return "excluded" if matches(name, exclude) else "not included"
    if include:
        return ""
    if model.get_submodule(wrapped(model)).training and not module.training:
        return "frozen: in eval mode inside a model in train mode"
    if trained and module.weight is not None and not module.weight.requires_grad:
        return "frozen: its weight does not require a gradient while the model trains"
    return ""


def _looks_frozen(module: nn.Module) -> bool:
    return type(module).__name__.startswith("FrozenBatchNorm")


def _why(skipped: dict[str, str]) -> str:
    first = next(iter(skipped.items()), None)
    return f"{first[0]}: {first[1]}." if first else "The model has no batch norm; insert puts some in."


def _refuse_no_data(work: list[Call], model: nn.Module) -> None:
    if not ranks.smallest(len(work), device_of(model)):
        raise UsageError("no data", where="calibrate", next="Give at least one batch to every process.")


def _snapshot(norm: _BatchNorm) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {n: getattr(norm, n).detach().clone() for n in names if getattr(norm, n) is not None}


@contextmanager
def _restored_on_error(before: dict[_BatchNorm, dict[str, Tensor]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for norm, state in before.items():
                for name, value in state.items():
                    getattr(norm, name).copy_(value)
        raise


def _entry(
    name: str, before: dict[str, Tensor], settled: Settled, other: tuple[Tensor, Tensor] | None
) -> CalibrateEntry:
    mean, var = settled.moments.mean, settled.moments.variance()
    moved = _distance(mean, before["running_mean"].double(), before["running_var"].double())
    low, high = _range(var, before["running_var"].double())
    if other is None:
        return CalibrateEntry(name, settled.moments.count, moved, low, high, note=settled.note)
    compared = (_distance(other[0], mean, var), *_range(other[1], var))
    return CalibrateEntry(name, settled.moments.count, moved, low, high, *compared, settled.note)


TINY = 1e-30
"""Keeps ratios of dead channels finite."""


def _distance(mean: Tensor, other: Tensor, var: Tensor) -> float:
    """The largest |mean - other| of any channel in its standard deviations."""
    return float(((mean - other).abs() / var.clamp_min(TINY).sqrt()).max())


def _range(new: Tensor, old: Tensor) -> tuple[float, float]:
    ratio = (new + TINY) / (old + TINY)
    return float(ratio.min()), float(ratio.max())
