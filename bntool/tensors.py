"""Rewritten parameters as torch tensors: computed in float64, cast once, a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

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
        return self.all_rewritten([(rewrite, old)])[0]

    def all_rewritten(self, todo: Sequence[tuple[Rewrite, torch.Tensor]]) -> list[torch.Tensor | Blocked]:
        """What `rewritten` gives for each.

        (All are made ready first. Between two large tensors little else is in the processor's cache.)
        """
        news = [self._room.like(old) for _, old in todo]
        pieces = [self._pieces(r, old.detach(), new) for (r, old), new in zip(todo, news, strict=True)]
        outcomes = [[(self._carry_out(p), p.new) for p in of_one] for of_one in pieces]
        fine = [all(_is_finite(*outcome) for outcome in of_one) for of_one in outcomes]
        results = zip(todo, news, fine, strict=True)
        return [new if ok else _refusal(r, old) for (r, old), new, ok in results]

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
        for piece in self._pieces(rewrite, place, place):
            self._carry_out(piece)

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

    def _pieces(self, rewrite: Rewrite, old: torch.Tensor, new: torch.Tensor) -> list[_Piece]:
        """What there is to do for one tensor; `new` may be `old`."""
        if rewrite.value is not None:
            value = torch.from_numpy(np.ascontiguousarray(rewrite.value)).reshape(old.shape)
            return [_Piece(None, new, None, None, value)]
        scale, shift = _tensor(rewrite.scale, old), _tensor(rewrite.shift, old)
        if old.ndim == 0:
            old, new = old.reshape(1), new.reshape(1)
        if old.numel() <= _elements():
            return [_Piece(old, new, scale, shift, self._space_like(old))]
        rows = max(1, _elements() * old.shape[0] // old.numel())
        count = -(-old.shape[0] // rows)
        split = (_split(values, rows, count) for values in (old, new, scale, shift))
        parts = zip(*split, strict=True)
        return [_Piece(a, b, by, plus, self._space_like(a)) for a, b, by, plus in parts]

    def _carry_out(self, piece: _Piece) -> torch.Tensor:
        """`new = old * scale + shift` in float64; the sum of what is new."""
        old, new, scale, shift, space = piece
        if space is None:
            space = torch.empty_like(old, dtype=torch.float64)
        if old is not None:
            space.copy_(old)
        if scale is not None:
            space.mul_(scale)
        if shift is not None:
            space.add_(shift)
        return new.copy_(space).sum()

    def _space_like(self, piece: torch.Tensor) -> torch.Tensor | None:
        """Room for a piece in float64, if it can be laid out in memory as that is.

        (From the middle of the space, so that pieces of all sizes have one thread's half to the left and
        the other's to the right: where processors share no cache, lines that change hands cost more than
        all the rest.)
        """
        if not (piece.is_cpu and piece.is_contiguous()):
            return None
        if self._space.numel() < piece.numel():
            self._space = torch.empty(max(_elements(), piece.numel()), dtype=torch.float64)
        left = (self._space.numel() - piece.numel()) // 2
        return self._space[left : left + piece.numel()].view(piece.shape)


class _Piece(NamedTuple):
    """A part of a tensor: `new` becomes `old * scale + shift`, worked out in `space`, or what is there."""

    old: Any
    new: torch.Tensor
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    space: torch.Tensor | None


def _elements() -> int:
    return PIECE * torch.get_num_threads()


def finite(values: torch.Tensor) -> bool:
    """(A sum is finite only where all are, and several times faster than looking at each.)"""
    return _is_finite(values.sum(), values)


def _is_finite(total: torch.Tensor, values: torch.Tensor) -> bool:
    return isfinite(total) or bool(values.isfinite().all())


def _refusal(rewrite: Rewrite, old: torch.Tensor) -> Blocked:
    name = rewrite.param.name if rewrite.param is not None else rewrite.name
    if rewrite.param is not None and not finite(old.detach()):
        return Blocked(f"{name} has NaN or infinite values")
    return Blocked(f"{name} would leave the range of {str(old.dtype).removeprefix('torch.')}")


def _split(values: torch.Tensor | None, rows: int, count: int) -> Sequence[Any]:
    """The part that belongs to each of `count` pieces; a factor may be the same for all of them."""
    if values is None or values.shape[0] <= 1:
        return [values] * count
    return values.split(rows)  # type: ignore[no-any-return]


def _tensor(values: Array | None, like: torch.Tensor) -> torch.Tensor | None:
    """A factor with as many dimensions as the tensor it meets."""
    if values is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor if like.is_cpu else tensor.to(like.device)
    if tensor.ndim == like.ndim > 0:
        return tensor
    return tensor.reshape((1,) * (max(like.ndim, 1) - tensor.ndim) + tuple(tensor.shape))
