"""How things are written: units, candidates, revisions, suites, waivers; and what is refused, with advice."""

from __future__ import annotations

from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest

from bntool.bench import units
from bntool.bench.candidates import labelled, parse, under
from bntool.bench.cases import with_file
from bntool.bench.plan import Effort, Gate
from bntool.bench.request import split
from bntool.bench.runtimes import BUILTIN, runtime
from bntool.bench.suite import suite
from bntool.bench.waivers import Waiver
from bntool.errors import UsageError

NEEDS_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is an extra")


@pytest.mark.parametrize(
    ("text", "value"), [("10s", 10.0), ("0.1ms", 1e-4), ("5 us", 5e-6), ("2m", 120.0), ("3", 3.0), (1.5, 1.5)]
)
def test_times(text: str, value: float) -> None:
    assert units.seconds(text, "x") == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), (0.1, 0.1), ("2.5 %", 0.025)])
def test_shares(text: str, value: float) -> None:
    assert units.share(text, "x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "1", 95, "3e0"])
def test_a_share_of_whole_numbers_is_asked_back(text: str) -> None:
    """A gate of --tolerance 5 would let everything through that takes up to six times as long."""
    with pytest.raises(UsageError, match="00%"):
        units.share(text, "--tolerance")
    assert units.share("900%", "--tolerance") == pytest.approx(9.0)


@pytest.mark.parametrize(("text", "value"), [("12MB", 12_000_000), ("1.5M", 1_500_000), ("300", 300)])
def test_counts(text: str, value: int) -> None:
    assert units.count(text, "x") == value


@pytest.mark.parametrize(("text", "value"), [("1.2x", 1.2), ("1.2", 1.2), ("20%", 1.2)])
def test_speedups(text: str, value: float) -> None:
    assert units.speedup(text, "x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "ten", "5 parsecs", "--", "1..2s"])
def test_what_is_no_number_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="Write"):
        units.seconds(text, "--budget")


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5 s"), (0.00123, "1.23 ms"), (2.5e-5, "25 us"), (9e-8, "90 ns"), (None, "-")]
)
def test_times_are_shown_with_three_digits(value: float | None, text: str) -> None:
    assert units.show_s(value) == text


@pytest.mark.parametrize(
    ("text", "ref", "name", "options"),
    [
        ("a.py:net", "a.py:net", "eager", {}),
        ("a.py:net@onnx", "a.py:net", "onnx", {}),
        ("a.py:net(depth=3)@compile(threads=2)", "a.py:net(depth=3)", "compile", {"threads": 2}),
        ("m.onnx", "m.onnx", "onnx", {}),
        pytest.param("m.onnx@openvino", "m.onnx", "openvino", {}, marks=NEEDS_OPENVINO),
        ('a.py:net(name="x@y")', 'a.py:net(name="x@y")', "eager", {}),
        ("a.py:net@ort", "a.py:net", "onnx", {}),
    ],
)
def test_candidates(text: str, ref: str, name: str, options: dict[str, int]) -> None:
    found = parse(text)
    assert (found.ref, found.runtime, found.options) == (ref, name, options)


@pytest.mark.parametrize(
    "text", ["a.py:net@tensorrt", "a.py:net@onnx(speed=9)", "a.py:net@onnx(threads=two)"]
)
def test_unknown_runtimes_and_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"Use one of|It takes|literal"):
        parse(text)


def test_a_runtime_for_all_keeps_a_candidates_own_options() -> None:
    assert under(parse("a.py:net@eager(threads=2)"), "onnx").options == {"threads": 2}
    assert [c.name for c in labelled([parse("a.py:net"), parse("a.py:net")])] == ["a.py:net", "a.py:net #2"]


def test_runtimes_have_names_of_their_own_and_take_threads() -> None:
    assert len({r.name for r in BUILTIN}) == len(BUILTIN)
    assert all("threads" in r.options for r in BUILTIN)
    assert all(runtime(r.name) is r for r in BUILTIN if r.name != "openvino")


def test_weights_are_for_factories_and_files_bring_their_own() -> None:
    found = [with_file(parse(ref), False, "w.safetensors").weights for ref in ("a.py:net", "m.onnx", "m.pt2")]
    assert found == ["w.safetensors", None, None]


def test_commas_inside_parentheses_stay() -> None:
    assert split(["eager,onnx(threads=2,level='all')", "aoti"]) == (
        "eager",
        "onnx(threads=2,level='all')",
        "aoti",
    )


@pytest.mark.parametrize("value", [0.0, -0.1, 20.0, float("nan")])
def test_a_tolerance_that_switches_the_gate_off_is_refused(value: float) -> None:
    with pytest.raises(UsageError):
        Gate(tolerance=value)
    with pytest.raises(UsageError):
        Effort(confidence=value)


SETTINGS = {
    "bench": {
        "cases": {
            "folded": {
                "models": ["a.py:net", "a.py:folded"],
                "batch": [1, 8],
                "tolerance": "3%",
                "floor": "0.1ms",
                "budgets": {"max_norms": 0},
                "waivers": [
                    {"match": "*folded", "until": date(2030, 1, 1), "reason": "waiting for a release"}
                ],
            },
            "other": {"models": ["b.py:x", "b.py:y"], "mode": "train", "min_speedup": "1.1x"},
        }
    }
}


def test_a_suite_is_read_from_settings() -> None:
    found = suite(SETTINGS)
    assert [c.name for c in found.cases] == ["folded, batch 1", "folded, batch 8", "other"]
    first, _, other = found.cases
    assert first.gate == Gate(0.03, 1e-4, None, first.gate.budgets)
    assert first.gate.budgets.max_norms == 0
    assert other.conditions.mode == "train"
    assert other.gate.min_speedup == pytest.approx(1.1)
    assert found.waivers["folded, batch 8"][0].covers("a.py:folded", date(2029, 12, 31))


def test_cases_are_chosen_by_glob() -> None:
    assert [c.name for c in suite(SETTINGS, only=["oth*"]).cases] == ["other"]


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ({}, "no cases"),
        ({"a": {"models": ["x.py:y", "x.py:z"], "tolerence": 1}}, "unknown key 'tolerence'"),
        ({"a": {"tolerance": 1}}, "names no models"),
        (3, "is not a table"),
        ({"a": 3}, "is not a table"),
        *(
            ({"a": {"models": ["x.py:y", "x.py:z"], key: value}}, message)
            for key, value, message in (
                ("threads", "two", "is not a number"),
                ("threads", True, "is not a number"),
                ("batch", ["x"], "is not a number"),
                ("batch", [0], "at least one sample"),
                ("input", 3, "is not a string or a list"),
                ("channels_last", "no", "is not true or false"),
                ("device", ["cpu"], "is not a string"),
                ("weights", 5, "is not a string"),
                ("tolerance", True, "is not a string or a number"),
                ("waivers", {"match": "x"}, "is not a list"),
                ("waivers", ["x"], "is not a table"),
                ("budgets", 3, "is not a table"),
                ("budgets", {"max_norms": "0"}, "max_norms is '0'"),
                ("budgets", {"max_ops": True}, "is True"),
                ("mode", "trian", "unknown mode"),
                ("min_speedup", 0.5, "is none"),
                ("floor", "-1ms", "cannot read"),
            )
        ),
        ({"a": {"models": ["x.py:y"]}}, "at least one other"),
        ({"a": {"models": ["x.py:y", "x.py:z"], "budgets": {"norms": 1}}}, "unknown budget"),
        ({"a": {"models": ["x.py:y", "x.py:z"], "waivers": [{"reason": "because"}]}}, "has no 'until'"),
        ({"a": {"models": ["x.py:y", "x.py:z"], "waivers": [{"until": "2030-01-01"}]}}, "has no 'reason'"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(cases: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        suite({"bench": {"cases": cases}})


def test_a_waiver_names_a_day() -> None:
    with pytest.raises(UsageError, match="Write 2030-12-31"):
        Waiver.from_dict({"until": "soon", "reason": "x"}, "here")


def test_no_runtime_is_imported_to_name_one() -> None:
    import subprocess
    import sys

    code = "import sys; from bntool.bench.candidates import parse; parse('a.py:b@onnx'); " + (
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
