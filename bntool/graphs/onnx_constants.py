"""Values of an ONNX graph that its inputs do not reach: initialisers and what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bntool.graphs.onnx_numpy import EVALUATED, Args
from bntool.graphs.onnx_scopes import Scope
from bntool.graphs.onnx_shapes import Types
from bntool.graphs.onnx_tensors import Store, is_external, numpy_dtype

#: a value of more elements is computed when asked for, each time, and not kept
EAGER = 1 << 16
#: sizes and the like come in no longer lists
NUMBERS = 64


@dataclass(frozen=True)
class Const:
    """A constant: its values are fetched when asked for. `source` is the same for one tensor read twice."""

    source: Hashable
    shape: tuple[int, ...]
    data_type: int
    fetch: Callable[[], NDArray[Any]]
    held: int | None = None
    """What the tensors that it is computed from take, in bytes, if it is no tensor itself."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.size * numpy_dtype(self.data_type).itemsize

    @property
    def stored_bytes(self) -> int:
        """What goes from the file with it, at most."""
        return self.bytes if self.held is None else min(self.held, self.bytes)

    @property
    def is_compressed(self) -> bool:
        """Whether it would take more if it were a tensor of its own."""
        return self.stored_bytes < self.bytes


def attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def initialisers(graph: GraphProto, store: Store, scope: Scope, overridable: set[str]) -> dict[str, Const]:
    """The graph's initialisers, but for those that a caller may override."""
    found = (t for t in graph.initializer if t.name not in overridable)
    return {t.name: _stored(t, store, scope) for t in found}


def _stored(tensor: TensorProto, store: Store, scope: Scope) -> Const:
    return Const((scope, tensor.name), tuple(tensor.dims), tensor.data_type, store.reader(tensor))


def overridable_inputs(model: ModelProto) -> set[str]:
    """Initialisers that are inputs too: from IR version 4 on, the caller may pass other values for them."""
    return {value.name for value in model.graph.input} if model.ir_version >= 4 else set()


def evaluate(
    node: NodeProto, known: dict[str, Const], types: Types, scope: Scope, store: Store
) -> dict[str, Const] | None:
    """The node's outputs where they are constants, else None."""
    if node.domain not in ("", "ai.onnx"):
        return None
    outside = next((a.t for a in node.attribute if a.HasField("t") and is_external(a.t)), None)
    if outside is not None:
        named = TensorProto()
        named.CopyFrom(outside)
        named.name = node.output[0]
        return {named.name: _stored(named, store, scope)} if node.op_type == "Constant" else None
    if node.op_type == "CastLike":
        node = _as_cast(node, known, types)
    compute = EVALUATED.get(node.op_type)
    consts = [known.get(name) if name else None for name in node.input]
    if node.op_type == "Shape" and consts[0] is None and types.static:
        return _static_shape(node, types, scope)
    if compute is None or any(c is None and name for c, name in zip(consts, node.input, strict=True)):
        return None
    present = [c for c in consts if c is not None]
    if node.op_type == "Shape":
        return _shape_of(node, present[0].shape, scope)
    if node.op_type == "Identity":  # what one tensor is called elsewhere
        return {node.output[0]: present[0]}
    attrs, shapes = attributes(node), [types.of(name).shape for name in node.output]

    def run() -> list[NDArray[Any]]:
        inputs = [None if c is None else c.fetch() for c in consts]
        return compute(Args(inputs, attrs, len(node.output), shapes))

    source = _source(node, consts, shapes) if present else (scope, node.output[0])
    found = _lazy(node, run, types, source) if _big(present, shapes) else _eager(node, run, source)
    if not present or found is None:
        return found
    held = sum({c.source: c.bytes if c.held is None else c.held for c in present}.values())
    return {name: replace(const, held=held) for name, const in found.items()}


def spelled_out(model: ModelProto, store: Store, types: Types) -> ModelProto:
    """A copy in which whole numbers that nodes compute from constants, or from fixed sizes, are initialisers.

    Shape inference evaluates few operators; torch's older exporter writes a dozen for the widths of a Pad.
    """
    made = ModelProto()
    made.CopyFrom(model)
    known = _numbers(initialisers(made.graph, store, (), overridable_inputs(model)))
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        computed = None if _large(node) else evaluate(node, known, types, (), store)
        numbers = _numbers(computed or {})
        if computed is None or len(numbers) < len(computed):
            made.graph.node.append(node)
            continue
        known.update(numbers)
        made.graph.initializer.extend(numpy_helper.from_array(c.fetch(), n) for n, c in numbers.items())
    return made


def _numbers(consts: dict[str, Const]) -> dict[str, Const]:
    """Those that may be sizes, widths or places."""
    whole = (TensorProto.INT64, TensorProto.INT32)
    return {name: c for name, c in consts.items() if c.data_type in whole and c.size <= NUMBERS}


def _large(node: NodeProto) -> bool:
    return any(int(np.prod(a.t.dims, dtype=np.int64)) > NUMBERS for a in node.attribute)


def _as_cast(node: NodeProto, known: dict[str, Const], types: Types) -> NodeProto:
    """CastLike reads only the element type of its second input, which need not be constant."""
    like = known[node.input[1]].data_type if node.input[1] in known else types.of(node.input[1]).elem_type
    if not like:
        return node
    return helper.make_node("Cast", [node.input[0]], list(node.output), to=like)


def _static_shape(node: NodeProto, types: Types, scope: Scope) -> dict[str, Const] | None:
    shape = types.of(node.input[0]).shape
    return None if shape is None else _shape_of(node, shape, scope)


def _shape_of(node: NodeProto, shape: tuple[int, ...], scope: Scope) -> dict[str, Const]:
    attrs = attributes(node)
    sizes = np.array(shape[slice(attrs.get("start", 0), attrs.get("end"))], np.int64)
    return {node.output[0]: _kept((scope, node.output[0]), sizes)}


def _big(inputs: Iterable[Const], shapes: Iterable[tuple[int, ...] | None]) -> bool:
    sizes = [c.size for c in inputs] + [int(np.prod(s, dtype=np.int64)) for s in shapes if s is not None]
    return max(sizes, default=0) > EAGER


def _source(node: NodeProto, inputs: Iterable[Const | None], shapes: Iterable[Any]) -> str:
    """The same for the same operator on the same tensors: a layer called twice reads its weight twice."""
    attrs = sorted(a.SerializeToString() for a in node.attribute)
    parts = (node.op_type, attrs, [c and c.source for c in inputs], list(shapes))
    return blake2b(repr(parts).encode()).hexdigest()


def _eager(
    node: NodeProto, run: Callable[[], list[NDArray[Any]]], source: Hashable
) -> dict[str, Const] | None:
    try:
        with np.errstate(all="ignore"):
            values = run()
    except (ValueError, KeyError, IndexError, TypeError, AssertionError, ArithmeticError):
        return None  # written in a way this evaluator does not read: then it is no constant to us
    named = enumerate(zip(node.output, values, strict=False))
    return {name: _kept((source, port), value) for port, (name, value) in named if name}


def _kept(source: Hashable, value: NDArray[Any]) -> Const:
    return Const(source, value.shape, int(helper.np_dtype_to_tensor_dtype(value.dtype)), lambda: value)


def _lazy(
    node: NodeProto, run: Callable[[], list[NDArray[Any]]], types: Types, source: Hashable
) -> dict[str, Const] | None:
    result = {}
    for port, name in enumerate(node.output):
        typed = types.of(name)
        if typed.shape is None or not typed.elem_type:
            return None
        result[name] = Const((source, port), typed.shape, typed.elem_type, partial(_output, run, port))
    return result


def _output(run: Callable[[], list[NDArray[Any]]], port: int) -> NDArray[Any]:
    return run()[port]


def is_float(const: Const) -> bool:
    return const.data_type in (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
    )


def as_float64(const: Const) -> NDArray[np.float64]:
    return const.fetch().astype(np.float64)


def values(const: Const | None) -> list[Any] | None:
    """A small constant as a list; None stays None."""
    return None if const is None else np.atleast_1d(const.fetch()).tolist()


def name_of(data_type: int) -> str:
    return str(numpy_dtype(data_type).name)
