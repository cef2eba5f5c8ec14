"""Is the process alive, may it get requests, and what has it counted: for load balancers, orchestrators, Prometheus.

A plain ASGI callable: probes come every few seconds, and must not be what loads the front office."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.observe.metrics import CONTENT_TYPE, METRICS

Faults = Callable[[], Awaitable[list[str]]]
Said = tuple[int, str, bytes]

_ALIVE: Final[Said] = (200, "application/json", b'{"status":"alive"}')
_ROOT: Final[Said] = (
    200,
    "text/plain; charset=utf-8",
    b"Farebox. GET /v1/models with a key lists what can be asked for.\n",
)
# The second spelling is LiteLLM's, which people's probes have in them.
_LIVENESS: Final = ("/health/liveness", "/health/liveliness", "/health")


class Health:
    """faults: what keeps this process from taking requests; empty when it is ready. Asked at each readiness check."""

    def __init__(self, faults: Faults, started: Callable[[], bool]) -> None:
        """started: whether everything has been built once; true from then on."""
        self._faults = faults
        self._started = started
        self._answers: Mapping[str, Callable[[], Awaitable[Said]]] = {
            **dict.fromkeys(_LIVENESS, self._liveness),
            "/health/readiness": self._readiness,
            "/health/startup": self._startup,
            "/metrics": self._metrics,
            "/": self._root,
        }

    def knows(self, scope: Mapping[str, Any]) -> bool:
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._answers

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """ASGI, for what it knows."""
        status, media_type, body = await self._answers[scope["path"]]()
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _liveness(self) -> Said:
        """The event loop turns. Says nothing of databases: a restart would not mend those."""
        return _ALIVE

    async def _startup(self) -> Said:
        """For orchestrators that leave a slow start alone: once it has been built, others say how it is."""
        if not self._started():
            return 503, "application/json", b'{"status":"starting"}'
        return 200, "application/json", b'{"status":"started"}'

    async def _readiness(self) -> Said:
        found = await self._faults()
        body = {"status": "not ready" if found else "ready", "faults": found}
        return 503 if found else 200, "application/json", msgspec.json.encode(body)

    async def _metrics(self) -> Said:
        return 200, CONTENT_TYPE, METRICS.exposition()

    async def _root(self) -> Said:
        """Some clients ask for it, to see whether anybody is there before they send a key."""
        return _ROOT
