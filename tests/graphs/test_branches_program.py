"""Branches of a torch.export program merge as those of a module do, and it stays a program of torch alone."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bntool import fold
from bntool.errors import UsageError
from bntool.graphs.aten_schema import aten_name
from tests.random_norms import randomise_norms
from tests.test_branches import KEPT, ONE_LAYER, Block, image

LAYERS = {"conv1d", "conv2d", "conv3d", "convolution", "linear", "mm", "addmm"}
#: a hook and a shared layer's second call are ordinary calls once exported
FIXED = {name: case for name, case in KEPT.items() if "hook" not in name and "shared" not in name}
EXACT = 1e-12


class Side(nn.Module):
    """Many blocks on the same input."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x.clone().relu()) for block in self.blocks)


def exported(model: nn.Module, x: Tensor, *, decompose: bool) -> ExportedProgram:
    model, x = copy.deepcopy(model).double().eval(), x.double()
    randomise_norms(model, (x,))
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", max=64)},))
    return program.run_decompositions() if decompose else program


def layers(program: ExportedProgram) -> int:
    return sum(aten_name(node) in LAYERS for node in program.graph.nodes)


def merged(program: ExportedProgram, x: Tensor) -> Any:
    """The fold, saved and loaded; asserts equal outputs, an unchanged original and a state that is read."""
    text = str(program.graph)
    result = fold(program, merge=True)
    assert result.report.verification.ok
    assert str(program.graph) == text
    file = io.BytesIO()
    torch.export.save(result.model, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert set(loaded.state_dict) == {
        spec.target for spec in loaded.graph_signature.input_specs if spec.target in loaded.state_dict
    }
    values = torch.cat([-x, 3 * x]).double()
    wanted, got = program.module()(values), loaded.module()(values)
    torch.testing.assert_close(got, wanted, rtol=EXACT, atol=EXACT)
    return result


@pytest.mark.parametrize("decompose", [False, True])
def test_every_block_becomes_one_layer(decompose: bool) -> None:
    in_parts = {name for name in ONE_LAYER if "stack" in name or "reflect" in name}  # once decomposed
    listed = sorted(ONE_LAYER.keys() - in_parts) if decompose else sorted(ONE_LAYER)
    blocks = [ONE_LAYER[name] for name in listed]
    program = exported(Side(blocks), image(), decompose=decompose)
    result = merged(program, image())
    assert layers(result.model) == len(blocks)
    left = [name for name in result.model.state_dict if ".merged" not in name]
    assert left == [f"blocks.{listed.index('a number that adds a dimension')}.s.gamma"]
    assert not result.report.kept


@pytest.mark.parametrize("decompose", [False, True])
def test_what_must_not_merge_stays(decompose: bool) -> None:
    blocks = [block for block, _ in FIXED.values()]
    result = merged(exported(Side(blocks), image(), decompose=decompose), image())
    assert layers(result.model) == sum(count for _, count in FIXED.values())


@pytest.mark.parametrize(("shape", "decompose"), [((2, 8), False), ((2, 8), True), ((2, 5, 8), False)])
def test_linear_layers_merge_too(shape: tuple[int, ...], decompose: bool) -> None:
    block = Block(
        lambda m, x: m.c(m.a(x) + m.b(x) + x), a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = merged(exported(block, x, decompose=decompose), x)
    assert layers(result.model) == 1


class Adapted(nn.Module):
    """Reads the type of a sum, which the exporter then asserts, and computes what nobody reads; its argument
    is called as a builtin is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        branch = self.a(input)
        total = branch + self.b(input) * 0.5
        branch.sum() + branch.mean()
        return total.to(input.dtype).relu()


def test_what_is_asserted_of_branches_and_computed_in_vain_does_not_keep_them() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    result = merged(exported(Adapted(), x, decompose=False), x)
    assert layers(result.model) == 1


def test_a_norm_to_keep_is_not_merged_away() -> None:
    program = exported(ONE_LAYER["three by three, one by one, identity"], image(), decompose=False)
    report = fold(program, merge=True, keep=["n1"]).report
    assert {entry.name: entry.reason for entry in report.kept}["n1"] == "kept as asked"
    assert "n3" in [entry.name for entry in report.folded]


def test_splitting_a_program_is_refused_with_another_way() -> None:
    program = exported(ONE_LAYER["strided"], image(), decompose=False)
    with pytest.raises(UsageError, match=r"Split the module"):
        fold(program, split=True)
