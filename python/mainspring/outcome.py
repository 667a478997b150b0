"""What became of a tool call whose process ended: what a `reconcile` function or a person says.

Invariant: an `Outcome` is plain data and never changes once made.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call; made by `done`, `not_done`, `failed` and `undecided`.

    Attributes:
        kind: Which of these.
        value: The call's result, if it was done; else the message, or None.
    """

    kind: Literal["done", "not_done", "failed", "undecided"]
    value: Any = None

    @classmethod
    def done(cls, result: Any = "done") -> Self:
        """It took effect; the model reads this result, as if the tool had returned it."""
        return cls("done", result)

    @classmethod
    def not_done(cls) -> Self:
        """It took no effect: the tool is run again, with the same `effect_id`."""
        return cls("not_done")

    @classmethod
    def failed(cls, message: str) -> Self:
        """It is given up: the model reads this message as the call's error."""
        return cls("failed", message)

    @classmethod
    def undecided(cls, message: str = "it could not be found out") -> Self:
        """It cannot be found out here: the call waits for a person, who is shown this message."""
        return cls("undecided", message)
