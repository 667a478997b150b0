"""What another policy would have been worth, from the log of the one that ran.

Each array has one value for each logged decision: `rewards`, the probability `logged` with which
the running policy took what it took, and the probability `wanted` with which the other one would
have. Reading starts at `estimate_off_policy`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mainspring.errors import RouteError

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
"""Resamples behind an interval."""

WEIGHT_MAX = 100.0
"""Greatest weight of one decision; it bounds what one lucky exploration can prove."""


@dataclass(frozen=True, slots=True)
class OffPolicyEstimate:
    """One estimator's answer.

    Attributes:
        method: `ips`, `snips` or `dr`.
        value: Mean reward that the other policy would have had.
        low: Lower end of its 95 % interval.
        high: Upper end.
        sample_size: Effective number of decisions behind it: a few when the two policies differ.
    """

    method: str
    value: float
    low: float
    high: float
    sample_size: float


def estimate_off_policy(
    *,
    rewards: Floats,
    logged: Floats,
    wanted: Floats,
    model_taken: Floats,
    model_wanted: Floats,
    seed: int = 0,
) -> list[OffPolicyEstimate]:
    """Estimates what another policy would have been worth, in three ways.

    Args:
        rewards: What each decision was worth.
        logged: Probability of what was taken, above 0.
        wanted: Probability of the same under the other policy.
        model_taken: What a model of rewards expected of what was taken.
        model_wanted: What it expects of the other policy, on average over what that would take.
        seed: Decides the resamples.

    Returns:
        Inverse propensity, self-normalised inverse propensity, and doubly robust, in this order.

    Raises:
        RouteError: `route_invalid`: no decisions, or propensities outside their range.

    Source:
        Dudik, Langford, Li 2011, "Doubly robust policy evaluation and learning"; Swaminathan,
        Joachims 2015, "The self-normalized estimator for counterfactual learning"; effective
        sample size after Kong 1992.
    """
    if len(rewards) == 0:
        raise RouteError("route_invalid", "there are no logged decisions to estimate from")
    if not (np.all(logged > 0.0) and np.all(logged <= 1.0)):
        raise RouteError("route_invalid", "a logged propensity is outside 0 (excluded) to 1")
    weights = np.minimum(wanted / logged, WEIGHT_MAX)
    robust = model_wanted + weights * (rewards - model_taken)
    total = float(weights.sum())
    size = total**2 / float((weights**2).sum()) if total > 0.0 else 0.0
    sums = np.column_stack([weights * rewards, weights, robust])
    resampled = _resampled(sums, np.random.default_rng(seed))
    value = sums.mean(axis=0)
    return [
        _bounded("ips", float(value[0]), resampled[:, 0], size),
        _bounded(
            "snips", _ratio(value[0], value[1]), _ratios(resampled[:, 0], resampled[:, 1]), size
        ),
        _bounded("dr", float(value[2]), resampled[:, 2], size),
    ]


def _resampled(sums: Floats, random: np.random.Generator) -> Floats:
    """The columns' means in every resample (resamples x columns)."""
    count = len(sums)
    share = np.full(count, 1.0 / count)
    return np.array([random.multinomial(count, share) @ sums / count for _ in range(RESAMPLES)])


def _bounded(method: str, value: float, resampled: Floats, size: float) -> OffPolicyEstimate:
    known = resampled[np.isfinite(resampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return OffPolicyEstimate(method, value, float(low), float(high), size)


def _ratios(above: Floats, below: Floats) -> Floats:
    return np.array([_ratio(one, other) for one, other in zip(above, below, strict=True)])


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0.0 else float("nan")
