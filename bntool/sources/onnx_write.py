"""Write an ONNX model whose weights are not in memory: each is read or computed, written, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from bntool.graphs.onnx_scopes import subgraphs
from bntool.graphs.onnx_tensors import (
    EMBEDDED,
    PENDING,
    Store,
    byte_size,
    is_external,
    location,
    set_location,
)
from bntool.sources.onnx_wire import INLINE_LIMIT_BYTES, field_head

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
CHUNK_BYTES, PAGE_BYTES = 1 << 20, 1 << 12


def write(model: ModelProto, store: Store, path: Path, *, outside: bool = False) -> None:
    """Write `model` to `path`; its external and pending tensors are streamed.

    They go into the file itself, or into `NAME.data` beside it: with `outside`, where the model has external
    data, and where it would pass protobuf's 2 GiB. The model passed in is not changed.
    """
    tensors = [tensor for tensor in all_tensors(model.graph) if is_external(tensor)]
    if (
        outside
        or has_external_data(model)
        or sum(map(byte_size, tensors)) + model.ByteSize() > INLINE_LIMIT_BYTES
    ):
        _write_beside(model, store, path)
    else:
        _write_inline(model, store, path)


def has_external_data(model: ModelProto) -> bool:
    """Whether any tensor lies in a file of its own."""
    tensors = (tensor for tensor in all_tensors(model.graph) if is_external(tensor))
    return any(location(tensor) not in (EMBEDDED, PENDING) for tensor in tensors)


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Initialisers and the tensors in attributes, subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))
        for _, inner in subgraphs(node):
            yield from all_tensors(inner)


def _write_beside(model: ModelProto, store: Store, path: Path) -> None:
    placed = ModelProto()
    placed.CopyFrom(model)
    data = path.with_name(f"{path.name}.data")
    with open(data, "wb") as file:
        for tensor in all_tensors(placed.graph):
            if is_external(tensor):
                size = byte_size(tensor)
                offset = _aligned(file, size)
                copy(tensor, store, file)
                entries = {"location": data.name, "offset": str(offset), "length": str(size)}
                set_location(tensor, entries)
    path.write_bytes(placed.SerializeToString())


def _aligned(file: BinaryIO, size: int) -> int:
    """Pad up to a page in front of a large tensor, so that a runtime can map it. Returns: the offset."""
    if size >= CHUNK_BYTES:
        file.write(bytes(-file.tell() % PAGE_BYTES))
    return file.tell()


@dataclass(frozen=True)
class _Inline:
    """A tensor's message up to the raw bytes that follow it."""

    tensor: TensorProto
    head: bytes

    @property
    def size(self) -> int:
        return len(self.head) + byte_size(self.tensor)


def _write_inline(model: ModelProto, store: Store, path: Path) -> None:
    rest = ModelProto()
    rest.CopyFrom(model)
    large = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    for place in range(len(rest.graph.initializer) - 1, -1, -1):
        if is_external(rest.graph.initializer[place]):
            del rest.graph.initializer[place]
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    bodies = [_Inline(tensor, _head(tensor)) for tensor in large]
    heads = [field_head(_INITIALIZER, body.size) for body in bodies]
    size = len(graph) + sum(len(head) + body.size for head, body in zip(heads, bodies, strict=True))
    with open(path, "wb") as file:
        file.write(rest.SerializeToString())
        file.write(field_head(_GRAPH, size) + graph)
        for head, body in zip(heads, bodies, strict=True):
            file.write(head + body.head)
            copy(body.tensor, store, file)


def _head(tensor: TensorProto) -> bytes:
    plain = TensorProto()
    plain.CopyFrom(tensor)
    plain.ClearField("external_data")
    plain.ClearField("data_location")
    return bytes(plain.SerializeToString()) + field_head(_RAW_DATA, byte_size(tensor))


def copy(tensor: TensorProto, store: Store, file: BinaryIO) -> None:
    """Append the tensor's raw bytes to `file`, a piece at a time where they lie in another file."""
    if location(tensor) == PENDING:
        file.write(np.ascontiguousarray(store.array(tensor)).reshape(-1).view(np.uint8).data)
        return
    span = store.span(tensor)
    with open(span.path, "rb") as source:
        source.seek(span.offset)
        left = span.length
        while left:
            piece = source.read(min(left, CHUNK_BYTES))
            if not piece:
                store.array(tensor)  # says that the data ends early
            file.write(piece)
            left -= len(piece)
