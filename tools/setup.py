"""Makes the tree ready: virtual environment, Python packages, native module.

Every make target comes through here. Invariant: a second run with nothing changed does no work,
because each part leaves a stamp that names all it was made from. It is quiet unless it does
something slow, reads no standard input, and on failure prints the output and one line that says
what to do.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.common import (
    ROOT,
    VENV,
    VENV_PYTHON,
    ToolError,
    environment,
    run_quietly,
    seconds_since,
    source_files,
)

REQUIREMENTS_DEV = ROOT / "tools" / "requirements-dev.txt"
REQUIREMENTS_DEMO = ROOT / "tools" / "requirements-demo.txt"
NATIVE_MODULE = ROOT / "python" / "mainspring" / "_native.abi3.so"

# Command that must be there -> Debian package that brings it.
DEBIAN_PACKAGES = {
    "cc": "gcc",
    "ld": "binutils",
    "git": "git",
    "make": "make",
}
# The servers that tests and benchmarks start; the demo and the package need none.
SERVER_PACKAGES = {"pgbouncer": "pgbouncer", "postgres": "postgresql"}

# Read by Debian's packages of PostgreSQL when they are installed: they make and start a server of
# their own unless it says no. The tests start theirs.
CLUSTER_CONFIG = Path("/etc/postgresql-common/createcluster.conf")

# What the native module is made from, beside everything under crates/.
NATIVE_INPUTS = ("Cargo.toml", "Cargo.lock", "pyproject.toml")


def setup(*, native: bool = True, demo: bool = False, servers: bool = False) -> None:
    """Make the tree ready to run its tools, and its package if `native`.

    `servers` are those that tests and benchmarks start.

    Raises:
        ToolError: something is missing that this cannot install; the text says what.
    """
    with _one_at_a_time():
        install_debian_packages(DEBIAN_PACKAGES | (SERVER_PACKAGES if servers else {}))
        find_cargo()
        make_venv()
        install_requirements(REQUIREMENTS_DEV)
        if demo:
            install_requirements(REQUIREMENTS_DEMO)
        if native:
            build_native_module()


def install_debian_packages(packages: Mapping[str, str]) -> None:
    """Install missing system packages, or say in one line which to install.

    Raises:
        ToolError: packages are missing and this user or system cannot install them.
    """
    missing = missing_packages(
        packages,
        has_command=lambda name: find_command(name) is not None,
        has_venv=importlib.util.find_spec("ensurepip") is not None,
    )
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ToolError(f"missing system packages, install: apt-get install {' '.join(missing)}")
    env = environment() | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    with _told(f"Debian packages {' '.join(missing)}"):
        if "postgresql" in missing and not CLUSTER_CONFIG.exists():
            CLUSTER_CONFIG.parent.mkdir(exist_ok=True)
            CLUSTER_CONFIG.write_text("create_main_cluster = false\n")
        run_quietly("apt-get update", ["apt-get", "update", "-q"], env=env)
        run_quietly("apt-get install", install, env=env)


def find_command(name: str) -> Path | None:
    """Find a command on the path of our tools or where Debian keeps those of servers."""
    folders = [environment()["PATH"], "/usr/sbin"]
    folders.extend(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


def missing_packages(
    packages: Mapping[str, str], *, has_command: Callable[[str], bool], has_venv: bool
) -> list[str]:
    """List the Debian packages that are needed and not there, sorted."""
    missing = {package for name, package in packages.items() if not has_command(name)}
    if not has_venv:
        missing.add("python3-venv")
    if "gcc" in missing:
        missing.add("libc6-dev")
    return sorted(missing)


def find_cargo() -> Path:
    """Find the Rust toolchain's cargo, also where rustup's folder is not on the path.

    Raises:
        ToolError: there is none.
    """
    path = shutil.which("cargo", path=environment()["PATH"])
    if path is None:
        raise ToolError("no cargo found: install the Rust toolchain from https://rustup.rs")
    return Path(path)


def make_venv() -> None:
    """Make `.venv`, again if it belongs to another tree or its Python is gone."""
    stamp = VENV / ".stamp-venv"
    wanted = _digest(str(ROOT), sys.version, sys.base_prefix)
    if _read(stamp) == wanted and _starts(VENV_PYTHON):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    with _told("virtual environment .venv"):
        run_quietly("making .venv", [sys.executable, "-m", "venv", str(VENV)], env=dict(os.environ))
    stamp.write_text(wanted)


def install_requirements(file: Path) -> None:
    """Install exactly what a requirements file lists; it lists everything, so nothing is resolved.

    Raises:
        ToolError: a package cannot be fetched or does not fit.
    """
    stamp = VENV / f".stamp-{file.stem}"
    wanted = _digest(file.read_text(), _read(VENV / ".stamp-venv"))
    if _read(stamp) == wanted:
        return
    install = ["-m", "pip", "install", "-q", "--no-input", "--no-deps", "-r", str(file)]
    with _told(f"Python packages of tools/{file.name}"):
        run_quietly("pip install", [str(VENV_PYTHON), *install])
    stamp.write_text(wanted)


def build_native_module() -> None:
    """Build `mainspring._native` and install the package in place, if its sources changed.

    Raises:
        ToolError: it does not compile.
    """
    stamp = VENV / ".stamp-native"
    wanted = _native_digest()
    if _read(stamp) == wanted and NATIVE_MODULE.exists():
        return
    stamp.unlink(missing_ok=True)
    env = environment() | {"CARGO_TERM_COLOR": "never"}
    with _told("native module (release build)"):
        run_quietly("maturin", [str(VENV / "bin" / "maturin"), "develop", "--release"], env=env)
    stamp.write_text(wanted)


def _native_digest() -> str:
    names = [
        name
        for name in source_files()
        if name in NATIVE_INPUTS or (name.startswith("crates/") and "/tests/" not in name)
    ]
    digest = hashlib.sha256(_read(VENV / ".stamp-venv").encode())
    for name in names:
        digest.update(f"{name}\0".encode() + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _starts(python: Path) -> bool:
    try:
        done = subprocess.run(
            [str(python), "-c", ""], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    lock = ROOT / ".cache" / "setup.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _told(what: str) -> Iterator[None]:
    start = time.monotonic()
    print(f"set-up: {what} ...", end=" ", flush=True)
    try:
        yield
    except BaseException:
        print(f"failed after {seconds_since(start)}", flush=True)
        raise
    print(seconds_since(start), flush=True)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main() -> int:
    """Set everything up from the command line."""
    try:
        setup()
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
