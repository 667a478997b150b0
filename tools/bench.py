"""`make bench`: build the load server, run the benchmarks of bench/, then those of the journal.

The tiny run (`--quick`) also makes the tiny runs of limits and faults, and leaves out the journal.
"""

import json
import sys

from tools.common import ROOT, VENV_PYTHON, ToolError, native_environment, run_quietly, run_shown
from tools.setup import setup

# Beside the checkout's own files, since a system's temporary folder may be in memory.
FOLDER = ROOT / "bench" / "results"


def main() -> int:
    """Run bench/run.py with this command's arguments (`--quick`: the tiny run), then journals."""
    try:
        setup(servers=True)
        build = ["cargo", "build", "--release", "--locked"]
        run_quietly("load server", [*build, "-p", "load-server"], env=native_environment())
        decisions = ["-p", "mainspring-route", "--example", "decision_cost"]
        run_quietly("decision_cost", [*build, *decisions], env=native_environment())
        status = run_shown([str(VENV_PYTHON), str(ROOT / "bench" / "run.py"), *sys.argv[1:]])
        for name in ("limits.py", "faults.py"):
            quick = ["--quick"] if "--quick" in sys.argv else []
            if status == 0:
                status = run_shown([str(VENV_PYTHON), str(ROOT / "bench" / name), *quick])
        if status == 0 and "--quick" not in sys.argv:
            bench_journals()
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def bench_journals() -> None:
    """Measure both stores on the checkout's disk, beside the disk itself and a naive loop.

    Raises:
        ToolError: a measurement did not do its work.
    """
    FOLDER.mkdir(exist_ok=True)
    for name, arguments in (
        ("bench", ["5", str(FOLDER), "--million"]),
        ("bench_postgres", ["5", "3", str(FOLDER)]),
    ):
        command = ["cargo", "run", "--release", "--locked", "-q", "-p", "mainspring-journal"]
        command += ["--example", name, "--", *arguments]
        print(f"\njournal: {name}", file=sys.stderr, flush=True)
        for line in run_quietly(name, command, env=native_environment()).splitlines():
            if line.startswith("{"):
                fields = json.loads(line).items()
                print("  ".join(f"{key} {value}" for key, value in fields), flush=True)


if __name__ == "__main__":
    sys.exit(main())
