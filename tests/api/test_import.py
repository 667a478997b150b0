"""What `import mainspring` loads: little, so that it takes little time."""

import json
import subprocess
import sys

import pytest

# Each takes a large part of the 0.1 s that the import may take, and is needed only at first use.
HEAVY = ["asyncio", "msgspec", "typer", "rich", "pydantic", "mainspring._native"]


def loaded_by(code: str) -> set[str]:
    """The modules in a fresh interpreter after `code`, beyond those it starts with."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nimport json\n"
    script += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import mainspring").isdisjoint(HEAVY)


def test_describing_an_agent_loads_no_engine() -> None:
    code = 'import mainspring\nmainspring.Agent("a", model="openai:gpt-5.4-mini")'
    assert loaded_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("Engine", "msgspec"),
        ("Event", "msgspec"),
        ("Pending", "mainspring.reports"),
        ("Report", "mainspring.reports"),
        ("Run", "msgspec"),
        ("SessionInfo", "mainspring.reports"),
    ],
)
def test_late_names_load_at_first_use(name: str, module: str) -> None:
    assert module not in loaded_by("import mainspring")
    assert module in loaded_by(f"import mainspring\nmainspring.{name}")
    assert module in loaded_by(f"from mainspring import {name}")


def test_the_engine_needs_no_command_line_and_no_pydantic() -> None:
    loaded = loaded_by("from mainspring import Engine, tool\n@tool\ndef f(x: int) -> int: ...")
    assert loaded.isdisjoint(["typer", "rich", "pydantic", "mainspring.cli", "mainspring.testing"])
