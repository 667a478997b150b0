"""kill -9 while sessions spend: what a tenant was charged is neither lost nor doubled.

A process is killed at a count of requests that the model's server has seen, drawn from a seed that
a failure prints; never at a time.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mainspring import Engine
from mainspring.events import ModelCallFailed, ModelCallFinished
from mainspring.testing import Request, ScriptedModel, Step, call, calls, say
from tests.e2e import spender
from tests.e2e._support import ROOT

SESSION_COUNT = 30
STEP_COUNT = 4


class Killer:
    """A model that answers in a few steps, and kills a process at its n-th request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pid = 0
        self.left = 0
        self.requests = 0

    def step(self, request: Request) -> Step:
        """Asks for a tool that is not there, which costs a repair each time, and then answers."""
        with self._lock:
            self.requests += 1
            self.left -= 1
            if self.left == 0 and self.pid:
                os.kill(self.pid, signal.SIGKILL)
        usage: Any = {"input_tokens": 100, "output_tokens": 10 + request.assistant_count}
        if request.assistant_count < STEP_COUNT:
            return calls(call("nothing"), usage=usage)
        return say("done", usage=usage)


def _run_once(killer: Killer, store: str, base_url: str, *, die_at: int) -> int:
    command = [sys.executable, "-m", "tests.e2e.spender", store, base_url, str(SESSION_COUNT)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        killer.pid, killer.left = process.pid, die_at
        return process.wait()


async def _check(store: str, requests: int) -> None:
    async with Engine(store, budgets=spender.BUDGETS) as engine:
        usd_nanos = tokens = call_count = lost = 0
        for info in await engine.sessions(limit=1_000):
            state = await engine.state(info.session)
            charged = state["spending"]["charged"]
            assert charged == state["spending"]["spent"], "a session pays what it spends"
            for event in await engine.log(info.session):
                if isinstance(event, ModelCallFinished):
                    usd_nanos += round((event.cost_usd or 0.0) * 1e9)
                    tokens += event.usage.input_tokens + event.usage.output_tokens
                    call_count += 1
                elif isinstance(event, ModelCallFailed):
                    assert event.charged is not None
                    usd_nanos += event.charged.get("usd_nanos", 0)
                    tokens += event.charged.get("tokens", 0)
                    call_count += event.charged.get("calls", 0)
                    lost += event.error.code == "process_lost"
        report = await engine.budget("acme")
        assert report is not None
        spent = report.spent
        assert (round(spent.usd * 1e9), spent.tokens, spent.calls) == (
            usd_nanos,
            tokens,
            call_count,
        )
        assert lost > 0
        assert spent.calls >= requests, "every request that was made is charged"


def test_what_a_tenant_was_charged_is_neither_lost_nor_doubled(tmp_path: Path) -> None:
    seed = int(os.environ.get("MAINSPRING_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed}: set MAINSPRING_TEST_SEED to it to run this again")
    chance = random.Random(seed)
    killer = Killer()
    store = f"sqlite:///{tmp_path}/spend.db"
    with ScriptedModel(killer.step) as model:
        for _ in range(4):
            die_at = chance.randrange(2, SESSION_COUNT)
            code = _run_once(killer, store, model.base_url, die_at=die_at)
            assert code == -signal.SIGKILL
        assert _run_once(killer, store, model.base_url, die_at=0) == 0
    asyncio.run(_check(store, killer.requests))
