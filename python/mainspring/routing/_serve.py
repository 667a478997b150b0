"""Decisions and verdicts of the native code, for rows of outcomes.

Invariant: nothing is computed here: what is reported is what a session would have got. Reading
starts at `probabilities`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mainspring._lane import public_error
from mainspring._native import RouteWeights, route_choose, route_score
from mainspring.errors import RouteError
from mainspring.routing._outcomes import Outcome

Floats = npt.NDArray[np.float64]
Policy = Mapping[str, Any]

BATCH_COUNT = 2000
"""Decisions that are made in one call."""

BYTES_PER_TOKEN = 4
"""Bytes of a prompt that make a token, where the table does not say."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars for a million tokens."""

    input_usd: float
    output_usd: float


class Weights:
    """Learnt weights, as the native code has read them.

    Args:
        file: The weights file's content.

    Raises:
        RouteError: `route_invalid`: it is not such a file; `route_version`: it is of another
            version.
    """

    def __init__(self, file: bytes) -> None:
        """Reads and checks the file."""
        self.native = _public(lambda: RouteWeights(file))

    @classmethod
    def load(cls, path: str | Path) -> "Weights":
        """Reads a weights file.

        Raises:
            RouteError: as for `Weights`, or the file cannot be read.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            text = f'the weights "{path}" cannot be read: {error.strerror}'
            raise RouteError("route_invalid", text) from error
        return cls(content)

    @property
    def id(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return str(self.native.id)

    @property
    def models(self) -> list[str]:
        """The models that it knows."""
        return list(self.native.models)


def decide(
    outcomes: Sequence[Outcome],
    models: Sequence[str],
    *,
    weights: Weights | None,
    policy: Policy | None = None,
    prices: Mapping[str, Price] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The decision for each row, as an event of a session would hold it.

    Args:
        outcomes: The rows; their scores are not looked at.
        models: The models of the route, in its order.
        weights: What was learnt; None: nothing.
        policy: Numbers that differ from the default policy.
        prices: Prices of models; a model that is missing has no known price.
        seed: The first row's seed; each further row has the next.

    Raises:
        RouteError: `route_invalid`: the policy cannot be used.
    """
    found: list[dict[str, Any]] = []
    questions = (
        _question(outcome, models, prices or {}, seed + idx) for idx, outcome in enumerate(outcomes)
    )
    text = json.dumps(dict(policy or {})).encode()
    native = None if weights is None else weights.native
    for batch in _batches(questions):
        body = json.dumps(batch).encode()
        found.extend(
            msgspec.json.decode(_public(lambda body=body: route_choose(text, native, body)))
        )
    return found


def probabilities(outcomes: Sequence[Outcome], models: Sequence[str], weights: Weights) -> Floats:
    """Probability of a right answer of each model at each row (rows x models); nan: not known."""
    decisions = decide(outcomes, models, weights=weights)
    return np.array(
        [[each.get("p_ok", np.nan) for each in decision["candidates"]] for decision in decisions]
    ).reshape(len(outcomes), len(models))


def verdicts(
    evidence: Sequence[Mapping[str, Any]],
    *,
    weights: Weights | None,
    policy: Policy | None = None,
) -> list[dict[str, Any]]:
    """The verdict on each answer: `p_ok`, `accept` and `reasons`."""
    text = json.dumps(dict(policy or {})).encode()
    native = None if weights is None else weights.native
    found: list[dict[str, Any]] = []
    for batch in _batches(dict(each) for each in evidence):
        body = json.dumps(batch).encode()
        found.extend(
            msgspec.json.decode(_public(lambda body=body: route_score(text, native, body)))
        )
    return found


def prices_of(outcomes: Sequence[Outcome], models: Sequence[str]) -> dict[str, Price]:
    """Prices that explain what the calls in a table cost; none for models without costs.

    Without token counts the price of a token read is given, at four bytes a token.
    """
    found = {}
    for model in models:
        rows = [each for each in outcomes if model in each.costs_usd]
        if not rows:
            continue
        cost = np.array([each.costs_usd[model] for each in rows]) * 1e6
        tokens = np.array([[tokens_in(each, model), tokens_out(each, model)] for each in rows])
        both, *_ = np.linalg.lstsq(tokens, cost, rcond=None)
        if tokens[:, 1].any() and both.min() >= 0.0:
            found[model] = Price(float(both[0]), float(both[1]))
        else:
            found[model] = Price(float(cost.sum() / max(tokens[:, 0].sum(), 1)), 0.0)
    return found


def tokens_in(outcome: Outcome, model: str) -> int:
    """Tokens a model read, guessed from the prompt where the table does not say."""
    return outcome.input_tokens.get(model, len(outcome.prompt.encode()) // BYTES_PER_TOKEN)


def tokens_out(outcome: Outcome, model: str) -> int:
    """Tokens a model wrote; 0 where the table does not say."""
    return outcome.output_tokens.get(model, 0)


def _question(
    outcome: Outcome, models: Sequence[str], prices: Mapping[str, Price], seed: int
) -> dict[str, Any]:
    # The same for all models: a decision knows the request, and not what will become of it.
    known_in = [tokens_in(outcome, model) for model in models]
    known_out = [tokens_out(outcome, model) for model in models]
    return {
        "step": {
            "class": outcome.step_class,
            "label": outcome.label,
            "text": outcome.prompt,
            "input_tokens": sum(known_in) // max(len(known_in), 1),
            "output_tokens": sum(known_out) // max(len(known_out), 1),
            "seed": seed,
        },
        "candidates": [
            {
                "name": model,
                "price": None
                if model not in prices
                else {
                    "input_usd": prices[model].input_usd,
                    "output_usd": prices[model].output_usd,
                },
            }
            for model in models
        ],
    }


def _batches(items: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH_COUNT:
            yield batch
            batch = []
    if batch:
        yield batch


def _public(work: Any) -> Any:
    try:
        return work()
    except RuntimeError as error:
        raise public_error(error) from None
