"""What recurrent layers give, from their sizes alone: torch would go through a sequence step by step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def recurrent_results(layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """Tensors without data, of the sizes and the type of the output and of the last states.

    Shapes: x (steps, N, features), or (N, steps, features) for a layer that has the batch first.
    Raises: RuntimeError for an input that the layer refuses.
    Source: torch.nn.LSTM's documentation, Inputs and Outputs.
    """
    layer.check_input(x, None)
    steps, batch = x.shape[:2] if not layer.batch_first else (x.shape[1], x.shape[0])
    ways, size = (2 if layer.bidirectional else 1), layer.proj_size or layer.hidden_size
    output = x.new_empty(steps, batch, ways * size)
    output = output.transpose(0, 1) if layer.batch_first else output
    last = x.new_empty(ways * layer.num_layers, batch, size)
    if not isinstance(layer, nn.LSTM):
        return output, last
    return output, (last, x.new_empty(ways * layer.num_layers, batch, layer.hidden_size))
