"""ONNX Runtime: an .onnx file as it is, or a module exported once by the dynamo exporter."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bntool.bench.clock import Clock, WallClock
from bntool.bench.onnx_facts import onnx_facts
from bntool.bench.runtimes.base import Runtime, Session, StaticThreads
from bntool.bench.source import Source
from bntool.errors import RunError, UsageError
from bntool.sources.onnx_run import output_names
from bntool.sources.running import Outputs, feeds

LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}


def onnx_of(source: Source, folder: Path) -> Path:
    """The candidate as an ONNX file: its own, or exported. Also what OpenVINO reads."""
    if source.onnx_file:
        return source.onnx_file.resolve()
    import torch

    args, kwargs = source.call
    path = folder / "model.onnx"
    torch.onnx.export(source.module(), args, path, kwargs=kwargs, dynamo=True, verbose=False)
    return path


class OnnxRuntime(Runtime):
    name = "onnx"
    options: ClassVar[dict[str, str]] = {
        "threads": "intra-op threads",
        "level": "graph optimisation: none, basic, all",
    }
    needs = ("onnxruntime",)
    devices = ("cpu", "cuda")
    builds = True

    def build(self, source: Source, folder: Path) -> Path:
        return onnx_of(source, folder)

    def open(self, source: Source) -> Session:
        return OrtSession(source)


class OrtSession(StaticThreads):
    """`InferenceSession.run` on arrays in host memory. On CUDA that includes both transfers."""

    def __init__(self, source: Source) -> None:
        import onnxruntime as ort

        self.path = source.artefact()
        self.clock: Clock = WallClock()
        self.settings = ort.SessionOptions()
        options = source.candidate.options
        self.settings.intra_op_num_threads = int(options.get("threads", source.conditions.threads))
        self.settings.inter_op_num_threads = 1
        self.settings.log_severity_level = 3
        self.settings.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, level_of(options.get("level", "all"))
        )
        self.provider = (
            "CUDAExecutionProvider" if source.conditions.device != "cpu" else "CPUExecutionProvider"
        )
        self.session = ort.InferenceSession(str(self.path), self.settings, providers=[self.provider])
        if self.provider not in self.session.get_providers():
            # it falls back to the CPU with a warning, and every figure would be another device's
            advice = "Install onnxruntime-gpu, or leave --device out."
            raise RunError(f"this ONNX Runtime has no {self.provider}", where="@onnx", next=advice)
        self.feed = feed(source, [i.name for i in self.session.get_inputs()])

    def run(self) -> object:
        return self.session.run(None, self.feed)

    def outputs(self) -> Outputs:
        found = self.session.run(None, self.feed)
        return list(zip(output_names(self.session), map(np.asarray, found), strict=True))

    def facts(self) -> dict[str, Any]:
        return onnx_facts(self.path)

    def profile(self) -> dict[str, float]:
        import onnxruntime as ort

        calls = 10
        with tempfile.TemporaryDirectory() as folder:
            self.settings.enable_profiling = True
            self.settings.profile_file_prefix = f"{folder}/profile"
            session = ort.InferenceSession(str(self.path), self.settings, providers=[self.provider])
            for _ in range(calls):
                session.run(None, self.feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"] / (1e6 * calls)
        return dict(spent.most_common())


def level_of(name: str) -> str:
    if name not in LEVELS:
        raise UsageError(f"unknown level {name!r}", where="@onnx", next=f"Use {', '.join(LEVELS)}.")
    return LEVELS[name]


def feed(source: Source, names: list[str]) -> dict[str, NDArray[Any]]:
    """The shared inputs under the file's input names. Raises: UsageError when they do not fit it."""
    args, kwargs = source.call
    try:
        return feeds(kwargs or args, names)
    except UsageError as problem:
        problem.where = source.candidate.name
        raise
