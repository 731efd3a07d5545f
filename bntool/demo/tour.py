"""Train a plain net, insert norms, train on, calibrate, fold, verify, export, bench, each with figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bntool.bench.compare import bench
from bntool.calibrate import calibrate
from bntool.demo.training import Digits, accuracy, digits, train
from bntool.errors import UsageError
from bntool.export import export
from bntool.fold import fold
from bntool.insert import insert
from bntool.progress import Progress, silent
from bntool.result import SCHEMA_VERSION
from bntool.save import save
from bntool.sources import open_model
from bntool.verify import verify

RATE, EPOCHS, MORE_EPOCHS = 0.1, 10, 3
#: fresh processes a runtime is measured in: enough for an interval, few enough for a tour
REPLICATES = 3
RUNTIMES = ("eager", "onnxruntime")
FILES = ("digits_net.py", "digits.npz", "plain.safetensors", "normed", "folded", "folded.onnx")


@dataclass(frozen=True)
class Step:
    """One line of the closing table: what was done, what came of it, and the command that does the same."""

    name: str
    outcome: str
    command: str = ""
    file: str = ""


@dataclass(frozen=True)
class Tour:
    """Everything the demo did.

    `accuracies` are shares of the test digits, by stage; `latency_s` medians by runtime and model, batch
    of 32.
    """

    steps: tuple[Step, ...]
    accuracies: dict[str, float]
    latency_s: dict[str, dict[str, float]]
    folder: str
    files: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


@dataclass
class Guide:
    """The tour while it goes on."""

    folder: Path
    bench_s: float
    progress: Progress
    tell: Callable[[Step], None]
    data: Digits
    steps: list[Step] = field(default_factory=list)
    accuracies: dict[str, float] = field(default_factory=dict)
    latency_s: dict[str, dict[str, float]] = field(default_factory=dict)

    def note(self, name: str, outcome: str, command: str = "", file: str = "") -> None:
        step = Step(name, outcome, command.format(d=self.folder), str(self.folder / file) if file else "")
        self.steps.append(step)
        self.tell(step)

    def score(self, stage: str, model: nn.Module) -> str:
        """Measure, keep and word the accuracy on the test digits."""
        self.accuracies[stage] = accuracy(model, self.data)
        return f"{self.accuracies[stage]:.1%} of {len(self.data.test_labels)} test digits right"


def demo(
    folder: str | Path = "demo-out",
    *,
    force: bool = False,
    bench_s: float = 12.0,
    progress: Progress = silent,
    tell: Callable[[Step], None] = lambda step: None,
) -> Tour:
    """Take the tour, writing into `folder`; `tell` hears of every step as it is done.

    Units: `bench_s` is the time to spend on measuring, in all.
    Raises: UsageError when the folder holds something else and `force` is not given, LoadError without
    scikit-learn.
    """
    folder = Path(folder)
    clear(folder, force=force)
    torch.manual_seed(0)
    guide = Guide(folder, bench_s, progress, tell, digits())
    with one_thread():
        plain = start(guide)
        normed = train_on(guide, put_norms_in(guide, plain))
        folded = fold_away(guide, normed)
        write_onnx(guide, folded)
    compare(guide, plain, normed, folded)
    files = tuple(str(folder / name) for name in FILES)
    return Tour(tuple(guide.steps), guide.accuracies, guide.latency_s, str(folder), files)


@contextmanager
def one_thread() -> Iterator[None]:
    """Layers this small lose more by sharing work between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clear(folder: Path, *, force: bool) -> None:
    """Make the folder, without what an earlier tour left in it. Raises: UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({file.name for file in folder.iterdir()} - set(FILES) - {"__pycache__"})
    if others and not force:
        advice = "Pass --force to write beside it, or another folder with -o."
        raise UsageError(f"it holds {others[0]}, which is not the demo's", where=str(folder), next=advice)
    for old in (folder / name for name in FILES):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)


def start(guide: Guide) -> nn.Module:
    """The model file a user would have, and a plain network trained with it."""
    here = Path(__file__).with_name("digits_net.py")
    shutil.copy(here, guide.folder / here.name)
    np.savez(guide.folder / "digits.npz", x=guide.data.images.numpy(), y=guide.data.labels.numpy())
    plain: nn.Module = open_model(f"{guide.folder}/digits_net.py:plain").model
    train(
        plain, guide.data, epochs=EPOCHS, rate=RATE, what="train the plain network", progress=guide.progress
    )
    save(plain, guide.folder / "plain.safetensors", force=True)
    guide.note("train a plain CNN", guide.score("plain", plain), file="plain.safetensors")
    return plain


def put_norms_in(guide: Guide, plain: nn.Module) -> nn.Module:
    normed: nn.Module = insert(plain, guide.data.images[:8], data=guide.data.batches()).model
    found = verify(plain, normed, guide.data.test_images)
    moved = f"outputs moved by {found.smallest_tolerance:.0e}, {guide.score('with norms', normed)}"
    command = "bntool insert {d}/digits_net.py:plain --weights {d}/plain.safetensors --data {d}/digits.npz"
    guide.note(f"insert {count_norms(normed)} norms", moved, command + " -o {d}/normed")
    return normed


def train_on(guide: Guide, normed: nn.Module) -> nn.Module:
    train(
        normed, guide.data, epochs=MORE_EPOCHS, rate=RATE, what="train on with norms", progress=guide.progress
    )
    guide.note("train on with norms", guide.score("trained on", normed))
    calibrated: nn.Module = calibrate(normed, guide.data.batches()).model
    save(calibrated, guide.folder / "normed", force=True)
    command = "bntool calibrate {d}/normed --data {d}/digits.npz -o {d}/calibrated"
    guide.note("calibrate", guide.score("calibrated", calibrated), command, "normed")
    return calibrated


def fold_away(guide: Guide, normed: nn.Module) -> nn.Module:
    result = fold(normed, guide.data.images[:8])
    report, found = result.report, verify(normed, result.model, guide.data.test_images)
    found.insist(where="the folded network")
    save(result.model, guide.folder / "folded", force=True)
    outcome = (
        f"{len(report.folded)} of {report.found} norms gone, outputs moved by {found.smallest_tolerance:.0e}"
    )
    guide.note("fold", outcome, "bntool fold {d}/normed -o {d}/folded", "folded")
    guide.note("verify", guide.score("folded", result.model), "bntool verify {d}/normed {d}/folded")
    model: nn.Module = result.model
    return model


def write_onnx(guide: Guide, folded: nn.Module) -> None:
    target = guide.folder / "folded.onnx"
    report = export(folded, target, guide.data.images[:8], dynamic_batch=True)
    worst = max(check.worst.max_rel for check in report.checks)
    outcome = f"ONNX Runtime agrees with PyTorch to {worst:.0e} in {len(report.checks)} runs"
    guide.note(
        "export", outcome, "bntool export {d}/folded --dynamic-batch -o {d}/folded.onnx", "folded.onnx"
    )


def compare(guide: Guide, plain: nn.Module, normed: nn.Module, folded: nn.Module) -> None:
    """Latency of the three, in each runtime; with norms is the baseline."""
    found = bench(
        {"with norms": normed, "plain": plain, "folded": folded},
        (guide.data.images[:32],),
        runtimes=RUNTIMES,
        budget_s=guide.bench_s / len(RUNTIMES),
        replicates=REPLICATES,
        confirm=False,
        progress=guide.progress,
    )
    for case, runtime in zip(found.cases, RUNTIMES, strict=True):
        guide.latency_s[runtime] = {f.name: f.latency.median.estimate_s for f in case.candidates if f.latency}
        words = "; ".join(f"{pair.name} {in_words(pair)}" for pair in case.comparisons)
        command = f"bntool bench {{d}}/normed@{runtime} {{d}}/folded@{runtime}"
        guide.note(f"bench, {runtime}", f"against with norms: {words}", command)


def in_words(pair: Any) -> str:
    """A verdict with the time ratio and its interval."""
    ratio = pair.ratio
    return f"{pair.verdict} ({ratio.estimate:.2f}x the time, {ratio.low:.2f} to {ratio.high:.2f})"


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
