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
    "AnswerRestarted",
    "AnswerScore",
    "AnswerVerified",
    "ApprovalDecided",
    "ApprovalRequested",
    "BudgetSet",
    "CacheBust",
    "CallNotes",
    "CancelRequested",
    "CheckFinished",
    "CheckStarted",
    "ContextCompacted",
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
    "Reasoning",
    "RouteCandidate",
    "RouteDecided",
    "RouteDecision",
    "RouteGate",
    "SessionCancelled",
    "SessionFailed",
    "SessionFinished",
    "SessionForked",
    "SessionStarted",
    "SummaryFailed",
    "SummaryFinished",
    "SummaryStarted",
    "ToolCallFailed",
    "ToolCallFinished",
    "ToolCallLate",
    "ToolCallRequest",
    "ToolCallStarted",
    "TurnClock",
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
        cache_write_tokens: Of the tokens read, those put into the provider's prompt cache.
        reasoning_tokens: Of the tokens written, those spent on reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0


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


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of what a model thought before it answered.

    Attributes:
        kind: In which form its API gave it.
        origin: Who thought it, as `NAME@HOST`.
        text: What of it can be read; may be empty.
        after: How many parts of the answer came before it: its text, then its tool calls.
    """

    kind: str
    origin: str
    text: str = ""
    after: int = 0


class ModelAnswer(msgspec.Struct, frozen=True):
    """What a model answered: text, tool calls, or both, and what it thought before."""

    text: str = ""
    tool_calls: list[ToolCallRequest] = []
    reasoning: list[Reasoning] = []


class CacheBust(msgspec.Struct, frozen=True):
    """A provider's prompt cache that could have been used and was not.

    Attributes:
        reason: `prefix_changed`: the request began with other bytes than the one before;
            `not_cached`: it began with the same, and the provider did not take them from its cache.
        lost_tokens: Tokens that were read anew although they had been read before, estimated.
        message: The first message that differs, by position in the request; None: what comes before
            the messages differs, or nothing does.
    """

    reason: str
    lost_tokens: int
    message: int | None = None


class CallNotes(msgspec.Struct, frozen=True):
    """What else is known of a model call.

    Attributes:
        logprob_mean: Mean log-probability of the answer's tokens, of those of tool arguments only
            where it calls tools and the server tells them; None: not asked for, or not told.
        queued_us: Microseconds that it waited to be admitted.
        cache_bust: A prompt cache that was lost without a reason; None: none was.
        deferring: Whether calls of `tool_call` stand for the tools that they name.
    """

    logprob_mean: float | None = None
    queued_us: int = 0
    cache_bust: CacheBust | None = None
    deferring: bool = False


class Timing(msgspec.Struct, frozen=True):
    """How long a model call took, in microseconds; `first_token_us` for streams only."""

    total_us: int
    first_token_us: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """Something a check found wrong with an answer.

    Attributes:
        check: Which check: `finish_reason`, `parse`, `empty`, `tool_unknown`, `tool_arguments`,
            `tool_count`, `output_schema`, `verify`, `score`, `agreement`, `judge`.
        message: What it found.
        call: Position of the tool call it is about; None: about the whole answer.
    """

    check: str
    message: str
    call: int | None = None


class RouteCandidate(msgspec.Struct, frozen=True):
    """What a route's decision knew of one model.

    Attributes:
        name: The model.
        p_ok: Probability of a right answer; None: nothing is learnt about it.
        cost_usd: What the step would cost; None: its prices are not known.
        excluded: Why it was left out; None: it was not.
    """

    name: str
    p_ok: float | None = None
    cost_usd: float | None = None
    excluded: str | None = None


class RouteGate(msgspec.Struct, frozen=True):
    """What was weighed where the best model was not the one in force.

    Attributes:
        regret_usd: What a switch loses: tokens read at the full price instead of from a cache.
        gain_usd: What a switch gains: cheaper tokens, and a better answer at its worth.
        held: Whether the step stayed with the model in force.
    """

    regret_usd: float
    gain_usd: float
    held: bool


class RouteDecision(msgspec.Struct, frozen=True, kw_only=True):
    """All that was weighed where a step's model was chosen.

    Attributes:
        step_class: What the step is for.
        input_tokens: Tokens that the request was taken to have.
        current: The model in force before, by position; None: the session's first step.
        boundary: Whether the prompt's cached prefix was lost anyway.
        budget_usd: What was left to spend; None: no limit.
        weights: Hash of the learnt weights; None: nothing was learnt.
        tier: The model that was chosen, by position.
        propensity: Probability with which the policy takes this model for this step.
        explored: Whether it was taken to learn about it, instead of the best one.
        reason: Why, in words.
        candidates: What was known of each model, in the order of the route.
        gate: What was weighed if the best model was not the one in force.
    """

    step_class: str = msgspec.field(name="class")
    tier: int
    propensity: float
    reason: str
    explored: bool = False
    candidates: list[RouteCandidate] = []
    gate: RouteGate | None = None
    input_tokens: int = 0
    current: int | None = None
    boundary: bool = False
    budget_usd: float | None = None
    weights: str | None = None


class AnswerScore(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer's own text says of whether it is right.

    Attributes:
        step_class: What kind of answer it was taken for.
        p_ok: Probability that it is right.
        signals: What was found in it, by name.
    """

    step_class: str = msgspec.field(name="class")
    p_ok: float
    signals: dict[str, Any]


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


class BudgetSet(Event, frozen=True, kw_only=True, tag="budget_set"):
    """Somebody pays for the session from here on: a tenant, within the session's own `budget`.

    Amounts of money are in billionths of a dollar (`usd_nanos`), times in milliseconds (`ms`).
    """

    tenant: str = ""
    within: list[str] = []
    budget: dict[str, Any] | None = None


class TurnClock(Event, frozen=True, kw_only=True, tag="turn_clock"):
    """The clock of a turn whose budget counts time was started or stopped."""

    clock_us: int
    running: bool


class InputReceived(Event, frozen=True, kw_only=True, tag="input_received"):
    """A user's input began a turn; `content` holds its parts, such as `{"type": "text", ...}`."""

    content: list[dict[str, Any]]
    step_class: str | None = None

    @property
    def text(self) -> str:
        """The input's text."""
        return "\n".join(part["text"] for part in self.content if part.get("type") == "text")


class RouteDecided(Event, frozen=True, kw_only=True, tag="route_decided"):
    """The router chose the model of the steps from here on, for a reason in words.

    `decision` holds all that was weighed, where the policy had a choice.
    """

    step: int
    tier: int
    model: str
    reason: str
    decision: RouteDecision | None = None


class ModelCallStarted(Event, frozen=True, kw_only=True, tag="model_call_started"):
    """A model call was about to be made with these ranges `[from, to)` of the conversation.

    `reserved` is what it was expected to use, `charged` of a failure what it is taken to have used:
    `usd_nanos` (billionths of a dollar), `tokens` and `calls`, without those that are 0. None where
    nobody keeps an account of the session.
    `step_class` says what the step is for; only of agents with several models.
    """

    step: int
    attempt: int
    tier: int
    messages: list[tuple[int, int]]
    reserved: dict[str, int] | None = None
    step_class: str | None = msgspec.field(name="class", default=None)
    decided_us: int | None = None


class ModelCallFinished(Event, frozen=True, kw_only=True, tag="model_call_finished"):
    """A model answered. An answer with problems counts only if it is sent back for repair.

    `checks` are the checks by models that follow before it counts.
    """

    step: int
    attempt: int
    answer: ModelAnswer
    finish_reason: str
    usage: Usage
    timing: Timing
    cost_usd: float | None = None
    notes: CallNotes = CallNotes()
    problems: list[Problem] = []
    verify: bool = False
    score: AnswerScore | None = None
    checks: list[str] = []


class ModelCallFailed(Event, frozen=True, kw_only=True, tag="model_call_failed"):
    """A model call failed; `retry_at_us` says when it is tried again, None that it is not."""

    step: int
    attempt: int
    error: Failure
    retry_at_us: int | None = None
    retry_after_ms: int | None = None
    streamed_chars: int = 0
    charged: dict[str, int] | None = None


class AnswerRestarted(Event, frozen=True, kw_only=True, tag="answer_restarted"):
    """The answer begins anew: the call failed after `characters` of it had been shown.

    Whoever shows text as it arrives takes back what attempt `attempt` of this step has shown.
    """

    step: int
    attempt: int
    characters: int


class ContextCompacted(Event, frozen=True, kw_only=True, tag="context_compacted"):
    """From here on models read less of the conversation, which itself stays whole.

    `method` is the strongest thing that was done: `trim`, `summarise`, `drop` or `squeeze`.
    `reason` is `window` (it would not have fitted) or `overflow` (it did not). `kept` holds the
    ranges `[from, to)` of messages that are sent, the last of which goes on with what is added
    later; `trimmed` those of them that are cut. Tokens are estimates.
    """

    step: int
    method: str
    reason: str
    kept: list[tuple[int, int]]
    tokens_before: int
    tokens_after: int
    tokens_target: int
    trimmed: list[dict[str, int]] = []
    summary: str | None = None


class SummaryStarted(Event, frozen=True, kw_only=True, tag="summary_started"):
    """A model was about to be asked for a summary of the messages `[from, to)`."""

    step: int
    tier: int
    messages: tuple[int, int]
    bytes_max: int


class SummaryFinished(Event, frozen=True, kw_only=True, tag="summary_finished"):
    """A model gave a summary."""

    step: int
    text: str
    usage: Usage
    timing: Timing
    cost_usd: float | None = None


class SummaryFailed(Event, frozen=True, kw_only=True, tag="summary_failed"):
    """There is no summary; the messages are left out without one."""

    step: int
    error: Failure


class AnswerVerified(Event, frozen=True, kw_only=True, tag="answer_verified"):
    """The route's `verify` function accepted the answer."""

    step: int


class AnswerRejected(Event, frozen=True, kw_only=True, tag="answer_rejected"):
    """An answer failed its checks; `action` is `escalate`, `repair`, `continue` or `fail`.

    `larger_left`: a larger model can be asked should the mended answer be wrong too. `draft`: the
    next model sees the rejected answer.
    """

    step: int
    problems: list[Problem]
    action: str
    larger_left: bool = False
    draft: bool = False


class CheckStarted(Event, frozen=True, kw_only=True, tag="check_started"):
    """A check by a model was about to be made: `agreement` or `judge`.

    `reserved` is what its calls were expected to use, as in `ModelCallStarted`.
    """

    step: int
    check: str
    model: str
    calls: int
    reserved: dict[str, int] | None = None


class CheckFinished(Event, frozen=True, kw_only=True, tag="check_finished"):
    """A check by a model ended.

    Attributes:
        passed: Whether the answer passed; None: the check could not find out, which counts for
            nothing.
        score: What the check itself says, from 0 (wrong) to 1 (right).
        p_ok: Probability that the answer is right, with all that is learnt.
        reason: What was found, in words.
        error: Why it could not find out.
        charged: What it is taken to have used, as in `ModelCallFailed`.
    """

    step: int
    check: str
    usage: Usage
    duration_us: int
    passed: bool | None = None
    score: float | None = None
    p_ok: float | None = None
    reason: str = ""
    cost_usd: float | None = None
    error: Failure | None = None
    charged: dict[str, int] | None = None


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
    | BudgetSet
    | TurnClock
    | InputReceived
    | RouteDecided
    | ModelCallStarted
    | ModelCallFinished
    | ModelCallFailed
    | AnswerRestarted
    | AnswerVerified
    | AnswerRejected
    | CheckStarted
    | CheckFinished
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
    | ContextCompacted
    | SummaryStarted
    | SummaryFinished
    | SummaryFailed
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
