"""A made-up machine has made-up contention, too: what this one goes through must not reach its verdicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bntool.bench.contention import Moment

QUIET = Moment(steal=0, total=0, stalled_us=0, load=0.0, mhz=None)


@pytest.fixture(scope="module", autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """In modules that time on a made-up machine."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.module, "Machine"):
            patch.setattr(Moment, "now", classmethod(lambda cls: QUIET))
        yield
