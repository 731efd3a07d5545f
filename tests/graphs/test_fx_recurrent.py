"""The sizes of what recurrent layers give are those that torch works out step by step."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bntool.fold import fold
from bntool.graphs.fx_recurrent import RECURRENT, recurrent_results
from tests.folding import Block, error, prepared


@pytest.mark.parametrize("kind", RECURRENT)
def test_sizes_are_those_of_a_run(kind: Any) -> None:
    x = torch.randn(2, 5, 4)
    for batch_first, both_ways, layers in product((False, True), (False, True), (1, 3)):
        layer = kind(4, 6, layers, batch_first=batch_first, bidirectional=both_ways)
        _insist_on_the_same(
            recurrent_results(layer.to("meta"), x.to("meta")), layer.to_empty(device="cpu")(x)
        )
    layer = nn.LSTM(4, 6, 2, proj_size=3, batch_first=True)
    _insist_on_the_same(recurrent_results(layer, x.to("meta")), layer(x))


def _insist_on_the_same(found: Any, wanted: Any) -> None:
    assert [t.is_meta for t in tree_leaves(found)] == [True] * len(tree_leaves(wanted))
    pairs = zip(tree_leaves(found), tree_leaves(wanted), strict=True)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)


def test_an_input_that_the_layer_refuses_is_refused() -> None:
    with pytest.raises(RuntimeError, match="input"):
        recurrent_results(nn.GRU(4, 6), torch.randn(2, 5, 3, device="meta"))


def test_a_long_sequence_takes_no_longer_than_a_short_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.lstm(self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2]), None)[0]
        return y[:, -1] if y.shape[1] > 7 else y.mean(1)  # which asks for a size behind the layer

    layers = {
        "linear": nn.Linear(4, 4),
        "norm": nn.BatchNorm1d(4),
        "lstm": nn.LSTM(4, 4, 2, batch_first=True),
    }
    x = torch.randn(2, 2000, 4, dtype=torch.float64)
    model = prepared(Block(forward, **layers), x)
    start = time.perf_counter()
    result = fold(model, (x,), verify=False)
    assert time.perf_counter() - start < 10  # step by step: half a minute
    assert not result.report.kept
    assert error(result.model, model, x[:, :50]) < 1e-11
