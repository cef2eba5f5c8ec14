"""What stands in the prefix cache, told to routers in vLLM's form: msgpack over ZeroMQ, numbered, with replay.

A subscriber that misses a number asks the replay socket from there on. All of it runs in one thread of the front's
own, so a slow subscriber holds nobody up: what it cannot take is dropped for it, and it sees the gap in the numbers.
Source: vLLM vllm/distributed/kv_events.py, read 2026-11.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque

import msgspec
import zmq
from msgspec import Struct

from local_backend.errors import ModelUnavailable
from local_backend.messages import AllBlocksCleared, KVEvent

KEPT_BATCHES = 10_000
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
POLL_MS = 50
HIGH_WATER = 100_000


class EventBatch(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What changed in one step. ts: unix seconds."""

    ts: float
    events: list[KVEvent]


class Publisher:
    """`publish` from anywhere; `close` once."""

    def __init__(self, endpoint: str, replay_endpoint: str | None = None, *, topic: str = "") -> None:
        """Raises ModelUnavailable if an address cannot be bound."""
        self._topic = topic.encode()
        self._batches: queue.SimpleQueue[list[KVEvent] | None] = queue.SimpleQueue()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT_BATCHES)
        self._number = 0
        self._context = zmq.Context()
        self._out = self._context.socket(zmq.PUB)
        self._out.set_hwm(HIGH_WATER)
        self._replay = self._context.socket(zmq.ROUTER) if replay_endpoint else None
        try:
            self._out.bind(endpoint)
            if self._replay is not None:
                self._replay.bind(str(replay_endpoint))
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ModelUnavailable(f"KV events cannot be published at {endpoint}, {replay_endpoint}: {error}") from None
        self._thread = threading.Thread(target=self._run, daemon=True, name="kv-events")
        self._thread.start()

    @property
    def endpoints(self) -> list[str]:
        """The addresses in use, with the ports that the system picked."""
        sockets = [self._out] if self._replay is None else [self._out, self._replay]
        return [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in sockets]

    def publish(self, events: list[KVEvent]) -> None:
        """One step's changes, in their order."""
        self._batches.put(events)

    def clear(self) -> None:
        """The cache is gone: the core was started again."""
        self._batches.put([AllBlocksCleared()])

    def close(self) -> None:
        """Send what waits, then end."""
        self._batches.put(None)
        self._thread.join()
        self._context.destroy(linger=200)

    def _run(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while True:
            try:
                events = self._batches.get(timeout=POLL_MS / 1000)
            except queue.Empty:
                events = []
            if events is None:
                return
            if events:
                payload = encoder.encode(EventBatch(time.time(), events))
                self._out.send_multipart((self._topic, self._number.to_bytes(8, "big"), payload))
                self._kept.append((self._number, payload))
                self._number += 1
            while self._replay is not None and self._replay.poll(0):
                self._serve_replay(self._replay)

    def _serve_replay(self, socket: zmq.Socket[bytes]) -> None:
        """A request is [peer, empty, first number]; the answer a message for each batch, then the end mark."""
        frames = socket.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != 8:
            return
        peer, first = frames[0], int.from_bytes(frames[2], "big")
        for number, payload in self._kept:
            if number >= first:
                socket.send_multipart((peer, b"", number.to_bytes(8, "big"), payload))
        socket.send_multipart((peer, b"", END_OF_REPLAY, b""))
