"""Parameters and numbers: missing ones, zeros, damaged statistics, dtypes, ranges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bntool.errors import UsageError
from bntool.fold import fold
from tests.folding import Block, error, folded, names, prepared, reason

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(**options: object) -> nn.Sequential:
    norm = nn.BatchNorm2d(4, **options)  # type: ignore[arg-type]
    return prepared(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), norm), X)  # type: ignore[return-value]


def test_gamma_zero_and_negative_and_own_eps() -> None:
    model = pair(eps=0.1, momentum=None)
    model[1].weight.data[:2] = torch.tensor([0.0, -1.0])
    assert len(folded(model, X, prepare=False)[1].folded) == 1


def test_gamma_zero_before_a_layer() -> None:
    model = prepared(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False)), X)
    model[1].weight.data[0] = 0
    assert len(folded(model, X, prepare=False)[1].folded) == 1


def test_a_bias_that_comes_out_zero_is_left_out() -> None:
    model = pair()
    model[1].running_mean.zero_()
    model[1].bias.data.zero_()
    assert folded(model, X, prepare=False)[0][0].bias is None


def test_no_running_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).double().eval()
    _, report = folded(model, X, prepare=False)
    assert "no running statistics" in reason(report)


def test_train_mode() -> None:
    model = pair()
    model[1].train()
    report = fold(model, X, verify=False).report
    assert "train mode" in reason(report)
    assert model[1].training


@pytest.mark.parametrize(
    ("buffer", "value", "why"),
    [
        ("running_var", -1.0, "its running variance is -1 in a channel"),
        ("running_var", -1e-5, "its running variance is -1e-05 in a channel"),
        ("running_mean", float("nan"), "its mean has NaN or infinite values"),
        ("running_var", float("inf"), "its var has NaN or infinite values"),
    ],
)
def test_damaged_statistics_keep_the_norm(buffer: str, value: float, why: str) -> None:
    model = pair()
    getattr(model[1], buffer)[1] = value
    assert why in reason(fold(model, X, verify=False).report)


def test_a_weight_that_is_not_finite_keeps_the_norm_and_is_named() -> None:
    model = pair()
    model[0].weight.data[0, 0] = float("nan")
    assert "0.weight has NaN or infinite values" in reason(fold(model, X, verify=False).report)


def test_out_of_range_keeps_the_norm() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = prepared(model, X).half()
    model[1].weight.data[0] = 6e4
    model[1].running_var[0] = 1e-4
    report = fold(model, verify=False).report
    assert "would leave the range of float16" in reason(report, "1")
    assert [e.name for e in report.folded] == ["3"]


def test_half_precision_is_cast_once() -> None:
    """Folding in float64 and rounding once: each weight is the nearest bfloat16 of the exact product."""
    model = pair().bfloat16()
    exact, _ = folded(pair_of(model), X, prepare=False)
    result = fold(model, verify=False).model
    assert result[0].weight.dtype == torch.bfloat16
    assert torch.equal(result[0].weight, exact[0].weight.bfloat16())


def pair_of(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


class Casts(nn.Module):
    """A layer in one dtype, a norm in another, casts between."""

    def __init__(self, layer: torch.dtype, norm: torch.dtype) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        prepared(nn.Sequential(self.conv, self.norm), X)
        self.conv.to(layer)
        self.norm.to(norm)
        self.types = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.to(self.types[0])).to(self.types[1])).tanh()


def test_through_a_widening_cast_only() -> None:
    wide = Casts(torch.float32, torch.float64).eval()
    result = fold(wide, X, verify=False)
    assert len(result.report.folded) == 1
    assert error(wide, result.model, X) < 1e-5
    narrow = Casts(torch.float64, torch.float32).eval()
    assert len(fold(narrow, X, verify=False).report.kept) == 1


def test_channels_last_weights() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), X)
    model.to(memory_format=torch.channels_last)
    result, _ = folded(model, X.contiguous(memory_format=torch.channels_last), prepare=False)
    assert result[0].weight.stride() == model[0].weight.stride()


def test_a_lazy_norm_asks_for_inputs_and_folds_with_them() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d()).eval()
    report = fold(model.double(), X).report
    assert len(report.folded) == 1


def test_without_example_inputs_what_types_alone_prove() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)
    )
    report = fold(model.eval()).report
    assert [e.name for e in report.folded] == ["1"]
    assert "give example inputs" in reason(report, "4")


def test_batch_of_one_tells_as_much() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.BatchNorm1d(144)), X)
    report = fold(model, X[:1]).report
    assert "more than its channels" in reason(report)


def test_verification_sees_a_weight_that_is_one_percent_off() -> None:
    from bntool.errors import VerificationError
    from bntool.verify import verify

    model = pair()
    result = fold(model, X).model
    result[0].weight.data[0, 0] *= 1.01
    with pytest.raises(VerificationError):
        verify(model, result, X).insist()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_weights_are_worked_on_in_pieces(
    monkeypatch: pytest.MonkeyPatch, memory: torch.memory_format
) -> None:
    monkeypatch.setattr("bntool.tensors.PIECE", 100)
    parts = (nn.Conv2d(3, 11, 3, bias=False), nn.BatchNorm2d(11))
    x = torch.randn(2, 3, 8, 8)
    model = prepared(nn.Sequential(*parts), x.double()).float().to(memory_format=memory)
    result = fold(model, x).model
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = model[0].weight.double() * scale.reshape(-1, 1, 1, 1)
    assert torch.equal(result[0].weight, wanted.float())
    assert result[0].weight.stride() == model[0].weight.stride()


def test_one_channel_of_the_last_piece_out_of_range_keeps_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bntool.tensors.PIECE", 100)
    model = nn.Sequential(nn.Linear(30, 11), nn.BatchNorm1d(11)).eval()
    with torch.no_grad():
        model[0].weight[10, 29] = 3e38
        model[1].weight[10] = 30
    report = fold(model, torch.randn(2, 30), verify=False).report
    assert "0.weight would leave the range of float32" in report.kept[0].reason


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_model_without_data_is_refused_in_words(form: str) -> None:
    with pytest.raises(UsageError, match=r"^0\.weight: it is on the meta device and has no data"):
        fold(pair().to("meta"), X.to("meta"), form=form, merge=form == "graph")


def test_a_variance_below_zero_keeps_the_norm_even_where_eps_makes_up_for_it() -> None:
    """In the model's own float32 the sum may be zero where it is not in float64."""
    model = pair().float()
    model[1].running_var[2] = -model[1].eps
    assert "its running variance is -1e-05 in a channel" in reason(
        fold(model, X.float(), verify=False).report
    )


def test_nothing_is_proven_by_an_empty_batch() -> None:
    with pytest.raises(UsageError, match="the inputs are empty"):
        fold(pair(), X[:0])


def test_under_autocast_outputs_are_as_coarse_as_its_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fold(pair().float(), X.float()).report.verification.ok


def test_tensors_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = pair()
    assert names(fold(model, X).report.folded) == ["1"]


def test_a_norm_alone_has_nothing_to_go_into() -> None:
    assert "it is all there is" in reason(fold(nn.BatchNorm2d(4).eval(), X.float()).report)


class Packed(Tensor):
    """Numbers held in another form, as quantised weights are: operators see them unpacked."""

    inner: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Packed:
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.inner = values.detach() / 2
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = tree_map(lambda v: v.inner * 2 if isinstance(v, Packed) else v, args)
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(plain[0])
        return function(*plain, **(kwargs or {}))


@pytest.mark.parametrize(("packed", "into"), [("conv", "next"), ("next", "conv"), ("norm", ""), ("both", "")])
@pytest.mark.parametrize("form", ["module", "graph"])
def test_tensors_that_say_themselves_how_they_are_computed_with_stay(
    packed: str, into: str, form: str
) -> None:
    def pack(layer: nn.Module) -> None:
        layer.weight = nn.Parameter(Packed(layer.weight.detach()))

    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "next": nn.Conv2d(4, 4, 1)}
    model = prepared(Block(lambda m, x: m.next(m.norm(m.conv(x))), **layers), X)
    for name in ("conv", "next") if packed == "both" else (packed,):
        pack(model.get_submodule(name))
    _, report = folded(model, X, prepare=False, form=form)
    assert [entry.into for entry in report.folded] == [into] * bool(into)
    if packed == "norm":
        assert reason(report) == "norm.weight is a Packed, of whose numbers nothing is known"
