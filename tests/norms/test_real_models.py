"""torchvision's plain networks, and folded ones: norms in, norms out, and back where they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bntool
from tests.norms.nets import randomized
from tests.vision import network

pytestmark = pytest.mark.zoo


def images(size: int = 64, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_vgg_gets_the_keys_of_its_twin_with_norms(name: str) -> None:
    torch.manual_seed(0)
    model = network("torchvision", name)
    result = bntool.insert(model, images())
    twin = network("torchvision", f"{name}_bn")
    assert list(twin.state_dict()) == list(result.model.state_dict())
    twin.load_state_dict(result.model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(images()), result.model(images()))


@pytest.mark.parametrize(
    ("name", "norms"),
    [("vgg11", 8), ("alexnet", 5), ("squeezenet1_1", 25), ("googlenet", 57), ("resnet18", 20)],
)
def test_insert_then_fold_gives_the_weights_back(name: str, norms: int) -> None:
    """GoogLeNet and ResNet without norms: folded first."""
    torch.manual_seed(0)
    model = network("torchvision", name)
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        model = bntool.fold(randomized(model), images()).model
    inserted = bntool.insert(model, images(), data=[images()])
    assert len(inserted.report.inserted) == norms
    folded = bntool.fold(inserted.model, images())
    assert len(folded.report.folded) == norms
    new = [v for k, v in folded.model.state_dict().items() if "num_batches" not in k]
    before = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    for (key, old), value in zip(before.items(), new, strict=True):
        assert float((old - value).abs().max()) <= 1e-6 * max(1.0, float(old.abs().max())), key


@pytest.mark.parametrize(
    ("name", "norms"), [("resnet18", 20), ("resnet50", 53), ("mobilenet_v2", 52), ("mobilenet_v3_small", 34)]
)
def test_a_folded_network_gets_its_norms_back_where_they_were(name: str, norms: int) -> None:
    torch.manual_seed(0)
    model = randomized(network("torchvision", name))
    folded = bntool.fold(model, images())
    result = bntool.unfold(folded.model, images())
    assert len(folded.report.folded) == len(result.report.inserted) == norms
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert result.report.eval.max_rel_error < 1e-4
    loss = result.model.train()(images(n=8)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_a_network_torch_folded_gets_as_many_norms_as_it_had() -> None:
    from torch.fx.experimental.optimization import fuse

    model = randomized(network("torchvision", "resnet18"))
    fused = fuse(model)
    result = bntool.unfold(fused, images())
    assert len(result.report.inserted) == 20
    assert result.report.eval.max_rel_error < 1e-4


def test_calibration_keeps_up_with_plain_forward_passes() -> None:
    """0.8 of the speed of eval forward passes over the same data; the best of three."""
    from time import perf_counter

    torch.manual_seed(0)
    model = randomized(network("torchvision", "resnet18"))
    batches = [images(112, 16) for _ in range(6)]
    ratios = []
    with torch.no_grad():
        for _ in range(3):
            start = perf_counter()
            for batch in batches:
                model(batch)
            middle = perf_counter()
            bntool.calibrate(model, batches)
            ratios.append((middle - start) / (perf_counter() - middle))
    assert max(ratios) >= 0.8, ratios
