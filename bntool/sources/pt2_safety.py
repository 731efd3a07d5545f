"""Whether a .pt2 archive can be loaded without running anything it carries.

`torch.export.load` unpickles some members, evaluates symbolic sizes as Python expressions, and resolves the
targets of nodes by attribute access on the torch package. So an archive from elsewhere is read here first, as
the zip and JSON that it is, and refused when it has anything that an ordinary exported program does not need.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bntool.errors import LoadError

_MEMBERS = re.compile(
    r"(models/[\w.-]+\.json"
    r"|data/weights/(weight_\d+|[\w.-]+_config\.json)"
    r"|data/constants/(tensor_\d+|[\w.-]+_config\.json)"
    r"|data/sample_inputs/[\w.-]+\.pt"
    r"|extra/.*|archive_format|archive_version|byteorder|\.data/[\w.-]+|version)"
)
_ATEN = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|torchvision)\.[a-z_]\w*(\.\w+)?"
)
_OTHER = re.compile(r"math\.[a-z]\w*|torch\.sym_[a-z]+")
_ARITHMETIC = """
getitem add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor not_ index
"""
_SIZE_FUNCTIONS = """
Symbol Integer Float Rational Add Mul Pow Max Min Mod And Or Not Abs Eq Ne Lt Le Gt Ge Equality Unequality
LessThan StrictLessThan GreaterThan StrictGreaterThan floor ceiling FloorDiv ModularIndexing CleanDiv CeilDiv
PythonMod IntTrueDiv FloatTrueDiv ToFloat TruncToInt TruncToFloat CeilToInt FloorToInt RoundToInt
PowByNatural FloatPow Where Identity
"""
_OPERATORS = frozenset(_ARITHMETIC.split())
_FUNCTIONS = frozenset(_SIZE_FUNCTIONS.split())
_READS_FILES = frozenset({"torch.ops.aten.from_file"})


def check(path: Path) -> None:
    """Raises: LoadError when the archive is damaged, or would run code of its own on loading."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            for name in archive.namelist():
                _check_member(name, archive, path)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, RecursionError) as problem:
        what = f"it is damaged, or no file that torch.export.save wrote ({type(problem).__name__})"
        raise LoadError(what, where=str(path), next="Export the model again.") from problem


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    names = archive.namelist()
    inner = [name.partition("/")[2] for name in names]
    if len(set(names)) < len(names) or archive.testzip() is not None:
        raise ValueError("members doubled or damaged")
    if "archive_format" not in inner or not any(n.startswith("models/") for n in inner):
        raise ValueError("not a PT2 archive")
    for name, member in zip(names, inner, strict=True):
        if not _MEMBERS.fullmatch(member):
            refuse(f"it holds {name}, which can be code", path)


def _check_member(name: str, archive: zipfile.ZipFile, path: Path) -> None:
    if name.endswith(".json"):
        document = json.loads(archive.read(name))
        for key, value in entries(document):
            _check_entry(key, value, path)
    elif name.endswith(".pt"):
        _check_pickle(name, archive.read(name), path)


def _check_pickle(name: str, content: bytes, path: Path) -> None:
    import torch

    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        refuse(f"{name} is a pickle with more in it than tensors", path)


def entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON document with its value, at any depth."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_entry(key: str, value: Any, path: Path) -> None:
    if key == "use_pickle" and value:
        refuse("it holds pickled tensors", path)
    if key == "expr_str" and not is_shape(value):
        refuse(f"a size in it is not an expression of sizes: {str(value)[:60]}", path)
    if key == "target" and isinstance(value, str) and not is_operation(value):
        refuse(f"it calls {value[:60]}, which is no tensor operation", path)
    if key in ("as_operator", "as_custom_obj") and not is_operation(str(value)):
        refuse(f"it refers to {str(value)[:60]}, which is no tensor operation", path)


def is_operation(target: str) -> bool:
    """Whether a node's target is an ATen operator or arithmetic."""
    head, _, name = target.partition(".")
    if head == "_operator":
        return name in _OPERATORS
    if any(target.startswith(op) for op in _READS_FILES):
        return False
    return bool(_ATEN.fullmatch(target) or _OTHER.fullmatch(target)) and "__" not in target


def is_shape(expression: Any) -> bool:
    """Whether a text is built of symbols, numbers and functions of sizes only."""
    try:
        return isinstance(expression, str) and _is_size(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _is_size(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if isinstance(node, ast.UnaryOp):
        return _is_size(node.operand)
    if isinstance(node, ast.BinOp):
        return _is_size(node.left) and _is_size(node.right)
    if isinstance(node, ast.Name):
        return bool(re.fullmatch(r"[a-z]{1,3}\d+", node.id))
    return isinstance(node, ast.Call) and _is_size_call(node)


def _is_size_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
        return False
    values = [*node.args, *(k.value for k in node.keywords)]
    if node.func.id in ("Symbol", "Float"):
        return all(_is_size(v) or _is_plain_word(v) for v in values)
    return all(map(_is_size, values))


def _is_plain_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(re.fullmatch(r"[\w.+-]+", str(node.value)))


def refuse(what: str, path: Path) -> None:
    advice = "Pass --trust (trust=True) if you know who made it."
    raise LoadError(f"{what}; it was not loaded", where=str(path), next=advice)
