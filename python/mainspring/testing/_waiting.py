"""Waiting for `threading.Event` inside an event loop, for many connections at once.

Invariant: one thread per distinct event that somebody waits for, and none after `close`.
"""

from __future__ import annotations

import asyncio
import threading

# How long `close` may have to wait for a thread; nothing else depends on it.
_LOOK_S = 0.05


class EventWaiters:
    """Wakes the tasks of one event loop when their events are set."""

    def __init__(self) -> None:
        self._futures: dict[threading.Event, asyncio.Future[None]] = {}
        self._threads: dict[threading.Event, threading.Thread] = {}
        self._closed = threading.Event()

    async def wait(self, event: threading.Event) -> None:
        """Returns once the event is set."""
        if event.is_set():
            return
        future = self._futures.get(event)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._futures[event] = loop.create_future()
            self._threads[event] = threading.Thread(
                target=self._watch, args=(event, loop), name="scripted-model-event", daemon=True
            )
            self._threads[event].start()
        # One waiter that is cancelled must not take the others with it.
        await asyncio.shield(future)

    def close(self) -> None:
        """Ends the threads; call it in the loop's thread, when nobody waits any more."""
        self._closed.set()
        for thread in self._threads.values():
            thread.join()
        self._threads.clear()
        self._futures.clear()
        self._closed.clear()

    def _watch(self, event: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        while not event.wait(_LOOK_S):
            if self._closed.is_set():
                return
        # The loop still runs: `close` joins this thread from inside it.
        loop.call_soon_threadsafe(self._wake, event)

    def _wake(self, event: threading.Event) -> None:
        # An event that is cleared and waited for again starts anew.
        future = self._futures.pop(event, None)
        self._threads.pop(event, None)
        if future is not None and not future.done():
            future.set_result(None)
