"""`make sim SEEDS=n SEED_START=k`: run seeds of the simulation, print what they did."""

import sys

from tools.common import ROOT, ToolError, native_environment, run_quietly, run_shown
from tools.setup import setup

BUILD = ["cargo", "build", "--release", "--locked", "-p", "mainspring-sim", "--example", "sim"]


def main() -> int:
    """Build the simulation and run COUNT seeds from FIRST; the status is 1 if one fails."""
    try:
        setup(native=False)
        run_quietly("simulation", BUILD, env=native_environment())
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return run_shown([str(ROOT / "target" / "release" / "examples" / "sim"), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
