"""The norms torch does not have, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bntool.norms.kinds import choose
from bntool.norms.layers import (
    BatchRenorm,
    ChannelLayerNorm,
    ChannelRMSNorm,
    ChannelsLast,
    Gated,
    GhostBatchNorm,
)
from bntool.norms.moments import merged, moments
from tests.norms.nets import randomized


def values(n: int = 24, *rest: int) -> Tensor:
    return torch.randn(n, 4, *rest, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 3


def set_alike(a: nn.Module, b: nn.Module) -> None:
    randomized(a)
    b.load_state_dict(a.state_dict())
    a.double().train()
    b.double().train()


def test_ghost_norm_normalises_every_virtual_batch_by_itself() -> None:
    ghost, plain = GhostBatchNorm(4, virtual_batch_size=8), nn.BatchNorm2d(4)
    set_alike(plain, ghost)
    x = values(24, 3, 3)
    expected = torch.cat([plain(part) for part in x.split(8)])
    assert torch.allclose(ghost(x), expected)
    ragged = values(27, 3, 3)
    assert ghost(ragged).shape == ragged.shape


def test_ghost_statistics_move_like_a_batch_norms_on_equal_virtual_batches() -> None:
    ghost, plain = GhostBatchNorm(4, virtual_batch_size=8), nn.BatchNorm1d(4)
    set_alike(plain, ghost)
    part = values(8)
    plain(part)
    ghost(torch.cat([part, part, part]))
    assert torch.allclose(ghost.running_mean, plain.running_mean)
    assert torch.allclose(ghost.running_var, plain.running_var)
    assert ghost.num_batches_tracked == plain.num_batches_tracked


@pytest.mark.parametrize("momentum", [0.1, None])
def test_renorm_with_closed_limits_is_batch_norm(momentum: float | None) -> None:
    renorm = BatchRenorm(4, r_max=1.0, d_max=0.0, momentum=momentum)
    plain = nn.BatchNorm2d(4, momentum=momentum)
    set_alike(plain, renorm)
    for seed in range(3):
        x = values(10, 3, 3) + seed
        assert torch.allclose(renorm(x), plain(x))
    assert torch.allclose(renorm.running_mean, plain.running_mean)
    assert torch.allclose(renorm.running_var, plain.running_var)


def test_renorm_with_open_limits_trains_on_the_eval_function() -> None:
    renorm = BatchRenorm(4, r_max=1e9, d_max=1e9)
    randomized(renorm).double()
    x = values(10, 3, 3)
    expected = renorm(x)
    assert torch.allclose(renorm.train()(x), expected)


def test_renorm_gradients_do_not_flow_through_its_corrections() -> None:
    """With r and d held constant, the gradient of a sum over the batch is zero: the mean is taken out."""
    renorm = BatchRenorm(4).double().train()
    x = values(10).requires_grad_()
    renorm(x).sum().backward()
    assert float(x.grad.abs().max()) < 1e-10


def test_renorm_opens_its_limits_over_the_warmup() -> None:
    renorm, plain = BatchRenorm(4, warmup=4), nn.BatchNorm1d(4)
    set_alike(plain, renorm)
    x = values(10)
    renorm.num_batches_tracked.zero_()
    assert torch.allclose(renorm(x), plain(x)), "closed at step 0"
    renorm.num_batches_tracked.fill_(100)
    assert not torch.allclose(renorm(x), plain(x))


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 6)])
def test_norms_over_channels_first(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    layer, rms = ChannelLayerNorm(4), ChannelRMSNorm(4, eps=1e-3)
    last = x.movedim(1, -1)
    assert torch.allclose(layer(x).movedim(1, -1), nn.LayerNorm(4)(last))
    expected = x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-3)
    assert torch.allclose(rms(x), expected, rtol=1e-5, atol=1e-6)


def test_channels_last_makes_every_position_a_sample() -> None:
    x = values(6, 5).movedim(1, -1)
    norm = ChannelsLast(nn.BatchNorm1d(4)).double()
    assert torch.allclose(norm(x).flatten(0, 1).mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9)


def test_a_closed_gate_is_the_identity() -> None:
    x = values(6, 5, 5).float()
    assert torch.equal(Gated(nn.GroupNorm(2, 4))(x), x)


def test_merged_moments_do_not_depend_on_the_cut() -> None:
    x = values(30, 4, 4) * 1e-3 + 1e5
    whole = moments(x)
    parts = merged(moments(p) for p in x.split([1, 17, 12]))
    assert parts.count == whole.count == 480
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(parts.m2, whole.m2, rtol=1e-9)
    assert torch.allclose(whole.variance(), x.transpose(0, 1).flatten(1).var(1), rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.5, 2.0, 30.0, 1e5])
@pytest.mark.parametrize("shape", [(64, 3), (40000, 2), (4, 5, 20), (256, 4, 2, 2), (1, 3, 512, 512)])
def test_moments_are_exact_for_long_and_short_rows_near_and_far_from_zero(
    shape: tuple[int, ...], offset: float
) -> None:
    """A sum of squares loses the digits that its mean takes, and every value added rounds."""
    torch.manual_seed(0)
    x = torch.randn(shape) + offset * torch.linspace(-1, 1, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    found, values_ = moments(x), x.double().transpose(0, 1).flatten(1)
    eps = 16 * torch.finfo(torch.float32).eps
    assert torch.allclose(found.variance(), values_.var(1), rtol=eps)
    assert ((found.mean - values_.mean(1)).abs() <= eps / 4 * values_.std(1)).all()


def test_values_whose_squares_overflow_are_still_finite() -> None:
    x = torch.tensor([[1e30], [-1e30]]).reshape(1, 1, 2).repeat(2, 1, 16)
    assert moments(x).finite
    assert moments(x).variance(unbiased=False).item() == pytest.approx(1e60, rel=1e-6)


def test_the_choice_follows_how_well_a_variance_is_known() -> None:
    assert choose(4096, 32)[0] == "batch"
    assert choose(16, 16)[0] == "renorm"
    assert choose(4, 4)[0] == "group"
    assert choose(4096, 1)[0] == "group"
    assert "26 %" in choose(32, 32)[1] or "25 %" in choose(32, 32)[1]
