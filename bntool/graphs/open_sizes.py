"""The sizes that a torch.export program leaves open, and its inputs as they would be for others of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram


class OpenSizes:
    """What the open sizes of a program, which torch calls symbols, are in the inputs given.

    A dimension is a symbol or an expression of one (`2*s`); a number among the inputs may be one too.
    """

    def __init__(self, program: ExportedProgram, given: Sequence[Any]) -> None:
        noted = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        self.ranges: Any = program.range_constraints
        self.given = list(given)
        self.noted = [noted.get(name) for name in program.graph_signature.user_inputs]
        self.here: dict[Any, int] = {}
        pairs = [pair for given in zip(self.given, self.noted, strict=False) for pair in _open_in(*given)]
        for expression, number in sorted(pairs, key=lambda pair: not pair[0].is_Symbol):
            self.here |= {symbol: n for symbol, n in _solved(expression, number) if symbol not in self.here}

    def near(self, symbol: Any) -> list[list[Any]]:
        """The inputs for sizes next to the one given, and for twice that: some take only multiples."""
        here = self.here[symbol]
        return self.resized(symbol, (1, here - 1, here + 1, 2 * here))

    def resized(self, symbol: Any, numbers: Sequence[int]) -> list[list[Any]]:
        """The inputs for other numbers in place of a symbol, so far as those are legal."""
        legal = [n for n in dict.fromkeys(numbers) if n != self.here[symbol] and self._is_legal(symbol, n)]
        return [self._with({**self.here, symbol: n}) for n in legal]

    def _is_legal(self, symbol: Any, number: int) -> bool:
        span = self.ranges.get(symbol)
        return number > 0 and (span is None or bool(span.lower <= number <= span.upper))

    def _with(self, sizes: dict[Any, int]) -> list[Any]:
        def of(size: Any, now: Any) -> int:
            found = size.node.expr.subs(sizes) if isinstance(size, torch.SymInt) else size
            return int(found) if getattr(found, "is_number", True) else int(now)

        def changed(value: Any, note: Any) -> Any:
            if isinstance(note, torch.SymInt):
                return of(note, value)
            if not isinstance(value, Tensor) or not isinstance(note, Tensor):
                return value
            shape = [of(size, now) for size, now in zip(note.shape, value.shape, strict=True)]
            return torch.empty(shape, dtype=value.dtype, device="meta")

        noted = [*self.noted, *[None] * (len(self.given) - len(self.noted))]
        return [changed(value, note) for value, note in zip(self.given, noted, strict=True)]


def _open_in(value: Any, note: Any) -> Iterator[tuple[Any, int]]:
    """The expressions of an input's sizes that are open, each with what it is in the input given."""
    if isinstance(note, torch.SymInt):
        yield note.node.expr, value
    if isinstance(value, Tensor) and isinstance(note, Tensor) and value.ndim == note.ndim:
        pairs: Any = zip(note.shape, value.shape, strict=True)
        yield from ((size.node.expr, now) for size, now in pairs if isinstance(size, torch.SymInt))


def _solved(expression: Any, number: int) -> list[tuple[Any, int]]:
    """The symbol of an expression `a * s + b`, and what it is where that is the number."""
    if len(expression.free_symbols) != 1:
        return []
    (symbol,) = expression.free_symbols
    b, more = (expression.subs(symbol, n) for n in (0, 1))
    found = int((number - b) / (more - b)) if more != b else 0
    return [(symbol, found)] if expression.subs(symbol, found) == number else []
