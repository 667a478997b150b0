"""`make fix`: format, sort and rewrite what is recorded. Read the diff afterwards.

Snapshot tests see `MAINSPRING_FIX=1` and then write their text instead of comparing it.
"""

import sys

from tools.common import (
    VENV_BIN,
    VENV_PYTHON,
    ToolError,
    environment,
    native_environment,
    run_shown,
)
from tools.setup import setup

FORMATTERS = [
    ["cargo", "fmt", "--all"],
    [str(VENV_BIN / "ruff"), "check", "--fix", "--exit-zero", "-q", "."],
    [str(VENV_BIN / "ruff"), "format", "-q", "."],
]


def main() -> int:
    """Fix everything that has one right form."""
    try:
        setup(native=False)
        status = max(run_shown(command) for command in FORMATTERS)
        setup(servers=True)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    fixing = {"MAINSPRING_FIX": "1"}
    rust = ["cargo", "test", "-q", "--release", "--workspace", "--exclude", "mainspring-python"]
    python = [str(VENV_PYTHON), "-m", "pytest", "tests/api", "tests/e2e", "-k", "snapshot"]
    # Status 5 says that no test has that name.
    status = max(status, run_shown([*rust, "snapshot"], env=native_environment() | fixing))
    found = run_shown(python, env=environment() | fixing)
    examples = run_shown([str(VENV_PYTHON), "-m", "tools.check_examples", "--fix"])
    return max(status, 0 if found == 5 else found, examples)


if __name__ == "__main__":
    sys.exit(main())
