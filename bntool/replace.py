"""Exchange the norms of a model for others of another kind, carrying over all that the other kind has too."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bntool.algebra.affine import Blocked
from bntool.copying import copied
from bntool.edits import apply, plan_of
from bntool.errors import UsageError
from bntool.globs import listed, matches, selected
from bntool.graphs.fx_baked import has_own_forward
from bntool.lazy import is_lazy, stand_ins
from bntool.norms.kinds import KINDS, Setting, Spec, described
from bntool.norms.layers import BatchRenorm, FrozenBatchNorm, GhostBatchNorm
from bntool.norms.stand_in import NormAct
from bntool.norms.submodules import state_kept
from bntool.placing import proof
from bntool.placing.options import check_numbers
from bntool.placing.seen import Seen, watch
from bntool.pooling.batches import example_call
from bntool.progress import Progress, silent
from bntool.result import SCHEMA_VERSION, Result
from bntool.sources.opening import given_module

CARRIED = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
KEEPS_FUNCTION = ("batch", "sync", "renorm", "ghost", "frozen")
"""Kinds that compute in eval mode what a batch norm computes."""
OWN_CLASSES: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(BatchRenorm, GhostBatchNorm, FrozenBatchNorm),
)
"""Norms that do nothing besides what is carried over."""


@dataclass(frozen=True)
class ReplaceEntry:
    """One norm: the class it was, the class it is, what it keeps doing besides (a dropout, an activation)."""

    name: str
    was: str
    now: str
    keeps: str = ""


@dataclass(frozen=True)
class ReplaceReport:
    """What was replaced, what was kept and why, and how far the outputs moved if inputs were given."""

    to: str
    replaced: list[ReplaceEntry] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    eval: proof.EvalProof | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def replace(
    model: Any,
    to: str = "group",
    *,
    example_inputs: Any = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    groups: int | None = None,
    virtual_batch_size: int = 32,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Result[nn.Module, ReplaceReport]:
    """A copy of `model` whose batch norms (frozen ones too) are norms of the kind `to`, or gone with "none".

    `model` is a module, or a reference to one, which may name example inputs itself.
    weight, bias, running statistics, eps, momentum, dtype, device, mode and requires_grad are carried over
    as far as the new kind has them, and so are the dropout and activation of classes such as timm's
    `BatchNormAct2d`. Batch, sync, renorm, ghost and frozen norms compute the same in eval mode; for the
    others the report says how far the outputs moved, given example inputs, which also tell sizes. A frozen
    norm stays frozen under `.train()`.

    Raises: UsageError (unknown kind, a lazy norm, a norm that would erase its data).
    """
    model, example_inputs = given_module(model, example_inputs, "replace")
    if to not in (*KINDS, "none"):
        known = ", ".join((*KINDS, "none"))
        raise UsageError(f"unknown norm {to!r}", where="replace", next=f"Use one of {known}.")
    check_numbers(groups=groups, virtual_batch_size=virtual_batch_size)
    fresh = copied(model, stand_ins(model))
    seen = _run(fresh, example_inputs)
    wanted, kept = _wanted(fresh, to, listed(include), listed(exclude))
    specs = {name: _spec(name, norm, to, seen, groups, virtual_batch_size) for name, norm in wanted.items()}
    entries = []
    for done, (name, norm) in enumerate(wanted.items()):
        progress("replace", done + 1, len(wanted))
        now = specs[name]["type"].rpartition(".")[2]
        entries.append(ReplaceEntry(name, type(norm).__name__, now, ", ".join(_besides(norm))))
        if not dry_run:
            _put(fresh, name, norm, specs[name])
    evaluated = None
    if seen is not None and not dry_run:
        evaluated = proof.in_eval(model, fresh, [example_call(model, example_inputs)])
    return Result(
        fresh,
        ReplaceReport(to, entries, kept, evaluated, plan_of(fresh), _notes(to, entries, seen is not None)),
    )


def _run(model: nn.Module, example_inputs: Any) -> Seen | None:
    """Sizes, and lazy norms made real, from one run in eval mode."""
    if example_inputs is None:
        return None
    with state_kept(model), torch.no_grad():
        model.eval()
        return watch(model, example_call(model, example_inputs))


def _wanted(
    model: nn.Module, to: str, include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    found: dict[str, nn.Module] = {}
    kept = {}
    for name, module in model.named_modules():
        if not is_batch_norm(module):
            continue
        reason = _keep(name, module, to, include, exclude)
        if reason:
            kept[name] = reason
        else:
            found[name] = module
    return found, kept


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm or a frozen one, of torch or of anybody."""
    return isinstance(module, _BatchNorm | FrozenBatchNorm) or is_foreign_frozen(module)


def is_foreign_frozen(module: nn.Module) -> bool:
    """Frozen batch norms of torchvision, detectron2, timm, ...: by name and by what they hold."""
    frozen = type(module).__name__.startswith("FrozenBatchNorm") and not isinstance(module, FrozenBatchNorm)
    return frozen and isinstance(getattr(module, "running_var", None), Tensor)


def _keep(name: str, module: nn.Module, to: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    """Why a norm stays as it is; empty when it is replaced."""
    if matches(name, exclude):
        return "excluded"
    if not selected(name, include, ()):
        return "not included"
    if is_lazy(module):
        raise UsageError("a lazy norm without a size yet", where=name, next="Give example inputs.")
    if kind_of(module) == to:
        return f"it is a {to} norm already"
    if to == "frozen" and not isinstance(module.running_mean, Tensor):
        return "it keeps no running statistics that could be frozen"
    known = type(module) in OWN_CLASSES or is_foreign_frozen(module) or _has_act(module)
    if has_own_forward(module) or (not known and to != "none"):
        return f"{type(module).__name__} has a forward of its own, which would be lost"
    return ""


def kind_of(module: nn.Module) -> str:
    if isinstance(module, FrozenBatchNorm):
        return "frozen"
    by_class: dict[type, str] = {nn.SyncBatchNorm: "sync", BatchRenorm: "renorm", GhostBatchNorm: "ghost"}
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return by_class.get(type(module), "batch" if type(module) in plain else "")


def _has_act(module: nn.Module) -> bool:
    """timm's family: norm, then `drop`, then `act`."""
    return isinstance(getattr(module, "act", None), nn.Module) and isinstance(
        getattr(module, "drop", None), nn.Module
    )


def _besides(module: nn.Module) -> tuple[str, ...]:
    """What the norm does after normalising."""
    return ("drop", "act") if _has_act(module) else ()


def _spec(
    name: str, norm: nn.Module, to: str, seen: Seen | None, groups: int | None, virtual_batch_size: int
) -> Spec:
    if to == "none":
        return {"type": "torch.nn.Identity", "args": {}}
    spec = described(to, _setting(norm, seen, groups, virtual_batch_size))
    if isinstance(spec, Blocked):
        advice = "Exclude it, use other groups, or give example inputs where sizes are not known."
        raise UsageError(spec.reason, where=name, next=advice)
    if getattr(norm, "affine", True) is False and to != "frozen":
        switch = "elementwise_affine" if to in ("layer", "rms") else "affine"
        spec["args"][switch] = False
    if to in ("batch", "sync", "renorm", "ghost") and not isinstance(norm.running_mean, Tensor):
        spec["args"]["track_running_stats"] = False
    return spec


def _setting(norm: nn.Module, seen: Seen | None, groups: int | None, virtual_batch_size: int) -> Setting:
    channels = norm.running_mean.numel() if isinstance(norm.running_mean, Tensor) else norm.num_features
    momentum = getattr(norm, "momentum", 0.1)
    values = seen.inputs.get(norm, []) if seen else []
    rank, per_sample = _rank(norm), None
    if values:
        rank = values[0].dim()
        per_sample = min(v.numel() // (v.shape[0] * v.shape[1]) for v in values)
    return Setting(
        int(channels),  # type: ignore[arg-type]
        rank,
        per_sample=per_sample,
        eps=float(norm.eps),  # type: ignore[arg-type]
        momentum=momentum,
        groups=groups,
        virtual_batch_size=virtual_batch_size,
    )


def _rank(norm: nn.Module) -> int:
    """The dimensions of what the norm reads, from its class: (N, C, L) for what may also be (N, C)."""
    name = type(norm).__name__
    return 3 if "1d" in name else 5 if "3d" in name else 4


def _put(model: nn.Module, name: str, norm: nn.Module, spec: Spec) -> None:
    keeps = {"keeps": True} if _besides(norm) else {}
    norm = copy.copy(norm)  # which becomes the new one itself
    apply(model, {"op": "replace", "path": name, "module": spec, **keeps})
    new = model.get_submodule(name)
    _carry(norm, new.inner if isinstance(new, NormAct) else new)
    new.train(norm.training)


@torch.no_grad()
def _carry(old: nn.Module, new: nn.Module) -> None:
    """Parameters, buffers, dtype, device, gradients and hooks of a norm, as far as the new one has them."""
    reference = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    for name in CARRIED:
        source, target = getattr(old, name, None), getattr(new, name, None)
        if isinstance(source, Tensor) and isinstance(target, Tensor):
            target.copy_(source)
            if isinstance(target, nn.Parameter):
                target.requires_grad_(source.requires_grad or not isinstance(source, nn.Parameter))
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(new, hooks).update(getattr(old, hooks))


def _notes(to: str, entries: list[ReplaceEntry], sized: bool) -> list[str]:
    if not entries:
        return ["no norm to replace"]
    if to in KEEPS_FUNCTION:
        notes = ["in eval mode the model computes what it computed"]
    elif to == "none":
        notes = ["taking a norm out changes the function; fold takes it out without"]
    else:
        notes = [f"{to} norms do not use running statistics: the function has changed and needs training"]
    guessed = [e.name for e in entries if not any(d in e.was for d in ("1d", "2d", "3d"))]
    if to in ("batch", "instance", "group") and guessed and not sized:
        notes.append(f"taken to be over images, for want of example inputs: {', '.join(guessed)}")
    if to in ("instance", "group") and not sized:
        notes.append(
            "give example inputs to see that no norm is over a single value, which would erase the data"
        )
    return notes
