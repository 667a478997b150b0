"""Mainspring under measurement, through its public API alone.

Owns nothing but the calls. Invariant: one agent and one engine for all sessions of a work, as an
application has them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _child import Setup, Texts, main

from mainspring import Agent, Engine, Model, tool

INSTRUCTIONS = "You answer."


class MainspringClient:
    """An engine with one agent per server address."""

    def __init__(self, engine: Engine, setup: Setup) -> None:
        texts = Texts(setup.work.result_chars)

        @tool(effect="read")
        async def echo(text: str) -> str:
            """Return the text."""
            return text

        @tool(effect="read")
        async def page(text: str) -> str:
            """Return the text."""
            return texts.next()

        self._engine = engine
        self._agents = {
            url: Agent(
                "bench",
                instructions=INSTRUCTIONS,
                model=Model("bench", base_url=url, api_key="none", stream=setup.work.stream),
                tools=[page if setup.work.result_chars else echo],
            )
            for url in {setup.url, setup.warm_url}
        }

    async def session(self, url: str) -> str:
        """Runs one session to its final answer."""
        run = await self._engine.start(self._agents[url], "go")
        answer: str = await run.result()
        return answer


@asynccontextmanager
async def open_client(setup: Setup) -> AsyncIterator[MainspringClient]:
    """An engine on the journal that the work names."""
    async with Engine(setup.journal) as engine:
        yield MainspringClient(engine, setup)


if __name__ == "__main__":
    main(__file__, open_client)
