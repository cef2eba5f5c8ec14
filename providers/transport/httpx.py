"""The same contract over httpx, for networks that need what `http1.py` leaves out: proxies (HTTP_PROXY, SOCKS), HTTP/2.

It costs about twenty times the CPU a call, so it is chosen per endpoint, never by default.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

import httpx

from providers.errors import Broken, Interrupted, Phase, ProviderError, TimedOut, Unreachable
from providers.transport.base import HttpRequest, Timeouts
from providers.transport.http1 import target_of

T = TypeVar("T")


class HttpxTransport:
    """Belongs to one event loop; `aclose` ends every connection."""

    def __init__(self, *, max_connections: int = 512, idle_s: float = 60.0, proxy: str | None = None) -> None:
        """proxy: a URL; None leaves the choice to the environment's proxy variables, which httpx reads itself."""
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=None, keepalive_expiry=idle_s)
        self._client = httpx.AsyncClient(limits=limits, proxy=proxy, follow_redirects=False)

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> HttpxResponse:
        """See `providers.transport.base.Transport.send`."""
        target_of(request.url)  # the same URLs are refused as everywhere
        loop = asyncio.get_running_loop()
        total_by = loop.time() + timeouts.total_s
        headers = httpx.Headers([(name, value) for name, value in request.headers])
        headers.setdefault("accept-encoding", "identity")
        built = self._client.build_request(
            request.method,
            request.url,
            headers=headers,
            content=request.body,
            timeout=httpx.Timeout(None, connect=timeouts.connect_s, pool=timeouts.connect_s),
        )
        for attempt in (1, 2):
            try:
                sent = self._client.send(built, stream=True)
                response = await _within(sent, timeouts.first_byte_s, total_by, "first_byte")
            except httpx.RemoteProtocolError as error:
                # httpx does not tell a stale kept-alive connection from a fresh one; no answer had begun either way.
                if attempt == 1 and "without sending a response" in str(error):
                    continue
                raise Broken(f"malformed HTTP: {error}") from error
            except (httpx.ReadError, httpx.WriteError) as error:
                if attempt == 1:
                    continue
                raise Broken(f"the connection closed before an answer ({error})") from error
            except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                raise TimedOut(f"no connection within {timeouts.connect_s} s", "connect") from error
            except httpx.ConnectError as error:
                raise Unreachable(f"no connection: {error}") from error
            except httpx.TransportError as error:
                raise Broken(f"{type(error).__name__}: {error}") from error
            return HttpxResponse(response, timeouts, total_by)
        raise AssertionError("both attempts return or raise")

    async def aclose(self) -> None:
        await self._client.aclose()


class HttpxResponse:
    """See `providers.transport.base.HttpResponse`."""

    def __init__(self, response: httpx.Response, timeouts: Timeouts, total_by: float) -> None:
        self._response = response
        self._between_s = timeouts.between_bytes_s
        self._total_by = total_by
        self.status = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): response.headers[name] for name in response.headers}

    async def chunks(self) -> AsyncIterator[bytes]:
        received = self._response.aiter_bytes()
        while True:
            try:
                data = await _within(anext(received), self._between_s, self._total_by, "between_bytes")
            except StopAsyncIteration:
                return
            except ProviderError:
                await self.aclose()
                raise
            except httpx.StreamClosed as error:
                raise Interrupted("closed before its end", "closed") from error
            except (httpx.TransportError, httpx.DecodingError) as error:
                kind = "malformed" if isinstance(error, httpx.DecodingError) else "cut"
                await self.aclose()
                raise Interrupted(f"the connection was cut inside the answer ({error})", kind) from error
            yield data

    async def read(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                await self.aclose()
                raise Broken(f"a body of more than {limit_bytes} bytes", status=self.status, body=parts[0][:4096])
        return b"".join(parts)

    async def aclose(self) -> None:
        await self._response.aclose()


async def _within(work: Awaitable[T], limit_s: float, total_by: float, phase: Phase) -> T:
    """Raises: TimedOut(phase), or TimedOut("total") when that limit comes first."""
    left = total_by - asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(min(limit_s, left)):
            return await work
    except TimeoutError as error:
        spent: Phase = "total" if left <= limit_s else phase
        raise TimedOut(f"the provider was silent for too long ({spent})", spent) from error
