"""The baseline: the agent loop that a careful person writes by hand, on asyncio and aiohttp.

Owns nothing but the loop. Invariant: it does what Mainspring's client does (same requests, same
tools, parallel tools in parallel) and no more: no journal, no limits, no retries, no checks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from _child import Setup, Texts, main

INSTRUCTIONS = "You answer."
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}


class AsyncioClient:
    """The loop, for one work."""

    def __init__(self, http: aiohttp.ClientSession, setup: Setup) -> None:
        texts = Texts(setup.work.result_chars)

        async def echo(text: str) -> str:
            return text

        async def page(text: str) -> str:
            return texts.next()

        self._http = http
        self._stream = setup.work.stream
        self._tools = {"page": page} if setup.work.result_chars else {"echo": echo}
        self._tool_schemas = [schema(name) for name in self._tools]

    async def session(self, url: str) -> str:
        """Runs one session to its final answer."""
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": "go"},
        ]
        while True:
            message = await self._ask(url, messages)
            messages.append(message)
            calls = message.get("tool_calls")
            if not calls:
                content: str = message["content"]
                return content
            messages.extend(await asyncio.gather(*map(self._call, calls)))

    async def _ask(self, url: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": "bench",
            "messages": messages,
            "tools": self._tool_schemas,
        }
        if self._stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        data = json.dumps(body).encode()
        async with self._http.post(f"{url}/chat/completions", data=data) as response:
            response.raise_for_status()
            if self._stream:
                return await joined(response)
            message: dict[str, Any] = json.loads(await response.read())["choices"][0]["message"]
            return message

    async def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        result = await self._tools[function["name"]](**json.loads(function["arguments"]))
        return {"role": "tool", "tool_call_id": call["id"], "content": result}


async def joined(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The message that a stream's pieces make; the streamed works call no tools."""
    pieces: list[str] = []
    async for line in response.content:
        if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
            continue
        for choice in json.loads(line[6:])["choices"]:
            piece = choice["delta"].get("content")
            if piece:
                pieces.append(piece)
    return {"role": "assistant", "content": "".join(pieces)}


def schema(name: str) -> dict[str, Any]:
    """A tool's definition as the model reads it."""
    parameters = {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    }
    function = {"name": name, "description": "Return the text.", "parameters": parameters}
    return {"type": "function", "function": function}


@asynccontextmanager
async def open_client(setup: Setup) -> AsyncIterator[AsyncioClient]:
    """The loop with one connection pool, without a limit, and no deadline."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=HEADERS,
    ) as http:
        yield AsyncioClient(http, setup)


if __name__ == "__main__":
    main(__file__, open_client)
