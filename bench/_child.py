"""The measured side: runs one work in this process and prints one JSON line.

Owns the measuring: CPU time (user and system, all threads), proportional set size, latency.
Invariant: what lies between two readings is the client's work and a few microseconds of ours, the
same for every client; a wrong or missing answer is an error, never a faster run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from _harness import BenchError, client_main
from _works import LETTERS, Work

PARKED_WAIT_S_MAX = 120.0
TEXT_COUNT = 256


@dataclass(frozen=True, slots=True)
class Setup:
    """What one child measures.

    `url` serves the measured sessions, `warm_url` those before them; both end in `/v1`.
    `journal` is an engine's store, or empty for a client that has none.
    """

    work: Work
    url: str
    warm_url: str
    journal: str


class Client(Protocol):
    """A client under measurement."""

    async def session(self, url: str) -> str:
        """Runs one whole session against the server at `url` and returns its final answer."""


OpenClient = Callable[[Setup], AbstractAsyncContextManager[Client]]


class Texts:
    """Tool results: different, without patterns, made before anything is measured."""

    def __init__(self, chars: int, *, count: int = TEXT_COUNT) -> None:
        source = random.Random(7)
        self._texts = ["".join(source.choices(LETTERS, k=chars)) for _ in range(count)]
        self._idx = 0

    def next(self) -> str:
        """The next text."""
        self._idx += 1
        return self._texts[self._idx % len(self._texts)]


class Stats:
    """The load server's counts, over a connection of their own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def request_count(self) -> int:
        """Chat requests that have arrived at the server."""
        self._http.request("GET", "/stats")
        return int(json.loads(self._http.getresponse().read())["request_count"])


def main(script: str, open_client: OpenClient) -> None:
    """Runs a client's script: the whole benchmark, or one child of it.

    Args:
        script: the client's file.
        open_client: makes the client for one measurement.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--child")
    known, rest = parser.parse_known_args()
    if known.child is None:
        sys.exit(client_main(script, rest))
    fields = json.loads(known.child)
    setup = Setup(**{**fields, "work": Work(**fields["work"])})
    need_files(setup.work.concurrency or setup.work.sessions)
    asyncio.run(measure(setup, open_client))


def need_files(sessions: int) -> None:
    """Raises the limit of open files to what the system allows, and checks it.

    Raises:
        BenchError: the hard limit is too low for one connection per session.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    need = sessions + 200
    if hard != resource.RLIM_INFINITY and hard < need:
        raise BenchError(
            f"open files limit is {hard}, the work needs {need}\n"
            f"hint: raise it, for instance with `ulimit -Hn {need}` as root"
        )


async def measure(setup: Setup, open_client: OpenClient) -> None:
    """Measures one work and prints its numbers as one JSON line."""
    async with open_client(setup) as client:
        stats = Stats(setup.url)
        stats.request_count()
        await run_sessions(client, setup.work, url=setup.warm_url, count=setup.work.warm_sessions)
        gc.collect()
        if setup.work.kind == "parked":
            numbers = await measure_parked(client, setup, stats)
            report(numbers)
            # The sessions wait for minutes yet; leaving them to the end of the process is part
            # of this work's method.
            os._exit(0)
        before = stats.request_count()
        numbers = await MEASURES[setup.work.kind](client, setup)
        arrived = stats.request_count() - before
        if arrived != setup.work.sessions * setup.work.turns:
            raise BenchError(
                f'work "{setup.work.name}" made {arrived} requests, '
                f"expected {setup.work.sessions * setup.work.turns}"
            )
    report(numbers)


def report(numbers: dict[str, float]) -> None:
    """Prints the child's one line."""
    numbers["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(numbers), flush=True)


async def run_sessions(client: Client, work: Work, *, url: str, count: int) -> list[float]:
    """Runs sessions, at most `work.concurrency` at a time.

    Returns:
        The instant at which each ended, on the clock of `time.perf_counter`.
    """
    gate = asyncio.Semaphore(work.concurrency or max(count, 1))

    async def one() -> float:
        async with gate:
            answer = await client.session(url)
        ended = time.perf_counter()
        if len(answer) != work.answer_chars:
            raise BenchError(
                f"answer has {len(answer)} characters, expected {work.answer_chars}: {answer!r:.80}"
            )
        return ended

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def measure_cpu(client: Client, setup: Setup) -> dict[str, float]:
    """CPU time and wall time of all sessions."""
    work = setup.work
    start_s, start_cpu_s = time.perf_counter(), cpu_s()
    await run_sessions(client, work, url=setup.url, count=work.sessions)
    spent_cpu_s, wall_s = cpu_s() - start_cpu_s, time.perf_counter() - start_s
    turns = work.sessions * work.turns
    return {
        "turn_cpu_us": spent_cpu_s * 1e6 / turns,
        "wall_s": wall_s,
        "turns_per_s": turns / wall_s,
    }


async def measure_latency(client: Client, setup: Setup) -> dict[str, float]:
    """What is added to the model's own time, from one instant at which all sessions are asked for.

    A session's added time is its end less that instant, less its turns times the server's delay.
    """
    work = setup.work
    start_s, start_cpu_s = time.perf_counter(), cpu_s()
    ends = await run_sessions(client, work, url=setup.url, count=work.sessions)
    spent_cpu_s = cpu_s() - start_cpu_s
    model_s = work.turns * work.delay_ms / 1e3
    added = sorted((end - start_s - model_s) * 1e3 for end in ends)
    numbers = {"turn_cpu_us": spent_cpu_s * 1e6 / (work.sessions * work.turns)}
    for name, value in (
        ("p50", quantile(added, 0.5)),
        ("p99", quantile(added, 0.99)),
        ("max", added[-1]),
    ):
        numbers[f"turn_added_{name}_ms"] = value / work.turns
        numbers[f"session_added_{name}_ms"] = value
    return numbers


async def measure_parked(client: Client, setup: Setup, stats: Stats) -> dict[str, float]:
    """Growth of memory once every session's request has arrived at the slow server."""
    work = setup.work
    before, start_cpu_s = memory_bytes(), cpu_s()
    sessions = [asyncio.create_task(client.session(setup.url)) for _ in range(work.sessions)]
    give_up_s = time.perf_counter() + PARKED_WAIT_S_MAX
    while (arrived := stats.request_count()) < work.sessions:
        ended = next((task for task in sessions if task.done()), None)
        if ended is not None or time.perf_counter() > give_up_s:
            cause = ended.exception() if ended is not None else None
            raise BenchError(f"only {arrived} of {work.sessions} requests arrived") from cause
        await asyncio.sleep(0.02)
    gc.collect()
    after = memory_bytes()
    return {
        "session_pss_bytes": (after["Pss"] - before["Pss"]) / work.sessions,
        "session_rss_bytes": (after["Rss"] - before["Rss"]) / work.sessions,
        "session_cpu_us": (cpu_s() - start_cpu_s) * 1e6 / work.sessions,
    }


MEASURES = {"cpu": measure_cpu, "latency": measure_latency}


def cpu_s() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_bytes() -> dict[str, int]:
    """`Rss` and `Pss` of this process.

    Source:
        Linux, Documentation/filesystems/proc.rst, `smaps_rollup`.
    """
    values: dict[str, int] = {}
    with Path("/proc/self/smaps_rollup").open(encoding="ascii") as lines:
        for line in lines:
            words: list[str] = line.split()
            if words[0] in ("Rss:", "Pss:"):
                values[words[0].rstrip(":")] = int(words[1]) * 1024
    return values


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of the values do not exceed."""
    rank = -(-len(ordered) * part // 1)
    return ordered[max(int(rank) - 1, 0)]
