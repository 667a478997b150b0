"""What a routing decision costs: whole decisions at steps of 2 KB, with weights of full size.

Owns how the native program `decision_cost` is run. Invariant: a program that is not built, or did
not say its numbers, is a failed measurement.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from _harness import BENCH, BenchError, Numbers, on_core, say, summary

PROGRAM = BENCH.parent / "target" / "release" / "examples" / "decision_cost"
PROGRAM_S_MAX = 120.0


def measure_route(*, runs: int) -> dict[str, Any]:
    """Measures decisions `runs` times, each in a process of its own on the last core."""
    results = []
    for run_idx in range(runs):
        say(f"run {run_idx + 1} of {runs}: route, mainspring")
        results.append(measure_once())
    return {
        "row": "route",
        "work": "route",
        "client": "mainspring",
        "journal": "memory:",
        "numbers": summary(results),
    }


def measure_once() -> Numbers:
    """One run: 20,000 decisions each with and without weights.

    Raises:
        BenchError: the program is not built, or failed.
    """
    if not PROGRAM.exists():
        raise BenchError(
            "the program decision_cost is not built\n"
            "hint: cargo build --release -p mainspring-route --example decision_cost"
        )
    done = subprocess.run(
        [str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S_MAX,
        check=False,
        preexec_fn=on_core(-1),
    )
    if done.returncode != 0:
        raise BenchError(f"decision_cost failed: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    return {
        "decision_p50_us": said["learnt"]["p50_us"],
        "decision_p99_us": said["learnt"]["p99_us"],
        "untrained_p50_us": said["untrained"]["p50_us"],
        "untrained_p99_us": said["untrained"]["p99_us"],
        "features_p50_us": said["features"]["p50_us"],
    }
