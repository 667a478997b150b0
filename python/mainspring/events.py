"""What happens in a session, one class per kind of event.

Invariant: an event object is the stored event and its place, nothing is added or left out; a kind
of a newer version reads as `UnknownEvent` and keeps its text. Start reading at `Event`.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from mainspring.errors import MainspringError, from_failure

__all__ = [
    "AnswerRejected",
    "AnswerVerified",
    "ApprovalDecided",
    "ApprovalRequested",
    "CancelRequested",
    "EffectResolved",
    "EffectUnknown",
    "EpochTaken",
    "Event",
    "Failure",
    "InputReceived",
    "LimitReached",
    "ModelCallFailed",
    "ModelCallFinished",
    "ModelCallStarted",
    "ModelDelta",
    "Problem",
    "RouteDecided",
    "SessionCancelled",
    "SessionFailed",
    "SessionFinished",
    "SessionForked",
    "SessionStarted",
    "ToolCallFailed",
    "ToolCallFinished",
    "ToolCallLate",
    "ToolCallRequest",
    "ToolCallStarted",
    "UnknownEvent",
    "Usage",
    "decode_event",
]


class Failure(msgspec.Struct, frozen=True):
    """An error as data: what the log holds, and what a model reads.

    Attributes:
        code: Stable name of the kind of failure; docs/reference/errors.md lists them.
        message: What failed, on what, the value seen, the value allowed.
        hint: How to cure it, if there is a cure.
        retryable: Whether trying again, unchanged, can help.
    """

    code: str
    message: str
    hint: str | None = None
    retryable: bool = False

    def exception(self, **fields: Any) -> MainspringError:
        """The failure as the exception of its kind."""
        return from_failure(self.code, self.message, self.hint, self.retryable, **fields)


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call, as the provider counted them.

    Attributes:
        input_tokens: Tokens read, cached ones included.
        output_tokens: Tokens written, reasoning included.
        cached_tokens: Of the tokens read, those from the provider's prompt cache.
        reasoning_tokens: Of the tokens written, those spent on reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class ToolCallRequest(msgspec.Struct, frozen=True):
    """A tool call as a model asked for it.

    Attributes:
        id: Pairs the call with its result inside the conversation.
        name: The tool.
        arguments: The arguments as the model wrote them, JSON if it wrote JSON.
    """

    id: str
    name: str
    arguments: str


class ModelAnswer(msgspec.Struct, frozen=True):
    """What a model answered: text, tool calls, or both."""

    text: str = ""
    tool_calls: list[ToolCallRequest] = []


class Timing(msgspec.Struct, frozen=True):
    """How long a model call took, in microseconds; `first_token_us` for streams only."""

    total_us: int
    first_token_us: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """Something a check found wrong with an answer.

    Attributes:
        check: Which check: `finish_reason`, `parse`, `empty`, `tool_unknown`, `tool_arguments`,
            `tool_count`, `output_schema`, `verify`.
        message: What it found.
        call: Position of the tool call it is about; None: about the whole answer.
    """

    check: str
    message: str
    call: int | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One thing that happened.

    Attributes:
        seq: Position in the session; the first is 0. -1 for `ModelDelta`, which is not stored.
        at_us: When, in microseconds since 1970 (UTC).
    """

    seq: int = -1
    at_us: int = 0

    @property
    def kind(self) -> str:
        """The event's kind, such as `tool_call_started`."""
        return str(self.__struct_config__.tag)

    @property
    def at(self) -> datetime:
        """When, as a time in UTC."""
        return datetime.fromtimestamp(self.at_us / 1e6, tz=UTC)


class SessionStarted(Event, frozen=True, kw_only=True, tag="session_started"):
    """The session began, with the agent whose spec has this fingerprint."""

    schema: int
    session: str
    agent: str
    fingerprint: str
    origin: str | None = None
    store: str = ""
    held: bool = False


class SessionForked(Event, frozen=True, kw_only=True, tag="session_forked"):
    """The session began with the events of `parent` up to here, and perhaps one thing edited."""

    session: str
    parent: str
    epoch: int
    agent: str
    fingerprint: str
    origin: str | None = None
    store: str = ""
    edit: dict[str, Any] | None = None


class InputReceived(Event, frozen=True, kw_only=True, tag="input_received"):
    """A user's input began a turn; `content` holds its parts, such as `{"type": "text", ...}`."""

    content: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The input's text."""
        return "\n".join(part["text"] for part in self.content if part.get("type") == "text")


class RouteDecided(Event, frozen=True, kw_only=True, tag="route_decided"):
    """The router chose the model of the steps from here on, for a reason in words."""

    step: int
    tier: int
    model: str
    reason: str


class ModelCallStarted(Event, frozen=True, kw_only=True, tag="model_call_started"):
    """A model call was about to be made with these ranges `[from, to)` of the conversation."""

    step: int
    attempt: int
    tier: int
    messages: list[tuple[int, int]]


class ModelCallFinished(Event, frozen=True, kw_only=True, tag="model_call_finished"):
    """A model answered. An answer with problems counts only if it is sent back for repair."""

    step: int
    attempt: int
    answer: ModelAnswer
    finish_reason: str
    usage: Usage
    timing: Timing
    cost_usd: float | None = None
    problems: list[Problem] = []
    verify: bool = False


class ModelCallFailed(Event, frozen=True, kw_only=True, tag="model_call_failed"):
    """A model call failed; `retry_at_us` says when it is tried again, None that it is not."""

    step: int
    attempt: int
    error: Failure
    retry_at_us: int | None = None
    retry_after_ms: int | None = None


class AnswerVerified(Event, frozen=True, kw_only=True, tag="answer_verified"):
    """The route's `verify` function accepted the answer."""

    step: int


class AnswerRejected(Event, frozen=True, kw_only=True, tag="answer_rejected"):
    """An answer failed its checks; `action` is `escalate`, `repair`, `continue` or `fail`."""

    step: int
    problems: list[Problem]
    action: str


class ToolCallStarted(Event, frozen=True, kw_only=True, tag="tool_call_started"):
    """A tool call was about to be made; `call` counts the session's calls from 0."""

    call: int
    attempt: int
    name: str
    effect_id: str


class ToolCallFinished(Event, frozen=True, kw_only=True, tag="tool_call_finished"):
    """A tool returned the text that the model reads."""

    call: int
    text: str
    duration_us: int


class ToolCallFailed(Event, frozen=True, kw_only=True, tag="tool_call_failed"):
    """A tool call failed, or was refused before it ran (`attempt` 0)."""

    call: int
    attempt: int
    error: Failure
    retry_at_us: int | None = None


class ToolCallLate(Event, frozen=True, kw_only=True, tag="tool_call_late"):
    """A call's outcome came after the call had been given up; no model sees it."""

    call: int
    attempt: int
    text: str | None = None
    error: Failure | None = None


class ApprovalRequested(Event, frozen=True, kw_only=True, tag="approval_requested"):
    """A tool call waits for a person; `approval` names this request, which is answered once."""

    call: int
    approval: str


class ApprovalDecided(Event, frozen=True, kw_only=True, tag="approval_decided"):
    """A person answered a request: `granted`, perhaps with other arguments, or `denied`."""

    call: int
    approval: str
    decision: str
    arguments: str | None = None
    message: str | None = None
    by: str | None = None


class EffectUnknown(Event, frozen=True, kw_only=True, tag="effect_unknown"):
    """The process ended while an unsafe tool ran: what became of the call must be found out."""

    call: int
    attempt: int


class EffectResolved(Event, frozen=True, kw_only=True, tag="effect_resolved"):
    """What became of such a call: `done`, `not_done`, `failed`, or still `undecided`."""

    call: int
    outcome: str
    text: str | None = None
    message: str | None = None
    by: str | None = None


class CancelRequested(Event, frozen=True, kw_only=True, tag="cancel_requested"):
    """Somebody asked for the turn to end."""

    reason: str


class LimitReached(Event, frozen=True, kw_only=True, tag="limit_reached"):
    """The turn used as much as a limit allows."""

    limit: str
    value: int
    allowed: int


class EpochTaken(Event, frozen=True, kw_only=True, tag="epoch_taken"):
    """A new owner took the session over; older owners can write no more."""

    epoch: int
    fingerprint: str
    store: str = ""
    held: bool = False


class SessionFinished(Event, frozen=True, kw_only=True, tag="session_finished"):
    """The turn ended with the answer of this step."""

    step: int


class SessionFailed(Event, frozen=True, kw_only=True, tag="session_failed"):
    """The turn ended with an error."""

    error: Failure


class SessionCancelled(Event, frozen=True, kw_only=True, tag="session_cancelled"):
    """The turn was cancelled."""

    reason: str


class ModelDelta(Event, frozen=True, kw_only=True, tag="model_delta"):
    """Text of an answer that is being written; live only, never stored."""

    step: int
    attempt: int
    text: str


class UnknownEvent(Event, frozen=True, kw_only=True, tag="unknown"):
    """An event of a kind that this version does not know.

    Attributes:
        stored_kind: Its kind.
        data: All its fields.
    """

    stored_kind: str
    data: dict[str, Any]


TERMINAL = (SessionFinished, SessionFailed, SessionCancelled)
"""The events that end a turn."""

_Stored = (
    SessionStarted
    | SessionForked
    | InputReceived
    | RouteDecided
    | ModelCallStarted
    | ModelCallFinished
    | ModelCallFailed
    | AnswerVerified
    | AnswerRejected
    | ToolCallStarted
    | ToolCallFinished
    | ToolCallFailed
    | ToolCallLate
    | ApprovalRequested
    | ApprovalDecided
    | EffectUnknown
    | EffectResolved
    | CancelRequested
    | LimitReached
    | EpochTaken
    | SessionFinished
    | SessionFailed
    | SessionCancelled
)
_DECODER: "msgspec.json.Decoder[Event]" = msgspec.json.Decoder(_Stored)


def placed(seq: int, at_us: int, text: str) -> str:
    """The JSON of an event with its place in front: what `--json` prints, one line."""
    return f'{{"seq":{seq},"at_us":{at_us},{text[1:]}'


def decode_event(seq: int, at_us: int, text: str) -> Event:
    """Reads a stored event.

    Args:
        seq: Its position.
        at_us: Its time.
        text: The event's JSON, as stored.
    """
    line = placed(seq, at_us, text)
    try:
        return _DECODER.decode(line)
    except msgspec.ValidationError:
        data = msgspec.json.decode(text)
        kind = str(data.pop("kind", "unknown"))
        return UnknownEvent(seq=seq, at_us=at_us, stored_kind=kind, data=data)
