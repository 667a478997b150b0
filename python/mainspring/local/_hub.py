"""Fetches a model file from a URL, going on where an earlier download stopped.

Invariant: the partial file only ever holds bytes that the hub sent for its own offset, so a
download cut at any byte can go on; whether they are the right bytes is the caller's check.
"""

import http
import http.client
import os
import queue
import re
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from mainspring.local._cache import CHUNK_BYTES
from mainspring.local._catalog import HubSource, ModelEntry
from mainspring.local._limits import ProgressCallback, PullLimits, SourceFailed

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def fetch_from_hub(
    entry: ModelEntry,
    source: HubSource,
    *,
    partial: Path,
    progress: ProgressCallback,
    limits: PullLimits,
) -> None:
    """Downloads until the partial file has the size of the entry.

    Raises:
        SourceFailed: The hub cannot be reached, refuses, or was cut too often.
    """
    for _ in range(limits.hub_attempt_count_max):
        have_bytes = _usable_bytes(partial, entry.size_bytes)
        if have_bytes == entry.size_bytes:
            return
        response = _open(source.url, have_bytes=have_bytes, limits=limits)
        with response:
            start = _start_offset(response, have_bytes=have_bytes, size_bytes=entry.size_bytes)
            _receive(response, entry, source, partial=partial, start=start, progress=progress)
    have_bytes = _usable_bytes(partial, entry.size_bytes)
    if have_bytes < entry.size_bytes:
        raise SourceFailed(
            f"the connection was cut {limits.hub_attempt_count_max} times, "
            f"{have_bytes} of {entry.size_bytes} bytes came"
        )


def _usable_bytes(partial: Path, size_bytes: int) -> int:
    if not partial.is_file():
        return 0
    have_bytes = partial.stat().st_size
    if have_bytes > size_bytes:
        partial.unlink()
        return 0
    return have_bytes


def _open(url: str, *, have_bytes: int, limits: PullLimits) -> http.client.HTTPResponse:
    # A thread, because no socket option bounds a name lookup, and a host with eight silent
    # addresses would take eight connect time-outs: the deadline has to lie around all of it.
    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            answer = _request(url, have_bytes=have_bytes, stall_s_max=limits.stall_s_max)
        except (OSError, http.client.HTTPException) as error:
            answers.put(error)
            return
        answers.put(answer)
        if given_up.is_set():
            answer.close()

    threading.Thread(target=ask, name="mainspring-hub", daemon=True).start()
    try:
        answer = answers.get(timeout=limits.open_s_max)
    except queue.Empty:
        given_up.set()
        raise SourceFailed(f"no answer in {limits.open_s_max:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
        raise SourceFailed(f"it answered HTTP {answer.code}")
    if isinstance(answer, Exception):
        reason = getattr(answer, "reason", answer)
        raise SourceFailed(f"it cannot be reached: {reason}")
    return answer


def _request(url: str, *, have_bytes: int, stall_s_max: float) -> http.client.HTTPResponse:
    # A compressed answer would make offsets meaningless.
    headers = {"User-Agent": "mainspring", "Accept-Encoding": "identity"}
    if have_bytes:
        headers["Range"] = f"bytes={have_bytes}-"
    request = urllib.request.Request(url, headers=headers)
    # `create_default_context` reads the system's trust store and SSL_CERT_FILE, SSL_CERT_DIR.
    context = ssl.create_default_context()
    if own_roots := os.environ.get("PIP_CERT"):
        context.load_verify_locations(own_roots)
    response = urllib.request.urlopen(request, timeout=stall_s_max, context=context)
    if not isinstance(response, http.client.HTTPResponse):
        raise OSError(f'not an http address: "{url}"')
    return response


def _start_offset(response: http.client.HTTPResponse, *, have_bytes: int, size_bytes: int) -> int:
    """Returns where the body belongs; refuses a file of another size before it is downloaded."""
    start, total = 0, response.headers.get("Content-Length")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have_bytes:
            raise SourceFailed("it answered with another byte range than the one asked for")
        start, total = have_bytes, match[2]
    if total is not None and int(total) != size_bytes:
        raise SourceFailed(f"its file has {total} bytes, expected {size_bytes}")
    return start


def _receive(
    response: http.client.HTTPResponse,
    entry: ModelEntry,
    source: HubSource,
    *,
    partial: Path,
    start: int,
    progress: ProgressCallback,
) -> None:
    done_bytes = start
    with partial.open("ab") as file:
        file.truncate(start)
        while done_bytes < entry.size_bytes:
            try:
                chunk = response.read1(min(CHUNK_BYTES, entry.size_bytes - done_bytes))
            except (OSError, http.client.HTTPException):
                return  # Cut or stalled: what came is kept, and the next attempt goes on there.
            if not chunk:
                return
            file.write(chunk)
            done_bytes += len(chunk)
            progress(done_bytes, entry.size_bytes, source.label)
