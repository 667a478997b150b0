"""Outcomes from what sessions did: the decisions in their logs, and what became of them.

The model that a step began with is right if its answers were accepted until the next decision, and
wrong if one was rejected for good; a model that was asked after it is judged by the same rule. Of
a model that was not asked nothing is known. Reading starts at `outcomes_of_store`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mainspring._lane import public_error
from mainspring._native import JournalReader
from mainspring.reports import SessionInfo
from mainspring.routing._outcomes import STEP_CLASSES, Outcome

PAGE_SESSIONS = 500
"""Sessions that are listed at a time."""

PROMPT_BYTES_MAX = 2048
"""Bytes of an input that count as the step's own text, as in a running session."""


def outcomes_of_store(store: str, *, sessions_max: int = 100_000) -> list[Outcome]:
    """Reads the outcomes of routed steps from a store, newest session first.

    The store is only read, also beside a running engine.

    Args:
        store: The store's address.
        sessions_max: Sessions to read at most.

    Returns:
        A row for each decision between models; none if no session had a choice. The label is the
        agent's name, as in a running session.

    Raises:
        JournalError: The store cannot be read.
    """
    try:
        reader = JournalReader(store)
        try:
            return [
                row
                for session, own_from in _sessions(reader, sessions_max)
                for row in outcomes_of_events(_events(reader, session, own_from))
            ]
        finally:
            reader.close()
    except RuntimeError as error:
        raise public_error(error) from None


@dataclass
class _Open:
    """A decision whose outcome is still open."""

    decision: dict[str, Any]
    prompt: str
    label: str
    model: str
    right: dict[str, bool] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def outcomes_of_events(events: list[dict[str, Any]]) -> list[Outcome]:
    """The outcomes in one session's events, oldest first, each as the stored object."""
    found: list[Outcome] = []
    current: _Open | None = None
    prompt = label = ""
    for event in events:
        kind = event.get("kind")
        if kind in ("session_started", "session_forked"):
            label = event.get("agent", "")
        elif kind == "input_received":
            prompt = _prompt(event)
        elif kind == "route_decided":
            decision = event.get("decision")
            if decision is None and current is not None:
                current.model = event["model"]
            else:
                found.extend(_closed(current))
                current = decision and _Open(decision, prompt, label, event["model"])
        elif current is not None:
            _take(current, event)
            if kind in ("session_finished", "session_failed", "session_cancelled"):
                # Nobody knows what would have come of a turn that was cancelled.
                found.extend(() if kind == "session_cancelled" else _closed(current))
                current = None
    return found


def _take(current: _Open, event: dict[str, Any]) -> None:
    model, kind = current.model, event.get("kind")
    if kind == "model_call_finished":
        usage = event.get("usage", {})
        current.costs[model] = current.costs.get(model, 0.0) + (event.get("cost_usd") or 0.0)
        current.reads[model] = current.reads.get(model, 0) + usage.get("input_tokens", 0)
        current.writes[model] = current.writes.get(model, 0) + usage.get("output_tokens", 0)
        current.texts[model] = event.get("answer", {}).get("text", "")
        current.right.setdefault(model, True)
    elif kind == "answer_rejected" and event.get("action") in ("escalate", "fail"):
        current.right[model] = False


def _closed(current: _Open | None) -> Iterator[Outcome]:
    """The row of a decision, if the model that it took has answered."""
    if current is None:
        return
    decision = current.decision
    chosen = decision["candidates"][decision["tier"]]["name"]
    if (
        not current.prompt
        or chosen not in current.right
        or not 0.0 < decision.get("propensity", 0.0) <= 1.0
    ):
        return
    step_class = decision.get("class", "chat")
    yield Outcome(
        prompt=current.prompt,
        scores={model: float(right) for model, right in current.right.items()},
        step_class=step_class if step_class in STEP_CLASSES else "chat",
        label=current.label,
        costs_usd=current.costs,
        input_tokens=current.reads,
        output_tokens=current.writes,
        answers=current.texts,
        chosen=chosen,
        propensity=decision["propensity"],
    )


def _prompt(event: dict[str, Any]) -> str:
    parts = event.get("content", [])
    text = next((part["text"] for part in parts if part.get("type") == "text"), "")
    return str(text).encode()[:PROMPT_BYTES_MAX].decode(errors="ignore")


def _sessions(reader: JournalReader, most: int) -> Iterator[tuple[str, int]]:
    """Ids, each with the first position that is not another session's too."""
    before: str | None = None
    left = most
    while left > 0:
        page = reader.sessions(None, min(PAGE_SESSIONS, left), before)
        for info in (SessionInfo(*head) for head in page):
            yield info.session, info.shared_count or 0
        if len(page) < PAGE_SESSIONS:
            return
        before, left = str(page[-1][0]), left - len(page)


def _events(reader: JournalReader, session: str, own_from: int) -> list[dict[str, Any]]:
    return [msgspec.json.decode(record[3]) for record in reader.load(session, own_from)]
