"""The demonstration's agent, and the servers of its models.

Invariant: the servers run on loopback and only while the `with` block does.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mainspring._route_policy import RoutePolicy
from mainspring.agent import Agent, Limits
from mainspring.demo._check import Check
from mainspring.demo._script import answer_rightly, answer_wrongly
from mainspring.demo._tools import files_named, tools_of
from mainspring.errors import AgentError, McpError
from mainspring.local import LocalServer
from mainspring.mcp import Mcp
from mainspring.models import Model, Route
from mainspring.testing import ScriptedModel

MODELS = ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
"""The local models, smallest first."""

SCRIPTED = ("scripted-small", "scripted-large")

_QUESTION = (
    "How many lines has Cargo.toml, what does the Makefile say about bench, "
    "and what is the message of the last commit?"
)

# One example is what makes a model of this size ask for everything at once, and "on one line" keeps
# it from spending half of its tokens on indentation.
_INSTRUCTIONS = """\
You answer questions about a git repository. First call the tools for all parts of the question in \
one reply, on one line. Then answer every part in one sentence, with the facts from the results. \
Example:
Question: How many lines has a.py, what does b.md say about ports, and who made the last commit?
{"tool_calls":[{"name":"count_lines","arguments":{"path":"a.py"}},\
{"name":"find_text","arguments":{"path":"b.md","text":"port"}},\
{"name":"git_log","arguments":{"repo_path":".","max_count":1}}]}"""

# The models read some 50 tokens a second: a long result would cost more time than it is worth.
_LIMITS = Limits(steps_max=10, tool_calls_per_step_max=6, tool_result_bytes_max=800)

_CONTEXT_TOKENS = 4096
_ANSWER_TOKENS_MAX = 250
_FIRST_TOKEN_S = 300.0


def repository(folder: Path | None = None) -> Path:
    """The root of the git working tree that a folder is in.

    Args:
        folder: None: the current folder.

    Raises:
        AgentError: `agent_invalid`: there is none.
    """
    start = (folder or Path.cwd()).resolve()
    for candidate in (start, *start.parents):
        if (candidate / ".git").exists():
            return candidate
    raise AgentError(
        "agent_invalid",
        f'the demo answers questions about a git repository, "{start}" is in none',
        "go to a folder of one that has commits",
    )


def default_question(root: Path) -> str:
    """The question where none is given: one that the repository's own files answer."""
    if len(files_named(_QUESTION, root)) == 2:
        return _QUESTION
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    )
    top = [name for name in tracked.stdout.splitlines() if re.fullmatch(r"[A-Z][\w.-]*", name)]
    parts = [f"how many lines has {name}" for name in top[:2]]
    return ", and ".join(["What is the message of the last commit", *parts]) + "?"


@contextmanager
def local(question: str = "") -> Iterator[Agent[str]]:
    """The agent on the local models, each served by a process of its own.

    Args:
        question: What will be asked, if known; the check then holds the answer against it too.

    Raises:
        LocalModelError: A model is not pulled or cannot be served, or the runtime is missing.
        AgentError: `agent_invalid`: the current folder is in no git repository.
        McpError: `mcp_start_failed`: mcp-server-git is not installed.
    """
    root = repository()
    with ExitStack() as servers:
        models = []
        for name in MODELS:
            server = servers.enter_context(LocalServer(name, context_tokens=_CONTEXT_TOKENS))
            models.append(Model(name, base_url=server.base_url, tool_mode="json_schema"))
        yield _agent(root, models, question)


@contextmanager
def scripted(question: str = "") -> Iterator[Agent[str]]:
    """The agent on scripted models: the small one miscounts, and the larger one takes over.

    Args:
        question: As for `local`.

    Raises:
        AgentError: `agent_invalid`: the current folder is in no git repository.
        McpError: `mcp_start_failed`: mcp-server-git is not installed.
    """
    root = repository()
    small, large = SCRIPTED
    scripts = {small: answer_wrongly(root), large: answer_rightly(root)}
    with ScriptedModel(models=scripts) as server:
        yield _agent(root, [server.model(small), server.model(large)], question)


def _agent(root: Path, models: Sequence[Model], question: str) -> Agent[str]:
    if importlib.util.find_spec("mcp_server_git") is None:
        raise McpError(
            "mcp_start_failed",
            "the demo reads commits through the MCP server mcp-server-git, it is not installed",
            'run: pip install "mainspring[demo]"',
        )
    git = Mcp(
        [sys.executable, "-m", "mcp_server_git", "--repository", str(root)],
        cwd=root,
        name="mcp-server-git",
        tools=["git_log"],
    )
    route = [
        replace(
            model,
            stream=True,
            temperature=0.0,
            max_tokens=_ANSWER_TOKENS_MAX,
            first_token_s=_FIRST_TOKEN_S,
        )
        for model in models
    ]
    return Agent(
        "demo",
        instructions=_INSTRUCTIONS,
        # Nothing is tried at random: the demo shows the same each time.
        model=Route(*route, verify=Check(root, question), policy=RoutePolicy(explore=0)),
        tools=[*tools_of(root), git],
        limits=_LIMITS,
    )
