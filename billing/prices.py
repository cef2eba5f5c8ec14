"""The price book: what a meter of a model costs at a given time. Pure; billing.pricelist reads and writes it in SQL."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from billing.errors import UnknownPrice
from billing.usage import Meter

# A price list that names no price for a finer kind of token sells it as the coarser one; so do the providers.
# In this order: a kind may inherit from one that inherited itself.
_SOLD_AS: Final = {
    Meter.CACHE_READ_TOKENS: Meter.INPUT_TOKENS,
    Meter.CACHE_WRITE_5M_TOKENS: Meter.INPUT_TOKENS,
    Meter.CACHE_WRITE_1H_TOKENS: Meter.CACHE_WRITE_5M_TOKENS,
    Meter.INPUT_AUDIO_TOKENS: Meter.INPUT_TOKENS,
    Meter.INPUT_IMAGE_TOKENS: Meter.INPUT_TOKENS,
    Meter.INPUT_VIDEO_TOKENS: Meter.INPUT_TOKENS,
    Meter.CACHE_READ_AUDIO_TOKENS: Meter.CACHE_READ_TOKENS,
    Meter.CACHE_READ_IMAGE_TOKENS: Meter.CACHE_READ_TOKENS,
    Meter.REASONING_TOKENS: Meter.OUTPUT_TOKENS,
    Meter.CITATION_TOKENS: Meter.OUTPUT_TOKENS,
    Meter.OUTPUT_AUDIO_TOKENS: Meter.OUTPUT_TOKENS,
    Meter.OUTPUT_IMAGE_TOKENS: Meter.OUTPUT_TOKENS,
    Meter.OUTPUT_VIDEO_TOKENS: Meter.OUTPUT_TOKENS,
}

# Where a provider's prices are looked up: its own list under each name it goes by, then, for hosts of other houses'
# models, the list of the house. A provider that is not here has the one list of its own name.
# Source: genai-prices 0.2.3 (fallback_model_providers), read 2026-11.
_LISTS: Final = {
    "azure": ("azure", "azure_ai", "openai", "anthropic", "deepseek", "xai", "moonshotai"),
    "azure_ai": ("azure_ai", "azure", "openai", "anthropic", "deepseek", "xai", "moonshotai"),
    "azure_openai": ("azure_openai", "azure_ai", "openai", "anthropic", "deepseek", "xai", "moonshotai"),
    "gemini": ("gemini", "vertex", "anthropic"),
    "google": ("google", "vertex", "anthropic"),
    "vertex": ("vertex", "anthropic"),
    "aws": ("aws", "bedrock"),
}

_NS_PER_SECOND: Final = 10**9
_SECONDS_PER_DAY: Final = 86_400

OPERATOR: Final = "operator"

_REMEMBERED: Final = 10_000


class Tier(msgspec.Struct, frozen=True):
    """Prices in pUSD per unit for requests with more than this many input tokens. They hold for every token of it."""

    above_input_tokens: int
    sale: dict[Meter, int]
    cost: dict[Meter, int]


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prices as somebody listed them, in pUSD per unit."""

    sale: dict[Meter, int]
    cost: dict[Meter, int]
    tiers: tuple[Tier, ...] = ()
    # Only between these seconds of the day, UTC; over midnight when the second is the smaller one.
    daily: tuple[int, int] | None = None


class PriceSheet(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of one model from one instant on, every token meter filled in."""

    id: str
    provider: str
    model: str
    sale: dict[Meter, int]
    cost: dict[Meter, int]
    effective_from_ns: int
    tiers: tuple[Tier, ...] = ()
    daily: tuple[int, int] | None = None
    source: str = OPERATOR
    position: int = 0

    def tier(self, input_tokens: int) -> Tier:
        """The prices of a request with so many input tokens in all."""
        for tier in reversed(self.tiers):
            if input_tokens > tier.above_input_tokens:
                return tier
        return Tier(0, self.sale, self.cost)

    def in_force(self, at_ns: int) -> bool:
        if at_ns < self.effective_from_ns:
            return False
        if self.daily is None:
            return True
        start, end = self.daily
        second = at_ns // _NS_PER_SECOND % _SECONDS_PER_DAY
        return start <= second < end if start <= end else second >= start or second < end


def make_sheet(
    price_id: str, provider: str, model: str, effective_from_ns: int, rates: Rates, source: str, position: int = 0
) -> PriceSheet:
    """A sheet from listed prices. Tiers come out in ascending order, each complete: what it does not name is as below.

    Raises: ValueError for a negative price."""
    listed = [rates.sale, rates.cost]
    for tier in rates.tiers:
        listed += [tier.sale, tier.cost]
    if any(price < 0 for prices in listed for price in prices.values()):
        raise ValueError(f"negative price for {provider}/{model}")
    sale, cost = rates.sale, rates.cost
    tiers = []
    for tier in sorted(rates.tiers, key=lambda t: t.above_input_tokens):
        sale, cost = {**sale, **tier.sale}, {**cost, **tier.cost}
        tiers.append(Tier(tier.above_input_tokens, _complete(sale), _complete(cost)))
    return PriceSheet(
        id=price_id,
        provider=provider,
        model=model,
        sale=_complete(rates.sale),
        cost=_complete(rates.cost),
        effective_from_ns=effective_from_ns,
        tiers=tuple(tiers),
        daily=rates.daily,
        source=source,
        position=position,
    )


def _complete(listed: Mapping[Meter, int]) -> dict[Meter, int]:
    # A list without a fee per request charges none; every request counts one.
    prices = {Meter.REQUESTS: 0, **listed}
    for meter, coarser in _SOLD_AS.items():
        if meter not in prices and coarser in prices:
            prices[meter] = prices[coarser]
    return prices


class ModelMatch(msgspec.Struct, frozen=True):
    """Which names a priced model answers to: a clause for `matches`, or None for its own name alone."""

    provider: str
    model: str
    match: dict[str, Any] | None


class PriceBook:
    """An immutable snapshot of every price. Look-ups are remembered, so they cost two dictionary reads."""

    def __init__(self, sheets: Iterable[PriceSheet], models: Iterable[ModelMatch]) -> None:
        self._by_id: dict[str, PriceSheet] = {}
        self._rows: dict[tuple[str, str], list[PriceSheet]] = {}
        for sheet in sheets:
            self._by_id[sheet.id] = sheet
            self._rows.setdefault((sheet.provider, sheet.model), []).append(sheet)
        for rows in self._rows.values():
            # The one in force is the last that is: what the operator set stands until the operator sets it anew.
            rows.sort(key=lambda s: (s.source == OPERATOR, s.effective_from_ns, s.position))
        self._models: dict[str, list[ModelMatch]] = {}
        for model in models:
            self._models.setdefault(model.provider, []).append(model)
        self._listed: dict[str, set[str]] = {}
        for listed, model_name in self._rows:
            self._listed.setdefault(listed, set()).add(model_name)
        self._found: dict[tuple[str, str], list[PriceSheet]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def sheet(self, provider: str, model: str, at_ns: int) -> PriceSheet:
        """The prices in force at that time. Raises: UnknownPrice if there are none."""
        name = (provider, model)
        found = self._found.get(name)
        if found is None and (found := self._find(provider, model)):
            # Clients may name any model of an open provider, and dated names match a pattern: what is remembered is
            # bounded, and what is not found never is.
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[name] = found
        for sheet in reversed(found or ()):
            if sheet.in_force(at_ns):
                return sheet
        raise UnknownPrice(f"{provider}/{model}")

    def models(self, provider: str) -> list[str]:
        """The names that the provider's own list prices, sorted."""
        listing = next((name for name in _LISTS.get(provider, (provider,)) if name in self._listed), provider)
        return sorted(self._listed.get(listing, ()))

    def by_id(self, price_id: str) -> PriceSheet | None:
        return self._by_id.get(price_id)

    def _find(self, provider: str, model: str) -> list[PriceSheet] | None:
        for listing in _LISTS.get(provider, (provider,)):
            if rows := self._rows.get((listing, model)):
                return rows
            for entry in self._models.get(listing, ()):
                if entry.match is not None and matches(entry.match, model.lower()):
                    return self._rows.get((listing, entry.model))
        return None


def matches(clause: Mapping[str, Any], name: str) -> bool:
    """Does a model name, in lower case, meet the clause? Source: genai-prices 0.2.3 (MatchLogic), read 2026-11."""
    ((kind, value),) = clause.items()
    match kind:
        case "equals":
            return bool(name == value)
        case "starts_with":
            return name.startswith(value)
        case "ends_with":
            return name.endswith(value)
        case "contains":
            return value in name
        case "regex":
            return re.search(value, name) is not None
        case "or":
            return any(matches(part, name) for part in value)
        case "and":
            return all(matches(part, name) for part in value)
        case _:
            raise ValueError(f"unknown clause in a price list: {kind}")
