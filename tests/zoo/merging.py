"""`make merging`: graph form with merged branches against timm's own `reparameterize_model`, side by side.

For each network: norms and convolutions that run in the original, in bntool's graph form, in what bntool
makes of its export to `.pt2` and to ONNX, and in timm's form; the relative error in float64 (in float32 for
ONNX), and the latency of the merged over the only folded form (one thread, interleaved). ARGS: names.
"""

from __future__ import annotations

import copy
import io
import logging
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bntool import fold
from tests.random_norms import randomise_norms
from tests.vision import network
from tests.zoo.check import relative_error, run

SIZE = 224
MODELS = (
    "repvgg_a0",
    "mobileone_s0",
    "repvit_m1",
    "fastvit_t8",
    "repghostnet_050",
    "lcnetv2_small",
    "ghostnetv3_050",
    "shvit_s1",
    "efficientvit_b0",
    "efficientvit_m0",
)
ROUNDS = 15
LIMIT = 1e-9
ONNX_LIMIT = 1e-3


class Convolutions(TorchDispatchMode):
    """Counts the convolution kernels that really run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in func.name()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Counts:
    """Kernels that run in one forward pass."""

    norms: int
    convs: int

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> Counts:
        with torch.no_grad(), Convolutions() as convolutions:
            model(x)
        return cls(run(model, (x,))[1], convolutions.count)

    def __str__(self) -> str:
        return f"{self.norms:5}{self.convs:5}"


@dataclass(frozen=True)
class Form:
    """What bntool made of one kind of graph."""

    counts: Counts
    error: float
    limit: float

    def good(self, theirs: Counts) -> bool:
        return self.error <= self.limit and self.counts.norms == 0 and self.counts.convs <= theirs.convs


def program_form(model: nn.Module, x: Tensor) -> Form:
    """Exported to a program, which is merged."""
    merged = fold(torch.export.export(model, (x,)), merge=True, verify=False).model.module()
    error = relative_error(run(merged, (x,))[0], run(model, (x,))[0])
    return Form(Counts.of(merged, x), error, LIMIT)


def onnx_form(model: nn.Module, x: Tensor) -> Form:
    """Exported to ONNX in float32, which is merged and run by ONNX Runtime."""
    file = io.BytesIO()
    torch.onnx.export(model.float(), (x.float(),), file, dynamo=False, do_constant_folding=False)
    before = onnx.load_from_string(file.getvalue())
    merged = fold(before, merge=True, verify=False).model
    ops = [node.op_type for node in merged.graph.node]
    counts = Counts(ops.count("BatchNormalization"), ops.count("Conv") + ops.count("ConvTranspose"))
    old, new = (onnx_outputs(m, x) for m in (before, merged))
    error = max(float(abs(a - b).max() / abs(a).max()) for a, b in zip(old, new, strict=True))
    return Form(counts, error, ONNX_LIMIT)


def onnx_outputs(model: onnx.ModelProto, x: Tensor) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, {session.get_inputs()[0].name: x.float().numpy()}))


def latency_ratio(candidate: nn.Module, baseline: nn.Module, x: Tensor) -> float:
    """The median of paired ratios."""
    ratios = []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            times = []
            for model in (candidate, baseline):
                start = time.perf_counter()
                model(x)
                times.append(time.perf_counter() - start)
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def compare(name: str) -> tuple[str, bool]:
    """A line of the table, and whether it is as good as asked."""
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.double)
    model = randomise_norms(network("timm", name).double(), (x,))
    merged = fold(model, (x,), form="graph", merge=True, verify=False).model
    error = relative_error(run(merged, (x,))[0], run(model, (x,))[0])
    theirs = Counts.of(reparameterize_model(copy.deepcopy(model).float()), x.float())
    before = Counts.of(model, x)
    forms = [Form(Counts.of(merged, x), error, LIMIT), program_form(model, x)]
    folded = fold(model, (x,), verify=False).model
    ratio = latency_ratio(merged.float(), folded.float(), x[:1].float())
    forms.append(onnx_form(model, x))
    good = all(form.good(theirs) for form in forms)
    cells = "".join(f"  {form.counts}{form.error:9.1e}" for form in forms)
    return f"{name:16}{before}{cells}  {theirs}{ratio:8.2f}  {'ok' if good else 'NOT AS ASKED'}", good


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "_one":
        warnings.simplefilter("ignore")
        logging.disable()
        torch.set_num_threads(1)
        line, good = compare(sys.argv[2])
        print(line)
        return 0 if good else 1
    ours = "".join(f"  {form:>10}{'':9}" for form in ("graph form", ".pt2", ".onnx"))
    print(f"{'':16}{'original':>10}{ours}  {'timm':>10}{'latency':>9}")
    print(f"{'':16}norms conv" + "  norms conv    error" * 3 + "  norms conv vs folded")
    codes = [one(name) for name in sys.argv[1:] or MODELS]
    return max(codes, default=0)


def one(name: str) -> int:
    command = [sys.executable, "-m", "tests.zoo.merging", "_one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout or done.stderr).strip().splitlines()[-1]
    print(last if done.stdout else f"{name:20} failed: {last}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
