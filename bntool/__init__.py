"""bntool: put batch normalisation into PyTorch models, fold it out again, measure what it does.

The names in `__all__` are the whole public interface. They load on first use, so that `import bntool` and
`bntool --help` stay free of torch, onnx and onnxruntime.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bntool.bench.compare import bench as bench
    from bntool.calibrate import calibrate as calibrate
    from bntool.edits import apply_plan as apply_plan
    from bntool.errors import BntoolError as BntoolError
    from bntool.export import export as export
    from bntool.fold import fold as fold
    from bntool.fold import fold_ as fold_
    from bntool.insert import insert as insert
    from bntool.insert import unfold as unfold
    from bntool.inspect import inspect as inspect
    from bntool.replace import replace as replace
    from bntool.save import save as save
    from bntool.sources import load as load
    from bntool.study.study import study as study
    from bntool.verify import verify as verify

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "load": "bntool.sources",
    "save": "bntool.save",
    "verify": "bntool.verify",
    "apply_plan": "bntool.edits",
    "bench": "bntool.bench.compare",
    "inspect": "bntool.inspect",
    "fold": "bntool.fold",
    "fold_": "bntool.fold",
    "insert": "bntool.insert",
    "unfold": "bntool.insert",
    "calibrate": "bntool.calibrate",
    "replace": "bntool.replace",
    "BntoolError": "bntool.errors",
    "export": "bntool.export",
    "study": "bntool.study.study",
}
__all__ = ["__version__", *_HOME]


class _Package(ModuleType):
    """Verbs share their names with the modules that hold them: `bntool.fold` is the function.

    Importing the submodule `bntool.fold` would bind the module over the function: that binding is ignored.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bntool' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
