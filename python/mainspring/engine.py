"""The engine: runs agents, keeps their logs, goes on after a crash.

Invariant: what `start` has returned for is durable; closing or killing the process loses nothing of
it. Reading starts at `Engine.start`; `_lane` runs the tools.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

from mainspring._lane import Lane, public_error
from mainspring._native import NativeEngine
from mainspring._schema import decode_output
from mainspring.agent import Agent
from mainspring.errors import MainspringError, from_failure
from mainspring.events import TERMINAL, Event, ModelDelta, decode_event
from mainspring.mcp import Mcp, McpTool
from mainspring.tool import Tool

__all__ = ["Engine", "Report", "Run", "SessionInfo", "run", "run_sync"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

SESSIONS_PAGE_MAX = 1000
"""Sessions that one call of `Engine.sessions` lists at most."""

Status = Literal["open", "finished", "failed", "cancelled"]
"""How a session's last turn stands."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a session amounts to.

    Args:
        session: Its id.
        status: How its last turn stands.
        text: The answer, if it finished; the reason, if it was cancelled.
        error: The error, if it failed.
        input_tokens: Tokens read, over all turns.
        output_tokens: Tokens written, over all turns.
        cached_tokens: Of those read, from the providers' caches.
        reasoning_tokens: Of those written, on reasoning.
        cost_usd: US dollars, of the calls whose price is known.
        steps: Steps of the last turn.
    """

    session: str
    status: Status
    text: str | None
    error: MainspringError | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float
    steps: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as a list shows it.

    Args:
        session: Its id.
        status: How its last turn stands.
        agent: The agent's name.
        origin: Where the agent was loaded from, as `MODULE:AGENT`; None if not from a module.
        epoch: How many owners it has had.
        event_count: How many events it has.
        created_us: Time of its first event, in microseconds since 1970 (UTC).
        updated_us: Time of its last event.
    """

    session: str
    status: Status
    agent: str
    origin: str | None
    epoch: int
    event_count: int
    created_us: int
    updated_us: int


class Run(Generic[T_co]):
    """A turn of a session, under way or ended."""

    def __init__(self, lane: Lane, native: NativeEngine, agent: Agent[T_co], opened: Any) -> None:
        """Made by `Engine.start` and `Engine.resume`."""
        self._lane = lane
        self._native = native
        self._agent = agent
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
        """Waits for the end of the turn and tells how it ended, without raising."""
        return _report(self.session, await self._lane.ask(self._native.wait, self.session))

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


class Engine:
    """Runs sessions of agents; use it as an async context manager.

    Args:
        store: Where the logs are: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `memory:`,
            which forgets.
        agents: Agents whose interrupted sessions go on as soon as the engine is open; see
            `resumed`.
        durability: `full`: an event that was acted on survives a power cut. `normal`: it survives
            `kill -9`, but a power cut may lose the last commits.
        threads_max: Threads for sync tools, all sessions together.
        sessions_max: Sessions alive at once in each of the engine's shards; None: 100,000.
        shard_count: Threads that run sessions; None: a quarter of the cores, at least 1.

    Raises:
        JournalError: The store cannot be opened; the message says why.

    Example:
        >>> import asyncio
        >>> from mainspring import Engine
        >>> async def count() -> int:
        ...     async with Engine("memory:") as engine:
        ...         return len(await engine.sessions())
        >>> asyncio.run(count())
        0
    """

    def __init__(
        self,
        store: str = "sqlite:///mainspring.db",
        *,
        agents: Sequence[Agent[Any]] = (),
        durability: Literal["full", "normal"] = "full",
        threads_max: int = 32,
        sessions_max: int | None = None,
        shard_count: int | None = None,
    ) -> None:
        """Keeps the settings; entering the context opens the store."""
        self.store = store
        self.resumed: list[Run[Any]] = []
        self._agents = tuple(agents)
        self._settings: dict[str, Any] = {
            "durability": durability,
            "threads_max": threads_max,
            "sessions_max": sessions_max,
            "shard_count": shard_count,
        }
        self._open: tuple[NativeEngine, Lane] | None = None
        self._process = 0
        self._registered: dict[int, tuple[Agent[Any], asyncio.Future[int]]] = {}

    async def __aenter__(self) -> Self:
        """Opens the store and resumes interrupted sessions of `agents`."""
        if self._open is not None:
            raise RuntimeError("the engine is open already")
        try:
            native = NativeEngine(self.store, **self._settings)
        except RuntimeError as error:
            raise public_error(error) from None
        self._open = (native, Lane(native, asyncio.get_running_loop()))
        self._process = os.getpid()
        try:
            await self._resume_all()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the engine; sessions that still run can be resumed later."""
        await self.close()

    async def close(self) -> None:
        """Stops everything. Closing twice is the same as once.

        Raises:
            JournalError: The store could not be closed cleanly; nothing durable is lost by that.
        """
        if self._open is None or self._process != os.getpid():
            # A forked child shares the descriptors of the engine and of the event loop: whatever
            # it did to them, it would do to its parent.
            return
        native, lane = self._open
        self._open = None
        self._registered.clear()
        lane.begin_close()
        try:
            await asyncio.get_running_loop().run_in_executor(None, native.close)
        except RuntimeError as error:
            raise public_error(error) from None
        finally:
            await lane.close()

    async def start(
        self,
        agent: Agent[T],
        input: str | Sequence[Mapping[str, Any]],  # noqa: A002  (API word)
        *,
        session: str | None = None,
        origin: str | None = None,
    ) -> Run[T]:
        """Begins a turn, and returns once it is durable.

        Args:
            agent: Who runs it.
            input: What the user says: text, or parts such as `{"type": "text", "text": ...}` and
                `{"type": "image", "url": ...}`.
            session: A new session's id, or that of one whose last turn has ended, which is then
                continued; None: a new session with a fresh id.
            origin: Where the agent can be loaded from again, as `MODULE:AGENT`, for
                `mainspring resume`.

        Raises:
            SessionError: `session_busy`: the session is running a turn.
            EngineError: `engine_overloaded`: as many sessions are alive as the limit allows.
            ModelError: `model_auth`: a model's key is missing.
            McpError: An MCP server of the agent cannot be started.
            JournalError: The store cannot be written.
        """
        native, lane = self._opened()
        number = await self._register(agent)
        content = json.dumps(_content(input), ensure_ascii=False).encode()
        opened = await lane.ask(native.start, number, content, session, origin)
        return Run(lane, native, agent, opened)

    async def resume(
        self,
        session: str,
        agent: Agent[T],
        *,
        on_change: Literal["continue", "refuse"] = "continue",
    ) -> Run[T]:
        """Continues a turn whose process is gone.

        Recorded model calls and tool results are not repeated. What was under way is: model calls,
        and tools whose effect allows it; an `unsafe` tool is not run again, and the model is told
        that its outcome is unknown.

        Args:
            session: The session's id.
            agent: Who runs it.
            on_change: What to do if the agent is not the one that the session was started with.

        Raises:
            SessionError: `session_not_found`, `session_not_open`, `session_busy`.
            AgentError: `agent_changed`, if `on_change` is `refuse`.
        """
        native, lane = self._opened()
        number = await self._register(agent)
        opened = await lane.ask(native.resume, number, session, on_change == "refuse")
        return Run(lane, native, agent, opened)

    async def sessions(
        self, *, status: Status | None = None, limit: int = 100, before: str | None = None
    ) -> list[SessionInfo]:
        """Lists sessions, the newest first.

        Args:
            status: Only those whose last turn stands so.
            limit: At most so many, 1 to 1,000.
            before: Only those created before this session: the last one of the page before.
        """
        native, lane = self._opened()
        if not 1 <= limit <= SESSIONS_PAGE_MAX:
            raise ValueError(f"limit is {limit}, must be 1 to {SESSIONS_PAGE_MAX}")
        heads = await lane.ask(native.sessions, status, limit, before)
        return [SessionInfo(*head) for head in heads]

    async def log(self, session: str, *, from_seq: int = 0) -> list[Event]:
        """A session's events, oldest first.

        Raises:
            SessionError: `session_not_found`.
        """
        native, lane = self._opened()
        records = await lane.ask(native.load, session, from_seq)
        return [decode_event(seq, at_us, text) for seq, at_us, _, text in records]

    async def report(self, session: str) -> Report:
        """Waits for the end of a session's turn, if one runs, and tells how it ended."""
        native, lane = self._opened()
        return _report(session, await lane.ask(native.wait, session))

    def _opened(self) -> tuple[NativeEngine, Lane]:
        if self._open is None:
            raise from_failure(
                "engine_closed",
                "the engine is not open",
                "use it in `async with Engine(...)`",
                retryable=False,
            )
        return self._open

    async def _resume_all(self) -> None:
        native, lane = self._opened()
        by_name = {agent.name: agent for agent in self._agents}
        if not by_name:
            return
        for head in await lane.ask(native.open_sessions):
            agent = by_name.get(head[2])
            if agent is not None:
                self.resumed.append(await self.resume(head[0], agent))

    async def _register(self, agent: Agent[Any]) -> int:
        """The agent's number; compiled once, however many sessions ask at the same time."""
        known = self._registered.get(id(agent))
        if known is not None:
            return await asyncio.shield(known[1])
        task = asyncio.ensure_future(self._compile(agent))
        self._registered[id(agent)] = (agent, task)
        try:
            return await asyncio.shield(task)
        except BaseException:
            self._registered.pop(id(agent), None)
            raise

    async def _compile(self, agent: Agent[Any]) -> int:
        native, lane = self._opened()
        listed: dict[Mcp, list[McpTool]] = {}
        for each in agent.tools:
            if isinstance(each, Mcp) and each not in listed:
                config = json.dumps(each.config()).encode()
                answer = await lane.ask(native.mcp_tools, config)
                listed[each] = each.select(json.loads(answer))
        spec = agent.spec(listed)
        bindings: list[dict[str, Any]] = []
        for each in agent.tools:
            if isinstance(each, Tool):
                bindings.append({"host": lane.add_tool(each)})
                continue
            config_of = each.config()
            for tool in listed[each]:
                remote = tool.get("remote_name", tool["name"])
                bindings.append({"mcp": {"server": config_of, "tool": remote}})
        access = [{"api_key": model.resolve_key()} for model in agent.route.models]
        verifier = lane.add_verifier(agent.route)
        try:
            return native.register(
                spec, json.dumps(access).encode(), json.dumps(bindings).encode(), verifier
            )
        except RuntimeError as error:
            raise public_error(error) from None


def _content(value: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [dict(part) for part in value]


def _report(session: str, report: Any) -> Report:
    status, text, failure, *numbers = report
    error = from_failure(*failure, session=session) if failure else None
    return Report(session, status, text, error, *numbers)


async def run(agent: Agent[T], input: str, *, store: str = "memory:") -> T:  # noqa: A002  (API word)
    """Runs one turn in a new session and waits for its answer; `Agent.run`."""
    async with Engine(store) as engine:
        started = await engine.start(agent, input)
        return await started.result()


def run_sync(agent: Agent[T], input: str, *, store: str = "memory:") -> T:  # noqa: A002  (API word)
    """Like `run`, for programs without an event loop; `Agent.run_sync`.

    Raises:
        RuntimeError: If an event loop is running in this thread: `await agent.run(...)` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run(agent, input, store=store))
    raise RuntimeError(
        "run_sync was called while an event loop is running in this thread\n"
        "hint: write `await agent.run(...)` instead"
    )
