"""What the end-to-end tests share: worker processes, and what must hold of a session's log.

Invariant: `check_session` reads only what a user could: the journal through a reader, the requests
that a model server got, and the traces that tools left. Start reading at `Worker`.
"""

import asyncio
import functools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Self

from mainspring._native import JournalReader
from mainspring.events import (
    EffectResolved,
    EffectUnknown,
    Event,
    ModelCallFinished,
    ModelCallStarted,
    SessionFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallStarted,
    decode_event,
)
from mainspring.testing import Request, ScriptedModel, Step, call, calls, say
from tests.e2e import worker

ANSWER = "all done"
ROOT = Path(__file__).parents[2]

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes an async test one that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Worker:
    """The process of `jobs.py`, which forks another for every job.

    Args:
        within: A command that runs it, if not this process.
        env: What its environment has beside this one's.
    """

    def __init__(self, *, within: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.e2e.jobs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, job: str, **fields: Any) -> int:
        """Begins a job; gives the id of the process that runs it."""
        self.lines = []
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job, **fields}).encode() + b"\n")
        return int(self.wait_for("begun")["pid"])

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of this kind; the ones before it are in `lines`."""
        for line in self._read():
            if line["event"] == event:
                return line
            if line["event"] == "exit":
                raise AssertionError(f"the job ended before {event!r}: {self.lines}")
        raise AssertionError(f"the worker ended before {event!r}: {self.lines}")

    def reached(self, event: str) -> bool:
        """Waits for a line of this kind; False if the job ended before."""
        return any(line["event"] == event for line in self._read(until=(event, "exit")))

    def exit_code(self) -> int:
        """Waits for the job's end; negative: the signal that ended it."""
        ended = self.said("exit")
        return int((ended[0] if ended else self.wait_for("exit"))["code"])

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of this kind that have been read."""
        return [line for line in self.lines if line["event"] == event]

    def _read(self, until: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while text := self._process.stdout.readline():
            line = json.loads(text)
            self.lines.append(line)
            yield line
            if line["event"] in until:
                return


def work_step(request: Request, calls_per_effect: int = worker.CALLS_PER_EFFECT) -> Step:
    """The model of the kill tests: three steps with tools of every effect, then the answer."""
    if request.assistant_count == worker.STEP_COUNT:
        return say(ANSWER)
    return calls(
        *(call(f"{effect}_it") for effect in worker.EFFECTS for _ in range(calls_per_effect))
    )


def session_of(request: Request) -> str:
    """The session that a request is for: the kill tests use its id as the input."""
    user = next(message for message in request.messages if message["role"] == "user")
    content = user["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


class Traces:
    """The lines that tools left in a file, one for each time that one ran."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def of(self, session: str) -> list[dict[str, Any]]:
        """The lines of one session."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in lines if line["session"] == session]

    def by_session(self) -> dict[str, list[dict[str, Any]]]:
        """All lines."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.path.read_text().splitlines():
            trace = json.loads(line)
            found.setdefault(trace["session"], []).append(trace)
        return found


class Logs:
    """A store as a reader sees it; a context manager."""

    def __init__(self, store: str) -> None:
        self._reader = JournalReader(store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()

    def sessions(self) -> dict[str, str]:
        """The status of each session."""
        return {head[0]: head[1] for head in self._reader.sessions(None, 1000, None)}

    def of(self, session: str) -> list[tuple[int, Event]]:
        """A session's events with their epochs; empty if it does not exist."""
        if self._reader.head(session) is None:
            return []
        records = self._reader.load(session, 0)
        return [(epoch, decode_event(seq, at_us, text)) for seq, at_us, epoch, text in records]

    def divergence(self, session: str) -> Any:
        """Where a replay of the session leaves its record; None if it does not."""
        return self._reader.replay(session)[1]


def read_log(store: str, session: str) -> list[tuple[int, Event]]:
    """A session's events with their epochs; empty if it does not exist."""
    with Logs(store) as logs:
        return logs.of(session)


def steps_recorded(log: Sequence[tuple[int, Event]]) -> set[int]:
    """The steps whose model call is recorded."""
    return {event.step for _, event in log if isinstance(event, ModelCallFinished)}


def check_all(
    store: str,
    traces: Mapping[str, Sequence[Mapping[str, Any]]],
    requests: Sequence[Request],
    calls_per_effect: int = worker.CALLS_PER_EFFECT,
) -> int:
    """Asserts what must hold of every session of a store, all of them finished; says how many."""
    asked: dict[str, list[Request]] = {}
    for request in requests:
        asked.setdefault(session_of(request), []).append(request)
    with Logs(store) as logs:
        sessions = logs.sessions()
        for session in sessions:
            log = logs.of(session)
            try:
                check_session(log, traces[session], asked[session], calls_per_effect)
                assert logs.divergence(session) is None
            except BaseException as error:
                error.add_note(f"session {session}")
                raise
    assert set(traces) <= set(sessions)
    return len(sessions)


def check_session(
    log: Sequence[tuple[int, Event]],
    traces: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    calls_per_effect: int = worker.CALLS_PER_EFFECT,
) -> None:
    """Asserts what must hold of a finished session of the kill tests, however often it was killed.

    Args:
        log: The whole log.
        traces: What the session's tools left.
        requests: What the model server got from it.
        calls_per_effect: How often each tool is called in a step.
    """
    events = [event for _, event in log]
    assert [event.seq for event in events] == list(range(len(events)))
    epochs = [epoch for epoch, _ in log]
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(1, epochs[-1] + 1))
    assert isinstance(events[-1], SessionFinished)
    _check_model_calls(events, requests)
    calls = Calls(events)
    count = worker.STEP_COUNT * len(worker.EFFECTS) * calls_per_effect
    calls.check_outcomes(count)
    calls.check_effects(traces)


def _check_model_calls(events: Sequence[Event], requests: Sequence[Request]) -> None:
    finished = [event.step for event in events if isinstance(event, ModelCallFinished)]
    assert finished == list(range(worker.STEP_COUNT + 1))
    started: Counter[int] = Counter()
    recorded: set[int] = set()
    for event in events:
        if isinstance(event, ModelCallStarted):
            assert event.step not in recorded, "a recorded model call was made again"
            started[event.step] += 1
        elif isinstance(event, ModelCallFinished):
            recorded.add(event.step)
    asked = Counter(request.assistant_count for request in requests)
    # Each start is at most one request: it was written first, and a death may have come between.
    assert all(1 <= asked[step] <= started[step] for step in started), (asked, started)


class Calls:
    """The tool calls of a log, read in order; what may not follow is an assertion's failure."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.names: dict[int, str] = {}
        self.effect_ids: dict[int, str] = {}
        self.attempts: Counter[int] = Counter()
        self.outcomes: Counter[int] = Counter()
        self.denied: Counter[int] = Counter()
        self._finished: dict[int, int] = {}
        self._unknown: set[int] = set()
        for event in events:
            self._read(event)

    def _read(self, event: Event) -> None:
        if isinstance(event, ToolCallStarted):
            assert self.outcomes[event.call] == 0, "a recorded tool call was made again"
            assert event.call not in self._unknown, "an unknown tool call was made again"
            assert self.effect_ids.setdefault(event.call, event.effect_id) == event.effect_id
            self.names[event.call] = event.name
            self.attempts[event.call] += 1
            assert event.attempt == self.attempts[event.call]
            if event.name == "unsafe_it":
                assert self.attempts[event.call] <= 1 + self.denied[event.call]
        elif isinstance(event, ToolCallFinished):
            assert event.text == f"{self.names[event.call]} done"
            self.outcomes[event.call] += 1
            self._finished[event.call] = self.attempts[event.call]
        elif isinstance(event, EffectUnknown):
            assert self.names[event.call] == "unsafe_it"
            self._unknown.add(event.call)
        elif isinstance(event, EffectResolved) and event.outcome != "undecided":
            self._unknown.remove(event.call)
            self.denied[event.call] += event.outcome == "not_done"
            self.outcomes[event.call] += event.outcome == "done"
        else:
            assert not isinstance(event, ToolCallFailed), event

    def check_outcomes(self, count: int) -> None:
        """There are so many calls, each with one outcome and a key of its own."""
        assert +self.outcomes == dict.fromkeys(range(count), 1)
        assert len(set(self.effect_ids.values())) == count

    def check_effects(self, traces: Sequence[Mapping[str, Any]]) -> None:
        """What the tools did is what the log says, and nothing more often than it may be."""
        made: dict[str, list[int]] = {}
        for trace in traces:
            made.setdefault(trace["effect_id"], []).append(trace["attempt"])
        assert set(made) == set(self.effect_ids.values())
        for index, effect_id in self.effect_ids.items():
            ran = made[effect_id]
            assert len(set(ran)) == len(ran), "one attempt ran twice"
            assert all(attempt <= self.attempts[index] for attempt in ran)
            assert self._finished.get(index, ran[0]) in ran
            if self.names[index] == "unsafe_it":
                assert len(ran) <= 1 + self.denied[index]


def kill_model() -> ScriptedModel:
    """The model server of the kill tests."""
    return ScriptedModel(work_step)
