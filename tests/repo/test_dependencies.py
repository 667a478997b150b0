"""What the tree depends on: one of each big crate, few crates, exact versions, lock files kept."""

import re
import subprocess
import tomllib

import pytest

from tools.common import ROOT, environment, native_environment, source_files

# The first set came to 282, the client of PostgreSQL with its TLS brought 34 (most of them small,
# for SCRAM and its binding to a certificate), and some are our own; a clean build must fit in 15
# minutes on 2 cores.
PACKAGES_MAX = 322


def locked() -> dict[str, list[str]]:
    """Read Cargo.lock: crate -> versions."""
    versions: dict[str, list[str]] = {}
    for package in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]:
        versions.setdefault(package["name"], []).append(package["version"])
    return versions


def tree(*arguments: str) -> list[str]:
    """Run cargo tree and give its lines, without duplicates, sorted."""
    command = ["cargo", "tree", "--locked", "--prefix", "none", "--format", "{p} {f}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | {"CARGO_NET_OFFLINE": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted({line.removesuffix(" (*)").strip() for line in done.stdout.splitlines() if line})


@pytest.mark.parametrize("name", ["aws-lc-rs", "aws-lc-sys", "openssl-sys", "native-tls"])
def test_there_is_no_second_tls(name: str) -> None:
    # Cargo.lock may name a crate for features that are off; what counts is what is built.
    assert [
        line for line in tree("--workspace", "--edges", "all") if line.startswith(f"{name} ")
    ] == []


@pytest.mark.parametrize(
    "name", ["reqwest", "hyper", "rustls", "tokio", "tokio-postgres", "serde_json"]
)
def test_a_big_crate_comes_once(name: str) -> None:
    assert len(locked()[name]) == 1


def test_the_number_of_packages_stays_low() -> None:
    assert sum(len(versions) for versions in locked().values()) <= PACKAGES_MAX


def test_the_module_and_the_tests_share_one_build_of_each_crate() -> None:
    """A crate with other features in the tests than in the module is compiled twice."""

    def features(lines: list[str]) -> dict[str, str]:
        found = {}
        for line in lines:
            match = re.match(r"(\S+ v\S+)(?: \([^)]*\))* ?(.*)$", line)
            assert match is not None, line
            found[match[1]] = match[2]
        return found

    kinds = ("--edges", "normal,no-proc-macro")
    module = features(tree("-p", "mainspring-python", *kinds))
    rest = ("--workspace", "--exclude", "mainspring-python")
    tests = features(tree(*rest, "--edges", "normal,dev,no-proc-macro"))
    # Few stand on these, so a second build costs a second.
    cheap = {"getrandom"}
    differ = {
        name: (module[name], tests[name])
        for name in module.keys() & tests.keys()
        if module[name] != tests[name] and name.split(" ")[0] not in cheap
    }
    assert differ == {}


def test_lock_files_are_kept() -> None:
    kept = set(source_files())
    wanted = {"Cargo.lock", "tools/requirements-dev.txt", "tools/requirements-demo.txt"}
    assert wanted <= kept


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-demo.txt"])
def test_python_requirements_are_exact(name: str) -> None:
    lines = (ROOT / "tools" / name).read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in wanted if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_clippy_sees_the_environment_that_maturin_gives() -> None:
    env = native_environment()
    assert env["PYO3_BUILD_EXTENSION_MODULE"] == "1"
    assert env["PYO3_PYTHON"] == str(ROOT / ".venv" / "bin" / "python")
