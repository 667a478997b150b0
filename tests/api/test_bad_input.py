"""Bad input, bad servers, bad disks: each gives its documented error, and nothing is lost.

The failures of a model call run against the scripted model on a real socket; those of the disk in
a process of their own.
"""

import asyncio
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Engine,
    EngineError,
    Limits,
    MainspringError,
    Model,
    ModelError,
    SessionError,
)
from mainspring.events import Event, ModelCallFailed, SessionFailed, SessionFinished
from mainspring.testing import (
    Script,
    ScriptedModel,
    Step,
    drop,
    fail,
    garbage,
    hang,
    say,
    wait_for,
)
from tests.e2e._support import ANSWER, Traces, Worker, in_loop, kill_model, read_log

# Deadlines that are meant to pass.
SHORT_S = 0.1
TWO_HOURS_S = 7200.0
API_HINT = "check that base_url is the API of an OpenAI-compatible server"
SERVER = 'model "scripted" at HOST'


@dataclass(frozen=True)
class Ended:
    """How a session ended: its error, its events, and how often its model was asked."""

    error: MainspringError | None
    log: list[Event]
    request_count: int

    @property
    def failures(self) -> list[ModelCallFailed]:
        """The failed model calls."""
        return [event for event in self.log if isinstance(event, ModelCallFailed)]


async def end_of(
    script: Script,
    *,
    change: Callable[[Model], Model] = lambda model: model,
    stream: bool = False,
    api_key: str | None = None,
    attempts: int = 2,
) -> Ended:
    """Runs a session on a model that misbehaves; the server's address reads HOST."""
    with ScriptedModel(script, api_key=api_key) as server:
        model = change(server.model(stream=stream))
        agent = Agent("t", model=model, limits=Limits(model_attempts_max=attempts))
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            error = None
            try:
                await run.result()
            except MainspringError as raised:
                error = raised
                host = model.spec()["base_url"].removeprefix("http://").partition("/")[0]
                error.message = error.message.replace(host, "HOST")
            return Ended(error, await engine.log(run.session), server.request_count)


def told(error: MainspringError | None) -> str:
    """Code, message and hint as they are."""
    assert error is not None, "it did not fail"
    return f"{error.code}: {error}"


def closed_port() -> int:
    """A port where nothing listens."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# What a model server does, whether it streams, and what the user reads; `...` at the end stands
# for the words of the operating system or a library.
RETRIED: dict[str, tuple[Step, bool, str]] = {
    "silent": (
        hang(),
        False,
        f"model_timeout: {SERVER} did not finish its answer within 0.1 s\n"
        "hint: raise the model's total_s, or check how busy the server is",
    ),
    "silent-stream": (
        hang(),
        True,
        f"model_timeout: {SERVER} sent no first token within 0.1 s\n"
        "hint: raise the model's first_token_s, or check how busy the server is",
    ),
    "stops-half-way": (
        hang(after_chars=5),
        False,
        f"model_timeout: {SERVER} did not finish its answer within 0.1 s\n"
        "hint: raise the model's total_s, or check how busy the server is",
    ),
    "drops-at-once": (
        drop(after_chars=None),
        False,
        f"model_interrupted: connection to {SERVER} ended before the answer was complete: ...",
    ),
    "drops-half-way": (
        drop(),
        False,
        f"model_interrupted: connection to {SERVER} ended before the answer was complete: ...",
    ),
    "drops-half-way-stream": (
        drop(),
        True,
        f"model_interrupted: connection to {SERVER} ended before the answer was complete: ...",
    ),
    "html": (
        garbage(),
        False,
        'model_bad_response: answer of model "scripted" is not a chat completion '
        '(expected value at line 1 column 1): "<html>this is no model</html>"\n'
        f"hint: {API_HINT}",
    ),
    "html-stream": (
        garbage(),
        True,
        f'model_bad_response: answer of model "scripted" is a stream without choices\n'
        f"hint: {API_HINT}",
    ),
    "other-json": (
        garbage(b'{"a":1}'),
        False,
        'model_bad_response: answer of model "scripted" has no choices[0].message: '
        '"{\\"a\\":1}"\n'
        f"hint: {API_HINT}",
    ),
    "server-error": (
        fail(500, "out of memory"),
        False,
        f"model_server_error: {SERVER} answered with status 500 (server_error): out of memory",
    ),
    "rate-limit": (
        fail(429, "slow down"),
        False,
        f"model_rate_limited: {SERVER} answered with status 429 (rate_limit_exceeded): slow down\n"
        "hint: lower the concurrency, or ask the provider for a higher rate",
    ),
}


@pytest.mark.parametrize("name", RETRIED)
@in_loop
async def test_a_failure_that_may_pass_is_retried_and_then_ends_the_turn(name: str) -> None:
    step, stream, expected = RETRIED[name]
    is_slow = name in ("silent", "stops-half-way")

    def change(model: Model) -> Model:
        return replace(
            model,
            total_s=SHORT_S if is_slow else model.total_s,
            first_token_s=SHORT_S if name == "silent-stream" else model.first_token_s,
        )

    ended = await end_of([step], change=change, stream=stream)
    assert isinstance(ended.error, ModelError)
    assert ended.error.retryable
    text = told(ended.error)
    if expected.endswith("..."):
        assert text.startswith(expected.removesuffix("..."))
        assert len(text) > len(expected) - 3
    else:
        assert text == expected
    first, last = ended.failures
    assert (first.attempt, last.attempt) == (1, 2)
    assert first.retry_at_us is not None
    assert first.at_us < first.retry_at_us <= last.at_us
    assert last.retry_at_us is None
    assert isinstance(ended.log[-1], SessionFailed)
    assert ended.log[-1].error == last.error
    assert ended.request_count == 2


LASTING: dict[str, tuple[Step, str, int]] = {
    "key-refused": (
        say("never"),
        f"model_auth: {SERVER} answered with status 401 (invalid_api_key)\n"
        "hint: check the API key and that it may use this model",
        0,
    ),
    "bad-request": (
        fail(400, "no such thing"),
        f"model_bad_request: {SERVER} answered with status 400 (invalid_request_error): "
        "no such thing\n"
        "hint: check the model's params and that the server knows tools and response_format",
        1,
    ),
    "come-back-in-two-hours": (
        fail(429, "slow down", retry_after_s=TWO_HOURS_S),
        f"model_rate_limited: {SERVER} answered with status 429 (rate_limit_exceeded): slow down\n"
        "hint: lower the concurrency, or ask the provider for a higher rate",
        1,
    ),
}


@pytest.mark.parametrize("name", LASTING)
@in_loop
async def test_a_failure_that_does_not_pass_ends_the_turn_at_once(name: str) -> None:
    step, expected, request_count = LASTING[name]
    is_refused = name == "key-refused"
    ended = await end_of(
        [step],
        change=lambda model: replace(model, api_key="a wrong key") if is_refused else model,
        api_key="the right key" if is_refused else None,
    )
    assert told(ended.error) == expected
    (failure,) = ended.failures
    assert failure.retry_at_us is None
    assert isinstance(ended.log[-1], SessionFailed)
    assert ended.log[-1].error == failure.error
    assert ended.request_count == request_count
    assert "a wrong key" not in repr(ended)


@in_loop
async def test_a_model_that_the_server_does_not_know_is_named() -> None:
    with ScriptedModel(models={"known": [say("never")]}) as server:
        model = replace(server.model(), name="unheard-of")
        async with Engine("memory:") as engine:
            run = await engine.start(Agent("t", model=model), "go")
            with pytest.raises(ModelError) as caught:
                await run.result()
            log = await engine.log(run.session)
    host = server.base_url.removeprefix("http://").removesuffix("/v1")
    assert told(caught.value) == (
        f'model_not_found: model "unheard-of" at {host} answered with status 404 '
        "(model_not_found): The model `unheard-of` does not exist or you do not have access to it\n"
        "hint: check the model's name and that base_url ends where the API begins, often in /v1"
    )
    assert isinstance(log[-1], SessionFailed)


@in_loop
async def test_a_server_that_is_not_there_is_retried_and_named() -> None:
    address = f"http://127.0.0.1:{closed_port()}/v1"
    ended = await end_of([say("never")], change=lambda model: replace(model, base_url=address))
    error = ended.error
    assert isinstance(error, ModelError)
    assert (error.code, error.retryable) == ("model_connect", True)
    assert error.message.startswith(f"cannot connect to {SERVER}: ")
    assert error.hint == (
        "is the server running? a local model is started with `mainspring models serve`"
    )
    assert [failure.attempt for failure in ended.failures] == [1, 2]
    assert ended.request_count == 0


@pytest.mark.parametrize(
    "step",
    [
        fail(429, retry_after_s=0.05, then=say("ok")),
        fail(429, then=say("ok")),
        fail(500, then=say("ok")),
        drop(then=say("ok")),
        garbage(then=say("ok")),
    ],
    ids=["429-retry-after", "429", "500", "drop", "garbage"],
)
@in_loop
async def test_a_server_that_recovers_costs_one_attempt(step: Step) -> None:
    ended = await end_of([step])
    assert ended.error is None
    (failure,) = ended.failures
    assert failure.retry_at_us is not None
    assert failure.retry_at_us > failure.at_us
    assert isinstance(ended.log[-1], SessionFinished)
    assert ended.request_count == 2


@in_loop
async def test_a_server_that_names_a_time_is_not_asked_before_it() -> None:
    ended = await end_of([fail(429, retry_after_s=0.2, then=say("ok"))])
    (failure,) = ended.failures
    assert failure.retry_at_us is not None
    assert failure.retry_at_us - failure.at_us >= 200_000


@in_loop
async def test_a_missing_key_is_told_before_a_session_begins() -> None:
    async with Engine("memory:") as engine:
        with pytest.raises(ModelError) as caught:
            await engine.start(Agent("t", model="openai:gpt-5.4-mini"), "go")
        assert told(caught.value) == (
            'model_auth: model "openai:gpt-5.4-mini" needs a key, environment variable '
            "OPENAI_API_KEY is not set\n"
            "hint: set OPENAI_API_KEY, or name another variable with api_key_env="
        )
        assert await engine.sessions() == []


async def refused(call: Awaitable[Any]) -> str:
    """What a call that must fail says."""
    with pytest.raises(MainspringError) as caught:
        await call
    return told(caught.value)


@in_loop
async def test_an_engine_that_is_full_or_busy_refuses_and_loses_nothing() -> None:
    gate = threading.Event()
    with ScriptedModel([wait_for(gate, then=say("done"))]) as server:
        agent = Agent("t", model=server.model())
        async with Engine("memory:", sessions_max=2, shard_count=1) as engine:
            runs = [await engine.start(agent, "go", session=name) for name in ("one", "two")]
            with pytest.raises(EngineError) as caught:
                await engine.start(agent, "go", session="three")
            assert caught.value.retryable
            assert told(caught.value) == (
                "engine_overloaded: 2 sessions are running here, limit 2\n"
                "hint: try again when some have ended, or raise sessions_max of the Engine"
            )
            busy = (
                'session_busy: session "one" is running a turn\n'
                "hint: wait for its end, or use another session"
            )
            assert await refused(engine.start(agent, "go", session="one")) == busy
            assert await refused(engine.resume("one", agent)) == busy
            gate.set()
            assert [await run.result() for run in runs] == ["done", "done"]
            again = await engine.start(agent, "go", session="three")
            assert await again.result() == "done"


@in_loop
async def test_sessions_that_cannot_be_named_found_or_continued_are_refused() -> None:
    with ScriptedModel([say("done")]) as server:
        agent = Agent("t", model=server.model())
        async with Engine("memory:") as engine:
            for name in ("", "a b", "../x", "x" * 129):
                assert await refused(engine.start(agent, "go", session=name)) == (
                    f'session_invalid_id: session id "{name}" is not valid\n'
                    "hint: use 1 to 128 characters out of A-Z a-z 0-9 . _ : -"
                )
            missing = (
                'session_not_found: session "nope" is not in the journal\n'
                "hint: `mainspring sessions` lists the ones that are"
            )
            assert await refused(engine.resume("nope", agent)) == missing
            assert await refused(engine.report("nope")) == missing
            assert await refused(engine.log("nope")) == missing
            run = await engine.start(agent, "go", session="one")
            assert await run.result() == "done"
            assert await refused(engine.resume("one", agent)) == (
                'session_not_open: session "one" has no turn to continue: its last one has ended\n'
                "hint: `mainspring show one` shows it"
            )
            assert await refused(run.cancel()) == (
                'session_not_open: session "one" is not running here'
            )
            assert [info.session for info in await engine.sessions()] == ["one"]
            with pytest.raises(ValueError, match="limit is -1"):
                await engine.sessions(limit=-1)


@in_loop
async def test_input_that_is_too_long_or_no_input_begins_no_session() -> None:
    with ScriptedModel([say("done")]) as server:
        agent = Agent("t", model=server.model(), limits=Limits(input_bytes_max=10))
        async with Engine("memory:") as engine:
            assert await refused(engine.start(agent, "eleven byte")) == (
                "agent_invalid: the input has 11 bytes, limit 10\n"
                "hint: raise Limits.input_bytes_max, or let a tool read the text piece by piece"
            )
            with pytest.raises(AgentError, match="unknown variant `smell`"):
                await engine.start(agent, [{"type": "smell"}])
            assert await engine.sessions() == []


@in_loop
async def test_a_turn_whose_engine_was_closed_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    gate = threading.Event()
    store = f"sqlite:///{tmp_path}/one.db"
    with ScriptedModel([wait_for(gate, then=say("done"))]) as server:
        agent = Agent("t", model=server.model())
        async with Engine(store) as engine:
            run = await engine.start(agent, "go", session="one")
            await asyncio.to_thread(server.wait_for_requests, 1)
            waiting = asyncio.ensure_future(run.result())
            await asyncio.sleep(0)
        with pytest.raises(EngineError) as caught:
            await waiting
        assert caught.value.code == "engine_closed"
        assert (await refused(run.result())).startswith("engine_closed: ")
        gate.set()
        async with Engine(store) as engine:
            with pytest.raises(SessionError) as busy:
                await engine.start(agent, "go", session="one")
            assert told(busy.value) == (
                'session_busy: session "one" is running a turn\n'
                "hint: its turn was interrupted: resume it first (`mainspring resume`)"
            )
            other = Agent("t", instructions="New.", model=server.model())
            assert await refused(engine.resume("one", other, on_change="refuse")) == (
                'agent_changed: agent "t" is not the one session "one" runs\n'
                "hint: resume it with the agent as it was, or allow the change"
            )
            assert await (await engine.resume("one", agent)).result() == "done"


@in_loop
async def test_stores_that_cannot_be_opened_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is no database. " * 100)
    kinds = (
        "hint: use sqlite:///relative.db, sqlite:////absolute/path.db, a plain path, "
        "postgresql://user:password@host/database, or memory:"
    )
    expected = {
        "mysql://x": "journal_url_invalid: journal address names no known store: "
        f'address of kind "mysql"\n{kinds}',
        "sqlite://x": "journal_url_invalid: journal address names no known store: "
        f"sqlite address without three slashes\n{kinds}",
        "": f"journal_url_invalid: journal address names no known store: empty address\n{kinds}",
        f"sqlite:///{tmp_path}/no/one.db": f"journal_io: journal {tmp_path}/no/one.db cannot be "
        "made, its folder is missing\nhint: make the folder first, or choose another path",
        f"sqlite:///{tmp_path}": f"journal_io: journal {tmp_path} is not a file",
        f"sqlite:///{tmp_path}/text.db": f"journal_corrupt: journal {tmp_path}/text.db could not "
        "be opened: file is not a database\n"
        "hint: the file is damaged or is no journal; put back a copy of it",
    }
    for store, text in expected.items():
        assert await refused(Engine(store).__aenter__()) == text
    assert (tmp_path / "text.db").read_text().startswith("This is no database. ")


@in_loop
async def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    async with Engine(f"sqlite:///{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'mainspring_journal_version'")
        connection.commit()
    before = path.read_bytes()
    assert await refused(Engine(f"sqlite:///{path}").__aenter__()) == (
        f"journal_newer: journal {path} has store version 99, this version reads up to 3\n"
        "hint: use the version of mainspring that wrote it, or a newer one"
    )
    assert path.read_bytes() == before


def test_a_store_that_may_not_be_written_is_refused() -> None:
    # Not pytest's folder, which only this user may enter.
    folder = Path(tempfile.mkdtemp())
    path = folder / "one.db"
    try:
        asyncio.run(_make(f"sqlite:///{path}"))
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        with Worker() as worker:
            worker.begin("read_only", store=f"sqlite:///{path}")
            assert worker.exit_code() == 0, worker.lines
            (failed,) = worker.said("failed")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert failed["code"] == "journal_read_only"
    message, _, hint = failed["text"].partition("\n")
    assert message.startswith(f"journal {path}")
    assert hint == "hint: check the rights of the file and its folder, or choose another path"


async def _make(store: str) -> None:
    async with Engine(store):
        pass


@pytest.mark.parametrize("room_bytes", [0, 300_000], ids=["at-the-start", "half-way"])
def test_a_disk_that_fills_up_loses_nothing_that_was_acknowledged(
    tmp_path: Path, room_bytes: int
) -> None:
    store = f"sqlite:///{tmp_path}/one.db"
    # Its tables are made and folded in, so that all the room is for the session.
    asyncio.run(_make(store))
    traces = Traces(tmp_path / "traces")
    with kill_model() as model, Worker() as worker:
        worker.begin(
            "full_disk",
            store=store,
            session="one",
            effects=str(traces.path),
            base_url=model.base_url,
            bytes_max=room_bytes,
        )
        assert worker.exit_code() == 0, worker.lines
        (failed,) = worker.said("failed")
        (result,) = worker.said("result")
    assert bool(worker.said("acked")) is (room_bytes > 0)
    assert failed["code"] == "journal_io"
    assert failed["text"] == (
        f"journal {tmp_path}/one.db could not be written: disk I/O error\n"
        "hint: check the disk and the limit on file sizes (`ulimit -f`); "
        "no acknowledged event is lost"
    )
    assert result["text"] == ANSWER
    assert isinstance(read_log(store, "one")[-1][1], SessionFinished)
