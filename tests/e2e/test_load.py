"""kill -9 at random under load: a hundred sessions at once, and process after process killed.

The place of each death is a count of what the test has seen (requests to the model server,
acknowledged starts), drawn from a seed that a failure prints; never a time.
"""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from mainspring.testing import Request, ScriptedModel, Step
from tests.e2e import worker
from tests.e2e._support import Logs, Traces, Worker, check_all, work_step

SESSION_COUNT = 100
DEATHS_MAX = 5


class Killer:
    """Answers like the model of the kill tests, and kills a process at its n-th request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._left = 0

    def arm(self, pid: int, *, requests: int) -> None:
        """Kills this process at so many requests from now; 0: never."""
        with self._lock:
            self._pid, self._left = pid, requests

    def step(self, request: Request) -> Step:
        with self._lock:
            self._left -= 1
            if self._left == 0 and self._pid:
                os.kill(self._pid, signal.SIGKILL)
        return work_step(request)


@pytest.mark.parametrize("at_starts", [True, False], ids=["mid-start", "mid-run"])
def test_a_hundred_sessions_finish_though_their_processes_are_killed_at_random(
    tmp_path: Path, *, at_starts: bool
) -> None:
    seed = int(os.environ.get("MAINSPRING_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed}: set MAINSPRING_TEST_SEED to it to run this again")
    chance = random.Random(seed)
    killer = Killer()
    traces = Traces(tmp_path / "traces")
    sessions = [f"load-{number:03}" for number in range(SESSION_COUNT)]
    store = f"sqlite:///{tmp_path}/load.db"
    acked: set[str] = set()
    deaths = 0
    with ScriptedModel(killer.step) as model, Worker() as process:
        job = {
            "store": store,
            "sessions": sessions,
            "effects": str(traces.path),
            "base_url": model.base_url,
        }
        code = -signal.SIGKILL
        while code != 0:
            pid = process.begin("load", **job)
            missing = SESSION_COUNT - len(process.wait_for("known")["sessions"])
            at_ack = at_starts and missing > 0
            if deaths < DEATHS_MAX and not at_ack:
                killer.arm(pid, requests=chance.randrange(1, SESSION_COUNT))
            os.kill(pid, worker.GO)
            if deaths < DEATHS_MAX and at_ack:
                for _ in range(chance.randrange(1, min(missing, 40) + 1)):
                    process.wait_for("acked")
                os.kill(pid, signal.SIGKILL)
            code = process.exit_code()
            killer.arm(0, requests=0)
            deaths += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), process.lines
            acked |= {line["session"] for line in process.said("acked")}
            assert acked <= _known(store), "an acknowledged session is not in the journal"
        requests = model.requests
    # A process dies before it has had two answers for each session, and each session needs four.
    assert deaths >= 2
    assert _known(store) == set(sessions)
    assert check_all(store, traces.by_session(), requests) == SESSION_COUNT


def _known(store: str) -> set[str]:
    with Logs(store) as logs:
        return set(logs.sessions())
