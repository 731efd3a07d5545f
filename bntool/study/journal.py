"""Finished trials on disk, one JSON line each, written as they finish: an interrupt loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bntool.errors import UsageError
from bntool.study.trial import Trial


class Journal:
    """`trials.jsonl` in a run's folder; its first line says what the study is of. Without a folder:
    memory.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], *, resume: bool = False) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.identity = identity
        self.path = folder / "trials.jsonl" if folder else None
        if self.path is None:
            return
        if resume and self.path.exists():
            self.read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"study": identity}) + "\n")

    def read(self) -> None:
        """Take over finished trials. A last line cut short by a kill is dropped.

        Raises: UsageError when the folder belongs to another study.
        """
        assert self.path is not None
        whole = []
        for line in self.path.read_text().splitlines():
            try:
                whole.append((line, json.loads(line)))
            except json.JSONDecodeError:
                break
        head = whole[0][1].get("study") if whole else None
        if head != json.loads(json.dumps(self.identity)):
            advice = "Resume with the same model, data and options, or leave --resume out to start anew."
            raise UsageError("it holds another study", where=str(self.path.parent), next=advice)
        self.results = {entry["key"]: entry["result"] for _, entry in whole[1:]}
        self.path.write_text("".join(line + "\n" for line, _ in whole))

    def add(self, trial: Trial, result: dict[str, Any]) -> None:
        self.results[trial.key] = result
        if self.path is not None:
            line = json.dumps({"key": trial.key, "trial": trial.to_dict(), "result": result})
            with self.path.open("a") as file:
                file.write(line + "\n")
                file.flush()


def stored_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the study in `folder`, when one was begun there."""
    path = folder / "trials.jsonl"
    if not path.exists():
        return None
    with path.open() as file:
        try:
            found: dict[str, Any] = json.loads(file.readline())["study"]["plan"]
        except (json.JSONDecodeError, KeyError):
            return None
    return found
