"""One turn of a session: its result, its events, the decisions it waits for, forks of it.

Invariant: a `Run` holds no state of the session; whatever it tells is asked of the engine.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from mainspring._lane import Lane, outcome_text
from mainspring._schema import decode_output
from mainspring.agent import Agent
from mainspring.errors import from_failure
from mainspring.events import (
    TERMINAL,
    ApprovalRequested,
    EffectUnknown,
    Event,
    ModelDelta,
    decode_event,
)
from mainspring.outcome import Outcome
from mainspring.reports import Pending, Report, read_report

__all__ = ["Run"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class _Forks(Protocol):
    """What a run needs of its engine."""

    async def fork(
        self,
        session: str,
        agent: Agent[Any],
        *,
        at: int | None,
        edit: str | Sequence[Mapping[str, Any]] | None,
        input: str | Sequence[Mapping[str, Any]] | None,  # noqa: A002  (API word)
        new_session: str | None,
    ) -> "Run[Any]": ...


class Run(Generic[T_co]):
    """A turn of a session, under way or ended."""

    def __init__(
        self, engine: "_Forks", lane: Lane, agent: Agent[T_co], number: int, opened: Any
    ) -> None:
        """Made by `Engine.start`, `resume`, `submit` and `fork`."""
        self._engine = engine
        self._lane = lane
        self._native = lane.native
        self._agent = agent
        self._number = number
        self.session: str = opened[0]
        self.first_seq: int = opened[1]

    def __repr__(self) -> str:
        """Shows the session."""
        return f"Run({self.session!r})"

    @overload
    async def result(self) -> T_co: ...

    @overload
    async def result(self, output: type[T]) -> T: ...

    async def result(self, output: Any = None) -> Any:
        """Waits for the end of the turn.

        Args:
            output: Type to read the answer as; the agent's own output type if None.

        Returns:
            The final answer.

        Raises:
            SessionFailed: The turn failed; `code` and `message` say why.
            LimitError: It reached a limit.
            ModelError: The model could not be reached or refused.
            SessionCancelled: It was cancelled.
            EngineError: The engine was closed; the session can be resumed.
        """
        report = await self.report()
        if report.error is not None:
            raise report.error
        if report.status == "cancelled":
            reason = report.text or "no reason given"
            raise from_failure(
                "cancelled",
                f"session {self.session} was cancelled: {reason}",
                None,
                retryable=False,
                session=self.session,
            )
        if report.status == "open":
            raise from_failure(
                "session_not_open",
                f"session {self.session} stopped before its turn ended",
                f"its log is kept: `mainspring resume {self.session}` goes on",
                retryable=False,
                session=self.session,
            )
        return decode_output(self._agent.output if output is None else output, report.text or "")

    async def report(self) -> Report:
        """Waits for the end of the turn and tells how it ended, without raising.

        A turn that waits for a person has not ended, and neither has one that another process runs.
        """
        return read_report(self.session, await self._lane.ask(self._native.wait, self.session))

    async def events(self, *, after: int | None = None) -> AsyncIterator[Event]:
        """The turn's events in order, from its first to its last, then the live ones as they come.

        It is safe to break off, and to come back with `after` set to the `seq` of the last event
        seen. `ModelDelta` events come between the stored ones if the model streams.

        Args:
            after: Leave out events up to this position; None: begin with the turn.
        """
        seq = self.first_seq if after is None else after + 1
        while True:
            ended, items = await self._lane.ask(self._native.watch, self.session, seq)
            for item in items:
                if len(item) == 4:
                    yield ModelDelta(step=item[0], attempt=item[1], text=item[2])
                    continue
                event = decode_event(*item)
                seq = event.seq + 1
                yield event
                if isinstance(event, TERMINAL):
                    return
            if ended:
                return

    async def cancel(self, reason: str = "cancelled by the caller") -> None:
        """Ends the turn. What is under way is stopped; every open tool call gets an outcome.

        Raises:
            SessionError: `session_not_open`, if the session is not running here.
        """
        await self._lane.ask(self._native.cancel, self.session, reason)

    async def fork(
        self,
        *,
        at: int | None = None,
        agent: Agent[Any] | None = None,
        edit: str | Sequence[Mapping[str, Any]] | None = None,
        input: str | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002  (API word)
        new_session: str | None = None,
        **changes: Any,
    ) -> "Run[Any]":
        """Begins a new session with this one's first events; `Engine.fork` says more.

        As in `other = await run.fork(at=3, model="gpt-5.4")`.

        Args:
            at: Position of the last event that both share; None: the last one there is.
            agent: Who runs the fork; None: this run's agent.
            edit: What event `at` says instead.
            input: What the user says next, where `at` is the end of a turn.
            new_session: Id of the fork; None: a fresh one.
            changes: What is different about the agent, as for `Agent.replace`: `model="large"`,
                `instructions="..."`, `tools=[...]`.
        """
        chosen: Agent[Any] = self._agent if agent is None else agent
        if changes:
            chosen = chosen.replace(**changes)
        return await self._engine.fork(
            self.session, chosen, at=at, edit=edit, input=input, new_session=new_session
        )

    async def pending(self) -> list[Pending]:
        """The tool calls that wait for a decision, in their order."""
        found = await self._lane.ask(self._native.pending, self.session, 1)
        return [Pending(*each) for each in found]

    async def approve(
        self,
        target: ApprovalRequested | Pending | int,
        *,
        edit: Mapping[str, Any] | None = None,
        by: str | None = None,
    ) -> None:
        """Lets a tool call run that waits for approval. Counts once, however many ask at a time.

        Args:
            target: The request, as event or from `pending`; or the call's position, which means
                whichever request is open for it.
            edit: Arguments that take the place of the model's, by name; the others stay.
            by: Who decided, for the log.

        Raises:
            SessionError: `approval_used`: the call waits for no decision, or no longer.
            ToolError: `tool_arguments_invalid`: the edited arguments do not fit.
        """
        call, approval = _request(target)
        arguments = None if edit is None else await self._edited(call, edit)
        ask = self._native.decide_approval
        number = self._number
        await self._lane.ask(ask, self.session, call, approval, arguments, None, by, number)

    async def deny(
        self,
        target: ApprovalRequested | Pending | int,
        message: str = "no reason given",
        *,
        by: str | None = None,
    ) -> None:
        """Refuses a tool call that waits for approval; the model reads the message.

        Args:
            target: The request; as for `approve`.
            message: Why not.
            by: Who decided, for the log.

        Raises:
            SessionError: `approval_used`: the call waits for no decision, or no longer.
        """
        call, approval = _request(target)
        ask = self._native.decide_approval
        await self._lane.ask(ask, self.session, call, approval, None, message, by, self._number)

    async def resolve(
        self, target: EffectUnknown | Pending | int, outcome: Outcome, *, by: str | None = None
    ) -> None:
        """Says what became of an `unsafe` tool call whose process ended.

        Args:
            target: The call: the event, from `pending`, or its position.
            outcome: `Outcome.done(result)`, `not_done()` or `failed(message)`.
            by: Who found out, for the log.

        Raises:
            SessionError: `approval_used`: the call waits for no decision, or no longer.
        """
        if outcome.kind == "undecided":
            raise ValueError("an undecided outcome resolves nothing, give done, not_done or failed")
        call = target if isinstance(target, int) else target.call
        text = outcome_text(outcome, "resolve")
        ask = self._native.decide_effect
        await self._lane.ask(ask, self.session, call, outcome.kind, text, by, self._number)

    async def _edited(self, call: int, edit: Mapping[str, Any]) -> str:
        for each in await self.pending():
            if each.call == call:
                merged = {**json.loads(each.arguments), **edit}
                return json.dumps(merged, ensure_ascii=False)
        return json.dumps(dict(edit), ensure_ascii=False)


def _request(target: ApprovalRequested | Pending | int) -> tuple[int, str | None]:
    """The call and the request that a decision is about."""
    if isinstance(target, int):
        return target, None
    if isinstance(target, Pending) and target.approval is None:
        raise ValueError(
            f"call {target.call} waits for an outcome, not for an approval\n"
            "hint: use run.resolve(...)"
        )
    return target.call, target.approval
