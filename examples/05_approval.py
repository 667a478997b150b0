"""A tool call waits for a person, its process ends, and another one approves it.

The model asks for a refund, whose tool asks for approval: the session waits, and the first engine
closes. A second one lists what waits, approves it with another amount, and the session goes on.
"""

import asyncio

from mainspring import Agent, Engine, Model, tool
from mainspring.testing import ScriptedModel, call, calls, say

STORE = "sqlite:///approval.db"


@tool(effect="keyed", approve=lambda arguments: arguments["amount"] > 10)
def refund(order: int, amount: int) -> str:
    """Pay back an order."""
    return f"{amount} paid back for order {order}"


async def main(model: Model) -> None:
    agent = Agent("shop", model=model, tools=[refund])
    async with Engine(STORE) as engine:
        run = await engine.start(agent, "Order 7 came broken.", session="order-7")
        async for event in run.events():
            if event.kind == "approval_requested":
                break
    async with Engine(STORE) as engine:
        run = await engine.resume("order-7", agent)
        for waiting in await run.pending():
            print("waits:", waiting.tool, waiting.arguments)
            await run.approve(waiting, edit={"amount": 40}, by="ann")
        print("answer:", await run.result())


if __name__ == "__main__":
    script = [calls(call("refund", order=7, amount=50)), say("You get 40 back.")]
    with ScriptedModel(script) as server:
        asyncio.run(main(server.model()))
