"""Bundles whose code this user has already named: those written here, known by a digest of their code.

A bundle carries Python. One that comes from elsewhere runs only with --trust, like a pickle. One that was
written on this account was written from code its user had named, and loads without asking (as direnv does).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def ledger() -> Path:
    """https://specifications.freedesktop.org/basedir-spec: state of a user that outlives the process."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "bntool" / "trusted-bundles"


def digest(source: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """One line for the code that loading a bundle runs: the factory with its arguments, and the files."""
    whole = hashlib.sha256(json.dumps(dict(source), sort_keys=True).encode())
    for name in sorted(files):
        whole.update(f"\0{name}\0{len(files[name])}\0".encode() + files[name])
    return whole.hexdigest()


def remember(fingerprint: str) -> None:
    """Best effort: where nothing can be noted, the bundle asks for --trust later."""
    with contextlib.suppress(OSError):
        if not is_known(fingerprint):
            ledger().parent.mkdir(parents=True, exist_ok=True)
            with ledger().open("a") as lines:
                lines.write(fingerprint + "\n")


def is_known(fingerprint: str) -> bool:
    try:
        return fingerprint in ledger().read_text().split()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return False
