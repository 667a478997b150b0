"""What an engine tells about sessions, as plain data.

Invariant: each class is what the native module's tuple of the same name holds, in the same order.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mainspring.errors import MainspringError, from_failure

__all__ = [
    "CompactReport",
    "Divergence",
    "DrainReport",
    "ModelReport",
    "Pending",
    "PruneReport",
    "ReplayReport",
    "Report",
    "SessionInfo",
    "Status",
]

Status = Literal["open", "waiting", "finished", "failed", "cancelled"]
"""How a session's last turn stands; `waiting`: it goes on once a person decides something."""


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
        cache_busts: How often a provider's prompt cache was lost without a reason.
        cache_bust_tokens: Tokens that were read anew because of that, estimated.
        compactions: How often what is sent to models was made shorter.
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
    cache_busts: int = 0
    cache_bust_tokens: int = 0
    compactions: int = 0


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What an engine knows of one key of one model.

    Args:
        host: Host and port of the server.
        model: The model's name there.
        key: Tells keys of one model at one host apart, from 1 in the order of their first use.
        requests_per_minute: Given or learnt from the server; None: no limit is known.
        tokens_per_minute: Given or learnt from the server; None: no limit is known.
        concurrency: Calls that may be under way at once now.
        in_flight: Calls under way.
        queued: Calls that wait for their turn.
        breaker: `closed`: all is well. `open`: the server failed so often that it is left alone.
            `half_open`: one call finds out whether it is back.
        paused_ms: Milliseconds for which it still rests, because the server asked for it.
        calls: Calls made.
        refused: Calls that the server refused because there were too many (status 429).
        failed: Calls that failed, the refused ones included.
        hedged: Second calls made because a first token was late.
        first_token_p50_ms: Milliseconds to the first token that half of the calls stayed below;
            without streaming, to the answer. None: there was no answer yet.
        first_token_p95_ms: The same for 95 of 100 calls.
    """

    host: str
    model: str
    key: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int
    in_flight: int
    queued: int
    breaker: Literal["closed", "open", "half_open"]
    paused_ms: int
    calls: int
    refused: int
    failed: int
    hedged: int
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None


def read_report(session: str, report: Any) -> Report:
    """Makes a report of the native module's tuple."""
    status, text, failure, *numbers = report
    error = from_failure(*failure, session=session) if failure else None
    return Report(session, status, text, error, *numbers)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as a list shows it.

    Args:
        session: Its id.
        status: How its last turn stands.
        agent: The agent's name.
        origin: Where the agent was loaded from, as `MODULE:AGENT`; None if not from a module.
        epoch: How many owners it has had.
        event_count: How many events it has, those shared with a parent included.
        created_us: Time of its first own event, in microseconds since 1970 (UTC).
        updated_us: Time of its last event.
        parent: The session it was forked from; None if it was not, or if that one was pruned.
        shared_count: How many events it shares with its parent; None without one.
        owner: The process that runs it, in a store that several share; None: nobody, or not shared.
    """

    session: str
    status: Status
    agent: str
    origin: str | None
    epoch: int
    event_count: int
    created_us: int
    updated_us: int
    parent: str | None = None
    shared_count: int | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A tool call that waits for a decision.

    Args:
        session: The session.
        call: Position of the call among the session's tool calls, from 0.
        approval: Names the request for a person's approval; None: the call's process ended while
            it ran, and it must be found out what became of it.
        tool: The tool's name.
        arguments: Its arguments, as JSON.
        effect_id: The call's key, the same for all its attempts.
        attempt: Attempts begun so far.
    """

    session: str
    call: int
    approval: str | None
    tool: str
    arguments: str
    effect_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a replay left the record.

    Args:
        seq: Position of the first event that differs.
        recorded: The recorded event, as JSON; None if the log ends before it.
        replayed: What came out instead; None if nothing did.
        why: Why, in words.
    """

    seq: int
    recorded: str | None
    replayed: str | None
    why: str


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """How a replay of a session against its recorded results ended.

    Args:
        session: The session.
        event_count: How many events came out the same.
        divergence: The first difference; None if all came out the same.
    """

    session: str
    event_count: int
    divergence: Divergence | None

    @property
    def identical(self) -> bool:
        """Whether every event came out as it was recorded."""
        return self.divergence is None


def read_replay(session: str, replay: Any) -> ReplayReport:
    """Makes a report of the native module's tuple."""
    event_count, found = replay
    return ReplayReport(session, event_count, Divergence(*found) if found else None)


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What came of a drain.

    Args:
        finished: Sessions whose turn ended meanwhile.
        parked: Sessions that were let go between two steps, to be taken up elsewhere.
        cut: Sessions that were still inside a step when the time was up.
    """

    finished: int
    parked: int
    cut: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruning has removed, or would.

    Args:
        sessions: Sessions that are gone.
        kept_for_forks: Of those, the ones whose first events stay because a fork shares them.
        events: Events that are gone.
        blobs: Blobs that no session names any more and are gone.
    """

    sessions: int
    kept_for_forks: int
    events: int
    blobs: int


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction has gained.

    Args:
        bytes_before: Size of the store before.
        bytes_after: Size of the store after.
    """

    bytes_before: int
    bytes_after: int
