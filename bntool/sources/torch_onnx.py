"""From a PyTorch module to torch's ONNX program: modes told, batch made dynamic, names and opset kept."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntool.copying import own_inputs
from bntool.errors import RunError, UsageError, on_one_line
from bntool.graphs.running import outputs_of
from bntool.norms.submodules import state_kept
from bntool.sources.inputs import as_call
from bntool.sources.outputs import parts
from bntool.sources.precision import full_precision

#: nodes whose sums round: their number is the depth of a graph
LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
_BATCH = "batch"


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the model whose forward has this `signature`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signature: inspect.Signature

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any) -> Call:
        """`example_inputs` is a tensor, a tuple of arguments or a dict of them, put in the signature's order.

        Raises: UsageError.
        """
        args, kwargs = as_call(example_inputs)
        signature = inspect.signature(model.forward)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as problem:
            advice = "Pass example inputs that the model can be called with."
            raise UsageError(str(problem), where=type(model).__name__, next=advice) from problem
        by_place = _by_place(model, len(bound.args))
        named = dict(zip(list(bound.arguments)[by_place:], bound.args[by_place:], strict=False))
        return cls(bound.args[:by_place], {**named, **bound.kwargs}, signature)

    @property
    def named(self) -> dict[str, Any]:
        """Argument name -> value, in the order of the signature: that of the exported graph's inputs."""
        return dict(self.signature.bind(*self.args, **self.kwargs).arguments)

    @property
    def tensors(self) -> list[Tensor]:
        return _tensors(self.named)

    @property
    def batch(self) -> int:
        """The size of dim 0 of the first tensor that has dims; 0 when there is none."""
        sizes = [t.shape[0] for t in self.tensors if t.dim()]
        return int(sizes[0]) if sizes else 0

    def resized(self, batch: int) -> Call:
        """The same call with `batch` samples: new random values for floats, repeated ones for integers."""
        generator = torch.Generator().manual_seed(batch)
        here = self.batch

        def resize(leaf: Any) -> Any:
            return _resize(leaf, batch, generator) if _is_batched(leaf, here) else leaf

        args, kwargs = pytree.tree_map(resize, (self.args, self.kwargs))
        return Call(args, kwargs, self.signature)

    def dynamic_shapes(self) -> dict[str, Any]:
        dim, here = torch.export.Dim(_BATCH), self.batch
        return dict(pytree.tree_map(lambda leaf: {0: dim} if _is_batched(leaf, here) else None, self.named))

    def __call__(self, model: nn.Module) -> list[Tensor]:
        with state_kept(model), torch.no_grad(), full_precision():
            args, kwargs = own_inputs((self.args, self.kwargs))
            return _tensors(outputs_of(model, args, kwargs))


def _by_place(model: nn.Module, given: int) -> int:
    """How many arguments go by their place: a program minds which of its inputs are named."""
    spec = getattr(model, "_in_spec", None)
    return given if spec is None else spec.child(0).num_children


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def _resize(tensor: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    rows = tensor[torch.arange(batch) % tensor.shape[0]]
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return rows
    noise = torch.randn(rows.shape, generator=generator).to(tensor.device, torch.float64)
    return (noise * tensor.double().std() + tensor.double().mean()).to(tensor.dtype)


@dataclass(frozen=True)
class Traced:
    """torch's ONNX program and what it says of itself."""

    program: Any
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    depth: int
    dynamic_batch: bool

    def save(self, path: Path, external_data: bool) -> None:
        self.program.save(path, external_data=external_data)


def trace(
    model: nn.Module,
    call: Call,
    *,
    dynamic_batch: bool = False,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Traced:
    """Run torch's exporter. A dynamic batch is traced at two samples or more: torch takes 1 for a constant.

    Raises: RunError when torch cannot export the model, or writes another opset than the one asked for.
    """
    if dynamic_batch:
        call = call.resized(max(2, call.batch))
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                call.args,
                kwargs=call.kwargs,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=call.dynamic_shapes() if dynamic_batch else None,
            )
    except Exception as problem:
        raise _refusal(model, problem, dynamic_batch) from problem
    if output_names is None:
        _name_outputs(program)
    traced = _read(program, dynamic_batch)
    if dynamic_batch:
        _insist_on_dynamic(program, call)
    if opset is not None and traced.opset != opset:
        advice = f"Leave opset out, or ask for {traced.opset}."
        what = f"torch cannot write this model in opset {opset}: it came out in {traced.opset}"
        raise RunError(what, where="opset", next=advice)
    if not traced.outputs:
        advice = "Return what it computes, in tuples, lists, dicts or dataclasses."
        raise RunError("it returns no tensors", where=type(model).__name__, next=advice)
    return traced


def _name_outputs(program: Any) -> None:
    """Call each output as the model does ("boxes", "levels.0"); a place in a tuple is no name."""
    signature = program.exported_program.graph_signature
    user_output = torch.export.graph_signature.OutputKind.USER_OUTPUT
    leaves = [spec.arg for spec in signature.output_specs if spec.kind is user_output]
    tree = pytree.tree_unflatten(leaves, program.exported_program.call_spec.out_spec)
    values, names = program.model.graph.outputs, _output_names(tree)
    taken = {value.name for node in program.model.graph for value in node.outputs}
    taken |= {*program.model.graph.initializers, *(value.name for value in program.model.graph.inputs)}
    if len(names) != len(values) or len(set(values)) != len(values):
        return
    for value, name in zip(values, names, strict=True):
        if name and name not in taken and not name.replace(".", "").isdigit():
            value.name = name


def _output_names(tree: Any, name: str = "") -> list[str]:
    """The place of every tensor in the tree of outputs."""
    if isinstance(tree, torch.export.graph_signature.TensorArgument):
        return [name]
    if not (isinstance(tree, Mapping | tuple | list) or is_dataclass(tree)):
        return []
    named = [(f"{name}.{key}" if name else key, part) for key, part in parts(tree, name)]
    return [found for key, part in named for found in _output_names(part, key)]


def _read(program: Any, dynamic_batch: bool) -> Traced:
    graph = program.model.graph
    return Traced(
        program=program,
        opset=int(program.model.opset_imports[""]),
        inputs=tuple(value.name for value in graph.inputs),
        outputs=tuple(value.name for value in graph.outputs),
        depth=sum(node.op_type in LINEAR_OPS for node in graph),
        dynamic_batch=dynamic_batch,
    )


def _insist_on_dynamic(program: Any, call: Call) -> None:
    """torch falls back to a fixed batch where it cannot keep it open, and does not say so."""
    for value, tensor in zip(program.model.graph.inputs, call.tensors, strict=True):
        if _is_batched(tensor, call.batch) and isinstance(value.shape[0], int):
            advice = "Leave dynamic_batch out, or make the model take any batch size."
            raise RunError("the model fixes its batch size", where=f"input {value.name}", next=advice)


def _refusal(model: nn.Module, problem: Exception, dynamic_batch: bool) -> RunError:
    root: BaseException = problem
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()] or [type(root).__name__]
    advice = "The batch may be fixed inside the model: leave dynamic_batch out. " if dynamic_batch else ""
    advice += "Control flow that depends on data needs torch.cond or torch.where."
    return RunError(
        f"torch cannot export it: {on_one_line(lines[0])}", where=type(model).__name__, next=advice
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own messages are about torch's insides; what matters is checked and reported here.

    It logs them, warns, and where it gives up also prints the whole graph.
    """
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
