"""Where models come from and go to: one file per kind.

`load(ref)` gives the model, `open_model(ref)` also where it came from and its example inputs.
"""

from __future__ import annotations

from bntool.sources.base import Loaded as Loaded
from bntool.sources.opening import load as load
from bntool.sources.opening import open_model as open_model

__all__ = ["Loaded", "load", "open_model"]
