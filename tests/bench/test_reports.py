"""What a run writes: tables, Markdown, CSV, JUnit, GitHub's commands, history, stored ratios."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from bntool.bench import history, publish, rows, stored
from bntool.bench.page import bench_page
from bntool.bench.plan import Budgets, Gate
from bntool.bench.result import Comparison
from bntool.bench.run import run_cases
from bntool.bench.selftest import add_sensitivity
from bntool.bench.sequential import SHARED, detectable
from bntool.bench.verdict import Verdict
from bntool.cli.bench_output import Files, deliver
from bntool.cli.screen import plain
from bntool.errors import LoadError, RunError
from tests.bench.fake import EFFORT, Machine, case

COSTS = {"base": 0.010, "equal": 0.010, "slow": 0.0115, "a|b": 0.010}


@pytest.fixture(scope="module")
def found() -> Comparison:
    machine = Machine(COSTS, answers={"a|b": [1.0, 9.0]}, kills={"equal": "open"})
    gate = Gate(budgets=Budgets(max_norms=1))
    return run_cases([case("base", "slow", "a|b", "equal", gate=gate)], EFFORT, spawn=machine.spawn)


@pytest.fixture(scope="module")
def document(found: Comparison) -> dict[str, object]:
    return plain(found.to_dict())


def test_tables_have_their_columns(document: dict[str, object]) -> None:
    for columns, lines in (
        (rows.COMPARISONS, rows.comparisons(document)),
        (rows.CANDIDATES, rows.candidates(document)),
        (rows.FACTS, rows.facts(document)),
    ):
        assert lines
        assert all(len(line) == len(columns) for line in lines)


def test_remarks_say_what_a_reader_must_know(document: dict[str, object]) -> None:
    said = "\n".join(rows.remarks(document))
    assert "outputs differ" in said
    assert "max_norms is 2, the budget 1" in said
    assert "SIGKILL" in said
    assert "confirmed on fresh workers" in said


def test_markdown_keeps_its_table_whole(document: dict[str, object]) -> None:
    text = publish.markdown(document)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert "a\\|b" in text
    assert all(line.replace("\\|", "").count("|") == table[0].count("|") for line in table[:5])


def test_csv_has_a_line_per_candidate(document: dict[str, object]) -> None:
    lines = list(csv.DictReader(io.StringIO(publish.csv(document))))
    assert [line["model"] for line in lines] == ["base #0", "slow #1", "a|b #2", "equal #3"]
    assert float(lines[1]["ratio"]) == pytest.approx(1.15, rel=0.02)
    assert lines[3]["failure"]


def test_junit_says_failed_and_error(document: dict[str, object]) -> None:
    root = Xml.fromstring(publish.junit(document))
    tests = {t.get("name"): [child.tag for child in t] for t in root.iter("testcase")}
    assert tests["slow #1"] == ["failure"]
    assert tests["equal #3"] == ["error"]
    assert root[0].get("failures") == "2"


def test_github_gets_an_error_and_one_line_each(document: dict[str, object]) -> None:
    lines = publish.workflow_commands(document)
    assert lines[0].startswith("::error title=bntool bench::slow #1")
    assert all("\n" not in line for line in lines)


def test_history_grows_by_a_line_a_run(document: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for revision in ("aaa", "bbb"):
        line = history.line_of(document, now=datetime(2030, 1, 1, tzinfo=UTC), revision=revision)
        history.append(path, line)
    past = history.read(path)
    assert [line["revision"] for line in past] == ["aaa", "bbb"]
    assert past[0]["comparisons"][0]["estimate"] == pytest.approx(1.15, rel=0.02)
    path.write_text('{"other": 1}\n')
    with pytest.raises(LoadError, match="line 1"):
        history.read(path)


def test_the_page_is_whole_and_needs_nothing_else(document: dict[str, object]) -> None:
    line = history.line_of(document, revision="<script>")
    page = bench_page(document, [line, line])
    assert page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "src=" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    for part in ("base #0", "slow #1", "inconclusive", "Contention over time", "prefers-color-scheme"):
        assert part in page


def test_a_file_that_cannot_be_written_costs_only_itself(
    found: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of timing went into it: the rest is written, and the one document is on stdout all the same."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    past = tmp_path / "history.jsonl"
    nowhere = tmp_path / "no folder" / "history.jsonl"
    files = Files(tmp_path / "out.csv", None, None, tmp_path / "out.html", nowhere, None)
    with pytest.raises(RunError, match="cannot be written"):
        deliver(found, None, files, as_json=True, force=False, profile=False)
    assert json.loads(capsys.readouterr().out)["exit_code"] == found.exit_code
    assert {p.name for p in tmp_path.iterdir()} == {"out.csv", "out.html"}
    past.write_text("not ours\n")
    with pytest.raises(LoadError, match="line 1"):
        Files(None, None, None, None, past, None).check(force=False)


def reference_run(machine: Machine, cost: float, seed: int = 0) -> Comparison:
    machine = Machine({stored.REFERENCE.ref: 0.004, "net": cost}, seed=seed)
    gated = stored.case_of([case("net").candidates[0]], Gate(), case("net").conditions)
    return run_cases(
        [gated], EFFORT.__class__(budget_s=6.0, replicates=6, confirm=False), spawn=machine.spawn
    )


def test_a_stored_ratio_survives_a_slower_runner_and_finds_a_slower_model() -> None:
    then = json.loads(json.dumps(stored.document(reference_run(Machine({}), 0.010))))
    same = stored.against(reference_run(Machine({}), 0.010, seed=1), then, "file", "pass")
    slow = stored.against(reference_run(Machine({}), 0.012, seed=2), then, "file", "pass")
    assert same.comparisons[0].verdict is Verdict.SAME
    assert slow.comparisons[0].verdict is Verdict.SLOWER
    assert (same.exit_code, slow.exit_code) == (0, 1)
    assert slow.comparisons[0].ratio.low < 1.2 < slow.comparisons[0].ratio.high


def test_a_baseline_from_elsewhere_is_inconclusive_and_says_what_changed() -> None:
    then = stored.document(reference_run(Machine({}), 0.010))
    then["machine"] = then["machine"] | {"cpu": "another"}
    then["fingerprint"] = "0" * 16
    found = stored.against(reference_run(Machine({}), 0.020), then, "file", "exit5")
    assert found.comparisons[0].verdict is Verdict.INCONCLUSIVE
    assert "another" in found.comparisons[0].why
    assert found.exit_code == 5


def kept(numbers: object) -> str:
    """A stored baseline that is right but for the numbers of its one entry."""
    parts: dict[str, object] = {"machine": {}, "versions": {}, "conditions": {}, "entries": {"a": numbers}}
    return json.dumps({"kind": stored.KIND, "fingerprint": "0" * 16, **parts})


def test_a_model_without_a_stored_ratio_is_refused_before_anything_is_timed() -> None:
    then = json.loads(kept({"mean": 0.1, "error": 0.1, "replicates": 6}))
    stored.check_names(then, ["a"], "file")
    with pytest.raises(LoadError, match="no ratio for b; it has a"):
        stored.check_names(then, ["a", "b"], "file")


def test_a_stored_ratio_fails_only_where_a_second_run_says_the_same() -> None:
    then = json.loads(json.dumps(stored.document(reference_run(Machine({}), 0.010))))
    slow, same, slow_again = (
        stored.against(reference_run(Machine({}), cost, seed), then, "file", "exit5")
        for cost, seed in ((0.012, 1), (0.010, 2), (0.012, 3))
    )
    assert stored.confirmed(slow, slow_again, "exit5").exit_code == 1
    alarm = stored.confirmed(slow, same, "exit5")
    assert alarm.comparisons[0].verdict is Verdict.INCONCLUSIVE
    assert "fresh workers gave" in alarm.comparisons[0].why
    assert alarm.exit_code == 5


def test_nothing_is_stored_of_a_model_that_could_not_be_timed() -> None:
    costs = {stored.REFERENCE.ref: 0.004, "net": 0.01, "bad": 0.01}
    machine = Machine(costs, kills={"bad": "sample"})
    gated = stored.case_of(case("net", "bad").candidates, Gate(), case("net").conditions)
    found = run_cases([gated], replace(EFFORT, confirm=False), spawn=machine.spawn)
    with pytest.raises(RunError, match="nothing is stored"):
        stored.document(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"latency_s": 0.0066}', "holds no ratios"),
        ('{"median": 1.0, "kind": "benchmark"}', "holds no ratios"),
        ("[]", "holds no ratios"),
        ("not json", "cannot read"),
        (kept({"mean": math.nan, "error": 0.1, "replicates": 5}), "not a finite number"),
        (kept({"mean": "0.1", "error": 0.1, "replicates": 5}), "not a finite number"),
        (kept({"mean": 0.1, "error": 0.1}), "not a finite number"),
        (kept({"mean": 0.1, "error": 0.1, "replicates": 1}), "not a finite number"),
        (kept(None), "not a finite number"),
        (json.dumps({"kind": stored.KIND, "entries": {}}), "it has no machine"),
    ],
)
def test_raw_times_and_broken_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=message):
        stored.read(path)


def test_the_smallest_detectable_effect_is_found_as_often_as_it_says() -> None:
    between, hits, trials = 0.02, 0, 60
    effect = detectable(between, SHARED, 0.05)
    for seed in range(trials):
        machine = Machine(
            {"a": 0.01, "b": 0.01 * (1 + effect)}, between=between / math.sqrt(2), within=0.001, seed=seed
        )
        one = run_cases([case("a", "b")], EFFORT.__class__(budget_s=1.0, precision=1e-6), spawn=machine.spawn)
        hits += one.comparisons[0].ratio.low > 1.0
    assert 0.65 <= hits / trials <= 0.97


def test_a_self_test_warns_of_a_tolerance_that_is_too_fine() -> None:
    machine = Machine({"a": 0.01}, between=0.03)
    found = add_sensitivity(
        run_cases([case("a", "a", gate=Gate(tolerance=0.01))], EFFORT, spawn=machine.spawn)
    )
    assert any("would be found" in n for n in found.notes)
    assert any("is below that" in n for n in found.notes)
