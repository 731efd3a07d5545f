"""What can code that nobody can trace do to a module's children? Read from its source, on the safe side.

A child that is only ever called (`self.block(x)`) can be analysed as an island: its inside is its own. One
whose items are taken (`for block in self.blocks`) is as many islands as it has items, unless the code names
something inside them. Anything else may read or change what is inside, so it is left alone.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import TypeGuard

from torch import nn

from bntool.graphs.fx_baked import has_own_forward
from bntool.graphs.fx_calls import names

#: names that give access to everything
EVERYTHING = names(
    "modules named_modules children named_children parameters named_parameters buffers named_buffers "
    "state_dict load_state_dict get_submodule get_parameter apply _modules _parameters _buffers __dict__ "
    "getattr setattr vars"
)
#: special methods that run when a class is made, not when a module is called
OF_CLASSES = names("__init_subclass__ __class_getitem__ __set_name__ __new__")
ITEMS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def islands_of(module: nn.Module) -> tuple[list[str], list[str]]:
    """(paths of children to analyse on their own, paths of children to leave alone), relative to `module`."""
    trees = list(_sources(type(module)))
    methods = _reached(trees)
    of_it = [m for m in methods if not _is_static(m)]
    attributes = {name for method in methods for name in _attributes(method)}
    called_by_word = {id(call.func) for method in methods for call in _by_word(method)}
    found = [n for method in methods for n in ast.walk(method) if isinstance(n, ast.Name)]
    named = {n.id for n in found if id(n) not in called_by_word}
    if (
        not trees
        or (attributes | named) & EVERYTHING
        or has_own_forward(module)
        or any(map(_hands_itself_on, of_it))
    ):
        return [], [name for name, _ in module.named_children()]
    other = _not_only_called(of_it)
    own: list[str] = []
    alone: list[str] = []
    for name, child in module.named_children():
        if name in other and isinstance(child, ITEMS) and not _names_inside(child, attributes):
            own += [f"{name}.{item}" for item, _ in child.named_children()]
        elif name in other:
            alone.append(name)
        else:
            own.append(name)
    return own, alone


def _sources(cls: type[nn.Module]) -> Iterator[ast.AST]:
    """The source of the class and of its bases up to torch's own; nothing when one cannot be had."""
    trees = []
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn") or base is object:
            continue
        try:
            trees.append(ast.parse(textwrap.dedent(inspect.getsource(base))))
        except (OSError, TypeError, SyntaxError):
            return
    yield from trees


def _not_only_called(methods: list[ast.FunctionDef]) -> set[str]:
    """Attributes of self that are used in any other way than being called."""
    found: set[str] = set()
    for method in methods:
        called = {id(n.func) for n in ast.walk(method) if isinstance(n, ast.Call)}
        found |= {n.attr for n in ast.walk(method) if _of(n, _itself(method)) and id(n) not in called}
        found |= {_word(call) for call in _by_word(method) if id(call) not in called}
    return found


def _reached(trees: list[ast.AST]) -> list[ast.FunctionDef]:
    """The methods that may run when the module is called: those that others of them name, that the class or
    `__init__` hands to somebody, and special ones.
    """
    classes = [c for tree in trees for c in ast.walk(tree) if isinstance(c, ast.ClassDef)]
    methods = [m for c in classes for m in c.body if isinstance(m, ast.FunctionDef)]
    at_first = [m for m in methods if m.name == "__init__"]
    plain = [part for c in classes for part in c.body if not isinstance(part, ast.FunctionDef)]
    named = _not_only_called(at_first) | {n.id for p in plain for n in ast.walk(p) if isinstance(n, ast.Name)}
    named |= {"forward"} | {m.name for m in methods if m.name.startswith("__")} - OF_CLASSES
    reached: list[ast.FunctionDef] = []
    todo = [m for m in methods if m not in at_first]
    while more := [m for m in todo if m.name in named]:
        reached += more
        todo = [m for m in todo if m not in more]
        named |= {name for m in more for name in _own_attributes(m)}
    return reached


def _attributes(method: ast.FunctionDef) -> set[str]:
    plain = {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute)}
    return plain | set(map(_word, _by_word(method)))


def _own_attributes(method: ast.FunctionDef) -> set[str]:
    """What it names of the module itself: `x.float()` of a tensor is no method of its."""
    own = {n.attr for n in ast.walk(method) if _of(n, _itself(method)) or _of_class(n)}
    return own | set(map(_word, _by_word(method)))


def _of_class(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """`super().step`, `type(self).step`"""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and _looks_only(node.value)


def _by_word(method: ast.FunctionDef) -> list[ast.Call]:
    """Its calls of `getattr` with a name that is written there, which are as good as the attribute."""
    calls = [n for n in ast.walk(method) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    named = [n for n in calls if n.func.id == "getattr" and len(n.args) > 1]  # type: ignore[attr-defined]
    return [n for n in named if isinstance(n.args[1], ast.Constant) and isinstance(n.args[1].value, str)]


def _word(call: ast.Call) -> str:
    assert isinstance(call.args[1], ast.Constant)
    return str(call.args[1].value)


def _is_static(method: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in method.decorator_list)


def _itself(method: ast.FunctionDef) -> str:
    return method.args.args[0].arg if method.args.args else "self"


def _of(node: ast.AST, name: str) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name


def _hands_itself_on(method: ast.FunctionDef) -> bool:
    """Whether the module gets another name, or goes to code that may do anything with what is inside."""
    inside = list(ast.walk(method))
    calls = [n for n in inside if isinstance(n, ast.Call)]
    fine = [n.value for n in inside if isinstance(n, ast.Attribute)] + [c.func for c in calls]
    fine += [a for c in calls if _looks_only(c) for a in c.args]
    fine += [c.args[0] for c in _by_word(method)]
    known = set(map(id, fine))
    return any(isinstance(n, ast.Name) and n.id == _itself(method) and id(n) not in known for n in inside)


def _looks_only(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in ("super", "isinstance", "hasattr", "type")


def _names_inside(child: nn.Module, named: set[str]) -> bool:
    """Whether the code names anything that the child's items have: modules, tensors, methods of their own."""
    items = list(child.children())
    modules = [name for item in items for name, _ in item.named_modules()]
    tensors = [name for item in items for name, _ in (*item.named_parameters(), *item.named_buffers())]
    inside = {part for name in modules + tensors for part in name.split(".")}
    return bool(inside.union(*map(_own_methods, items)) & named)


def _own_methods(module: nn.Module) -> set[str]:
    """Those, and properties, that torch's classes do not have: by them code can get at what is inside."""
    own = [base for base in type(module).__mro__ if not base.__module__.startswith("torch.nn")]
    found = {name for base in own for name, value in vars(base).items() if hasattr(value, "__get__")}
    return found - set(dir(nn.Module))
