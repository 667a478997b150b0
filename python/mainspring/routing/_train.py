"""Training: from outcomes to a weights file that the native code serves.

Invariant: every number that the file's metrics report was predicted for rows that the predicting
fit had not seen. Reading starts at `train`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from mainspring.errors import RouteError
from mainspring.routing._curve import apgr
from mainspring.routing._features import answer_signals, text_features
from mainspring.routing._fit import ANSWER_C, Line, Logistic, TextFit, domain_of
from mainspring.routing._outcomes import Outcome, models_of

Floats = npt.NDArray[np.float64]

FORMAT = "mainspring-route-weights"
VERSION = 1
FOLDS = 5
OUTCOMES_MIN = 20
"""Fewer outcomes than this teach nothing."""
ANSWERS_MIN = 50
"""Fewer answers than this leave the check of answers untrained."""


@dataclass(frozen=True, slots=True)
class TrainingLimits:
    """How carefully training generalises.

    Attributes:
        strength: Outcomes by which the average of a label is drawn to that of its class, and that
            of a class to that of all.
        labels_min: Outcomes that a class needs before its texts are looked at.
    """

    strength: float = 12.0
    labels_min: int = 100


@dataclass(frozen=True, slots=True)
class Trained:
    """What training made.

    Attributes:
        file: The weights file, JSON.
        metrics: What is also in the file: sizes, APGR and calibration, out of fold.
    """

    file: bytes
    metrics: dict[str, Any]


def train(
    outcomes: Sequence[Outcome],
    *,
    created: str,
    models: Sequence[str] | None = None,
    limits: TrainingLimits | None = None,
    seed: int = 0,
) -> Trained:
    """Learns how often which model is right, and on what that depends.

    Args:
        outcomes: What became of prompts; at least `OUTCOMES_MIN`.
        created: The date to write into the file; it is not read from a clock, so that the same
            outcomes make the same file.
        models: The models, smallest first; None: those of the outcomes, in the order in which they
            first come.
        limits: How carefully to generalise; None: the defaults.
        seed: Decides the folds.

    Returns:
        The weights file and its metrics.

    Raises:
        RouteError: `route_invalid`: too few outcomes, or a model without any.
    """
    # The matrices are small: threads would wait for each other longer than they work.
    with threadpool_limits(limits=1):
        return _train(outcomes, created, models, limits or TrainingLimits(), seed)


def _train(
    outcomes: Sequence[Outcome],
    created: str,
    models: Sequence[str] | None,
    limits: TrainingLimits,
    seed: int,
) -> Trained:
    names = list(models) if models is not None else models_of(outcomes)
    _check(outcomes, names)
    table = Table.of(outcomes, names)
    fold = np.random.default_rng(seed).permutation(len(outcomes)) % FOLDS
    held_out = _held_out(table, fold, limits)
    with_text = _text_is_worth_it(table, limits)
    # Averages alone are calibrated as they are.
    calibration = _calibration(table, held_out) if with_text else {}
    file: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": created,
        "data_sha256": _digest(outcomes),
        "models": names,
        "strength": limits.strength,
        "labels_min": float(limits.labels_min),
        "priors": _priors(table) | {"fair": _fair(table, held_out)},
        "text": None,
        "calibration": {},
        "answer": None,
    }
    if with_text:
        fit = TextFit.fit(table.grams, table.surface, table.scores, table.counts)
        file["text"] = fit.as_file(domain_of(table.grams, table.surface, fit))
        file["calibration"] = {name: asdict(line) for name, line in calibration.items()}
    calibrated = _calibrated(table, held_out, calibration)
    file["answer"], answers = _answer_check(outcomes, names, fold)
    file["metrics"] = metrics_of(table, calibrated) | {"answers": answers}
    text = json.dumps(file, separators=(",", ":"), allow_nan=False)
    return Trained(text.encode(), file["metrics"])


@dataclass(frozen=True, slots=True)
class Table:
    """Outcomes as matrices with a row a prompt and, of scores and counts, a column a model."""

    names: list[str]
    classes: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    scores: Floats
    counts: Floats
    grams: Any
    surface: Floats

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], names: Sequence[str]) -> "Table":
        """Makes the matrices; a model that was not tried has the score nan."""
        scores = np.array([[each.scores.get(name, np.nan) for name in names] for each in outcomes])
        grams, surface = text_features([each.prompt for each in outcomes])
        shape = (len(outcomes), len(names))
        return cls(
            list(names),
            np.array([each.step_class for each in outcomes]),
            np.array([each.label for each in outcomes]),
            scores.reshape(shape),
            _counts(scores.reshape(shape), outcomes, names),
            grams,
            surface,
        )

    def rows(self, chosen: npt.NDArray[Any]) -> "Table":
        """Some of the rows."""
        return Table(
            self.names,
            self.classes[chosen],
            self.labels[chosen],
            self.scores[chosen],
            self.counts[chosen],
            self.grams[chosen],
            self.surface[chosen],
        )


def _counts(scores: Floats, outcomes: Sequence[Outcome], names: Sequence[str]) -> Floats:
    """1 for each outcome, 0 for what a model did after another had failed.

    Steps that another model could not do are harder than most, so these outcomes understate a
    model. They count only while it was hardly ever begun with.
    """
    found = np.ones(scores.shape)
    for column, name in enumerate(names):
        begun = np.array([each.chosen in (None, name) for each in outcomes])
        begun_known = begun & ~np.isnan(scores[:, column])
        if begun_known.sum() >= OUTCOMES_MIN:
            found[~begun, column] = 0.0
    return found


def _check(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    if len(outcomes) < OUTCOMES_MIN:
        raise RouteError(
            "route_invalid",
            f"{len(outcomes)} outcomes teach nothing, at least {OUTCOMES_MIN} are needed",
        )
    if not names or len(set(names)) != len(names):
        raise RouteError("route_invalid", f"the models {list(names)} are none or not different")
    for name in names:
        if not any(name in outcome.scores for outcome in outcomes):
            raise RouteError("route_invalid", f'the outcomes have no score of the model "{name}"')


def _text_is_worth_it(table: Table, limits: TrainingLimits) -> bool:
    """Whether some class has enough outcomes of every model for its texts to be looked at."""
    classes = _priors(table)["classes"].values()
    return any(all(each["count"] >= limits.labels_min for each in means) for means in classes)


def _names(table: Table) -> list[str]:
    return sorted(set(table.classes.tolist()))


def _priors(table: Table) -> dict[str, Any]:
    everything = np.ones(len(table.scores), dtype=bool)
    return {
        "all": _means(table, everything),
        "classes": {name: _means(table, table.classes == name) for name in _names(table)},
        "labels": {
            label: _means(table, table.labels == label)
            for label in sorted(set(table.labels.tolist()) - {""})
        },
    }


def _fair(table: Table, held_out: Floats) -> dict[str, list[dict[str, float]]]:
    """What each model would have scored at all prompts of a class, so that models can be compared.

    A policy that sends hard steps to one model makes its own mean look bad. What it chose by, the
    label and the text, is also what the held-out estimates know, so their mean over all prompts is
    fair. Behind it stand as many outcomes as equally spread ones would say as much.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for name in _names(table):
        rows = table.classes == name
        _, label = np.unique(table.labels[rows], return_inverse=True)
        prompts = np.bincount(label).astype(np.float64)
        of_class = []
        for column in range(len(table.names)):
            known = (~np.isnan(table.scores[rows, column])) * table.counts[rows, column]
            outcomes = np.bincount(label, weights=known)
            seen = outcomes > 0.0
            spread = float((prompts[seen] ** 2 / outcomes[seen]).sum())
            size = prompts[seen].sum() ** 2 / spread if spread > 0.0 else 0.0
            share = prompts[seen].sum() / prompts.sum()
            mean = float(held_out[rows, column].mean())
            of_class.append({"mean": min(max(mean, 0.0), 1.0), "count": float(size * share)})
        found[name] = of_class
    return found


def _means(table: Table, rows: npt.NDArray[np.bool_]) -> list[dict[str, float]]:
    """Each model's mean score and the outcomes behind it."""
    scores, counts = table.scores[rows], table.counts[rows]
    found = []
    for column in range(len(table.names)):
        known = ~np.isnan(scores[:, column])
        count = counts[known, column]
        total = float(count.sum())
        mean = float((scores[known, column] * count).sum()) / total if total > 0.0 else 0.0
        found.append({"mean": min(max(mean, 0.0), 1.0), "count": total})
    return found


def averages(priors: Mapping[str, Any], table: Table, strength: float) -> Floats:
    """What the native code expects of each row before it looks at the text."""

    def drawn(prior: Mapping[str, float], other: float) -> float:
        count: float = prior["count"]
        return (prior["mean"] * count + other * strength) / max(count + strength, 1e-9)

    total = sum(each["count"] for each in priors["all"])
    pooled = sum(each["mean"] * each["count"] for each in priors["all"]) / max(total, 1e-9)
    of_all = [drawn(each, pooled) for each in priors["all"]]

    found = np.zeros(table.scores.shape)
    nothing = {"mean": 0.0, "count": 0.0}
    for row, (name, label) in enumerate(zip(table.classes, table.labels, strict=True)):
        for column, value_of_all in enumerate(of_all):
            in_class = priors["classes"].get(name)
            value = drawn(in_class[column] if in_class else nothing, value_of_all)
            in_label = priors["labels"].get(label)
            found[row, column] = drawn(in_label[column], value) if in_label else value
    return found


def _held_out(table: Table, fold: npt.NDArray[Any], limits: TrainingLimits) -> Floats:
    """Blended probabilities for every row, from fits that had not seen it."""
    found = np.zeros(table.scores.shape)
    for number in range(FOLDS):
        seen, rest = table.rows(fold != number), table.rows(fold == number)
        expected = averages(_priors(seen), rest, limits.strength)
        if _text_is_worth_it(table, limits):
            fit = TextFit.fit(seen.grams, seen.surface, seen.scores, seen.counts)
            expected = fit.blended(expected, rest.grams, rest.surface)
        found[fold == number] = expected
    return found


def _calibration(table: Table, held_out: Floats) -> dict[str, Line]:
    """One line a class for all models: a line of their own each would bend their differences.

    On MMLU's training rows lines of their own cost 0.005 to 0.01 of APGR, cross-validated.
    """
    known = ~np.isnan(table.scores)
    found = {}
    for name in _names(table):
        rows = known & (table.classes == name)[:, None]
        found[name] = Line.fit(held_out[rows], table.scores[rows])
    return found


def _calibrated(table: Table, held_out: Floats, lines: Mapping[str, Line]) -> Floats:
    found = held_out.copy()
    for name, line in lines.items():
        rows = table.classes == name
        found[rows] = line.apply(held_out[rows])
    return found


def _answer_check(
    outcomes: Sequence[Outcome], names: Sequence[str], fold: npt.NDArray[Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The check of answers of all models but the largest, and how well it does out of fold."""
    rows = [
        (idx, column)
        for idx, outcome in enumerate(outcomes)
        for column, name in enumerate(names[:-1] or names)
        if name in outcome.answers and name in outcome.scores
    ]
    if len(rows) < ANSWERS_MIN:
        return None, {"count": len(rows)}
    # Without the estimate from before the call: cross-validated, it makes the check worse.
    signals = answer_signals([evidence_of(outcomes[idx], names[column]) for idx, column in rows])
    scores = np.array([outcomes[idx].scores[names[column]] for idx, column in rows])
    folds = np.array([fold[idx] for idx, _ in rows])
    classes = np.array([outcomes[idx].step_class for idx, _ in rows])
    ones = np.ones(len(rows))
    mean, scale = signals.mean(axis=0), np.maximum(signals.std(axis=0), 1e-3)
    standard = (signals - mean) / scale
    held_out = np.zeros(len(rows))
    for number in range(FOLDS):
        seen = folds != number
        model = Logistic.fit(standard[seen], scores[seen], ones[seen], ANSWER_C)
        held_out[~seen] = model.probabilities(standard[~seen])
    model = Logistic.fit(standard, scores, ones, ANSWER_C)
    lines = {
        name: Line.fit(held_out[classes == name], scores[classes == name])
        for name in sorted(set(classes.tolist()))
    }
    file = {
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "weights": model.weights.tolist(),
        "intercept": model.intercept,
        "classes": {name: asdict(line) for name, line in lines.items()},
    }
    return file, {"count": len(rows), "brier": float(((held_out - scores) ** 2).mean())}


def evidence_of(outcome: Outcome, model: str) -> dict[str, Any]:
    """One model's answer as the checks of answers take it."""
    return {
        "class": outcome.step_class,
        "question": outcome.prompt,
        "answer": outcome.answers[model],
    }


def metrics_of(table: Table, probabilities: Floats) -> dict[str, Any]:
    """How well probabilities fit the outcomes: APGR, Brier scores and calibration by class."""
    found: dict[str, Any] = {"prompts": len(table.scores), "models": {}, "calibration": {}}
    for column, name in enumerate(table.names):
        known = ~np.isnan(table.scores[:, column])
        scores, expected = table.scores[known, column], probabilities[known, column]
        found["models"][name] = {
            "outcomes": int(known.sum()),
            "mean_score": float(scores.mean()),
            "brier": float(((expected - scores) ** 2).mean()),
        }
        for each in _names(table):
            rows = known & (table.classes == each)
            found["calibration"].setdefault(each, {})[name] = _bins(
                probabilities[rows, column], table.scores[rows, column]
            )
    both = ~np.isnan(table.scores[:, [0, -1]]).any(axis=1)
    if len(table.names) > 1 and both.sum() >= OUTCOMES_MIN:
        need = probabilities[both, -1] - probabilities[both, 0]
        value = apgr(need, table.scores[both, 0], table.scores[both, -1], resamples=200)
        if np.isfinite([value.value, value.low, value.high]).all():
            found["apgr"] = asdict(value)
    return found


def _bins(expected: Floats, scores: Floats) -> list[dict[str, float]]:
    """Ten bins of equal width that have rows: count, mean probability, mean score."""
    bins = np.minimum((expected * 10).astype(int), 9)
    return [
        {
            "count": int((bins == each).sum()),
            "expected": float(expected[bins == each].mean()),
            "seen": float(scores[bins == each].mean()),
        }
        for each in sorted(set(bins.tolist()))
    ]


def _digest(outcomes: Sequence[Outcome]) -> str:
    digest = hashlib.sha256()
    for outcome in outcomes:
        fields = {
            "prompt": outcome.prompt,
            "scores": dict(outcome.scores),
            "class": outcome.step_class,
            "label": outcome.label,
            "answers": dict(outcome.answers),
            "propensity": outcome.propensity,
        }
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
