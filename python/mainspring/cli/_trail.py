"""A session's events as lines for a person; the live view and `show` print the same ones.

Invariant: a line is made from events alone, so what was seen live and what is shown later are the
same. Start reading at `Trail.feed`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mainspring.cli._text import Line, call_text, clean, count, duration, line, one_line
from mainspring.events import (
    AnswerRejected,
    AnswerRestarted,
    AnswerVerified,
    ApprovalDecided,
    ApprovalRequested,
    BudgetSet,
    CacheBust,
    CancelRequested,
    CheckFinished,
    CheckStarted,
    ContextCompacted,
    EffectResolved,
    EffectUnknown,
    EpochTaken,
    Event,
    Failure,
    InputReceived,
    LimitReached,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    ModelDelta,
    RouteDecided,
    SessionCancelled,
    SessionFailed,
    SessionFinished,
    SessionForked,
    SessionStarted,
    SummaryFailed,
    SummaryFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallLate,
    ToolCallRequest,
    ToolCallStarted,
    UnknownEvent,
    Usage,
)


@dataclass(frozen=True, slots=True)
class TrailLimits:
    """How much of a text a line holds.

    Args:
        arguments_chars_max: Of a tool call's arguments.
        result_chars_max: Of a tool's result, an answer or an input.
        tail_chars_max: Of the answer that is being written.
    """

    arguments_chars_max: int = 60
    result_chars_max: int = 80
    tail_chars_max: int = 240


@dataclass(slots=True)
class OpenCall:
    """Something under way: a call's text, and when it began."""

    text: str
    started_us: int


class Trail:
    """Makes lines of a session's events, and knows what is under way.

    Args:
        limits: How much of a text a line holds.
        turns: Whether inputs and the ends of turns get lines of their own.

    Attributes:
        model_call: The model call under way.
        tool_calls: The tool calls under way, by their positions.
        asks: The positions of the calls that wait for a decision.
        writing: The end of the answer that is being written.
    """

    def __init__(self, *, limits: TrailLimits | None = None, turns: bool) -> None:
        self.limits = limits or TrailLimits()
        self.model_call: OpenCall | None = None
        self.tool_calls: dict[int, OpenCall] = {}
        self.asks: set[int] = set()
        self.writing = ""
        self._turns = turns
        self._turn_count = 0
        self._turn_started_us = 0
        self._model = "?"
        self._reason: str | None = None
        self._step: int | None = None
        self._asked: list[ToolCallRequest] = []
        self._requests: dict[int, ToolCallRequest] = {}
        self._call_count = 0
        self._held = False

    def feed(self, event: Event) -> list[Line]:
        """Takes the next event, and gives the lines that it adds."""
        handler = _HANDLERS.get(type(event))
        return handler(self, event) if handler else []

    def _input(self, event: InputReceived) -> list[Line]:
        self._turn_count += 1
        self._turn_started_us = event.at_us
        self._step = None
        if not self._turns:
            return []
        text = one_line(event.text, self.limits.result_chars_max)
        return [line((f"turn {self._turn_count}", "bold"), f"  {text}")]

    def _started(self, event: SessionStarted) -> list[Line]:
        self._held = event.held
        return []

    def _forked(self, event: SessionForked) -> list[Line]:
        # What was under way is not under way here; what waited is asked for anew.
        self.model_call = None
        self.tool_calls.clear()
        self._step = None
        edited = f", edited: {self._short(edited_text(event))}" if event.edit else ""
        return [line(("forked", "magenta"), f"  from {event.parent}", edited)]

    def _budget(self, event: BudgetSet) -> list[Line]:
        payer = f"  tenant {clean(event.tenant)}" if event.tenant else ""
        bounds = f"  {budget_text(event.budget)}" if event.budget else ""
        return [line(("budget", "magenta"), payer, bounds)]

    def _routed(self, event: RouteDecided) -> list[Line]:
        self._model = clean(event.model)
        self._reason = event.reason
        return []

    def _model_started(self, event: ModelCallStarted) -> list[Line]:
        self.model_call = OpenCall(self._model, event.at_us)
        self.writing = ""
        if event.step == self._step:
            return []
        self._step = event.step
        self._asked = []
        reason, self._reason = self._reason, None
        why = f"  ({one_line(reason, self.limits.result_chars_max)})" if reason else ""
        return [line((f"step {event.step}", "bold"), "  ", (self._model, "cyan"), (why, "dim"))]

    def _delta(self, event: ModelDelta) -> list[Line]:
        self.writing = (self.writing + event.text)[-4 * self.limits.tail_chars_max :]
        return []

    def _model_finished(self, event: ModelCallFinished) -> list[Line]:
        self.model_call = None
        self.writing = ""
        self._asked = list(event.answer.tool_calls)
        first = event.timing.first_token_us
        facts = [duration(event.timing.total_us), tokens(event.usage)]
        if first is not None:
            facts.insert(1, f"first token {duration(first)}")
        if event.cost_usd:
            facts.append(f"${event.cost_usd:.4f}")
        if event.attempt > 1:
            facts.append(f"attempt {event.attempt}")
        asked = count(len(self._asked), "tool call") if self._asked else "answer"
        lines = [line("  model   ", ", ".join(facts), "  -> ", (asked, "bold"))]
        # The run prints the final answer itself, unless a check may refuse it.
        shown = self._asked or self._turns or event.verify or event.problems
        if event.answer.text.strip() and shown:
            said = one_line(event.answer.text, self.limits.result_chars_max)
            lines.append(line("  says    ", said))
        if (bust := event.notes.cache_bust) is not None:
            lines.append(line("  cache   ", (_bust(bust), "yellow")))
        if len(self._asked) > 1:
            lines.append(line("  tools   ", f"{len(self._asked)} calls side by side"))
        return lines

    def _model_failed(self, event: ModelCallFailed) -> list[Line]:
        self.model_call = None
        self.writing = ""
        again = ""
        if event.retry_at_us is not None:
            wait_us = event.retry_at_us - event.at_us
            again = f"; again in {duration(wait_us)}" if wait_us > 0 else "; again at once"
        text = f"attempt {event.attempt} failed: {clean(event.error.message)}{again}"
        return [line("  model   ", (text, "yellow" if again else "red")), *_hint(event.error)]

    def _restarted(self, event: AnswerRestarted) -> list[Line]:
        shown = count(event.characters, "character")
        return [
            line("  model   ", (f"begins again, {shown} of its answer count no more", "yellow"))
        ]

    def _compacted(self, event: ContextCompacted) -> list[Line]:
        done = _COMPACTIONS.get(event.method, event.method)
        text = f"{done}: about {event.tokens_before} to {event.tokens_after} tokens"
        why = "the model refused it as too long" if event.reason == "overflow" else ""
        return [line("  context ", text, (f"  ({why})" if why else "", "dim"))]

    def _summary_finished(self, event: SummaryFinished) -> list[Line]:
        said = one_line(event.text, self.limits.result_chars_max)
        return [line("  context ", f"summary, {tokens(event.usage)}: {said}")]

    def _summary_failed(self, event: SummaryFailed) -> list[Line]:
        return [line("  context ", (f"no summary: {clean(event.error.message)}", "yellow"))]

    def _verified(self, event: AnswerVerified) -> list[Line]:
        return [line("  check   ", ("verified", "green"))]

    def _rejected(self, event: AnswerRejected) -> list[Line]:
        # The lines of the refused calls say the same.
        if event.action == "continue":
            return []
        if event.action == "repair" or event.draft:
            # What is sent back has used up its numbers.
            self._call_count += len(self._asked)
        self._asked = []
        why = "; ".join(
            one_line(each.message, 2 * self.limits.result_chars_max) for each in event.problems
        )
        return [
            line(
                "  check   ",
                (f"rejected, {ACTIONS.get(event.action, event.action)}: {why}", "yellow"),
            )
        ]

    def _check_started(self, event: CheckStarted) -> list[Line]:
        text = event.check if event.calls == 1 else f"{event.check}, {count(event.calls, 'call')}"
        self.model_call = OpenCall(f"{clean(event.model)} ({text})", event.at_us)
        return []

    def _check_finished(self, event: CheckFinished) -> list[Line]:
        self.model_call = None
        return [line("  check   ", *check_text(event, self.limits.result_chars_max))]

    def _tool_started(self, event: ToolCallStarted) -> list[Line]:
        text = self._call_text(event.call, event.name)
        self.tool_calls[event.call] = OpenCall(text, event.at_us)
        return []

    def _approval_requested(self, event: ApprovalRequested) -> list[Line]:
        self.asks.add(event.call)
        text = self._call_text(event.call)
        return [line("  tool    ", ("asks    ", "yellow"), text, "  may it run?")]

    def _approval_decided(self, event: ApprovalDecided) -> list[Line]:
        self.asks.discard(event.call)
        text = self._call_text(event.call)
        by = f"by {clean(event.by)}" if event.by else ""
        if event.decision == "denied":
            why = self._short(event.message or "")
            return [line("  tool    ", ("denied  ", "yellow"), text, "  ", _joined(by, why))]
        if event.arguments is not None:
            self._edit_arguments(event.call, event.arguments)
            by = _joined(by, f"runs as {self._call_text(event.call)}")
        return [line("  tool    ", ("granted ", "green"), text, f"  {by}" if by else "")]

    def _effect_unknown(self, event: EffectUnknown) -> list[Line]:
        text = self._ended(event.call)
        self.asks.add(event.call)
        told = "its process ended while it ran; what became of it?"
        return [line("  tool    ", ("unknown ", "yellow"), text, f"  {told}")]

    def _effect_resolved(self, event: EffectResolved) -> list[Line]:
        if event.outcome != "undecided":
            self.asks.discard(event.call)
        state, style = _OUTCOMES.get(event.outcome, (event.outcome, "yellow"))
        by = f"by {clean(event.by)}" if event.by else ""
        told = _joined(by, self._short(event.text or event.message or ""))
        text = self._call_text(event.call)
        return [line("  tool    ", (state.ljust(8), style), text, f"  {told}" if told else "")]

    def _tool_finished(self, event: ToolCallFinished) -> list[Line]:
        text = self._ended(event.call)
        result = one_line(event.text, self.limits.result_chars_max)
        return [
            line(
                "  tool    ",
                ("ok      ", "green"),
                text,
                f"  {duration(event.duration_us)}  ",
                (result, "dim"),
            )
        ]

    def _tool_failed(self, event: ToolCallFailed) -> list[Line]:
        started = self.tool_calls.get(event.call)
        text = self._ended(event.call)
        took = f"  {duration(event.at_us - started.started_us)}" if started else ""
        message = one_line(event.error.message, 2 * self.limits.result_chars_max)
        state, style = ("refused ", "yellow") if event.attempt == 0 else ("failed  ", "red")
        if event.retry_at_us is not None:
            state, style = "again   ", "yellow"
        return [
            line("  tool    ", (state, style), text, f"{took}  ", (message, style)),
            *_hint(event.error),
        ]

    def _tool_late(self, event: ToolCallLate) -> list[Line]:
        told = event.text if event.text is not None else (event.error and event.error.message) or ""
        result = one_line(told, self.limits.result_chars_max)
        return [
            line("  tool    ", ("late    ", "yellow"), self._call_text(event.call), "  ", result)
        ]

    def _cancel(self, event: CancelRequested) -> list[Line]:
        return [line("  cancel  ", (clean(event.reason), "yellow"))]

    def _limit(self, event: LimitReached) -> list[Line]:
        text = f"{event.limit} is {event.value:,}, allowed {event.allowed:,}"
        return [line("  limit   ", (text, "red"))]

    def _epoch(self, event: EpochTaken) -> list[Line]:
        self.model_call = None
        was_held, self._held = self._held, event.held
        if event.held:
            # It only records what the next event says, and runs nothing.
            return []
        after = "" if was_held else ", after a break"
        return [line((f"resumed  by owner {event.epoch}{after}", "magenta"))]

    def _end(self, event: SessionFinished | SessionFailed | SessionCancelled) -> list[Line]:
        self.model_call = None
        self.tool_calls.clear()
        self.asks.clear()
        self._asked = []
        if not self._turns:
            return []
        took = f"  after {duration(event.at_us - self._turn_started_us)}"
        if isinstance(event, SessionFailed):
            return [
                line(("failed", "red"), took, f"  {clean(event.error.message)}"),
                *_hint(event.error),
            ]
        if isinstance(event, SessionCancelled):
            return [line(("cancelled", "yellow"), took, f"  {clean(event.reason)}")]
        return [line(("finished", "green"), took)]

    def _unknown(self, event: UnknownEvent) -> list[Line]:
        return [line("  unknown ", (f"event {clean(event.stored_kind)} of a newer version", "dim"))]

    def _call_text(self, call: int, name: str = "?") -> str:
        if self._asked:
            # The calls of an accepted answer get the next numbers. Which of them is told of first
            # is open: one may wait for its policy.
            first = self._call_count
            self._requests = {first + idx: asked for idx, asked in enumerate(self._asked)}
            self._call_count += len(self._asked)
            self._asked = []
        request = self._requests.get(call)
        if request is None:
            return f"{clean(name)}(...)"
        return call_text(request.name, request.arguments, self.limits.arguments_chars_max)

    def _edit_arguments(self, call: int, arguments: str) -> None:
        request = self._requests.get(call)
        if request is not None:
            self._requests[call] = ToolCallRequest(request.id, request.name, arguments)

    def _short(self, text: str) -> str:
        return one_line(text, self.limits.result_chars_max)

    def _ended(self, call: int) -> str:
        self.asks.discard(call)
        known = self.tool_calls.pop(call, None)
        return known.text if known else self._call_text(call)


def tokens(usage: Usage) -> str:
    """Tokens of a call, with what was cached and reasoned where there was any."""
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    reasoning = f" ({usage.reasoning_tokens:,} reasoning)" if usage.reasoning_tokens else ""
    return f"{usage.input_tokens:,}{cached} in, {usage.output_tokens:,}{reasoning} out"


def check_text(event: CheckFinished, chars_max: int) -> list[str | tuple[str, str]]:
    """A check by a model and what it found, as the parts of a line."""
    facts = [duration(event.duration_us), tokens(event.usage)]
    if event.cost_usd:
        facts.append(f"${event.cost_usd:.4f}")
    verdict = {True: ("passed", "green"), False: ("refused", "yellow")}
    told = event.error.message if event.error else event.reason
    said = f": {one_line(told, chars_max)}" if told else ""
    passed = event.passed
    shown = ("no verdict", "dim") if passed is None else verdict[passed]
    return [f"{clean(event.check)} ", shown, f"  {', '.join(facts)}{said}"]


def edited_text(event: SessionForked) -> str:
    """What a fork's edit says."""
    edit = event.edit or {}
    parts = edit.get("content", ())
    return str(edit.get("text", "\n".join(str(part.get("text", "")) for part in parts)))


def _joined(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


def _hint(error: Failure) -> list[Line]:
    return [line("          ", (f"hint: {clean(error.hint)}", "dim"))] if error.hint else []


ACTIONS = {
    "escalate": "next model",
    "repair": "sent back to be mended",
    "fail": "no way left",
}

_OUTCOMES = {
    "done": ("ok", "green"),
    "not_done": ("again", "yellow"),
    "failed": ("failed", "red"),
    "undecided": ("unknown", "yellow"),
}


def budget_text(budget: dict[str, Any], spent: dict[str, Any] | None = None) -> str:
    """A budget's bounds in words, with what is spent of each if that is given."""
    parts: list[str] = []
    for name, unit in (("usd_nanos", "usd"), ("tokens", "tokens"), ("calls", "calls"), ("ms", "s")):
        bound = budget.get(name)
        if bound is None:
            continue
        seen = "" if spent is None else f"{_amount(name, spent.get(name, 0))} of "
        parts.append(f"{seen}{_amount(name, bound)} {unit}")
    return ", ".join(parts)


def _amount(name: str, value: int) -> str:
    if name == "usd_nanos":
        return f"{value / 1e9:.4f}"
    return f"{value / 1000:g}" if name == "ms" else f"{value:,}"


_COMPACTIONS = {
    "trim": "old tool results cut",
    "summarise": "oldest messages summarised",
    "drop": "oldest messages left out",
    "squeeze": "newest messages cut",
}


def _bust(bust: CacheBust) -> str:
    if bust.reason != "prefix_changed":
        return f"the provider's cache was not used, {bust.lost_tokens} tokens read anew"
    where = "before the messages" if bust.message is None else f"at message {bust.message}"
    return f"the request changed {where}, {bust.lost_tokens} tokens read anew"


_HANDLERS: dict[type[Event], Callable[[Trail, Any], list[Line]]] = {
    SessionStarted: Trail._started,
    SessionForked: Trail._forked,
    InputReceived: Trail._input,
    BudgetSet: Trail._budget,
    RouteDecided: Trail._routed,
    ModelCallStarted: Trail._model_started,
    ModelDelta: Trail._delta,
    ModelCallFinished: Trail._model_finished,
    ModelCallFailed: Trail._model_failed,
    AnswerRestarted: Trail._restarted,
    ContextCompacted: Trail._compacted,
    SummaryFinished: Trail._summary_finished,
    SummaryFailed: Trail._summary_failed,
    AnswerVerified: Trail._verified,
    AnswerRejected: Trail._rejected,
    CheckStarted: Trail._check_started,
    CheckFinished: Trail._check_finished,
    ToolCallStarted: Trail._tool_started,
    ToolCallFinished: Trail._tool_finished,
    ToolCallFailed: Trail._tool_failed,
    ToolCallLate: Trail._tool_late,
    ApprovalRequested: Trail._approval_requested,
    ApprovalDecided: Trail._approval_decided,
    EffectUnknown: Trail._effect_unknown,
    EffectResolved: Trail._effect_resolved,
    CancelRequested: Trail._cancel,
    LimitReached: Trail._limit,
    EpochTaken: Trail._epoch,
    SessionFinished: Trail._end,
    SessionFailed: Trail._end,
    SessionCancelled: Trail._end,
    UnknownEvent: Trail._unknown,
}
