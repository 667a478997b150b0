"""What sessions spend that share one budget: 1,000 of them at once, answers of random lengths.

Owns the comparison of three ways to keep a tenant's budget: the engine's, where every answer has a
bound (`max_tokens`); the engine's, where none has; and a check before each call that reserves
nothing, which is what a counter beside the calls amounts to. Invariant: what the model's server
says it has answered is what the engine says was spent, or the run fails.

Prints JSON with units in the names. `excess_max_usd` is the most by which one answer cost more than
was expected of it: what `overshoot_usd` must not exceed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from mainspring import Agent, Budget, BudgetError, Engine, Run
from mainspring.events import ModelCallFinished, ModelCallStarted
from mainspring.testing import Request, ScriptedModel, Step, delay, say

PRICE = (0.25, 2.0)
"""US dollars for a million tokens read and written."""
OUTPUT_TOKENS_MAX = 4_000
DELAY_S = 0.02
WAYS = ("bounded", "unbounded", "checked")


class Server:
    """A model whose answers have random lengths, and which keeps its own bill."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self.requests = 0
        self.billed_nanos = 0

    def step(self, request: Request) -> Step:
        """One answer; the same request gets the same length."""
        body = json.dumps(request.body, sort_keys=True)
        drawn = random.Random(f"{self._seed} {body} {request.attempt}")
        read, written = max(1, len(body) // 4), drawn.randint(1, OUTPUT_TOKENS_MAX)
        with self._lock:
            self.requests += 1
            self.billed_nanos += round((read * PRICE[0] + written * PRICE[1]) * 1000)
        usage = {"input_tokens": read, "output_tokens": written}
        return delay(DELAY_S, then=say("done", usage=usage))  # type: ignore[arg-type]


async def _end(run: Run[str]) -> bool:
    try:
        await run.result()
    except BudgetError:
        return False
    return True


async def _with_budget(
    agent: Agent[str], sessions: int, limit_usd: float
) -> tuple[int, float, float]:
    """Runs all sessions on one tenant's budget: how many were answered, spent, largest excess."""
    budgets = {"acme": Budget(usd=limit_usd)}
    async with Engine("memory:", budgets=budgets) as engine:
        runs = [await engine.start(agent, f"session {n}", tenant="acme") for n in range(sessions)]
        ends = await asyncio.gather(*(_end(run) for run in runs))
        report = await engine.budget("acme")
        assert report is not None, "the tenant has a budget"
        excess = 0.0
        for run in runs:
            expected = 0.0
            for event in await engine.log(run.session):
                if isinstance(event, ModelCallStarted) and event.reserved is not None:
                    expected = event.reserved.get("usd_nanos", 0) / 1e9
                elif isinstance(event, ModelCallFinished):
                    excess = max(excess, (event.cost_usd or 0.0) - expected)
        return sum(ends), report.spent.usd, excess


async def _with_check(
    agent: Agent[str], sessions: int, limit_usd: float
) -> tuple[int, float, float]:
    """The same with a counter that is asked before each call and told after it."""
    spent = 0.0
    async with Engine("memory:") as engine:

        async def one(number: int) -> bool:
            nonlocal spent
            if spent >= limit_usd:
                return False
            run = await engine.start(agent, f"session {number}")
            await run.result()
            cost_usd = (await run.report()).cost_usd
            spent += cost_usd
            return True

        ends = await asyncio.gather(*(one(number) for number in range(sessions)))
        return sum(ends), spent, 0.0


def measure(way: str, *, sessions: int, limit_usd: float, seed: int) -> dict[str, Any]:
    """Runs one way to keep the budget, and gives its numbers."""
    server = Server(seed)
    with ScriptedModel(server.step) as model:
        bound = OUTPUT_TOKENS_MAX if way == "bounded" else None
        agent = Agent("spender", model=replace(model.model(), price=PRICE, max_tokens=bound))
        keep = _with_check if way == "checked" else _with_budget
        began = time.perf_counter()
        answered, spent_usd, excess_usd = asyncio.run(keep(agent, sessions, limit_usd))
        wall_s = time.perf_counter() - began
    billed_usd = server.billed_nanos / 1e9
    if abs(billed_usd - spent_usd) > 1e-6:
        raise SystemExit(f"{way}: the server billed {billed_usd} usd, {spent_usd} were counted")
    overshoot_usd = max(0.0, spent_usd - limit_usd)
    if way != "checked" and overshoot_usd > excess_usd:
        raise SystemExit(f"{way}: {overshoot_usd} usd above, one call's excess is {excess_usd}")
    return {
        "way": way,
        "sessions": sessions,
        "limit_usd": limit_usd,
        "spent_usd": round(spent_usd, 9),
        "billed_by_server_usd": round(billed_usd, 9),
        "overshoot_usd": round(overshoot_usd, 9),
        "overshoot_percent": round(100 * overshoot_usd / limit_usd, 3),
        "excess_max_usd": round(max(0.0, excess_usd), 9),
        "requests": server.requests,
        "answered_sessions": answered,
        "refused_sessions": sessions - answered,
        "wall_s": round(wall_s, 2),
    }


def main() -> None:
    """Measures all ways and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--limit-usd", type=float, default=None, help="default: half of the need")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    need_usd = options.sessions * OUTPUT_TOKENS_MAX / 2 * PRICE[1] / 1e6
    limit_usd = options.limit_usd if options.limit_usd is not None else need_usd / 2
    sessions, seed = options.sessions, options.seed
    rows = [measure(way, sessions=sessions, limit_usd=limit_usd, seed=seed) for way in WAYS]
    json.dump({"budget": rows}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
