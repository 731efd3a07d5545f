"""How maps pass sums, products, quotients and literal arithmetic.

With one operand constant each of these is `y = a * x + b` with arrays a and b, which any map passes (upwards
where a is not zero). With two operands that vary, a shift passes sums alone, and a scale of one summand none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.moves import squeeze
from bntool.algebra.rules import Down, Passing, Site, Stay, Up, Ways, operand, result, ways_of, ways_together

#: (a, b) of `y = a * x + b`
Line = tuple[Array, Array]
ZERO, ONE = np.zeros(()), np.ones(())


def _sum_up(sign: float) -> Callable[[Site, ChannelAffine], Ways]:
    """`m(a + sign * b)`: the scale goes to both, the shift to either."""

    def up(site: Site, m: ChannelAffine) -> Ways:
        scale, other = m.only_scale(), ChannelAffine(m.scale, sign * m.shift)
        first = [(0, operand(site, 0, m)), (1, operand(site, 1, scale))]
        second = [(0, operand(site, 0, scale)), (1, operand(site, 1, other))]
        if not m.shifts:
            return ways_of(first)
        return ways_of(first, second) if m.scales else ways_of(first[:1], second[1:])

    return up


def _sum_down(sign: float) -> Callable[[Site, int, ChannelAffine], Ways]:
    def down(site: Site, port: int, m: ChannelAffine) -> Ways:
        if m.scales:
            return Blocked("a scale of one summand cannot pass a sum")
        shift = m.shift * (sign if port == 1 else 1.0)
        return [[Down(result(site, ChannelAffine(m.scale, shift)))]]

    return down


def _product_up(site: Site, m: ChannelAffine) -> Ways:
    if m.shifts:
        return Blocked("a shift cannot pass a product")
    if site.is_square():
        return _square_up(m)
    return ways_of([(0, operand(site, 0, m))], [(1, operand(site, 1, m))])


def _square_up(m: ChannelAffine) -> Ways:
    """`s * y * y = (r * y) * (r * y)` with r = sqrt(s)."""
    if (m.scale < 0).any():
        return Blocked("a negative scale cannot pass a square")
    root = ChannelAffine(np.sqrt(m.scale), m.shift)
    return [[Up(0, root), Up(1, root)]]


def _product_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    return Blocked("a shift cannot pass a product") if m.shifts else [[Down(result(site, m))]]


def _quotient_up(site: Site, m: ChannelAffine) -> Ways:
    return Blocked("a shift cannot pass a quotient") if m.shifts else ways_of([(0, operand(site, 0, m))])


def _quotient_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    if m.shifts:
        return Blocked("a shift cannot pass a quotient")
    if port == 0:
        return [[Down(result(site, m))]]
    if not m.scale.all():
        return Blocked("it divides by zero")
    return [[Down(result(site, ChannelAffine(1.0 / m.scale, m.shift)))]]


def line_down(site: Site, m: ChannelAffine, line: Line) -> Ways:
    """`y = a * x + b` with x = s * x' + t: y = s * y' + (a * t + b - s * b), and y = y' where a is zero."""
    a, b = line
    m = result(site, m)
    shift = np.where(a == 0, 0.0, a * m.shift + b - m.scale * b)
    scale = np.where(a == 0, 1.0, m.scale)
    return [[Down(ChannelAffine(squeeze(scale, 1.0), squeeze(shift, 0.0)).aligned())]]


def line_up(site: Site, port: int, m: ChannelAffine, line: Line) -> Ways:
    """`s * (a * x + b) + t = a * x' + b` with x' = s * x + (s * b + t - b) / a."""
    a, b = line
    wanted, a = np.broadcast_arrays(m.scale * b + m.shift - b, a)
    if (wanted[a == 0] != 0).any():
        return Blocked("it multiplies with zero")
    shift = np.divide(wanted, a, out=np.zeros(a.shape), where=a != 0)
    return ways_of([(port, operand(site, port, ChannelAffine(m.scale, squeeze(shift, 0.0)).aligned()))])


def _literal(site: Site) -> Line:
    return np.asarray(site.attrs["a"]), np.asarray(site.attrs["b"])


LINES: dict[str, Callable[[Array, int], Line | None]] = {
    "add": lambda c, port: (ONE, c),
    "sub": lambda c, port: (ONE, -c) if port == 0 else (-ONE, c),
    "mul": lambda c, port: (c, ZERO),
    "div": lambda c, port: (1 / c, ZERO) if port == 0 and c.all() else None,
}


def _line(kind: str, site: Site, port: int) -> Line | None:
    """The op as a line of its operand `port`, where the other one is constant."""
    other = site.constant(1 - port)
    return None if other is None else LINES[kind](other, port)


def _relying(port: int, ways: Ways) -> Ways:
    return ways if isinstance(ways, Blocked) else [[*way, Stay(port)] for way in ways]


def _of_two(
    kind: str,
    down: Callable[[Site, int, ChannelAffine], Ways],
    up: Callable[[Site, ChannelAffine], Ways],
) -> Passing:
    """An op of two values: as `down` and `up` say of any values, else as the line that it is."""

    def either_down(site: Site, port: int, m: ChannelAffine) -> Ways:
        ways = down(site, port, m)
        line = _line(kind, site, port) if isinstance(ways, Blocked) else None
        return ways if line is None else _relying(1 - port, line_down(site, m, line))

    def either_up(site: Site, m: ChannelAffine) -> Ways:
        ways = up(site, m)
        lines = [(port, _line(kind, site, port)) for port in (0, 1)]
        more = [_relying(1 - port, line_up(site, port, m, line)) for port, line in lines if line is not None]
        return ways_together(ways, *more)

    return Passing(either_down, either_up)


def _combination_down(site: Site, port: int, m: ChannelAffine) -> Ways:
    """`y = sum(a * x) + shift` with `factors` a: a value that cancels out is not read at all."""
    a, b = site.attrs["factors"][port], site.attrs["shift"]
    if a == 0 or sum(map(bool, site.attrs["factors"])) == 1:
        return line_down(site, m, (np.asarray(a), np.asarray(b)))
    if m.scales:
        return Blocked("a scale of one summand cannot pass a sum")
    return [[Down(result(site, ChannelAffine(m.scale, a * m.shift)))]]


def _combination_up(site: Site, m: ChannelAffine) -> Ways:
    """The scale goes to every value that does not cancel out, the shift to any of them."""
    read = [(port, a) for port, a in enumerate(site.attrs["factors"]) if a != 0]
    shift = m.scale * site.attrs["shift"] + m.shift - site.attrs["shift"]
    return ways_of(
        *[
            [(p, operand(site, p, ChannelAffine(m.scale, shift * (p == to) / a))) for p, a in read]
            for to, _ in (read if shift.any() else read[:1])
        ]
    )


SUM = _of_two("add", _sum_down(1.0), _sum_up(1.0))
DIFFERENCE = _of_two("sub", _sum_down(-1.0), _sum_up(-1.0))
COMBINATION = Passing(_combination_down, _combination_up)
PRODUCT = _of_two("mul", _product_down, _product_up)
QUOTIENT = _of_two("div", _quotient_down, _quotient_up)
NUMBERS = Passing(
    lambda site, port, m: line_down(site, m, _literal(site)),
    lambda site, m: line_up(site, 0, m, _literal(site)),
)
