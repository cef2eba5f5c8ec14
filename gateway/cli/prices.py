"""`farebox prices`: the price book, and the operator's own word on a price."""

from __future__ import annotations

import time
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import App, Parameter

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    day_ns,
    emit,
    make_table,
    organisation_of,
)
from gateway.cli.site import Read, acting, read_file

if TYPE_CHECKING:
    from billing.db import AsyncConnection, AsyncEngine
    from billing.litellm import Difference, Listed
    from gateway.config import PricedUnit, Settings

app = App(name="prices")

ACTOR = "farebox prices"

Usd = Annotated[Decimal | None, Parameter(help="USD per million tokens.")]
_SHOWN = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens")


@app.command(name="list")
async def list_(provider: str | None = None, /, *, model: str = "", common: Common = DEFAULTS) -> int:
    """Show prices in force, in US dollars per million tokens.

    Parameters
    ----------
    provider:
        Only this provider's.
    model:
        Only models whose name has this in it.
    """
    from billing.db import reading
    from billing.pricelist import load_prices
    from billing.prices import in_region
    from gateway.discovery import DISCOVERED

    settings = common.settings()
    now_ns = time.time_ns()
    async with database(settings) as engine, reading(engine) as db:
        book = await load_prices(db)
    known = {"local", *settings.providers, *(rule.name for rule in DISCOVERED)}
    rows = []
    for name in sorted(known if provider is None else {provider}):
        for listed in book.models(name):
            if model not in listed:
                continue
            for region in (None, *book.regions(name, listed)):
                sheet = book.sheet(name, listed, now_ns, region=region)
                prices = {meter.value: _usd_per_million(pusd) for meter, pusd in sheet.sale.items()}
                said = {"provider": name, "model": in_region(listed, region), "source": sheet.source}
                rows.append({**said, "usd_per_million": prices})

    def table() -> object:
        cells = [
            [row["provider"], row["model"], *(row["usd_per_million"].get(m) for m in _SHOWN), row["source"]]  # type: ignore[attr-defined]
            for row in rows
        ]
        return make_table(["provider", "model", *_SHOWN, "source"], cells, right=_SHOWN)

    emit(common, {"prices": rows}, table)
    return OK if rows else NOT_WELL


@app.command(name="set")
async def set_(
    provider: str,
    model: str,
    /,
    *,
    input: Usd = None,  # noqa: A002 - the flag is called --input.
    output: Usd = None,
    cache_read: Usd = None,
    cache_write: Usd = None,
    reasoning: Usd = None,
    cost_input: Usd = None,
    cost_output: Usd = None,
    per: tuple[str, ...] = (),
    variant: str = "",
    region: str | None = None,
    common: Changes = CHANGES,
) -> int:
    """Set what clients are charged from now on, in US dollars per million tokens. Older usage keeps its prices.

    Parameters
    ----------
    input:
        USD per million input tokens.
    output:
        USD per million output tokens.
    cost_input:
        What the provider charges you, if it is not the same.
    cost_output:
        Likewise, for output.
    per:
        What is not sold by the token, in USD for one: search_units=0.002, seconds=0.0001, characters=0.000015,
        images=0.04. May be given several times, and without --input and --output.
    variant:
        The service tier that this is the price of: flex, priority, batch; the standard one unless told. Or images of
        one quality and size: hd/1024x1792, hd/*, */1024x1792; the closest that fits a request is its price.
    region:
        Where this is the price, as eu-central-1: of deployments whose region (or whose provider's) is that. Elsewhere
        the model costs what is set without.
    """
    from billing.db import writing
    from billing.pricelist import set_price
    from billing.prices import in_region, variant_of
    from gateway.config import PriceSettings
    from gateway.embedded.prices import pusd_per_token

    if (input is None or output is None) and not (per and input is None and output is None):
        raise Problem("a price needs --input and --output, or --per", fix="e.g. --per seconds=0.0001", code=WRONG_USAGE)
    units = dict(map(_unit_price, per))
    try:
        model = in_region(model, region)
    except ValueError as error:
        raise Problem(str(error), fix="name it as the deployment does", code=WRONG_USAGE) from None
    said = PriceSettings(
        input=input, output=output, cache_read=cache_read, cache_write=cache_write, reasoning=reasoning, per=units
    )
    given = {"input": input, "output": output, "cache-read": cache_read, "cache-write": cache_write}
    given |= {"reasoning": reasoning, "cost-input": cost_input, "cost-output": cost_output}
    for name, value in given.items():
        if value is not None and (value < 0 or value * 10**6 != int(value * 10**6)):
            raise Problem(f"--{name}: {value} is no price", fix="at most six decimals, not negative", code=WRONG_USAGE)
    sale = pusd_per_token(said)
    cost = sale
    if cost_input is not None or cost_output is not None:
        dearer = PriceSettings(input=cost_input or input, output=cost_output or output, per=units)
        cost = pusd_per_token(dearer)
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine:
        async with writing(engine) as db:
            now_ns = time.time_ns()
            sheet = await set_price(db, provider, model, sale, cost, at_ns=now_ns, variant=variant_of(variant))
            after = {"id": sheet.id, "variant": sheet.variant, "said": _told(input, output, per)}
            await _note(db, "prices.set", f"{provider}/{model}", now_ns, after)
            waited = await _post_waiting(db, now_ns)
        posted = await _added_up(settings, engine, waited)
    value_out = {"provider": provider, "model": model, "variant": sheet.variant, "price_id": sheet.id, "posted": posted}
    emit(
        common,
        value_out,
        lambda: (
            f"{provider}/{model} costs {_told(input, output, per)} from now on; "
            f"running gateways charge it within seconds{_and_posted(posted)}"
        ),
    )
    return OK


def _unit_price(said: str) -> tuple[PricedUnit, Decimal]:
    """Raises: Problem for what is not `unit=USD`."""
    from gateway.config import UNIT_DIGITS, PricedUnit, is_price

    unit, _, usd = said.partition("=")
    try:
        price = Decimal(usd)
    except InvalidOperation:
        price = Decimal(-1)
    if unit not in get_args(PricedUnit) or not is_price(price, UNIT_DIGITS):
        fix = f"one of {', '.join(get_args(PricedUnit))}, and USD with at most {UNIT_DIGITS} decimals: seconds=0.0001"
        raise Problem(f"--per {said} is no price", fix=fix, code=WRONG_USAGE)
    return unit, price  # type: ignore[return-value]


def _told(given: Decimal | None, made: Decimal | None, per: tuple[str, ...]) -> str:
    tokens = [] if given is None else [f"{given} in, {made} out (USD per million tokens)"]
    return ", ".join([*tokens, *(f"{usd} USD of {unit}" for unit, _, usd in (each.partition("=") for each in per))])


@app.command(name="diff")
async def diff(file: Read, /, *, provider: str = "", common: Common = DEFAULTS) -> int:
    """Compare a price list in LiteLLM's format with the price book. Exit code 1 if they disagree.

    Parameters
    ----------
    file:
        model_prices_and_context_window.json, or a part of it.
    provider:
        Only this provider's.
    """
    listed = [entry for entry in _read(file) if provider in ("", entry.provider)]
    differences = await _differences(common, listed)
    missing = {(d.provider, d.model, d.variant) for d in differences if d.ours is None}
    value = {"listed": len(listed), "differences": [_shown(d) for d in differences]}
    columns = ["provider", "model", "variant", "meter", "above_input_tokens", "ours", "theirs"]

    def table() -> object:
        from rich.console import Group

        rows = [[_shown(d)[c] for c in columns] for d in differences if d.ours is not None]
        said = f"{len(listed)} listed, {len(missing)} of them without a price of ours (USD per million units)"
        return Group(make_table(columns, rows, right=["ours", "theirs"]), said)

    emit(common, value, table)
    return NOT_WELL if differences else OK


@app.command(name="import")
async def import_(file: Read, /, *, provider: str = "", replace: bool = False, common: Changes = CHANGES) -> int:
    """Bring a price list in LiteLLM's format into the price book: what it has and the book has not.

    Parameters
    ----------
    file:
        model_prices_and_context_window.json, or a part of it.
    provider:
        Only this provider's.
    replace:
        Also where the book says otherwise, but for prices that you have set yourself. `prices diff` lists them.
    """
    from billing.db import writing
    from billing.litellm import to_import
    from billing.pricelist import import_prices

    listed = [entry for entry in _read(file) if provider in ("", entry.provider)]
    differences = await _differences(common, listed)
    chosen, kept = to_import(listed, differences, replace=replace)
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine:
        async with writing(engine) as db:
            now_ns = time.time_ns()
            count = await import_prices(db, chosen, file.name, at_ns=now_ns)
            after = {"listed": len(listed), "imported": count, "kept": kept, "replace": replace}
            await _note(db, "prices.import", file.name, now_ns, after)
            waited = await _post_waiting(db, now_ns)
        posted = await _added_up(settings, engine, waited)
    value = {"listed": len(listed), "imported": count, "disagreeing_and_kept": kept, "posted": posted}
    emit(
        common,
        value,
        lambda: (
            f"{count} of {len(listed)} prices imported; {kept} disagree and were kept as they are "
            f"(`farebox prices diff` lists them, --replace takes the list's){_and_posted(posted)}"
        ),
    )
    return OK


@app.command(name="margin")
async def margin(
    scope: Literal["organisation", "plan"],
    scope_id: str,
    percent: Decimal | None = None,
    /,
    *,
    common: Changes = CHANGES,
) -> int:
    """Sell to an organisation, or to all on a plan, at so many percent of cost; without a number, at the list again.

    Parameters
    ----------
    percent:
        125 sells at a quarter above what the provider charges; at most two decimals.
    """
    from billing.db import writing
    from billing.pricelist import set_margin

    bps = None if percent is None else int(percent * 100)
    if percent is not None and (bps != percent * 100 or percent < 0 or percent > 10_000):
        raise Problem(f"{percent} is no margin", fix="0 to 10000, at most two decimals", code=WRONG_USAGE)
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        if scope == "organisation":
            scope_id = await organisation_of(db, scope_id)
        now_ns = time.time_ns()
        await set_margin(db, scope, scope_id, bps, at_ns=now_ns)
        said = "listed prices" if bps is None else f"{percent} % of cost"
        await _note(db, "prices.margin", scope_id, now_ns, {"scope": scope, "margin": said})
    value = {"scope": scope, "scope_id": scope_id, "margin_bps": bps}
    text = "pays the listed prices" if bps is None else f"pays {percent} % of cost"
    emit(common, value, lambda: f"{scope} {scope_id} {text}; running gateways charge it within seconds")
    return OK


@app.command(name="plan")
async def plan(organisation_id: str, plan: str | None = None, /, *, common: Changes = CHANGES) -> int:
    """Put an organisation on a plan, whose margin it pays unless it has its own; without a name, on none."""
    from billing.db import writing
    from billing.pricelist import set_plan

    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        organisation_id = await organisation_of(db, organisation_id)
        await set_plan(db, organisation_id, plan)
        await _note(db, "prices.plan", organisation_id, time.time_ns(), {"plan": plan})
    emit(
        common, {"organisation": organisation_id, "plan": plan}, lambda: f"{organisation_id} is on {plan or 'no plan'}"
    )
    return OK


@app.command(name="rate")
async def rate(
    currency: str,
    per_usd: str,
    /,
    *,
    since: str = "",
    source: str = "",
    common: Changes = CHANGES,
) -> int:
    """Say what one US dollar is in another currency, for invoices of accounts that are shown in it.

    Parameters
    ----------
    currency:
        Three capital letters, as EUR.
    per_usd:
        So many of it for one dollar, as 0.912345.
    since:
        The day from whose beginning it holds, as 2026-11-01 (UTC). Default: now. What stands for a day is not changed.
    source:
        Who says so; it stands on the invoice.
    """
    from billing import currency as money
    from billing.db import writing

    now_ns = time.time_ns()
    try:
        from_ns = day_ns(since) if since else now_ns
        nano = money.parse_rate(per_usd)
        async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
            made = await money.set_rate(db, currency, nano, effective_from_ns=from_ns, source=source, at_ns=now_ns)
            await _note(db, "prices.rate", currency, now_ns, {"per_usd": made.per_usd, "since": made.day})
    except ValueError as error:
        raise Problem(
            str(error), fix="`farebox prices rate EUR 0.912345 --since 2026-11-01`", code=WRONG_USAGE
        ) from error
    value = {"currency": made.currency, "per_usd": made.per_usd, "since": made.day, "source": made.source}
    emit(common, value, lambda: f"1 USD = {made.per_usd} {made.currency} from {made.day} on")
    return OK


@app.command(name="rates")
async def rates(*, common: Common = DEFAULTS) -> int:
    """Show the rates of other currencies, and since when each holds."""
    from billing import currency as money
    from billing.db import reading

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await money.rates(db)
    rows = [{"currency": r.currency, "per_usd": r.per_usd, "since": r.day, "source": r.source} for r in found]
    columns = ["currency", "per_usd", "since", "source"]
    emit(common, {"rates": rows}, lambda: make_table(columns, [[row[c] for c in columns] for row in rows]))
    return OK


async def _post_waiting(db: AsyncConnection, now_ns: int) -> Counter[str]:
    """Requests that were served and had no price yet have one now, perhaps. Returns: how many were charged, by
    organisation."""
    from billing.pricelist import load_prices
    from billing.worker import post_unpriced

    return await post_unpriced(db, await load_prices(db), at_ns=now_ns)


async def _note(db: AsyncConnection, action: str, subject: str, now_ns: int, after: dict[str, Any]) -> None:
    from gateway import audit

    await audit.append(db, actor=acting(ACTOR), action=action, subject=subject, at_ns=now_ns, after=after)


async def _added_up(settings: Settings, engine: AsyncEngine, waited: Counter[str]) -> int:
    """Running gateways' budgets hear of what was charged late. Returns: how many requests that were."""
    from gateway.cli.keys import key_admin

    if waited:
        async with key_admin(settings, engine) as keys:
            await keys.recount_late()
    return waited.total()


def _and_posted(count: int) -> str:
    return f"; {count} requests that waited for a price are charged" if count else ""


def _read(file: Path) -> list[Listed]:
    from billing.litellm import read_list

    try:
        return read_list(read_file(file))
    except (OSError, ValueError) as error:
        raise Problem(str(error), fix="a file in the format of LiteLLM's price list", code=WRONG_USAGE) from error


async def _differences(common: Common, listed: list[Listed]) -> list[Difference]:
    from billing.db import reading
    from billing.litellm import compare
    from billing.pricelist import load_prices

    async with database(common.settings()) as engine, reading(engine) as db:
        book = await load_prices(db)
    return compare(book, listed, time.time_ns())


def _shown(difference: Difference) -> dict[str, object]:
    """Prices in USD per million units."""
    return {
        "provider": difference.provider,
        "model": difference.model,
        "variant": difference.variant,
        "meter": difference.meter.value,
        "above_input_tokens": difference.above_input_tokens,
        "ours": None if difference.ours is None else _usd_per_million(difference.ours),
        "theirs": _usd_per_million(difference.theirs),
    }


def _usd_per_million(pusd_per_token: int) -> str:
    """One pUSD a token is 10**-6 USD a million."""
    whole, fraction = divmod(pusd_per_token, 10**6)
    return f"{whole}.{fraction:06d}".rstrip("0").removesuffix(".")
