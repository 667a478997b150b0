"""The work that is measured: one table, the same for every client.

Owns sizes and their names. Invariant: a client learns its work from here alone, so all of them do
the same. A `Work` is plain data and passes to a child process as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["cpu", "latency", "parked"]

LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work.

    `concurrency` 0 starts all sessions at once. `result_chars` 0 lets the tool return its
    argument; otherwise it returns a text of that length, different for each call.
    `warm_sessions` run first and are not measured.
    """

    name: str
    row: str
    kind: Kind
    sessions: int
    concurrency: int
    warm_sessions: int
    tool_turns: int = 0
    tools_per_turn: int = 1
    result_chars: int = 0
    delay_ms: int = 0
    stream: bool = False
    answer_chars: int = 100
    answer_tokens: int = 1
    token_gap_ms: int = 0

    @property
    def turns(self) -> int:
        """Model turns of one session: those that call tools, and the final answer."""
        return self.tool_turns + 1

    @property
    def tool_name(self) -> str:
        """The tool that the model calls."""
        return "page" if self.result_chars else "echo"

    def to_json(self) -> dict[str, Any]:
        """The fields, for a child process."""
        return asdict(self)

    def quick(self) -> Work:
        """The same work, small enough for a smoke run."""
        return replace(
            self,
            sessions=min(self.sessions, 12),
            concurrency=min(self.concurrency, 4),
            warm_sessions=2,
            tool_turns=min(self.tool_turns, 3),
            token_gap_ms=min(self.token_gap_ms, 1),
            delay_ms=self.delay_ms if self.kind == "parked" else min(self.delay_ms, 20),
        )


WORKS = (
    Work("turns", "W1", "cpu", 500, 64, 64, tool_turns=3, tools_per_turn=3),
    Work("latency", "W2", "latency", 2000, 0, 64, tool_turns=3, tools_per_turn=3, delay_ms=200),
    Work("parked", "W3", "parked", 5000, 0, 16, delay_ms=600_000),
    Work("stream", "W5", "cpu", 500, 64, 64, stream=True, answer_chars=800, answer_tokens=200),
    Work(
        "stream_paced",
        "W5p",
        "cpu",
        64,
        64,
        64,
        stream=True,
        answer_chars=800,
        answer_tokens=200,
        token_gap_ms=10,
    ),
    Work("history", "W6", "cpu", 100, 16, 16, tool_turns=19, result_chars=2000),
)

DISK = Work("disk", "disk", "cpu", 1, 1, 0, tool_turns=200, result_chars=2000)


def work_named(name: str) -> Work:
    """The work of that name.

    Raises:
        ValueError: there is none.
    """
    for work in WORKS:
        if work.name == name:
            return work
    names = ", ".join(work.name for work in WORKS)
    raise ValueError(f'work "{name}" does not exist, allowed are {names}')
