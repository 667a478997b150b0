"""The engine: runs agents, keeps their logs, goes on after a crash.

Invariant: what `start` has returned for is durable; closing or killing the process loses nothing of
it. Reading starts at `Engine.start`; `_lane` runs the tools.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from mainspring._deferred import arrange
from mainspring._lane import Lane, outcome_text, public_error
from mainspring._native import NativeEngine
from mainspring._route_policy import StepClass, check_step_class
from mainspring.agent import Agent
from mainspring.budget import (
    Budget,
    BudgetReport,
    payment,
    read_budget_report,
    tenant_budgets,
)
from mainspring.errors import from_failure
from mainspring.events import Event, decode_event
from mainspring.mcp import Mcp, McpTool
from mainspring.models import Model
from mainspring.outcome import Outcome
from mainspring.reports import (
    CompactReport,
    DrainReport,
    ModelReport,
    Pending,
    PruneReport,
    ReplayReport,
    Report,
    SessionInfo,
    Status,
    read_replay,
    read_report,
)
from mainspring.run import Run
from mainspring.tool import Tool

__all__ = ["Engine", "Report", "Run", "SessionInfo", "run", "run_sync"]

T = TypeVar("T")

OnChange = Literal["continue", "pin", "refuse"]
"""What to do with a session whose agent has changed: go on with the agent as it is now, go on with
it as it was (its functions and keys are those of now), or refuse."""

CLAIM_PAGE = 1000
"""Sessions that the native engine claims at a time."""

SESSIONS_PAGE_MAX = 1000
"""Sessions that one call of `Engine.sessions` lists at most."""


class Engine:
    """Runs sessions of agents; use it as an async context manager.

    Args:
        store: Where the logs are: `sqlite:///relative.db`, `sqlite:////absolute.db`,
            `postgresql://user@host/database`, or `memory:`, which forgets.
        agents: Agents whose sessions this engine claims, by name, when it opens (see `resumed`) and
            from then on: interrupted ones, submitted ones, and those of a process that is gone.
        on_change: What to do with a claimed session whose agent has changed since.
        durability: `full`: an event that was acted on survives a power cut. `normal`: it survives
            `kill -9`, but a power cut may lose the last commits.
        threads_max: Threads for sync tools, all sessions together.
        sessions_max: Sessions alive at once in each of the engine's shards; None: 100,000.
        shard_count: Threads that run sessions; None: a quarter of the cores, at least 1.
        lease_s: Seconds for which a process that is gone keeps its sessions, in a store that
            several share; None: 3.
        node: What other processes know this one by there; None: host name and process number.
        model_queue_max: Model calls that may wait for one key; None: 100,000.
        budgets: What tenants may spend, by name; each engine that runs a tenant's sessions needs
            its budget. Their totals are kept in the store.

    Raises:
        AgentError: `budget_invalid`: a tenant's budget cannot be used.
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
        on_change: OnChange = "continue",
        durability: Literal["full", "normal"] = "full",
        threads_max: int = 32,
        sessions_max: int | None = None,
        shard_count: int | None = None,
        lease_s: float | None = None,
        node: str | None = None,
        model_queue_max: int | None = None,
        budgets: Mapping[str, Budget] | None = None,
    ) -> None:
        """Keeps the settings; entering the context opens the store."""
        self.store = store
        self.resumed: list[Run[Any]] = []
        self._agents = tuple(agents)
        self._on_change: OnChange = on_change
        self._settings: dict[str, Any] = {
            "durability": durability,
            "threads_max": threads_max,
            "sessions_max": sessions_max,
            "shard_count": shard_count,
            "lease_ms": None if lease_s is None else max(1, round(lease_s * 1000)),
            "node": node,
            "model_queue_max": model_queue_max,
            "budgets": tenant_budgets(budgets),
        }
        self._open: tuple[NativeEngine, Lane] | None = None
        self._process = 0
        self._registered: dict[int, tuple[Agent[Any], asyncio.Future[int]]] = {}

    async def __aenter__(self) -> Self:
        """Opens the store and claims sessions of `agents`."""
        if self._open is not None:
            raise RuntimeError("the engine is open already")
        try:
            native = NativeEngine(self.store, **self._settings)
        except RuntimeError as error:
            raise public_error(error) from None
        self._open = (native, Lane(native, asyncio.get_running_loop()))
        self._process = os.getpid()
        try:
            await self._claim()
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
        tenant: str | None = None,
        budget: Budget | None = None,
        step_class: StepClass | None = None,
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
            tenant: Who pays for the session, for good; None: nobody, or as before.
            budget: What the session may spend in all its turns, those before included; None: no
                bound, or as before.
            step_class: What the turn's steps are for, by which the route chooses; None: as the
                agent says, or else told by a fixed rule.

        Raises:
            AgentError: `budget_unpriced`: a budget counts dollars and a model has no price.
            SessionError: `session_busy`: the session is running a turn.
            EngineError: `engine_overloaded`: as many sessions are alive as the limit allows.
            ModelError: `model_auth`: a model's key is missing.
            McpError: An MCP server of the agent cannot be started.
            JournalError: The store cannot be written.
        """
        paid = payment(tenant, budget)
        where = (session, origin)
        return await self._begin(
            agent, input, where, step_class=step_class, submit=False, paid=paid
        )

    async def submit(
        self,
        agent: Agent[T],
        input: str | Sequence[Mapping[str, Any]],  # noqa: A002  (API word)
        *,
        session: str | None = None,
        origin: str | None = None,
        tenant: str | None = None,
        budget: Budget | None = None,
        step_class: StepClass | None = None,
    ) -> Run[T]:
        """Stores a turn for whichever engine of the store claims the agent's sessions (`agents=`).

        Takes what `start` takes, and returns once the turn is durable. `Run.result` waits for its
        end, wherever it runs.
        """
        paid = payment(tenant, budget)
        where = (session, origin)
        return await self._begin(agent, input, where, step_class=step_class, submit=True, paid=paid)

    async def resume(
        self,
        session: str,
        agent: Agent[T],
        *,
        on_change: OnChange = "continue",
    ) -> Run[T]:
        """Continues a turn whose process is gone.

        Recorded model calls and tool results are not repeated. What was under way is: model calls,
        and tools whose effect allows it; of an `unsafe` tool it is asked what became of it, its
        `reconcile` function first and then a person (`Run.pending`, `Run.resolve`).

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
        opened = await lane.ask(native.resume, number, session, on_change)
        return Run(self, lane, agent, number, opened)

    async def fork(
        self,
        session: str,
        agent: Agent[T],
        *,
        at: int | None = None,
        edit: str | Sequence[Mapping[str, Any]] | None = None,
        input: str | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002  (API word)
        new_session: str | None = None,
        origin: str | None = None,
        budget: Budget | None = None,
    ) -> Run[T]:
        """Begins a new session with the first events of another, which are shared and not copied.

        What was under way in the other is not in the fork: its last model call is made anew, with
        the fork's agent, and approvals are asked for anew. Recorded results stand.

        Args:
            session: The other session; it may be running, and nothing of it changes.
            agent: Who runs the fork: the same agent, or one with another model, other
                instructions or other tools.
            at: Position of the last event that both share; None: the last one there is.
            edit: What event `at` says instead: an input's text or parts, the text of an answer or
                of a tool's result.
            input: What the user says next, where `at` is the end of a turn.
            new_session: Id of the fork; None: a fresh one.
            origin: Where the agent can be loaded from again, as `MODULE:AGENT`.
            budget: What the fork may spend; None: what is left of its parent's budget where it
                branches off. Its tenant is that of its parent.

        Raises:
            AgentError: `agent_invalid`: there is no such event, or nothing to be edited in it.
            SessionError: `session_not_found`.
        """
        native, lane = self._opened()
        number = await self._register(agent)
        text = edit if isinstance(edit, str) else None
        parts = None if edit is None or text is not None else json.dumps(_content(edit)).encode()
        content = None if input is None else json.dumps(_content(input)).encode()
        opened = await lane.ask(
            native.fork,
            number,
            session,
            at,
            new_session,
            text,
            parts,
            content,
            origin,
            payment(None, budget),
        )
        return Run(self, lane, agent, number, opened)

    def models(self) -> list[ModelReport]:
        """Tells of every key of every model that was called: limits, calls, health.

        Shared by all sessions of the engine; nothing of a key is in it.
        """
        native, _ = self._opened()
        return [ModelReport(**each) for each in json.loads(native.models())]

    async def pending(self, session: str | None = None, *, limit: int = 100) -> list[Pending]:
        """Lists the tool calls that wait for a decision.

        Args:
            session: Only those of this session; None: of all that wait for nothing else, the
                newest first.
            limit: Sessions looked at, if there is no `session`.
        """
        native, lane = self._opened()
        return [Pending(*each) for each in await lane.ask(native.pending, session, limit)]

    async def approve(
        self,
        session: str,
        call: int,
        *,
        approval: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        by: str | None = None,
    ) -> None:
        """Lets a tool call run that waits for approval; `Run.approve` without its agent.

        The decision is stored; the session goes on when an engine resumes or claims it.

        Args:
            session: The session.
            call: Position of the call among the session's tool calls.
            approval: The request that is answered; None: whichever is open.
            arguments: All arguments to run it with, if not those of the model.
            by: Who decided, for the log.

        Raises:
            SessionError: `approval_used`: the call waits for no decision, or no longer.
        """
        native, lane = self._opened()
        edited = None if arguments is None else json.dumps(dict(arguments), ensure_ascii=False)
        await lane.ask(native.decide_approval, session, call, approval, edited, None, by, None)

    async def deny(
        self,
        session: str,
        call: int,
        message: str = "no reason given",
        *,
        approval: str | None = None,
        by: str | None = None,
    ) -> None:
        """Refuses a tool call that waits for approval; takes what `approve` and `Run.deny` take."""
        native, lane = self._opened()
        await lane.ask(native.decide_approval, session, call, approval, None, message, by, None)

    async def resolve(
        self, session: str, call: int, outcome: Outcome, *, by: str | None = None
    ) -> None:
        """Says what became of a call whose process ended; `Run.resolve` without its agent."""
        native, lane = self._opened()
        if outcome.kind == "undecided":
            raise ValueError("an undecided outcome resolves nothing, give done, not_done or failed")
        text = outcome_text(outcome, "resolve")
        await lane.ask(native.decide_effect, session, call, outcome.kind, text, by, None)

    async def replay(self, session: str) -> ReplayReport:
        """Runs a session again against its recorded results; nothing outside is asked.

        The recorded events must come out again, each the same to the byte.
        """
        native, lane = self._opened()
        return read_replay(session, await lane.ask(native.replay, session))

    async def state(self, session: str, *, at: int | None = None) -> dict[str, Any]:
        """A session's state after event `at` (None: the last one), as plain data.

        `messages` holds the conversation, `phase` what it was doing, `usage` and `cost_usd` what
        it had used.
        """
        native, lane = self._opened()
        until = None if at is None else at + 1
        found: dict[str, Any] = json.loads(await lane.ask(native.state_at, session, until))
        return found

    async def budget(self, tenant: str) -> BudgetReport | None:
        """How the budget of a tenant stands; None if it has none in this engine.

        Args:
            tenant: The tenant, one of the engine's `budgets`.
        """
        native, lane = self._opened()
        return read_budget_report(tenant, await lane.ask(native.budget, tenant))

    async def prune(
        self,
        *,
        older_than_s: float,
        statuses: Sequence[Status] = ("finished", "failed", "cancelled"),
        agent: str | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Removes ended sessions for good. What forks share and sessions name stays.

        Args:
            older_than_s: Only those whose last event is older, in seconds.
            statuses: Only those that ended so.
            agent: Only those of this agent; None: of all.
            dry_run: Only count.
        """
        native, lane = self._opened()
        before_us = int((time.time() - older_than_s) * 1e6)
        counts = await lane.ask(native.prune, before_us, list(statuses), agent, dry_run)
        return PruneReport(*counts)

    async def compact(self) -> CompactReport:
        """Gives the room of what was removed back to the system; appends wait meanwhile."""
        native, lane = self._opened()
        return CompactReport(*await lane.ask(native.compact))

    async def drain(self, within_s: float = 30.0) -> DrainReport:
        """Shuts down without cutting anything short; `close` afterwards.

        Nothing new is begun. A step that is under way may end; then its session is let go of, and
        another process of the store can go on with it at once.

        Args:
            within_s: After so many seconds, what still runs is dropped; it can be resumed.
        """
        native, lane = self._opened()
        return DrainReport(*await lane.ask(native.drain_sessions, max(0, round(within_s * 1000))))

    async def serve(
        self,
        *,
        within_s: float = 30.0,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    ) -> DrainReport:
        """Runs until the process is told to end by one of these signals, then drains.

        Args:
            within_s: Seconds that the drain may take.
            signals: What ends it. Their handlers are removed again before this returns.
        """
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        for each in signals:
            loop.add_signal_handler(each, told.set)
        try:
            await told.wait()
            return await self.drain(within_s)
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

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
        return read_report(session, await lane.ask(native.wait, session))

    def _opened(self) -> tuple[NativeEngine, Lane]:
        if self._open is None:
            raise from_failure(
                "engine_closed",
                "the engine is not open",
                "use it in `async with Engine(...)`",
                retryable=False,
            )
        return self._open

    async def _begin(
        self,
        agent: Agent[T],
        said: Any,
        where: tuple[str | None, str | None],
        *,
        step_class: StepClass | None,
        submit: bool,
        paid: bytes | None,
    ) -> Run[T]:
        """Begins a turn of a session (its id and its origin in `where`)."""
        if step_class is not None:
            check_step_class(step_class, "step_class")
        native, lane = self._opened()
        number = await self._register(agent)
        content = json.dumps(_content(said), ensure_ascii=False).encode()
        opened = await lane.ask(native.start, number, content, *where, submit, paid, step_class)
        return Run(self, lane, agent, number, opened)

    async def _claim(self) -> None:
        native, lane = self._opened()
        if not self._agents:
            return
        agents = {agent.name: agent for agent in self._agents}
        numbers = {name: await self._register(agent) for name, agent in agents.items()}
        claimed: list[Any] = []
        while True:
            page = await lane.ask(native.claim, list(numbers.values()), self._on_change)
            claimed += page
            if len(page) < CLAIM_PAGE:
                break
        for session, first_seq, name in claimed:
            opened = (session, first_seq)
            run = Run[Any](self, lane, agents[name], numbers[name], opened)
            self.resumed.append(run)

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
        arranged, _ = arrange(agent.name, agent.tools, listed)
        for owner, tool in arranged:
            if isinstance(owner, Tool):
                bindings.append({"host": lane.add_tool(owner)})
            elif tool is not None:
                remote = tool.get("remote_name", tool["name"])
                bindings.append({"mcp": {"server": owner.config(), "tool": remote}})
        access = [_access(model, lane) for model in agent.route.models]
        verifier = lane.add_verifier(agent.route)
        route = agent.route
        judge = None if route.judge is None else _access(route.judge, lane)
        try:
            return native.register(
                spec,
                json.dumps(access).encode(),
                json.dumps(bindings).encode(),
                verifier,
                None if judge is None else json.dumps(judge).encode(),
                route.read_weights(),
            )
        except RuntimeError as error:
            raise public_error(error) from None


def _access(model: Model, lane: Lane) -> dict[str, Any]:
    """How the engine reaches a model: what its description must not hold."""
    if model.adapter is not None:
        return {"adapter": lane.add_model(model.name, model.adapter)}
    return model.access()


def _content(value: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [dict(part) for part in value]


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
