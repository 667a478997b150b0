"""`make bench`: build the load server, then run the benchmarks of bench/."""

import sys

from tools.common import ROOT, VENV_PYTHON, ToolError, native_environment, run_quietly, run_shown
from tools.setup import setup


def main() -> int:
    """Run bench/run.py with this command's arguments (`--quick` for the tiny run)."""
    try:
        setup()
        build = ["cargo", "build", "--release", "--locked", "-p", "load-server"]
        run_quietly("load server", build, env=native_environment())
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return run_shown([str(VENV_PYTHON), str(ROOT / "bench" / "run.py"), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
