"""An OpenAI-like upstream that costs next to nothing: `python -m tests.bench.mock PORT`. One thread, epoll.

The model's name says how it behaves: `mock-n200-t100000-d20000` streams 200 chunks, the first after 100,000 us, then
one every 20,000 us; each leaves in a write of its own, as engines do. `mock` alone answers with usage at once.
"""

from __future__ import annotations

import heapq
import re
import select
import socket
import sys
import time
from collections import deque

_BEHAVIOUR = re.compile(rb"-n(\d+)-t(\d+)-d(\d+)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_TEXT = "Paris is the capital of France, and has been so for about a thousand years with short breaks. " * 2
_WHOLE = (
    '{"id":"chatcmpl-mock","object":"chat.completion","created":1760000000,"model":"mock","choices":[{"index":0,'
    f'"message":{{"role":"assistant","content":"{_TEXT}"}},"finish_reason":"stop","logprobs":null}}],'
    '"usage":{"prompt_tokens":110,"completion_tokens":40,"total_tokens":150},"system_fingerprint":"fp_mock"}'
).encode()
ANSWER = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE)) + _WHOLE
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = (
    '{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1760000000,"model":"mock","service_tier":"default"'
    ',"system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]'
    ',"usage":%s,"obfuscation":"0123456789abcdefghij0123456789abcdefghij0123456"}'
)


def _frame(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


_FIRST = _frame(_CHUNK % ('{"role":"assistant","content":""}', "null", "null"))
_WORDS = [_frame(_CHUNK % (f'{{"content":" word{n:03d}"}}', "null", "null")) for n in range(64)]
_FINISH = _frame(_CHUNK % ("{}", '"stop"', "null"))
_USAGE = _frame(
    '{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1760000000,"model":"mock","choices":[],'
    '"usage":{"prompt_tokens":110,"completion_tokens":200,"total_tokens":310}}'
)
_END = _frame("[DONE]") + b"0\r\n\r\n"


class _Peer:
    __slots__ = ("delay_s", "held", "left", "received", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.left = -1  # chunks to send; -1: not streaming
        self.delay_s = 0.0
        self.unsent: deque[bytes] = deque()


class Mock:
    def __init__(self, port: int) -> None:
        self._poll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._peers: dict[int, _Peer] = {}
        self._due: list[tuple[float, int, _Peer]] = []

    def serve(self) -> None:
        """Until killed."""
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1
            for fd, event in self._poll.poll(wait):
                if fd == self._listener.fileno():
                    self._accept()
                elif (peer := self._peers.get(fd)) is not None:
                    if event & (select.EPOLLHUP | select.EPOLLERR):
                        self._drop(peer)
                    elif event & select.EPOLLOUT:
                        self._resume(peer)
                    else:
                        self._read(peer)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                due, fd, peer = heapq.heappop(self._due)
                if self._peers.get(fd) is peer:
                    self._stream(peer, due)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock.fileno()] = _Peer(sock)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.sock.fileno()]
        peer.sock.close()

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(1 << 18)
        except BlockingIOError:
            return None
        except ConnectionError:
            return self._drop(peer)
        if not data:
            return self._drop(peer)
        peer.received += data
        end = peer.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(peer.received, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(peer.received) < whole:
            return None
        request, peer.received = peer.received[:whole], peer.received[whole:]
        if b'"stream":true' not in request:
            self._send(peer, ANSWER)
            return None
        said = _BEHAVIOUR.search(request)
        peer.left, first_us, delay_us = (int(n) for n in said.groups()) if said else (20, 0, 0)
        peer.delay_s = delay_us / 1e6
        self._send(peer, _HEAD)
        now = time.monotonic()
        if first_us:
            heapq.heappush(self._due, (now + first_us / 1e6, peer.sock.fileno(), peer))
        else:
            self._stream(peer, now)
        return None

    def _stream(self, peer: _Peer, due: float) -> None:
        while peer.left > 0 and not peer.unsent:
            peer.left -= 1
            self._send(peer, _FIRST if peer.left % 64 == 63 and peer.left > 128 else _WORDS[peer.left % 64])
            if peer.delay_s and peer.left:
                heapq.heappush(self._due, (due + peer.delay_s, peer.sock.fileno(), peer))
                return
        if peer.left == 0 and not peer.unsent:
            peer.left = -1
            self._send(peer, _FINISH + _USAGE + _END)

    def _send(self, peer: _Peer, data: bytes) -> None:
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            return
        if sent < len(data):
            peer.unsent.append(data[sent:])
            self._poll.modify(peer.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _resume(self, peer: _Peer) -> None:
        rest, peer.unsent = b"".join(peer.unsent), deque()
        self._poll.modify(peer.sock.fileno(), select.EPOLLIN)
        self._send(peer, rest)
        if not peer.unsent and peer.left >= 0:
            self._stream(peer, time.monotonic())


if __name__ == "__main__":
    Mock(int(sys.argv[1])).serve()
