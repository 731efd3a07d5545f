"""What `import bntool` gives: small, lazy, and the same to a type checker as at run time."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import bntool

SOURCE = Path(bntool.__file__).read_text()


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, bntool; print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_type_checkers_see_the_names_that_there_are() -> None:
    imported = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.ImportFrom)]
    seen = {a.asname: n.module for n in imported for a in n.names if (n.module or "").startswith("bntool.")}
    assert seen == bntool._HOME
    assert len(bntool.__all__) <= 20


def test_every_name_is_there_and_explained() -> None:
    for name in set(bntool.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(bntool, name)), name


def test_verbs_are_functions_whatever_was_imported_first() -> None:
    code = "import bntool.fold, bntool.verify, bntool; print(callable(bntool.fold), callable(bntool.verify))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
