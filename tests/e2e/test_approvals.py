"""An approval counts once: for one run of one tool in one session of one store, whoever asks.

What ran is counted by a server outside of all the processes that decide, run and die.
"""

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mainspring import Engine, MainspringError
from mainspring.testing import ScriptedModel, call, calls, say
from tests.e2e import worker
from tests.e2e._support import Logs, Worker, in_loop
from tests.e2e.effects import EffectServer
from tests.e2e.postgres import Postgres, job_of, kill
from tests.e2e.shared import approval_agent, approve_once

PROCESS_COUNT = 4
APPROVALS_EACH = 25


class Case:
    """A model that pays once, a server that counts it, and a store."""

    def __init__(self, store: str, model: ScriptedModel, effects: EffectServer) -> None:
        self.store = store
        self.effects = effects
        self.job = job_of(store, model.base_url, effects.url)
        self.agent = approval_agent(self.job)

    async def ask(self, session: str) -> str:
        """Begins a session that waits for approval; gives the request's name."""
        async with Engine(self.store) as engine:
            run = await engine.start(self.agent, "pay", session=session)
            async for event in run.events():
                if event.kind == "approval_requested":
                    break
            (waiting,) = await run.pending()
        assert waiting.approval is not None
        return waiting.approval

    def check(self, *, finished: int) -> None:
        """Asserts that so many sessions have paid once each, and that their logs replay."""
        with Logs(self.store) as logs:
            statuses = logs.sessions()
            assert [logs.divergence(session) for session in statuses] == [None] * len(statuses)
        assert Counter(statuses.values())["finished"] == finished
        assert self.effects.count == finished
        assert self.effects.repeated() == 0


@pytest.fixture
def outside() -> Iterator[tuple[ScriptedModel, EffectServer]]:
    """The model and the counting server."""
    script = [calls(call("pay")), say("done")]
    with ScriptedModel(script) as model, EffectServer() as effects:
        yield model, effects


@pytest.fixture(params=["sqlite", "postgresql"])
def case(
    request: pytest.FixtureRequest, outside: tuple[ScriptedModel, EffectServer], tmp_path: Path
) -> Case:
    """The case in each kind of store that processes can share."""
    if request.param == "sqlite":
        return Case(f"sqlite:///{tmp_path}/one.db", *outside)
    postgres: Postgres = request.getfixturevalue("postgres")
    return Case(postgres.database(), *outside)


def approve_in_processes(case: Case, session: str, approval: str) -> list[dict[str, Any]]:
    """Approves a request many times at once in each of several processes."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(PROCESS_COUNT)]
        asked = {"session": session, "approval": approval, "count": APPROVALS_EACH}
        pids = [one.begin("approve_often", **case.job, **asked) for one in workers]
        for one in workers:
            one.wait_for("ready")
        for pid in pids:
            kill(pid, worker.GO)
        answers = [one.wait_for("answers") for one in workers]
        assert [one.exit_code() for one in workers] == [0] * PROCESS_COUNT
    return answers


def test_a_hundred_approvals_at_once_from_four_processes_run_the_tool_once(case: Case) -> None:
    approval = asyncio.run(case.ask("one"))
    answers = approve_in_processes(case, "one", approval)
    counts = sum((Counter(each["counts"]) for each in answers), Counter[str]())
    assert counts == {"granted": 1, "approval_used": PROCESS_COUNT * APPROVALS_EACH - 1}
    assert {each["status"] for each in answers} == {"finished"}
    case.check(finished=1)


def test_a_fork_has_a_request_of_its_own_that_a_hundred_approvals_grant_once(case: Case) -> None:
    approval = asyncio.run(case.ask("one"))

    async def fork() -> str:
        async with Engine(case.store) as engine:
            run = await engine.fork("one", case.agent, new_session="two")
            (waiting,) = await run.pending()
            assert waiting.approval is not None
            assert waiting.approval != approval
            answers = [approve_once(engine, "two", approval) for _ in range(APPROVALS_EACH)]
            assert set(await asyncio.gather(*answers)) == {"approval_used"}
        return waiting.approval

    answers = approve_in_processes(case, "two", asyncio.run(fork()))
    counts = sum((Counter(each["counts"]) for each in answers), Counter[str]())
    assert counts["granted"] == 1
    case.check(finished=1)
    # The parent's own is still open, and is granted once as well.
    answers = approve_in_processes(case, "one", approval)
    counts = sum((Counter(each["counts"]) for each in answers), Counter[str]())
    assert counts["granted"] == 1
    case.check(finished=2)


def copied(case: Case) -> str:
    """A copy of a store's file, with all that belongs to it; its address."""
    path = Path(case.store.removeprefix("sqlite:///"))
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, file.with_name(file.name.replace("one.db", "copy.db")))
    return f"sqlite:///{path.parent}/copy.db"


async def go_on(case: Case, store: str) -> tuple[str, list[str | None]]:
    """Resumes the session in a store; gives its status, and the requests that are open."""
    async with Engine(store) as engine:
        run = await engine.resume("one", case.agent)
        async for event in run.events():
            if event.kind == "approval_requested":
                break
        open_requests = [each.approval for each in await run.pending()]
        if open_requests:
            return "waiting", open_requests
        return (await run.report()).status, []


@in_loop
async def test_an_approval_of_the_original_is_none_of_a_copy(
    outside: tuple[ScriptedModel, EffectServer], tmp_path: Path
) -> None:
    case = Case(f"sqlite:///{tmp_path}/one.db", *outside)
    approval = await case.ask("one")
    copy = copied(case)
    granted = []
    for store in (copy, case.store, copy, case.store):
        async with Engine(store, agents=[case.agent]) as engine:
            answers = [approve_once(engine, "one", approval) for _ in range(APPROVALS_EACH)]
            granted.append(Counter(await asyncio.gather(*answers))["granted"])
            if granted[-1]:
                assert (await engine.report("one")).status == "finished"
    assert granted == [0, 1, 0, 0]
    # Nobody has looked at the copy's own request yet.
    async with Engine(copy) as engine:
        (waiting,) = await engine.pending("one")
    assert waiting.approval not in (None, approval)
    case.check(finished=1)


@pytest.mark.parametrize("dies", [False, True], ids=["before-it-began", "before-its-effect"])
@pytest.mark.parametrize("copy_first", [False, True], ids=["original-first", "copy-first"])
def test_a_grant_whose_process_died_is_used_once_in_original_and_copy(
    outside: tuple[ScriptedModel, EffectServer], tmp_path: Path, *, dies: bool, copy_first: bool
) -> None:
    case = Case(f"sqlite:///{tmp_path}/one.db", *outside)
    approval = asyncio.run(case.ask("one"))
    with Worker() as other:
        other.begin("approve_and_die", **case.job, session="one", approval=approval, dies=dies)
        assert other.exit_code() == -signal.SIGKILL, other.lines
    copy = copied(case)
    stores = [copy, case.store] if copy_first else [case.store, copy]
    ended = {store: asyncio.run(go_on(case, store)) for store in stores}
    assert case.effects.count == 1
    assert ended[case.store] == ("finished", [])
    if dies:
        # It had begun, so it is asked what became of it: whoever asks second hears that it is done.
        assert ended[copy] == ("finished", [])
        return
    status, requests = ended[copy]
    assert status == "waiting"
    assert approval not in requests
    with Logs(case.store) as logs:
        assert logs.divergence("one") is None


@in_loop
async def test_a_denied_request_is_granted_by_nobody(case: Case) -> None:
    approval = await case.ask("one")
    async with Engine(case.store, agents=[case.agent]) as engine:
        await engine.deny("one", 0, "no", approval=approval)
        assert await approve_once(engine, "one", approval) == "approval_used"
        with pytest.raises(MainspringError) as caught:
            await engine.deny("one", 0, "no", approval=approval)
        assert caught.value.code == "approval_used"
        assert (await engine.report("one")).status == "finished"
    assert case.effects.count == 0
