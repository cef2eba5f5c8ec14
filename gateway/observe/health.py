"""Is the process alive, may it get requests, and what has it counted: for load balancers, orchestrators, Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import HttpMethod, MediaType, Response, get, route
from litestar.handlers import HTTPRouteHandler

from gateway.observe.metrics import CONTENT_TYPE, METRICS

Faults = Callable[[], Awaitable[list[str]]]


def health_routes(faults: Faults) -> list[HTTPRouteHandler]:
    """faults: what keeps this process from taking requests; empty when it is ready. Asked at each readiness check."""

    # The second spelling is LiteLLM's, which people's probes have in them.
    @get(["/health/liveness", "/health/liveliness", "/health"], sync_to_thread=False)
    def liveness() -> dict[str, str]:
        """The event loop turns. Says nothing of databases: a restart would not mend those."""
        return {"status": "alive"}

    @get("/health/readiness")
    async def readiness() -> Response[dict[str, Any]]:
        found = await faults()
        body = {"status": "not ready" if found else "ready", "faults": found}
        return Response(body, status_code=503 if found else 200, headers={"cache-control": "no-store"})

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(METRICS.exposition(), media_type=CONTENT_TYPE)

    @route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], media_type=MediaType.TEXT, sync_to_thread=False)
    def root() -> str:
        """Some clients ask for it, to see whether anybody is there before they send a key."""
        return "Farebox. GET /v1/models with a key lists what can be asked for.\n"

    return [liveness, readiness, metrics, root]
