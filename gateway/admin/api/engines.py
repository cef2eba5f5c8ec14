"""Engines of one's own, as they stand now: ours on this machine, and those that are providers (vLLM, SGLang, more of
ours). Each is asked for its metrics, by vLLM's names, which ours has too."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx
from litestar import get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.services import Services
from gateway.admin.wants import Office
from gateway.routing.catalog import LOCAL
from gateway.routing.known_blocks import EVENTS

ENGINE_TIMEOUT_S: Final = 2.0
ENGINES_MAX: Final = 64
"""Asked at once: a page that looks every two seconds must not become a load of its own."""
_OFF: Final = "The local engine is not configured; `farebox up` starts one."
_RUN_BY_US: Final = ("openai_like", LOCAL)
_BLOCKS: Final = "vllm:cache_config_info"


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


class _Told(Struct, frozen=True):
    figures: dict[str, float]
    models: list[str]
    kv_blocks: int | None


@get("/engine", name="engine.read")
async def read_engine(services: Office) -> EngineView:
    """The local engine's own figures, asked for now."""
    local = services.settings.local
    if not local.enabled or not local.base_url:
        return EngineView("off", local.model, _OFF, {})
    told = await _ask(services, local.base_url, services.engine_key)
    if isinstance(told, str):
        return EngineView("away", local.model, told, {})
    return EngineView("up", local.model, "", told.figures)


@get("/engines", name="engines.list")
async def list_engines(services: Office) -> list[ReplicaView]:
    """Every engine of one's own with its figures, asked for now: the local one, and providers that lie in a network of
    one's own or tell their cache (`kv_events`), and replicas that have joined one, as `provider@replica`."""
    known = engines(services)
    told = await asyncio.gather(*(
        _ask(services, base_url, services.engine_key if name == LOCAL else None) for name, base_url in known.items()
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


async def _ask(services: Services, base_url: str, key: str | None) -> _Told | str:
    """What an engine says of itself; a text where it does not."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/metrics"
    try:
        answer = await services.http.get(url, headers=headers, timeout=ENGINE_TIMEOUT_S)
        answer.raise_for_status()
        return _read(answer.text)
    except httpx.HTTPStatusError as error:
        return f"It answers, but shows no metrics (status {error.response.status_code} at {url})."
    except httpx.HTTPError as error:
        return f"It does not answer ({type(error).__name__}); see its log."
    except ValueError:
        return f"What it answers at {url} is no list of metrics."


def _replica(name: str, base_url: str, told: _Told | str) -> ReplicaView:
    if isinstance(told, str):
        return ReplicaView(name, base_url, "away", [], told, None, None, {})
    used = told.figures.get("vllm:kv_cache_usage_perc", told.figures.get("vllm:gpu_cache_usage_perc"))
    return ReplicaView(name, base_url, "up", told.models, "", told.kv_blocks, used, told.figures)


def _read(text: str) -> _Told:
    """Counters and gauges summed over labels; of histograms the sum and the count. Raises: ValueError."""
    figures: dict[str, float] = {}
    models: set[str] = set()
    blocks: int | None = None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _BLOCKS:
                blocks = (blocks or 0) + _blocks(sample.labels)
            elif not sample.name.endswith(("_bucket", "_created")):
                figures[sample.name] = figures.get(sample.name, 0.0) + sample.value
            if name := sample.labels.get("model_name"):
                models.add(name)
    return _Told(figures, sorted(models), blocks)


def _blocks(labels: Mapping[str, str]) -> int:
    said = labels.get("num_gpu_blocks", "")
    return int(said) if said.isdigit() else 0
