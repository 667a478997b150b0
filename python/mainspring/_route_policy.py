"""How the models of a route share an agent's steps: the numbers of the policy.

Invariant: plain data, checked where it is made; the defaults need no training and nothing to be
configured. Reading starts at `RoutePolicy`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mainspring.errors import AgentError

__all__ = ["RoutePolicy", "STEP_CLASSES", "StepClass"]

StepClass = Literal["plan", "tool_args", "summarise", "extract", "judge", "answer", "code", "chat"]
"""What a step is for; by itself the engine tells `plan`, `tool_args`, `extract`, `answer` and
`chat` apart."""

STEP_CLASSES: tuple[StepClass, ...] = (
    "plan",
    "tool_args",
    "summarise",
    "extract",
    "judge",
    "answer",
    "code",
    "chat",
)
"""All classes of steps."""

_MOST = {"explore": 0.5, "accept": 1.0, "cost_weight": 1e9, "gain_min": 1.0, "margin_usd": 1e6}


@dataclass(frozen=True, kw_only=True)
class RoutePolicy:
    """When a step begins above the first model, and when an answer is believed.

    Args:
        explore: Share of the free decisions that try another model than the best, to learn about
            it; 0 to 0.5, and less where trials would cost more than 0.3 of the step on average. The
            probability of each choice is recorded.
        accept: Least probability of being right with which an answer is accepted; 0 to 1.
        cost_weight: How much probability of being right one US dollar must buy; 10 says that a
            right step is worth ten cents. 0 ignores prices.
        gain_min: Least gain in probability for which a step begins above the first model; 0 to 1.
        margin_usd: What a switch of models must gain beyond the prompt cache that it loses.
        start: Position in the route at which steps of a class begin while nothing is learnt, such
            as `{"plan": 1}`; classes that are not named begin at 0.

    Raises:
        AgentError: `agent_invalid`, when a number is out of range or a class is not known.
    """

    explore: float = 0.03
    accept: float = 0.5
    cost_weight: float = 10.0
    gain_min: float = 0.05
    margin_usd: float = 0.0002
    start: Mapping[StepClass, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Checks every number."""
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"RoutePolicy.{name} is a number, not {type(value).__name__}")
            if not (math.isfinite(value) and 0 <= value <= most):
                raise AgentError(
                    "agent_invalid", f"RoutePolicy.{name} is {value}, must be 0 to {most:g}"
                )
        object.__setattr__(self, "start", dict(self.start))
        for name, tier in self.start.items():
            check_step_class(name, "RoutePolicy.start")
            if type(tier) is not int or tier < 0:
                raise AgentError(
                    "agent_invalid",
                    f'RoutePolicy.start["{name}"] is {tier!r}, must be a position from 0',
                )

    def spec(self) -> dict[str, Any]:
        """The policy as the engine takes it: plain data."""
        spec = {each.name: getattr(self, each.name) for each in fields(self)}
        return spec | {"start": dict(sorted(self.start.items()))}


def check_step_class(name: object, whose: str) -> None:
    """Refuses a class of steps that there is not."""
    if name not in STEP_CLASSES:
        raise AgentError(
            "agent_invalid",
            f"{whose} names the step class {name!r}, allowed are {', '.join(STEP_CLASSES)}",
        )
