"""What the end-to-end tests share: worker processes, and what must hold of a session's log.

Invariant: `check_session` reads only what a user could: the journal through a reader, the requests
that a model server got, and the traces that tools left. Start reading at `Worker`.
"""

import asyncio
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Self

from mainspring._native import JournalReader
from mainspring.events import (
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

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes an async test one that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Worker:
    """The process of `worker.py`, which forks another for every job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
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

    def exit_code(self) -> int:
        """Waits for the job's end; negative: the signal that ended it."""
        return int(self.wait_for("exit")["code"])

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of this kind that have been read."""
        return [line for line in self.lines if line["event"] == event]

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while text := self._process.stdout.readline():
            line = json.loads(text)
            self.lines.append(line)
            yield line


def work_step(request: Request) -> Step:
    """The model of the kill tests: three steps with tools of every effect, then the answer."""
    if request.assistant_count == worker.STEP_COUNT:
        return say(ANSWER)
    return calls(
        *(call(f"{effect}_it") for effect in worker.EFFECTS for _ in range(worker.CALLS_PER_EFFECT))
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


def read_log(store: str, session: str) -> list[tuple[int, Event]]:
    """A session's events with their epochs; empty if it does not exist."""
    reader = JournalReader(store)
    try:
        if reader.head(session) is None:
            return []
        records = reader.load(session, 0)
    finally:
        reader.close()
    return [(epoch, decode_event(seq, at_us, text)) for seq, at_us, epoch, text in records]


def steps_recorded(log: Sequence[tuple[int, Event]]) -> set[int]:
    """The steps whose model call is recorded."""
    return {event.step for _, event in log if isinstance(event, ModelCallFinished)}


def check_session(
    log: Sequence[tuple[int, Event]],
    traces: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
) -> None:
    """Asserts what must hold of a finished session of the kill tests, however often it was killed.

    Args:
        log: The whole log.
        traces: What the session's tools left.
        requests: What the model server got from it.
    """
    events = [event for _, event in log]
    assert [event.seq for event in events] == list(range(len(events)))
    epochs = [epoch for epoch, _ in log]
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(1, epochs[-1] + 1))
    assert isinstance(events[-1], SessionFinished)
    _check_model_calls(events, requests)
    _check_tool_calls(events, traces)


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


def _check_tool_calls(events: Sequence[Event], traces: Sequence[Mapping[str, Any]]) -> None:
    names: dict[int, str] = {}
    effect_ids: dict[int, str] = {}
    attempts: Counter[int] = Counter()
    outcomes: Counter[int] = Counter()
    ran: dict[str, list[int]] = {}
    for trace in traces:
        ran.setdefault(trace["effect_id"], []).append(trace["attempt"])
    for event in events:
        if isinstance(event, ToolCallStarted):
            assert outcomes[event.call] == 0, "a recorded tool call was made again"
            assert effect_ids.setdefault(event.call, event.effect_id) == event.effect_id
            names[event.call] = event.name
            attempts[event.call] += 1
            assert event.attempt == attempts[event.call]
        elif isinstance(event, ToolCallFinished):
            assert event.text == f"{names[event.call]} done"
            outcomes[event.call] += 1
            assert attempts[event.call] in ran[effect_ids[event.call]]
        elif isinstance(event, ToolCallFailed):
            assert (names[event.call], event.error.code) == ("unsafe_it", "tool_outcome_unknown")
            outcomes[event.call] += 1
    count = worker.STEP_COUNT * len(worker.EFFECTS) * worker.CALLS_PER_EFFECT
    assert outcomes == dict.fromkeys(range(count), 1)
    assert len(set(effect_ids.values())) == count
    assert set(ran) <= set(effect_ids.values())
    for index, effect_id in effect_ids.items():
        made = ran.get(effect_id, [])
        assert len(set(made)) == len(made), "one attempt ran twice"
        assert all(attempt <= attempts[index] for attempt in made)
        if names[index] == "unsafe_it":
            assert len(made) <= 1


def kill_model() -> ScriptedModel:
    """The model server of the kill tests."""
    return ScriptedModel(work_step)
