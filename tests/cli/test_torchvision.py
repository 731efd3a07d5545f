"""torchvision's models named as a user would, with random norm statistics."""

from __future__ import annotations

from pathlib import Path

import torch

import bntool
from tests import vision
from tests.cli.conftest import Run
from tests.random_norms import randomise_norms

INPUT = ("--input", "2x3x64x64")


def with_random_norms(name: str) -> str:
    """Write weights that no default norm hides a wrong fold in. Returns: their file."""
    model = vision.network("torchvision", name)
    randomise_norms(model, (torch.randn(4, 3, 64, 64),))
    torch.save(model.state_dict(), f"{name}.pt")
    return f"{name}.pt"


def test_resnet18_folds_exports_and_is_benched(run: Run) -> None:
    ref, weights = "torchvision.models:resnet18", with_random_norms("resnet18")
    report = run("fold", ref, "--weights", weights, *INPUT, "-o", "folded", "--json").json
    assert (report["found"], len(report["folded"])) == (20, 20)
    run("verify", ref, "folded", "--weights", weights, *INPUT)
    run("export", "folded", "--dynamic-batch", "-o", "resnet18.onnx")
    run("verify", ref, "resnet18.onnx", "--weights", weights, *INPUT)
    run("fold", ref, "--keep", "*", "--weights", weights, *INPUT, "-o", "plain")
    options = ["--budget", "1s", "--replicates", "2", "--tolerance", "900%", "--json"]
    found = run("bench", "plain", "folded", *options).json["comparisons"][0]
    assert found["verdict"] in ("faster", "same", "slower", "inconclusive")
    assert not found["warning"]


def test_mobilenet_v2_folds_into_onnx(run: Run) -> None:
    ref, weights = "torchvision.models:mobilenet_v2", with_random_norms("mobilenet_v2")
    report = run("fold", ref, "--weights", weights, *INPUT, "-o", "folded.onnx", "--json").json
    assert (report["found"], len(report["folded"])) == (52, 52)
    run("verify", ref, "folded.onnx", "--weights", weights, *INPUT)


def test_vgg11_with_norms_has_the_keys_of_vgg11_bn(run: Run) -> None:
    ref = "torchvision.models:vgg11"
    report = run("insert", ref, *INPUT, "-o", "normed.safetensors", "--json").json
    assert report["eval"]["max_rel_error"] < 1e-5
    normed = bntool.load(ref, weights=Path("normed.safetensors")).state_dict()
    with torch.device("meta"):
        twin = vision.network("torchvision", "vgg11_bn").state_dict()
    assert {k: v.shape for k, v in normed.items()} == {k: v.shape for k, v in twin.items()}
    assert list(normed) == list(twin)
