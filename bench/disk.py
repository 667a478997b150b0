"""Bytes on disk for one long session: 200 tool rounds of 2,000 characters each.

Owns the sizes and how they are taken. Invariant: each result differs from the others and is
without patterns, so that only real savings count; the journal is on its default, crash-safe
setting.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from _harness import (
    RUNS,
    BenchError,
    Numbers,
    folder_bytes,
    journal_folder,
    load_server,
    machine,
    run_child,
    say,
    summary,
)
from _works import DISK, Work


def measure_disk(*, runs: int, quick: bool) -> dict[str, Any]:
    """Measures the session `runs` times, each in a process and a folder of its own."""
    work = replace(DISK, tool_turns=5) if quick else DISK
    results = []
    for run_idx in range(runs):
        say(f"run {run_idx + 1} of {runs}: disk, mainspring sqlite")
        results.append(measure_once(work))
    return {
        "row": "disk",
        "work": "disk",
        "client": "mainspring",
        "journal": "sqlite",
        "numbers": summary(results),
    }


def measure_once(work: Work) -> Numbers:
    """One session; what stays is measured once its process has ended."""
    with load_server(work) as server, journal_folder() as folder:
        setup = {"work": work.to_json(), "url": server.url, "folder": folder}
        peak = run_child("_disk_session.py", setup)
        return {
            "content_bytes": work.tool_turns * work.result_chars,
            "closed_bytes": folder_bytes(folder),
            **peak,
        }


def main() -> int:
    """Measures, and prints JSON.

    Returns:
        The process's exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    try:
        result = measure_disk(runs=runs, quick=options.quick)
    except BenchError as error:
        say(str(error))
        return 1
    print(json.dumps({"machine": machine(), "runs": runs, "results": [result]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
