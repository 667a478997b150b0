"""A small model goes first; a larger one takes over when a check fails.

`verify` looks at every answer. It wants the order's number in the final text, which the small
model forgets, so the answer is rejected and the larger model is asked the same. The log says who
answered, and why.
"""

import asyncio

from mainspring import Agent, Answer, Engine, Route, RoutePolicy, tool
from mainspring.events import AnswerRejected, ModelCallFinished, RouteDecided
from mainspring.testing import ScriptedModel, call, calls, say


@tool(effect="read")
def status(order: int) -> str:
    """Look an order up."""
    return f"order {order} was sent on Monday"


def names_the_order(answer: Answer) -> bool | str:
    if answer.tool_calls or "order 7" in answer.text.lower():
        return True
    return "the answer does not say which order it is about"


async def main() -> None:
    look_up = calls(call("status", order=7))
    models = {
        "small": [look_up, say("It was sent on Monday.")],
        "large": [look_up, say("Order 7 was sent on Monday.")],
    }
    with ScriptedModel(models=models) as server:
        route = Route(
            server.model("small"),
            server.model("large"),
            verify=names_the_order,
            policy=RoutePolicy(explore=0),  # nothing is tried at random here
        )
        agent = Agent("clerk", model=route, tools=[status])
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "Where is my order 7?")
            async for event in run.events():
                match event:
                    case RouteDecided():
                        print(f"step {event.step}: {event.model}, because {event.reason}")
                    case ModelCallFinished():
                        answer = event.answer
                        said = answer.text or f"calls {answer.tool_calls[0].name}"
                        print(f"step {event.step}: it says: {said}")
                    case AnswerRejected():
                        print(f"step {event.step}: rejected, {event.action}")
            print(f"answer: {await run.result()}")


if __name__ == "__main__":
    asyncio.run(main())
