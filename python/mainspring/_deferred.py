"""Which tools of an agent a model is shown, and which it has to search for.

Invariant: the order of tools that are shown is the user's, and so is that of the others, which come
after them. Reading starts at `arrange`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mainspring.errors import AgentError
from mainspring.mcp import Mcp, McpTool
from mainspring.tool import Tool

__all__ = ["Arranged", "STAND_INS", "TOOLS_SHOWN_MAX", "arrange"]

TOOLS_SHOWN_MAX = 64
"""Tools that a model is shown before those that do not say `deferred=False` are deferred."""

STAND_INS = ("tool_search", "tool_call")
"""Names of the tools that find and call deferred ones."""


class Arranged(NamedTuple):
    """A tool in its place.

    Attributes:
        owner: The tool, or the server that it is of.
        tool: The server's tool; None: `owner` is the tool.
    """

    owner: Tool[..., Any] | Mcp
    tool: McpTool | None

    @property
    def name(self) -> str:
        """What the model calls it by."""
        return self.tool["name"] if self.tool is not None else str(self.owner.name)


def arrange(
    agent: str,
    tools: Sequence[Tool[..., Any] | Mcp],
    listed: Mapping[Mcp, Sequence[McpTool]],
) -> tuple[list[Arranged], int]:
    """Puts deferred tools behind the others.

    Args:
        agent: The agent's name, for errors.
        tools: Tools and servers, in the user's order.
        listed: The tools of each server.

    Returns:
        All tools, and how many of the last ones are deferred.

    Raises:
        AgentError: `agent_invalid`, when tools are deferred and one has the name of a tool that
            finds or calls them.
    """
    all_tools: list[Arranged] = []
    for each in tools:
        own = [None] if isinstance(each, Tool) else listed[each]
        all_tools.extend(Arranged(each, tool) for tool in own)
    too_many = len(all_tools) > TOOLS_SHOWN_MAX
    shown = [each for each in all_tools if not _is_deferred(each, too_many)]
    deferred = [each for each in all_tools if _is_deferred(each, too_many)]
    reserved = [each.name for each in all_tools if each.name in STAND_INS]
    if deferred and reserved:
        raise AgentError(
            "agent_invalid",
            f'agent "{agent}" defers tools and has one named "{reserved[0]}", which finds or calls '
            "those",
            "give the tool another name",
        )
    return shown + deferred, len(deferred)


def _is_deferred(arranged: Arranged, too_many: bool) -> bool:
    deferred = arranged.owner.deferred
    return too_many if deferred is None else deferred
