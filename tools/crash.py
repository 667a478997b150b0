"""`make crash ROUNDS=n`: the tests that kill processes at random, with so many deaths in each."""

import sys

from tools.common import VENV_PYTHON, ToolError, environment, run_shown
from tools.setup import setup

ROUNDS = "20"


def main() -> int:
    """Set up, then run the kill loops and show what they counted."""
    try:
        setup(servers=True)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    rounds = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else ROUNDS
    if not rounds.isdecimal() or rounds == "0":
        print(f"ROUNDS is {rounds!r}, must be a number above 0", file=sys.stderr)
        return 2
    env = environment() | {"MAINSPRING_CRASH_ROUNDS": rounds}
    command = [str(VENV_PYTHON), "-m", "pytest", "-s", "tests/e2e/test_crashes.py"]
    return run_shown(command, env=env)


if __name__ == "__main__":
    sys.exit(main())
