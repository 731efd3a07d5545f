"""What a study runs: arms, rates, seeds, steps, sizes. Fixed before the first trial: verdicts follow from it.

A budget chooses one of the TIERS; after that the speed of the machine changes nothing but the time it takes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bntool.study.trial import Trial

#: least numbers of seeds for what costs little, and for the grid of rates
STARTED, RANGED = 12, 2
#: rates that do with SGD what 1 does, by optimizer
RATE_OF = {"sgd": 1.0, "momentum": 2.0**-3, "adam": 2.0**-7}
CLAIMS = ("stability", "speed", "regularisation", "depth", "small-batches", "cost", "alternatives")


@dataclass(frozen=True)
class Plan:
    """Everything a study decides up front.

    `norms`: baseline, treated, then alternatives. `rates`: grid, ascending. `seeds`: networks per measured
    cell; `tuning_seeds`: networks per cell of a grid, other seeds than those. `steps`: updates per training.
    `fit_steps` and `fit_examples`: of the generalisation claim. `small_steps` and `small_examples`: a batch
    size sees at least that many updates and examples. `spacing`: every which rate is tried where the grid is
    not itself the question. `target` is the score to reach (0: set by what the arms reach). `skipped` are
    claims for which even the smallest tier has no time.
    """

    norms: tuple[str, ...] = ("none", "batch", "group", "layer")
    claims: tuple[str, ...] = CLAIMS
    tier: int = -1
    seed: int = 0
    seeds: int = 5
    tuning_seeds: int = 2
    rates: tuple[float, ...] = tuple(2.0**k for k in range(-7, 4))
    spacing: int = 2
    steps: int = 256
    batch_size: int = 32
    fit_examples: int = 256
    fit_steps: int = 256
    dropout: float = 0.5
    vary: str = ""
    depths: tuple[int, ...] = ()
    depth_inits: tuple[str, ...] = ("default", "he")
    inits: tuple[str, ...] = ("default", "he", "xavier")
    batch_sizes: tuple[int, ...] = (2, 8, 32)
    small_steps: int = 64
    small_examples: int = 1024
    target: float = 0.0
    depth_factors: tuple[int, ...] = (1, 2, 4)
    level: float = 0.95
    optimizer: str = "sgd"
    skipped: tuple[str, ...] = ()

    @property
    def baseline(self) -> str:
        return self.norms[0]

    @property
    def treated(self) -> str:
        return self.norms[1]

    @property
    def others(self) -> tuple[str, ...]:
        return self.norms[2:]

    @property
    def measured_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def tuned_on(self) -> range:
        """Seeds of the grids: far from the measured ones, so that tuning does not see them."""
        return range(self.seed + 1000, self.seed + 1000 + self.tuning_seeds)

    @property
    def started_seeds(self) -> range:
        """Seeds of networks that are looked at before training: they cost little."""
        return range(self.seed, self.seed + max(self.seeds, STARTED))

    @property
    def ranged_on(self) -> range:
        """Seeds of the grid that says which rates train: the worst of several."""
        return range(self.seed + 1000, self.seed + 1000 + max(self.tuning_seeds, RANGED))

    @property
    def coarse_rates(self) -> tuple[float, ...]:
        return self.rates[:: self.spacing]

    @property
    def family_level(self) -> float:
        """Confidence of the interval behind a verdict: all claims share the error rate (Bonferroni)."""
        return 1.0 - (1.0 - self.level) / len(self.claims)

    def trial(self, norm: str, seed: int, rate: float, **changes: Any) -> Trial:
        start = Trial(norm, seed, rate, self.steps, self.batch_size, optimizer=self.optimizer)
        return start.at(**changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Plan:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        return cls(**values)


def octaves(low: int, high: int, step: int = 1) -> tuple[float, ...]:
    return tuple(2.0**k for k in range(low, high + 1, step))


def sizes(
    seeds: int,
    tuning_seeds: int,
    rates: tuple[float, ...],
    spacing: int,
    steps: int,
    fit: tuple[int, int],
    small: tuple[int, int],
    batch_sizes: tuple[int, ...] = (2, 8, 32),
    **more: Any,
) -> dict[str, Any]:
    """The part of a plan that a tier sets. `fit` and `small` are (examples, steps)."""
    return {
        "seeds": seeds,
        "tuning_seeds": tuning_seeds,
        "rates": rates,
        "spacing": spacing,
        "steps": steps,
        "fit_examples": fit[0],
        "fit_steps": fit[1],
        "small_examples": small[0],
        "small_steps": small[1],
        "batch_sizes": batch_sizes,
        **more,
    }


_FEW: dict[str, Any] = {"inits": ("default", "he"), "depth_factors": (1, 3)}
_ALL: dict[str, Any] = {"depth_inits": ("default", "he", "xavier")}
#: from a glance to a thorough study; each costs about half as much again as the one before, the last ones
#: twice as much
TIERS: tuple[dict[str, Any], ...] = (
    sizes(5, 1, octaves(-5, 1, 2), 1, 32, (96, 64), (128, 32), (2, 32), **_FEW),
    sizes(5, 1, octaves(-6, 2), 2, 48, (96, 96), (256, 48), (2, 32), **_FEW),
    sizes(5, 1, octaves(-6, 2), 2, 80, (96, 160), (384, 64), (2, 32), **_FEW),
    sizes(5, 1, octaves(-7, 3), 2, 112, (128, 256), (640, 64), (2, 32), **_FEW),
    sizes(5, 1, octaves(-7, 3), 2, 144, (128, 320), (768, 64)),
    sizes(5, 1, octaves(-7, 3), 2, 224, (192, 480), (1024, 96)),
    sizes(5, 2, octaves(-7, 4), 2, 288, (256, 640), (1437, 96)),
    sizes(6, 2, octaves(-8, 4), 2, 400, (256, 1000), (2048, 128), (2, 4, 8, 32), **_ALL),
    sizes(8, 3, octaves(-9, 5), 2, 800, (256, 1600), (4096, 200), (2, 4, 8, 16, 32), **_ALL),
    sizes(10, 3, octaves(-10, 5), 1, 1600, (256, 3200), (8192, 400), (2, 4, 8, 16, 32), **_ALL),
)
#: the tier from which every norm named is tried at every batch size
THOROUGH = 7


def tiered(plan: Plan, tier: int) -> Plan:
    """The plan with the sizes of a tier, its rates in the range of the optimizer."""
    found = replace(plan, tier=tier, **TIERS[tier])
    return replace(found, rates=tuple(RATE_OF[plan.optimizer] * rate for rate in found.rates))
