"""A study needs no options on any sample model: data are fitted, said so, and all seven claims come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import few, findings_of, setting_of, tiny_for

from bntool.study.outline import check_arms, prepare
from bntool.study.plan import CLAIMS, Plan
from bntool.study.source import source_of
from bntool.study.verdict import Verdict

FOLDER = Path("sample_models")
SAMPLES = sorted(p.stem for p in FOLDER.glob("*.py"))
#: the rest is slow
QUICK = ("mlp",)


def ref(name: str) -> str:
    return f"{FOLDER / name}.py:{name}"


@pytest.mark.parametrize("name", SAMPLES)
def test_data_and_arms_fit_every_sample_model(name: str) -> None:
    setting = prepare(source_of(ref(name)), "digits", None, None)
    check_arms(setting, Plan())
    if name not in ("lenet", "resnet"):
        assert len(setting.data.notes) > 1, "what was done to the data has to be said"


def every_claim(name: str) -> None:
    setting = few(setting_of(ref(name)))
    found = findings_of(setting, tiny_for(setting))
    assert tuple(found) == CLAIMS
    assert all(isinstance(f.verdict, Verdict) and f.headline for f in found.values())


@pytest.mark.parametrize("name", QUICK)
def test_all_claims_come_out(name: str) -> None:
    every_claim(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [s for s in SAMPLES if s not in QUICK])
def test_all_claims_come_out_of_the_others(name: str) -> None:
    every_claim(name)
