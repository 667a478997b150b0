"""Types that a checker must infer for agents, limits and their results; checked, never run."""

from dataclasses import dataclass
from typing import Any, assert_type

from mainspring.agent import Agent, Limits
from mainspring.mcp import Mcp
from mainspring.models import Answer, Model, Route


@dataclass
class Receipt:
    amount: float


def check_text(answer: Answer) -> None:
    agent = Agent("a", model="openai:gpt-5.4-mini")
    assert_type(agent, Agent[str])
    assert_type(agent.run_sync("hi"), str)
    assert_type(agent.output, type[str])
    assert_type(answer.tool_calls[0].arguments, dict[str, Any])


def check_typed() -> None:
    agent = Agent("a", model=Model("small", base_url="http://h/v1"), output=Receipt)
    assert_type(agent, Agent[Receipt])
    assert_type(agent.run_sync("hi"), Receipt)
    listed = Agent("a", model="gpt-5.4", output=list[str], limits=Limits(steps_max=3))
    assert_type(listed.run_sync("hi"), list[str])


async def check_async() -> None:
    assert_type(await Agent("a", model="gpt-5.4", output=Receipt).run("hi"), Receipt)


def check_route() -> None:
    async def later(answer: Answer) -> bool | str:
        return bool(answer.text) or "empty"

    Route("gpt-5.4-mini", Model("gpt-5.4"), verify=lambda answer: len(answer.text) > 3)
    Route("gpt-5.4-mini", verify=later)


def search(query: str) -> str:
    return query


def check_tools() -> None:
    Agent("a", model="gpt-5.4", tools=[search, Mcp("uvx mcp-server-git"), lambda: "x"])


def check_refused() -> None:
    Agent("a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Limits(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Model("a", effort=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
