"""`make test-models`: the tests that need the real models, which `make test` leaves out."""

import sys

from tools.common import VENV_PYTHON, ToolError, run_shown
from tools.setup import setup


def main() -> int:
    """Set up with the model server, then run tests/models."""
    try:
        setup(demo=True)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return run_shown([str(VENV_PYTHON), "-m", "pytest", "tests/models", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
