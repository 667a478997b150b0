"""Named steps, run in order until one fails, with the time of each and a closing count.

Invariant: the last line is always `N passed, N failed`, alone on its line: the sum over every
test that ran, where a failed step that is no test runner counts as one failure.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tools.common import LOGS, ROOT, ToolError, environment, seconds_since
from tools.setup import setup


@dataclass(frozen=True)
class Count:
    """How many tests a step ran."""

    passed: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Step:
    """A command with a name; `count` reads the tests it ran from its output."""

    name: str
    command: Sequence[str]
    env: Callable[[], dict[str, str]] = environment
    count: Callable[[str], Count] = field(default=lambda _output: Count())


def run_steps(steps: Sequence[Step | Callable[[], None]]) -> int:
    """Run steps in order, stop at the first failure, print the summary, give the exit status.

    A step may also be a function, which raises `ToolError` to fail and prints for itself.
    """
    start = time.monotonic()
    passed = failed = 0
    done = 0
    for step in steps:
        count, good = _run(step) if isinstance(step, Step) else (Count(), _call(step))
        passed += count.passed
        failed += count.failed
        if not good:
            failed = max(failed, 1)
            break
        done += 1
    print(f"{done} of {len(steps)} steps held in {seconds_since(start)}")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def set_up_tools() -> None:
    """Step: the virtual environment, without the native module."""
    setup(native=False, servers=True)


def set_up_native() -> None:
    """Step: the native module."""
    setup(servers=True)


def count_cargo(output: str) -> Count:
    """Add up the `test result:` lines of cargo test."""
    found = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed;", output, re.MULTILINE)
    return Count(sum(int(p) for p, _ in found), sum(int(f) for _, f in found))


def count_pytest(output: str) -> Count:
    """Read pytest's closing line; an error outside a test counts as a failure."""
    lines = [line for line in output.splitlines() if re.search(r"\bin \d+\.\d+s", line)]
    closing = lines[-1] if lines else ""
    numbers = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", closing)}
    return Count(numbers.get("passed", 0), numbers.get("failed", 0) + numbers.get("error", 0))


def _call(step: Callable[[], None]) -> bool:
    try:
        step()
    except ToolError as error:
        print(error, flush=True)
        return False
    return True


def _run(step: Step) -> tuple[Count, bool]:
    start = time.monotonic()
    print(f"{step.name:<28}", end=" ", flush=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{re.sub(r'[^a-z0-9]+', '-', step.name.lower())}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            list(step.command),
            cwd=ROOT,
            env=step.env(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = log.read_text(errors="replace")
    count = step.count(output)
    tests = f"  {count.passed} passed, {count.failed} failed" if count != Count() else ""
    if done.returncode == 0:
        print(f"{seconds_since(start):>8}{tests}", flush=True)
        return count, True
    print(f"{seconds_since(start):>8}  FAILED (status {done.returncode}){tests}")
    print(output, end="" if output.endswith("\n") else "\n")
    print(f"failed: {' '.join(step.command)}", flush=True)
    sys.stdout.flush()
    return count, False
