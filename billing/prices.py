"""The price book: what a meter of a model costs at a given time. Pure; billing.pricelist reads and writes it in SQL."""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
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
    "bedrock_openai": ("bedrock_openai", "bedrock"),
}

_NS_PER_SECOND: Final = 10**9
_SECONDS_PER_DAY: Final = 86_400
_FOR_EVER: Final = 2**63

OPERATOR: Final = "operator"

_REMEMBERED: Final = 10_000

# A sheet made for a margin carries it behind its id, so that a charge says which margin it was made with.
_MARGIN_MARK: Final = "*"
BPS: Final = 10_000  # Basis points of a whole: a margin of 12_500 sells at a quarter above cost.
_MARGIN_MAX_BPS: Final = 100 * BPS

# What providers call the tier that has no name of its own in a price list, asked for or answered.
# Source: service tier guides of OpenAI, Anthropic, Groq and Bedrock, read 2026-11. What a provider answers to "auto" is
# in its response; a request for it may end up dearer than standard, see `variants_asked`.
_STANDARD: Final = frozenset({"", "default", "standard", "standard_only", "on_demand", "auto"})
STANDARD: Final = ""
FLEX: Final = "flex"
PRIORITY: Final = "priority"
BATCH: Final = "batch"


def variant_of(service_tier: str | None) -> str:
    """The price variant of a service tier, as asked for or as answered. A tier that nobody knows is a variant of its
    own: without a price it is refused, not taken for the standard one."""
    name = (service_tier or "").strip().lower()
    return STANDARD if name in _STANDARD else name[:32]


def variants_asked(service_tier: str | None) -> tuple[str, ...]:
    """What a request for this tier may be answered and billed as: providers fall back to the standard tier when the
    asked one is full, so a hold has to cover both."""
    asked = variant_of(service_tier)
    return (STANDARD,) if asked == STANDARD else (asked, STANDARD)


# What a model costs where it is dearer or cheaper stands beside it in the book, as a model called MODEL#REGION; no
# provider's models have such a name.
_REGION_MARK: Final = "#"
REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def in_region(model: str, region: str | None) -> str:
    """What the price of a model in a region is listed under. Raises: ValueError for what is no region's name."""
    if region is None:
        return model
    if REGION.fullmatch(region) is None:
        raise ValueError(f"not a region: {region[:64]!r}; small letters, digits and dashes, as eu-central-1")
    return f"{model}{_REGION_MARK}{region}"


class Tier(msgspec.Struct, frozen=True, dict=True):
    """Prices in pUSD per unit for requests with more than this many input tokens. They hold for every token of it."""

    above_input_tokens: int
    sale: dict[Meter, int]
    cost: dict[Meter, int]

    @cached_property
    def read_at_most(self) -> int | None:
        """Sale of a token of text that goes in, whatever may become of it: any of it may be written to a cache. None:
        no kind of it is priced, as in the next."""
        return max((self.sale[meter] for meter in _READ_AS if meter in self.sale), default=None)

    @cached_property
    def said_at_most(self) -> int | None:
        """Of one that comes out, as text or as reasoning."""
        return max((self.sale[meter] for meter in _SAID_AS if meter in self.sale), default=None)


_READ_AS: Final = (Meter.INPUT_TOKENS, Meter.CACHE_WRITE_5M_TOKENS, Meter.CACHE_WRITE_1H_TOKENS)
_SAID_AS: Final = (Meter.OUTPUT_TOKENS, Meter.REASONING_TOKENS)


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prices as somebody listed them, in pUSD per unit."""

    sale: dict[Meter, int]
    cost: dict[Meter, int]
    tiers: tuple[Tier, ...] = ()
    # Only between these seconds of the day, UTC; over midnight when the second is the smaller one.
    daily: tuple[int, int] | None = None


class PriceSheet(msgspec.Struct, frozen=True, kw_only=True, dict=True):
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
    variant: str = STANDARD

    @property
    def region(self) -> str | None:
        """Where it holds; None: wherever no other one does."""
        return self.model.partition(_REGION_MARK)[2] or None

    def with_margin(self, margin_bps: int) -> "PriceSheet":
        """The same costs, sold at cost x margin: each price rounds up to a whole pUSD per unit, so a sale is never
        below it and at most 1 pUSD a unit above. What costs nothing (a model of our own) keeps its listed price.

        Raises: ValueError for a margin that is not 0 .. 100 times the cost."""
        check_margin(margin_bps)

        def sold(sale: Mapping[Meter, int], cost: Mapping[Meter, int]) -> dict[Meter, int]:
            return {**sale, **{meter: -(-price * margin_bps // BPS) for meter, price in cost.items() if price}}

        return msgspec.structs.replace(
            self,
            id=f"{self.id}{_MARGIN_MARK}{margin_bps}",
            sale=sold(self.sale, self.cost),
            tiers=tuple(Tier(t.above_input_tokens, sold(t.sale, t.cost), t.cost) for t in self.tiers),
        )

    def tier(self, input_tokens: int) -> Tier:
        """The prices of a request with so many input tokens in all."""
        if self.tiers:
            for tier in reversed(self.tiers):
                if input_tokens > tier.above_input_tokens:
                    return tier
        return self._lowest

    @cached_property
    def _lowest(self) -> Tier:
        return Tier(0, self.sale, self.cost)

    def in_force(self, at_ns: int) -> bool:
        if at_ns < self.effective_from_ns:
            return False
        if self.daily is None:
            return True
        start, end = self.daily
        second = at_ns // _NS_PER_SECOND % _SECONDS_PER_DAY
        return start <= second < end if start <= end else second >= start or second < end


def check_margin(margin_bps: int) -> None:
    """Raises: ValueError."""
    if not 0 <= margin_bps <= _MARGIN_MAX_BPS:
        raise ValueError(f"a margin of {margin_bps} basis points is not between 0 and {_MARGIN_MAX_BPS}")


def split_price_id(price_id: str) -> tuple[str, int | None]:
    """The id of the price in the book, and the margin in basis points that it was sold with, if any."""
    listed, mark, margin = price_id.partition(_MARGIN_MARK)
    return listed, int(margin) if mark and margin.isdecimal() else None


def make_sheet(
    price_id: str,
    provider: str,
    model: str,
    effective_from_ns: int,
    rates: Rates,
    source: str,
    position: int = 0,
    variant: str = STANDARD,
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
        variant=variant,
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

    def __init__(
        self,
        sheets: Iterable[PriceSheet],
        models: Iterable[ModelMatch],
        margins: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """margins: basis points by organisation; who is not there pays the listed sale price."""
        self._margins = dict(margins)
        self._sold: dict[str, PriceSheet] = {}
        self._by_id: dict[str, PriceSheet] = {}
        self._rows: dict[tuple[str, str, str], list[PriceSheet]] = {}
        for sheet in sheets:
            self._by_id[sheet.id] = sheet
            self._rows.setdefault((sheet.provider, sheet.model, sheet.variant), []).append(sheet)
        for rows in self._rows.values():
            # The one in force is the last that is: what the operator set stands until the operator sets it anew.
            rows.sort(key=lambda s: (s.source == OPERATOR, s.effective_from_ns, s.position))
        self._models: dict[str, list[ModelMatch]] = {}
        for model in models:
            self._models.setdefault(model.provider, []).append(model)
        self._listed: dict[str, set[str]] = {}
        # Most books know no other than the standard one, and then asking for all of them is one look-up.
        self._variants = tuple(sorted({variant for _, _, variant in self._rows}))
        for listed, model_name, _ in self._rows:
            self._listed.setdefault(listed, set()).add(model_name)
        self._found: dict[tuple[str, str, str, str | None], list[PriceSheet]] = {}
        self._beginnings = sorted({sheet.effective_from_ns for sheet in self._by_id.values()})
        self._has_daily = any(sheet.daily is not None for sheet in self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def sheet(
        self,
        provider: str,
        model: str,
        at_ns: int,
        *,
        variant: str = STANDARD,
        organisation_id: str | None = None,
        region: str | None = None,
    ) -> PriceSheet:
        """The prices in force at that time, with the organisation's margin if it has one: the region's own where one is
        listed, else those of everywhere.

        Raises: UnknownPrice if there are none; a variant without prices is not sold at the standard ones."""
        found = self.sheet_if_any(
            provider, model, at_ns, variant=variant, organisation_id=organisation_id, region=region
        )
        if found is None:
            raise UnknownPrice(f"{provider}/{model}" + (f" as {variant}" if variant else ""))
        return found

    def sheet_if_any(
        self,
        provider: str,
        model: str,
        at_ns: int,
        *,
        variant: str = STANDARD,
        organisation_id: str | None = None,
        region: str | None = None,
    ) -> PriceSheet | None:
        """As `sheet`, for whoever asks under several names."""
        name = (provider, model, variant, region)
        found = self._found.get(name)
        if found is None and (found := self._find(provider, model, variant, region)):
            # Clients may name any model of an open provider, and dated names match a pattern: what is remembered is
            # bounded, and what is not found never is.
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[name] = found
        for sheet in reversed(found or ()):
            if sheet.in_force(at_ns):
                margin_bps = self._margins.get(organisation_id) if organisation_id is not None else None
                return sheet if margin_bps is None else self._with_margin(sheet, margin_bps)
        return None

    def models(self, provider: str) -> list[str]:
        """The names that the provider's own list prices, sorted. Regions are not models."""
        listing = next((name for name in _LISTS.get(provider, (provider,)) if name in self._listed), provider)
        return sorted(name for name in self._listed.get(listing, ()) if _REGION_MARK not in name)

    def regions(self, provider: str, model: str) -> list[str]:
        """Where a model that the provider's own list prices has a price of its own."""
        listing = next((name for name in _LISTS.get(provider, (provider,)) if name in self._listed), provider)
        beginning = f"{model}{_REGION_MARK}"
        return sorted(n.removeprefix(beginning) for n in self._listed.get(listing, ()) if n.startswith(beginning))

    def by_id(self, price_id: str) -> PriceSheet | None:
        """Also of a sheet that was made for a margin, whoever has that margin today."""
        if (sheet := self._by_id.get(price_id)) is not None:
            return sheet
        listed, margin_bps = split_price_id(price_id)
        sheet = self._by_id.get(listed)
        return None if sheet is None or margin_bps is None else self._with_margin(sheet, margin_bps)

    def stands_until(self, at_ns: int) -> int:
        """Unix ns: until then (not included) every price is the one that it is at that time."""
        after = bisect_right(self._beginnings, at_ns)
        next_ns = self._beginnings[after] if after < len(self._beginnings) else _FOR_EVER
        # Prices of certain hours change at whole seconds.
        return min(next_ns, (at_ns // _NS_PER_SECOND + 1) * _NS_PER_SECOND) if self._has_daily else next_ns

    def sheets(self) -> Iterable[PriceSheet]:
        """Every listed one, in force or not."""
        return self._by_id.values()

    def _with_margin(self, sheet: PriceSheet, margin_bps: int) -> PriceSheet:
        price_id = f"{sheet.id}{_MARGIN_MARK}{margin_bps}"
        sold = self._sold.get(price_id)
        if sold is None:
            if len(self._sold) >= _REMEMBERED:
                self._sold.clear()
            sold = self._sold[price_id] = sheet.with_margin(margin_bps)
        return sold

    def _find(self, provider: str, model: str, variant: str, region: str | None) -> list[PriceSheet] | None:
        if region is not None and (own := self._of_region(provider, model, variant, region)) is not None:
            return own
        for listing in _LISTS.get(provider, (provider,)):
            if rows := self._rows.get((listing, model, variant)):
                return rows
            if variant != STANDARD and (listing, model, STANDARD) in self._rows:
                return None  # This list knows the model, and not this variant of it: another house's price is not it.
            for entry in self._models.get(listing, ()):
                if entry.match is not None and matches(entry.match, model.lower()):
                    return self._rows.get((listing, entry.model, variant))
        return None

    def _of_region(self, provider: str, model: str, variant: str, region: str) -> list[PriceSheet] | None:
        """None: it has no price of its own there. Empty: it has, and not of this variant."""
        for listing in _LISTS.get(provider, (provider,)):
            known = [entry for entry in self._models.get(listing, ()) if entry.match is not None]
            meant = (entry.model for entry in known if matches(entry.match or {}, model.lower()))
            for name in (model, *itertools.islice(meant, 1)):
                listed = f"{name}{_REGION_MARK}{region}"
                if listed in self._listed.get(listing, ()):
                    return self._rows.get((listing, listed, variant), [])
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
