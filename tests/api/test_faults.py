"""Tasks through servers that spoil one request in ten: all are done, with few calls more.

The large run of the same is `bench/faults.py`.
"""

import asyncio
from dataclasses import replace
from itertools import count

from mainspring import Agent, Endpoint, Engine, Limits, Model, Route
from mainspring.testing import Request, ScriptedModel, Step, drop, fail, garbage, hang, say
from tests.e2e._support import in_loop

TASKS = 240
# A request that hangs is meant to run into this.
SHORT_S = 0.5
FAULTS = [fail(429, retry_after_s=0.05), fail(500), fail(503), hang(), drop(), garbage()]


class Faulty:
    """A script that answers, and spoils every tenth request in another way."""

    def __init__(self) -> None:
        """Begins with the first request."""
        self._requests = count(1)

    def __call__(self, request: Request) -> Step:
        """The next step."""
        number = next(self._requests)
        return say("done") if number % 10 else FAULTS[number // 10 % len(FAULTS)]


@in_loop
async def test_nine_good_requests_of_ten_are_enough_for_every_task() -> None:
    with (
        ScriptedModel(Faulty()) as one,
        ScriptedModel(Faulty()) as two,
        ScriptedModel(Faulty()) as third,
    ):
        endpoints = [Endpoint(base_url=one.base_url), Endpoint(base_url=two.base_url)]
        small = Model("scripted", endpoints=endpoints, first_token_s=SHORT_S, total_s=SHORT_S)
        large = replace(third.model(), first_token_s=SHORT_S, total_s=SHORT_S)
        agent = Agent("t", model=Route(small, large), limits=Limits(turn_s_max=600.0))
        slots = asyncio.Semaphore(16)
        async with Engine("memory:") as engine:

            async def task() -> str:
                async with slots:
                    return await (await engine.start(agent, "go")).result()

            answers = await asyncio.gather(*(task() for _ in range(TASKS)))
            reports = engine.models()
        assert answers == ["done"] * TASKS
        requests = one.request_count + two.request_count + third.request_count
        assert TASKS * 1.05 < requests <= TASKS * 1.15, f"{requests} requests"
        assert sum(report.calls for report in reports) == requests
        assert all(report.in_flight == 0 and report.queued == 0 for report in reports)
