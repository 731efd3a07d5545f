"""Which kind of model an object in memory is."""

from __future__ import annotations

from typing import Any

from bntool.errors import UsageError


def kind_of(model: Any) -> str:
    """ "module", "program" (torch.export) or "onnx", without importing torch for the last."""
    origin = type(model).__module__.partition(".")[0]
    if origin in ("onnx_ir", "onnx"):
        return "onnx"
    import torch

    from bntool.graphs.walk import modules_in

    if isinstance(model, torch.export.ExportedProgram):
        return "program"
    if isinstance(model, torch.nn.Module):
        for path, part in modules_in(model):
            if isinstance(part, torch.jit.ScriptModule):
                advice = "Give the module that it was scripted or traced from."
                where = path or type(model).__name__
                raise UsageError("a ScriptModule cannot be looked into", where=where, next=advice)
        return "module"
    raise UsageError(
        f"a {type(model).__name__} is no model", next="Give a module, a program or an ONNX model."
    )
