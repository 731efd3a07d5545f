"""Cases written down in the project's settings: `[tool.bntool.bench.cases.NAME]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from bntool.bench import units
from bntool.bench.candidates import parse
from bntool.bench.cases import spread_out, with_file
from bntool.bench.plan import Budgets, Case, Gate
from bntool.bench.protocol import Conditions
from bntool.bench.waivers import Waiver
from bntool.errors import UsageError

#: what a case may say, and as what; everything but `models` has a default
KEYS: dict[str, tuple[type, ...]] = {
    "models": (list,),
    "input": (str, list),
    "runtimes": (str, list),
    "batch": (int, list),
    "threads": (int,),
    "device": (str,),
    "dtype": (str,),
    "channels_last": (bool,),
    "mode": (str,),
    "weights": (str,),
    "tolerance": (str, int, float),
    "floor": (str, int, float),
    "min_speedup": (str, int, float),
    "budgets": (dict,),
    "waivers": (list,),
}
#: what the members of a list are
MEMBERS = {"models": str, "input": str, "runtimes": str, "batch": int, "waivers": dict}
#: a type as TOML calls it
NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
NAMES |= {dict: "a table"}


@dataclass(frozen=True)
class Suite:
    """All cases of a project, and the waivers of each by its name."""

    cases: tuple[Case, ...]
    waivers: Mapping[str, tuple[Waiver, ...]]


def suite(settings: Mapping[str, Any], *, only: Sequence[str] = (), trust: bool = False) -> Suite:
    """The suite in a project's settings. Raises: UsageError for an unknown key, a bad value or no case
    at all.
    """
    written = settings.get("bench", {}).get("cases", {})
    check_type("bench.cases", written, (dict,))
    chosen = {n: raw for n, raw in written.items() if not only or any(fnmatch(n, p) for p in only)}
    if not chosen:
        what = (
            f"no case is called {only[0]!r}"
            if only and written
            else "no models were named and no cases are written down"
        )
        advice = "Name two models, or write [tool.bntool.bench.cases.NAME] in pyproject.toml."
        raise UsageError(what, next=advice)
    cases: list[Case] = []
    waivers: dict[str, tuple[Waiver, ...]] = {}
    for name, raw in chosen.items():
        own = read_case(name, raw, trust)
        cases += own
        let_through = tuple(Waiver.from_dict(w, where_of(name)) for w in raw.get("waivers", ()))
        waivers |= {case.name: let_through for case in own}
    return Suite(tuple(cases), waivers)


def where_of(name: str) -> str:
    return f"bench.cases.{name}"


def read_case(name: str, raw: Mapping[str, Any], trust: bool) -> list[Case]:
    where = where_of(name)
    check_type(where, raw, (dict,))
    unknown = sorted(set(raw) - set(KEYS))
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r}", where=where, next=f"Known: {', '.join(KEYS)}.")
    if "models" not in raw:
        raise UsageError("it names no models", where=where, next='Write models = ["a.py:net", "b.py:net"].')
    for key, value in raw.items():
        check_type(f"{where}.{key}", value, KEYS[key])
        for member in value if isinstance(value, list) else ():
            check_type(f"{where}.{key}", member, (MEMBERS[key],))
    candidates = [with_file(parse(str(m)), trust, raw.get("weights")) for m in raw["models"]]
    cases = spread_out(
        candidates, gate(raw, where), conditions(raw), listed(raw, "runtimes"), listed(raw, "batch")
    )
    return [replace(c, name=name if c.name == "bench" else f"{name}, {c.name}") for c in cases]


def check_type(where: str, value: object, wanted: tuple[type, ...]) -> None:
    """Raises: UsageError. True is no number here, though Python has it so."""
    if type(value) not in wanted:
        names = " or ".join(dict.fromkeys(NAMES[kind] for kind in wanted))
        raise UsageError(f"{value!r} is not {names}", where=where, next=f"Write {names}.")


def gate(raw: Mapping[str, Any], where: str) -> Gate:
    least = raw.get("min_speedup")
    return Gate(
        tolerance=units.share(raw.get("tolerance", "5%"), f"{where}.tolerance"),
        floor_s=units.seconds(raw.get("floor", 0), f"{where}.floor"),
        min_speedup=None if least is None else units.speedup(least, f"{where}.min_speedup"),
        budgets=Budgets.from_dict(raw.get("budgets", {})),
    )


def conditions(raw: Mapping[str, Any]) -> Conditions:
    return Conditions(
        specs=tuple(listed(raw, "input")),
        dtype=raw.get("dtype", ""),
        device=raw.get("device", "cpu"),
        channels_last=raw.get("channels_last", False),
        mode=raw.get("mode", "infer"),
        threads=raw.get("threads", 1),
    )


def listed(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key, [])
    return list(value) if isinstance(value, list) else [value]
