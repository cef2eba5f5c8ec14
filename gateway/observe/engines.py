"""What an engine of one's own says of itself: its /metrics, by vLLM's names, which ours has too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import httpx
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
_KV_USED: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")  # The second is vLLM's name before 0.10.
_BLOCKS: Final = "vllm:cache_config_info"


class Told(Struct, frozen=True):
    """figures: counters and gauges summed over labels, of histograms _sum and _count. models: as its metrics name
    them. kv_blocks: how many there are, where it says so."""

    figures: dict[str, float]
    models: list[str]
    kv_blocks: int | None

    @property
    def kv_used(self) -> float | None:
        """The share of the blocks in use."""
        return next((self.figures[name] for name in _KV_USED if name in self.figures), None)


async def ask(http: httpx.AsyncClient, base_url: str, key: str | None, timeout_s: float) -> Told | str:
    """What it says; a text where it does not. base_url: with or without /v1."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/metrics"
    try:
        answer = await http.get(url, headers=headers, timeout=timeout_s)
        answer.raise_for_status()
        return await asyncio.to_thread(read, answer.text)
    except httpx.HTTPStatusError as error:
        return f"It answers, but shows no metrics (status {error.response.status_code} at {url})."
    except httpx.HTTPError as error:
        return f"It does not answer ({type(error).__name__}); see its log."
    except ValueError:
        return f"What it answers at {url} is no list of metrics."


def read(text: str) -> Told:
    """Raises: ValueError for what is no list of metrics."""
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
    return Told(figures, sorted(models), blocks)


def _blocks(labels: Mapping[str, str]) -> int:
    said = labels.get("num_gpu_blocks", "")
    return int(said) if said.isdigit() else 0
