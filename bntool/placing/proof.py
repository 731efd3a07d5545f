"""How far a changed model computes what the original computes, in eval mode and at a first training step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from bntool.errors import RunError
from bntool.norms.submodules import state_kept
from bntool.pooling.batches import Call
from bntool.report.agreement import Agreement, compare
from bntool.rounding import DRAWS, HOPELESS, MARGIN, perturbed
from bntool.sources.importing import said
from bntool.sources.outputs import named_arrays
from bntool.sources.precision import full_precision

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

    Of the first output: `relative_change` is rms(new - plain) / rms(plain - its mean over the batch);
    `agreement` the part of samples whose largest value is the same one, None where it is not scores. `note`
    says why nothing was measured.
    """

    batch_size: int
    relative_change: float | None = None
    agreement: float | None = None
    note: str = ""


def in_eval(plain: nn.Module, changed: nn.Module, work: Sequence[Call]) -> EvalProof:
    """Compare over `work`. Both models are left as they were."""
    seen = [agreement for call in work for agreement in _compared(plain, changed, call)]
    if any(agreement.non_finite for agreement in seen):
        return EvalProof(len(work), inf, inf)
    worst_abs = max((agreement.max_abs for agreement in seen), default=0.0)
    return EvalProof(len(work), worst_abs, max((agreement.max_rel for agreement in seen), default=0.0))


def rounding(plain: nn.Module, work: Sequence[Call]) -> float:
    """How far last bits of the weights move the outputs, relative to their largest magnitude."""
    return max(in_eval(plain, perturbed(plain, seed), work).max_rel_error for seed in range(DRAWS))


def explained(plain: nn.Module, changed: nn.Module, work: Sequence[Call], allowed: float) -> float | None:
    """How far rounding alone moves the outputs, where that explains every error above `allowed`; else None.

    A batch on which last bits change everything tells nothing; one must tell.
    """
    worst, told = 0.0, False
    for call in work:
        error = in_eval(plain, changed, [call]).max_rel_error
        noise = 0.0 if error <= allowed else rounding(plain, [call])
        if error > max(allowed, MARGIN * noise):
            return None
        worst, told = max(worst, noise), told or noise <= HOPELESS
    return worst if told else None


def _compared(plain: nn.Module, changed: nn.Module, call: Call) -> list[Agreement]:
    pairs = zip(_outputs(plain, call), _outputs(changed, call), strict=True)
    return [compare(name, a, b) for (name, a), (_, b) in pairs]


def _outputs(
    model: nn.Module, call: Call, trained: Iterable[nn.Module] = ()
) -> list[tuple[str, NDArray[Any]]]:
    """In eval mode, only `trained` in train mode; the model is left as it was.

    One that draws random numbers in eval mode too draws the same ones every time.
    """
    with state_kept(model), torch.no_grad(), torch.random.fork_rng(), full_precision():
        torch.manual_seed(0)
        model.eval()
        for module in trained:
            module.train()
        return numbers(call.run(model))


def in_train(
    plain: nn.Module, changed: nn.Module, norms: Iterable[nn.Module], work: Sequence[Call]
) -> list[TrainProof]:
    """Compare with only `norms` in train mode, at several batch sizes. Both models are left as they were."""
    norms = list(norms)
    return [_at_size(plain, changed, norms, work, size) for size in TRAIN_SIZES]


def _at_size(
    plain: nn.Module, changed: nn.Module, norms: Sequence[nn.Module], work: Sequence[Call], size: int
) -> TrainProof:
    call = batch_of(work, size)
    if call is None:
        return TrainProof(size, note="not that many samples")
    try:
        pairs = list(zip(_outputs(plain, call), _outputs(changed, call, norms), strict=True))
    except RunError as problem:
        return TrainProof(size, note=said(problem.__cause__ or problem))
    (_, a), (_, b) = pairs[0]
    if a.shape != b.shape or not a.size:
        return TrainProof(size, note=f"outputs of shapes {a.shape} and {b.shape}")
    return _change(size, torch.from_numpy(a).double(), torch.from_numpy(b).double())


def _change(size: int, a: Tensor, b: Tensor) -> TrainProof:
    spread = a - a.mean(0) if a.dim() and len(a) == size else a
    change = (b - a).square().mean().sqrt() / spread.square().mean().sqrt().clamp_min(1e-30)
    scores = a.dim() == 2 and a.shape[1] > 1
    agreement = float((a.argmax(1) == b.argmax(1)).double().mean()) if scores else None
    return TrainProof(size, float(change), agreement)


def batch_of(work: Sequence[Call], size: int) -> Call | None:
    """The first `size` samples of `work` as one call; None where batches cannot be cut or put together."""
    taken: list[Call] = []
    while sum(c.size for c in taken) < size and len(taken) < len(work):
        taken.append(work[len(taken)])
    flat = [tree_flatten((c.args, c.kwargs)) for c in taken]
    structure = flat[0][1]
    if any(other != structure for _, other in flat) or sum(c.size for c in taken) < size:
        return None
    try:
        leaves = [
            _cut(list(values), taken, size) for values in zip(*(found for found, _ in flat), strict=True)
        ]
    except RuntimeError:  # of different sizes or dtypes
        return None
    args, kwargs = tree_unflatten(leaves, structure)
    return replace(taken[0], args=args, kwargs=kwargs)


def _cut(values: list[Any], calls: Sequence[Call], size: int) -> Any:
    """The first samples of an argument; the first call's where it is not one item a sample."""
    batched = all(
        isinstance(v, Tensor) and v.dim() and len(v) == c.size for v, c in zip(values, calls, strict=True)
    )
    return torch.cat(values)[:size] if batched else values[0]


def numbers(outputs: Any) -> list[tuple[str, NDArray[Any]]]:
    """The floating-point arrays of whatever a model returns, or all where there is none.

    Raises: RunError for an output that holds none.
    """
    arrays = list(named_arrays(outputs))
    if not arrays:
        raise RunError("the model gives nothing back that could be compared", next="Return tensors.")
    return [(name, array) for name, array in arrays if array.dtype.kind == "f"] or arrays
