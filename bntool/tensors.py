"""Rewritten parameters as torch tensors: computed in float64, cast once, a piece at a time."""

from __future__ import annotations

import numpy as np
import torch

from bntool.algebra.affine import Array, Blocked
from bntool.rewriting import Rewrite

#: elements worked on at a time, so that their float64 copy stays in the processor's cache
PIECE = 1 << 17


def rewritten(rewrite: Rewrite, old: torch.Tensor) -> torch.Tensor | Blocked:
    """The new tensor, with dtype, device and memory format of `old`; Blocked where it leaves the range."""
    new = torch.empty_like(old, requires_grad=False)
    if rewrite.value is not None:
        new.copy_(torch.from_numpy(np.ascontiguousarray(rewrite.value)).reshape(old.shape))
        finite = bool(torch.isfinite(new).all())
    else:
        finite = multiply(old.detach(), _tensor(rewrite.scale, old), _tensor(rewrite.shift, old), new)
    return new if finite else _refusal(rewrite, old)


def _refusal(rewrite: Rewrite, old: torch.Tensor) -> Blocked:
    name = rewrite.param.name if rewrite.param is not None else rewrite.name
    return Blocked(f"{name} would leave the range of {str(old.dtype).removeprefix('torch.')}")


def out_of_range(rewrite: Rewrite, old: torch.Tensor) -> Blocked | None:
    """Why `old` cannot be overwritten, if it cannot; computed in full only where a bound does not tell."""
    if rewrite.value is None and old.numel():
        low, high = old.detach().aminmax()
        factor = 1.0 if rewrite.scale is None else float(np.abs(rewrite.scale).max())
        shift = 0.0 if rewrite.shift is None else float(np.abs(rewrite.shift).max())
        if max(-float(low), float(high)) * factor + shift < torch.finfo(old.dtype).max:
            return None
    outcome = rewritten(rewrite, old)
    return outcome if isinstance(outcome, Blocked) else None


def overwrite(rewrite: Rewrite, old: torch.Tensor) -> None:
    """The new value in the old one's place, piece by piece."""
    place = old.detach()
    if rewrite.value is not None:
        place.copy_(torch.from_numpy(np.ascontiguousarray(rewrite.value)).reshape(old.shape))
    else:
        multiply(place, _tensor(rewrite.scale, old), _tensor(rewrite.shift, old), place)


def multiply(
    old: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, new: torch.Tensor
) -> bool:
    """`new = old * scale + shift` in float64; whether all of it is finite. `new` may be `old`."""
    if old.ndim == 0:
        old, new = old.reshape(1), new.reshape(1)
    rows = max(1, PIECE // max(1, old[0].numel())) if old.shape[0] else 1
    finite = True
    space = torch.empty_like(old[:rows], dtype=torch.float64)
    for start in range(0, old.shape[0], rows):
        here = slice(start, start + rows)
        piece = space[: min(rows, old.shape[0] - start)].copy_(old[here])
        if scale is not None:
            piece.mul_(_rows(scale, here))
        if shift is not None:
            piece.add_(_rows(shift, here))
        result = new[here].copy_(piece)
        finite = finite and bool(result.sum().isfinite() or result.isfinite().all())
    return finite


def _rows(values: torch.Tensor, here: slice) -> torch.Tensor:
    return values[here] if values.shape[0] > 1 else values


def _tensor(values: Array | None, like: torch.Tensor) -> torch.Tensor | None:
    """A factor with as many dimensions as the tensor it meets."""
    if values is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
    return tensor.reshape((1,) * (max(like.ndim, 1) - tensor.ndim) + tuple(tensor.shape))
