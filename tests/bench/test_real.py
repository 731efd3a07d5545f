"""Real models in real processes: a planted slowdown fails, an equal model passes, a crash stays alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import bntool
from bntool.bench.clock import WallClock
from bntool.bench.plan import Effort
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.remote import ALLOCATOR, CandidateError, Process, environment
from bntool.bench.statistics import blocks, center, interval, log_ratios
from tests.bench import nets

ROOT = Path(__file__).resolve().parents[2]
NETS = "tests/bench/nets.py"
#: enough to find a factor of several on a busy machine
QUICK = ("--budget", "1s", "--replicates", "3", "--no-confirm")


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "bntool", "bench", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=250, check=False)


def test_a_planted_slowdown_fails_the_gate() -> None:
    done = command(f"{NETS}:net", f"{NETS}:net(times=20)", "--json", *QUICK)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    (pair,) = document["comparisons"]
    assert pair["verdict"] == "slower"
    assert pair["ratio"]["low"] > 1.5
    assert pair["outputs"]["equal"]
    assert pair["warning"] == ""
    first = document["candidates"][0]
    assert first["facts"]["norms"] == 0
    assert first["facts"]["params"] == sum(p.numel() for p in nets.net().parameters())
    assert first["memory"]["peak_rss_bytes"] > 10_000_000
    assert first["latency"]["throughput"] == pytest.approx(2 / first["latency"]["median"]["estimate_s"])
    assert document["cases"][0]["run"]["clock_s_per_sample"] < 1e-4


def test_live_modules_the_same_twice() -> None:
    model = nets.net(norm=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = bntool.bench(
        {"one": model, "two": nets.net(norm=True)},
        nets.example_inputs(),
        tolerance=1.0,
        budget_s=0.5,
        replicates=2,
    )
    (pair,) = found.comparisons
    assert pair.verdict in ("same", "inconclusive")
    assert pair.outputs is not None
    assert pair.outputs.equal
    assert found.exit_code == 0
    assert not found.notes
    assert found.candidates[0].facts["norms_by_kind"] == {"batch_norm": 1}
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Local(nets.Net):
    """Holds something that cannot be pickled."""

    def __init__(self, times: int) -> None:
        super().__init__(times)
        self.secret = lambda x: x


def test_modules_that_cannot_leave_are_measured_here_and_it_says_so() -> None:
    threads = torch.get_num_threads()
    found = bntool.bench([Local(1), Local(8)], nets.example_inputs(), budget_s=1.0)
    (pair,) = found.comparisons
    assert pair.verdict == "slower"
    assert any("inside one process" in note for note in found.notes)
    assert found.cases[0].run["one_process"]
    assert torch.get_num_threads() == threads


def test_a_process_that_dies_is_blamed_on_who_was_running() -> None:
    refs = {0: Candidate("good", f"{NETS}:net"), 1: Candidate("bad", f"{NETS}:dies")}
    found = Process(Side(), refs, Conditions())
    try:
        for index in refs:
            found.ask("open", candidate=index)
        with pytest.raises(Exception, match="SIGKILL") as caught:
            found.ask("sample", orders=[[0, 1]] * 60, loops={"0": 1, "1": 1})
        assert caught.value.candidate == 1  # type: ignore[attr-defined]
    finally:
        found.close()


def test_a_model_that_raises_is_an_answer_and_the_worker_lives_on() -> None:
    refs = {0: Candidate("good", f"{NETS}:net"), 1: Candidate("bad", f"{NETS}:raises")}
    found = Process(Side(), refs, Conditions())
    try:
        with pytest.raises(CandidateError, match="never works"):
            found.ask("open", candidate=1)
        assert found.ask("open", candidate=0)["first_s"] > 0
    finally:
        found.close()


def test_a_worker_that_does_not_answer_is_ended() -> None:
    found = Process(Side(), {0: Candidate("a", f"{NETS}:net")}, Conditions())
    found.timeout_s = 0.01
    try:
        with pytest.raises(Exception, match="no answer"):
            found.ask("open", candidate=0)
    finally:
        found.close()
    assert found.process.poll() is not None


def test_workers_start_with_the_allocator_fixed_unless_told_otherwise() -> None:
    assert environment("fixed", 1, Side()).items() >= ALLOCATOR.items()
    assert environment("fixed", 2, Side())["OMP_NUM_THREADS"] == "2"
    assert not ALLOCATOR.keys() & environment("default", 1, Side()).keys()


def git(folder: Path, *arguments: str) -> None:
    named = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_other_side_is_taken_live_from_a_revision(tmp_path: Path) -> None:
    source = (ROOT / NETS).read_text()
    inner = tmp_path / "models"
    inner.mkdir()
    (inner / "nets.py").write_text(source)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    (inner / "nets.py").write_text(source.replace("times: int = 1, norm", "times: int = 20, norm"))
    done = command("nets.py:net", "--against", "git:HEAD", "--json", *QUICK, cwd=inner)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["comparisons"][0]["verdict"] == "slower"
    assert "HEAD" in document["comparisons"][0]["baseline"]
    assert document["cases"][0]["run"]["interleaving"] == "processes take turns"


def test_a_revision_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    done = command("nets.py:net", "--against", "git:nowhere", cwd=tmp_path)
    assert done.returncode == 3
    assert "fetch-depth: 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_suite_runs_alone_and_onnx_is_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text((ROOT / NETS).read_text())
    (tmp_path / "bntool.toml").write_text(
        '[bench]\nreplicates = 2\nbudget = "0.5s"\n[bench.cases.small]\n'
        'models = ["nets.py:net(norm=True)", "nets.py:net(norm=True)@onnx"]\n'
        'tolerance = "900%"\nbudgets = { max_norms = 0, max_error = 1e-4 }\n'
    )
    done = command("--junit", "out.xml", "--html", "out.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (pair,) = document["comparisons"]
    assert [b["passed"] for b in pair["budgets"]] == [True, True]
    assert {f["runtime"] for f in document["candidates"]} == {"eager", "onnx"}
    assert 'failures="0"' in (tmp_path / "out.xml").read_text()
    assert "<svg" in (tmp_path / "out.html").read_text()


def apart(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """How far two clocks are apart on the same runs, as a log-ratio, and half the 99 % interval of that."""
    ratio = interval([center(b) for b in blocks(log_ratios(np.array(ours), np.array(theirs)))], 0.01)
    return math.log(ratio.estimate), ratio.half_width


def agrees(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two clocks say the same: within the interval, or 3 %."""
    gap, noise = apart(ours, theirs)
    return abs(gap) <= max(noise, 0.03)


def test_our_clock_agrees_with_torchs_own() -> None:
    """Runs are added until the noise is so small that a clock 10 % off cannot pass."""
    from torch.utils.benchmark import Timer

    model, (x,) = nets.net(times=20).eval(), nets.example_inputs()
    timer = Timer("model(x)", globals={"model": model, "x": x}, num_threads=torch.get_num_threads())
    ours: list[float] = []
    theirs: list[float] = []
    with torch.inference_mode():
        timer.timeit(20)
        for _ in range(20):
            for _ in range(40):
                ours.append(WallClock().time(lambda: model(x), 3))
                theirs.append(timer.timeit(3).mean)
            if apart(ours, theirs)[1] < 0.03:
                break
    assert agrees(ours, theirs)
    assert not agrees([1.1 * t for t in ours], theirs)
    assert not agrees([t / 1.1 for t in ours], theirs)


def test_our_clock_agrees_with_onnx_runtimes_own(tmp_path: Path) -> None:
    """ORT's profile times each run from inside: ours adds the call from Python, and nothing else.

    Runs of several milliseconds, of which that call stays a small part where other work slows it down.
    """
    import onnxruntime as ort

    path = tmp_path / "net.onnx"
    example = torch.randn(48, 8, 64, 64)
    torch.onnx.export(nets.net().eval(), (example,), path, dynamo=True, verbose=False)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.enable_profiling = True
    settings.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: example.numpy()}
    ours = [WallClock().time(lambda: session.run(None, feed), 1) for _ in range(80)]
    events = json.loads(Path(session.end_profiling()).read_text())
    theirs = [e["dur"] / 1e6 for e in events if e["name"] == "model_run"]
    assert len(theirs) == len(ours)
    extra = np.array(ours) - np.array(theirs)
    assert (extra > -1e-5).all()
    assert np.median(extra) < 2e-4
    assert agrees(ours, theirs)
    assert not agrees([1.1 * t for t in ours], theirs)


def test_effort_is_checked() -> None:
    with pytest.raises(bntool.BntoolError):
        Effort(budget_s=0.0)
