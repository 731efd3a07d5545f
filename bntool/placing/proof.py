"""How far a changed model computes what the original computes, in eval mode and at a first training step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bntool.norms.submodules import modes_kept
from bntool.pooling.batches import Call

TRAIN_SIZES = (2, 8, 32)


@dataclass(frozen=True)
class EvalProof:
    """Outputs in eval mode: the largest difference, and that over the largest magnitude of the output."""

    batches: int
    max_abs_error: float
    max_rel_error: float


@dataclass(frozen=True)
class TrainProof:
    """Outputs with the new norms in train mode against the plain model, on batches of one size.

    `relative_change` is rms(new - plain) / rms(plain - its mean over the batch); `agreement` the part of
    samples whose largest output is the same one, None where outputs are not scores. `note` says why nothing
    was measured.
    """

    batch_size: int
    relative_change: float | None = None
    agreement: float | None = None
    note: str = ""


def in_eval(plain: nn.Module, changed: nn.Module, work: Sequence[Call]) -> EvalProof:
    """Compare over `work`. Both models are left in the mode they were in."""
    worst_abs = worst_rel = 0.0
    with modes_kept(plain), modes_kept(changed), torch.no_grad():
        plain.eval()
        changed.eval()
        for call in work:
            for a, b in zip(floats(call.run(plain)), floats(call.run(changed)), strict=True):
                error = float((a - b).abs().max())
                error = error if error == error else float("inf")
                worst_abs = max(worst_abs, error)
                worst_rel = max(worst_rel, error / max(float(a.abs().max()), 1e-30))
    return EvalProof(len(work), worst_abs, worst_rel)


def in_train(
    plain: nn.Module, changed: nn.Module, norms: Iterable[nn.Module], work: Sequence[Call]
) -> list[TrainProof]:
    """Compare with only `norms` in train mode, at several batch sizes; their statistics are put back."""
    norms = list(norms)
    before = [{k: v.clone() for k, v in norm.state_dict().items()} for norm in norms]
    try:
        with modes_kept(plain), modes_kept(changed), torch.no_grad():
            plain.eval()
            changed.eval()
            for norm in norms:
                norm.train()
            return [_at_size(plain, changed, work, size) for size in TRAIN_SIZES]
    finally:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)


def _at_size(plain: nn.Module, changed: nn.Module, work: Sequence[Call], size: int) -> TrainProof:
    call = batch_of(work, size)
    if call is None:
        return TrainProof(size, note="not that many samples")
    try:
        pairs = list(zip(floats(call.run(plain)), floats(call.run(changed)), strict=True))
    except (ValueError, RuntimeError) as problem:
        return TrainProof(size, note=str(problem))
    a, b = pairs[0]
    change = (b - a).square().mean().sqrt() / (a - a.mean(0)).square().mean().sqrt().clamp_min(1e-30)
    scores = a.dim() == 2 and a.shape[1] > 1
    agreement = float((a.argmax(1) == b.argmax(1)).double().mean()) if scores else None
    return TrainProof(size, float(change), agreement)


def batch_of(work: Sequence[Call], size: int) -> Call | None:
    """The first `size` samples of `work` as one call; None where batches cannot be cut or put together."""
    taken: list[Call] = []
    while sum(c.size for c in taken) < size and len(taken) < len(work):
        taken.append(work[len(taken)])
    first = taken[0]
    alike = all(len(c.args) == len(first.args) and c.kwargs.keys() == first.kwargs.keys() for c in taken)
    if not alike or sum(c.size for c in taken) < size:
        return None
    try:
        args = tuple(_cut([c.args[i] for c in taken], size) for i in range(len(first.args)))
        return Call(args, {k: _cut([c.kwargs[k] for c in taken], size) for k in first.kwargs})
    except (RuntimeError, TypeError):
        return None


def _cut(values: list[Any], size: int) -> Any:
    return torch.cat(values)[:size] if isinstance(values[0], Tensor) else values[0]


def floats(outputs: Any) -> list[Tensor]:
    """The floating tensors of whatever a model returns, in float64."""
    return [
        v.detach().double() for v in tree_leaves(outputs) if isinstance(v, Tensor) and v.is_floating_point()
    ]
