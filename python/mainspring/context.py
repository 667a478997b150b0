"""What a tool may know about the call it serves.

Invariant: a `Context` is plain data, fixed when the call starts, and the same on every attempt at
the call except for `attempt` and `deadline_s`.
"""

from dataclasses import dataclass

__all__ = ["Context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The call that a tool serves; given to every parameter annotated with this class.

    Such a parameter is no part of the tool's schema: the model neither sees nor fills it.

    Args:
        session: Id of the session.
        tool: Name of the tool, as the model called it.
        call_id: Id of the call inside the conversation.
        effect_id: Stable key of the call's effect: equal for every attempt at the call, before and
            after a crash, and for no other call.
        attempt: Which attempt this is, from 1.
        deadline_s: Seconds that were left for the attempt when it started.
    """

    session: str
    tool: str
    call_id: str
    effect_id: str
    attempt: int = 1
    deadline_s: float = 60.0

    def idempotency_headers(self) -> dict[str, str]:
        """HTTP headers that let a server recognise a repeated call.

        Returns:
            `{"Idempotency-Key": effect_id}`, a new dict.

        Source:
            IETF draft-ietf-httpapi-idempotency-key-header-07, section 2.
        """
        return {"Idempotency-Key": self.effect_id}
