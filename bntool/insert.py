"""Put norms into a model without changing what it computes, whatever kind of model it is.

y = (x - m) / sqrt(v + eps) * sqrt(v + eps) + m = x, with m and v the mean and variance of x over the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bntool.errors import UsageError
from bntool.globs import listed
from bntool.progress import Progress, silent
from bntool.result import Result
from bntool.sources.kinds import kind_of
from bntool.sources.opening import given, given_module


def insert(
    model: Any,
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    norm: str = "batch",
    where: str = "before-activation",
    init: str = "preserve",
    form: str = "module",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    layers: str | None = None,
    batch_size: int | None = None,
    bias: str | None = None,
    groups: int | None = None,
    virtual_batch_size: int = 32,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    gated: bool = False,
    slots: bool = False,
    inputs: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Result[Any, Any]:
    """A copy of `model` with norms in it. With init="preserve" it computes what `model` computes.

    `model` is a module, an ONNX model (onnx or onnx_ir), or a reference to one, which may name example inputs
    itself. An ONNX model takes batch norms right behind its layers, outputs unchanged, and nothing else.

    norm: "batch", "sync", "group", "layer", "instance", "rms", "renorm", "ghost", "frozen"; "auto": by n_eff.
    where: "before-activation" (right behind the layer), "after-activation", "before-layer".
    layers: "conv", "linear", "all"; by default convolutions, or linears where the model has no convolution.
    batch_size: what the model will be trained with, which decides n_eff; by default the data's, the
    example's.
    bias: "drop" or "keep" of biases that the norm hides; by default dropped, except where the norm went
    into a Sequential, whose keys then are those of the same network built with norms.
    slots: where folding left an Identity behind layers, norms go there and nowhere else.
    gated: norms that cannot preserve (group, layer, ...) sit behind a gate that starts closed.

    Raises: UsageError, RunError (the model or the data raise, NaN or inf), VerificationError (a preserving
    norm moved the outputs more than rounding does).
    """
    model, example_inputs = given(model, example_inputs)
    if kind_of(model) == "onnx":
        from bntool.insert_onnx import insert_model, refuse_others
        from bntool.onnx_inserting.put_in import Setting

        asked = {"norm": norm, "where": where, "init": init, "form": form}
        refuse_others({**asked, "gated": gated, "groups": groups})
        return insert_model(
            model,
            example_inputs,
            data=data,
            layers=layers,
            include=listed(include),
            exclude=listed(exclude),
            batch_size=batch_size,
            setting=Setting(eps, momentum, bias == "keep"),
            dry_run=dry_run,
            progress=progress,
        )
    model, example_inputs = given_module(model, example_inputs, "insert")
    from bntool.insert_module import insert_module
    from bntool.placing.options import Options
    from bntool.placing.sites import Question

    if example_inputs is None:
        advice = "Pass them: a tensor, a tuple of arguments, or a dict of keywords."
        raise UsageError("no example inputs are known", where="insert", next=advice)
    return insert_module(
        model,
        example_inputs,
        data=data,
        question=Question(where, layers, listed(include), listed(exclude), slots),
        options=Options(norm, init, form, bias, groups, virtual_batch_size, eps, momentum, gated),
        batch_size=batch_size,
        inputs=inputs,
        dry_run=dry_run,
        progress=progress,
    )


def unfold(
    model: Any,
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    inputs: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Result[Any, Any]:
    """A copy of a folded or norm-free model with a batch norm behind every convolution, ready to train on.

    Where folding left an Identity behind layers, the norms go exactly there, and the state dict has the
    keys of the model before it was folded. The outputs stay; so do the reports and errors of `insert`.
    """
    return insert(
        model,
        example_inputs,
        data=data,
        include=include,
        exclude=exclude,
        batch_size=batch_size,
        eps=eps,
        momentum=momentum,
        slots=True,
        inputs=inputs,
        dry_run=dry_run,
        progress=progress,
    )
