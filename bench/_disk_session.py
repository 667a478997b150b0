"""One long session, and how large its journal gets while it runs.

Owns the process that `disk.py` starts. Invariant: the folder is looked at, never the database in
it, so that looking changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from _child import Texts
from _harness import BenchError, Numbers, folder_bytes
from _works import Work

from mainspring import Agent, Engine, Limits, Model, tool

# Each turn sends the whole history again, which adds up to more than an agent is usually allowed.
TOKENS_MAX = 1_000_000_000


async def run_session(work: Work, *, url: str, folder: str) -> Numbers:
    """Runs the session and looks at the folder at each tool call and before the engine closes.

    Raises:
        BenchError: the session did not make all its rounds.
    """
    texts = Texts(work.result_chars, count=work.tool_turns)
    sizes: list[int] = []

    @tool(effect="read")
    async def page(text: str) -> str:
        """Return the text."""
        sizes.append(folder_bytes(folder))
        return texts.next()

    agent = Agent(
        "bench",
        instructions="You answer.",
        model=Model("bench", base_url=url, api_key="none"),
        tools=[page],
        limits=Limits(steps_max=work.turns, tokens_max=TOKENS_MAX),
    )
    async with Engine(f"sqlite:///{folder}/bench.db") as engine:
        run = await engine.start(agent, "go")
        answer: str = await run.result()
        sizes.append(folder_bytes(folder))
    if len(sizes) != work.tool_turns + 1 or len(answer) != work.answer_chars:
        raise BenchError(f"session made {len(sizes) - 1} rounds, expected {work.tool_turns}")
    return {"peak_bytes": max(sizes)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is started by disk.py.")
    parser.add_argument("--child", required=True)
    setup = json.loads(parser.parse_args().child)
    session = run_session(Work(**setup["work"]), url=setup["url"], folder=setup["folder"])
    print(json.dumps(asyncio.run(session)))
