"""How maps pass matrix products of two values, and attention."""

from __future__ import annotations

from collections.abc import Callable

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.moves import CONFLICT, unbroadcast
from bntool.algebra.rules import Down, Passing, Site, Task, Up, Ways, result, varies

MASKED = Blocked("its mask may hide a whole row, which then is zero and would need the shift too")


def _contract_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    """`a @ b`: a map on b may differ between columns, a scale on a between rows."""
    return _contraction(site, port, m, lambda fitted: [Down(result(site, fitted))])


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
        if m.shifts and not site.attrs["rows_sum_to_one"]:
            return MASKED
        return [[Down(result(site, m))]]

    def up(site: Site, m: ChannelAffine) -> Ways:
        if varies(m, [-2]):
            return Blocked("the map differs between the rows of an attention")
        if m.shifts and not site.attrs["rows_sum_to_one"]:
            return MASKED
        return [[Up(2, m)]]

    return Passing(down, up)


MATMUL = Passing(_contract_down, _contract_up)
ATTENTION = _attention()
