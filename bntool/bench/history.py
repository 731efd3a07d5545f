"""A run's ratios appended to a file, one JSON line a run: for a plot over revisions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bntool.bench.revision import head
from bntool.errors import LoadError


def line_of(
    document: dict[str, Any], *, now: datetime | None = None, revision: str | None = None
) -> dict[str, Any]:
    """What is kept of a run's JSON document."""
    kept = [
        {
            "case": p["case"],
            "name": p["name"],
            "baseline": p["baseline"],
            "verdict": p["verdict"],
            **{k: p["ratio"][k] for k in ("estimate", "low", "high")},
        }
        for p in document["comparisons"]
    ]
    when = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    return {
        "schema_version": 1,
        "when": when,
        "revision": head() if revision is None else revision,
        "machine": document["machine"].get("cpu", ""),
        "comparisons": kept,
    }


def append(path: Path, line: dict[str, Any]) -> None:
    """One write of one line: two runs at once do not mix."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All lines so far, oldest first. Raises: LoadError for a line that is not ours."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(text))
            assert lines[-1]["schema_version"] == 1
        except (ValueError, KeyError, TypeError, AssertionError):
            raise LoadError(
                f"line {number} is not a bench history line", where=str(path), next="Remove it."
            ) from None
    return lines
