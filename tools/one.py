"""`make one T=name`: run the tests whose name contains `name`, Rust and Python."""

import re
import sys

from tools.common import ROOT, VENV_PYTHON, ToolError, native_environment, run_shown, source_files
from tools.setup import setup


def commands(name: str, files: list[str]) -> list[list[str]]:
    """Find the test runners that know a test of this name, and give their command lines."""
    rust: set[str] = set()
    python: list[str] = []
    for file in files:
        text = (ROOT / file).read_text(errors="replace")
        crate = re.match(r"crates/([^/]+)/.*\.rs$", file)
        if crate and re.search(rf"\bfn \w*{re.escape(name)}", text):
            rust.add(crate.group(1))
        if re.match(r"tests/.*\.py$", file) and re.search(rf"\bdef test\w*{re.escape(name)}", text):
            python.append(file)
    found = [["cargo", "test", "--release", "-p", crate, name] for crate in sorted(rust)]
    if python:
        found.append([str(VENV_PYTHON), "-m", "pytest", "-k", name, *python])
    return found


def main() -> int:
    """Set up, find the tests, run them; the status is that of the first that fails."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name:
        print("no test named\nhint: make one T=part_of_its_name", file=sys.stderr)
        return 2
    try:
        setup(servers=True)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    if name.startswith("tests/"):
        return run_shown([str(VENV_PYTHON), "-m", "pytest", name])
    found = commands(name, source_files())
    if not found:
        print(f'no test has "{name}" in its name', file=sys.stderr)
        return 2
    for command in found:
        status = run_shown(command, env=native_environment())
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
