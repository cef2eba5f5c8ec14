"""`farebox route`: where a request would go, and why. Nothing is sent and nothing is held."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from msgspec.structs import replace

from gateway.cli.common import DEFAULTS, OK, Common, database, emit, make_table
from gateway.config import Settings

app = App(name="route")

Feature = Literal["tools", "image_input", "response_format", "logprobs", "candidates"]


@app.command
async def explain(
    model: str,
    /,
    *,
    operation: Literal["chat", "completions", "embeddings"] = "chat",
    needs: Annotated[tuple[Feature, ...], Parameter(consume_multiple=True)] = (),
    input_tokens: int = 1000,
    max_tokens: int | None = None,
    common: Common = DEFAULTS,
) -> int:
    """Show the plan of one request: every deployment in the order it would be tried, and who is left out.

    How deployments fare is known to the gateway's own processes. They answer a request that has the header
    `x-farebox-dry-run: 1` with this very plan, and any other tells of it in `x-farebox-route`. Where chance decides,
    each call draws anew, as each request does.

    Parameters
    ----------
    model:
        What the request would ask for.
    operation:
        What it would do.
    needs:
        Features that it would use.
    input_tokens:
        Its prompt, for strategies and ceilings that look at prices.
    max_tokens:
        Its own output limit.
    """
    from gateway.routing.explaining import explained
    from gateway.routing.offer import Offer
    from gateway.routing.policy import plan
    from gateway.routing.strategies import Load
    from providers.registry import class_of

    settings = _with_engine(common.settings())
    load = Load(input_tokens, max_tokens, 0 if operation == "embeddings" else 1)
    now_ns = time.time_ns()
    async with database(settings) as engine:
        offer = Offer(engine, settings)
        await offer.load()
    terms = offer.catalog.terms_of(model)
    route = plan(
        model,
        frozenset({operation, *needs}),
        offer.catalog.deployments(model),
        lambda d: class_of(d.kind).capabilities,
        lambda d: offer.price_of(d, now_ns),
        random.random,
        terms=terms,
        load=load,
    )
    told = explained(model, route, load)
    emit(common, told, lambda: _table(told["legs"], told["left_out"], route.strategy))
    return OK


def _table(legs: list[dict[str, Any]], left_out: list[dict[str, str]], strategy: str) -> object:
    from billing.money import format_usd

    columns = ["", "deployment", "likely USD", "at most USD", f"why ({strategy})"]
    rows = [
        [
            leg["place"],
            leg["deployment"],
            format_usd(leg["likely_pusd"]),
            format_usd(leg["most_pusd"]),
            leg["why"],
        ]
        for leg in legs
    ]
    rows += [["-", out["deployment"], "", "", f"left out: {out['why']}"] for out in left_out]
    return make_table(columns, rows, right=["likely USD", "at most USD"])


def _with_engine(settings: Settings) -> Settings:
    """`up` learns the local engine's address when it starts it; a plan only asks whether there is one."""
    local = settings.local
    if not local.enabled or local.base_url:
        return settings
    return replace(settings, local=replace(local, base_url=f"http://127.0.0.1:{local.port}"))
