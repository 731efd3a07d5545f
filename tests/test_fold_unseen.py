"""Readers that nobody sees anything of: they must not keep a norm, unless what they do shows after all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import TOLERANCE, Block, error, folded, prepared

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dead_write(m: Any, x: Tensor) -> Tensor:
    """A value of its own, changed in place and dropped."""
    y = m.conv(x)
    both = torch.cat([y, y], 1)
    both.add_(both)
    return m.norm(y)


def write_to_a_view_that_is_read(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    both = torch.cat([y, y], 1)
    view = both.flatten(2)
    both.add_(both)
    return m.norm(y), view


def write_through_the_norm(m: Any, x: Tensor) -> Tensor:
    """Without the norm its output would be the conv's."""
    y = m.conv(x)
    m.norm(y).add_(1)
    return y


def write_to_the_input(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    x.view(-1).mul_(2)
    return y


def added_to_a_slice(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, both = m.down(x), torch.cat([x, x], 1)
    both[:, :4].add_(y)
    return m.head(y), both


def added_under_a_view(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, twice = m.down(x), x * 2
    view = twice.flatten(2)
    twice.add_(y)
    return m.head(y), view


def added_under_a_view_nobody_knows(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, twice = m.down(x), x * 2
    view = twice.as_strided((2,), (1,))
    twice.mul_(1).add_(y)
    return m.head(y), view


def added_to_the_input(m: Any, x: Tensor) -> Tensor:
    y = m.down(x)
    x.add_(y)
    return m.head(y)


def added_to_new_memory(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.zeros_like(x).add_(m.down(x)))


def in_place_by_another_word(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    F.relu(y, inplace=1)  # type: ignore[arg-type]
    return m.head(y)


def write_to_a_buffer(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.norm.num_batches_tracked.add_(y.sum().long())
    return m.norm(y)


def cancelled(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y - y


def cancelled_in_part(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + 3 * y - y


def slice_of_the_other_part(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), torch.cat([y, x], 1)[:, 4:]


def slice_of_the_other_part_normalised(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), m.instance(torch.cat([y, x], 1))[:, 4:]


def row_of_the_other_rows_normalised(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """With the statistics of each image, where every place changes with every other."""
    y = m.conv(x)
    return m.norm(y), F.instance_norm(torch.cat([y, x], 2))[:, :, 6:]


def slice_of_the_other_part_scaled_in_place(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), torch.cat([y, x], 1).mul_(0.5)[:, 4:]


def slice_of_the_other_part_and_a_view(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m.conv(x)
    both = torch.cat([y, x], 1)
    view = both.flatten(2)
    return m.norm(y), both.mul_(0.5)[:, 4:], view


def slice_of_both_parts(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), torch.cat([y, x], 1)[:, 3:]


def slice_of_all_examples(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """With the batch at hand there is nothing left of it."""
    y = m.conv(x)
    return m.norm(y), y[2:].sum()


def slice_of_the_first_examples(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a batch of two all, of others not."""
    y = m.conv(x)
    return m.norm(y), torch.cat([y, x])[2:]


def slice_behind_a_concatenated_batch(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.down(x)
    return m.head(y), torch.cat([y, x])[2:]


def slice_far_behind_a_concatenated_batch(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of batches of one, two and three nothing of the first part is left, of four there is."""
    y = m.down(x)
    return m.head(y), torch.cat([y, *[x] * 7])[3:]


def slice_of_a_concatenated_slice(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), torch.cat([y[2:], x])[:, :2]


def slice_as_long_as_the_batch(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.down(x)
    return m.head(y), torch.cat([y, x], 1)[:, x.shape[0] * 2 :]


def halves_of_a_concatenated_batch(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, z = torch.cat([m.down(x), x]).chunk(2)
    return m.head(y), z


def slice_far_below(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Deeper than Python's stack, and with a way to go on either side of every sum."""
    y = m.conv(x)
    both = torch.cat([y, x], 1)
    for _ in range(500):
        both = both * 0.1 + both.relu() * 0.1
    return m.norm(y), both[:, 4:] + x


def concatenated_with_nothing(m: Any, x: Tensor) -> Tensor:
    """torch lets what has no elements have another rank."""
    return m.norm(torch.cat([torch.empty(0, dtype=x.dtype), m.conv(x)], 1))


def write_to_a_view_of_what_the_norm_reads(m: Any, x: Tensor) -> Tensor:
    """Without the norm its output would be the conv's."""
    y = m.conv(x)
    z = m.norm(y)
    y.chunk(2, 1)[1].add_(1)
    return z


def write_to_two_values(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    torch._foreach_add_([x * 1, y], [1, 1])
    return z


def write_before_the_norm_reads(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x).relu()
    y.flatten(1).add_(1)
    return m.head(m.norm(y))


def reader_that_writes_to_another(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x).relu()
    return m.head(m.norm(y)), (x * 2).add_(y)


def rows(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer along the width keeps channels apart."""
    y = m.norm(m.conv(x))
    return m.head(y), m.wide(torch.cat([x, y], 1)).relu()[:, :4]


def mixed(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A softmax over the channels does not."""
    y = m.norm(m.conv(x))
    return m.head(y), torch.cat([x, y], 1).softmax(1)[:, :4]


def batch_statistics(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    both = torch.cat([y, x], 2)
    return m.norm(y), F.batch_norm(both, None, None, training=True)[:, :, 6:]


#: forward -> does its norm fold?
FORWARDS: dict[Callable[[Any, Tensor], Any], bool] = {
    dead_write: True,
    write_to_a_view_that_is_read: False,
    write_through_the_norm: False,
    write_to_the_input: True,
    added_to_a_slice: False,
    added_under_a_view: False,
    added_under_a_view_nobody_knows: False,
    added_to_the_input: False,
    added_to_new_memory: True,
    in_place_by_another_word: False,
    write_to_a_buffer: False,
    cancelled: True,
    cancelled_in_part: False,
    slice_of_the_other_part: True,
    slice_of_the_other_part_normalised: True,
    row_of_the_other_rows_normalised: False,
    slice_of_the_other_part_scaled_in_place: True,
    slice_of_the_other_part_and_a_view: False,
    slice_of_both_parts: False,
    slice_of_all_examples: False,
    slice_of_the_first_examples: False,
    slice_behind_a_concatenated_batch: False,
    slice_far_behind_a_concatenated_batch: False,
    slice_of_a_concatenated_slice: False,
    slice_as_long_as_the_batch: False,
    halves_of_a_concatenated_batch: True,
    slice_far_below: True,
    concatenated_with_nothing: True,
    write_to_a_view_of_what_the_norm_reads: False,
    write_to_two_values: False,
    write_before_the_norm_reads: True,
    reader_that_writes_to_another: True,
    rows: True,
    mixed: False,
    batch_statistics: False,
}


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_only_a_reader_that_shows_keeps_a_norm(forward: Callable[[Any, Tensor], Any]) -> None:
    model = Block(
        forward,
        conv=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
        head=nn.Conv2d(4, 2, 3),
        wide=nn.Linear(6, 6),
        instance=nn.InstanceNorm2d(8, track_running_stats=True),
    )
    model.down = nn.Sequential(model.conv, nn.ReLU(), model.norm)  # from where the norm can only go down
    if forward in (rows, mixed):
        model.conv = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())  # the norm can only go down
    result, report = folded(model, X)
    if forward is slice_as_long_as_the_batch:
        assert error(model, result, X[:1]) < TOLERANCE
    assert [e.name for e in report.folded] == ["norm"] * FORWARDS[forward], report.kept


def scaled_by_a_norm(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(m.conv(x), m.mean, m.var, weight=m.norm(x.relu()).mean((0, 2, 3)))


def shifted_by_a_norm(m: Any, x: Tensor) -> Tensor:
    return F.instance_norm(m.conv(x), m.mean, m.var, None, m.norm(x.relu()).mean((0, 2, 3)), False)


def layer_norm_scaled_by_a_norm(m: Any, x: Tensor) -> Tensor:
    return F.layer_norm(m.conv(x), (6,), m.norm(x.relu()).mean((0, 1, 2)))


def group_norm_shifted_by_a_norm(m: Any, x: Tensor) -> Tensor:
    return F.group_norm(m.conv(x), 2, None, m.norm(x.relu()).mean((0, 2, 3)))


def looked_up_where_a_norm_is_largest(m: Any, x: Tensor) -> Tensor:
    return m.table(m.norm(x.relu()).argmax(1))


@pytest.mark.parametrize("form", ["module", "graph", "program", "core program"])
@pytest.mark.parametrize(
    "forward",
    [
        *(scaled_by_a_norm, shifted_by_a_norm, layer_norm_scaled_by_a_norm, group_norm_shifted_by_a_norm),
        looked_up_where_a_norm_is_largest,
    ],
)
def test_what_gives_a_scale_or_places_is_read(forward: Callable[[Any, Tensor], Any], form: str) -> None:
    """The norm behind the activation has nowhere to go; what it scales is no map of its own."""
    model = Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4), table=nn.Embedding(4, 3))
    model.register_buffer("mean", torch.randn(4))
    model.register_buffer("var", torch.rand(4) + 0.5)
    if form in ("module", "graph"):
        assert not folded(model, X, form=form)[1].folded
        return
    program = torch.export.export(prepared(model, X), (X,))
    program = program if form == "program" else program.run_decompositions()
    report = fold(program, verify=False).report
    assert not report.folded
    assert report.found == sum(
        "batch_norm" in str(n.target) or "instance" in str(n.target)
        for n in program.graph.nodes
        if n.op == "call_function"
    )
