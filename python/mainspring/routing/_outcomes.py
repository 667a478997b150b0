"""Outcomes: which model did how well at which prompt, read from tables and checked.

Invariant: an `Outcome` is complete in itself and its numbers are in range; what a table says
wrongly is refused with its line. Reading starts at `read_outcomes`.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mainspring._native import route_names
from mainspring.errors import RouteError

STEP_CLASSES: tuple[str, ...] = tuple(route_names()[2])
"""The classes of steps, as logs and tables name them."""

TABLE_BYTES_MAX = 4 * 1024**3
"""Greatest size of a table that is read."""

_PLAIN = ("prompt", "class", "label", "split", "chosen", "propensity")
_PER_MODEL = ("score", "cost_usd", "input_tokens", "output_tokens", "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one prompt.

    Attributes:
        prompt: The step's own short text.
        scores: How well each model that was tried did, 0 (wrong) to 1 (right).
        step_class: What the step was for, one of `STEP_CLASSES`.
        label: A finer name of the task, such as an agent or a subject; "" if there is none.
        split: What the row is for, such as `train`; "" if the table has no splits.
        costs_usd: What each model's call cost, in US dollars.
        input_tokens: Tokens each model read.
        output_tokens: Tokens each model wrote.
        answers: What each model answered, if that was kept.
        chosen: The model that the logged policy began with; None: not from a log.
        propensity: Probability with which it took that model, above 0 up to 1.
    """

    prompt: str
    scores: Mapping[str, float]
    step_class: str = "answer"
    label: str = ""
    split: str = ""
    costs_usd: Mapping[str, float] = field(default_factory=dict)
    input_tokens: Mapping[str, int] = field(default_factory=dict)
    output_tokens: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    chosen: str | None = None
    propensity: float | None = None


def read_outcomes(path: str | Path, *, split: str | None = None) -> list[Outcome]:
    """Reads a table of outcomes, in the order of the file.

    A table has the columns `prompt` and `score.MODEL` for each model; `class`, `label`, `split`,
    `cost_usd.MODEL`, `input_tokens.MODEL`, `output_tokens.MODEL`, `answer.MODEL`, `chosen` and
    `propensity` may be there. An empty field, or none, means that it is not known.

    Args:
        path: A file that ends in `.csv` (with a head line), or in `.jsonl` (an object a line).
        split: Only rows of this split; None: all rows.

    Returns:
        The outcomes; at least one.

    Raises:
        RouteError: `route_invalid`: the file cannot be read, a column is not known, a value is out
            of range, or no row is left.
    """
    file = Path(path)
    kept = [row for row in _rows(file) if split is None or row.split == split]
    if not kept:
        what = "no rows" if split is None else f'no rows of the split "{split}"'
        raise _invalid(f'the table "{file.name}" has {what}')
    return kept


def models_of(outcomes: Iterable[Outcome]) -> list[str]:
    """The models that outcomes speak of, in the order in which they first come."""
    seen: dict[str, None] = {}
    for outcome in outcomes:
        seen.update(dict.fromkeys(outcome.scores))
    return list(seen)


def _rows(file: Path) -> Iterator[Outcome]:
    readers = {".csv": _csv_fields, ".jsonl": _jsonl_fields}
    reader = readers.get(file.suffix)
    if reader is None:
        raise _invalid(
            f'the table "{file.name}" ends in "{file.suffix}", allowed are .csv and .jsonl'
        )
    try:
        if file.stat().st_size > TABLE_BYTES_MAX:
            size = file.stat().st_size
            raise _invalid(f"the table has {size} bytes, at most {TABLE_BYTES_MAX} are read")
        for line, fields in reader(file):
            yield _outcome(fields, f'line {line} of "{file.name}"')
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _invalid(f'the table "{file.name}" cannot be read: {error}') from error


def _csv_fields(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, restkey="")
        for fields in reader:
            if "" in fields:
                raise _invalid(f"line {reader.line_num} has more fields than the head line")
            yield reader.line_num, {key: value for key, value in fields.items() if value}


def _jsonl_fields(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise _invalid(f"line {number} is not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise _invalid(f"line {number} is {type(fields).__name__}, needed is an object")
            yield number, {key: value for key, value in fields.items() if value is not None}


def _outcome(fields: dict[str, Any], where: str) -> Outcome:
    values: dict[str, dict[str, Any]] = {name: {} for name in _PER_MODEL}
    for column, value in fields.items():
        name, dot, model = column.partition(".")
        if dot and name in values and model:
            values[name][model] = value
        elif column not in _PLAIN:
            per_model = ", ".join(f"{each}.MODEL" for each in _PER_MODEL)
            raise _invalid(
                f'{where} has the column "{column}", known are {", ".join(_PLAIN)}, {per_model}'
            )
    step_class = str(fields.get("class", "answer"))
    if step_class not in STEP_CLASSES:
        raise _invalid(f'{where} has the class "{step_class}", known are {", ".join(STEP_CLASSES)}')
    if not isinstance(fields.get("prompt"), str):
        raise _invalid(f"{where} has no prompt")
    scores = _numbers(values["score"], f"{where}: score", 1.0)
    chosen, propensity = fields.get("chosen"), fields.get("propensity")
    if (chosen is None) != (propensity is None):
        raise _invalid(f"{where} has only one of chosen and propensity")
    if propensity is not None:
        propensity = _number(propensity, f"{where}: propensity", 1.0)
        if propensity == 0.0:
            raise _invalid(f"{where}: propensity is 0, allowed are numbers above 0 up to 1")
    if chosen is not None and chosen not in scores:
        raise _invalid(f'{where}: the chosen model "{chosen}" has no score')
    tokens = {
        name: {
            model: int(count)
            for model, count in _numbers(values[name], f"{where}: {name}", 1e12).items()
        }
        for name in ("input_tokens", "output_tokens")
    }
    return Outcome(
        prompt=fields["prompt"],
        scores=scores,
        step_class=step_class,
        label=str(fields.get("label", "")),
        split=str(fields.get("split", "")),
        costs_usd=_numbers(values["cost_usd"], f"{where}: cost_usd", 1e9),
        answers={model: str(text) for model, text in values["answer"].items()},
        chosen=chosen,
        propensity=propensity,
        **tokens,
    )


def _numbers(values: Mapping[str, Any], where: str, most: float) -> dict[str, float]:
    return {model: _number(value, f"{where}.{model}", most) for model, value in values.items()}


def _number(value: Any, where: str, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= most:
        raise _invalid(f"{where} is {value!r}, allowed are numbers from 0 to {most:g}")
    return number


def _invalid(message: str) -> RouteError:
    return RouteError("route_invalid", message)
