"""What happens when a conversation outgrows what a model can read.

Invariant: a `Compaction` is plain data and never changes; the engine applies it before each model
call. Reading starts at `Compaction`.
"""

from dataclasses import asdict, dataclass

from mainspring.errors import AgentError

__all__ = ["Compaction"]


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """How a conversation is kept within what its models can read.

    What is sent becomes shorter, weakest means first: old tool results are cut, a model's summary
    takes the place of the oldest messages, the oldest messages are left out, and at last the newest
    ones are cut. The conversation in the log stays whole.

    Args:
        enabled: Whether anything is done; without it, a conversation that is too long fails.
        target_percent: How full a model's window is after a compaction, in per cent, 10 to 90.
        result_bytes: Bytes that an old tool result keeps, head and tail together.
        summarise: Whether the cheapest model of the route is asked for a summary of what is left
            out; where it fails, the messages are left out without one.

    Raises:
        AgentError: `agent_invalid`, when a value is out of range.

    Example:
        >>> from mainspring import Compaction
        >>> Compaction(target_percent=50).spec()["target_percent"]
        50
    """

    enabled: bool = True
    target_percent: int = 60
    result_bytes: int = 1_000
    summarise: bool = True

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("enabled", "summarise"):
            if not isinstance(getattr(self, name), bool):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"Compaction.{name} is a bool, not {kind}")
        for name, low, high in (("target_percent", 10, 90), ("result_bytes", 0, 2**32 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Compaction.{name} is an int, not {type(value).__name__}")
            if not low <= value <= high:
                raise AgentError(
                    "agent_invalid", f"Compaction.{name} is {value}, must be {low} to {high}"
                )

    def spec(self) -> dict[str, int | bool]:
        """The values as the engine takes them: plain data."""
        return asdict(self)
