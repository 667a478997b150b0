"""What the tests of the command line share: a folder with agents, and the real command.

Invariant: the command runs as a process of its own, without keys, colours or a terminal unless a
test gives them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.common import ROOT
from tools.filters import hide

SNAPSHOTS = ROOT / "tests" / "snapshots"
PROCESS_S_MAX = 120.0

AGENTS = '''
import asyncio
import os
from contextlib import contextmanager
from dataclasses import dataclass

from mainspring import Agent, Model, Route, RoutePolicy, tool
from mainspring.models import Answer

model = Model("scripted", base_url=os.environ.get("SCRIPTED_URL", "http://127.0.0.1:9/v1"))


@tool(effect="read")
async def look(path: str) -> str:
    """Look at a file."""
    print("the tool prints")
    return f"{path} is fine"


@tool
async def boom(number: int) -> int:
    """Fail."""
    raise ValueError(f"no {number}")


@tool(effect="read")
async def wait(path: str) -> str:
    """Say that it began, and wait until it is cancelled."""
    with open(path, "w") as file:
        file.write("began")
    await asyncio.Event().wait()
    return "never"


@dataclass
class Verdict:
    good: bool
    why: str


def checked(answer: Answer) -> str | None:
    return "too short" if answer.text == "no" else None


agent = Agent("looker", instructions="Look.", model=model, tools=[look, boom])
waiter = Agent("waiter", model=model, tools=[wait])
judge = Agent("judge", model=model, output=Verdict)
routed = Agent("routed", model=Route(
    Model("small", base_url=model.base_url), Model("large", base_url=model.base_url),
    verify=checked, policy=RoutePolicy(explore=0),
))


class Team:
    lead = agent


@contextmanager
def opened():
    print("opened")
    yield agent
    print("closed")


def broken():
    raise RuntimeError("no luck")


number = 3
'''


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Desk:
    """A folder to run commands in.

    Args:
        folder: The working folder; it holds `bots.py`.
        url: Where the scripted model is.
    """

    folder: Path
    url: str

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a command."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAINSPRING_", "OPENAI_", "ANTHROPIC_", "OPENROUTER_"))
        }
        kept.pop("FORCE_COLOR", None)
        fixed = {"SCRIPTED_URL": self.url, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
        return kept | fixed | dict(extra or {})

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        told: str = "",
        folder: Path | None = None,
    ) -> Done:
        """Runs `mainspring` with arguments, and waits for its end."""
        done = subprocess.run(
            command(arguments),
            cwd=folder or self.folder,
            env=self.env(env),
            input=told,
            capture_output=True,
            text=True,
            timeout=PROCESS_S_MAX,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts `mainspring` with arguments."""
        return subprocess.Popen(
            command(arguments),
            cwd=self.folder,
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def shown(self, done: Done) -> str:
        """A command's outcome as a snapshot holds it."""
        text = (
            f"exit code {done.code}\n--- standard output\n{done.out}--- standard error\n{done.err}"
        )
        return hide(text, folders=(self.folder.resolve(), self.folder))


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of `mainspring`."""
    return [sys.executable, "-m", "mainspring.cli", *arguments]


def matches_snapshot(name: str, text: str) -> None:
    """Compares text with `tests/snapshots/NAME`, or writes it under MAINSPRING_FIX=1."""
    path = SNAPSHOTS / name
    if os.environ.get("MAINSPRING_FIX") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing; `make fix` writes it"
    assert text == path.read_text(encoding="utf-8")
