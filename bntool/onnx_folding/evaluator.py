"""ONNX's reference evaluator, with norms as they are before opset 14: its own look at the batch there."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14

from bntool.graphs.onnx_layers import trains


class BatchNormalization(BatchNormalization_14):
    """The operator of any opset as that of opset 14, which says in an attribute whether it trains."""

    def _run(
        self,
        x: Any,
        scale: Any,
        bias: Any,
        mean: Any,
        var: Any,
        epsilon: Any = None,
        momentum: Any = None,
        training_mode: Any = 0,
        **others: Any,
    ) -> Any:
        attrs = {"training_mode": training_mode, **others}
        mode = int(trains(self.run_params["opsets"][""], attrs, self.onnx_node.output))
        return super()._run(x, scale, bias, mean, var, epsilon, momentum, mode)  # type: ignore[no-untyped-call]


def evaluator(model: ModelProto | str | bytes) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=[BatchNormalization])
