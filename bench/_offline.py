"""What learnt routing makes of recorded steps: each fold decided by weights from the other folds.

Owns the arithmetic of a cascade over outcomes that are known for both models. Invariant: weights
never see the steps they decide about, and every call that a cascade makes is in its cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mainspring.routing import Outcome, Price, TrainingLimits, Weights, decide, train, verdicts

FOLDS = 5
CREATED = "2026-11-25"
CLASSES = {"tool_args": "tool_args", "extract": "extract", "judge": "judge", "answer": "answer"}
RESAMPLES = 1000

Row = dict[str, Any]


def cascades(
    rows: Sequence[Row], models: tuple[str, str], prices: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[str, str, str]]:
    """Right answers, cost and share of large calls of each way, with 95 % bootstrap intervals.

    Args:
        rows: Outcomes as `steps.py` writes them, of both models alone.
        models: Small and large.
        prices: US dollars per million tokens read and written.
    """
    small, large = (_by_step(rows, route) for route in ("small", "large"))
    ids = sorted(small.keys() & large.keys())
    table = [_outcome(small[each], large[each], models) for each in ids]
    priced = {name: Price(*prices[name]) for name in models}
    learnt, untrained = np.zeros((2, len(ids)), dtype=int)
    for fold in range(FOLDS):
        test = [at for at in range(len(ids)) if at % FOLDS == fold]
        known = [table[at] for at in range(len(ids)) if at % FOLDS != fold]
        trained = train(known, created=CREATED, models=list(models), limits=TrainingLimits())
        weights = Weights(trained.file)
        asked = [table[at] for at in test]
        learnt[test] = _ways(asked, models, priced, weights)
        untrained[test] = _ways(asked, models, priced, None)
    right = np.array([[small[each]["right"], large[each]["right"]] for each in ids], dtype=float)
    cost = np.array([[small[each]["cost_usd"], large[each]["cost_usd"]] for each in ids])
    ways = {
        "small alone": np.zeros(len(ids), dtype=int),
        "large alone": np.ones(len(ids), dtype=int),
        "cascade, nothing learnt": untrained,
        "cascade, learnt": learnt,
        "cascade, perfect check": np.where(right[:, 0] > 0, 0, 2),
    }
    return {name: _told(way, right, cost) for name, way in ways.items()}


def _by_step(rows: Sequence[Row], route: str) -> dict[str, Row]:
    return {row["id"]: row for row in rows if row["route"] == route}


def _outcome(small: Row, large: Row, models: tuple[str, str]) -> Outcome:
    both = dict(zip(models, (small, large), strict=True))
    return Outcome(
        prompt=small["prompt"],
        label=small["kind"],
        step_class=CLASSES.get(small["kind"], "chat"),
        scores={name: float(row["right"]) for name, row in both.items()},
        costs_usd={name: row["cost_usd"] for name, row in both.items()},
        answers={name: row["answer"] for name, row in both.items()},
    )


def _ways(
    asked: Sequence[Outcome],
    models: tuple[str, str],
    prices: Mapping[str, Price],
    weights: Weights | None,
) -> list[int]:
    """0: the small model's answer stands; 1: the step began with the large one; 2: both."""
    policy = {"explore": 0.0}
    begun = decide(asked, models, weights=weights, policy=policy, prices=prices)
    said = [_evidence(each, models[0]) for each in asked]
    found = verdicts(said, weights=weights, policy=policy)
    return [
        1 if decision["tier"] == 1 else (0 if verdict["accept"] else 2)
        for decision, verdict in zip(begun, found, strict=True)
    ]


def _evidence(outcome: Outcome, model: str) -> dict[str, Any]:
    answer = outcome.answers[model]
    evidence: dict[str, Any] = {
        "class": outcome.step_class,
        "question": outcome.prompt,
        "answer": answer,
    }
    if outcome.step_class == "tool_args":
        try:
            calls = json.loads(answer)
            evidence |= {"answer": "", "arguments": [json.dumps(given) for _, given in calls]}
        except (ValueError, TypeError):
            pass
    return evidence


def _told(way: Any, right: Any, cost: Any) -> tuple[str, str, str]:
    rng = np.random.default_rng(0)
    at = np.arange(len(way))
    won = right[at, np.minimum(way, 1)]
    paid = np.where(way == 1, cost[:, 1], cost[:, 0] + np.where(way == 2, cost[:, 1], 0.0))
    draws = rng.integers(0, len(way), (RESAMPLES, len(way)))
    low, high = np.percentile(won[draws].mean(axis=1), [2.5, 97.5])
    return (
        f"{won.mean():.1%} [{low:.1%}, {high:.1%}]",
        f"${paid.mean() * 1000:.3f}",
        f"{(way > 0).mean():.0%}",
    )
