"""Writes prices_seed.json from genai-prices: `python -m billing.seed`, at release time. Needs the dev dependencies.

Source: genai-prices 0.2.3 (MIT), read 2026-11. What it holds and we leave out: price variants by anything but service
tier and batch, prices per text message, providers that resell others.
"""

import datetime
import sys
from collections.abc import Sequence
from decimal import ROUND_UP, Decimal
from importlib.metadata import version
from typing import Any, Final

import msgspec
from genai_prices.data import providers
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    TieredPrices,
)

from billing.money import PUSD_PER_USD
from billing.pricelist import SEED_PATH, Seed, SeedModel, SeedPrice
from billing.prices import STANDARD, variant_of
from billing.usage import Meter

# Their provider -> the name it goes by with us.
PROVIDERS: Final = {
    "anthropic": "anthropic",
    "aws": "bedrock",
    "azure": "azure_ai",
    "cerebras": "cerebras",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "google": "vertex",
    "groq": "groq",
    "mistral": "mistral",
    "moonshotai": "moonshotai",
    "openai": "openai",
    "perplexity": "perplexity",
    "together": "together",
    "voyageai": "voyageai",
    "x-ai": "xai",
}

_MILLION: Final = 10**6
_THOUSAND: Final = 10**3
_SECONDS_PER_HOUR: Final = 3600

# Their price key -> our meters and how many units the listed price buys. Later rows win where two name one meter.
METERS: Final[dict[str, tuple[Meter, int]]] = {
    "input_mtok": (Meter.INPUT_TOKENS, _MILLION),
    "cache_read_mtok": (Meter.CACHE_READ_TOKENS, _MILLION),
    "cache_write_mtok": (Meter.CACHE_WRITE_5M_TOKENS, _MILLION),
    "cache_write_5m_mtok": (Meter.CACHE_WRITE_5M_TOKENS, _MILLION),
    "cache_write_1h_mtok": (Meter.CACHE_WRITE_1H_TOKENS, _MILLION),
    "input_audio_mtok": (Meter.INPUT_AUDIO_TOKENS, _MILLION),
    "cache_audio_read_mtok": (Meter.CACHE_READ_AUDIO_TOKENS, _MILLION),
    "input_image_mtok": (Meter.INPUT_IMAGE_TOKENS, _MILLION),
    "cache_image_read_mtok": (Meter.CACHE_READ_IMAGE_TOKENS, _MILLION),
    "input_video_mtok": (Meter.INPUT_VIDEO_TOKENS, _MILLION),
    "output_mtok": (Meter.OUTPUT_TOKENS, _MILLION),
    "output_reasoning_mtok": (Meter.REASONING_TOKENS, _MILLION),
    "output_citation_mtok": (Meter.CITATION_TOKENS, _MILLION),
    "output_audio_mtok": (Meter.OUTPUT_AUDIO_TOKENS, _MILLION),
    "output_image_mtok": (Meter.OUTPUT_IMAGE_TOKENS, _MILLION),
    "output_video_mtok": (Meter.OUTPUT_VIDEO_TOKENS, _MILLION),
    "requests_kcount": (Meter.REQUESTS, _THOUSAND),
    "web_searches_kcount": (Meter.SEARCHES, _THOUSAND),
    "storage_searches_kcount": (Meter.FILE_SEARCHES, _THOUSAND),
    "input_mchars": (Meter.CHARACTERS, _MILLION),
    "audio_hours": (Meter.SECONDS, _SECONDS_PER_HOUR),
    "input_audio_hours": (Meter.SECONDS, _SECONDS_PER_HOUR),
    "input_document_kpages": (Meter.PAGES, _THOUSAND),
    "input_annotated_document_kpages": (Meter.ANNOTATED_PAGES, _THOUSAND),
}


def build() -> Seed:
    """The whole seed, models in the order in which their matches are to be tried."""
    models = []
    for provider in sorted(providers, key=lambda p: p.id):
        if name := PROVIDERS.get(provider.id):
            for model in provider.models:
                prices = seed_prices_of(model)
                if any(price.cost for price in prices):
                    models.append(SeedModel(name, model.id, prices, clause(model.match)))
                    # Found by the names of the standard one, so without names of their own.
                    models += [SeedModel(name, model.id, p, None, v) for v, p in sorted(variants_of(model).items())]
    return Seed(f"genai-prices {version('genai-prices')}", tuple(models))


def seed_prices_of(model: ModelInfo) -> tuple[SeedPrice, ...]:
    """The dated history of a model: at each date on which something begins, the plan of the day from then on.

    Theirs is one list whose last fitting entry wins; ours is sorted by date, so hours of the day are said again."""
    if isinstance(model.prices, ModelPrice):
        return (price_of(model.prices, None),)
    starts = {_start_ns(entry) for entry in model.prices}
    history: list[SeedPrice] = []
    last: list[ConditionalPrice] = []
    for start_ns in sorted(starts | {0}):
        plan = [entry for entry in model.prices if _start_ns(entry) <= start_ns]
        whole_day = [i for i, entry in enumerate(plan) if _daily(entry) is None]
        plan = plan[whole_day[-1] :] if whole_day else [model.prices[0], *plan]
        if plan != last:
            history += [price_of(entry.prices, _daily(entry), start_ns) for entry in plan]
        last = plan
    return tuple(history)


def variants_of(model: ModelInfo) -> dict[str, tuple[SeedPrice, ...]]:
    """The dated history of each service tier, and of batches."""
    found: dict[str, list[SeedPrice]] = {}
    for entry in model.price_variants or ():
        match entry.when:
            case {"service_tier": str(tier), **rest} if not rest:
                variant = variant_of(tier)
            case {"processing": str(processing), **rest} if not rest:
                variant = variant_of(processing)
            case _:
                continue
        price = price_of(entry.prices, None, _start_ns(entry))
        if variant != STANDARD and price.cost:
            found.setdefault(variant, []).append(price)
    return {v: tuple(sorted(prices, key=lambda price: price.effective_from_ns)) for v, prices in found.items()}


def _start_ns(entry: ConditionalPrice | PriceVariant) -> int:
    if isinstance(entry.constraint, StartDateConstraint):
        day = datetime.datetime.combine(entry.constraint.start_date, datetime.time(), datetime.UTC)
        return int(day.timestamp()) * 10**9
    return 0


def _daily(entry: ConditionalPrice) -> tuple[int, int] | None:
    if entry.constraint is None or isinstance(entry.constraint, StartDateConstraint):
        return None
    start, end = (
        (t.hour * 60 + t.minute) * 60 + t.second for t in (entry.constraint.start_time, entry.constraint.end_time)
    )
    return start, end


def price_of(listed: ModelPrice, daily: tuple[int, int] | None, effective_from_ns: int = 0) -> SeedPrice:
    base: dict[Meter, int] = {}
    tiers: dict[int, dict[Meter, int]] = {}
    for key, (meter, units) in METERS.items():
        price = getattr(listed, key)
        if isinstance(price, TieredPrices):
            base[meter] = pusd_per_unit(price.base, units)
            for tier in price.tiers:
                tiers.setdefault(tier.start, {})[meter] = pusd_per_unit(tier.price, units)
        elif price is not None:
            base[meter] = pusd_per_unit(price, units)
    return SeedPrice(base, tuple(sorted(tiers.items())), daily, effective_from_ns)


def pusd_per_unit(dollars: Decimal, units: int) -> int:
    """Dollars for so many units -> pUSD for one. Prices per hour do not come out even; they round up, by < 1 pUSD."""
    return int((dollars * PUSD_PER_USD / units).to_integral_value(ROUND_UP))


def clause(match: Any) -> dict[str, Any]:
    """Their match object as the JSON that billing.prices.matches reads. Texts in lower case, patterns as they are."""
    ((name, value),) = vars(match).items()
    kind = name.rstrip("_")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {kind: [clause(part) for part in value]}
    return {kind: value if kind == "regex" else value.lower()}


def main() -> None:
    seed = build()
    lines = ",\n".join(msgspec.json.encode(model).decode() for model in seed.models)
    # One model a line: a new price shows up as one changed line.
    SEED_PATH.write_text(f'{{"source":{msgspec.json.encode(seed.source).decode()},"models":[\n{lines}\n]}}\n')
    sys.stdout.write(f"{len(seed.models)} models, {SEED_PATH.stat().st_size} bytes: {SEED_PATH}\n")


if __name__ == "__main__":
    main()
