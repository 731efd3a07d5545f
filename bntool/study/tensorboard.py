"""Every trial as a TensorBoard run: its loss and test score by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bntool.errors import LoadError
from bntool.study.trial import COST, Trial


class Logs:
    """Writes results under `folder`, a run each. Raises: LoadError without tensorboard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            advice = "pip install 'bntool[tensorboard]'"
            raise LoadError("TensorBoard is not installed", where="--tensorboard", next=advice) from problem
        self.folder, self.writer = folder, SummaryWriter

    def __call__(self, trial: Trial, result: dict[str, Any]) -> None:
        if COST in trial.measures or not result["steps"]:
            return
        writer = self.writer(str(self.folder / run_name(trial)))
        for step, loss in zip(result["steps"], result["loss"], strict=True):
            writer.add_scalar("loss", loss, step)
        if not result["diverged"]:
            writer.add_scalar("test score", result["test_score"], trial.steps)
        for step, score in zip(result["steps"], result["score"], strict=False):
            writer.add_scalar("test score", score, step)
        writer.close()


def run_name(trial: Trial) -> str:
    """What the trial is, as a folder's name."""
    parts = [trial.norm, trial.init, f"rate{trial.rate:g}", f"batch{trial.batch_size}", trial.order]
    parts += [f"{name}{value}" for name, value in trial.vary]
    parts += [f"dropout{trial.dropout:g}"] if trial.dropout else []
    return "-".join([*parts, f"seed{trial.seed}", trial.key[:6]])
