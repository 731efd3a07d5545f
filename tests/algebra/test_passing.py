"""The laws of passing, on every sample: whatever a rule answers keeps the function what it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.passing import PASSING
from bntool.algebra.rules import Down, Stay, Up
from tests.algebra.samples import PASSES, Sample, SampleSite

seeds = st.integers(0, 10_000)


def draw(rng: np.random.Generator, shape: tuple[int, ...], *, shifts: bool) -> ChannelAffine:
    """A random map that varies along a random choice of dimensions."""
    size = tuple(s if rng.random() < 0.4 else 1 for s in shape)
    sign = rng.choice([1.0, 1.0, -1.0])
    scale = sign * rng.uniform(0.5, 2, size)
    return ChannelAffine(scale, rng.standard_normal(size) if shifts else np.zeros(size))


def test_every_row_has_a_sample() -> None:
    assert {s.kind for s in PASSES} == set(PASSING)


@pytest.mark.parametrize("sample", PASSES, ids=lambda s: f"{s.kind}-{s.name}")
@settings(max_examples=25, deadline=None)
@given(seed=seeds, shifts=st.booleans())
def test_down(sample: Sample, seed: int, shifts: bool) -> None:
    """op(m(x)) = m'(op(x))"""
    rng = np.random.default_rng(seed)
    inputs = sample.inputs(rng)
    port = int(rng.choice(sample.varying))
    m = draw(rng, sample.shapes[port], shifts=shifts)
    ways = PASSING[sample.kind].down(SampleSite(sample), port, m)
    if isinstance(ways, Blocked):
        return
    changed = [m(x) if i == port else x for i, x in enumerate(inputs)]
    for way in ways:
        (task,) = [t for t in way if not isinstance(t, Stay)]
        assert isinstance(task, Down)
        np.testing.assert_allclose(sample(*changed), task.map(sample(*inputs)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sample", PASSES, ids=lambda s: f"{s.kind}-{s.name}")
@settings(max_examples=25, deadline=None)
@given(seed=seeds, shifts=st.booleans(), others=st.booleans())
def test_up(sample: Sample, seed: int, shifts: bool, others: bool) -> None:
    """m(op(x)) = op(m'(x)), for every alternative"""
    rng = np.random.default_rng(seed)
    inputs = sample.inputs(rng)
    want = sample(*inputs)
    m = draw(rng, want.shape, shifts=shifts)
    ways = PASSING[sample.kind].up(SampleSite(sample, others), m)
    for way in [] if isinstance(ways, Blocked) else ways:
        changed = list(inputs)
        for task in [t for t in way if not isinstance(t, Stay)]:
            assert isinstance(task, Up)
            changed[task.port] = task.map(changed[task.port])
        assert all(c.shape == x.shape for c, x in zip(changed, inputs, strict=True))
        np.testing.assert_allclose(sample(*changed), m(want), rtol=1e-9, atol=1e-9)


def could_pass(sample: Sample, port: int, m: ChannelAffine, rng: np.random.Generator) -> bool:
    """Whether op(m(x)) is one map per channel of op(x): fitted on two draws, tried on others."""
    befores, afters = [], []
    for _ in range(6):
        inputs = sample.inputs(rng)
        befores.append(sample(*inputs))
        afters.append(sample(*[m(x) if i == port else x for i, x in enumerate(inputs)]))
    (y0, y1), (z0, z1) = befores[:2], afters[:2]
    slope = np.divide(z1 - z0, y1 - y0, out=np.full_like(y0, np.nan), where=y0 != y1)
    places = tuple(d for d in range(y0.ndim) if d != 1)
    scale = np.nanmedian(slope, places, keepdims=True)
    shift = np.nanmedian(z0 - slope * y0, places, keepdims=True)
    return all(np.allclose(scale * y + shift, z, atol=1e-6) for y, z in zip(befores, afters, strict=True))


@pytest.mark.parametrize("sample", PASSES, ids=lambda s: f"{s.kind}-{s.name}")
@settings(max_examples=25, deadline=None)
@given(seed=seeds, shifts=st.booleans())
def test_what_is_refused_downwards_really_cannot_pass(sample: Sample, seed: int, shifts: bool) -> None:
    """The counterexample of every refusal: no map of channels behind the op is the one in front of it."""
    rng = np.random.default_rng(seed)
    port = int(rng.choice(sample.varying))
    size = tuple(s if d == 1 else 1 for d, s in enumerate(sample.shapes[port]))
    shift = rng.standard_normal(size) if shifts else np.zeros(size)
    m = ChannelAffine(rng.choice([1.0, -1.0]) * rng.uniform(0.5, 2, size), shift)
    ways = PASSING[sample.kind].down(SampleSite(sample), port, m)
    if isinstance(ways, Blocked):
        assert not could_pass(sample, port, m, rng), ways.reason


#: (sample, does a plain per-channel map pass downwards, upwards): (scale > 0, any scale, shift)
CHANNELS = {
    "identity-clone": ("111", "111"),
    "relu-relu": ("100", "100"),
    "max_pool-max pool": ("101", "101"),
    "avg_pool-average pool": ("111", "111"),
    "avg_pool-padded": ("110", "110"),
    "mean-mean": ("111", "111"),
    "upsample-bicubic": ("111", "111"),
    "pad-zeros": ("110", "110"),
    "pad-reflect": ("111", "111"),
    "add-sum": ("001", "111"),
    "mul-gate": ("110", "110"),
    "add-constant offset": ("111", "111"),
    "sub-constant difference": ("111", "111"),
    "mul-constant gain": ("111", "111"),
    "div-constant quotient": ("111", "111"),
    "matmul-softmax": ("111", "111"),
    "layout-flatten": ("111", "111"),
    "layout-shuffle": ("111", "111"),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_a_map_of_channels_passes_where_it_should(name: str) -> None:
    """Neither vacuous nor over-strict: the laws above would hold for rules that refuse everything."""
    sample = next(s for s in PASSES if f"{s.kind}-{s.name}" == name)
    site, port = SampleSite(sample), 1 if sample.kind == "matmul" else 0
    for shape, rule, want in zip(
        (sample.shapes[port], site.out_sizes()), ("down", "up"), CHANNELS[name], strict=True
    ):
        size = tuple(s if d == 1 else 1 for d, s in enumerate(shape))
        ones, zeros = np.ones(size), np.zeros(size)
        ramp = np.linspace(1, 2, ones.size).reshape(size)
        maps = [ChannelAffine(ramp, zeros), ChannelAffine(-ramp, zeros), ChannelAffine(ones, ramp)]
        passing = PASSING[sample.kind]
        answers = [passing.down(site, port, m) if rule == "down" else passing.up(site, m) for m in maps]
        got = "".join("0" if isinstance(a, Blocked) else "1" for a in answers)
        assert got == want, f"{rule}: {got}"
