"""What others say against what we have: a price list that might be taken over, a provider's bill to be explained."""

from __future__ import annotations

from typing import Annotated

from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from msgspec import Meta, Struct

from billing import litellm, pricelist, reconcile
from billing.bills import BillLine, read_bill
from billing.db import writing
from billing.money import format_usd
from billing.reconcile import Counted
from billing.worker import post_unpriced
from gateway.admin.api.values import usd
from gateway.admin.auth.routes import record
from gateway.admin.problems import invalid
from gateway.admin.wants import Caller, Office

# Text of a whole file; the largest public list has 1.5 MB.
Upload = Annotated[str, Meta(min_length=2, max_length=8_000_000)]
SHOWN_MAX = 2_000
_MILLION = 10**6


class PriceList(Struct, frozen=True, forbid_unknown_fields=True):
    """list: a file in the format of LiteLLM's model_prices_and_context_window.json, or a part of it, as text."""

    list: Upload
    provider: str | None = None


class PriceListImport(Struct, frozen=True, forbid_unknown_fields=True):
    """replace: also where the book says otherwise, but for prices that were set here by hand. name: the list's, for the
    history."""

    list: Upload
    name: Annotated[str, Meta(min_length=1, max_length=60)]
    provider: str | None = None
    replace: bool = False


class PriceDifference(Struct, frozen=True):
    """USD per million units. ours: null where the book has no price."""

    provider: str
    model: str
    variant: str
    meter: str
    above_input_tokens: int
    ours: str | None
    theirs: str


class PriceComparison(Struct, frozen=True):
    """listed: prices in the list. missing: models that the book has no price for. differing: those where it says
    otherwise. differences: where the book says otherwise first, then what it lacks; no more than 2,000 of them."""

    listed: int
    missing: int
    differing: int
    differences: list[PriceDifference]


class PricesImported(Struct, frozen=True):
    """kept: prices that disagree and stayed as they are. posted: requests that had waited for a price."""

    listed: int
    imported: int
    kept: int
    posted: int


class Bill(Struct, frozen=True, forbid_unknown_fields=True):
    """bill: a provider's usage or cost export as text: JSON or CSV, of OpenAI, Anthropic, Groq, AWS, Azure, GCP, FOCUS.
    by_day: all models of a day together. names: what the bill calls a model (a pattern) and what it goes by here."""

    provider: Annotated[str, Meta(min_length=1, max_length=64)]
    bill: Upload
    by_day: bool = False
    names: dict[str, str] = {}


class CountedView(Struct, frozen=True):
    """null: the export does not say."""

    input_tokens: int | None
    output_tokens: int | None
    cost_usd: str | None


class BillDifference(Struct, frozen=True):
    """theirs: null where they know nothing of it. unexplained: theirs less ours, as far as our estimates can not be its
    cause; above zero they count more."""

    day: str
    model: str
    ours: CountedView
    estimated: CountedView
    theirs: CountedView | None
    unexplained: CountedView
    explained: bool


class Reconciliation(Struct, frozen=True):
    """unexplained: how many lines have a difference that nothing explains."""

    provider: str
    unexplained: int
    lines: list[BillDifference]


@post("/prices/compare", name="prices.compare", status_code=200)
async def compare_prices(data: JSONBody[PriceList], services: Office) -> PriceComparison:
    """What a price list says otherwise than the price book. Changes nothing."""
    listed = _listed(data.list, data.provider)
    async with services.reader.reading() as db:
        book = await pricelist.load_prices(db)
    found = litellm.compare(book, listed, services.clock())
    missing = {(d.provider, d.model, d.variant) for d in found if d.ours is None}
    differing = {(d.provider, d.model, d.variant) for d in found} - missing
    found.sort(key=lambda d: (d.ours is None, d.provider, d.model, d.variant, d.above_input_tokens, d.meter.value))
    shown = [
        PriceDifference(
            d.provider, d.model, d.variant, d.meter.value, d.above_input_tokens,
            None if d.ours is None else format_usd(d.ours * _MILLION), format_usd(d.theirs * _MILLION),
        )
        for d in found[:SHOWN_MAX]
    ]  # fmt: skip
    return PriceComparison(len(listed), len(missing), len(differing), shown)


@post("/prices/import", name="prices.import", status_code=200)
async def import_prices(data: JSONBody[PriceListImport], actor: Caller, services: Office) -> PricesImported:
    """Take a list's prices over from now on: what the book lacks and, with `replace`, what it says otherwise."""
    listed, now_ns = _listed(data.list, data.provider), services.clock()
    async with writing(services.engine) as db:
        book = await pricelist.load_prices(db)
        chosen, kept = litellm.to_import(listed, litellm.compare(book, listed, now_ns), replace=data.replace)
        count = await pricelist.import_prices(db, chosen, data.name, at_ns=now_ns)
        posted = await post_unpriced(db, await pricelist.load_prices(db), at_ns=now_ns)
        after = {"listed": len(listed), "imported": count, "kept": kept, "replace": data.replace}
        await record(db, actor, "prices.import", data.name, now_ns, after=after)
    await services.keys.recount_late()
    await services.reload_prices()
    return PricesImported(len(listed), count, kept, posted.total())


@post("/reconcile", name="reconcile.read", status_code=200)
async def reconcile_bill(data: JSONBody[Bill], services: Office) -> Reconciliation:
    """A provider's bill against our rows, for each day and model. Stores nothing.

    provider: its name here, of one that was asked at some time or stands in the settings."""
    try:
        bill = read_bill(data.bill.encode())
    except (ValueError, KeyError, ArithmeticError) as error:
        todo = "Send the provider's usage or cost export, JSON or CSV, unchanged."
        raise invalid("bill", str(error), todo) from error
    async with services.reader.reading() as db:
        settings = services.settings if services.switchyard is None else services.switchyard.offer.live.settings
        known = {*await reconcile.providers(db), *settings.providers}
        if data.provider not in known:
            todo = f"Take one of: {', '.join(sorted(known)) or 'none yet'}."
            raise invalid("provider", f"no provider {data.provider!r}", todo)
        found = await reconcile.reconcile(db, data.provider, bill, names=data.names, by_day=data.by_day)
    lines = [
        BillDifference(
            each.day, each.model, _counted(each.ours), _counted(each.estimated),
            None if each.theirs is None else _counted(each.theirs),
            CountedView(
                each.unexplained_input_tokens, each.unexplained_output_tokens, usd(each.unexplained_cost_pusd)
            ),
            each.explained,
        )
        for each in found
    ]  # fmt: skip
    return Reconciliation(data.provider, sum(not each.explained for each in found), lines)


comparing_handlers: list[HTTPRouteHandler] = [compare_prices, import_prices, reconcile_bill]


def _listed(text: str, provider: str | None) -> list[litellm.Listed]:
    """Raises: Problem."""
    try:
        found = litellm.read_list(text.encode())
    except (ValueError, KeyError, ArithmeticError) as error:
        raise invalid("list", str(error), "Send a file in the format of LiteLLM's price list.") from error
    listed = [each for each in found if provider in (None, "", each.provider)]
    if not listed:
        raise invalid("list", "no price in it is of a provider known here", "Look at its `litellm_provider` fields.")
    return listed


def _counted(said: Counted | BillLine) -> CountedView:
    return CountedView(said.input_tokens, said.output_tokens, usd(said.cost_pusd))
