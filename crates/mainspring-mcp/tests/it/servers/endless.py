"""A server whose list of tools has no end."""

from __future__ import annotations

from typing import Any

from mcp_stdio import Server


class Endless(Server):
    """Always has one more page."""

    def list_tools(self, cursor: str | None) -> dict[str, Any]:
        """One more page."""
        number = int(cursor or 0)
        return {"tools": [self.describe(f"tool{number}")], "nextCursor": str(number + 1)}


Endless({}).run()
