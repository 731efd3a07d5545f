"""Rewritten parameters as torch tensors: computed in float64, cast once, a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch

from bntool.algebra.affine import Array, Blocked
from bntool.rewriting import Rewrite
from bntool.room import Room

#: elements that each thread works on at a time, so that their float64 copy stays in its cache
PIECE = 1 << 18


class Arithmetic:
    """Carries rewrites out. One float64 space serves all tensors: memory new to a process is slow."""

    def __init__(self, room: Room | None = None) -> None:
        self._space = torch.empty(0, dtype=torch.float64)
        self._room = Room([]) if room is None else room

    def rewritten(self, rewrite: Rewrite, old: torch.Tensor) -> torch.Tensor | Blocked:
        """The new tensor, with the dtype and layout of `old`; Blocked where it leaves the range."""
        new = self._room.like(old)
        return new if self._write(rewrite, old.detach(), new) else _refusal(rewrite, old)

    def made(self, rewrite: Rewrite, like: torch.Tensor) -> torch.Tensor | Blocked:
        """A tensor where there was none, with the dtype and device of `like`; Blocked as `rewritten` is."""
        assert rewrite.value is not None
        new = torch.from_numpy(np.ascontiguousarray(rewrite.value)).to(like.device, like.dtype)
        return new if finite(new) else _refusal(rewrite, like)

    def overwrite(self, rewrite: Rewrite, old: torch.Tensor) -> None:
        """The new value in the old one's place, piece by piece; for one value shown several times, in
        a place of its own."""
        place = old.detach()
        if any(step == 0 and size > 1 for size, step in zip(old.shape, old.stride(), strict=True)):
            old.data = place = place.contiguous()
        self._write(rewrite, place, place)

    def out_of_range(self, rewrite: Rewrite, old: torch.Tensor) -> Blocked | None:
        """Why `old` cannot be overwritten, if so; computed in full only where a bound does not tell."""
        if rewrite.value is None and old.numel():
            low, high = old.detach().aminmax()
            factor = 1.0 if rewrite.scale is None else float(np.abs(rewrite.scale).max())
            shift = 0.0 if rewrite.shift is None else float(np.abs(rewrite.shift).max())
            if max(-float(low), float(high)) * factor + shift < torch.finfo(old.dtype).max:
                return None
        outcome = self.rewritten(rewrite, old)
        return outcome if isinstance(outcome, Blocked) else None

    def _write(self, rewrite: Rewrite, old: torch.Tensor, new: torch.Tensor) -> bool:
        """Whether all of it is finite."""
        if rewrite.value is None:
            return self._multiply(old, _tensor(rewrite.scale, old), _tensor(rewrite.shift, old), new)
        new.copy_(torch.from_numpy(np.ascontiguousarray(rewrite.value)).reshape(old.shape))
        return finite(new)

    def _multiply(
        self, old: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, new: torch.Tensor
    ) -> bool:
        """`new = old * scale + shift` in float64; whether all of it is finite. `new` may be `old`."""
        if old.ndim == 0:
            old, new = old.reshape(1), new.reshape(1)
        rows = max(1, _piece() * old.shape[0] // max(1, old.numel()))
        count = max(1, -(-old.shape[0] // rows))
        pieces = (_split(values, rows, count) for values in (old, new, scale, shift))
        fine = [self._multiply_piece(*piece) for piece in zip(*pieces, strict=True)]
        return all(fine)

    def _multiply_piece(
        self, old: torch.Tensor, new: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None
    ) -> bool:
        space = self._space_like(old).copy_(old)
        if scale is not None:
            space.mul_(scale)
        if shift is not None:
            space.add_(shift)
        return finite(new.copy_(space))

    def _space_like(self, piece: torch.Tensor) -> torch.Tensor:
        """Room for a piece in float64, laid out in memory as it is."""
        if not (piece.is_cpu and piece.is_contiguous()):
            return torch.empty_like(piece, dtype=torch.float64)
        if self._space.numel() < piece.numel():
            self._space = torch.empty(max(_piece(), piece.numel()), dtype=torch.float64)
        return self._space[: piece.numel()].view(piece.shape)


def _piece() -> int:
    return PIECE * torch.get_num_threads()


def finite(values: torch.Tensor) -> bool:
    """(A sum is finite only where all are, and several times faster than looking at each.)"""
    return isfinite(values.sum()) or bool(values.isfinite().all())


def _refusal(rewrite: Rewrite, old: torch.Tensor) -> Blocked:
    name = rewrite.param.name if rewrite.param is not None else rewrite.name
    if rewrite.param is not None and not finite(old.detach()):
        return Blocked(f"{name} has NaN or infinite values")
    return Blocked(f"{name} would leave the range of {str(old.dtype).removeprefix('torch.')}")


def _split(values: torch.Tensor | None, rows: int, count: int) -> Sequence[Any]:
    """The part that belongs to each of `count` pieces; a factor may be the same for all of them."""
    if values is None or values.shape[0] <= 1 or count == 1:
        return [values] * count
    return values.split(rows)  # type: ignore[no-any-return]


def _tensor(values: Array | None, like: torch.Tensor) -> torch.Tensor | None:
    """A factor with as many dimensions as the tensor it meets."""
    if values is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
    return tensor.reshape((1,) * (max(like.ndim, 1) - tensor.ndim) + tuple(tensor.shape))
