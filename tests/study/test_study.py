"""The public function and the command: one plan, one result, whatever the machine's speed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from plans import MLP, TINY, setting_of
from torch import nn

import bntool
from bntool.cli.app import run
from bntool.errors import UsageError
from bntool.study.budget import USED, ArmSpeed, Speed, choose_tier, duration, seconds, too_long
from bntool.study.claims.base import Known
from bntool.study.claims.table import CLAIMS, chosen
from bntool.study.outline import Wishes, outline, planned_claims
from bntool.study.plan import TIERS, Plan, tiered
from bntool.study.rehearsal import expected

OWN = """
import torch
from torch import nn

def net(hidden=12, layers=2):
    sizes = [6] + [hidden] * layers
    body = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(hidden, 2))

def data(n=120):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :2] * x[:, 2:4]

def loss(output, target):
    return (output - target).abs().mean()
"""

FAST_ARM = ArmSpeed(0.01, {2: 0.0004, 32: 0.0006}, 0.0004)
SLOW_ARM = ArmSpeed(0.05, {2: 0.02, 32: 0.03}, 0.02)
FAST, SLOW = Speed(FAST_ARM, FAST_ARM), Speed(SLOW_ARM, SLOW_ARM)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def test_a_users_own_model_data_and_loss(own: str) -> None:
    done = []
    found = bntool.study(
        f"{own}:net",
        data=f"{own}:data",
        claims="speed,4",
        norms="none,batch",
        tier=0,
        workers=1,
        loss_fn=lambda o, t: (o - t).abs().mean(),
        watch=lambda trial, result: done.append(trial),
    )
    assert set(found.verdicts) == {"speed", "depth"}
    assert found.plan.vary == "layers"
    assert found.trials == len({t.key for t in done})
    assert "net" in found.html()
    assert found.markdown().startswith("# Study of batch norm")


def test_a_live_model_and_tensors() -> None:
    x = torch.randn(80, 5)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    before = model[0].weight.detach().clone()
    found = bntool.study(
        model, data=(x, x[:, :3].argmax(1)), claims=["stability"], norms=("none", "batch"), tier=0, workers=2
    )
    assert found.finding("stability").measures
    assert torch.equal(model[0].weight, before)


def test_the_same_seed_gives_the_same_study() -> None:
    runs = [
        bntool.study(MLP, claims="stability", norms="none,batch", tier=0, seed=seed, workers=1).to_dict()
        for seed in (4, 4, 5)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["claims"] != runs[2]["claims"]


def test_speed_decides_the_tier_and_nothing_else() -> None:
    plan, claims = replace(Plan(), vary="depth", depths=(3, 9)), chosen(["all"])
    tiers = [choose_tier(s, plan, claims, 2, 180.0, 9.0) for s in (FAST, SLOW)]
    assert tiers[0] > tiers[1]
    for speed, tier in zip((FAST, SLOW), tiers, strict=True):
        assert tier == 0 or duration(speed, tiered(plan, tier), claims, 2, 9.0) <= USED * 180.0
    assert tiered(plan, 3) == tiered(plan, 3)


def test_every_tier_costs_more_than_the_one_before() -> None:
    plans = [tiered(replace(Plan(), vary="depth", depths=(3, 9)), k) for k in range(len(TIERS) - 1)]
    costs = [sum(FAST.of(t, p, 9.0) for t in expected(p, CLAIMS)) for p in plans]
    assert all(b > 1.2 * a for a, b in pairwise(costs)), costs


def test_claims_without_time_are_left_out_longest_first_and_said_to_be() -> None:
    plan, claims = tiered(replace(Plan(), vary="depth", depths=(3, 9)), 0), chosen(["all"])
    none = too_long(FAST, plan, claims, 2, 180.0, 9.0)
    some = too_long(SLOW, plan, claims, 2, 60.0, 3.0)
    nearly_all = too_long(SLOW, plan, claims, 2, 1.0, 3.0)
    assert none == ()
    assert 0 < len(some) < len(nearly_all) == len(claims) - 1
    rest = planned_claims(replace(plan, skipped=some))
    assert duration(SLOW, plan, rest, 2, 3.0) <= USED * 60.0
    finding = next(c for c in rest if c.key == some[0]).judge(plan, Known({}))
    assert finding.verdict == "inconclusive"
    assert "budget" in finding.headline


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("3m", 180), ("1.5h", 5400), (7, 7)])
def test_times(text: str | float, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (Wishes(norms=("none", "magic")), "unknown norm"),
        (Wishes(norms=("none",)), "at least two"),
        (Wishes(norms=("none", "instance")), "instance norm has no place"),
        (Wishes(claims=("8",)), "unknown claim"),
        (Wishes(optimizer="lbfgs"), "unknown optimizer"),
        (Wishes(vary="width=1"), "cannot read"),
        (Wishes(vary="breadth=1,2"), "no argument 'breadth'"),
    ],
)
def test_what_makes_no_sense_is_refused(wishes: Wishes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        outline(setting_of(MLP), wishes)


def test_plans_survive_json() -> None:
    assert Plan.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_dry_run_says_how_long_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", MLP, "--dry-run", "--json", "--tier", "1", "--workers", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["tier"] == 1
    assert found["expected_s"] > 0
    assert found["trials"] > 50


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["study", MLP, "-o", "report.pdf"], 2),
        (["study", MLP, "--budget", "soon"], 2),
        (["study", MLP, "--data", "nowhere.npz"], 3),
        (["study", "nothing.py:net"], 3),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    assert capsys.readouterr().err.count("error:") == 1


def test_the_command_writes_a_report_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    command = ["study", MLP, "--claims", "1", "--norms", "none,batch", "--tier", "0", "--json"]
    command += ["--run-dir", str(tmp_path / "run"), "-o", str(page)]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["claims"][0]["claim"] == "stability"
    assert "<svg" in page.read_text()
    assert run(command) == 2, "an existing report needs --force"
    capsys.readouterr()
    assert run([*command, "--force", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def heed_ctrl_c() -> None:
    """A shell's background jobs ignore SIGINT, and so would the child of a test run among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "bntool", "study", MLP, "--claims", "2", "--norms", "none,batch"]
    command += ["--tier", "1", "--run-dir", str(folder), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, preexec_fn=heed_ctrl_c, **pipes)
    journal = folder / "trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") > 4):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    assert "--resume" in error
    kept = {json.loads(line)["key"] for line in journal.read_text().splitlines()[1:]}
    assert len(kept) >= 4
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=240, check=True)
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert len(lines) == len({entry["key"] for entry in lines}), "no finished trial ran twice"
    assert json.loads(again.stdout)["trials"] == len(lines) > len(kept)


def test_tensorboard_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    command = ["study", MLP, "--claims", "1", "--norms", "none,batch", "--tier", "0", "-q"]
    command += ["--run-dir", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "logs")]
    assert run(command) == 0
    names = [p.parent.name for p in (tmp_path / "logs").rglob("events.*")]
    assert any(name.startswith("batch-default-rate") for name in names)
