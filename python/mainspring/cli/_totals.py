"""What a session amounts to, counted from its events.

Invariant: the same events give the same totals, whether they come from a running engine or from a
store that is only read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mainspring.cli._text import count, duration
from mainspring.cli._trail import edited_text, tokens
from mainspring.events import (
    CheckFinished,
    CheckStarted,
    Event,
    Failure,
    InputReceived,
    ModelCallFinished,
    SessionCancelled,
    SessionFailed,
    SessionFinished,
    SessionForked,
    SessionStarted,
    SummaryFinished,
    ToolCallStarted,
    Usage,
)


@dataclass(slots=True)
class Totals:
    """Sums over a session; `status`, `text`, `error` and `steps` are of its last turn.

    `cost_usd` is None where no call's price is known; `busy_us` is the time from each turn's first
    event to its last, for a fork without the time between the shared events and its own.
    """

    session: str = ""
    agent: str = ""
    origin: str | None = None
    status: str = "open"
    text: str | None = None
    error: Failure | None = None
    steps: int = 0
    turns: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    busy_us: int = 0

    def summary(self) -> str:
        """One line of numbers."""
        parts = [
            count(self.steps, "step"),
            count(self.model_calls, "model call"),
            count(self.tool_calls, "tool call"),
            tokens(self.usage),
            duration(self.busy_us),
        ]
        if self.turns > 1:
            parts.insert(0, count(self.turns, "turn"))
        if self.cost_usd is not None:
            parts.append(f"${self.cost_usd:.4f}")
        return ", ".join(parts)

    def as_dict(self, output: Any) -> dict[str, Any]:
        """What `--json` prints, with the answer as `output`."""
        error = self.error
        return {
            "session": self.session or None,
            "status": self.status,
            "output": output,
            "usage": {
                "input_tokens": self.usage.input_tokens,
                "output_tokens": self.usage.output_tokens,
                "cached_tokens": self.usage.cached_tokens,
                "reasoning_tokens": self.usage.reasoning_tokens,
            },
            "cost_usd": self.cost_usd,
            "steps": self.steps,
            "error": None
            if error is None
            else {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "retryable": error.retryable,
            },
        }


def total(events: Sequence[Event], *, waits: bool = False) -> Totals:
    """Counts a session's events, oldest first; `waits`: its turn waits for a decision alone."""
    sums = Totals()
    said = ""
    last: Event | None = None
    for event in events:
        if isinstance(event, (SessionStarted, SessionForked)):
            sums.session, sums.agent, sums.origin = event.session, event.agent, event.origin
        if isinstance(event, SessionForked):
            said = (
                edited_text(event) if isinstance(last, ModelCallFinished) and event.edit else said
            )
            if sums.status == "open" and sums.turns and last is not None:
                sums.busy_us -= event.at_us - last.at_us
        elif isinstance(event, InputReceived):
            sums.turns += 1
            sums.status, sums.text, sums.error, sums.steps = "open", None, None, 0
            sums.busy_us -= event.at_us
        elif isinstance(event, ModelCallFinished):
            said = event.answer.text
            _count_call(sums, event)
        elif isinstance(event, (SummaryFinished, CheckFinished)):
            _count_tokens(sums, event)
        elif isinstance(event, CheckStarted):
            sums.model_calls += event.calls
        elif isinstance(event, ToolCallStarted):
            sums.tool_calls += event.attempt == 1
        elif isinstance(event, (SessionFinished, SessionFailed, SessionCancelled)):
            _end(sums, event, said)
            sums.busy_us += event.at_us
        last = event
    if sums.status == "open" and last is not None and sums.turns:
        sums.busy_us += last.at_us
        sums.status = "waiting" if waits else "open"
    return sums


def _count_call(sums: Totals, event: ModelCallFinished) -> None:
    sums.model_calls += 1
    sums.steps = event.step + 1
    _count_tokens(sums, event)


def _count_tokens(sums: Totals, event: ModelCallFinished | SummaryFinished | CheckFinished) -> None:
    had, used = sums.usage, event.usage
    sums.usage = Usage(
        had.input_tokens + used.input_tokens,
        had.output_tokens + used.output_tokens,
        had.cached_tokens + used.cached_tokens,
        had.reasoning_tokens + used.reasoning_tokens,
    )
    if event.cost_usd is not None:
        sums.cost_usd = (sums.cost_usd or 0.0) + event.cost_usd


def _end(
    sums: Totals, event: SessionFinished | SessionFailed | SessionCancelled, said: str
) -> None:
    if isinstance(event, SessionFinished):
        sums.status, sums.text = "finished", said
    elif isinstance(event, SessionFailed):
        sums.status, sums.error = "failed", event.error
    else:
        sums.status = "cancelled"
        sums.error = Failure("cancelled", f"the session was cancelled: {event.reason}")
