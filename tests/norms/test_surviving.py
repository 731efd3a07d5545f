"""What training code does with a model that got norms, in both forms: compile, optimise, distribute, save."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bntool

ROOT = Path(__file__).resolve().parents[2]
FORMS = pytest.mark.parametrize("form", ["module", "graph"])


class Net(nn.Module):
    """Two convolutions, a shortcut, a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        return self.head(self.drop(x.mean((2, 3))))


def images(n: int = 8) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made(form: str) -> nn.Module:
    torch.manual_seed(3)
    return bntool.insert(Net().eval(), images(), data=[images(16)], form=form).model


@FORMS
@pytest.mark.slow
def test_inductor_computes_the_same_in_eval_and_trains_the_same(form: str) -> None:
    model = made(form)
    model.drop.p = 0.0
    compiled = torch.compile(model, fullgraph=True)
    assert torch.allclose(compiled(images()), model(images()), atol=1e-5)
    eager = copy.deepcopy(model)
    for net, run in ((model, compiled), (eager, eager)):
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        for _ in range(2):
            optimizer.zero_grad()
            run(images()).square().mean().backward()
            optimizer.step()
    for key, value in eager.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-5), key


@FORMS
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimisers_move_every_parameter(form: str, kind: type[torch.optim.Optimizer]) -> None:
    model = made(form).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = kind(model.parameters(), lr=0.01)
    model(images()).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@FORMS
def test_mixed_precision_trains_and_keeps_the_function(form: str) -> None:
    model = made(form)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = model(images()).float()
    assert (low - model(images())).abs().max() < 0.05 * model(images()).abs().max()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@FORMS
def test_a_state_dict_goes_to_a_file_and_into_a_copy_made_by_the_plan(form: str, tmp_path: Path) -> None:
    model = made(form).train()
    model(images())  # moves the statistics
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = bntool.apply_plan(Net(), bntool.edits.plan_of(model))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.eval()(images()), model.eval()(images()))


@FORMS
@pytest.mark.slow
def test_two_processes_train_one_model(form: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ["-m", "tests.norms.train_rank", form, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *script], check=True, cwd=ROOT, env=environment, timeout=240)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    before = made(form).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items() if "running" not in key)
    assert any(key.endswith("norm.weight") for key in first)
    assert all(not torch.equal(value, before[key]) for key, value in first.items())
