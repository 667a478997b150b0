"""What the other tools share: the root of the tree, its files, and running commands.

Invariant: nothing here needs more than the standard library, so that set-up can use it before
the virtual environment exists.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_BIN = VENV / "bin"
VENV_PYTHON = VENV_BIN / "python"
LOGS = ROOT / "target" / "tool-logs"

# Folders that hold no source, for trees that are not git checkouts.
NOT_SOURCE = {".git", ".venv", ".cache", "target", "dist", "__pycache__", ".mainspring"}


class ToolError(Exception):
    """A failure that the user can act on; its text is all that is printed."""


@dataclass(frozen=True, order=True)
class Breach:
    """One place where a rule of the repository is broken."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        """Give the breach in the form that editors can jump to."""
        return f"{self.path}:{self.line}: {self.text}"


def environment() -> dict[str, str]:
    """Give the environment for child processes: the tree's venv and rustup's cargo come first."""
    env = dict(os.environ)
    cargo_home = Path(env.get("CARGO_HOME", Path.home() / ".cargo"))
    env["PATH"] = os.pathsep.join(
        [str(VENV_BIN), env.get("PATH", os.defpath), str(cargo_home / "bin")]
    )
    env["VIRTUAL_ENV"] = str(VENV)
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env.pop("PYTHONHOME", None)
    return env


def native_environment() -> dict[str, str]:
    """Give cargo the variables that maturin gives it.

    pyo3's build script watches these. Were they different here, clippy and maturin would each
    undo the other's build of pyo3 and of all that stands on it.
    """
    env = environment()
    config = sorted((ROOT / "target" / "maturin").glob("pyo3-config-*.txt"))
    if config:
        env["PYO3_CONFIG_FILE"] = str(config[-1])
    version = re.search(r"-(\d+\.\d+)-", config[-1].name) if config else None
    minor = version.group(1) if version else f"{sys.version_info.major}.{sys.version_info.minor}"
    env["PYO3_BUILD_EXTENSION_MODULE"] = "1"
    env["PYO3_ENVIRONMENT_SIGNATURE"] = f"cpython-{minor}-64bit"
    env["PYO3_PYTHON"] = str(VENV_PYTHON)
    env["PYTHON_SYS_EXECUTABLE"] = str(VENV_PYTHON)
    return env


def source_files(root: Path = ROOT) -> list[str]:
    """List the source files of a tree: what git tracks or would track, sorted, relative."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if listed.returncode == 0 and (root / ".git").exists():
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        names = list(_walk(root))
    return sorted({name for name in names if (root / name).is_file()})


def run_quietly(
    name: str, command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> str:
    """Run a command and give its output; on failure show the output and raise.

    Raises:
        ToolError: the command ended with another status than 0.
    """
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env=env if env is not None else environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise ToolError(
            f"{name} failed: {' '.join(map(str, command[:4]))} ended with {done.returncode}"
        )
    return done.stdout


def run_shown(command: Sequence[str], *, env: dict[str, str] | None = None) -> int:
    """Run a command with its output on the terminal and give its exit status."""
    sys.stdout.flush()
    child_env = env if env is not None else environment()
    return subprocess.run(list(command), cwd=ROOT, env=child_env, check=False).returncode


def report(breaches: Sequence[Breach], *, rule: str) -> int:
    """Print breaches, one a line, and give the exit status: 1 if there is any."""
    for breach in sorted(breaches):
        print(breach)
    if breaches:
        print(f"{rule}: {len(breaches)} breaches")
    return 1 if breaches else 0


def seconds_since(start: float) -> str:
    """Say how long ago `start` (a `time.monotonic` value) was."""
    return f"{time.monotonic() - start:.1f} s"


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_SOURCE)
        for name in names:
            yield str((Path(folder) / name).relative_to(root))
