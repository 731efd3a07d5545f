"""Table: op -> how a map passes it, downwards (from an input to the output) and upwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.contraction import ATTENTION, MATMUL
from bntool.algebra.elementwise import COMBINATION, DIFFERENCE, NUMBERS, PRODUCT, QUOTIENT, SUM
from bntool.algebra.moves import gather, scatter
from bntool.algebra.rules import Down, Passing, Site, Up, Ways, varies


def _passes(check: Callable[[Site, ChannelAffine], Blocked | None]) -> Passing:
    """An op that a map passes unchanged, both ways, unless `check` has something against it."""

    def down(site: Site, port: int, m: ChannelAffine) -> Ways:
        assert port == 0, "these ops have one input"
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
    lengths: list[int] = []
    for port in range(site.arity):
        sizes = site.sizes(port)
        if sizes is None:
            return site.unsized(port)
        lengths.append(sizes[site.attrs["dim"]])
    return lengths


def _layout_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    sizes, index = site.sizes(0), site.index()
    if isinstance(index, Blocked) or sizes is None:
        return index if isinstance(index, Blocked) else site.unsized(0)
    return [[Down(gather(m, sizes, index))]]


def _layout_up(site: Site, m: ChannelAffine) -> Ways:
    sizes, index = site.sizes(0), site.index()
    if isinstance(index, Blocked) or sizes is None:
        return index if isinstance(index, Blocked) else site.unsized(0)
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
    "add": SUM,
    "sub": DIFFERENCE,
    "combination": COMBINATION,
    "mul": PRODUCT,
    "div": QUOTIENT,
    "scalar": NUMBERS,
    "matmul": MATMUL,
    "sdpa": ATTENTION,
    "concat": Passing(_concat_down, _concat_up),
    "layout": Passing(_layout_down, _layout_up),
}
