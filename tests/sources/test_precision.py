"""float32 stays float32 in a comparison, and the program's own settings come back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATE = """
import torch
from torch import nn
from bntool.sources.precision import full_precision
from bntool.sources.running import runnable

backends = torch.backends

def read(ask):
    try:
        return ask()
    except RuntimeError:
        return "refused"

def legacy():
    return [read(lambda: backends.cudnn.allow_tf32), read(torch.get_float32_matmul_precision)]

def newer():
    if not hasattr(backends.cudnn, "conv"):
        return []
    return [backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision]
"""
#: what a program may have done before
SETTINGS = {
    "nothing": "",
    "products in TF32": "torch.set_float32_matmul_precision('high')",
    "products in bfloat16": "torch.set_float32_matmul_precision('medium')",
    "convolutions exact": "backends.cudnn.allow_tf32 = False",
    "newer interface": "backends.cuda.matmul.fp32_precision = 'tf32'",
    "newer interface, convolutions": "backends.cudnn.conv.fp32_precision = 'ieee'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_are_exact_meanwhile_and_come_back(setting: str) -> None:
    """In a process of its own: torch remembers for good which interface was used."""
    code = f"""{STATE}
if hasattr(backends.cudnn, "conv") or "fp32_precision" not in {SETTINGS[setting]!r}:
    {SETTINGS[setting] or "pass"}
before = legacy(), newer()
with full_precision():
    assert "tf32" not in newer() and "bf16" not in newer(), newer()
    assert all(value in (False, "highest", "refused") for value in legacy()), legacy()
    nn.Conv2d(3, 3, 3)(torch.randn(1, 3, 5, 5)) @ torch.randn(3, 3)
assert (legacy(), newer()) == before
class Asks(nn.Linear):
    def forward(self, x):
        seen.append(newer() or legacy())
        return super().forward(x)
seen = []
runnable(Asks(3, 3))(torch.randn(2, 3))
assert seen and not {{"tf32", "bf16", True}} & set(seen[0]), seen
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
