"""`farebox prices`: the price book, and the operator's own word on a price."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Annotated

from cyclopts import App, Parameter

from gateway.cli.common import DEFAULTS, NOT_WELL, OK, WRONG_USAGE, Common, Problem, database, emit, make_table

app = App(name="prices")

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
    from gateway.discovery import DISCOVERED

    settings = common.settings()
    now_ns = time.time_ns()
    async with database(settings) as engine, reading(engine) as db:
        book = await load_prices(db)
    known = {"local", *settings.providers, *(rule.name for rule in DISCOVERED)}
    rows = []
    for name in sorted(known if provider is None else {provider}):
        for listed in book.models(name):
            if model in listed:
                sheet = book.sheet(name, listed, now_ns)
                prices = {meter.value: _usd_per_million(pusd) for meter, pusd in sheet.sale.items()}
                rows.append({"provider": name, "model": listed, "source": sheet.source, "usd_per_million": prices})

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
    input: Decimal,  # noqa: A002 - the flag is called --input.
    output: Decimal,
    cache_read: Usd = None,
    cache_write: Usd = None,
    reasoning: Usd = None,
    cost_input: Usd = None,
    cost_output: Usd = None,
    common: Common = DEFAULTS,
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
    """
    from billing.db import writing
    from billing.pricelist import set_price
    from gateway.config import PriceSettings
    from gateway.embedded.prices import pusd_per_token

    said = PriceSettings(
        input=input, output=output, cache_read=cache_read, cache_write=cache_write, reasoning=reasoning
    )
    given = {"input": input, "output": output, "cache-read": cache_read, "cache-write": cache_write}
    given |= {"reasoning": reasoning, "cost-input": cost_input, "cost-output": cost_output}
    for name, value in given.items():
        if value is not None and (value < 0 or value * 10**6 != int(value * 10**6)):
            raise Problem(f"--{name}: {value} is no price", fix="at most six decimals, not negative", code=WRONG_USAGE)
    sale = pusd_per_token(said)
    cost = sale
    if cost_input is not None or cost_output is not None:
        cost = pusd_per_token(PriceSettings(input=cost_input or input, output=cost_output or output))
    async with database(common.settings()) as engine, writing(engine) as db:
        sheet = await set_price(db, provider, model, sale, cost, at_ns=time.time_ns())
    value_out = {"provider": provider, "model": model, "price_id": sheet.id}
    emit(
        common,
        value_out,
        lambda: (
            f"{provider}/{model} costs {input} in, {output} out (USD per million tokens) from now on; "
            "running gateways charge it after their next start"
        ),
    )
    return OK


def _usd_per_million(pusd_per_token: int) -> str:
    """One pUSD a token is 10**-6 USD a million."""
    whole, fraction = divmod(pusd_per_token, 10**6)
    return f"{whole}.{fraction:06d}".rstrip("0").removesuffix(".")
