"""Learned routing: from outcomes to weights, and what they are worth before they are switched on.

Needs `pip install mainspring[train]`. Tables and logs become `Outcome` rows (`read_outcomes`,
`outcomes_of_store`), `train` makes a weights file of them, `report` and `replay` hold it against
others. What decides is the engine's own native code; only the fitting is done here.
"""

from mainspring.errors import RouteError

try:
    from mainspring.routing._curve import Curve, Interval, apgr
    from mainspring.routing._logs import outcomes_of_events, outcomes_of_store
    from mainspring.routing._offpolicy import OffPolicyEstimate, estimate_off_policy
    from mainspring.routing._outcomes import Outcome, models_of, read_outcomes
    from mainspring.routing._report import (
        Replayed,
        Report,
        Router,
        replay,
        report,
        target_probabilities,
    )
    from mainspring.routing._serve import (
        Price,
        Weights,
        decide,
        prices_of,
        probabilities,
        verdicts,
    )
    from mainspring.routing._train import Trained, TrainingLimits, train
except ImportError as error:
    if (error.name or "").split(".")[0] not in ("numpy", "scipy", "sklearn", "threadpoolctl"):
        raise
    raise RouteError(
        "route_invalid",
        f'learned routing needs the package "{error.name}", which is not installed',
        'install it with: pip install "mainspring[train]"',
    ) from error

__all__ = [
    "Curve",
    "Interval",
    "OffPolicyEstimate",
    "Outcome",
    "Price",
    "Replayed",
    "Report",
    "Router",
    "Trained",
    "TrainingLimits",
    "Weights",
    "apgr",
    "decide",
    "estimate_off_policy",
    "models_of",
    "outcomes_of_events",
    "outcomes_of_store",
    "prices_of",
    "probabilities",
    "read_outcomes",
    "replay",
    "report",
    "target_probabilities",
    "train",
    "verdicts",
]
