"""Health, readiness and metrics, for whoever keeps the process alive. None of them calls a model or shows a secret."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import HttpMethod, Response, get, route
from litestar.handlers import HTTPRouteHandler

from gateway.observe.metrics import CONTENT_TYPE, METRICS


def health_routes(faults: Callable[[], Awaitable[list[str]]]) -> list[HTTPRouteHandler]:
    """faults: what keeps the process from taking requests, empty when nothing does."""

    @route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], sync_to_thread=False)
    def root() -> dict[str, str]:
        # Claude Code asks HEAD / before anything else; any 200 will do.
        return {"service": "farebox"}

    @get(["/health/liveness", "/health/liveliness"], sync_to_thread=False)
    def liveness() -> dict[str, str]:
        return {"status": "alive"}

    @get(["/health/readiness", "/health/startup"])
    async def readiness() -> Response[dict[str, Any]]:
        found = await faults()
        return Response(
            {"status": "unavailable" if found else "ready", "faults": found}, status_code=503 if found else 200
        )

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(METRICS.exposition(), media_type=CONTENT_TYPE)

    return [root, liveness, readiness, metrics]
