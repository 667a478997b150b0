"""A server of the 2026-07-28 revision alone: no handshake, each request says its version."""

from __future__ import annotations

from typing import Any

from mcp_stdio import Server, text

VERSION = "2026-07-28"


class Modern(Server):
    """Answers `server/discover` and refuses `initialize`."""

    def answer(self, method: str, params: dict[str, Any], call_id: Any) -> dict[str, Any]:
        """The body of the answer to one request."""
        if method == "server/discover":
            return {
                "result": {
                    "resultType": "complete",
                    "supportedVersions": [VERSION],
                    "capabilities": {"tools": {}},
                    "ttlMs": 0,
                    "cacheScope": "private",
                    "_meta": {
                        "io.modelcontextprotocol/serverInfo": {"name": "test", "version": "1"}
                    },
                }
            }
        if method == "initialize":
            return {"error": {"code": -32601, "message": "no such method"}}
        if params["_meta"]["io.modelcontextprotocol/protocolVersion"] != VERSION:
            return {"error": {"code": -32022, "message": "wrong version"}}
        body = super().answer(method, params, call_id)
        if "result" in body:
            body["result"]["resultType"] = "complete"
            if method == "tools/list":
                body["result"].update(ttlMs=0, cacheScope="private")
        return body


Modern({"hello": lambda i, p: text("hello from 2026")}).run()
