"""Listens to what engines publish of their prefix caches: ZeroMQ, numbered batches of msgpack, with replay.

One thread for each engine, so that no event is decoded on the request's way; what it hears is handed to the event loop
in order. A number that was missed is asked for again; where it is gone, or the engine has started anew, everything
that was known of it is forgotten. Source: vllm/distributed/kv_events.py and its example subscriber, read 2026-11."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from gateway.routing.blocks import Event

if TYPE_CHECKING:
    import zmq

log = structlog.get_logger(__name__)

POLL_MS: Final = 100
REPLAY_MS: Final = 2000
END: Final = -1
FORGET: Final[None] = None

Heard = Callable[[Sequence[Event] | None], None]
"""A batch, or FORGET. Called in the subscription's thread."""


class Subscription:
    """Begins at once. `close` from another thread ends it."""

    def __init__(self, events: str, replay: str | None, heard: Heard) -> None:
        """events, replay: ZeroMQ addresses to connect to. Raises: ValueError for one that is none; ImportError where
        pyzmq is not installed."""
        import zmq

        self._heard = heard
        self._decode = msgspec.msgpack.Decoder(list[Any]).decode
        self._next: int | None = None
        self._closing = threading.Event()
        self._context = zmq.Context()
        try:
            self._news = self._context.socket(zmq.SUB)
            self._news.subscribe(b"")
            self._monitor = self._news.get_monitor_socket(zmq.Event.DISCONNECTED)
            self._news.connect(events)
            self._replay_at = replay
            if replay is not None:
                self._asker().close()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ValueError(f"{events} and {replay or 'no replay'}: {error}") from error
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _asker(self) -> zmq.Socket[bytes]:
        """A fresh one each time, so that no answer to an older question is in its queue."""
        import zmq

        asker = self._context.socket(zmq.DEALER)
        asker.connect(str(self._replay_at))
        return asker

    def _run(self) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._news, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        self._catch_up(0)
        while not self._closing.is_set():
            ready = dict(poller.poll(POLL_MS))
            if self._monitor in ready:
                self._monitor.recv_multipart()
                self._forget()  # Who comes back may be another life of it, whose numbers begin anew.
            if self._news in ready:
                self._take(self._news.recv_multipart())

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 3 or len(frames[1]) != 8:
            return
        number = int.from_bytes(frames[1], "big", signed=True)
        if self._next is not None and number < self._next:
            return  # The replay has brought it already. Who starts anew was disconnected first.
        if self._next is None or number > self._next:
            self._catch_up(0 if self._next is None else self._next)
            if self._next is not None and number < self._next:
                return
            if self._next is not None and number > self._next:
                self._forget()
        self._next = number + 1
        self._tell(frames[2])

    def _catch_up(self, first: int) -> None:
        """What was published from there on, as far as it is kept. After it `_next` is the next number to come."""
        if self._replay_at is None:
            return
        asker = self._asker()
        try:
            asker.send_multipart([b"", first.to_bytes(8, "big")])
            while not self._closing.is_set() and asker.poll(REPLAY_MS):
                frames = asker.recv_multipart()
                number = int.from_bytes(frames[-2], "big", signed=True)
                if number == END:
                    return
                if self._next is not None and number > self._next:
                    self._forget()
                self._next = number + 1
                self._tell(frames[-1])
        finally:
            asker.close(linger=0)

    def _forget(self) -> None:
        self._next = None
        self._heard(FORGET)

    def _tell(self, payload: bytes) -> None:
        try:
            batch = self._decode(payload)
            events = batch[1]
        except (msgspec.DecodeError, IndexError):
            log.warning("an engine's cache event cannot be read; is it vLLM's format?")
            return
        self._heard(events)
