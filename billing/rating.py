"""Quantities times prices. Pure, exact integers; the only place where a token meets a price."""

from collections.abc import Mapping

import msgspec

from billing.errors import UnknownPrice
from billing.prices import PriceSheet
from billing.usage import Meter, input_tokens_total


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
    tier = sheet.tier(input_tokens_total(quantities))
    what = f"{sheet.provider}/{sheet.model}"
    return Charge(rate(quantities, tier.sale, what), rate(quantities, tier.cost, what))
