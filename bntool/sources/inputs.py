"""Inputs to run a model on: written as `[name:]1x3x224x224[:dtype]`, or as the values a file gives."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bntool.errors import UsageError

_SHAPE = re.compile(r"\d+(x\d+)*")
_SPEC = re.compile(r"((?P<name>[^:]*):)?(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+))?")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class InputSpec:
    """One input: its name (empty: by position), shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


def parse_input(text: str) -> InputSpec:
    """`[name:]1x3x224x224[:dtype]`. Raises: UsageError."""
    match = _SPEC.fullmatch(text.strip())
    if match is None or "0" in match["shape"].split("x"):
        example = "Write it as 1x3x224x224, or image:1x3x224x224:float32."
        raise UsageError(f"cannot read the input {text!r}", where="--input", next=example)
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise UsageError(
            f"unknown dtype {dtype!r} in {text!r}", where="--input", next=f"Use {', '.join(DTYPES)}."
        )
    return InputSpec(match["name"] or "", tuple(map(int, match["shape"].split("x"))), dtype)


def random_arrays(specs: Iterable[InputSpec], *, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Reproducible values: standard normal for floats, 0 and 1 for integers (token ids) and bools."""
    generator = np.random.default_rng(seed)
    return [_random(spec, generator) for spec in specs]


def _random(spec: InputSpec, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    if "float" in spec.dtype:
        values = generator.standard_normal(spec.shape)
        return values.astype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    return generator.integers(0, 2, spec.shape).astype(spec.dtype)


def torch_inputs(specs: Iterable[InputSpec], *, seed: int = 0) -> Any:
    """Tensors for a call: a tuple, or a dict where the specs have names."""
    import torch

    specs = list(specs)
    arrays = random_arrays(specs, seed=seed)
    tensors = [torch.from_numpy(a).to(getattr(torch, s.dtype)) for a, s in zip(arrays, specs, strict=True)]
    return _named(specs, tensors)


def numpy_inputs(specs: Iterable[InputSpec], *, seed: int = 0) -> Any:
    """Arrays for ONNX Runtime: a tuple, or a dict where the specs have names."""
    specs = list(specs)
    return _named(specs, random_arrays(specs, seed=seed))


def _named(specs: list[InputSpec], values: list[Any]) -> Any:
    names = [spec.name for spec in specs]
    if not any(names):
        return tuple(values)
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(
            "some inputs have names and some have none", where="--input", next="Name each, once."
        )
    return dict(zip(names, values, strict=True))


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `example_inputs()` may return, as arguments of a call: a tensor, a tuple or list, or a dict."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def in_words(args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """Inputs as they would be written on the command line: "8x3x32x32:float32, mask:8:bool"."""
    named = [*(("", value) for value in args), *kwargs.items()]
    return ", ".join(f"{name}:{_in_words(v)}" if name else _in_words(v) for name, v in named) or "no inputs"


def _in_words(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape = "x".join(map(str, value.shape)) or "a number"
        return f"{shape}:{str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"[{in_words(value, {})}]"
    return f"[{in_words((), value)}]" if isinstance(value, Mapping) else type(value).__name__


def advice(model: Any) -> str:
    """What to look at when a model raises on its inputs."""
    names = ", ".join(map(str, _bare(inspect.signature(model.forward).parameters.values())))
    return f"It takes ({names}): do these have the shapes and types it expects?"


def _bare(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Without annotations: names and defaults say enough."""
    return [p.replace(annotation=p.empty) for p in parameters]
