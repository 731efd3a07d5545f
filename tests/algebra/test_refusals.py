"""Upward refusals of the tables: each with a counterexample, a fold that goes through the op regardless.

Where a rule refuses a map behind an op, no map per channel in front of the op (the naive answer: the same
one) gives what was wanted.
"""

from __future__ import annotations

import numpy as np
import pytest

from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.moves import CONFLICT, HIDDEN
from bntool.algebra.passing import PASSING
from tests.algebra.samples import PASSES, Sample, SampleSite

MAPS = ("scale", "negative scale", "shift", "both")


def channel_map(kind: str, channels: int, rank: int, rng: np.random.Generator) -> ChannelAffine:
    """A map along dimension 1, with a different number for each channel."""
    size = tuple(channels if d == 1 else 1 for d in range(rank))
    scale = np.ones(size) if kind == "shift" else rng.uniform(0.5, 2, size)
    shift = rng.uniform(0.5, 2, size) if kind in ("shift", "both") else np.zeros(size)
    return ChannelAffine(-scale if kind == "negative scale" else scale, shift)


def naive(sample: Sample, m: ChannelAffine, inputs: list[Array], port: int) -> Array | None:
    """The op with `m` in front of its input `port`; None where its sizes do not allow that."""
    try:
        moved = m(inputs[port])
        if moved.shape != inputs[port].shape:
            return None
        return sample(*[moved if p == port else x for p, x in enumerate(inputs)])
    except (ValueError, RuntimeError):
        return None


def refused() -> list[tuple[Sample, str, str]]:
    """Every (sample, map, reason) that an upward rule refuses."""
    found = []
    for sample in PASSES:
        site = SampleSite(sample)
        for kind in MAPS:
            out = site.out_sizes()
            m = channel_map(kind, out[1], len(out), np.random.default_rng(0))
            ways = PASSING[sample.kind].up(site, m)
            if isinstance(ways, Blocked):
                found.append((sample, kind, ways.reason))
    return found


REFUSED = refused()


def test_refusals_are_found() -> None:
    reasons = {reason for _, _, reason in REFUSED}
    assert {"a shift cannot pass an activation", "a shift cannot pass a product"} <= reasons
    assert len(reasons) >= 8


def outcomes(sample: Sample, kind: str) -> list[float]:
    """How far off each forced fold is, where the sizes allow one."""
    inputs = sample.inputs(np.random.default_rng(1))
    plain = sample(*inputs)
    m = channel_map(kind, plain.shape[1], plain.ndim, np.random.default_rng(0))
    tried = [naive(sample, m, inputs, port) for port in sample.varying]
    return [float(np.abs(y - m(plain)).max()) for y in tried if y is not None and y.shape == plain.shape]


#: refusals of data movement, which changes the channels: the map behind it does not fit in front of it
UNFORCED = {CONFLICT.reason, HIDDEN.reason}


@pytest.mark.parametrize("why", sorted({reason for _, _, reason in REFUSED} - UNFORCED))
def test_what_is_refused_upwards_would_be_wrong(why: str) -> None:
    errors = [e for sample, kind, reason in REFUSED if reason == why for e in outcomes(sample, kind)]
    assert errors, "no sample in which it can be forced"
    assert min(errors) > 1e-3
