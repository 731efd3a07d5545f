"""AOTInductor: the model is exported and compiled to a .pt2 package once; workers only load the package."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bntool.bench.runtimes.base import Runtime, Session
from bntool.bench.source import Source


class AotInductor(Runtime):
    name = "aoti"
    options: ClassVar[dict[str, str]] = {"threads": "intra-op threads"}
    devices = ("cpu", "cuda")
    builds = True

    def build(self, source: Source, folder: Path) -> Path:
        import torch

        args, kwargs = source.call
        with torch.no_grad():
            program = torch.export.export(source.module(), args, kwargs)
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2")
            )
        return Path(package)

    def open(self, source: Source) -> Session:
        import torch

        from bntool.bench.runtimes.torch_session import TorchSession

        package = torch._inductor.aoti_load_package(str(source.artefact()))
        return TorchSession(source, package, source.module)
