"""The public names: what `__all__` promises is there, documented, typed and pickles."""

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import mainspring
from mainspring import MainspringError, errors
from mainspring._native import error_catalogue

PUBLIC = ["", ".adapter", ".agent", ".budget", ".compaction", ".context", ".engine", ".errors"]
PUBLIC += [".events", ".gateway", ".mcp", ".model_client", ".models", ".outcome", ".reports"]
PUBLIC += [".routing", ".run", ".testing", ".tool"]
CODES = [code for code, _, _ in error_catalogue()]
CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "from_failure"]

# Which class a code's exception has: the first part of the code, but for these.
AREAS = {
    "agent": errors.AgentError,
    "budget": errors.AgentError,
    "engine": errors.EngineError,
    "journal": errors.JournalError,
    "limit": errors.LimitError,
    "local": errors.LocalModelError,
    "mcp": errors.McpError,
    "model": errors.ModelError,
    "route": errors.RouteError,
    "session": errors.SessionError,
    "tool": errors.ToolError,
}
ALONE = {
    "answer_rejected": errors.SessionFailed,
    "approval_denied": errors.ToolError,
    "approval_used": errors.SessionError,
    "budget_exhausted": errors.BudgetError,
    "cancelled": errors.SessionCancelled,
    "internal": errors.EngineError,
    "lease_lost": errors.SessionError,
    "output_invalid": errors.SessionFailed,
    "process_lost": errors.SessionFailed,
    "replay_diverged": errors.SessionError,
    "verify_failed": errors.SessionFailed,
}


def members(module: str) -> list[tuple[str, Any]]:
    found = importlib.import_module(f"mainspring{module}")
    return [(name, getattr(found, name)) for name in found.__all__]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_sorted_present_and_documented(module: str) -> None:
    found = importlib.import_module(f"mainspring{module}")
    assert found.__doc__
    assert list(found.__all__) == sorted(set(found.__all__))
    for name, value in members(module):
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
        if inspect.isclass(value) and value.__module__.startswith("mainspring"):
            for attribute, member in vars(value).items():
                if inspect.isfunction(member) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute} has no docstring"


def test_the_package_lists_every_name_in_dir() -> None:
    assert set(mainspring.__all__) <= set(dir(mainspring))
    with pytest.raises(AttributeError, match="module 'mainspring' has no attribute 'engin'"):
        _ = mainspring.engin  # type: ignore[attr-defined]


def test_every_public_module_is_known_here() -> None:
    found = [f".{each.name}" for each in pkgutil.iter_modules(mainspring.__path__)]
    hidden = [name for name in found if name.startswith("._")]
    assert sorted(set(found) - set(hidden) - {".cli", ".demo", ".local"}) == PUBLIC[1:]


def test_names_of_the_package_are_those_of_its_modules() -> None:
    for name, value in members(""):
        home = importlib.import_module(value.__module__)
        assert getattr(home, name) is value
        assert name in home.__all__


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_engine_has_an_exception_of_its_area(code: str) -> None:
    error = errors.from_failure(code, "it failed", "mend it", retryable=True, session="s")
    assert type(error) is ALONE.get(code, AREAS.get(code.partition("_")[0]))
    assert (error.code, error.message, error.hint) == (code, "it failed", "mend it")
    assert error.retryable
    assert error.details == {"session": "s"}
    assert str(error) == "it failed\nhint: mend it"


def test_a_code_of_a_newer_version_is_an_error_still() -> None:
    error = errors.from_failure("weather_bad", "it rains", None, retryable=False)
    assert type(error) is MainspringError
    assert error.code not in CODES


@pytest.mark.parametrize("kind", CLASSES)
def test_every_exception_pickles(kind: type[MainspringError]) -> None:
    error = kind("agent_invalid", "m", "h", retryable=True, details={"session": "s", "n": [1]})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert (str(copy), copy.args) == (str(error), error.args)


def test_exceptions_are_reached_from_the_package() -> None:
    assert {kind.__name__ for kind in CLASSES} <= set(mainspring.__all__)


def test_the_native_module_is_a_release_build() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mainspring._native as n; print(n.PROFILE, n.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    profile, version = done.stdout.split()
    assert profile == "release"
    assert version.count(".") == 2
