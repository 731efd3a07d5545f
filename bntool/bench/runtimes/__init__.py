"""Runtimes that bench can time, one file each. To add one: write its file and its line in BUILTIN."""

from __future__ import annotations

from importlib.util import find_spec

from bntool.bench.runtimes.aoti import AotInductor
from bntool.bench.runtimes.base import Runtime as Runtime
from bntool.bench.runtimes.compiled import Compiled
from bntool.bench.runtimes.eager import Eager
from bntool.bench.runtimes.onnx_runtime import OnnxRuntime
from bntool.bench.runtimes.openvino import OpenVino
from bntool.errors import UsageError

BUILTIN: tuple[Runtime, ...] = (Eager(), Compiled(), AotInductor(), OnnxRuntime(), OpenVino())
ALIASES = {"torch": "eager", "pytorch": "eager", "inductor": "compile", "torch.compile": "compile"}
ALIASES |= {"ort": "onnx", "onnxruntime": "onnx", "pt2": "aoti", "ov": "openvino"}


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises: UsageError when there is none, or when its package is missing."""
    wanted = ALIASES.get(name, name)
    for known in BUILTIN:
        if known.name == wanted:
            return checked(known)
    names = ", ".join(r.name for r in BUILTIN)
    raise UsageError(f"unknown runtime {name!r}", next=f"Use one of: {names}.")


def checked(known: Runtime) -> Runtime:
    missing = [package for package in known.needs if find_spec(package) is None]
    if missing:
        advice = f"Install it: pip install 'bntool[{known.name}]'."
        raise UsageError(f"{missing[0]} is not installed", where=f"@{known.name}", next=advice)
    return known
