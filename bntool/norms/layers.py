"""Norms that torch does not have: frozen, ghost and renormalised batch norm, norms over channels first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


class FrozenBatchNorm(_NormBase):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with all four fixed, whatever `.train()` says.

    Nothing here is a parameter, so no optimizer moves it; the state-dict keys are a batch norm's.
    Shapes: x (N, C, *), the four buffers (C,).
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps, momentum=0.0, affine=False)
        self.affine = True
        del self.num_batches_tracked
        for name, fill in (("weight", 1.0), ("bias", 0.0)):
            delattr(self, name)
            self.register_buffer(name, torch.full((num_features,), fill))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def reset_parameters(self) -> None:
        """There are none."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # a checkpoint of the norm that was frozen
        nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class _AnyRank(_BatchNorm):
    """A batch norm for (N, C, *) of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, *), got {input.dim()} dimensions")


class BatchNormAct(_AnyRank):
    """act(drop(norm(x))), with the state-dict keys of timm's `BatchNormAct2d` and its like.

    Its parameters and buffers are those of `norm`.
    Shapes: (N, C, *) -> the same.
    """

    def __init__(self, norm: _BatchNorm, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.drop, self.act = drop, act
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


class GhostBatchNorm(_AnyRank):
    """Batch norm over virtual batches: in training each `virtual_batch_size` samples have their own
    statistics.

    A ragged rest is spread over the virtual batches. The running statistics move as far per batch as a batch
    norm's with the same momentum. In eval mode this is a batch norm.
    Shapes: (N, C, *) -> the same.
    Source: Hoffer, Hubara, Soudry, "Train longer, generalize better" (2017), algorithm 1.
    """

    def __init__(self, num_features: int, *args: Any, virtual_batch_size: int = 32, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.virtual_batch_size = virtual_batch_size

    def forward(self, x: Tensor) -> Tensor:
        chunks = max(1, x.shape[0] // self.virtual_batch_size)
        if not self.training or chunks == 1:
            return super().forward(x)
        self._check_input_dim(x)
        momentum = self._step(chunks)
        parts = (
            F.batch_norm(
                part, self.running_mean, self.running_var, self.weight, self.bias, True, momentum, self.eps
            )
            for part in x.tensor_split(chunks)
        )
        return torch.cat(tuple(parts))

    def _step(self, chunks: int) -> float:
        """Count the batch; the momentum of one of its chunks: 1 - (1 - momentum) ** (1 / chunks)."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / max(1, int(self.num_batches_tracked or 1))
        return float(1.0 - (1.0 - momentum) ** (1.0 / chunks))

    def extra_repr(self) -> str:
        own = f"virtual_batch_size={self.virtual_batch_size}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, {own}"


class BatchRenorm(_AnyRank):
    """Batch norm that trains with what it will use in eval: y = ((x - m_B) / s_B * r + d) * weight + bias.

    r = clip(s_B / s, 1 / r_max, r_max) and d = clip((m_B - m) / s, -d_max, d_max) carry no gradient; s and
    m are the running statistics. With unlimited r and d a training step is the eval function. The limits
    open from a batch norm's (1 and 0) to r_max and d_max over `warmup` steps; 0 opens them at once, which
    is right when the running statistics are already those of the data.
    Shapes: (N, C, *) -> the same.
    Source: Ioffe, "Batch Renormalization" (2017), algorithm 1.
    """

    def __init__(
        self,
        num_features: int,
        *args: Any,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        self._check_input_dim(x)
        wide = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(wide, dims, correction=0)
        r, d = self._corrections(mean.detach(), var.detach())
        scale = r * torch.rsqrt(var + self.eps)
        shift = d - mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        if self.bias is not None:
            shift = shift + self.bias
        self._track(mean.detach(), var.detach(), x.numel() // x.shape[1])
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (wide * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def _corrections(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        sigma = torch.sqrt(self.running_var + self.eps)
        opened = self._opened()
        r_max, d_max = 1.0 + (self.r_max - 1.0) * opened, self.d_max * opened
        r = (torch.sqrt(var + self.eps) / sigma).clamp(1.0 / r_max, r_max)
        return r, ((mean - self.running_mean) / sigma).clamp(-d_max, d_max)

    def _opened(self) -> Any:
        """How far the limits are open, 0 to 1; a tensor while warming up: compiled code follows it."""
        if not self.warmup or self.num_batches_tracked is None:
            return 1.0
        return (self.num_batches_tracked / self.warmup).clamp(max=1.0)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked
        unbiased = var * (count / max(1, count - 1))
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (unbiased - self.running_var)

    def extra_repr(self) -> str:
        limits = f"r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, {limits}"


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm of channels-first values: over the C channels of every sample and position.

    `GroupNorm(1, C)` is another thing: one mean and variance for all positions of a sample together.
    Shapes: (N, C, *) -> the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ChannelRMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the channels of every sample and position, channels first.

    Shapes: (N, C, *) -> the same.
    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ChannelsLast(nn.Sequential):
    """A norm for (N, C) applied to (*, C): every position is a sample.

    Shapes: (*, C) -> the same.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)

    def forward(self, input: Tensor) -> Tensor:
        flat: Tensor = self[0](input.reshape(-1, input.shape[-1]))
        return flat.reshape(input.shape)


class Gated(nn.Module):
    """y = x + gate * (norm(x) - x) with gate = 0 at first: nothing changes until training opens the gate.

    Source: the idea of Bachlechner et al., "ReZero is All You Need" (2020), on a norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.norm(x), self.gate)
