"""The engine as a Ray Serve application: replicas that come and go with the prompt tokens that wait in them.

    serve run deploy.ray.engines:build model=smollm2-135m-instruct min_replicas=2 max_replicas=8

Each replica starts `python -m local_backend` as a child, passes on what comes to it, and tells Serve's controller how
many prompt tokens the engine has not read yet. With `join` the engines also join a gateway by lease, and the gateway
sends each prompt where its beginning was read; Ray then only decides how many there are.
Source: docs.ray.io "Serve Autoscaling" (custom policy, record_autoscaling_stats), ray 2.60's own code, read 2026-11."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from typing import Any

import aiohttp
from pydantic import BaseModel
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.util import get_node_ip_address
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

QUEUED = "queued_tokens"
_METRIC = re.compile(r"^farebox:queued_tokens\{[^}]*\} (\S+)$", re.M)
# Those of one connection, not of what is said over it.
HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"})


class Wanted(BaseModel):
    """What `serve run` takes. tokens_per_replica: prompt tokens that may wait in each before another is started: about
    what one engine reads in a second. engine: further flags of `farebox engine serve`, as words. python: an interpreter
    that has `farebox[local]`, where Ray's own has not. join, join_as: gateways to join, and as which provider;
    the token comes from FAREBOX_ENGINE_REGISTER_TOKEN."""

    model_config = {"extra": "forbid"}

    model: str
    min_replicas: int = 1
    max_replicas: int = 4
    tokens_per_replica: float = 4096.0
    up_s: float = 5.0
    down_s: float = 300.0
    cpus: float = 1.0
    gpus: float = 0.0
    start_s: float = 600.0
    drain_s: float = 30.0
    python: str = sys.executable
    engine: str = ""
    join: str = ""
    join_as: str = ""


class ByQueuedTokens:
    """As many replicas as share the waiting prompt tokens at so many each. One that tells nothing (it is starting)
    counts as empty. Serve bounds the answer by min and max, and waits its delays."""

    def __init__(self, tokens_per_replica: float) -> None:
        self._tokens = tokens_per_replica

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        told = (ctx.aggregated_metrics or {}).get(QUEUED, {})
        wanted = math.ceil(sum(told.values()) / self._tokens)
        return max(ctx.capacity_adjusted_min_replicas, wanted), {}


@serve.deployment
class Engine:
    """One engine process, and the way to it."""

    async def __init__(self, wanted: dict[str, Any]) -> None:
        """Returns once the engine answers. Raises: RuntimeError with its last words where it does not come up."""
        said = Wanted(**wanted)
        argv = [said.model, "--port", "0", "--die-with-parent", "--drain-s", f"{said.drain_s:g}", *said.engine.split()]
        if said.join:
            # Gateways come from other machines; the engine tells them this address and the port that it was given.
            argv += ["--host", get_node_ip_address(), "--register", said.join, "--register-as", said.join_as]
        self._drain_s = said.drain_s
        self._process = await asyncio.create_subprocess_exec(
            said.python, "-m", "local_backend", *argv, stdout=asyncio.subprocess.PIPE, env={**os.environ}
        )
        async with asyncio.timeout(said.start_s):
            self._url = await self._ready()
        self._drained = asyncio.create_task(self._drain_stdout())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        self._http = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)

    async def _ready(self) -> str:
        url = ""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event = json.loads(line)
            url = event.get("url", url)
            if event["event"] == "ready":
                return str(url)
        raise RuntimeError(f"the engine ended with {await self._process.wait()}; its stderr is in this replica's log")

    async def _drain_stdout(self) -> None:
        assert self._process.stdout is not None
        async for _ in self._process.stdout:
            pass

    async def __call__(self, request: Request) -> Response:
        """Passes bytes both ways as they come; a client that leaves ends the engine's work for it."""
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            answer = await self._http.request(
                request.method, self._url + path, headers=headers, data=await request.body()
            )
        except aiohttp.ClientConnectionError:
            return Response('{"error": {"message": "the engine is being started again"}}', 503, {"retry-after": "2"})

        async def chunks() -> Any:
            try:
                async for chunk in answer.content.iter_any():
                    yield chunk
            finally:
                answer.close()

        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return StreamingResponse(chunks(), answer.status, kept)

    async def check_health(self) -> None:
        """Serve starts another replica in place of one that raises."""
        if self._process.returncode is not None:
            raise RuntimeError(f"the engine ended with {self._process.returncode}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        async with self._http.get(self._url + "/metrics") as answer:
            found = _METRIC.search(await answer.text())
        return {QUEUED: float(found.group(1)) if found else 0.0}

    async def __del__(self) -> None:
        """Serve lets requests end before it comes here; what streams still run are the engine's to drain."""
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        await self._http.close()


def build(wanted: Wanted) -> serve.Application:
    scaling = AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        upscale_delay_s=wanted.up_s,
        downscale_delay_s=wanted.down_s,
        metrics_interval_s=1.0,
        look_back_period_s=5.0,
        policy=AutoscalingPolicy(
            policy_function=ByQueuedTokens, policy_kwargs={"tokens_per_replica": wanted.tokens_per_replica}
        ),
    )
    deployment = Engine.options(
        autoscaling_config=scaling,
        max_ongoing_requests=1024,  # the engine batches, and bounds its own queue
        graceful_shutdown_timeout_s=wanted.drain_s + 10,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
    )
    return deployment.bind(wanted.model_dump())
