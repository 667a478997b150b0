"""Forks a session where a tool answered, says something else there, and replays both.

The fork shares the first events, so nothing of them is asked for again. A replay makes all
decisions anew from the recorded results, and must come to the same events.
"""

import asyncio

from mainspring import Agent, Engine, Model, tool
from mainspring.testing import Request, ScriptedModel, Step, call, calls, say


@tool(effect="read")
def stock(item: str) -> int:
    """Count what is left of an item."""
    return {"lamp": 3}.get(item, 0)


def answers(request: Request) -> Step:
    last = request.messages[-1]
    if last["role"] == "user":
        return calls(call("stock", item="lamp"))
    return say(f"{last['content']} lamps are left.")


async def main(model: Model) -> None:
    agent = Agent("shop", model=model, tools=[stock])
    async with Engine("sqlite:///forks.db") as engine:
        run = await engine.start(agent, "How many lamps?")
        print("first:", await run.result())
        (at,) = [each.seq async for each in run.events() if each.kind == "tool_call_finished"]
        fork = await run.fork(at=at, edit="0")
        print("fork: ", await fork.result())
        for session in (run.session, fork.session):
            print((await engine.replay(session)).event_count, "events came out the same")


if __name__ == "__main__":
    with ScriptedModel(answers) as server:
        asyncio.run(main(server.model()))
