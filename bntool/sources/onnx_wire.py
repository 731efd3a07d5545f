"""ONNX files piece by piece: the graph without its weights in, weights copied straight from file to file out.

A ModelProto is a list of tagged fields; its graph is field 7, the graph's initialisers are field 5 of that, a
tensor's bytes field 9 of those. Reading only the tags finds every weight without loading one.
Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto

from bntool.errors import LoadError
from bntool.graphs.onnx_tensors import EMBEDDED, set_location

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
#: a tensor of fewer bytes stays in the message: reading it from the file would cost more
SMALL_BYTES = 1024
#: protobuf's limit is 2 GiB; the graph itself and its names need some of it
INLINE_LIMIT_BYTES = 2**31 - 2**27
_FIXED = {1: 8, 5: 4}

Buffer = mmap.mmap | bytes


def read_varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, where it begins with its tag, where its content begins, where it ends)."""
    at = start
    while at < end:
        tag, content = read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, stop = read_varint(data, content)
        elif kind == 2:
            length, content = read_varint(data, content)
            stop = content + length
        else:
            stop = content + _FIXED[kind]
        if stop > end:
            raise ValueError("a field ends behind its message")
        yield tag >> 3, at, content, stop
        at = stop


def read_skeleton(path: Path) -> ModelProto:
    """The model in the file, its large initialisers noted as places in the file instead of loaded.

    Raises: LoadError.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = ModelProto()
            model.ParseFromString(b"".join(_without_weights(data)))
    except FileNotFoundError as problem:
        raise LoadError("there is no such file", where=str(path), next="Check the path.") from problem
    except OSError as problem:
        raise LoadError(problem.strerror or "it cannot be read", where=str(path)) from problem
    except Exception as problem:
        raise LoadError("it is no ONNX model", where=str(path), next="Export it again.") from problem
    if not model.graph.node and not model.graph.output:
        raise LoadError("it holds no graph", where=str(path), next="Export it again.")
    return model


def _without_weights(data: mmap.mmap) -> Iterator[bytes]:
    for number, start, content, stop in fields(data, 0, len(data)):
        if number == _GRAPH:
            graph = b"".join(_graph_without_weights(data, content, stop))
            yield _field(_GRAPH, graph)
        else:
            yield data[start:stop]


def _graph_without_weights(data: mmap.mmap, start: int, end: int) -> Iterator[bytes]:
    for number, begin, content, stop in fields(data, start, end):
        large = number == _INITIALIZER and stop - content > SMALL_BYTES
        yield _field(_INITIALIZER, _placed(data, content, stop)) if large else data[begin:stop]


def _placed(data: mmap.mmap, start: int, end: int) -> bytes:
    """A tensor with the place of its raw bytes instead of the bytes."""
    rest, raw = [], None
    for number, begin, content, stop in fields(data, start, end):
        if number == _RAW_DATA:
            raw = content, stop - content
        else:
            rest.append(data[begin:stop])
    tensor = TensorProto()
    tensor.ParseFromString(b"".join(rest))
    if raw is not None:
        set_location(tensor, {"location": EMBEDDED, "offset": str(raw[0]), "length": str(raw[1])})
    return bytes(tensor.SerializeToString())


def _field(number: int, content: bytes) -> bytes:
    return field_head(number, len(content)) + content


def field_head(number: int, length: int) -> bytes:
    """The tag and length in front of a length-delimited field."""
    return varint(number << 3 | 2) + varint(length)
