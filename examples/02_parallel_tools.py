"""Five tools of one step run at the same time; two of them raise, and the run goes on.

Every tool waits until all five have started, which only works because they run in parallel. The
two errors become results that the model reads, and the three good results are kept.
"""

import asyncio

from mainspring import Agent, Engine, tool
from mainspring.events import (
    ModelCallFinished,
    SessionFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallStarted,
)
from mainspring.testing import ScriptedModel, call, calls, say

CITIES = ["Bergen", "Oslo", "Paris", "Rome", "Turin"]
FORECAST = {"Bergen": "rain", "Oslo": "snow", "Rome": "sun"}

all_started = asyncio.Barrier(len(CITIES))


@tool(effect="read", timeout_s=10)
async def forecast(city: str) -> str:
    """Tell tomorrow's weather in a city."""
    await all_started.wait()
    if city not in FORECAST:
        raise LookupError(f"no station in {city}")
    return f"{FORECAST[city]} in {city}"


async def main() -> None:
    script = [
        calls(*(call("forecast", city=city) for city in CITIES)),
        say("Rain in Bergen, snow in Oslo, sun in Rome; Paris and Turin have no station."),
    ]
    with ScriptedModel(script) as model:
        agent = Agent("forecaster", model=model.model(), tools=[forecast])
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "What will the weather be in my five cities?")
            outcomes: dict[int, str] = {}
            async for event in run.events():
                match event:
                    case ModelCallFinished() if event.answer.tool_calls:
                        print(f"the model asks for {len(event.answer.tool_calls)} tools")
                    case ToolCallStarted():
                        print(f"call {event.call}: {event.name} started")
                    case ToolCallFinished():
                        outcomes[event.call] = event.text
                    case ToolCallFailed():
                        outcomes[event.call] = f"failed: {event.error.message}"
                    case SessionFinished():
                        # They end in any order, so they are shown in the order of the calls.
                        for number, outcome in sorted(outcomes.items()):
                            print(f"call {number}: {outcome}")
            print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
