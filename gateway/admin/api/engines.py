"""Engines of one's own, as they stand now: ours on this machine, and those that are providers (vLLM, SGLang, more of
ours). Each is asked for its metrics (gateway.observe.engines)."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Final
from urllib.parse import urlsplit

from litestar import get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.admin.services import Services
from gateway.admin.wants import Office
from gateway.observe.engines import Told, ask
from gateway.routing.catalog import LOCAL
from gateway.routing.known_blocks import EVENTS

ENGINE_TIMEOUT_S: Final = 2.0
ENGINES_MAX: Final = 64
"""Asked at once: a page that looks every two seconds must not become a load of its own."""
_OFF: Final = "The local engine is not configured; `farebox up` starts one."
_RUN_BY_US: Final = ("openai_like", LOCAL)


class EngineView(Struct, frozen=True):
    """state: off (not configured), away (does not answer), up. figures: its /metrics, histograms as _sum and _count."""

    state: str
    model: str
    detail: str
    figures: dict[str, float]


class ReplicaView(Struct, frozen=True):
    """An engine under the name that it has as a provider. models: as its metrics name them. kv_blocks: how many there
    are, where it says so; kv_used: the share of them in use."""

    name: str
    base_url: str
    state: str
    models: list[str]
    detail: str
    kv_blocks: int | None
    kv_used: float | None
    figures: dict[str, float]


@get("/engine", name="engine.read")
async def read_engine(services: Office) -> EngineView:
    """The local engine's own figures, asked for now."""
    local = services.settings.local
    if not local.enabled or not local.base_url:
        return EngineView("off", local.model, _OFF, {})
    told = await ask(services.http, local.base_url, services.engine_key, ENGINE_TIMEOUT_S)
    if isinstance(told, str):
        return EngineView("away", local.model, told, {})
    return EngineView("up", local.model, "", told.figures)


@get("/engines", name="engines.list")
async def list_engines(services: Office) -> list[ReplicaView]:
    """Every engine of one's own with its figures, asked for now: the local one, and providers that lie in a network of
    one's own or tell their cache (`kv_events`), and replicas that have joined one, as `provider@replica`."""
    known = engines(services)
    told = await asyncio.gather(*(
        ask(services.http, base_url, services.engine_key if name == LOCAL else None, ENGINE_TIMEOUT_S)
        for name, base_url in known.items()
    ))  # fmt: skip
    return [_replica(name, base_url, said) for (name, base_url), said in zip(known.items(), told, strict=True)]


engine_handlers: list[HTTPRouteHandler] = [read_engine, list_engines]


def engines(services: Services) -> dict[str, str]:
    """Address by name, ours first."""
    settings, found = services.settings, {}
    if settings.local.enabled and settings.local.base_url:
        found[LOCAL] = settings.local.base_url
    live = services.yard.offer.live
    for name, said in sorted(live.settings.providers.items()):
        entry = live.document.providers.get(name)
        inside = EVENTS in said.options or (entry is not None and entry.allow_private)
        if not said.enabled or not said.base_url or (said.kind or name) not in _RUN_BY_US:
            continue
        if inside or _in_a_network_of_ones_own(said.base_url):
            found[name] = said.base_url
    found |= {f"{name}@{each.name}": each.base_url for name, fleet in live.fleet.items() for each in fleet}
    return dict(list(found.items())[:ENGINES_MAX])


def _in_a_network_of_ones_own(base_url: str) -> bool:
    """By its address alone: a private one, or a name without a dot, as compose files and clusters have them."""
    host = urlsplit(base_url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc"))


def _replica(name: str, base_url: str, told: Told | str) -> ReplicaView:
    if isinstance(told, str):
        return ReplicaView(name, base_url, "away", [], told, None, None, {})
    return ReplicaView(name, base_url, "up", told.models, "", told.kv_blocks, told.kv_used, told.figures)
