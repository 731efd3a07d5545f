"""OpenVINO (the extra `openvino`): reads the same ONNX file as ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bntool.bench.clock import Clock, WallClock
from bntool.bench.onnx_facts import onnx_facts
from bntool.bench.runtimes.base import Runtime, Session, StaticThreads
from bntool.bench.runtimes.onnx_runtime import feed, onnx_of
from bntool.bench.source import Source
from bntool.sources.running import Outputs


class OpenVino(Runtime):
    name = "openvino"
    options: ClassVar[dict[str, str]] = {"threads": "inference threads"}
    needs = ("openvino",)
    builds = True

    def build(self, source: Source, folder: Path) -> Path:
        return onnx_of(source, folder)

    def open(self, source: Source) -> Session:
        return OpenVinoSession(source)


class OpenVinoSession(StaticThreads):
    """One synchronous request on arrays in host memory."""

    def __init__(self, source: Source) -> None:
        import openvino as ov

        self.path = source.artefact()
        self.clock: Clock = WallClock()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        threads = int(source.candidate.options.get("threads", source.conditions.threads))
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        if source.conditions.dtype in ("", "float32"):
            # its default on some CPUs is bfloat16, which would be another model
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = ov.Core().compile_model(self.path, "CPU", settings)
        self.request = compiled.create_infer_request()
        self.feed = feed(source, [i.get_any_name() for i in compiled.inputs])
        self.names = [o.get_any_name() if o.names else str(k) for k, o in enumerate(compiled.outputs)]

    def run(self) -> object:
        return self.request.infer(self.feed, share_inputs=True)

    def outputs(self) -> Outputs:
        found = self.request.infer(self.feed).values()
        return [(name, value.copy()) for name, value in zip(self.names, found, strict=True)]

    def facts(self) -> dict[str, Any]:
        return onnx_facts(self.path)

    def profile(self) -> dict[str, float]:
        return {}
