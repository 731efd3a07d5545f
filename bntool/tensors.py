"""Rewritten parameters as torch tensors: computed in float64, cast once, a piece at a time."""

from __future__ import annotations

import numpy as np
import torch

from bntool.algebra.affine import Array, Blocked
from bntool.rewriting import Rewrite

#: elements worked on at a time, so that their float64 copy stays in the processor's cache
PIECE = 1 << 16


def rewritten(rewrite: Rewrite, old: torch.Tensor) -> torch.Tensor | Blocked:
    """The new tensor, with dtype, device and memory format of `old`; Blocked where it leaves the range."""
    new = torch.empty_like(old, requires_grad=False)
    if rewrite.value is not None:
        new.copy_(torch.from_numpy(np.ascontiguousarray(rewrite.value)).reshape(old.shape))
        finite = bool(torch.isfinite(new).all())
    else:
        finite = multiply(old.detach(), _tensor(rewrite.scale, old), _tensor(rewrite.shift, old), new)
    if finite:
        return new
    name = rewrite.param.name if rewrite.param is not None else rewrite.name
    return Blocked(f"{name} would leave the range of {str(old.dtype).removeprefix('torch.')}")


def multiply(
    old: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, new: torch.Tensor
) -> bool:
    """`new = old * scale + shift` in float64; whether all of it is finite. `new` may be `old`."""
    if old.ndim == 0:
        old, new = old.reshape(1), new.reshape(1)
    rows = max(1, PIECE // max(1, old[0].numel())) if old.shape[0] else 1
    finite = True
    for start in range(0, old.shape[0], rows):
        here = slice(start, start + rows)
        piece = old[here].to(torch.float64, copy=True)
        if scale is not None:
            piece.mul_(_rows(scale, here))
        if shift is not None:
            piece.add_(_rows(shift, here))
        new[here] = piece
        finite = finite and bool(new[here].sum().isfinite() or new[here].isfinite().all())
    return finite


def _rows(values: torch.Tensor, here: slice) -> torch.Tensor:
    return values[here] if values.shape[0] > 1 else values


def _tensor(values: Array | None, like: torch.Tensor) -> torch.Tensor | None:
    """A factor with as many dimensions as the tensor it meets."""
    if values is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
    return tensor.reshape((1,) * (max(like.ndim, 1) - tensor.ndim) + tuple(tensor.shape))
