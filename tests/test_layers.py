"""Imports point one way: algebra <- graphs <- plan <- verbs <- bench, study <- cli."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    ("errors", "progress", "config", "result", "globs"),
    ("algebra",),
    ("graphs",),
    (
        *("changes", "combinations", "showing", "goals", "search", "attempts", "memory", "plan", "agreed"),
        *("branches", "branch_ops", "rewriting", "node_site"),
    ),
    ("report",),
    ("norms",),
    ("edits", "structure", "specs", "tracing"),
    ("room", "tensors", "copying", "fold_module", "program_edit"),
    (
        *("sources", "pooling", "placing", "onnx_folding", "onnx_inserting"),
        *(
            "fold",
            "fold_job",
            "fold_onnx",
            "fold_exported",
            "fold_graph",
            "refused",
            "rounding",
            "merging",
            "padding",
            "program_merge",
            "insert",
            "insert_module",
            "insert_onnx",
            "calibrate",
            "replace",
            "health",
            "hidden_biases",
            "lazy",
            "verify",
            "blame",
            "export",
            "export_check",
            "save",
            "inspect",
        ),
    ),
    ("bench",),
    ("study",),
    ("demo",),
    ("cli",),
    ("__main__", "__init__"),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bntool"):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.startswith("bntool"))
    return found


def sources() -> list[Path]:
    return sorted((ROOT / "bntool").rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_its_own_floor_or_below(path: Path) -> None:
    here = room("bntool." + ".".join(path.relative_to(ROOT / "bntool").with_suffix("").parts))
    for module in imports(path):
        there = room(module)
        if there != "__init__":
            assert FLOOR[there] <= FLOOR[here], f"{path} imports {module}: upwards"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_draws_on_the_terminal(path: Path) -> None:
    if "cli" not in path.parts:
        names = {n.split(".")[0] for n in third_party(path)}
        assert not names & {"typer", "rich", "click"}, path


def third_party(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def run_time_imports(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """Every `from ... import ...`, those within functions too, but for what `if TYPE_CHECKING:` guards."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from run_time_imports(node)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_needs_itself() -> None:
    names = {module_name(path): path for path in sources()}
    needs: dict[str, set[str]] = {}
    for name, path in names.items():
        imported = run_time_imports(ast.parse(path.read_text()))
        targets = [(i.module or "", f"{i.module}.{alias.name}") for i in imported for alias in i.names]
        needs[name] = {submodule if submodule in names else module for module, submodule in targets}
        needs[name] &= names.keys() - {"bntool"}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the files of a circle
