"""Quantities times prices. Pure, exact integers; the only place where a token meets a price."""

from collections.abc import Mapping
from typing import Final

import msgspec

from billing.errors import UnknownPrice
from billing.prices import PriceSheet
from billing.usage import Meter, input_tokens_total

# The same thing counted in different units, the preferred one first: what the sheet prices is what counts. One provider
# sells a minute of sound by the second, another by the token.
Counts = tuple[Mapping[Meter, int], ...]
BY_TOKENS: Final[Counts] = ()


class Charge(msgspec.Struct, frozen=True):
    """What the customer pays and what the provider will bill us, in pUSD."""

    sale_pusd: int
    cost_pusd: int


def rate(quantities: Mapping[Meter, int], prices: Mapping[Meter, int], what: str = "this model") -> int:
    """Units: prices in pUSD per unit of the meter. Returns: pUSD; nothing is rounded.

    Raises: UnknownPrice naming the meter that was counted and has no price; `what` names the model in it.
    ValueError for a negative quantity: usage is never handed back through a price."""
    amount = 0
    for meter, quantity in quantities.items():
        if quantity < 0:
            raise ValueError(f"{quantity} {meter} used")
        if quantity:  # A meter that counted nothing needs no price.
            price = prices.get(meter)
            if price is None:
                raise UnknownPrice(what, meter)
            amount += quantity * price
    return amount


def charge(quantities: Mapping[Meter, int], sheet: PriceSheet) -> Charge:
    """Sale and cost of one request, at the context tier that its input reaches.

    Raises: UnknownPrice as rate() does."""
    tier = sheet.tier(input_tokens_total(quantities) if sheet.tiers else 0)
    what = f"{sheet.provider}/{sheet.model}"
    return Charge(rate(quantities, tier.sale, what), rate(quantities, tier.cost, what))


def priced(counts: Counts, sheet: PriceSheet) -> dict[Meter, int] | None:
    """The first count whose every unit has a price on this sheet, as one request. None: there is none."""
    for count in counts:
        used = {meter: quantity for meter, quantity in count.items() if quantity}
        if all(meter in sheet.sale for meter in used):
            return {Meter.REQUESTS: 1, **used}
    return None
