"""Price lists in LiteLLM's format: read, compared with the book, and brought into it.

Source: BerriAI/litellm model_prices_and_context_window.json, read 2026-11. A flat object of model name -> costs in US
dollars per unit. Left out: costs per pixel, per image read and per session, models of providers that we do not know,
and entries without a price per token, character, second, page, query or image made.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_UP, Decimal
from typing import Any, Final

import msgspec

from billing.errors import UnknownPrice
from billing.money import PUSD_PER_USD
from billing.prices import BATCH, FLEX, PRIORITY, REGION, STANDARD, PriceBook, Rates, Tier, in_region
from billing.usage import INPUT_METERS, OUTPUT_METERS, Meter

# Their provider -> the name it goes by with us.
PROVIDERS: Final = {
    "anthropic": "anthropic",
    "azure": "azure_ai",
    "azure_ai": "azure_ai",
    "bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "bedrock_mantle": "bedrock_openai",
    "cerebras": "cerebras",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "deepseek": "deepseek",
    "fireworks_ai": "fireworks",
    "gemini": "gemini",
    "groq": "groq",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "openai": "openai",
    "perplexity": "perplexity",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vertex_ai-anthropic_models": "vertex",
    "vertex_ai-language-models": "vertex",
    "voyage": "voyageai",
    "xai": "xai",
}

_METERS: Final = {
    "input_cost_per_token": Meter.INPUT_TOKENS,
    "cache_read_input_token_cost": Meter.CACHE_READ_TOKENS,
    "cache_creation_input_token_cost": Meter.CACHE_WRITE_5M_TOKENS,
    "cache_creation_input_token_cost_above_1hr": Meter.CACHE_WRITE_1H_TOKENS,
    "input_cost_per_audio_token": Meter.INPUT_AUDIO_TOKENS,
    "cache_read_input_audio_token_cost": Meter.CACHE_READ_AUDIO_TOKENS,
    "input_cost_per_image_token": Meter.INPUT_IMAGE_TOKENS,
    "output_cost_per_token": Meter.OUTPUT_TOKENS,
    "output_cost_per_reasoning_token": Meter.REASONING_TOKENS,
    "citation_cost_per_token": Meter.CITATION_TOKENS,
    "output_cost_per_audio_token": Meter.OUTPUT_AUDIO_TOKENS,
    "output_cost_per_image_token": Meter.OUTPUT_IMAGE_TOKENS,
    "input_cost_per_character": Meter.CHARACTERS,
    "input_cost_per_second": Meter.SECONDS,
    "input_cost_per_query": Meter.SEARCH_UNITS,
    "output_cost_per_image": Meter.IMAGES,
    "ocr_cost_per_page": Meter.PAGES,
    "annotation_cost_per_page": Meter.ANNOTATED_PAGES,
}
_VARIANTS: Final = {None: STANDARD, "flex": FLEX, "priority": PRIORITY, "batches": BATCH}
_FIELD: Final = re.compile(
    rf"(?P<base>{'|'.join(sorted(_METERS, key=len, reverse=True))})"
    r"(?:_above_(?P<thousands>\d+)k_tokens)?(?:_(?P<variant>flex|priority|batches))?"
)
_DECODER: Final = msgspec.json.Decoder(dict[str, dict[str, Any]], float_hook=Decimal)
_TOKENS: Final = INPUT_METERS | OUTPUT_METERS


class Listed(msgspec.Struct, frozen=True):
    """The prices of one variant of one model, everywhere or in one region, as a list has them. Sold at cost."""

    provider: str
    model: str
    variant: str
    rates: Rates
    region: str | None = None

    @property
    def name(self) -> str:
        """What it stands under in the book."""
        return in_region(self.model, self.region)


class Difference(msgspec.Struct, frozen=True):
    """Where list and book disagree on a cost, in pUSD per unit. `ours` None: the book has no price for it."""

    provider: str
    model: str
    variant: str
    meter: Meter
    above_input_tokens: int
    ours: int | None
    theirs: int


def read_list(data: bytes) -> list[Listed]:
    """Raises: ValueError for what is not such a list, and for a negative price."""
    try:
        # Through text: 1.5e-07 as a float times 10**12 is not 150,000.
        entries = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a price list in LiteLLM's format: {error}") from error
    found: dict[tuple[str, str, str], Listed] = {}
    for name, entry in entries.items():
        provider = PROVIDERS.get(str(entry.get("litellm_provider")))
        if provider is None or name == "sample_spec":
            continue
        prefix, _, rest = name.partition("/")
        model = rest if rest and prefix in (entry["litellm_provider"], provider, "vertex_ai", "azure") else name
        region = None
        if "/" in model and provider in ("azure_ai", "bedrock"):
            region, _, model = model.partition("/")
            if "/" in model or REGION.fullmatch(region) is None:
                continue  # With a commitment; a request does not say which.
        for variant, rates in _rates(entry).items():
            listed = Listed(provider, model, variant, rates, region)
            found.setdefault((provider, listed.name, variant), listed)
    return list(found.values())


def compare(book: PriceBook, listed: Iterable[Listed], at_ns: int) -> list[Difference]:
    """What the list says otherwise than the book at that time, costs against costs."""
    differences = []
    for entry in listed:
        try:
            sheet = book.sheet(entry.provider, entry.model, at_ns, variant=entry.variant, region=entry.region)
        except UnknownPrice:
            sheet = None
        # A region that costs what it costs everywhere needs no price of its own; one that does not, lacks it.
        lacks = entry.region is not None and entry.region not in book.regions(entry.provider, entry.model)
        for above, theirs in ((0, entry.rates.cost), *((t.above_input_tokens, t.cost) for t in entry.rates.tiers)):
            ours = {} if sheet is None else sheet.tier(above + 1 if above else 0).cost
            differences += [
                Difference(
                    entry.provider, entry.name, entry.variant, meter, above, None if lacks else ours.get(meter), price
                )
                for meter, price in theirs.items()
                if ours.get(meter) != price
            ]
    return differences


def to_import(
    listed: Iterable[Listed], differences: Iterable[Difference], *, replace: bool
) -> tuple[list[tuple[str, str, str, Rates]], int]:
    """What of a list to hand to pricelist.import_prices: what the book lacks; with `replace`, what it says otherwise
    too. Returns: that, and how many prices disagree and stay as they are."""
    known = [((d.provider, d.model, d.variant), d.ours) for d in differences]
    wanted = {name for name, ours in known if replace or ours is None}
    chosen = [(e.provider, e.name, e.variant, e.rates) for e in listed if (e.provider, e.name, e.variant) in wanted]
    return chosen, len({name for name, _ in known} - wanted)


def _rates(entry: Mapping[str, Any]) -> dict[str, Rates]:
    base: dict[str, dict[Meter, int]] = {}
    tiers: dict[str, dict[int, dict[Meter, int]]] = {}
    for name, value in entry.items():
        said = _FIELD.fullmatch(name)
        if said is None or not isinstance(value, int | Decimal):
            continue
        variant, meter, price = _VARIANTS[said["variant"]], _METERS[said["base"]], pusd(Decimal(value))
        if said["thousands"]:
            tiers.setdefault(variant, {}).setdefault(int(said["thousands"]) * 1000, {})[meter] = price
        else:
            base.setdefault(variant, {})[meter] = price
    if searches := [Decimal(cost) for cost in (entry.get("search_context_cost_per_query") or {}).values()]:
        base.setdefault(STANDARD, {})[Meter.SEARCHES] = pusd(max(searches))  # Requests do not say how large they get.
    standard = base.get(STANDARD, {})
    made = {}
    for variant, prices in base.items():
        if variant != STANDARD:
            if Meter.INPUT_TOKENS not in prices or Meter.OUTPUT_TOKENS not in prices:
                continue
            # A tier changes what tokens cost, not what a search does.
            prices = {**{m: p for m, p in standard.items() if m not in _TOKENS}, **prices}
        if prices:
            steps = tuple(Tier(above, cost, cost) for above, cost in sorted(tiers.get(variant, {}).items()))
            made[variant] = Rates(prices, prices, steps)
    return made


def pusd(dollars: Decimal) -> int:
    """Dollars for one unit -> pUSD for one, rounded up by less than one. Raises: ValueError below zero."""
    if dollars < 0:
        raise ValueError(f"negative price: {dollars}")
    return int((dollars * PUSD_PER_USD).to_integral_value(ROUND_UP))
