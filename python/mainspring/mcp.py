"""MCP servers whose tools an agent may use: descriptions only.

Invariant: nothing is started here. Equal descriptions stand for one shared server process; values
of environment variables are never shown.
"""

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from mainspring.errors import AgentError

__all__ = ["Mcp", "McpTool"]

_EFFECTS = ("read", "idempotent", "keyed", "unsafe")
_LAUNCHERS = ("bunx", "npx", "pipx", "uvx")


class McpTool(TypedDict):
    """A tool of an MCP server, as an agent takes it.

    `name` is what the model calls it by; `remote_name` is what the server does.
    """

    name: str
    remote_name: NotRequired[str]
    description: str
    parameters: Mapping[str, Any]
    effect: Literal["read", "idempotent", "keyed", "unsafe"]


@dataclass(frozen=True, repr=False)
class Mcp:
    """An MCP server that runs as a process on this machine.

    Args:
        command: The program and its arguments: a list as it is; a string with `args` is the
            program alone; a string without `args` is split as a shell would split it.
        args: Further arguments.
        env: Variables set on top of the few that the server inherits.
        cwd: Its working folder; None: this process's own.
        name: What people and errors call it; None: made from the command.
        tools: Names of the tools to use, as the server calls them; None: all.
        prefix: Put before the name of every tool.
        timeout_s: Seconds that one call may take.
        effect: What a repetition of any of its calls would do; None: as the server's annotations
            say (`readOnlyHint`: read, `idempotentHint`: idempotent), else `unsafe`.
        deferred: True: models are not shown its tools, they find them with `tool_search`; None: so
            it is where the agent has more than 64 tools.

    Raises:
        AgentError: `agent_invalid`, when a value is outside of what is allowed.

    Example:
        >>> from mainspring import Mcp
        >>> Mcp("uvx mcp-server-git", tools=["git_log"])
        Mcp(['uvx', 'mcp-server-git'], name='mcp-server-git', tools=['git_log'])
    """

    command: str | Sequence[str] = field(hash=False, compare=False)
    _: KW_ONLY
    args: Sequence[str] = field(default=(), hash=False, compare=False)
    env: Mapping[str, str] | None = field(default=None, hash=False)
    cwd: str | os.PathLike[str] | None = None
    name: str | None = None
    tools: Sequence[str] | None = None
    prefix: str | None = None
    timeout_s: float = 60.0
    effect: Literal["read", "idempotent", "keyed", "unsafe"] | None = None
    deferred: bool | None = None
    argv: tuple[str, ...] = field(init=False)
    """The program and all its arguments."""

    def __post_init__(self) -> None:
        """Checks every field, and makes copies of what could change."""
        argv = _argv(self.command, self.args)
        _set(self, "argv", argv)
        _set(self, "command", argv[0])
        _set(self, "args", argv[1:])
        _set(self, "env", _checked_env(self.env))
        if self.cwd is not None:
            _set(self, "cwd", os.fspath(self.cwd))
        if isinstance(self.tools, str):
            raise TypeError(f'tools is a list of names, not text\nhint: write ["{self.tools}"]')
        if self.tools is not None:
            _set(self, "tools", tuple(self.tools))
        if self.name is None:
            _set(self, "name", _default_name(argv))
        if self.prefix is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.prefix):
            raise AgentError(
                "agent_invalid",
                f'prefix of mcp server "{self.name}" is "{self.prefix}", '
                "allowed are 1 to 32 of A-Z a-z 0-9 _ -",
            )
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise AgentError(
                "agent_invalid",
                f'timeout_s of mcp server "{self.name}" is {self.timeout_s}, '
                "must be above 0 and finite",
            )
        if self.effect is not None and self.effect not in _EFFECTS:
            raise AgentError(
                "agent_invalid",
                f'mcp server "{self.name}" has effect {self.effect!r}, '
                f"allowed are {', '.join(_EFFECTS)}",
            )

        deferred: object = self.deferred
        if not (deferred is None or isinstance(deferred, bool)):
            kind = type(deferred).__name__
            raise TypeError(f'deferred of mcp server "{self.name}" is a bool, not {kind}')

    def __repr__(self) -> str:
        """Shows all but the values of `env`."""
        parts = [repr(list(self.argv))]
        if self.env:
            parts.append(f"env={{{', '.join(f'{key!r}: ...' for key in self.env)}}}")
        for attribute in ("cwd", "name", "prefix", "effect", "deferred"):
            if getattr(self, attribute) is not None:
                parts.append(f"{attribute}={getattr(self, attribute)!r}")
        if self.tools is not None:
            parts.append(f"tools={list(self.tools)!r}")
        return f"Mcp({', '.join(parts)})"

    def config(self) -> dict[str, Any]:
        """How to start the server, as the engine takes it; holds the values of `env`."""
        config: dict[str, Any] = {
            "name": self.name,
            "command": self.argv[0],
            "args": list(self.argv[1:]),
            "env": dict(self.env or {}),
        }
        if self.cwd is not None:
            config["cwd"] = str(self.cwd)
        return config

    def select(self, listed: Sequence[Mapping[str, Any]]) -> list[McpTool]:
        """Applies `tools`, `prefix` and `effect` to what the server lists.

        Args:
            listed: The server's tools in its own order, each with the fields of MCP's `Tool`:
                `name`, `inputSchema`, and perhaps `description` and `annotations`.

        Returns:
            The tools for the agent; characters that models do not accept in a name become `_`.

        Raises:
            AgentError: `agent_invalid`, when `tools` names one that the server does not have.

        Source:
            Model Context Protocol 2025-06-18, "Tools" and `ToolAnnotations` in its schema.
        """
        names = [tool["name"] for tool in listed]
        for wanted in self.tools or ():
            if wanted not in names:
                raise AgentError(
                    "agent_invalid",
                    f'mcp server "{self.name}" has no tool "{wanted}", it has {", ".join(names)}',
                )
        return [
            McpTool(
                name=re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.prefix or ''}{tool['name']}")[:64],
                remote_name=tool["name"],
                description=tool.get("description") or "",
                parameters=tool["inputSchema"],
                effect=self.effect or _annotated_effect(tool.get("annotations") or {}),
            )
            for tool in listed
            if self.tools is None or tool["name"] in self.tools
        ]


def _set(mcp: Mcp, attribute: str, value: object) -> None:
    object.__setattr__(mcp, attribute, value)


def _argv(command: str | Sequence[str], args: Sequence[str]) -> tuple[str, ...]:
    if isinstance(args, str):
        raise TypeError(f'args is a list of arguments, not text\nhint: write ["{args}"]')
    if isinstance(command, str):
        if command.lower().startswith(("http://", "https://")):
            raise AgentError(
                "agent_invalid",
                f'mcp server "{command}" is an address, allowed is a command that starts the '
                "server on this machine",
                'give a program that speaks MCP on standard input, such as "uvx mcp-server-git"',
            )
        if args:
            parts: tuple[str, ...] = (command,)
        else:
            try:
                parts = tuple(shlex.split(command))
            except ValueError as error:
                raise AgentError(
                    "agent_invalid",
                    f'mcp server "{command}" cannot be split into arguments: {error}',
                    "give a list, one string for each argument",
                ) from error
    else:
        parts = tuple(command)
    argv = (*parts, *args)
    for part in argv:
        if not isinstance(part, str):
            raise TypeError(f"the command of an mcp server is text, not {type(part).__name__}")
    if not argv or not argv[0]:
        raise AgentError("agent_invalid", "an mcp server has no command, it needs a program")
    return argv


def _checked_env(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    for key, value in env.items():
        if not all(isinstance(each, str) for each in (key, value)):
            raise TypeError(
                f'env of an mcp server holds text, not {type(value).__name__} at "{key}"'
            )
    return dict(env)


def _default_name(argv: tuple[str, ...]) -> str:
    """The program's name, or that of what a launcher or `python -m` starts."""
    program = argv[0].rpartition("/")[2]
    plain = [arg for arg in argv[1:] if not arg.startswith("-")]
    if plain and program in _LAUNCHERS:
        return plain[-1] if program == "pipx" else plain[0]
    if program.startswith("python") and len(argv) > 2 and argv[1] == "-m":
        return argv[2]
    return program


def _annotated_effect(
    annotations: Mapping[str, Any],
) -> Literal["read", "idempotent", "keyed", "unsafe"]:
    if annotations.get("readOnlyHint") is True:
        return "read"
    return "idempotent" if annotations.get("idempotentHint") is True else "unsafe"
