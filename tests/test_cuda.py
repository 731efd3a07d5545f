"""On a GPU: everything that runs a model does so where the model is. Skipped where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.norms.layers import FrozenBatchNorm
from sample_models import resnet
from tests.folding import Block, error
from tests.norms.nets import Chain, randomized, seeded_chain, shifted_batches
from tests.random_norms import has_statistics, randomise_norms
from tests.vision import network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda")
NETS = "tests/bench/nets.py"
#: enough to find a factor of several: with a GPU every worker takes seconds to start
QUICK = ("--budget", "2s", "--replicates", "3", "--no-confirm")


def on_gpu(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """In eval mode, with random statistics that were found on the CPU."""
    model = randomise_norms(model.eval(), (x,))
    return model.to(CUDA, dtype), x.to(CUDA, dtype)


def devices(model: nn.Module) -> set[str]:
    return {t.device.type for t in (*model.parameters(), *model.buffers())}


def norms_in(model: nn.Module) -> int:
    return sum(map(has_statistics, model.modules()))


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "googlenet", "densenet121", "shufflenet_v2_x1_0"]
)
def test_folding_is_verified_in_full_precision(name: str) -> None:
    model, x = on_gpu(network("torchvision", name), torch.randn(2, 3, 96, 96))
    result = bntool.fold(model, x)
    found = result.report.verification
    assert found is not None
    assert found.ok
    assert found.smallest_tolerance < 1e-4  # with TF32 a thousandth would be lost in rounding
    assert devices(result.model) == {"cuda"}
    assert torch.backends.cudnn.allow_tf32  # as it was


def test_a_wrong_fold_does_not_hide_in_tf32() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 96, 96))
    damaged = bntool.fold(model, x, verify=False).model
    with torch.no_grad():
        damaged.layer3[0].conv1.weight.mul_(1.001)  # type: ignore[union-attr,index]
    assert not bntool.verify(model, damaged, x).ok


def test_float64_on_the_gpu_agrees_with_float64_on_the_cpu() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 64, 64), torch.float64)
    folded = bntool.fold(model, x).model
    assert norms_in(folded) == 0
    assert error(model, folded, x) < 1e-12
    here = bntool.fold(model.cpu(), x.cpu()).model
    for (name, a), (_, b) in zip(folded.named_parameters(), here.named_parameters(), strict=True):
        assert torch.allclose(a.cpu(), b, rtol=1e-14, atol=0), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 96, 96), dtype)
    result = bntool.fold(model, x)
    assert norms_in(result.model) == 0
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.report.verification.ok  # type: ignore[union-attr]


def test_autocast() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 96, 96))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = bntool.fold(model, x)
    assert norms_in(result.model) == 0


def test_channels_last_stays() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 96, 96))
    model = model.to(memory_format=torch.channels_last)
    folded = bntool.fold(model, x.to(memory_format=torch.channels_last)).model
    weight = folded.layer1[0].conv1.weight  # type: ignore[union-attr,index]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_in_place_takes_no_second_model() -> None:
    model, _ = on_gpu(network("torchvision", "resnet50"), torch.randn(2, 3, 64, 64))
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bntool.fold_(model)
    assert norms_in(model) == 0
    assert torch.cuda.max_memory_allocated() - before < 0.3 * size


@pytest.mark.parametrize("options", [{}, {"merge": True}, {"split": True}, {"pad_values": True}])
def test_graph_form(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    a, b, n = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    block = Block(lambda m, x: m.n(m.a(x) + m.b(x)), a=a, b=b, n=n)
    model, x = on_gpu(block, torch.randn(2, 4, 8, 8), torch.float64)
    result = bntool.fold(model, x, form="graph", **options)
    assert norms_in(result.model) == 0
    assert devices(result.model) == {"cuda"}
    assert error(model, result.model, x) < 1e-12


def test_merging_a_reparameterisable_network() -> None:
    model, x = on_gpu(network("timm", "repvgg_a0"), torch.randn(1, 3, 64, 64), torch.float64)
    result = bntool.fold(model, x, form="graph", merge=True)
    assert norms_in(result.model) == 0
    assert error(model, result.model, x) < 1e-9


def test_programs_fold_and_stay_on_the_gpu(tmp_path: Path) -> None:
    model, x = on_gpu(Chain(), torch.randn(4, 4, 8, 8), torch.float64)
    program = torch.export.export(model, (x,))
    folded = bntool.fold(program, (x,)).model
    torch.export.save(folded, tmp_path / "folded.pt2")
    again = torch.export.load(tmp_path / "folded.pt2").module()
    assert (again(x) - model(x)).abs().max() < 1e-12
    assert {t.device.type for t in folded.state_dict.values()} == {"cuda"}


@pytest.mark.parametrize("form", ["module", "graph"])
def test_inserted_norms_are_on_the_gpu_and_change_nothing(form: str) -> None:
    torch.manual_seed(0)
    plain, x = network("torchvision", "vgg11").eval().to(CUDA), torch.randn(8, 3, 64, 64, device=CUDA)
    result = bntool.insert(plain, x, form=form)
    assert norms_in(result.model) >= 8
    assert devices(result.model) == {"cuda"}
    assert bntool.verify(plain, result.model, x).ok
    result.model.train()(x).sum().backward()
    back = bntool.fold(result.model.eval(), x).model
    assert norms_in(back) == 0


def test_unfold() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(8, 3, 64, 64))
    folded = bntool.fold(model, x).model
    normed = bntool.unfold(folded, x).model
    assert norms_in(normed) == 20
    assert devices(normed) == {"cuda"}


@pytest.mark.parametrize(
    "norm", ["batch", "sync", "group", "layer", "instance", "rms", "renorm", "ghost", "auto"]
)
def test_every_norm_can_be_inserted(norm: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(8, 3, 16, 16, device=CUDA)
    normed = bntool.insert(plain.to(CUDA), x, norm=norm).model
    assert devices(normed) == {"cuda"}
    assert normed(x).isfinite().all()


@pytest.mark.parametrize(
    "to", ["sync", "group", "layer", "instance", "frozen", "none", "rms", "renorm", "ghost"]
)
def test_every_norm_can_replace_batch_norm(to: str) -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(4, 3, 64, 64))
    result = bntool.replace(model, to, example_inputs=x)
    assert devices(result.model) == {"cuda"}
    assert result.model(x).isfinite().all()


def test_frozen_back_to_batch() -> None:
    model, x = on_gpu(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4))
    frozen = bntool.replace(model, "frozen").model
    assert isinstance(frozen[1], FrozenBatchNorm)
    again = bntool.replace(frozen, "batch").model
    assert error(model, again, x) < 1e-6


@pytest.mark.parametrize("method", ["lockstep", "passes"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_calibrating_gives_what_the_cpu_gives(method: str, where: str) -> None:
    """Batches may be on either device: those of a loader are on the CPU."""
    batches = shifted_batches()
    here = bntool.calibrate(randomized(seeded_chain()), batches, method=method).model
    gpu = randomized(seeded_chain()).to(CUDA)
    there = bntool.calibrate(gpu, [b.to(where) for b in batches], method=method).model
    for name, value in here.named_buffers():
        assert torch.allclose(there.get_buffer(name).cpu().double(), value.double(), rtol=1e-3), name


def test_inspect() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(4, 3, 64, 64))
    assert "layer1.0.bn1" in json.dumps(bntool.inspect(model, x).to_dict())


def test_inputs_on_the_wrong_device_are_one_message() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(4, 3, 64, 64))
    with pytest.raises(bntool.BntoolError, match=r"device|cuda"):
        bntool.fold(model, x.cpu())


def test_export_from_the_gpu(tmp_path: Path) -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(2, 3, 64, 64))
    bntool.export(model, tmp_path / "model.onnx", x)
    assert (tmp_path / "model.onnx").exists()
    assert devices(model) == {"cuda"}


def test_saved_weights_load_where_there_is_no_gpu(tmp_path: Path) -> None:
    model = resnet.resnet().to(CUDA).eval()
    bntool.save(model, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").exists()


def test_live_modules_are_benched_on_the_gpu() -> None:
    model, x = on_gpu(network("torchvision", "resnet18"), torch.randn(8, 3, 96, 96))
    folded = bntool.fold(model, x).model
    found = bntool.bench(
        {"folded": folded, "normed": model}, x, device="cuda", budget_s=2, replicates=3, confirm=False
    )
    (pair,) = found.comparisons
    assert pair.ratio.low > 1.0  # type: ignore[union-attr]
    assert found.candidates[0].memory["peak_device_bytes"] > 1e6


def bench(*arguments: str) -> tuple[int, Any, str]:
    line = [sys.executable, "-m", "bntool", "bench", *arguments, *QUICK, "--device", "cuda", "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.parametrize("options", ["", "--flush-l2", "--mode train", "--dtype bfloat16"])
def test_a_planted_slowdown_is_found(options: str) -> None:
    code, found, message = bench(f"{NETS}:net", f"{NETS}:net(times=20)", *options.split())
    assert code == 1, message
    assert found["comparisons"][0]["verdict"] == "slower"


@pytest.mark.parametrize("options", ["", "--flush-l2"])
def test_the_same_twice_does_not_fail(options: str) -> None:
    code, found, message = bench(f"{NETS}:net", f"{NETS}:net", *options.split())
    assert code == 0, message
    assert found["comparisons"][0]["verdict"] in ("same", "inconclusive")


@pytest.mark.parametrize("way", ["@eager(graph=True)", "@compile", "@aoti"])
def test_other_ways_to_run(way: str) -> None:
    code, found, message = bench(f"{NETS}:net", f"{NETS}:net{way}")
    assert code in (0, 1), message
    assert found["comparisons"][0]["outputs"]["equal"]


def test_a_study_runs_on_the_gpu(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bntool", "study", "sample_models/lenet.py:lenet", "--device", "cuda"]
    line += ["--claims", "1", "--tier", "0", "--json", "-o", str(tmp_path / "study.html")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
