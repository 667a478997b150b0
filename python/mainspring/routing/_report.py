"""The report: what weights are worth on outcomes, before anything is switched on.

Invariant: every probability in it comes from the native code, as a session would get it; the same
arguments give the same report. Reading starts at `report`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mainspring.errors import RouteError
from mainspring.routing._curve import BOOTSTRAP_COUNT, Curve, Interval, apgr
from mainspring.routing._offpolicy import OffPolicyEstimate, estimate_off_policy
from mainspring.routing._outcomes import Outcome, models_of
from mainspring.routing._plot import plot
from mainspring.routing._serve import (
    Policy,
    Price,
    Weights,
    decide,
    prices_of,
    probabilities,
    verdicts,
)
from mainspring.routing._train import evidence_of

Floats = npt.NDArray[np.float64]

TABLE_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of strong calls at which the table shows the quality."""

SAMPLE_SIZE_MIN = 30.0
"""Effective decisions below which a report warns."""

EXPLORE = 0.03
"""Share of exploration of the default policy."""

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Router:
    """One way to rank steps by how much they need the strong model, and its curve."""

    name: str
    apgr: Interval
    cpt50: float
    cpt80: float
    curve: Curve


@dataclass(frozen=True, slots=True)
class Replayed:
    """A policy's choices on outcomes where every model's score is known.

    Attributes:
        shares: Share of the steps that begin with each model.
        quality: Mean score of what was chosen.
        cost_usd: Mean cost of what was chosen; None where costs are not known.
    """

    shares: dict[str, float]
    quality: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What weights are worth.

    Attributes:
        models: The weak and the strong model.
        outcomes: How many rows know both.
        alone: Mean score of each model alone.
        routers: The learnt router first, then what needs no learning.
        replayed: The policy's choices on those rows; None without such rows.
        off_policy: Estimates from a log's propensities, by what is estimated; empty without a log.
        notes: What a reader must know, in sentences.
    """

    models: tuple[str, str]
    outcomes: int
    alone: dict[str, float]
    routers: list[Router]
    replayed: Replayed | None
    off_policy: dict[str, list[OffPolicyEstimate]]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report as tables."""
        lines = [
            f"{self.outcomes} outcomes of {self.models[0]} (weak) and {self.models[1]} (strong)"
        ]
        lines += [f"  {name:40} alone {score:.3f}" for name, score in self.alone.items()]
        if self.routers:
            lines += ["", f"{'router':34}{'APGR [95 %]':>24}{'CPT50':>8}{'CPT80':>8}"]
            lines += [
                f"{each.name:34}{each.apgr!s:>24}{each.cpt50:>7.1f}%{each.cpt80:>7.1f}%"
                for each in self.routers
            ]
            lines += [
                "",
                f"{'strong calls':14}" + "".join(f"{each.name[:20]:>22}" for each in self.routers),
            ]
            for share in TABLE_SHARES:
                cells = (
                    np.interp(share, each.curve.shares, each.curve.quality) for each in self.routers
                )
                lines.append(f"{share:>12.0%}  " + "".join(f"{cell:>22.3f}" for cell in cells))
        if self.replayed is not None:
            lines += ["", "the policy on these outcomes: " + _told(self.replayed)]
        for name, estimates in self.off_policy.items():
            lines += ["", f"{name:26}{'value [95 %]':>30}{'sample size':>14}"]
            lines += [
                f"  {each.method:24}{_digits(each):>30}{each.sample_size:>14.1f}"
                for each in estimates
            ]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def svg(self) -> str:
        """The cost-quality curves as a picture, SVG."""
        curves = [(each.name, each.curve.shares, each.curve.quality) for each in self.routers]
        return plot(curves, x_label="share of calls to " + self.models[1], y_label="quality")

    def as_dict(self) -> dict[str, Any]:
        """Everything but the curves' points, as plain data."""
        found = asdict(self)
        for each in found["routers"]:
            del each["curve"]
        return found


def report(
    outcomes: Sequence[Outcome],
    weights: Weights,
    *,
    models: Sequence[str] | None = None,
    policy: Policy | None = None,
    prices: Mapping[str, Price] | None = None,
    resamples: int = BOOTSTRAP_COUNT,
    seed: int = 0,
) -> Report:
    """Holds weights against outcomes that they were not learnt from.

    Args:
        outcomes: What became of prompts.
        weights: What was learnt.
        models: The weak model first, the strong one last; None: those of the weights.
        policy: Numbers that differ from the default policy.
        prices: Prices of the models; None: those that the outcomes' costs show.
        resamples: Resamples behind the curves' intervals.
        seed: Decides the resamples and the replayed explorations.

    Returns:
        The report; its off-policy part is made from the rows of a log, the rest from the rows that
        know both models.

    Raises:
        RouteError: `route_invalid`: fewer than two models, or no row can be used.
    """
    names = list(models if models is not None else weights.models or models_of(outcomes))
    if len(names) < 2:
        raise RouteError("route_invalid", f"a report needs two models, there is {names}")
    prices = prices_of(outcomes, names) if prices is None else prices
    known = [each for each in outcomes if all(name in each.scores for name in names)]
    logged = [each for each in outcomes if each.chosen in names]
    # A log's rows with both scores are those where the weak model failed: no fair sample.
    fair = [each for each in known if each.chosen is None]
    if not fair and not logged:
        raise RouteError("route_invalid", f"no outcome knows {' and '.join(names)}")
    routers, replayed = [], None
    if fair:
        routers = _routers(fair, names, weights, resamples=resamples, seed=seed)
        decisions = decide(fair, names, weights=weights, policy=policy, prices=prices, seed=seed)
        replayed = _replayed(fair, names, decisions)
    estimates: dict[str, list[OffPolicyEstimate]] = {}
    if logged:
        wanted = target_probabilities(logged, names, weights=weights, policy=policy, prices=prices)
        estimates = _off_policy(logged, names, wanted, seed)
    return Report(
        models=(names[0], names[-1]),
        outcomes=len(fair) or len(logged),
        alone={name: float(np.mean([e.scores[name] for e in fair])) for name in names if fair},
        routers=routers,
        replayed=replayed,
        off_policy=estimates,
        notes=_notes(fair, estimates),
    )


def replay(
    outcomes: Sequence[Outcome],
    models: Sequence[str],
    *,
    weights: Weights | None,
    policy: Policy | None = None,
    prices: Mapping[str, Price] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What another policy would have decided, row by row; offline and deterministic.

    Args:
        outcomes: Rows of a table or of a log.
        models: The models of the route, in its order.
        weights: What the other policy has learnt; None: nothing.
        policy: Its numbers that differ from the default policy.
        prices: Prices; None: those that the outcomes' costs show.
        seed: The first row's seed; each further row has the next.

    Returns:
        A decision for each row, with the fields that `route_decided` has in a log.
    """
    known = prices_of(outcomes, models) if prices is None else prices
    return decide(outcomes, models, weights=weights, policy=policy, prices=known, seed=seed)


def _routers(
    rows: Sequence[Outcome], names: Sequence[str], weights: Weights, *, resamples: int, seed: int
) -> list[Router]:
    weak, strong = _scores(rows, names[0]), _scores(rows, names[-1])
    expected = probabilities(rows, names, weights)
    need = np.nan_to_num(expected[:, -1] - expected[:, 0])
    found = {"learnt": need, "prompt length": np.array([float(len(e.prompt)) for e in rows])}
    found["random"] = np.zeros(len(rows))
    if all(names[0] in each.answers for each in rows):
        asked = [evidence_of(each, names[0]) for each in rows]
        after = np.array([each["p_ok"] for each in verdicts(asked, weights=weights)])
        untrained = np.array([each["p_ok"] for each in verdicts(asked, weights=None)])
        together = np.nan_to_num(expected[:, -1] - (expected[:, 0] + after) / 2.0)
        found = {
            "router and weak answer": together,
            "weak answer alone": -after,
            "weak answer, untrained": -untrained,
        } | found
    routers = []
    for name, each in found.items():
        curve = Curve.of(each, weak, strong)
        value = apgr(each, weak, strong, resamples=resamples, seed=seed)
        routers.append(Router(name, value, curve.cpt(0.5), curve.cpt(0.8), curve))
    return routers


def _replayed(
    rows: Sequence[Outcome], names: Sequence[str], decisions: Sequence[Mapping[str, Any]]
) -> Replayed:
    chosen: list[str] = [names[int(each["tier"])] for each in decisions]
    pairs = list(zip(rows, chosen, strict=True))
    costs = [row.costs_usd.get(name) for row, name in pairs]
    known = [cost for cost in costs if cost is not None]
    return Replayed(
        shares={name: chosen.count(name) / len(chosen) for name in names},
        quality=float(np.mean([row.scores[name] for row, name in pairs])),
        cost_usd=float(np.mean(known)) if len(known) == len(costs) else None,
    )


def _off_policy(
    rows: Sequence[Outcome], names: Sequence[str], wanted: Floats, seed: int
) -> dict[str, list[OffPolicyEstimate]]:
    """Estimates of the first try's score, and of its cost where that is always known."""
    columns = np.array([list(names).index(str(each.chosen)) for each in rows])
    rewards = {"right at the first try": np.array([e.scores[str(e.chosen)] for e in rows])}
    costs = [each.costs_usd.get(str(each.chosen)) for each in rows]
    if all(cost is not None for cost in costs):
        rewards["cost of the first try, $"] = np.array(costs, dtype=np.float64)
    every = np.arange(len(rows))
    found = {}
    for name, reward in rewards.items():
        expected = _reward_model(rows, columns, reward, len(names))
        found[name] = estimate_off_policy(
            rewards=reward,
            logged=np.array([float(each.propensity or 0.0) for each in rows]),
            wanted=wanted[every, columns],
            model_taken=expected[every, columns],
            model_wanted=(wanted * expected).sum(axis=1),
            seed=seed,
        )
    return found


def target_probabilities(
    rows: Sequence[Outcome],
    names: Sequence[str],
    *,
    weights: Weights | None,
    policy: Policy | None = None,
    prices: Mapping[str, Price] | None = None,
) -> Floats:
    """Probability with which a policy would begin each row with each model (rows x models)."""
    explore = float((policy or {}).get("explore", EXPLORE))
    still = dict(policy or {}) | {"explore": 0.0}
    decisions = decide(rows, names, weights=weights, policy=still, prices=prices)
    found = np.zeros((len(rows), len(names)))
    for row, decision in enumerate(decisions):
        free = [idx for idx, each in enumerate(decision["candidates"]) if "excluded" not in each]
        others = [idx for idx in free if idx != decision["tier"]]
        found[row, decision["tier"]] = 1.0 - (explore if others else 0.0)
        for idx in others:
            found[row, idx] = explore / len(others)
    return found


def _reward_model(
    rows: Sequence[Outcome], columns: npt.NDArray[Any], rewards: Floats, width: int
) -> Floats:
    """Mean reward of each model by class, from the other folds of the log."""
    classes = np.array([each.step_class for each in rows])
    fold = np.arange(len(rows)) % FOLDS
    found = np.zeros((len(rows), width))
    for number in range(FOLDS):
        seen = fold != number
        overall = float(rewards[seen].mean()) if seen.any() else 0.5
        for column in range(width):
            of_model = seen & (columns == column)
            mean = (rewards[of_model].sum() + overall) / (of_model.sum() + 1.0)
            for name in sorted(set(classes.tolist())):
                both = of_model & (classes == name)
                value = (rewards[both].sum() + 5.0 * mean) / (both.sum() + 5.0)
                found[~seen & (classes == name), column] = value
    return found


def _scores(rows: Sequence[Outcome], name: str) -> Floats:
    return np.array([each.scores[name] for each in rows])


def _told(replayed: Replayed) -> str:
    shares = ", ".join(f"{share:.1%} {name}" for name, share in replayed.shares.items())
    cost = "" if replayed.cost_usd is None else f", ${replayed.cost_usd:.6f} a step"
    return f"begins with {shares}; quality {replayed.quality:.3f}{cost}"


def _digits(estimate: OffPolicyEstimate) -> str:
    return f"{estimate.value:.5g} [{estimate.low:.5g}, {estimate.high:.5g}]"


def _notes(
    fair: Sequence[Outcome], estimates: Mapping[str, Sequence[OffPolicyEstimate]]
) -> list[str]:
    notes = []
    if fair and estimates:
        notes.append("The curves use the rows without propensities, the estimates those with.")
    sizes = [each.sample_size for of_kind in estimates.values() for each in of_kind]
    if sizes and min(sizes) < SAMPLE_SIZE_MIN:
        notes.append(
            "Fewer than 30 effective decisions stand behind the estimates: explore for longer "
            "before this policy is switched on."
        )
    return notes
