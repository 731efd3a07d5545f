"""Whole runs on a made-up machine: verdicts, gates, confirmation, failures, contention, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from bntool.bench.contention import Moment
from bntool.bench.judge import Waivers
from bntool.bench.plan import Budgets, Gate
from bntool.bench.remote import WorkerDied
from bntool.bench.result import Comparison, PairResult
from bntool.bench.run import run_cases
from bntool.bench.verdict import Verdict
from bntool.bench.waivers import Waiver
from bntool.errors import RunError
from tests.bench.fake import EFFORT, Machine, case

COSTS = {"base": 0.010, "equal": 0.010, "slow": 0.0115, "fast": 0.0085, "little": 0.0103}


def run(machine: Machine, *cases, **options) -> Comparison:
    options = {"effort": EFFORT, **options}
    found = run_cases(cases, options.pop("effort"), spawn=machine.spawn, **options)
    assert machine.open_now == 0, "a worker was left running"
    return found


def only(found: Comparison) -> PairResult:
    (pair,) = found.comparisons
    return pair


@pytest.mark.parametrize(
    ("other", "verdict", "code"),
    [
        ("equal", Verdict.SAME, 0),
        ("slow", Verdict.SLOWER, 1),
        ("fast", Verdict.FASTER, 0),
        ("little", Verdict.SAME, 0),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["one process", "two processes"])
def test_a_verdict_follows_the_truth(other: str, verdict: Verdict, code: int, apart: bool) -> None:
    found = run(Machine(COSTS), case("base", other, apart=apart))
    assert only(found).verdict is verdict
    assert found.exit_code == code
    truth = COSTS[other] / COSTS["base"]
    assert only(found).ratio.low <= truth <= only(found).ratio.high


def test_the_same_model_passes_fifty_times_in_a_row() -> None:
    short = replace(EFFORT, budget_s=2.0)
    machines = [Machine(COSTS, between=0.01, seed=s) for s in range(50)]
    codes = [run(m, case("base", "equal"), effort=short).exit_code for m in machines]
    assert codes == [0] * 50


def test_a_failing_gate_is_confirmed_on_fresh_workers() -> None:
    machine = Machine(COSTS)
    found = run(machine, case("base", "slow"))
    confirmation = only(found).confirmation
    assert confirmation is not None
    assert confirmation.low > 1.0
    replicates = found.cases[0].run["replicates"]
    # two examinations, the replicates, the clock's cost, and as many replicates again
    assert machine.processes == 2 + replicates + 1 + replicates


def test_a_failure_that_does_not_come_back_is_inconclusive() -> None:
    machine = Machine(COSTS, change=lambda process: 1.2 if process < 7 else 1.0)
    found = run(machine, case("base", "equal"))
    assert only(found).verdict is Verdict.INCONCLUSIVE
    assert "fresh workers" in only(found).why
    assert found.exit_code == 0


def test_without_confirmation_it_is_reported_at_once() -> None:
    machine = Machine(COSTS, change=lambda process: 1.2 if process < 7 else 1.0)
    found = run(machine, case("base", "equal"), effort=replace(EFFORT, confirm=False))
    assert found.exit_code == 1


@pytest.mark.parametrize(("meaning", "code"), [("pass", 0), ("fail", 1), ("exit5", 5)])
def test_what_inconclusive_means_is_asked_for(meaning: str, code: int) -> None:
    machine = Machine(COSTS | {"near": 0.0105}, between=0.05)
    found = run(machine, case("base", "near"), on_inconclusive=meaning)
    assert only(found).verdict is Verdict.INCONCLUSIVE
    assert "would find a change of" in only(found).why
    assert found.exit_code == code


@pytest.mark.parametrize("how", ["breaks", "kills"])
@pytest.mark.parametrize("op", ["open", "facts", "sample"])
def test_a_broken_candidate_costs_only_its_own_figures(how: str, op: str) -> None:
    machine = Machine(COSTS, **{how: {"fast": op}})
    found = run(machine, case("base", "fast", "slow"), on_inconclusive="fail")
    broken, slow = found.comparisons
    assert broken.verdict is Verdict.INCONCLUSIVE
    assert broken.why
    assert slow.verdict is Verdict.SLOWER
    figures = {f.name: f for f in found.candidates}
    assert figures["fast #1"].failure
    assert figures["fast #1"].latency is None
    assert figures["slow #2"].latency is not None


def test_a_run_with_nothing_else_wrong_but_a_broken_candidate_is_no_success() -> None:
    assert run(Machine(COSTS, kills={"fast": "open"}), case("base", "fast", "equal")).exit_code == 4


def test_a_run_with_nothing_left_to_compare_ends_with_the_reason() -> None:
    with pytest.raises(RunError, match="fast broke"):
        run(Machine(COSTS, breaks={"fast": "open"}), case("base", "fast"))


@pytest.mark.parametrize("op", ["save_inputs", "open", "sample"])
def test_a_broken_baseline_ends_the_run(op: str) -> None:
    with pytest.raises(RunError, match="base"):
        run(Machine(COSTS, breaks={"base": op}), case("base", "equal"))


def test_models_that_differ_are_never_faster_without_the_warning() -> None:
    found = run(Machine(COSTS, answers={"fast": [1.0, 2.5]}), case("base", "fast"))
    assert only(found).verdict is Verdict.FASTER
    assert "differ" in only(found).warning
    assert only(found).headline != "faster"
    assert only(found).headline.startswith("faster (but outputs differ")


def test_outputs_with_a_hole_differ() -> None:
    found = run(Machine(COSTS, answers={"fast": [1.0, float("nan")]}), case("base", "fast"))
    assert only(found).outputs is not None
    assert not only(found).outputs.equal


def test_budgets_need_no_clock_and_their_own_exit_codes() -> None:
    machine = Machine(COSTS, facts={"fast": {"norms": 3}}, answers={"fast": [1.0, 2.1]})
    norms = Gate(budgets=Budgets(max_norms=2))
    assert run(machine, case("base", "fast", gate=norms)).exit_code == 1
    error = Gate(budgets=Budgets(max_error=0.01))
    assert run(machine, case("base", "fast", gate=error)).exit_code == 6
    wide = Gate(budgets=Budgets(max_norms=3, max_error=0.1))
    assert run(machine, case("base", "fast", gate=wide)).exit_code == 0


def test_a_figure_that_is_not_known_fails_its_budget() -> None:
    machine = Machine(COSTS, facts={"fast": {"macs": None}})
    assert run(machine, case("base", "fast", gate=Gate(budgets=Budgets(max_macs=10)))).exit_code == 1


@pytest.mark.parametrize(("least", "code"), [(1.05, 0), (1.5, 1)])
def test_a_speedup_can_be_demanded(least: float, code: int) -> None:
    assert run(Machine(COSTS), case("base", "fast", gate=Gate(min_speedup=least))).exit_code == code


def test_waiting_for_a_cpu_explains_a_slowdown_away() -> None:
    machine = Machine(COSTS, waits={"equal": 0.002})
    found = run(machine, case("base", "equal"))
    assert only(found).verdict is Verdict.INCONCLUSIVE
    assert "waiting for a CPU" in only(found).why


def test_a_slowdown_that_is_more_than_waiting_stands() -> None:
    machine = Machine(COSTS, waits={"slow": 0.0005, "base": 0.0005})
    assert only(run(machine, case("base", "slow"))).verdict is Verdict.SLOWER


def test_a_hypervisor_that_takes_the_machine_leaves_nothing_to_conclude(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for a demanded speedup, either."""
    moments = iter(Moment(30 * k, 100 * k, 0, 0.0, None) for k in range(10**6))
    monkeypatch.setattr(Moment, "now", classmethod(lambda cls: next(moments)))
    for gate in (Gate(), Gate(min_speedup=1.2)):
        found = run(Machine(COSTS), case("base", "slow", gate=gate), on_inconclusive="exit5")
        assert only(found).verdict is Verdict.INCONCLUSIVE
        assert "hypervisor gave 30%" in only(found).why
        assert found.exit_code == 5


def test_a_demanded_speedup_is_measured_until_it_is_decided() -> None:
    """1.15 times faster is certain soon, whether that is 1.2 times is not."""
    machine = Machine(COSTS, between=0.01)
    one = run(machine, case("base", "fast", gate=Gate(min_speedup=1.2)), on_inconclusive="exit5")
    assert one.cases[0].run["replicates"] > 4
    assert only(one).clock == ("fail" if one.exit_code == 1 else "inconclusive")


def test_a_worker_that_cannot_be_started_ends_the_run() -> None:
    machine = Machine(COSTS)

    def spawn(side, candidates, conditions):
        if len(candidates) == 2:
            raise WorkerDied("the process ended with exit code 1", None)
        return machine.spawn(side, candidates, conditions)

    with pytest.raises(RunError, match="cannot be started"):
        run_cases([case("base", "equal")], EFFORT, spawn=spawn)
    assert machine.open_now == 0


def test_a_crash_is_no_difference_of_outputs() -> None:
    gate = Gate(budgets=Budgets(max_error=0.1))
    found = run(Machine(COSTS, kills={"fast": "open"}), case("base", "fast", "equal", gate=gate))
    assert found.exit_code == 1


def test_several_cases_are_one_family() -> None:
    cases = [case("base", "equal", name=f"case {i}") for i in range(10)]
    found = run(Machine(COSTS), *cases)
    assert len(found.comparisons) == 10
    shares = [p.ratio.confidence for p in found.comparisons]
    assert max(shares) > 0.995  # 95 % for the family, times a look's share, over ten
    assert all(p.verdict is Verdict.SAME for p in found.comparisons)


def test_a_waiver_lets_a_failure_through_until_it_ends() -> None:
    waiver = Waiver("slow*", date(2030, 5, 1), "known, see the tracker")
    for today, code in ((date(2030, 5, 1), 0), (date(2030, 5, 2), 1)):
        waivers = Waivers({"case": (waiver,)}, today)
        found = run(Machine(COSTS), case("base", "slow"), waivers=waivers)
        assert found.exit_code == code
        assert bool(only(found).waived) == (code == 0)
        assert any("ended" in n for n in found.notes) == (code == 1)


def test_precision_goes_on_where_a_decision_would_stop() -> None:
    eager = run(Machine(COSTS, between=0.01), case("base", "slow"))
    exact = run(Machine(COSTS, between=0.01), case("base", "slow"), effort=replace(EFFORT, precision=0.001))
    assert eager.cases[0].run["replicates"] == 4
    assert exact.cases[0].run["replicates"] == 9
    assert only(exact).ratio.half_width < only(eager).ratio.half_width


def test_every_sample_is_in_the_document_and_it_is_json() -> None:
    found = run(Machine(COSTS), case("base", "equal"))
    document = json.loads(json.dumps(found.to_dict()))
    assert document["schema_version"] == 1
    (entry,) = document["cases"]
    for replicate, rounds in zip(entry["replicates"], entry["run"]["rounds"], strict=True):
        assert len(replicate["took_s"]) == 2 * rounds
    (pair,) = document["comparisons"]
    assert {"estimate", "low", "high"} <= set(pair["ratio"])
    assert document["candidates"][0]["latency"]["samples"] == sum(entry["run"]["rounds"])
