"""The contract between an adapter and the network: one request out, one status, headers and byte chunks back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Final, Protocol

from msgspec import Struct

TRACE_HEADERS: Final[ContextVar[tuple[tuple[str, str], ...]]] = ContextVar("trace headers", default=())
"""What a call carries of the trace that it is part of (W3C Trace Context): set by whoever keeps one."""


class Timeouts(Struct, frozen=True):
    """Seconds. first_byte: from the request written to the response head. between_bytes: silence inside a body."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    between_bytes_s: float = 60.0
    total_s: float = 900.0


class HttpRequest(Struct, frozen=True):
    """headers: names in lower case, no host, content-length or transfer-encoding (the transport writes those)."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class HttpResponse(Protocol):
    status: int
    headers: Mapping[str, str]
    """Lower-case names; a repeated header keeps its values joined by ", "."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, decoded from chunked coding and content coding. Backpressure reaches the socket.

        Raises: TimedOut("between_bytes" | "total"), Interrupted when the peer cuts the body short."""

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises: Broken when it is longer than the limit; as `chunks` else."""

    async def aclose(self) -> None:
        """Give the connection back, or cut it when the body was not read to its end. Idempotent."""


class Transport(Protocol):
    async def send(self, request: HttpRequest, timeouts: Timeouts) -> HttpResponse:
        """Write the request, wait for the response head. Never follows a redirect.

        A connection that a keep-alive peer closed before answering is retried once on a fresh one.
        Raises: Unreachable, TimedOut, Broken."""

    async def aclose(self) -> None: ...
