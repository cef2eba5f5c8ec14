"""A load that costs little itself: `python -m tests.bench.load PORT --key K ...`, one JSON line at the end.

Closed loop (each connection asks again when its answer is whole), or open loop with --rate, where latency counts from
the time a request was due. An answer without usage, or a stream without its end, is an error."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

_PROMPT = "lorem ipsum dolor sit amet " * 15
_USAGE = {"chat": b'"total_tokens"', "messages": b'"output_tokens"'}
_LAST = {"chat": b"data: [DONE]", "messages": b"event: message_stop"}
_PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages"}


def request_of(port: int, key: str, model: str, dialect: str, stream: bool) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "temperature": 0.7,
        "max_tokens": 256,
    }
    if stream:
        body["stream"] = True
    if stream and dialect == "chat":
        body["stream_options"] = {"include_usage": True}
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {_PATHS[dialect]} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Tally:
    def __init__(self, want: int, until: float) -> None:
        self.want = want
        self.until = until
        self.asked = 0
        self.errors = 0
        self.chunks = 0
        self.latency: list[float] = []
        self.first: list[float] = []
        self.problem = ""

    def may_ask(self) -> bool:
        if self.asked >= self.want or time.perf_counter() >= self.until:
            return False
        self.asked += 1
        return True

    def as_dict(self, seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            "answers": len(self.latency),
            "errors": self.errors,
            "seconds": seconds,
            "per_s": len(self.latency) / seconds,
            "chunks": self.chunks,
            "chunks_per_s": self.chunks / seconds,
            "problem": self.problem,
        }
        for name, values in (("latency_ms", self.latency), ("first_ms", self.first)):
            values.sort()
            for p in (50, 99):
                found[f"{name}_p{p}"] = values[min(len(values) - 1, len(values) * p // 100)] * 1000 if values else None
        return found


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, request: bytes, dialect: str, stream: bool, tally: Tally, open_loop: bool) -> None:
        self._request = request
        self._usage = _USAGE[dialect]
        self._last = _LAST[dialect]
        self._stream = stream
        self._tally = tally
        self._open_loop = open_loop
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._saw_first = False
        self._saw_usage = False
        self._tail = b""
        self._got = b""
        self.done = asyncio.get_running_loop().create_future()
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, began: float | None = None) -> None:
        if not self._tally.may_ask():
            if not self.done.done():
                self.done.set_result(None)
            return
        assert self._transport is not None
        self.busy, self._saw_first, self._saw_usage, self._tail, self._got = True, False, False, b"", b""
        self._began = time.perf_counter() if began is None else began
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._stream:
            self._tally.chunks += data.count(b"data: ")
            if not self._saw_first and b"data: " in data:
                self._saw_first = True
                self._tally.first.append(time.perf_counter() - self._began)
            joined = self._tail + data
            self._saw_usage = self._saw_usage or self._usage in joined
            self._tail = joined[-600:]
            if joined.endswith(b"0\r\n\r\n"):
                self._whole(self._saw_usage and self._last in self._tail, joined)
            elif not self._saw_first and joined.startswith(b"HTTP/1.1 ") and not joined.startswith(b"HTTP/1.1 200"):
                self._whole(False, joined)
            return
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._got.find(b"content-length: ", 0, end)
        length = int(self._got[at + 16 : self._got.index(b"\r", at)])
        if len(self._got) >= end + 4 + length:
            self._whole(self._got.startswith(b"HTTP/1.1 200") and self._usage in self._got, self._got)

    def _whole(self, good: bool, data: bytes) -> None:
        self.busy = False
        if good:
            self._tally.latency.append(time.perf_counter() - self._began)
        else:
            self._tally.errors += 1
            self._tally.problem = self._tally.problem or data[:300].decode("latin-1")
        if not self._open_loop:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._tally.errors += 1
            self._tally.problem = self._tally.problem or f"connection lost: {exc}"
        if not self.done.done():
            self.done.set_result(None)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    request = request_of(args.port, args.key, args.model, args.dialect, args.stream)
    tally = Tally(args.count, time.perf_counter() + args.seconds)
    clients = []
    for _ in range(args.connections):
        _, client = await loop.create_connection(
            lambda: Client(request, args.dialect, args.stream, tally, bool(args.rate)), "127.0.0.1", args.port
        )
        clients.append(client)
    began = time.perf_counter()
    if args.rate:
        await _open_loop(clients, args.rate, tally, began)
    else:
        for client in clients:
            client.ask()
        await asyncio.gather(*(client.done for client in clients))
    return tally.as_dict(time.perf_counter() - began)


async def _open_loop(clients: list[Client], rate: float, tally: Tally, began: float) -> None:
    number = 0
    while tally.asked < tally.want and time.perf_counter() < tally.until:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        free = next((client for client in clients if not client.busy), None)
        if free is None:
            tally.errors += 1
            tally.problem = "no free connection at this rate"
        else:
            free.ask(due)
        number += 1
    while any(client.busy for client in clients) and time.perf_counter() < tally.until + 5:
        await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--key", default="fbx-bench")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--dialect", default="chat", choices=list(_PATHS))
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--stream", action="store_true")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
