"""`make check`: the quick loop, under 3 minutes on 2 cores once built.

Leaves out what `make test` adds: clippy, the tests end to end and the benchmarks.
"""

import sys

from tools.steps import run_steps, set_up_native, set_up_tools
from tools.test import (
    FORMAT_PYTHON,
    FORMAT_RUST,
    LAYERS,
    LINT_PYTHON,
    MYPY,
    RUST_TESTS,
    STUBS,
    TIDY,
    pytest,
)


def main() -> int:
    """Run the quick steps."""
    return run_steps(
        [
            set_up_tools,
            FORMAT_PYTHON,
            LINT_PYTHON,
            FORMAT_RUST,
            LAYERS,
            TIDY,
            set_up_native,
            RUST_TESTS,
            MYPY,
            STUBS,
            pytest("tests of this repository", "tests/repo"),
            pytest("tests of the API", "tests/api"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
