"""Every runtime, one file each, behind one protocol: the same outputs, facts, a profile, a time."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from bntool.bench.equality import Answer, allowed_error, compare_outputs
from bntool.bench.onnx_facts import onnx_facts
from bntool.bench.protocol import Candidate, Conditions
from bntool.bench.runtimes import BUILTIN, runtime
from bntool.bench.runtimes.base import Session
from bntool.bench.source import Source, rebatch
from bntool.bench.torch_facts import torch_facts
from bntool.errors import BntoolError, UsageError
from tests.bench import nets

REF = f"{Path(nets.__file__)}:net(norm=True)"
#: minutes of C++ compilation
SLOW = ("compile", "aoti")


def source(name: str, conditions: Conditions | None = None, **options: object) -> Source:
    return Source(Candidate(name, REF, name, dict(options)), conditions or Conditions())


def opened(name: str, folder: Path, conditions: Conditions | None = None, **options: object) -> Session:
    known, chosen = runtime(name), source(name, conditions, **options)
    if known.builds:
        built = known.build(chosen, folder)
        made = Candidate(name, REF, name, dict(options), artefact=str(built))
        chosen = Source(made, conditions or Conditions())
    session = known.open(chosen)
    session.activate()
    return session


def answer(session: Session) -> Answer:
    names, arrays = zip(*session.outputs(), strict=True)
    return Answer(names, arrays)


def named() -> list[object]:
    marks = {n: [pytest.mark.slow] for n in SLOW}
    missing = find_spec("openvino") is None
    marks["openvino"] = [pytest.mark.skipif(missing, reason="the extra openvino is not installed")]
    return [pytest.param(r.name, marks=marks.get(r.name, [])) for r in BUILTIN]


@pytest.mark.parametrize("name", named())
def test_a_runtime_gives_the_eager_outputs_and_can_be_timed(name: str, tmp_path: Path) -> None:
    session = opened(name, tmp_path, threads=1)
    expected, found = answer(opened("eager", tmp_path)), answer(session)
    assert [o.shape for o in found.arrays] == [o.shape for o in expected.arrays]
    assert compare_outputs(expected, found, allowed_error(["float32"], layers=2)).equal
    session.run()
    assert 1e-6 < session.clock.time(session.run, 3) < 1.0
    facts = session.facts()
    assert facts["norms"] == (0 if name in ("onnx", "openvino") else 1)  # the exporter folds it
    assert sum(session.profile().values()) > 0 or name == "openvino"


def test_conditions_reach_the_model_and_its_inputs(tmp_path: Path) -> None:
    half = Conditions(dtype="bfloat16", channels_last=True, batch=5, threads=2)
    session = opened("eager", tmp_path, half)
    (x,) = session.args  # type: ignore[attr-defined]
    assert x.dtype is torch.bfloat16
    assert x.shape[0] == 5
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert answer(session).arrays[0].shape == (5, 4)
    assert session.facts()["dtype"] == "bfloat16"


def test_training_does_all_three_and_leaves_the_weights(tmp_path: Path) -> None:
    session = opened("eager", tmp_path, Conditions(mode="train"))
    module = session.module  # type: ignore[attr-defined]
    before = module.conv.weight.clone()
    buffers = module.norm.running_mean.clone()
    session.run()
    assert module.conv.weight.grad is not None
    assert torch.equal(module.conv.weight, before)
    assert not torch.equal(module.norm.running_mean, buffers)
    assert np.array_equal(answer(session).arrays[0], answer(session).arrays[0])
    assert module.training


def test_a_graph_needs_cuda(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CUDA"):
        opened("eager", tmp_path, graph=True)


def test_ort_levels_are_named(tmp_path: Path) -> None:
    assert opened("onnx", tmp_path, level="none").outputs()
    with pytest.raises(UsageError, match="none, basic, all"):
        opened("onnx", tmp_path, level="most")


def test_an_onnx_file_runs_as_it_is_and_not_under_eager(tmp_path: Path) -> None:
    path = runtime("onnx").build(source("onnx"), tmp_path)
    given = tmp_path / "inputs.pt"
    torch.save(nets.example_inputs(), given)
    conditions = Conditions(inputs=str(given))
    file = Source(Candidate("f", str(path), "onnx", artefact=str(path)), conditions)
    assert runtime("onnx").build(file, tmp_path) == path
    assert answer(runtime("onnx").open(file)).arrays[0].shape == (2, 4)
    with pytest.raises(UsageError, match="@onnx"):
        Source(Candidate("f", str(path), "eager"), conditions).module()


def test_counts_of_a_known_network() -> None:
    model, inputs = nets.net(norm=True).eval(), nets.example_inputs()
    facts = torch_facts(model, lambda: model(*inputs))
    assert facts["params"] == 8 * 8 * 9 + 8 + 16 + 8 * 4 + 4
    assert facts["size_bytes"] == 4 * (facts["params"] + 16) + 8  # running statistics, and the batch counter
    assert facts["macs"] == 2 * (8 * 8 * 9 * 24 * 24 + 8 * 4)
    assert facts["norms_by_kind"] == {"batch_norm": 1}
    assert facts["layers"] == 2


def test_counts_of_the_same_network_as_onnx(tmp_path: Path) -> None:
    facts = onnx_facts(runtime("onnx").build(source("onnx"), tmp_path))
    assert facts["macs"] == 2 * (8 * 8 * 9 * 24 * 24 + 8 * 4)
    assert facts["layers"] == 2
    assert facts["norms"] == 0


def test_a_batch_repeats_samples() -> None:
    x = torch.arange(6).reshape(3, 2)
    assert torch.equal(rebatch(x, 5), x[[0, 1, 2, 0, 1]])
    assert torch.equal(rebatch(x, 2), x[:2])
    assert rebatch(torch.tensor(3), 7).item() == 3


def test_a_live_module_that_cannot_be_found_again_is_a_load_error(tmp_path: Path) -> None:
    path = tmp_path / "live"
    path.write_bytes(b"not a pickle")
    with pytest.raises(BntoolError, match="cannot be sent"):
        _ = Source(Candidate("a", "a", live=str(path)), Conditions()).loaded
