"""A thousand sessions against a server that allows each key so many requests in a minute.

Owns the sizes and what is counted. Invariant: the server counts and refuses by itself, in a sliding
minute, and every session's turn must end with its answer. The minute is a real one: with 6,000
requests a minute the thousand take seconds, with 60 they take a quarter of an hour (`--full`).
The same with 60 under virtual time is a test of the crate `mainspring-models`.
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

from mainspring import Agent, Engine, Limits, Model

SESSIONS = 1_000
WORK = Work("limits", "limits", "cpu", SESSIONS, 0, 0)


async def run_sessions(
    url: str, *, requests_per_minute: int, sessions: int, is_told: bool
) -> dict[str, float]:
    """Runs the sessions at once; `is_told`: whether the engine is told the limit beforehand."""
    model = Model(
        "bench",
        base_url=url,
        api_key="bench-key",
        requests_per_minute=requests_per_minute if is_told else None,
    )
    limits = Limits(turn_s_max=3_600.0)
    agent = Agent("bench", model=model, limits=limits)
    start = time.monotonic()
    async with Engine("memory:") as engine:

        async def one() -> float:
            run = await engine.start(agent, "hello")
            await run.result()
            return time.monotonic() - start

        ended = await asyncio.gather(*(one() for _ in range(sessions)), return_exceptions=True)
        report = engine.models()[0]
    lost = [each for each in ended if isinstance(each, BaseException)]
    if lost:
        say(f"first lost turn: {lost[0]}")
    return {
        "sessions_count": sessions,
        "lost_turns_count": len(lost),
        "calls_count": report.calls,
        "refused_by_report_count": report.refused,
        "wall_s": round(time.monotonic() - start, 2),
    }


async def run_tenants(url: str, *, requests_per_minute: int, busy: int) -> dict[str, float]:
    """A tenant with many calls in the queue, and another with a single one.

    The single call's place is told by how many of the busy tenant's were answered while it waited.
    """
    model = Model(
        "bench", base_url=url, api_key="bench-key", requests_per_minute=requests_per_minute
    )
    agent = Agent("bench", model=model, limits=Limits(turn_s_max=3_600.0))
    async with Engine("memory:") as engine:
        for _ in range(busy):
            await engine.start(agent, "hello", tenant="busy")
        report, start = engine.models()[0], time.monotonic()
        run = await engine.start(agent, "hello", tenant="single")
        await run.result()
        waited_s = time.monotonic() - start
        # The calls made since, without the single one.
        during, queued = engine.models()[0].calls - report.calls - 1, report.queued
    return {
        "queued_before_count": queued,
        "answered_meanwhile_count": during,
        "single_waited_s": round(waited_s, 3),
        "turn_s": round(60 / requests_per_minute, 3),
    }


def measure_tenants(*, requests_per_minute: int, busy: int) -> dict[str, Any]:
    """One run against a fresh server."""
    with load_server(WORK, {"--requests-per-minute": requests_per_minute}) as server:
        numbers = asyncio.run(
            run_tenants(server.url, requests_per_minute=requests_per_minute, busy=busy)
        )
    return {"requests_per_minute": requests_per_minute, **numbers}


def measure(*, requests_per_minute: int, sessions: int, is_told: bool) -> dict[str, Any]:
    """One run against a fresh server."""
    options = {"--requests-per-minute": requests_per_minute}
    with load_server(WORK, options) as server:
        numbers = asyncio.run(
            run_sessions(
                server.url,
                requests_per_minute=requests_per_minute,
                sessions=sessions,
                is_told=is_told,
            )
        )
        stats = server_stats(server)
    refused = stats["refused_count"]
    return {
        "requests_per_minute": requests_per_minute,
        "limit": "configured" if is_told else "learnt from headers",
        **numbers,
        "server_requests_count": stats["request_count"],
        "server_refused_count": refused,
        "refused_percent": round(100 * refused / max(1, stats["request_count"]), 3),
        "least_wall_s": round((sessions / requests_per_minute - 1) * 60, 2),
    }


def main() -> int:
    """Measures, and prints JSON.

    Returns:
        The process's exit status: 0 when no turn was lost and few requests were refused.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also 60 requests a minute: 16 minutes")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    options = parser.parse_args()
    runs = [(60_000, 100, True)] if options.quick else [(6_000, SESSIONS, True)]
    if not options.quick:
        runs.append((6_000, SESSIONS, False))
    if options.full:
        runs.append((60, SESSIONS, True))
    results = []
    try:
        for requests_per_minute, sessions, is_told in runs:
            say(f"limits: {sessions} sessions, {requests_per_minute} requests a minute")
            results.append(
                measure(requests_per_minute=requests_per_minute, sessions=sessions, is_told=is_told)
            )
        busy = 50 if options.quick else SESSIONS
        say(f"limits: a tenant with {busy} calls and one with a single call")
        tenants = measure_tenants(requests_per_minute=240, busy=busy)
    except BenchError as error:
        say(str(error))
        return 1
    print(json.dumps({"machine": machine(), "results": results, "tenants": tenants}, indent=1))
    bad = [each for each in results if each["lost_turns_count"] or each["refused_percent"] > 2]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
