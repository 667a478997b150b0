"""HTTP/1.1 as a model server needs it: requests in, whole or chunked answers out.

Invariant: nothing of a request is buffered past `ServerLimits`; a request that breaks a limit or
the protocol gets an error answer and its connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from mainspring.testing._checks import Refused


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of the server.

    Args:
        head_bytes_max: Request line and headers together; past it, 431.
        body_bytes_max: A request's body; past it, 413.
        requests_kept_max: Recorded requests; past it, the oldest are forgotten.
        attempts_kept_max: Requests whose attempts are counted; past it, the oldest start again.
    """

    head_bytes_max: int = 65_536
    body_bytes_max: int = 67_108_864
    requests_kept_max: int = 10_000
    attempts_kept_max: int = 100_000


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request: method, path without its query, headers by lower-case name, whole body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: ServerLimits
) -> HttpRequest | None:
    """Reads the next request of a connection.

    Returns:
        None when the client has closed the connection.

    Raises:
        Refused: What came is no HTTP, or breaks a limit; the connection cannot go on.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise Refused(431, f"request head is longer than {limits.head_bytes_max} bytes") from None
    lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise Refused(400, "request line is no HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Refused(400, "a header line has no name")
        headers[name.lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        body = await _read_body(reader, headers, limits)
    except asyncio.LimitOverrunError:
        raise Refused(400, "a chunk of the request body has no length") from None
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (
        parts[2] != "HTTP/1.0" or "keep-alive" in connection
    )
    return HttpRequest(parts[0], parts[1].partition("?")[0], headers, body, keep_alive)


def head_bytes(
    status: int, headers: Mapping[str, str], *, content_type: str, body_bytes: int | None
) -> bytes:
    """The status line and headers of an answer; chunked if its length is None."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}", f"content-type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body_bytes is None:
        lines += ["cache-control: no-cache", "transfer-encoding: chunked"]
    else:
        lines.append(f"content-length: {body_bytes}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(parts: Iterable[bytes], *, last: bool) -> bytes:
    """Puts each part into one chunk, and the closing chunk behind the last."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return framed + (b"0\r\n\r\n" if last else b"")


async def _read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str], limits: ServerLimits
) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _read_chunks(reader, limits)
    length = _number(headers.get("content-length", "0"), base=10)
    _check_length(length, limits)
    return await reader.readexactly(length)


async def _read_chunks(reader: asyncio.StreamReader, limits: ServerLimits) -> bytes:
    body = bytearray()
    while True:
        line = (await reader.readuntil(b"\r\n")).decode("latin-1")
        size = _number(line.partition(";")[0].strip(), base=16)
        _check_length(len(body) + size, limits)
        if size == 0:
            break
        body += (await reader.readexactly(size + 2))[:size]
    # Trailers, up to the empty line that ends them.
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return bytes(body)


def _number(text: str, *, base: int) -> int:
    # `int` alone would take signs and underscores.
    if text.isascii() and text.isalnum():
        try:
            return int(text, base)
        except ValueError:
            pass
    raise Refused(400, f"body length {text[:20]!r} is no number")


def _check_length(length: int, limits: ServerLimits) -> None:
    if length > limits.body_bytes_max:
        raise Refused(
            413, f"request body has {length} bytes, allowed {limits.body_bytes_max} bytes"
        )
