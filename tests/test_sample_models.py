"""Every sample model builds, runs at two batch sizes, and is what its README says it is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

FOLDER = Path(__file__).resolve().parent.parent / "sample_models"
ROWS = re.findall(r"^\| `(\w+)\.py` \| (none|\d+).*? \| (.*?) \|", (FOLDER / "README.md").read_text(), re.M)
NAMES = [name for name, _, _ in ROWS]
IMAGES = [name for name, _, inputs in ROWS if "3x32x32" in inputs and name not in ("siamese", "unet")]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name: str, **arguments: object) -> nn.Module:
    model = getattr(load(name), name)(**arguments)
    assert isinstance(model, nn.Module)
    return model.eval()


def tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def test_the_readme_has_a_row_for_every_file() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "norms"), [(n, 0 if k == "none" else int(k)) for n, k, _ in ROWS])
def test_it_has_as_many_norms_as_the_readme_says(name: str, norms: int) -> None:
    assert sum(isinstance(m, _BatchNorm) for m in build(name).modules()) == norms


@pytest.mark.parametrize(("name", "shape"), [(n, s) for n, _, s in ROWS])
def test_example_inputs_have_the_shape_the_readme_says(name: str, shape: str) -> None:
    sizes = ["x".join(map(str, x.shape[1:])) for x in load(name).example_inputs()]
    assert sizes == re.findall(r"\d[\dx]*", shape)[:1] * len(sizes)
    assert len(sizes) == (2 if shape.startswith("two") else 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_computes_the_same_in_a_bigger_batch(name: str) -> None:
    model = build(name)
    inputs = load(name).example_inputs()
    with torch.no_grad():
        alone = tensors(model(*inputs))
        doubled = tensors(model(*(torch.cat([x, x]) for x in inputs)))
    for small, big in zip(alone, doubled, strict=True):
        assert big.shape == (2 * len(small), *small.shape[1:])
        torch.testing.assert_close(big[: len(small)], small)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str) -> None:
    model = build(name).train()
    sum(out.square().mean() for out in tensors(model(*load(name).example_inputs()))).backward()  # type: ignore[union-attr]
    trained = [p.grad for p in model.parameters() if p.grad is not None]
    assert trained
    assert all(torch.isfinite(grad).all() for grad in trained)


@pytest.mark.parametrize("name", IMAGES)
def test_image_classifiers_take_digits_with_one_channel(name: str) -> None:
    outputs = tensors(build(name, in_channels=1)(torch.randn(2, 1, 8, 8)))
    assert outputs[0].shape == (2, 10)


def test_mlp_takes_flat_and_image_digits_and_its_arguments() -> None:
    model = build("mlp", depth=5, activation="sigmoid", width=20)
    digits = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(digits), model(digits.flatten(1)))
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 6
    assert sum(isinstance(m, nn.Sigmoid) for m in model.modules()) == 5


def test_torch_fx_cannot_trace_branchy() -> None:
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(build("branchy"))
