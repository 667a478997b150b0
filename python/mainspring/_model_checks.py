"""Checks of what a model is described by, one value at a time.

Invariant: each says the model, the value seen and what is allowed.
"""

import math
from typing import Protocol

from mainspring.errors import AgentError


class Named(Protocol):
    """What has a name for messages, and attributes to be checked."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


def check_base_url(name: str, base_url: str) -> None:
    """Refuses what is no address of an API; a secret in it is not repeated."""
    if not isinstance(base_url, str):
        raise TypeError(f"base_url is text, not {type(base_url).__name__}")
    scheme, slashes, rest = base_url.partition("://")
    host = rest.partition("/")[0]
    if "@" in host:
        # The address is not repeated: it holds a secret.
        raise AgentError(
            "agent_invalid",
            f'base_url of model "{name}" holds a user name or password, which it must not',
            "give the key with api_key= or api_key_env=",
        )
    if scheme not in ("http", "https") or not slashes or not host or set(base_url) & set("?# "):
        raise AgentError(
            "agent_invalid",
            f'base_url of model "{name}" is "{base_url}", '
            "must be http:// or https:// with a host, without query",
            "it ends where the API begins, such as http://127.0.0.1:8000/v1",
        )


def check_count(model: Named, attribute: str) -> None:
    """Refuses what is no whole number from 1; None is allowed."""
    value = getattr(model, attribute)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f'{attribute} of model "{model.name}" is a whole number, not {type(value).__name__}'
        )
    if value < 1:
        raise AgentError(
            "agent_invalid",
            f'{attribute} of model "{model.name}" is {value}, at least 1 is needed',
            "leave it out where there is no limit",
        )


def check_choice(model: Named, attribute: str, allowed: tuple[str, ...]) -> None:
    """Refuses what is not among what is allowed; None is allowed."""
    value = getattr(model, attribute)
    if value is not None and value not in allowed:
        raise AgentError(
            "agent_invalid",
            f'{attribute} of model "{model.name}" is {value!r}, allowed are {", ".join(allowed)}',
        )


def check_number(model: Named, attribute: str, *, above: float | None = None) -> None:
    """Refuses what is no number, or out of its bounds; None is allowed."""
    value = getattr(model, attribute)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f'{attribute} of model "{model.name}" is a number, not {type(value).__name__}'
        )
    if not math.isfinite(value) or (value <= above if above is not None else value < 0):
        bound = "must be above 0 and finite" if above is not None else "must be 0 or more"
        raise AgentError(
            "agent_invalid", f'{attribute} of model "{model.name}" is {value}, {bound}'
        )
