"""The oracle: equal models pass, a weight that is 1 % off does not, whatever kind the models are of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bntool.errors import RunError, UsageError, VerificationError
from bntool.fold import fold
from bntool.save import save
from bntool.sources import load, open_model
from bntool.verify import verify
from tests.random_norms import randomise_norms

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
X = torch.linspace(-2, 2, 3 * 2 * 7 * 7).reshape(3, 2, 7, 7)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.Flatten(),
        nn.Linear(45, 6),
    ]
    model = nn.Sequential(*layers).eval()
    randomise_norms(model, (X,))
    return model


def damaged(model: Any, name: str) -> Any:
    """A copy with one weight tensor 1 % too large."""
    wrong = copy.deepcopy(model)
    wrong.get_parameter(name).data *= 1.01
    return wrong


WEIGHTS = [name for name, value in net().named_parameters() if value.ndim > 1]


@pytest.mark.parametrize("name", WEIGHTS)
def test_it_fails_on_a_weight_damaged_by_one_percent(name: str) -> None:
    model = net()
    assert verify(model, copy.deepcopy(model), (X,)).ok
    found = verify(model, damaged(model, name), (X,))
    assert not found.ok
    assert 0.001 < found.smallest_tolerance < 0.05
    assert verify(model, damaged(model, name), (X,), tolerance=found.smallest_tolerance).ok
    with pytest.raises(VerificationError, match="off by"):
        found.insist()


@pytest.mark.parametrize("name", ["0.weight", "5.weight"])
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_files_are_verified_on_either_side(tmp_path: Path, form: str, name: str) -> None:
    model = net()
    save(model, tmp_path / f"good.{form}", example_inputs=(X,))
    save(damaged(model, name), tmp_path / f"bad.{form}", example_inputs=(X,))
    for a, b, ok in [
        (model, f"good.{form}", True),
        (f"good.{form}", model, True),
        (model, f"bad.{form}", False),
        (f"bad.{form}", model, False),
        (f"good.{form}", f"bad.{form}", False),
    ]:
        sides = [str(tmp_path / s) if isinstance(s, str) else s for s in (a, b)]
        assert verify(*sides, (X,)).ok is ok, (a, b)


def test_inputs_come_from_a_reference(tmp_path: Path) -> None:
    save(net(), tmp_path / "m.pt2", example_inputs=(X,))
    assert verify(net(), str(tmp_path / "m.pt2")).ok
    with pytest.raises(UsageError, match="--input"):
        verify(net(), net())


def test_depth_does_not_hide_the_damage() -> None:
    """Deep and plain, as the tolerance grows with depth."""
    ref = f"{SAMPLES}/mlp.py:mlp(depth=40, activation='tanh', norm=True)"
    loaded = open_model(ref)
    randomise_norms(loaded.model, loaded.example_inputs())
    for name in [n for n, p in loaded.model.named_parameters() if p.ndim > 1]:
        assert not verify(loaded.model, damaged(loaded.model, name), loaded.example_inputs()).ok, name


class Residual(nn.Module):
    """34 blocks of two convolutions: as deep as can be without amplifying its own rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3)
        self.blocks, self.head = nn.ModuleList(self.block() for _ in range(34)), nn.Linear(16, 6)

    def block(self) -> nn.Module:
        first, second = ([nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)] for _ in range(2))
        return nn.Sequential(*first, nn.ReLU(), *second)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("form", ["module", "program"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depth_does_not_hide_a_few_per_cent_in_half_precision(dtype: torch.dtype, form: str) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model, x = randomise_norms(Residual().eval(), (x,)).to(dtype), x.to(dtype)
    right, wrong = fold(model, (x,), verify=False).model, copy.deepcopy(model)
    wrong.head.weight.data *= 1.04
    wrong.head.bias.data *= 1.04
    if form == "program":
        model, right, wrong = (torch.export.export(m, (x,)) for m in (model, right, wrong))
    assert verify(model, right, (x,)).ok
    assert not verify(model, wrong, (x,)).ok


@pytest.mark.parametrize("form", ["module", "program"])
def test_one_coarse_number_makes_nothing_else_coarse(form: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.register_buffer("factor", torch.tensor(2.0, dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Any:
            return self.net(x) * self.factor

    model = Scaled().eval()
    made = torch.export.export(model, (X,)) if form == "program" else model
    assert verify(made, model, (X,)).tolerance < 1e-3


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any], scale: float = 1.0) -> None:
        super().__init__()
        self.wrap, self.scale = wrap, scale

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x, x * self.scale)


@dataclasses.dataclass
class Answer:
    boxes: Tensor
    scores: Tensor


WRAPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "tuple": (lambda a, b: (a, b), ["0", "1"]),
    "dict": (lambda a, b: {"a": a, "b": b}, ["a", "b"]),
    "dataclass": (Answer, ["boxes", "scores"]),
    "nested": (lambda a, b: {"a": [a, (b, None)]}, ["a.0", "a.1.0"]),
}


@pytest.mark.parametrize("kind", WRAPS)
def test_structured_outputs_are_compared_part_by_part(kind: str) -> None:
    wrap, names = WRAPS[kind]
    same = verify(Wrapped(wrap), Wrapped(wrap), X)
    assert [o.output for o in same.runs[0].outputs] == names
    assert same.ok
    off = verify(Wrapped(wrap), Wrapped(wrap, 1.01), X)
    assert [o.max_abs > 0 for o in off.runs[0].outputs] == [False, True]
    assert not off.ok


def test_what_cannot_be_paired_is_a_failure_with_a_reason() -> None:
    one, two = Wrapped(lambda a, b: a), Wrapped(lambda a, b: (a, b))
    assert "1 outputs, the second 2" in verify(one, two, X).complaint()
    assert "shapes differ" in verify(one, Wrapped(lambda a, b: a[:, :1]), X).complaint()
    with pytest.raises(RunError, match="holds no tensors"):
        verify(one, Wrapped(lambda a, b: object()), X)
    with pytest.raises(RunError, match="the model raised RuntimeError"):
        verify(nn.Linear(3, 3), nn.Linear(3, 3), X)


def test_values_that_are_not_finite_fail_and_are_counted() -> None:
    clean = Wrapped(lambda a, b: a)
    holed = Wrapped(lambda a, b: torch.where(a > 1, torch.nan, a))
    found = verify(clean, holed, X, second_batch=False)
    assert not found.ok
    assert found.runs[0].outputs[0].non_finite == int((X > 1).sum())
    assert "not finite" in found.complaint()
    both = verify(holed, holed, X)
    assert any("reference itself" in note for note in both.notes)


def test_a_second_batch_size_finds_what_the_first_cannot() -> None:
    class FixedBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 if x.shape[0] == len(X) else 1.1)

    found = verify(Wrapped(lambda a, b: a), FixedBatch(), X)
    assert [run.within(found.tolerance) for run in found.runs] == [True, False]

    class OnlyThree(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(3, -1)

    alone = verify(OnlyThree(), OnlyThree(), X[:, :, :1])
    assert (alone.ok, len(alone.runs)) == (True, 1)
    assert any("one batch size only" in note for note in alone.notes)


def test_argmax_agreement_is_given() -> None:
    scores = torch.eye(4)
    flipped = Wrapped(lambda a, b: torch.cat([a[:3], a[3:].roll(1, 1)]))
    found = verify(Wrapped(lambda a, b: a), flipped, scores, second_batch=False)
    assert found.runs[0].outputs[0].argmax_agreement == 0.75


def test_the_tolerance_follows_the_dtype() -> None:
    fine = verify(net().double(), net().double(), (X.double(),))
    coarse = verify(net().bfloat16(), net().bfloat16(), (X.bfloat16(),))
    assert fine.tolerance < 1e-12 < coarse.tolerance
    assert any("small differences go unseen" in note for note in coarse.notes)
    assert not verify(net(), damaged(net(), "0.weight"), (X,)).ok


def test_models_and_inputs_are_as_they_were() -> None:
    model, x = net().train(), X.clone()
    before = copy.deepcopy(model.state_dict())
    assert verify(model, Wrapped(lambda a, b: a.mul_(2).flatten(1)[:, :6]), x).ok is False
    assert model.training
    assert torch.equal(x, X)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_report_is_plain_json() -> None:
    import json

    document = verify(net(), net(), (X,)).to_dict()
    assert document["schema_version"] == 1
    assert document["ok"] is True
    assert json.loads(json.dumps(document)) == document


def test_load_gives_what_verify_takes() -> None:
    ref = f"{SAMPLES}/lenet.py:lenet"
    torch.manual_seed(0)
    model = load(ref)
    torch.manual_seed(0)
    assert verify(model, ref).ok
