"""`make test`: everything that must hold, in order, stopping at the first failure.

The cheap checks go first, then the builds: the native module, clippy (which needs only metadata
and shares build scripts and macros with it), the Rust tests, and last what needs the built module.
"""

import sys

from tools.common import VENV_BIN, VENV_PYTHON, native_environment
from tools.steps import (
    Step,
    count_cargo,
    count_pytest,
    run_steps,
    set_up_native,
    set_up_tools,
)

PYTHON = str(VENV_PYTHON)
RUFF = str(VENV_BIN / "ruff")

FORMAT_PYTHON = Step("ruff format", [RUFF, "format", "--check", "."])
LINT_PYTHON = Step("ruff check", [RUFF, "check", "."])
FORMAT_RUST = Step("cargo fmt", ["cargo", "fmt", "--all", "--check"])
LAYERS = Step("layers", [PYTHON, "-m", "tools.check_layers"])
TIDY = Step("tidy", [PYTHON, "-m", "tools.check_tidy"])
CLIPPY = Step(
    "clippy",
    [
        "cargo",
        "clippy",
        "--release",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
    env=native_environment,
)
# The Python crate's tests are Python's; without it, cargo test never links libpython.
RUST_TESTS = Step(
    "cargo test",
    ["cargo", "test", "--release", "--locked", "--workspace", "--exclude", "mainspring-python"],
    env=native_environment,
    count=count_cargo,
)
MYPY = Step("mypy", [PYTHON, "-m", "mypy"])
PYRIGHT = Step("pyright", [PYTHON, "-m", "basedpyright"])
STUBS = Step(
    "stubs of the native module",
    [PYTHON, "-m", "mypy.stubtest", "mainspring._native", "--mypy-config-file", "pyproject.toml"],
)
BENCH_SMOKE = Step("bench (tiny run)", [PYTHON, "-m", "tools.bench", "--quick"])


def pytest(name: str, *arguments: str) -> Step:
    """Make a step of a pytest run."""
    return Step(name, [PYTHON, "-m", "pytest", *arguments], count=count_pytest)


def main() -> int:
    """Run every step."""
    return run_steps(
        [
            set_up_tools,
            FORMAT_PYTHON,
            LINT_PYTHON,
            FORMAT_RUST,
            LAYERS,
            TIDY,
            set_up_native,
            CLIPPY,
            RUST_TESTS,
            MYPY,
            PYRIGHT,
            STUBS,
            pytest("tests of this repository", "tests/repo"),
            pytest("tests of the API", "tests/api"),
            pytest("tests end to end", "tests/e2e"),
            BENCH_SMOKE,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
