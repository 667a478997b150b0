"""Budgets: of sessions and of tenants, in one process and after another one."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Budget,
    BudgetError,
    Engine,
    Limits,
    Model,
    Route,
    Run,
    Spent,
    tool,
    usd,
)
from mainspring.events import BudgetSet, ModelCallFailed, ModelCallStarted, RouteDecided
from mainspring.testing import Request, ScriptedModel, Step, call, calls, fail, say
from tests.api.cli_support import Desk

PRICE = (1.0, 2.0)
"""A dollar for a million tokens read, two for a million written."""


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder}/s.db"


def answer(request: Request) -> Step:
    """An answer that claims ten tokens read and as many written as its model's name says."""
    written = int(request.model.rpartition("-")[2])
    return say("done", usage={"input_tokens": 10, "output_tokens": written})


def scripted(*names: str) -> ScriptedModel:
    return ScriptedModel(models=dict.fromkeys(names, answer))


def priced(server: ScriptedModel, name: str, **fields: Any) -> Model:
    return replace(server.model(name), price=PRICE, **fields)


def test_a_session_spends_within_its_budget_and_no_further(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=priced(server, "m-90", max_tokens=100))
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "hi", budget=Budget(tokens=400))
                await run.result()
                with pytest.raises(BudgetError) as refused:
                    await _turns(engine, agent, run.session)
                asked = len(server.requests)
                assert refused.value.code == "budget_exhausted"
                assert f'session "{run.session}"' in refused.value.message
                assert "of 400 tokens" in refused.value.message
                assert not refused.value.retryable
                state = await engine.state(run.session)
                assert state["spending"]["spent"]["tokens"] == asked * 100 <= 400
                again = await engine.start(agent, "more", session=run.session)
                with pytest.raises(BudgetError):
                    await again.result()
                assert len(server.requests) == asked, "no call after a budget's end"
                raised = await engine.start(
                    agent, "more", session=run.session, budget=Budget(tokens=1_000)
                )
                assert await raised.result() == "done"
                replayed = await engine.replay(run.session)
                assert replayed.divergence is None

    asyncio.run(main())


async def _turns(engine: Engine, agent: Agent[str], session: str) -> None:
    for _ in range(10):
        run = await engine.start(agent, "more", session=session)
        await run.result()


def test_dollars_are_counted_and_the_log_says_who_pays(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=priced(server, "m-90", max_tokens=100))
            budgets = {"acme": usd(1)}
            async with Engine(store_in(tmp_path), budgets=budgets) as engine:
                run = await engine.start(agent, "hi", tenant="acme", budget=usd(0.20))
                await run.result()
                log = await engine.log(run.session)
                paid = next(event for event in log if isinstance(event, BudgetSet))
                assert (paid.tenant, paid.budget) == ("acme", {"usd_nanos": 200_000_000})
                started = next(event for event in log if isinstance(event, ModelCallStarted))
                assert started.reserved is not None
                assert started.reserved["usd_nanos"] > 190_000
                report = await engine.budget("acme")
                assert report is not None
                assert report.limit == usd(1)
                assert report.spent == Spent(usd=0.00019, tokens=100, calls=1)
                assert report.reserved == Spent()
                assert not report.low
                assert await engine.budget("other") is None

    asyncio.run(main())


def test_a_tenants_total_is_there_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=priced(server, "m-90", max_tokens=100))
            budgets = {"acme": Budget(calls=3)}
            for _ in range(3):
                async with Engine(store_in(tmp_path), budgets=budgets) as engine:
                    run = await engine.start(agent, "hi", tenant="acme")
                    await run.result()
            async with Engine(store_in(tmp_path), budgets=budgets) as engine:
                run = await engine.start(agent, "hi", tenant="acme")
                with pytest.raises(BudgetError, match='the budget of tenant "acme" is exhausted'):
                    await run.result()
                free = await engine.start(agent, "hi", tenant="other")
                assert await free.result() == "done"
            assert len(server.requests) == 4

    asyncio.run(main())


def test_sessions_at_once_share_a_budget_and_wait_for_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            # Its answers have no bound, so that one is asked at a time.
            agent = Agent("a", model=priced(server, "m-90"))
            budgets = {"acme": Budget(tokens=5_000)}
            async with Engine("memory:", budgets=budgets) as engine:
                runs = [await engine.start(agent, "hi", tenant="acme") for _ in range(60)]
                ends = await asyncio.gather(*(_end(run) for run in runs))
                report = await engine.budget("acme")
                assert report is not None
                assert ends.count("done") == len(server.requests)
                assert ends.count("done") + ends.count("budget_exhausted") == 60
                assert report.spent.tokens == 100 * len(server.requests)
                # A call of a hundred tokens is expected to use eleven hundred.
                assert 3_900 <= report.spent.tokens <= 5_000
                assert (report.calls_under_way, report.calls_waiting) == (0, 0)

    asyncio.run(main())


async def _end(run: Run[str]) -> str:
    try:
        return await run.result()
    except BudgetError as error:
        return error.code


def test_every_attempt_counts_and_what_the_server_refuses_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        step = fail(429, retry_after_s=0, times=2, then=say("done", usage={"input_tokens": 9}))
        with ScriptedModel([step]) as server:
            agent = Agent("a", model=server.model())
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "hi", budget=Budget(calls=3))
                assert await run.result() == "done"
                spent = (await engine.state(run.session))["spending"]["spent"]
                assert spent == {"tokens": 9, "calls": 3}
                run = await engine.start(agent, "hello", budget=Budget(calls=2))
                with pytest.raises(BudgetError, match="2 calls spent"):
                    await run.result()
                failed = [
                    e for e in await engine.log(run.session) if isinstance(e, ModelCallFailed)
                ]
                assert [event.charged for event in failed] == [{"calls": 1}, {"calls": 1}, {}]

    asyncio.run(main())


def test_a_fork_spends_what_is_left_or_a_budget_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=priced(server, "m-90", max_tokens=100))
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "hi", budget=Budget(calls=1))
                await run.result()
                rest = await engine.fork(run.session, agent, input="more")
                with pytest.raises(BudgetError):
                    await rest.result()
                own = await engine.fork(run.session, agent, input="more", budget=Budget(calls=1))
                assert await own.result() == "done"

    asyncio.run(main())


def test_past_the_soft_limit_the_cheapest_model_is_asked(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("large-90", "small-90") as server:
            cheap = replace(server.model("small-90"), price=(0.1, 0.1), max_tokens=100)
            route = Route(priced(server, "large-90", max_tokens=100), cheap)
            agent = Agent("a", model=route)
            async with Engine(
                store_in(tmp_path), budgets={"acme": Budget(calls=10, soft=0.2)}
            ) as engine:
                models = []
                for _ in range(3):
                    run = await engine.start(agent, "hi", session="s", tenant="acme")
                    await run.result()
                for event in await engine.log(run.session):
                    if isinstance(event, RouteDecided):
                        models.append((event.model, event.reason))
                assert [model for model, _ in models] == ["large-90", "large-90", "small-90"]
                assert "soft limit" in models[2][1]

    asyncio.run(main())


@tool(effect="read")
async def wait_long() -> str:
    """Wait for a long time."""
    await asyncio.Event().wait()
    return "never"


def test_the_time_of_a_budget_ends_a_turn(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel([calls(call("wait_long"))]) as server:
            agent = Agent(
                "a", model=server.model(), tools=[wait_long], limits=Limits(turn_s_max=60)
            )
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "hi", budget=Budget(seconds=0.3))
                with pytest.raises(BudgetError, match=r"took its budget of 0\.3 s"):
                    await run.result()
                again = await engine.start(agent, "hi", session=run.session)
                with pytest.raises(BudgetError):
                    await again.result()
                assert (await engine.replay(run.session)).divergence is None

    asyncio.run(main())


def test_a_model_without_a_price_cannot_be_paid_in_dollars(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=server.model("m-90"))
            async with Engine(store_in(tmp_path), budgets={"acme": usd(1)}) as engine:
                for payer in ({"budget": usd(0.2)}, {"tenant": "acme"}):
                    with pytest.raises(AgentError) as refused:
                        await engine.start(agent, "hi", **payer)  # type: ignore[arg-type]
                    assert refused.value.code == "budget_unpriced"
                    assert 'the price of model "m-90" is not known' in refused.value.message
                free = Agent("a", model=replace(server.model("m-90"), price=(0.0, 0.0)))
                run = await engine.start(free, "hi", budget=usd(0))
                assert await run.result() == "done"
                run = await engine.start(free, "hi", tenant="acme")
                await run.result()
                with pytest.raises(AgentError, match='has tenant "acme", not "other"'):
                    await engine.start(free, "hi", session=run.session, tenant="other")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: usd(-1), AgentError, "Budget.usd is -1, must be 0 or more, at most 1,000,000,000"),
        (lambda: usd(math.nan), AgentError, "Budget.usd is nan"),
        (lambda: usd(math.inf), AgentError, "Budget.usd is inf"),
        (lambda: Budget(usd=True), TypeError, "Budget.usd is a number, not bool"),
        (lambda: Budget(tokens=0), AgentError, "Budget.tokens is 0, must be 1 to"),
        (lambda: Budget(tokens=-5), AgentError, "Budget.tokens is -5"),
        (lambda: Budget(calls=True), TypeError, "Budget.calls is an int, not bool"),
        (lambda: Budget(calls=1.5), TypeError, "Budget.calls is an int, not float"),  # type: ignore[arg-type]
        (lambda: Budget(seconds=0), AgentError, "Budget.seconds is 0, must be above 0"),
        (
            lambda: Budget(usd=1, soft=1.5),
            AgentError,
            "Budget.soft is 1.5, must be above 0, at most 1",
        ),
        (lambda: Budget(usd=1, per="week"), AgentError, 'Budget.per is "week"'),  # type: ignore[arg-type]
        (lambda: Budget(), AgentError, "a Budget bounds nothing"),
        (lambda: Engine(budgets={"a": Budget(seconds=1)}), AgentError, 'tenant "a" has seconds'),
        (lambda: Engine(budgets={"a": 5}), TypeError, "names of tenants to Budgets"),  # type: ignore[dict-item]
    ],
)
def test_a_bad_budget_is_refused_where_it_is_made(
    make: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as refused:
        make()
    assert message in str(refused.value)


def test_a_bad_tenant_or_payment_is_refused_before_a_session_begins(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted("m-90") as server:
            agent = Agent("a", model=server.model("m-90"))
            async with Engine(store_in(tmp_path)) as engine:
                with pytest.raises(AgentError, match="a tenant's name has 200 characters"):
                    await engine.start(agent, "hi", tenant="x" * 200)
                with pytest.raises(AgentError, match="only that of a tenant may"):
                    await engine.start(agent, "hi", budget=Budget(calls=1, per="day"))
                with pytest.raises(TypeError, match="budget is a Budget, not float"):
                    await engine.start(agent, "hi", budget=0.2)  # type: ignore[arg-type]
                assert await engine.sessions() == []
        with pytest.raises(AgentError) as refused:
            async with Engine("memory:", budgets={"x" * 200: usd(1)}):
                pass
        assert refused.value.code == "budget_invalid"

    asyncio.run(main())


AGENT = """
import os
from mainspring import Agent, Model

server = {"base_url": os.environ["SCRIPTED_URL"], "api_key": "none", "max_tokens": 100}
agent = Agent("paid", model=Model("m-90", price=(1.0, 2.0), **server))
unpriced = Agent("unpriced", model=Model("m-90", **server))
"""


def test_the_command_line_takes_a_budget_and_shows_what_is_spent(tmp_path: Path) -> None:
    (tmp_path / "spenders.py").write_text(AGENT, encoding="utf-8")
    with scripted("m-90") as server:
        desk = Desk(tmp_path, server.base_url)
        options = ("--budget-usd", "0.0005", "--session", "s")
        done = desk.run("run", "spenders:agent", "hi", *options)
        assert (done.code, done.out) == (0, "done\n")
        again = desk.run("run", "spenders:agent", "more", "--session", "s")
        assert again.code == 0
        refused = desk.run("run", "spenders:agent", "more", "--session", "s")
        assert refused.code == 1
        assert 'the budget of session "s" is exhausted' in refused.err
        shown = desk.run("show", "s").out
        assert "budget  0.0005 usd" in shown
        assert "budget   0.0004 of 0.0005 usd" in shown
        unpriced = desk.run("run", "spenders:unpriced", "hi", "--budget-usd", "1")
        assert 'the price of model "m-90" is not known' in unpriced.err
        assert len(server.requests) == 2
