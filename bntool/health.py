"""What is wrong, or will be, with the norms of a model: where, what, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bntool.copying import copied
from bntool.hidden_biases import HiddenBias, hidden_biases
from bntool.lazy import sized
from bntool.norms.kinds import spread_of_variance
from bntool.norms.moments import Moments
from bntool.norms.submodules import modes_kept
from bntool.placing.flow import Flow, called, module_flow, up
from bntool.placing.seen import Seen, watch
from bntool.placing.state import observe, random_calls
from bntool.pooling.batches import Call, example_call
from bntool.result import SCHEMA_VERSION

DEAD = 1e-12
"""Variance at or below which a channel is taken to be constant."""
EXPLODING = 1e6
"""Times the median variance of its layer above which a channel's is called exploding."""
HALF_MAX = 65504.0
"""The largest float16: a channel whose |mean| + 3 standard deviations lie beyond it explodes too."""
FEW, MANY = 8, 32
"""Values per channel below which batch statistics are very noisy, and noisy."""
SHIFT = 0.1
"""Relative change of the variance by a dropout that is worth a word."""


@dataclass(frozen=True)
class Finding:
    """`check` names the rule, `where` the norm; `severity` is "note", "warning" or "problem"."""

    check: str
    where: str
    severity: str
    what: str
    do: str


@dataclass(frozen=True)
class NormSize:
    """How many values per channel a norm has statistics from in training, N * H * W, and the risk."""

    name: str
    n_eff: int
    risk: str


@dataclass(frozen=True)
class Health:
    """All findings, and n_eff of every norm where example inputs were given."""

    batch_size: int | None = None
    sizes: list[NormSize] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def health(model: nn.Module, example_inputs: Any = None, *, batch_size: int | None = None) -> Health:
    """Check every batch norm of `model`. With example inputs also what depends on sizes and on values.

    batch_size: the batch the model is trained with; by default that of the example inputs.
    """
    model = sized(model, None if example_inputs is None else example_call(model, example_inputs))
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    findings = [f for name, norm in norms.items() for f in _of_state(name, norm, model)]
    if example_inputs is None:
        return Health(None, [], [*findings, *_of_flow(model, norms, None)])
    fresh = copied(model, {})
    example = example_call(fresh, example_inputs)
    with modes_kept(fresh), torch.no_grad():
        fresh.eval()
        seen = watch(fresh, example)
    size = batch_size or example.size
    sizes = [s for name in norms if (s := _size(name, fresh, seen, size, example.size)) is not None]
    findings += [f for s in sizes for f in _of_size(s, size)]
    return Health(size, sizes, [*findings, *_of_flow(fresh, norms, example)])


# --- what a norm's own state tells


def _of_state(name: str, norm: _BatchNorm, model: nn.Module) -> Iterator[Finding]:
    if norm.running_mean is None or norm.running_var is None:
        what = (
            "it keeps no running statistics: in eval mode too every output depends on the rest of the batch"
        )
        yield Finding("no-statistics", name, "problem", what, "Set track_running_stats and calibrate.")
        return
    if not all(bool(torch.isfinite(p).all()) for p in norm.parameters()):
        what = "its weight or bias holds NaN or infinite values"
        yield Finding("broken-parameters", name, "problem", what, "Go back to a checkpoint without them.")
    if not norm.track_running_stats:
        what = "track_running_stats is off: the running statistics it has never move"
        advice = "Set it, or replace the norm by a frozen one if meant so."
        yield Finding("not-tracked", name, "warning", what, advice)
    yield from _of_statistics(name, norm, norm.running_mean.double(), norm.running_var.double())
    if norm.training and not model.training:
        what = "it is in train mode inside a model in eval mode: it normalises by the batch and keeps moving"
        yield Finding("train-mode", name, "problem", what, "Call .eval() on it.")
    if norm.momentum == 0:
        what = "momentum is 0: the running statistics never move"
        yield Finding(
            "momentum", name, "warning", what, "Set 0.1, or replace it by a frozen norm if meant so."
        )
    if norm.momentum is None:
        what = (
            "momentum is None: the statistics are the average since the start of training, old values and all"
        )
        yield Finding("momentum", name, "note", what, "Set 0.1 for training, or calibrate afterwards.")


def _of_statistics(name: str, norm: _BatchNorm, mean: Tensor, var: Tensor) -> Iterator[Finding]:
    if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all()) or bool((var < 0).any()):
        what = "running statistics are NaN, infinite or negative"
        yield Finding("broken-statistics", name, "problem", what, "Calibrate on clean data.")
        return
    if bool((mean == 0).all() and (var == 1).all()):
        what = "the running statistics are those of a new norm: they were never updated"
        yield Finding("never-updated", name, "warning", what, "Train, or calibrate on data.")
        return
    dead = var <= DEAD
    if norm.weight is not None:
        dead |= norm.weight.detach().double().abs() * torch.rsqrt(var + norm.eps) <= DEAD
    if count := int(dead.sum()):
        what = f"{count} of {len(var)} channels are dead: they never vary, or are multiplied by zero"
        yield Finding("dead-channels", name, "warning", what, "Prune them, or look at the layer before.")
    advice = "Lower the learning rate; check the data's range."
    if count := int((var > EXPLODING * var.median().clamp_min(DEAD)).sum()):
        what = f"{count} of {len(var)} channels have a variance over a million times the median"
        yield Finding("exploding-channels", name, "warning", what, advice)
    elif count := int((mean.abs() + 3 * var.sqrt() > HALF_MAX).sum()):
        what = f"{count} of {len(var)} channels have values beyond what float16 holds"
        yield Finding("exploding-channels", name, "warning", what, advice)


# --- what sizes tell


def _size(name: str, model: nn.Module, seen: Seen, batch_size: int, example_size: int) -> NormSize | None:
    values = seen.inputs.get(model.get_submodule(name))
    if not values:
        return None
    n_eff = min(v.numel() // v.shape[1] for v in values) * batch_size // example_size
    risk = "none" if n_eff >= MANY else "noisy" if n_eff >= FEW else "high" if n_eff > 1 else "fails"
    return NormSize(name, n_eff, risk)


def _of_size(size: NormSize, batch_size: int) -> Iterator[Finding]:
    advice = "Train with larger batches, freeze it, or use group norm: replace --to group."
    if size.risk == "fails":
        what = f"one value per channel at batch size {batch_size}: training raises an error"
        yield Finding("one-value", size.name, "problem", what, advice)
    elif size.risk != "none":
        off = 100 * spread_of_variance(size.n_eff)
        what = f"{size.n_eff} values per channel at batch size {batch_size}: variances off by {off:.0f} %"
        yield Finding("small-batch", size.name, "warning" if size.risk == "high" else "note", what, advice)


# --- what the way to the norm tells


def _of_flow(model: nn.Module, norms: dict[str, _BatchNorm], example: Call | None) -> Iterator[Finding]:
    hidden = hidden_biases(model, None if example is None else (example.args, example.kwargs))
    yield from map(_of_bias, hidden)
    flow = module_flow(model, example)
    shifted = {name: found for name in norms if (found := _dropouts_before(flow, name))}
    shifts = _shifts(model, list(shifted), example) if shifted and example is not None else {}
    for name, dropouts in shifted.items():
        yield from _of_dropout(name, dropouts, shifts.get(name))


def _of_bias(hidden: HiddenBias) -> Finding:
    own = hidden.bias == f"{hidden.layer}.bias"
    bias = f"the bias of {hidden.layer}" if own else f"{hidden.bias}, the bias of {hidden.layer},"
    what = f"{bias} has no effect in training: the norm takes the mean out again"
    do = f"Build {hidden.layer} with bias=False." if own else f"Call {hidden.layer} without a bias."
    return Finding("bias-before-norm", hidden.norm, "note", what, do)


def _dropouts_before(flow: Flow, name: str) -> list[str]:
    """The dropouts whose noise reaches the norm through at most one layer."""
    found = []
    for node in flow.calls_of(name)[:1]:
        near = list(up(node, lambda n: flow.role(n) in ("layer", "norm", "dropout")))
        layers = [n for n in near if flow.role(n) == "layer"]
        further = [m for n in layers for m in up(n, lambda m: flow.role(m) in ("layer", "norm", "dropout"))]
        found += [flow.path_of(n) or called(n) for n in (*near, *further) if flow.role(n) == "dropout"]
    return list(dict.fromkeys(found))


def _shifts(model: nn.Module, names: list[str], example: Call) -> dict[str, float]:
    """Variance of what each norm reads with all dropouts on, over that with them off."""
    work = random_calls(example)
    off = _variances(model, names, work, on=False)
    on = _variances(model, names, work, on=True)
    return {n: float(on[n].variance().mean() / off[n].variance().mean()) for n in names if n in on}


def _variances(model: nn.Module, names: list[str], work: list[Call], *, on: bool) -> dict[str, Moments]:
    def switch(module: nn.Module, _: Any) -> None:
        module.training = on  # dropouts by function call ask the module that calls them

    handles = [m.register_forward_pre_hook(switch) for m in model.modules() if not isinstance(m, _NormBase)]
    places = {name: (model.get_submodule(name), True, 1) for name in names}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return observe(model, work, places)
    finally:
        for handle in handles:
            handle.remove()


def _of_dropout(name: str, dropouts: list[str], shift: float | None) -> Iterator[Finding]:
    if shift is not None and abs(shift - 1) < SHIFT:
        return
    measured = "" if shift is None else f": in training the variance here is {shift:.2f} times that in eval"
    what = f"the dropout {', '.join(dropouts)} comes before it{measured}"
    yield Finding("dropout-before-norm", name, "warning", what, "Put the dropout behind the last norm.")
