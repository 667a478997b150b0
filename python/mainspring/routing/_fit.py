"""The regressions that the weights file holds: fitted here, used by the native code.

Scores between 0 and 1 count as so much right and so much wrong; a missing score is nan. Reading
starts at `TextFit.fit`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from mainspring.routing._features import BUCKET_COUNT, document_rarity, weighted

Floats = npt.NDArray[np.float64]

GRAMS_C = 3.0
"""Inverse strength of the penalty on the grams; cross-validated on MMLU's training rows."""

SURFACE_C = 0.1
"""Inverse strength of the penalty on the surface features; cross-validated likewise."""

ANSWER_C = 0.03
"""Inverse strength of the penalty on an answer's signals; cross-validated on RouterArena's training
rows."""

DOCUMENT_COUNT_MIN = 2
"""A gram of fewer texts is left out."""

GRAMS_WEIGHT = 1.0
"""Weight of the grams beside 1 for the average; cross-validated likewise."""

SURFACE_WEIGHT = 0.5
"""Weight of the surface features beside 1 for the average; cross-validated likewise."""

SIGNATURE_COUNT = 32
"""Grams that tell whether a text is of the kind that was learnt from."""

STRANGE_PERCENT = 10.0
"""Training texts that each of the two tests takes for strange. Fewer let texts of another kind
through: at 5 %, one in twenty of MMLU's passes for RouterArena's, at 10 % none."""

CALIBRATION_PENALTY = 5.0
"""How strongly a calibration is held to the identity, in outcomes."""

SHARE_SLACK = 1e-3
"""Keeps the logarithms of shares of 0 and 1 finite; the same in the native code."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """One logistic regression: a weight for each column, and an intercept."""

    weights: Floats
    intercept: float

    @classmethod
    def fit(cls, features: Any, scores: Floats, counts: Floats, c: float) -> "Logistic":
        """Fits scores in 0 to 1; where all are the same, the intercept alone says so."""
        width = features.shape[1]
        right, wrong = scores * counts, (1.0 - scores) * counts
        if right.sum() <= 0.0 or wrong.sum() <= 0.0:
            share = (right.sum() + 1.0) / (right.sum() + wrong.sum() + 2.0)
            return cls(np.zeros(width), float(np.log(share / (1.0 - share))))
        is_sparse = sparse.issparse(features)
        rows = np.concatenate([np.flatnonzero(right > 0.0), np.flatnonzero(wrong > 0.0)])
        labels = np.concatenate(
            [np.ones(int((right > 0.0).sum())), np.zeros(int((wrong > 0).sum()))]
        )
        model = LogisticRegression(
            C=c, solver="liblinear" if is_sparse else "lbfgs", max_iter=1000, random_state=0
        )
        share = np.concatenate([right[right > 0.0], wrong[wrong > 0.0]])
        model.fit(features[rows], labels, sample_weight=share)
        weights = np.asarray(model.coef_, dtype=np.float64).ravel()
        return cls(weights, float(np.asarray(model.intercept_).ravel()[0]))

    def probabilities(self, features: Any) -> Floats:
        """Probability of a right answer for each row."""
        return sigmoid(np.asarray(features @ self.weights).ravel() + self.intercept)


@dataclass(frozen=True, slots=True)
class TextFit:
    """From texts to each model's probability, by grams and by surface."""

    rarity: Floats
    mean: Floats
    scale: Floats
    grams: list[Logistic]
    surface: list[Logistic]

    @classmethod
    def fit(cls, grams: Any, surface: Floats, scores: Floats, counts: Floats) -> "TextFit":
        """Fits a pair of regressions for each column of `scores`."""
        rarity = document_rarity(grams, document_count_min=DOCUMENT_COUNT_MIN)
        mean, scale = surface.mean(axis=0), np.maximum(surface.std(axis=0), 1e-3)
        seen = np.flatnonzero(rarity)
        values, standard = weighted(grams, rarity)[:, seen], (surface - mean) / scale
        pairs = []
        for column in range(scores.shape[1]):
            known = np.flatnonzero(~np.isnan(scores[:, column]))
            target, count = scores[known, column], counts[known, column]
            pairs.append(
                (
                    _widened(Logistic.fit(values[known], target, count, GRAMS_C), seen),
                    Logistic.fit(standard[known], target, count, SURFACE_C),
                )
            )
        return cls(rarity, mean, scale, [pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def probabilities(self, grams: Any, surface: Floats) -> Floats:
        """Each model's probability for each text (texts x models)."""
        values, standard = weighted(grams, self.rarity), (surface - self.mean) / self.scale
        by_grams = np.column_stack([each.probabilities(values) for each in self.grams])
        by_surface = np.column_stack([each.probabilities(standard) for each in self.surface])
        total = GRAMS_WEIGHT + SURFACE_WEIGHT
        return (GRAMS_WEIGHT * by_grams + SURFACE_WEIGHT * by_surface) / total

    def blended(self, averages: Floats, grams: Any, surface: Floats) -> Floats:
        """The averages and what the texts say, as the native code blends them."""
        total = GRAMS_WEIGHT + SURFACE_WEIGHT
        return (averages + total * self.probabilities(grams, surface)) / (1.0 + total)

    def as_file(self, domain: dict[str, Any]) -> dict[str, Any]:
        """The `text` part of the weights file."""
        index = np.flatnonzero(self.rarity > 0.0)
        return {
            "grams_weight": GRAMS_WEIGHT,
            "surface_weight": SURFACE_WEIGHT,
            "grams": {
                "index": index.tolist(),
                "idf": [_short(value) for value in self.rarity[index]],
                "weights": [
                    [_short(value) for value in each.weights[index]] for each in self.grams
                ],
                "intercepts": [each.intercept for each in self.grams],
            },
            "surface": {
                "mean": self.mean.tolist(),
                "scale": self.scale.tolist(),
                "weights": [each.weights.tolist() for each in self.surface],
                "intercepts": [each.intercept for each in self.surface],
            },
            "domain": domain,
        }


def domain_of(grams: Any, surface: Floats, fit: TextFit) -> dict[str, Any]:
    """What the texts look like, so that one in six of them, and most others, count as strange."""
    present = grams > 0
    share_of_all = np.asarray(present.mean(axis=0)).ravel()
    signature = np.sort(np.argsort(-share_of_all, kind="stable")[:SIGNATURE_COUNT])
    share = np.array([_short(value) for value in share_of_all[signature]])
    has = present[:, signature].toarray()
    fits = np.where(has, np.log(share + SHARE_SLACK), np.log(1.0 - share + SHARE_SLACK)).mean(
        axis=1
    )
    distance = np.abs((surface - fit.mean) / fit.scale).max(axis=1)
    return {
        "surface_max": float(np.percentile(distance, 100.0 - STRANGE_PERCENT)),
        "signature": signature.tolist(),
        "share": share.tolist(),
        "fit_min": float(np.percentile(fits, STRANGE_PERCENT)),
    }


@dataclass(frozen=True, slots=True)
class Line:
    """A calibration: a straight line in log-odds."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(cls, probabilities: Floats, scores: Floats) -> "Line":
        """Fits by Newton's method, held to the identity where there is little to learn from.

        Source:
            Platt 1999, "Probabilistic outputs for support vector machines".
        """
        odds = log_odds(probabilities)
        design = np.column_stack([odds, np.ones(len(odds))])
        identity = np.array([1.0, 0.0])
        line = identity.copy()
        for _ in range(50):
            expected = sigmoid(design @ line)
            gradient = design.T @ (expected - scores) + CALIBRATION_PENALTY * (line - identity)
            spread = expected * (1.0 - expected)
            curvature = design.T @ (design * spread[:, None]) + CALIBRATION_PENALTY * np.eye(2)
            step = np.linalg.solve(curvature, gradient)
            line = line - step
            if np.abs(step).max() < 1e-10:
                break
        return cls(float(line[0]), float(line[1]))

    def apply(self, probabilities: Floats) -> Floats:
        """The calibrated probabilities."""
        return sigmoid(self.slope * log_odds(probabilities) + self.intercept)


def sigmoid(values: Floats) -> Floats:
    """Log-odds to probabilities."""
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float64)


def log_odds(probabilities: Floats) -> Floats:
    """Probabilities to log-odds, bounded as in the native code."""
    bounded = np.clip(probabilities, 1e-4, 1.0 - 1e-4)
    return np.asarray(np.log(bounded / (1.0 - bounded)), dtype=np.float64)


def _widened(model: Logistic, seen: npt.NDArray[np.intp]) -> Logistic:
    """A regression on the seen buckets as one on all, with the digits that the file holds."""
    weights = np.zeros(BUCKET_COUNT)
    weights[seen] = [_short(value) for value in model.weights]
    return Logistic(weights, model.intercept)


def _short(value: float) -> float:
    """A number of which the file holds every digit: what is fitted is what is served."""
    return float(f"{np.float32(value):.6g}")
