"""Memory made ready by another thread: like what it is for, given away once, none for what is not plain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.room import LARGE, Room, large_parameters
from tests.folding import error, prepared


def large(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype))


def likeness(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()


def test_room_is_like_what_it_is_for_and_is_given_once() -> None:
    one, other = large(300, 301), large(7, 50_001, dtype=torch.float16)
    before = one.clone()
    with Room([one, other]) as room:
        first = room.like(one)
        places = {t.data_ptr() for t in (one, first, room.like(one), room.like(other))}
        assert likeness(first) == likeness(one)
        assert likeness(room.like(other)) == likeness(other)
    assert len(places) == 4
    assert not first.requires_grad
    assert torch.equal(one, before)


@pytest.mark.filterwarnings("error")
def test_it_is_made_ready_in_inference_mode_too() -> None:
    with torch.inference_mode(), Room([large(400, 300)]) as room:
        room.wait()


def test_what_there_is_no_room_for_gets_memory_all_the_same() -> None:
    with Room([]) as room:
        assert likeness(room.like(torch.ones(3, 2).t())) == likeness(torch.ones(3, 2).t())


def test_only_plain_large_parameters_count() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = large(3)
            self.wide = large(LARGE // 4)
            self.turned = nn.Parameter(torch.randn(400, 300).t())
            self.sparse = nn.Parameter(torch.eye(300).to_sparse())
            self.nowhere = nn.Parameter(torch.empty(300, 300, device="meta"))
            self.later = nn.LazyLinear(300)
            self.bits = nn.Parameter(torch.empty(LARGE, dtype=torch.bits8), requires_grad=False)

    model = Model()
    assert [id(p) for p in large_parameters(model)] == [id(model.wide)]


def test_no_more_than_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(*[nn.Linear(200, 200, bias=False) for _ in range(4)])
    monkeypatch.setattr("bntool.room.MOST", 2 * 200 * 200 * 4)
    assert [id(p) for p in large_parameters(layers)] == [id(layers[0].weight), id(layers[1].weight)]


def test_a_large_model_folds_and_nothing_is_shared_with_the_original() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 256, 3), nn.BatchNorm2d(256), nn.Conv2d(256, 64, 3), nn.BatchNorm2d(64)
    )
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    model = prepared(model, x)
    assert len(large_parameters(model)) == 2
    folded = bntool.fold(model, verify=False).model
    assert error(model, folded, x) < 1e-12
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
