"""The tools behind the make targets: set-up, steps and their closing count."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.planted import plant, put
from tools import setup, steps
from tools.common import ROOT, ToolError, source_files
from tools.filters import hide
from tools.one import commands


@pytest.mark.parametrize(
    ("present", "has_venv", "wanted"),
    [
        ({"cc", "ld", "git", "make", "postgres", "pgbouncer"}, True, []),
        ({"cc", "ld", "git", "make", "postgres", "pgbouncer"}, False, ["python3-venv"]),
        ({"ld", "make", "postgres", "pgbouncer"}, True, ["gcc", "git", "libc6-dev"]),
        ({"cc", "ld", "git", "make"}, True, ["pgbouncer", "postgresql"]),
    ],
)
def test_missing_packages_are_named(present: set[str], has_venv: bool, wanted: list[str]) -> None:
    packages = setup.DEBIAN_PACKAGES | setup.SERVER_PACKAGES
    missing = setup.missing_packages(packages, has_command=present.__contains__, has_venv=has_venv)
    assert missing == wanted


def test_every_target_has_a_help_line() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    targets = [line.split()[1] for line in done.stdout.splitlines()]
    wanted = [
        "help",
        "demo",
        "test",
        "check",
        "fix",
        "one",
        "bench",
        "crash",
        "fuzz",
        "sim",
        "sim-planted",
        "test-models",
    ]
    assert targets == wanted


def test_ci_runs_only_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def step(name: str, code: str) -> steps.Step:
    return steps.Step(name, [sys.executable, "-c", code], count=steps.count_pytest)


def test_steps_stop_at_the_first_failure_and_close_with_the_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = step("good", "print('3 passed in 0.10s')")
    bad = step("bad", "print('1 failed, 2 passed in 0.10s'); raise SystemExit(1)")
    never = step("never", "print('9 passed in 0.10s')")
    assert steps.run_steps([good, bad, never]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 passed, 1 failed"
    assert "1 failed, 2 passed in 0.10s" in lines
    assert not any(line.startswith("never") for line in lines)


def test_a_failed_step_without_tests_counts_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ToolError("no cargo found")

    assert steps.run_steps([missing]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no cargo found"
    assert lines[-1] == "0 passed, 1 failed"


def test_counts_are_read_from_the_runners() -> None:
    cargo = (
        "test result: ok. 4 passed; 0 failed; 0 ignored\n"
        "test result: FAILED. 1 passed; 2 failed; 0 ignored\n"
    )
    assert steps.count_cargo(cargo) == steps.Count(5, 2)
    closing = "1 failed, 7 passed, 2 errors in 3.21s\n"
    assert steps.count_pytest(closing) == steps.Count(7, 3)


def test_one_finds_the_runner_of_a_test() -> None:
    found = commands("one_finds_the_runner", source_files())
    assert [command[-3:] for command in found] == [
        ["-k", "one_finds_the_runner", "tests/repo/test_tools.py"]
    ]


def test_files_of_a_tree_without_git_leave_out_what_is_built(tmp_path: Path) -> None:
    root = plant(tmp_path)
    before = source_files(root)
    put(root, "target/x.py", "")
    put(root, ".venv/y.py", "")
    assert source_files(root) == before


def test_filters_hide_what_differs_between_runs() -> None:
    text = (
        "session 0190f3a2-7c1e-7b3a-9f00-0123456789ab at 2026-01-02T03:04:05.678Z took 1.25 s\n"
        "server http://127.0.0.1:40123/v1 wrote /tmp/x/y.db"
    )
    assert hide(text) == (
        "session <id> at <time> took <duration>\nserver http://127.0.0.1:<port>/v1 wrote <path>"
    )
