"""Runs each `examples/NAME.py` offline and compares what it prints with `examples/NAME.out`.

Invariant: an example sees no key, no network and an empty working folder, and ends with status 0.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.common import ROOT, VENV_PYTHON, Breach, environment, report
from tools.filters import hide

# Far above what an example takes; a hang must end.
EXAMPLE_S_MAX = 120.0


def names(root: Path = ROOT) -> list[str]:
    """List the examples by name, sorted; files that start with `_` are helpers."""
    return sorted(p.stem for p in (root / "examples").glob("*.py") if not p.stem.startswith("_"))


def offline_environment(folder: Path) -> dict[str, str]:
    """Give the environment in which examples and documents run: no keys, no network, own home."""
    keep = {key: value for key, value in environment().items() if not key.endswith("_API_KEY")}
    closed = "http://127.0.0.1:9"
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), closed)
    quiet = {"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
    return keep | offline | quiet | {"NO_PROXY": "127.0.0.1,localhost,::1", "HOME": str(folder)}


def run_script(script: Path, *, folder: Path, python: Path = VENV_PYTHON) -> tuple[int, str, str]:
    """Run a script in a folder and give its status, filtered output and raw error output."""
    try:
        done = subprocess.run(
            [str(python), str(script)],
            cwd=folder,
            env=offline_environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=EXAMPLE_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"still running after {EXAMPLE_S_MAX} s"
    return done.returncode, hide(done.stdout, folders=(folder, ROOT)), done.stderr


def check_one(
    name: str, root: Path = ROOT, *, python: Path = VENV_PYTHON, fix: bool = False
) -> list[Breach]:
    """Run one example; with `fix`, write its output down instead of comparing it."""
    path = f"examples/{name}.py"
    recorded = root / "examples" / f"{name}.out"
    with tempfile.TemporaryDirectory() as folder:
        status, output, errors = run_script(root / path, folder=Path(folder), python=python)
    if status != 0:
        return [Breach(path, 1, f"ended with status {status}: {errors.strip()[-2000:]}")]
    if fix:
        recorded.write_text(output)
        return []
    if not recorded.exists():
        return [Breach(path, 1, f"has no {recorded.name}: make fix writes it")]
    return compare(f"examples/{name}.out", hide(recorded.read_text()), output)


def compare(path: str, wanted: str, found: str) -> list[Breach]:
    """Give a breach at the first line where two texts differ."""
    left, right = wanted.splitlines(), found.splitlines()
    for idx in range(max(len(left), len(right))):
        a = left[idx] if idx < len(left) else "<end>"
        b = right[idx] if idx < len(right) else "<end>"
        if a != b:
            return [Breach(path, idx + 1, f'printed "{b}", recorded "{a}"')]
    return []


def main() -> int:
    """Check or, with `--fix`, rewrite the output of every example."""
    fix = "--fix" in sys.argv[1:]
    return report([b for name in names() for b in check_one(name, fix=fix)], rule="examples")


if __name__ == "__main__":
    sys.exit(main())
