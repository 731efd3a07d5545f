"""Folds of torch.export programs: still programs, loadable by torch alone, the same numbers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bntool.fold import fold
from bntool.sources.pt2 import sample_inputs
from tests.folding import TOLERANCE, Block, prepared, reason
from tests.folding import error as difference
from tests.random_norms import randomise_norms

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
#: float64 programs differ by rounding of a few layers
EXACT = 1e-12


def exported(model: nn.Module, *inputs: Tensor, dynamic: bool = False, decompose: bool = False) -> Any:
    torch.manual_seed(0)
    model = model.double().eval()
    doubles = tuple(x.double() for x in inputs)
    randomise_norms(model, doubles)
    shapes = tuple({0: Dim("batch")} for _ in inputs) if dynamic else None
    program = torch.export.export(model, doubles, dynamic_shapes=shapes)
    return program.run_decompositions() if decompose else program


def error(a: ExportedProgram, b: ExportedProgram, *inputs: Tensor) -> float:
    given = [x.double() for x in inputs]
    x, y = a.module()(*given), b.module()(*given)
    return float((x - y).abs().max() / x.abs().max())


def norms(program: ExportedProgram) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes)


def checked(program: ExportedProgram, *inputs: Tensor) -> Any:
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    text = str(program.graph)
    result = fold(program)
    assert result.report.verification.ok
    assert error(program, result.model, *inputs) < EXACT
    assert str(program.graph) == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict.items())
    assert not fold(result.model, verify=False).report.folded
    return result


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("name", "folds"), [("resnet", 9), ("mobilenet", 11), ("unet", 12), ("siamese", 3), ("mlp", 3)]
)
def test_sample_models(name: str, folds: int, decompose: bool) -> None:
    module = importlib.import_module(f"sample_models.{name}")
    model = getattr(module, name)(**({"norm": True} if name == "mlp" else {}))
    inputs = module.example_inputs()
    program = exported(model, *inputs, decompose=decompose)
    result = checked(program, *inputs)
    assert len(result.report.folded) == folds
    assert norms(result.model) == 0


@pytest.mark.parametrize("decompose", [False, True])
def test_a_linear_before_a_flatten_and_a_norm(decompose: bool) -> None:
    """Decompositions write such a linear layer as a batched product with its expanded weight."""
    module = importlib.import_module("sample_models.levit")
    program = exported(module.levit(), *module.example_inputs(), decompose=decompose)
    assert len(checked(program, *module.example_inputs()).report.folded) == 11


class ConvNorm(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


def test_the_signature_and_the_state_agree_and_the_new_bias_is_a_parameter() -> None:
    result = checked(exported(ConvNorm(), X), X)
    program = result.model
    assert sorted(program.state_dict) == ["conv.bias", "conv.weight"]
    assert list(program.graph_signature.parameters) == ["conv.weight", "conv.bias"]
    assert not program.graph_signature.buffers
    assert isinstance(program.state_dict["conv.bias"], nn.Parameter)


def test_dynamic_shapes_and_their_constraints_stay() -> None:
    program = exported(ConvNorm(), X, dynamic=True)
    result = checked(program, X)
    assert result.model.range_constraints == program.range_constraints
    assert error(program, result.model, torch.randn(5, 3, 8, 8)) < EXACT
    assert [run.batch for run in result.report.verification.runs] == [2, 3]


def test_torch_alone_loads_what_was_folded(tmp_path: Path) -> None:
    program = exported(ConvNorm(), X, dynamic=True)
    torch.export.save(fold(program).model, tmp_path / "folded.pt2")
    torch.save((X.double(), program.module()(X.double())), tmp_path / "io.pt")
    code = """
import sys, torch
program = torch.export.load(sys.argv[1] + "/folded.pt2")
x, y = torch.load(sys.argv[1] + "/io.pt")
assert not any("batch_norm" in str(n.target) for n in program.graph.nodes)
assert float((program.module()(x) - y).abs().max()) < 1e-12 * float(y.abs().max())
assert "bntool" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True, cwd=tmp_path)


def test_a_bias_that_comes_out_zero_is_left_out() -> None:
    model = ConvNorm(bias=True).double().eval()
    randomise_norms(model, (X.double(),))
    model.norm.bias.data.zero_()
    model.norm.running_mean.copy_(model.conv.bias.detach())
    program = torch.export.export(model, (X.double(),))
    folded = fold(program).model
    assert sorted(folded.state_dict) == ["conv.weight"]
    assert error(program, folded, X) < EXACT


class Overwriting(nn.Module):
    """The norm's input is read again after the norm's output has been changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x * 2 + self.second(self.relu(self.norm(x)))


def test_an_in_place_operator_does_not_overwrite_what_the_norm_read() -> None:
    model = Overwriting().double().eval()
    with torch.no_grad():
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.running_mean.zero_()
        model.norm.bias.zero_()
    program = torch.export.export(model, (X.double(),))
    assert "changed in place" in checked(program, X).report.kept[0].reason


def test_train_mode_stays_with_a_reason() -> None:
    program = torch.export.export(ConvNorm().train(), (X,))
    report = fold(program, verify=False).report
    assert "train mode" in report.kept[0].reason


class Tied(nn.Module):
    """Two convolutions read one weight; only one has a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) + self.b(x.relu())


def test_a_tied_weight_is_never_changed_under_its_other_reader() -> None:
    result = checked(exported(Tied(), X), X)
    assert "also used by" in result.report.kept[0].reason


def test_keep_by_name() -> None:
    program = exported(ConvNorm(), X)
    assert fold(program, keep=["norm"]).report.kept[0].reason == "kept as asked"


def test_weights_that_leave_the_range_of_half_precision_stay() -> None:
    model = ConvNorm().half().eval()
    with torch.no_grad():
        model.norm.weight.fill_(60000)
        model.norm.running_var.fill_(0.01)
    program = torch.export.export(model, (X.half(),))
    report = fold(program, verify=False).report
    assert "float16" in report.kept[0].reason


def test_the_oracle_sees_a_weight_that_is_one_per_cent_off() -> None:
    program = exported(ConvNorm(), X)
    folded = fold(program).model
    folded.state_dict["conv.weight"].data.mul_(1.01)
    assert error(program, folded, X) > 1e-3


class Deep(nn.Module):
    """A product far behind the input, in a graph that has no modules to stop at."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1500):
            x = x * 1.001
        return x @ x.transpose(-1, -2)


def test_a_deep_program_is_read_without_recursion() -> None:
    program = torch.export.export(Deep(), (torch.randn(2, 3),))
    assert not fold(program, verify=False).report.found


class Named(nn.Module):
    """An input by position and one by name; a buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(), ConvNorm()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, *, y: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1)
        return {"sum": self.a(x) + self.b(y), "scaled": self.a(y) * self.calls}


@pytest.mark.parametrize("decompose", [False, True])
def test_inputs_by_name_and_buffers_that_change(decompose: bool) -> None:
    model, x = Named().double().eval(), X.double()
    for norm in (model.a.norm, model.b.norm):
        nn.init.uniform_(norm.running_mean)
    program = torch.export.export(model, (x,), {"y": 2 * x})
    program = program.run_decompositions() if decompose else program
    result = fold(program)
    assert result.report.verification.ok
    assert len(result.report.folded) == 2
    assert float(program.state_dict["calls"]) == 0
    assert fold(program, {"y": 2 * x, "x": x}).report.verification.ok


@pytest.mark.parametrize("decompose", [False, True])
def test_the_original_and_its_fold_count_each_for_itself(decompose: bool) -> None:
    program = exported(Counting(), X, decompose=decompose)
    before, result = program.state_dict["calls"].clone(), fold(program)
    result.model.module()(X.double())
    assert torch.equal(program.state_dict["calls"], before)
    assert torch.equal(result.model.state_dict["calls"], before + 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ConvNorm()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.calls.add_(1)


class Drifting(nn.Module):
    """A norm in eval mode whose statistics every call changes for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.norm.running_mean.add_(y.mean((0, 2, 3)))
        return y


@pytest.mark.parametrize("decompose", [False, True])
def test_a_norm_that_changes_from_call_to_call_stays(decompose: bool) -> None:
    report = fold(exported(Drifting(), X, decompose=decompose)).report
    assert report.kept[0].reason == "the program may change its parameters or statistics"


@pytest.mark.parametrize("merge", [False, True])
def test_modules_whose_signatures_were_preserved_are_still_to_be_had(merge: bool) -> None:
    model, x = nn.Sequential(ConvNorm(), nn.ReLU(), ConvNorm()).double().eval(), X.double()
    model[2].conv = nn.Conv2d(4, 3, 1).double()
    model[2].norm = nn.BatchNorm2d(3).double().eval()
    randomise_norms(model, (x,))
    names = ("0", "0.conv", "0.norm", "1", "2")
    program = torch.export.export(model, (x,), preserve_module_call_signature=names)
    result = fold(program, merge=merge)
    assert len(result.report.folded) == 2
    torch.testing.assert_close(torch.export.unflatten(result.model)(x), model(x))


class Nested(nn.Module):
    """Several tensors in one place, and another by name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvNorm()

    def forward(self, pair: dict[str, Tensor], *, scale: Tensor) -> Tensor:
        return self.block(pair["x"] + pair["y"]) * scale


def test_the_inputs_of_a_file_are_all_that_it_takes(tmp_path: Path) -> None:
    model, x = Nested().double().eval(), X.double()
    program = torch.export.export(model, ({"x": x, "y": x},), {"scale": x.mean()})
    inputs = sample_inputs(program, tmp_path)
    assert list(inputs) == ["pair", "scale"]
    for given in (None, inputs):
        assert fold(program, given).report.verification.ok


class Loose(nn.Module):
    """A weight that is not saved with the state, and gets a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 3, 3), persistent=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.conv2d(x, self.weight))


@pytest.mark.parametrize("decompose", [False, True])
def test_a_bias_beside_a_buffer_that_is_not_saved_is_one_too(decompose: bool) -> None:
    result = checked(exported(Loose(), X, decompose=decompose), X)
    assert len(result.report.folded) == 1
    assert not result.model.state_dict


class Around(nn.Module):
    """Operators that are written in other ways after decomposition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False)
        self.norm, self.group, self.last = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.instance(self.last(self.group(self.norm(self.conv(x)))))


class BehindALayerNorm(nn.Module):
    """Two norms, so that the second is known by what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 3, 3, padding=1, padding_mode="replicate")
        self.first, self.second, self.tokens = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.LayerNorm((3, 8))
        self.last = nn.BatchNorm1d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(self.conv(x.mean(1))))
        return self.last(self.tokens(y)).tanh()


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(("model", "folds"), [(Around, 2), (BehindALayerNorm, 3)])
def test_norms_behind_what_decompositions_rewrite(model: Any, folds: int, decompose: bool) -> None:
    assert len(checked(exported(model(), X, decompose=decompose), X).report.folded) == folds


def test_zero_padding_that_is_in_the_way_is_a_matter_of_the_module() -> None:
    model = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1))
    report = fold(exported(model, X)).report
    assert "--pad-values may help with the module, before its export" in report.kept[0].reason


@pytest.mark.parametrize(("others", "cut"), [(1, 2), (7, 3)])
def test_what_only_the_example_batch_leaves_out_keeps_a_norm(others: int, cut: int) -> None:
    """Of a batch of three, or only of four, something is left."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(m.conv(x).relu())
        return m.head(y), torch.cat([y, *[x] * others])[cut:]

    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "head": nn.Conv2d(4, 2, 1)}
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = prepared(Block(forward, **layers), x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    result = fold(program, verify=False)
    assert "other sizes" in reason(result.report)
    assert difference(program.module(), result.model.module(), torch.cat([x, -x])) < TOLERANCE
    fixed = torch.export.export(model, (x,), strict=False)
    assert not fold(fixed, verify=False).report.kept


OTHERS = [
    torch.randn(2, 4, 4, 5).double(),
    torch.randn(5, 4, 10, 5).double(),
    torch.randn(2, 4, 20, 5).double(),
]


def sized(forward: Any, height: Any = torch.export.Dim.AUTO) -> ExportedProgram:
    """A program of `forward(layers, x)` whose batch and height are open, exported for a height of 8."""
    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "head": nn.Conv2d(4, 2, 1)}
    x = torch.randn(2, 4, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shapes = ({0: torch.export.Dim.AUTO, 2: height},)
    return torch.export.export(
        prepared(Block(forward, **layers), x), (x,), dynamic_shapes=shapes, strict=False
    )


def for_all_sizes(program: ExportedProgram, folded: ExportedProgram) -> bool:
    return all(difference(program.module(), folded.module(), x) < TOLERANCE for x in OTHERS)


#: what a norm behind an activation goes through, to a layer
THROUGH_SIZES = {
    "cut short": lambda y, x: torch.cat([y, x], 2)[:, :, :7],
    "cut short from the end": lambda y, x: torch.cat([x, y], 2)[..., -7:, :],
    "first of the pieces": lambda y, x: torch.cat([y, x], 2).split([6, 2 * x.shape[2] - 6], 2)[0],
    "cut when flat": lambda y, x: torch.cat([y, x], 2).flatten(2)[:, :, :39].unsqueeze(-1),
    "times the height": lambda y, x: y * x.shape[2],
    "over the batch": lambda y, x: y / x.shape[0],
    "plus a root of it": lambda y, x: y * 2 + x.shape[2] ** 0.5,
}


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("through", THROUGH_SIZES.values(), ids=list(THROUGH_SIZES))
def test_a_program_folds_for_all_sizes_that_it_leaves_open(through: Any, decompose: bool) -> None:
    program = sized(lambda m, x: m.head(through(m.norm(m.conv(x).relu()), x)))
    program = program.run_decompositions() if decompose else program
    assert for_all_sizes(program, fold(program, verify=False).model)


def test_a_size_that_is_a_multiple_of_an_open_one_is_open() -> None:
    program = sized(
        lambda m, x: m.head(torch.cat([m.norm(m.conv(x).relu()), x], 2)[:, :, :7]), 2 * Dim("half", min=2)
    )
    assert for_all_sizes(program, fold(program, verify=False).model)


def test_a_number_that_follows_from_an_open_size_does_not_merge() -> None:
    program = sized(lambda m, x: m.conv(x) * x.shape[2] + m.conv(x).relu() + m.head(x).mean(1, keepdim=True))
    assert for_all_sizes(program, fold(program, merge=True, verify=False).model)


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (2, 4), (2, 1)])
def test_a_bias_that_is_broadcast_is_no_layers(shape: tuple[int, ...]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(torch.addmm(m.bias, x, m.weight.t()))

    x = torch.randn(2, 3).double()
    model = Block(forward, norm=nn.BatchNorm1d(4))
    model.weight, model.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(shape))
    assert len(fold(torch.export.export(prepared(model, x), (x,))).report.kept) == 1


def test_a_weight_that_is_a_vector_is_no_layers() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(nn.functional.linear(x, m.weight).unsqueeze(1))

    x = torch.randn(2, 3).double()
    model = Block(forward, norm=nn.BatchNorm1d(1))
    model.weight = nn.Parameter(torch.randn(3))
    assert len(fold(torch.export.export(prepared(model, x), (x,))).report.kept) == 1


def test_norms_in_graphs_that_a_program_calls_are_named() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.norm(m.conv(x))
        return y.relu()

    x = X.double()
    model = prepared(Block(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)), x)
    program = torch.export.export(model, (x,), strict=False)
    assert "run_decompositions()" in reason(fold(program).report)
    assert len(fold(program.run_decompositions()).report.folded) == 1


class Tokens(nn.Module):
    """A linear layer on a sequence, which decompositions write with expanded operands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).transpose(1, 2))


def test_a_folded_program_takes_every_size_that_the_program_takes() -> None:
    model, x = Tokens().eval(), torch.randn(2, 3, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO},))
    program = program.run_decompositions()
    folded = fold(program).model
    for shape in ((2, 3, 8), (3, 3, 8), (3, 3, 3), (8, 3, 2)):
        folded.module()(torch.randn(shape))
