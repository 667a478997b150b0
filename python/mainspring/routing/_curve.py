"""Cost-quality curves: what sending the most needy steps to the strong model gains.

Arrays have one value for each question, all in the same order. `need` says how much the strong
model is wanted. Reading starts at `Curve.of`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BOOTSTRAP_COUNT = 1000
"""Resamples behind an interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The value and its bounds."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality over the share of strong calls.

    Attributes:
        shares: Share of the questions that go to the strong model, ascending from 0 to 1.
        quality: Mean score of all questions at that share.
    """

    shares: Floats
    quality: Floats

    @classmethod
    def of(cls, need: Floats, weak: Floats, strong: Floats) -> "Curve":
        """The curve of sending questions in the order of their need; ties count as their mean."""
        order = np.argsort(-need, kind="stable")
        gains, ranked = (strong - weak)[order], need[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1])
        sizes = np.diff(np.concatenate([starts, [len(need)]]))
        gains = np.repeat(np.add.reduceat(gains, starts) / sizes, sizes)
        total = np.concatenate([[0.0], np.cumsum(gains)]) / len(need)
        return cls(np.linspace(0.0, 1.0, len(need) + 1), float(weak.mean()) + total)

    def apgr(self) -> float:
        """Mean share of the gap between weak and strong that is recovered; random is 0.5.

        nan where the strong model gains nothing.

        Source:
            RouteLLM, arXiv 2406.18665v4, section 2.2.
        """
        gap = self.quality[-1] - self.quality[0]
        if gap == 0.0:
            return float("nan")
        area = float(np.trapezoid(self.quality, self.shares))
        return float((area - self.quality[0]) / gap)

    def cpt(self, recovered: float) -> float:
        """Least percentage of strong calls that recovers this share of the gap."""
        wanted = self.quality[0] + recovered * (self.quality[-1] - self.quality[0])
        reached = np.flatnonzero(self.quality >= wanted - 1e-12)
        return float(100.0 * self.shares[reached[0]])


def apgr(
    need: Floats, weak: Floats, strong: Floats, *, resamples: int = BOOTSTRAP_COUNT, seed: int = 0
) -> Interval:
    """APGR with its bootstrap interval over the questions."""
    random = np.random.default_rng(seed)
    count = len(need)
    draws = (random.integers(0, count, count) for _ in range(resamples))
    values = np.array([Curve.of(need[each], weak[each], strong[each]).apgr() for each in draws])
    # A resample in which the strong model gains nothing has none.
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(Curve.of(need, weak, strong).apgr(), float(low), float(high))
