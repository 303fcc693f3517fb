"""Means, spreads, and paired differences with a confidence interval, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation (n - 1; None for one value) of ``values``."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float | None:
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Mean of ``a - b`` over the seeds both have, with the half width of its 95 % interval (None below two seeds).

    Student's t on paired differences: what a seed does to both arms (its rooms, its order) cancels.
    """

    mean: float
    half: float | None
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.half is not None and abs(self.mean) > self.half


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference | None:
    """From seed -> score of two arms; None without a common seed."""
    from scipy.stats import t

    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    differences = np.array([a[s] - b[s] for s in seeds])
    half = None
    if len(seeds) > 1:
        quantile = float(t.ppf(0.5 + level / 2, len(seeds) - 1))
        half = quantile * float(differences.std(ddof=1)) / math.sqrt(len(seeds))
    return Difference(float(differences.mean()), half, len(seeds))
