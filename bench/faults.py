"""Thousands of tasks through servers of which one request in ten fails on purpose.

Owns the faults' shares and what is counted. Invariant: a task counts as done only with an answer of
the right length; every request that reached a server beyond one for each task is an extra call.
Faults, in equal parts: status 429, 500, 503, no answer at all, half an answer, no JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from _harness import BenchError, load_server, machine, say, server_stats
from _works import Work

from mainspring import (
    Agent,
    Budget,
    BudgetError,
    Endpoint,
    Engine,
    Limits,
    MainspringError,
    Model,
    Route,
)

TASKS = 5_000
CONCURRENCY = 64
FAULT_PER_MILLE = 100
WORK = Work("faults", "faults", "cpu", TASKS, CONCURRENCY, 0, delay_ms=20)


async def run_tasks(
    urls: list[str], *, tasks: int, hedge: bool, calls_max: int | None
) -> dict[str, Any]:
    """Runs the tasks over a route of two models, the first with two endpoints.

    Args:
        urls: The servers: two of the first model, one of the second.
        tasks: How many.
        hedge: Whether late first tokens are hedged.
        calls_max: Model calls that all tasks together may make; None: any number.
    """
    settings: dict[str, Any] = {"connect_s": 2.0, "first_token_s": 2.0, "total_s": 4.0}
    endpoints = [Endpoint(base_url=url, api_key=f"key-{url[-8:]}") for url in urls[:2]]
    small = Model("bench", endpoints=endpoints, hedge=hedge, **settings)
    large = Model("bench", base_url=urls[2], **settings)
    agent = Agent("faults", model=Route(small, large), limits=Limits(turn_s_max=120.0))
    slots = asyncio.Semaphore(CONCURRENCY)
    lost: list[str] = []
    refused = 0
    took_s: list[float] = []
    budgets = None if calls_max is None else {"acme": Budget(calls=calls_max)}
    tenant = None if calls_max is None else "acme"
    async with Engine("memory:", budgets=budgets) as engine:

        async def one() -> None:
            nonlocal refused
            async with slots:
                start = time.monotonic()
                run = await engine.start(agent, "hello", tenant=tenant)
                try:
                    text = await run.result()
                except BudgetError:
                    refused += 1
                    return
                except MainspringError as error:
                    lost.append(f"{error.code}: {error}")
                    return
                if len(text) != WORK.answer_chars:
                    lost.append(f"an answer of {len(text)} characters")
                took_s.append(time.monotonic() - start)

        start = time.monotonic()
        await asyncio.gather(*(one() for _ in range(tasks)))
        wall_s = time.monotonic() - start
        hedged = sum(report.hedged for report in engine.models())
    for message in lost[:5]:
        say(f"lost: {message}")
    took_s.sort()
    paid = tasks - refused
    return {
        "tasks_count": tasks,
        "calls_max": calls_max,
        "refused_by_budget_count": refused,
        "done_count": paid - len(lost),
        "done_percent": round(100 * (paid - len(lost)) / paid, 3),
        "hedged_count": hedged,
        "wall_s": round(wall_s, 2),
        "task_p50_ms": round(took_s[len(took_s) // 2] * 1000, 1),
        "task_p99_ms": round(took_s[len(took_s) * 99 // 100] * 1000, 1),
    }


def measure(*, tasks: int, hedge: bool, calls_max: int | None) -> dict[str, Any]:
    """One run against three fresh servers."""
    options = [{"--fault-per-mille": FAULT_PER_MILLE, "--seed": seed} for seed in (1, 2, 3)]
    with (
        load_server(WORK, options[0]) as first,
        load_server(WORK, options[1]) as second,
        load_server(WORK, options[2]) as third,
    ):
        servers = [first, second, third]
        urls = [server.url for server in servers]
        numbers = asyncio.run(run_tasks(urls, tasks=tasks, hedge=hedge, calls_max=calls_max))
        stats = [server_stats(server) for server in servers]
    requests = sum(each["request_count"] for each in stats)
    paid = tasks - numbers["refused_by_budget_count"]
    faults = sum(each["fault_count"] for each in stats)
    return {
        "hedge": hedge,
        **numbers,
        "requests_count": requests,
        "faults_count": faults,
        "fault_percent": round(100 * faults / requests, 2),
        "extra_calls_percent": round(100 * (requests - paid) / paid, 2),
        "after_budget_count": 0 if calls_max is None else max(0, requests - calls_max),
        "requests_by_server": [each["request_count"] for each in stats],
    }


def main() -> int:
    """Measures, and prints JSON.

    Returns:
        The process's exit status: 0 when enough tasks were done with few extra calls.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    options = parser.parse_args()
    tasks = 200 if options.quick else options.tasks
    results = []
    try:
        runs = [(False, None), (True, None), (True, tasks // 2)]
        for hedge, calls_max in runs[1:] if options.quick else runs:
            say(f"faults: {tasks} tasks, hedge {hedge}, calls at most {calls_max or 'any number'}")
            results.append(measure(tasks=tasks, hedge=hedge, calls_max=calls_max))
    except BenchError as error:
        say(str(error))
        return 1
    print(json.dumps({"machine": machine(), "results": results}, indent=1))
    if options.quick:
        return 0
    bad = [
        each
        for each in results
        if each["done_percent"] < 99.9
        or each["extra_calls_percent"] > 15
        or each["after_budget_count"]
    ]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
