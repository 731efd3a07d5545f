"""The same random networks as torch.export programs and ONNX models: folded and merged, none wrong.

Judged by themselves before and after: a network that an exporter gets wrong is not this tool's concern.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from bntool import fold
from tests.fuzz.cases import Case, build

LIMIT = 1e-9
#: the first in which the reference evaluator computes batch norm in float64 right
OPSET = 15
Run = Callable[[Any, Tensor], list[Any]]


@dataclass
class Findings:
    """What came of one case: forms that could be made, norms that were folded, broken promises."""

    forms: int = 0
    folded: int = 0
    complaints: list[str] = field(default_factory=list)


def findings(case: Case) -> Findings:
    """Only float64 is judged, where an error is an error."""
    found = Findings()
    if not case.exact:
        return found
    for name, model, run in forms(case):
        for merge in (False, True):
            where = f"{name}{', merged' if merge else ''}"
            try:
                found.folded += _judge(model, run, case.inputs[0], merge)
                found.forms += 1
            except Exception as problem:  # a crash is a finding like any other
                found.complaints.append(f"{where}: {type(problem).__name__}: {problem}")
    return found


def forms(case: Case) -> Iterator[tuple[str, Any, Run]]:
    """Every exported form that can be made of the network, and how to run it."""
    program = attempt(lambda: torch.export.export(case.model, (case.inputs[0],), strict=False))
    if program is not None:
        yield "program", program, run_program
        core = attempt(program.run_decompositions)
        if core is not None:
            yield "core program", core, run_program
    proto = attempt(lambda: to_onnx(case))
    if proto is not None and attempt(lambda: run_onnx(proto, case.inputs[0])) is not None:
        yield "ONNX", proto, run_onnx


def attempt(make: Callable[[], Any]) -> Any:
    """None where exporters and evaluators do not know a network's operators."""
    try:
        return make()
    except Exception:
        return None


def to_onnx(case: Case) -> onnx.ModelProto:
    file = io.BytesIO()
    options: dict[str, Any] = {"dynamo": False, "do_constant_folding": False, "opset_version": OPSET}
    torch.onnx.export(case.model, (case.inputs[0],), file, **options)
    return onnx.load_from_string(file.getvalue())


def run_program(program: ExportedProgram, x: Tensor) -> list[Any]:
    with torch.no_grad():
        leaves = tree_leaves(program.module()(x.clone()))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def run_onnx(proto: onnx.ModelProto, x: Tensor) -> list[Any]:
    return list(ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()}))


def _judge(model: Any, run: Run, x: Tensor, merge: bool) -> int:
    """How many norms were folded. Raises: AssertionError for a fold that is wrong or not complete."""
    wanted = run(model, x)  # which updates the statistics of norms in train mode, so look afterwards
    before = _text(model)
    result = fold(model, merge=merge, verify=False)
    assert _text(model) == before, "the model passed in was changed"
    got = run(result.model, x)
    assert [a.shape for a in got] == [a.shape for a in wanted], "the outputs have other shapes"
    error = max((_distance(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
    assert error <= LIMIT, f"outputs differ by {error:.1e}"
    again = fold(result.model, merge=merge, verify=False)
    assert not again.report.folded, f"a second fold finds {again.report.folded[0].name}"
    return len(result.report.folded)


def _text(model: Any) -> Any:
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString()
    return str(model.graph), {name: float(t.double().sum()) for name, t in model.state_dict.items()}


def _distance(a: Any, b: Any) -> float:
    error = float(np.abs(a.astype(float) - b).max() / (1e-6 + np.abs(b).max())) if a.size else 0.0
    return error if error == error else float("inf")


def one(seed: int) -> tuple[int, int, str]:
    """Forms judged, norms folded, and the failure if any."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    case = build(seed)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # exporters print what they cannot
        found = findings(case)
    text = "\n  ".join([f"seed {seed}, input {tuple(case.inputs[0].shape)}", *found.complaints])
    return found.forms, found.folded, f"{text}\n{case.model.describe()}" if found.complaints else ""
