"""Model calls without a session, and the gateway: what they cost, beside what does the same.

Rows: `model_call`, the CPU of a call from Python with 32 under way, by `ModelClient`, by aiohttp
and by the official SDK; `gateway`, the CPU of the gateway's process for a call and what it adds to
the time of one at 2,000 a second; `gateway_stream`, its CPU for an answer of 200 tokens. Each run
measures all of them, one after the other, so that a slow minute meets all. The clients' own load
comes from `crates/mainspring-server/examples/load.rs`.

Invariant: every call is answered with status 200 and a text of the right length, or the measurement
fails. `--quick` measures less of everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
from _harness import BENCH, BenchError, LoadServer, load_server, machine, on_core
from _works import Work

from mainspring import Model, ModelClient

LOAD = BENCH.parent / "target" / "release" / "examples" / "load"
CONCURRENCY = 32
RATE = 2000
ANSWER_CHARS = 100
TOKENS = 200
QUESTION = "What is the capital of France, and how many people live there? " * 8

CALLS = {"mainspring": 20_000, "aiohttp": 20_000, "openai": 2_000}

Ask = Callable[[], Awaitable[str]]


def main() -> int:
    """Measures and prints JSON.

    Returns:
        The process's exit status.
    """
    parser = argparse.ArgumentParser(description="Measures model calls and the gateway.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, one run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(asyncio.run(child(json.loads(options.child)))))
        return 0
    runs = 1 if options.quick else options.runs
    results: dict[str, dict[str, list[float]]] = {}
    for run_idx in range(runs):
        print(f"run {run_idx + 1} of {runs}", file=sys.stderr)
        for row, numbers in measure(share=0.1 if options.quick else 1.0):
            kept = results.setdefault(row, {})
            for name, value in numbers.items():
                kept.setdefault(name, []).append(value)
    rows = [{"row": row, "numbers": summary(numbers)} for row, numbers in results.items()]
    document = {"machine": machine(), "load_average": os.getloadavg(), "runs": runs, "rows": rows}
    print(json.dumps(document, indent=2))
    return 0


def summary(numbers: dict[str, list[float]]) -> dict[str, Any]:
    """Median, least and greatest of each number, and every run's."""
    return {
        name: {
            "median": round(statistics.median(values), 3),
            "least": round(min(values), 3),
            "greatest": round(max(values), 3),
            "runs": [round(value, 3) for value in values],
        }
        for name, values in numbers.items()
    }


def measure(*, share: float) -> Iterator[tuple[str, dict[str, float]]]:
    """One run of everything: the rows with their numbers."""
    whole = Work("call", "", "cpu", 0, 0, 0, answer_chars=ANSWER_CHARS)
    streamed = Work("s", "", "cpu", 0, 0, 0, answer_chars=4 * TOKENS, answer_tokens=TOKENS)
    with load_server(whole) as server:
        for client, calls in CALLS.items():
            setup = {"client": client, "url": server.url, "calls": max(200, int(calls * share))}
            yield f"model_call {client}", run_child(setup)
        yield "gateway", gateway_row(server, seconds=max(0.5, 5 * share))
    with load_server(streamed) as server:
        yield "gateway_stream", stream_row(server, seconds=max(0.5, 5 * share))


def run_child(setup: dict[str, Any]) -> dict[str, float]:
    """One client's measurement, in a process of its own."""
    command = [sys.executable, str(BENCH / "gateway.py"), "--child", json.dumps(setup)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=on_core(-1))
    if done.returncode != 0:
        raise BenchError(f"client {setup['client']} failed:\n{done.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


async def child(setup: dict[str, Any]) -> dict[str, float]:
    """Makes the calls, 32 at a time; what each cost."""
    opened = {"mainspring": ask_mainspring, "aiohttp": ask_aiohttp, "openai": ask_openai}
    calls: int = setup["calls"]

    async def work(ask: Ask, count: int) -> None:
        for _ in range(count):
            text = await ask()
            assert len(text) == ANSWER_CHARS, text

    async def everything(ask: Ask) -> dict[str, float]:
        await asyncio.gather(*(work(ask, 10) for _ in range(CONCURRENCY)))
        cpu, wall = cpu_us(), time.perf_counter()
        each = calls // CONCURRENCY
        await asyncio.gather(*(work(ask, each) for _ in range(CONCURRENCY)))
        made = each * CONCURRENCY
        wall_us = (time.perf_counter() - wall) * 1e6
        return {"call_cpu_us": (cpu_us() - cpu) / made, "call_wall_us": wall_us / made}

    return await opened[setup["client"]](setup["url"], everything)


def cpu_us() -> float:
    """CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1e6


Everything = Callable[[Ask], Awaitable[dict[str, float]]]


async def ask_mainspring(url: str, everything: Everything) -> dict[str, float]:
    """With `ModelClient`."""
    model = Model("bench", base_url=url)
    async with ModelClient() as client:

        async def ask() -> str:
            return (await client.complete(model, QUESTION)).text

        return await everything(ask)


async def ask_aiohttp(url: str, everything: Everything) -> dict[str, float]:
    """With aiohttp and `json`, as one writes it by hand."""
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as http:

        async def ask() -> str:
            body = {"model": "bench", "messages": [{"role": "user", "content": QUESTION}]}
            data = json.dumps(body).encode()
            async with http.post(f"{url}/chat/completions", data=data) as response:
                response.raise_for_status()
                text: str = json.loads(await response.read())["choices"][0]["message"]["content"]
                return text

        return await everything(ask)


async def ask_openai(url: str, everything: Everything) -> dict[str, float]:
    """With the official SDK."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

        async def ask() -> str:
            done = await client.chat.completions.create(
                model="bench", messages=[{"role": "user", "content": QUESTION}]
            )
            return done.choices[0].message.content or ""

        return await everything(ask)


@contextmanager
def gateway(server: LoadServer) -> Iterator[tuple[int, str]]:
    """A gateway over the server, on the last core: its process and its address."""
    command = [
        *(sys.executable, "-m", "mainspring.cli", "gateway", "--model", "bench=bench"),
        *("--base-url", server.url, "--listen", "127.0.0.1:0"),
    ]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=on_core(-1))
    try:
        assert started.stderr is not None
        line = started.stderr.readline()
        if not line.startswith("gateway ready: http://"):
            raise BenchError(f"the gateway did not start, it said {line!r}")
        yield started.pid, line.split()[2].removeprefix("http://").removesuffix("/v1")
    finally:
        started.terminate()
        started.communicate()


def load(address: str, *options: str) -> dict[str, float]:
    """Asks a server; what the load example found."""
    command = [str(LOAD), address, "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=on_core(0))
    if done.returncode != 0:
        raise BenchError(f"the load example failed:\n{done.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def process_cpu_us(pid: int) -> float:
    """CPU time of a process, all threads, in microseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e3


def gateway_row(server: LoadServer, *, seconds: float) -> dict[str, float]:
    """The gateway's cost of a call, and what it adds to its time at a steady rate."""
    direct = server.url.removeprefix("http://").removesuffix("/v1")
    steady = ("--rate", str(RATE), "--seconds", str(seconds), "--connections", str(CONCURRENCY))
    if not LOAD.exists():
        raise BenchError(
            "the load example is not built\n"
            "hint: cargo build --release -p mainspring-server --example load"
        )
    with gateway(server) as (pid, address):
        load(address, "--seconds", "0.3")
        beside = load(direct, *steady)
        before = process_cpu_us(pid)
        through = load(address, *steady)
        used = process_cpu_us(pid) - before
        before = process_cpu_us(pid)
        flat_out = load(address, "--seconds", str(seconds), "--connections", str(CONCURRENCY))
        used_flat_out = process_cpu_us(pid) - before
    return {
        "call_cpu_us": used / through["requests"],
        "call_cpu_flat_out_us": used_flat_out / flat_out["requests"],
        "flat_out_per_s": flat_out["rate"],
        "rate_per_s": through["rate"],
        "direct_p50_us": beside["p50_us"],
        "direct_p99_us": beside["p99_us"],
        "p50_us": through["p50_us"],
        "p99_us": through["p99_us"],
        "added_p50_us": through["p50_us"] - beside["p50_us"],
        "added_p99_us": through["p99_us"] - beside["p99_us"],
    }


def stream_row(server: LoadServer, *, seconds: float) -> dict[str, float]:
    """The gateway's cost of a streamed answer, and of each of its tokens."""
    with gateway(server) as (pid, address):
        load(address, "--seconds", "0.3", "--stream")
        before = process_cpu_us(pid)
        asked = load(address, "--seconds", str(seconds), "--connections", "8", "--stream")
        used = process_cpu_us(pid) - before
    answer_us = used / asked["requests"]
    return {"answer_cpu_us": answer_us, "token_cpu_us": answer_us / TOKENS}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"error: {error}")
