"""A process that spends of a tenant's budget until it is killed, for `test_budget_kill.py`."""

import asyncio
import sys
from dataclasses import replace

from mainspring import Agent, Budget, Engine, MainspringError, Model, Run, usd

BUDGETS = {"acme": usd(100)}


def make_agent(base_url: str) -> Agent[str]:
    """An agent whose model has a price."""
    model = Model("scripted", base_url=base_url, api_key="none", max_tokens=100)
    return Agent("spender", model=replace(model, price=(1.0, 2.0)))


async def _end(run: Run[str]) -> None:
    # A turn that fails is told by its log.
    try:
        await run.result()
    except MainspringError:
        return


async def spend(store: str, base_url: str, count: int) -> None:
    """Goes on with the sessions that are there, and begins those that are not."""
    agent = make_agent(base_url)
    async with Engine(store, agents=[agent], budgets=BUDGETS) as engine:
        runs = list(engine.resumed)
        known = {info.session for info in await engine.sessions(limit=1_000)}
        for number in range(count):
            if f"s{number}" not in known:
                run = await engine.start(
                    agent,
                    f"input {number}",
                    session=f"s{number}",
                    tenant="acme",
                    budget=Budget(calls=50),
                )
                runs.append(run)
        await asyncio.gather(*(_end(run) for run in runs))


if __name__ == "__main__":
    asyncio.run(spend(sys.argv[1], sys.argv[2], int(sys.argv[3])))
