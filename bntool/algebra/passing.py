"""Table: op -> how a map passes it, downwards (from an input to the output) and upwards.

A rule answers with alternatives, each a list of tasks that together keep the function what it is; they are
tried in order. Downwards the input was `x = m(x')` and is now `x'`; upwards the output is wanted as `m(y)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.moves import CONFLICT, Index, gather, scatter, unbroadcast

NEED_SIZES = Blocked("its sizes are not known: give example inputs")


@dataclass(frozen=True)
class Up:
    """Input `port` must become `map` of what it was."""

    port: int
    map: ChannelAffine


@dataclass(frozen=True)
class Down:
    """The output `y` is now a `y'` with `y = map(y')`: all who read it must make up for that."""

    map: ChannelAffine


Task = Up | Down
Ways = list[list[Task]] | Blocked


class Site(Protocol):
    """An op as its rule sees it."""

    @property
    def attrs(self) -> Mapping[str, Any]: ...
    @property
    def arity(self) -> int: ...
    def sizes(self, port: int) -> tuple[int, ...] | None: ...
    def out_sizes(self) -> tuple[int, ...] | None: ...
    def index(self) -> Index | Blocked: ...
    def read_by_others(self, port: int) -> bool: ...


@dataclass(frozen=True)
class Passing:
    """A row: the two directions."""

    down: Callable[[Site, int, ChannelAffine], Ways]
    up: Callable[[Site, ChannelAffine], Ways]


def varies(m: ChannelAffine, dims: Sequence[int]) -> bool:
    return any(m.shape[d] != 1 for d in dims if -d <= len(m.shape))


def _passes(check: Callable[[Site, ChannelAffine], Blocked | None]) -> Passing:
    """An op that a map passes unchanged, both ways, unless `check` has something against it."""

    def down(site: Site, port: int, m: ChannelAffine) -> Ways:
        if port != 0:
            return Blocked("a map may not enter it there")
        refusal = check(site, m)
        return [[Down(m)]] if refusal is None else refusal

    def up(site: Site, m: ChannelAffine) -> Ways:
        refusal = check(site, m)
        return [[Up(0, m)]] if refusal is None else refusal

    return Passing(down, up)


def _anything(site: Site, m: ChannelAffine) -> None:
    return None


def _relu(site: Site, m: ChannelAffine) -> Blocked | None:
    if m.shifts:
        return Blocked("a shift cannot pass an activation")
    if (m.scale < 0).any():
        return Blocked("a negative scale cannot pass an activation")
    return None


def _max_pool(site: Site, m: ChannelAffine) -> Blocked | None:
    if varies(m, site.attrs["dims"]):
        return Blocked("the map differs between places it pools over")
    if (m.scale < 0).any():
        return Blocked("a negative scale turns a maximum into a minimum")
    return None


def _avg_pool(site: Site, m: ChannelAffine) -> Blocked | None:
    if varies(m, site.attrs["dims"]):
        return Blocked("the map differs between places it averages over")
    if site.attrs.get("counts_padding") and m.shifts:
        return Blocked("its padding counts in the average and would need the shift too")
    return None


def _upsample(site: Site, m: ChannelAffine) -> Blocked | None:
    if varies(m, site.attrs["dims"]):
        return Blocked("the map differs between places it interpolates")
    return None


def _pad(site: Site, m: ChannelAffine) -> Blocked | None:
    widths = site.attrs["widths"]
    dims = [i - len(widths) for i, (before, after) in enumerate(widths) if before or after]
    if varies(m, dims):
        return Blocked("the map differs along a padded dimension")
    if site.attrs["mode"] != "constant" or not dims:
        return None
    if site.attrs["value"] != 0 or m.shifts:
        return Blocked("its padding would need the map too")
    return None


def _mean_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    if varies(m, site.attrs["dims"]):
        return Blocked("the map differs between places it averages over")
    if site.attrs["keepdim"]:
        return [[Down(m)]]
    kept = [s for d, s in enumerate(m.shape) if d - len(m.shape) not in site.attrs["dims"]]
    return [[Down(m.reshape(kept))]]


def _mean_up(site: Site, m: ChannelAffine) -> Ways:
    if site.attrs["keepdim"]:
        return [[Up(0, m)]]
    rank = len(m.shape) + len(site.attrs["dims"])
    axes = sorted(d + rank for d in site.attrs["dims"])
    return [[Up(0, ChannelAffine(np.expand_dims(m.scale, axes), np.expand_dims(m.shift, axes)))]]


def _operand(site: Site, port: int, m: ChannelAffine) -> ChannelAffine | Blocked:
    sizes = site.sizes(port)
    return m if sizes is None else unbroadcast(m, sizes)


def _result(site: Site, m: ChannelAffine) -> ChannelAffine:
    """A map on an operand as a map on the result, which may have more dimensions."""
    sizes = site.out_sizes()
    return m if sizes is None else m.expanded(len(sizes))


def _ways(*ways: Sequence[tuple[int, ChannelAffine | Blocked]]) -> Ways:
    """The alternatives of which no part is blocked."""
    open_ways: list[list[Task]] = []
    refusal = CONFLICT
    for way in ways:
        blocked = [m for _, m in way if isinstance(m, Blocked)]
        if blocked:
            refusal = blocked[0]
        else:
            open_ways.append([Up(port, m) for port, m in way if not isinstance(m, Blocked)])
    return open_ways or refusal


def _sum_up(sign: float) -> Callable[[Site, ChannelAffine], Ways]:
    """`m(a + sign * b)`: the scale goes to both, the shift to either."""

    def up(site: Site, m: ChannelAffine) -> Ways:
        scale, other = m.only_scale(), ChannelAffine(m.scale, sign * m.shift)
        first = [(0, _operand(site, 0, m)), (1, _operand(site, 1, scale))]
        second = [(0, _operand(site, 0, scale)), (1, _operand(site, 1, other))]
        if not m.shifts:
            return _ways(first)
        return _ways(first, second) if m.scales else _ways(first[:1], second[1:])

    return up


def _sum_down(sign: float) -> Callable[[Site, int, ChannelAffine], Ways]:
    def down(site: Site, port: int, m: ChannelAffine) -> Ways:
        if m.scales:
            return Blocked("a scale of one summand cannot pass a sum")
        shift = m.shift * (sign if port == 1 else 1.0)
        return [[Down(_result(site, ChannelAffine(m.scale, shift)))]]

    return down


def _product_up(site: Site, m: ChannelAffine) -> Ways:
    if m.shifts:
        return Blocked("a shift cannot pass a product")
    return _ways([(0, _operand(site, 0, m))], [(1, _operand(site, 1, m))])


def _product_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    return Blocked("a shift cannot pass a product") if m.shifts else [[Down(_result(site, m))]]


def _quotient_up(site: Site, m: ChannelAffine) -> Ways:
    return Blocked("a shift cannot pass a quotient") if m.shifts else _ways([(0, _operand(site, 0, m))])


def _quotient_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    if m.shifts:
        return Blocked("a shift cannot pass a quotient")
    if port == 0:
        return [[Down(_result(site, m))]]
    if not m.scale.all():
        return Blocked("it divides by zero")
    return [[Down(_result(site, ChannelAffine(1.0 / m.scale, m.shift)))]]


def _scalar_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    """`y = a * x + b` with x = s * x' + t: y = s * y' + (a * t + b - s * b)."""
    a, b = site.attrs["a"], site.attrs["b"]
    return [[Down(ChannelAffine(m.scale, a * m.shift + b - m.scale * b))]]


def _scalar_up(site: Site, m: ChannelAffine) -> Ways:
    """`s * (a * x + b) + t = a * x' + b` with x' = s * x + (s * b + t - b) / a."""
    a, b = site.attrs["a"], site.attrs["b"]
    shift = m.scale * b + m.shift - b
    if not shift.any():
        return [[Up(0, ChannelAffine(m.scale, shift))]]
    return Blocked("it multiplies with zero") if a == 0 else [[Up(0, ChannelAffine(m.scale, shift / a))]]


def _contract_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    """`a @ b`: a map on b may differ between columns, a scale on a between rows."""
    return _contraction(site, port, m, lambda fitted: [Down(_result(site, fitted))])


def _contract_up(site: Site, m: ChannelAffine) -> Ways:
    ways: list[list[Task]] = []
    refusal = CONFLICT
    for port in (1, 0):
        fitted = _operand_of_matmul(site, port, m)
        way = fitted if isinstance(fitted, Blocked) else _contraction(site, port, fitted, _upward(port))
        if isinstance(way, Blocked):
            refusal = refusal if refusal is not CONFLICT else way
        else:
            ways.extend(way)
    return ways or refusal


def _upward(port: int) -> Callable[[ChannelAffine], list[Task]]:
    return lambda m: [Up(port, m)]


def _operand_of_matmul(site: Site, port: int, m: ChannelAffine) -> ChannelAffine | Blocked:
    sizes, out = site.sizes(port), site.out_sizes()
    if sizes is None or out is None:
        return m
    return unbroadcast(m, (*sizes[:-2], *out[-2:]))


def _contraction(
    site: Site, port: int, m: ChannelAffine, task: Callable[[ChannelAffine], list[Task]]
) -> Ways:
    if varies(m, [-2 if port == 1 else -1]):
        return Blocked("the map differs between elements a matrix product sums over")
    if m.shifts and not (port == 1 and site.attrs.get("rows_sum_to_one")):
        return Blocked("a shift cannot pass a product with another value")
    return [task(m)]


def _attention() -> Passing:
    """Scaled dot-product attention: `softmax(q k^T) @ v` with `v` at port 2."""

    def down(site: Site, port: int, m: ChannelAffine) -> Ways:
        if port != 2 or varies(m, [-2]):
            return Blocked("a map cannot pass the softmax of an attention")
        return [[Down(_result(site, m))]]

    def up(site: Site, m: ChannelAffine) -> Ways:
        if varies(m, [-2]):
            return Blocked("the map differs between the rows of an attention")
        return [[Up(2, m)]]

    return Passing(down, up)


def _concat_up(site: Site, m: ChannelAffine) -> Ways:
    dim = site.attrs["dim"]
    if m.shape[dim] == 1:
        return [[Up(port, m) for port in range(site.arity)]]
    lengths = _lengths(site)
    if isinstance(lengths, Blocked):
        return lengths
    cuts = np.cumsum(lengths)[:-1]
    parts = zip(np.split(m.scale, cuts, dim), np.split(m.shift, cuts, dim), strict=True)
    return [[Up(port, ChannelAffine(*part)) for port, part in enumerate(parts)]]


def _concat_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    lengths = _lengths(site)
    if isinstance(lengths, Blocked):
        return lengths
    dim = site.attrs["dim"] % len(m.shape)
    wide = [list(m.shape) for _ in lengths]
    for shape, length in zip(wide, lengths, strict=True):
        shape[dim] = length
    scale, shift = [np.ones(w) for w in wide], [np.zeros(w) for w in wide]
    scale[port], shift[port] = np.broadcast_to(m.scale, wide[port]), np.broadcast_to(m.shift, wide[port])
    return [[Down(ChannelAffine(np.concatenate(scale, dim), np.concatenate(shift, dim)))]]


def _lengths(site: Site) -> list[int] | Blocked:
    sizes = [site.sizes(port) for port in range(site.arity)]
    known = [s[site.attrs["dim"]] for s in sizes if s is not None]
    return known if len(known) == len(sizes) else NEED_SIZES


def _layout_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    sizes, index = site.sizes(0), site.index()
    if isinstance(index, Blocked) or sizes is None:
        return index if isinstance(index, Blocked) else NEED_SIZES
    return [[Down(gather(m, sizes, index))]]


def _layout_up(site: Site, m: ChannelAffine) -> Ways:
    sizes, index = site.sizes(0), site.index()
    if isinstance(index, Blocked) or sizes is None:
        return index if isinstance(index, Blocked) else NEED_SIZES
    moved = scatter(m, sizes, index, fill=site.read_by_others(0))
    return moved if isinstance(moved, Blocked) else [[Up(0, moved)]]


PASSING: dict[str, Passing] = {
    "identity": _passes(_anything),
    "relu": _passes(_relu),
    "max_pool": _passes(_max_pool),
    "avg_pool": _passes(_avg_pool),
    "upsample": _passes(_upsample),
    "pad": _passes(_pad),
    "mean": Passing(_mean_down, _mean_up),
    "add": Passing(_sum_down(1.0), _sum_up(1.0)),
    "sub": Passing(_sum_down(-1.0), _sum_up(-1.0)),
    "mul": Passing(_product_down, _product_up),
    "div": Passing(_quotient_down, _quotient_up),
    "scalar": Passing(_scalar_down, _scalar_up),
    "matmul": Passing(_contract_down, _contract_up),
    "sdpa": _attention(),
    "concat": Passing(_concat_down, _concat_up),
    "layout": Passing(_layout_down, _layout_up),
}
