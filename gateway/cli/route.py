"""`farebox route`: where requests go and why, and where an alias is to go. Nothing is sent and nothing is held."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from msgspec.structs import replace

from gateway.cli.common import CHANGES, DEFAULTS, OK, WRONG_USAGE, Changes, Common, Problem, database, emit, make_table
from gateway.cli.offering import catalogue, in_force
from gateway.cli.site import acting
from gateway.config import Settings
from gateway.offered import Strategy

if TYPE_CHECKING:
    from gateway.catalogue.document import AliasEntry
    from gateway.routing.catalog import Catalog
    from gateway.routing.health import Outlook
    from gateway.routing.offer import Offer
    from gateway.routing.policy import RoutePlan
    from gateway.routing.strategies import Load

app = App(name="route")

ACTOR = "farebox route"

Feature = Literal["tools", "image_input", "file_input", "response_format", "logprobs", "candidates"]


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

    What probes found of providers is told; how calls fare is known to the gateway's own processes. They answer a
    request that has the header `x-farebox-dry-run: 1` with this very plan, and any other tells of it in
    `x-farebox-route`. Where chance decides, each call draws anew, as each request does.

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
    from gateway.routing.offer import Offer
    from gateway.routing.strategies import Load

    settings = _with_engine(common.settings())
    load = Load(input_tokens, max_tokens, 0 if operation == "embeddings" else 1)
    async with database(settings) as engine:
        offer = Offer(engine, settings)
        await offer.load()
        outlook = await _learned(settings, offer, model)
    told, route = _planned(model, operation, needs, load, offer, offer.catalog, outlook)
    emit(common, told, lambda: _table(told["legs"], told["left_out"], route.strategy))
    return OK


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the aliases: what clients may ask for, where it goes, and where that was said."""
    settings, document, _ = await in_force(common.settings())
    rows: list[dict[str, Any]] = [
        {
            "alias": model.alias,
            "strategy": model.strategy,
            "targets": [f"{d.place} (priority {d.priority}, weight {d.weight})" for d in model.deployments],
            "fallbacks": list(model.fallbacks),
            "source": "database" if model.alias in document.aliases else "file",
        }
        for model in settings.models
    ]
    cells = [[r["alias"], r["strategy"], ", ".join(r["targets"]), ", ".join(r["fallbacks"]), r["source"]] for r in rows]
    emit(common, {"aliases": rows}, lambda: make_table(["alias", "strategy", "targets", "fallbacks", "from"], cells))
    return OK


@app.command(name="set")
async def set_(
    alias: str,
    /,
    *targets: str,
    strategy: Strategy = "weighted",
    fallback: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    max_request_usd: str | None = None,
    common: Changes = CHANGES,
) -> int:
    """Say where an alias goes: every gateway does so within two seconds. `route dry-run` shows it first.

    For example: route set fast openai/gpt-5-mini:3 east/amazon.nova-pro-v1:0 --fallback groq/llama-3.3-70b

    Parameters
    ----------
    alias:
        What clients ask for. `*` is every name that nothing else answers to.
    targets:
        Deployments or PROVIDER/MODEL, each with an optional weight behind a last colon and number.
    strategy:
        How they are chosen among.
    fallback:
        Another alias or PROVIDER/MODEL for when all of them have failed. May be repeated.
    max_request_usd:
        Deployments where a request may cost more are not tried.
    """
    from gateway.catalogue.document import plain

    entry = _entry(targets, strategy, fallback, max_request_usd)
    async with catalogue(common) as changes:
        await changes.put("aliases", alias, entry, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"alias": alias, "entry": plain(entry)}, lambda: f"{alias} goes there now")
    return OK


@app.command
async def remove(alias: str, /, *, common: Changes = CHANGES) -> int:
    """Take an alias of the database away: clients that ask for it are refused.

    Parameters
    ----------
    alias:
        As `farebox route list` shows it.
    """
    async with catalogue(common) as changes:
        await changes.remove("aliases", alias, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"alias": alias, "removed": True}, lambda: f"{alias} is gone")
    return OK


@app.command(name="dry-run")
async def dry_run(
    alias: str,
    /,
    *targets: str,
    strategy: Strategy = "weighted",
    fallback: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    operation: Literal["chat", "completions", "embeddings"] = "chat",
    needs: Annotated[tuple[Feature, ...], Parameter(consume_multiple=True)] = (),
    input_tokens: int = 1000,
    max_tokens: int | None = None,
    common: Common = DEFAULTS,
) -> int:
    """Show where requests would go if an alias were set like this. Writes nothing.

    Parameters
    ----------
    alias:
        What clients ask for.
    targets:
        As of `route set`.
    strategy:
        How they are chosen among.
    fallback:
        As of `route set`.
    operation:
        What the request would do.
    needs:
        Features that it would use.
    input_tokens:
        Its prompt.
    max_tokens:
        Its own output limit.
    """
    from gateway.routing.catalog import from_settings
    from gateway.routing.offer import Offer
    from gateway.routing.strategies import Load

    entry = _entry(targets, strategy, fallback, None)
    settings = _with_engine(common.settings())
    async with catalogue(Changes(common.config, common.data, common.json)) as changes:
        as_if = await changes.as_if(alias, entry)
        offer = Offer(changes.engine, settings)
        await offer.load()
    load = Load(input_tokens, max_tokens, 0 if operation == "embeddings" else 1)
    told, route = _planned(alias, operation, needs, load, offer, from_settings(_with_engine(as_if), offer.prices))
    emit(common, told, lambda: _table(told["legs"], told["left_out"], route.strategy))
    return OK


def _entry(targets: tuple[str, ...], strategy: Strategy, fallback: tuple[str, ...], most: str | None) -> AliasEntry:
    """Raises: Problem."""
    from decimal import Decimal, InvalidOperation

    from gateway.catalogue.document import AliasEntry, Target

    if not targets:
        raise Problem("an alias goes somewhere", fix="name PROVIDER/MODEL behind it", code=WRONG_USAGE)
    said = []
    for text in targets:
        # Bedrock's model names end in :0, so only two digits and more, or 1 to 9, are a weight.
        name, colon, weight = text.rpartition(":")
        weighted = bool(colon) and weight.isdigit() and not weight.startswith("0")
        said.append(Target(deployment=name if weighted else text, weight=int(weight) if weighted else 1))
    try:
        ceiling = None if most is None else Decimal(most)
    except InvalidOperation as error:
        raise Problem(f"{most!r} is no amount", fix="USD, as 0.05", code=WRONG_USAGE) from error
    return AliasEntry(targets=tuple(said), strategy=strategy, fallbacks=fallback, max_request_usd=ceiling)


def _planned(
    model: str,
    operation: str,
    needs: tuple[Feature, ...],
    load: Load,
    offer: Offer,
    catalog: Catalog,
    outlook: Outlook | None = None,
) -> tuple[dict[str, Any], RoutePlan]:
    from gateway.errors import ModelNotFound
    from gateway.routing.explaining import explained
    from gateway.routing.health import CALM
    from gateway.routing.policy import plan
    from providers.registry import class_of

    try:
        deployments = catalog.deployments(model)
    except ModelNotFound as error:  # Its words are for clients.
        raise Problem(f"no model {model!r} here", fix="`farebox models list` shows what can be asked for") from error
    now_ns = time.time_ns()
    route = plan(
        model,
        frozenset({operation, *needs}),
        deployments,
        lambda d: class_of(d.kind).capabilities,
        lambda d: offer.price_of(d, now_ns),
        random.random,
        terms=catalog.terms_of(model),
        load=load,
        outlook=outlook or CALM,
    )
    return explained(model, route, load, outlook or CALM), route


async def _learned(settings: Settings, offer: Offer, model: str) -> Outlook | None:
    """Which replicas have joined, and what probes found, where there are any and the gateways' Redis can be asked."""
    if not any(said.probe_s or said.replicas for said in offer.live.settings.providers.values()):
        return None
    import hiredis

    from gateway.admission.store import link_to, store_from
    from gateway.embedded.instance import find_running
    from gateway.errors import Unavailable
    from gateway.routing.probing import findings, outlook_of
    from gateway.routing.replicas import fleet_now

    url = settings.redis_url
    if url is None and (running := find_running(settings.data_dir)) is not None:
        url = running.redis_url
    if url is None:
        return None
    link = link_to(store_from(url))
    try:
        await offer.join(await fleet_now(link, settings.replicas.lease_s))
        return outlook_of(await findings(link), offer.catalog, model)
    except (Unavailable, hiredis.ReplyError):
        return None
    finally:
        await link.aclose()


def _table(legs: list[dict[str, Any]], left_out: list[dict[str, str]], strategy: str) -> object:
    from billing.money import format_usd

    probed = any(leg["probe"] for leg in legs)
    columns = ["", "deployment", "likely USD", "at most USD", *(["probe"] if probed else []), f"why ({strategy})"]
    rows = [
        [
            leg["place"],
            leg["deployment"],
            format_usd(leg["likely_pusd"]),
            format_usd(leg["most_pusd"]),
            *([leg["probe"] or ""] if probed else []),
            leg["why"],
        ]
        for leg in legs
    ]
    empty = [""] * (3 if probed else 2)
    rows += [["-", out["deployment"], *empty, f"left out: {out['why']}"] for out in left_out]
    return make_table(columns, rows, right=["likely USD", "at most USD"])


def _with_engine(settings: Settings) -> Settings:
    """`up` learns the local engine's address when it starts it; a plan only asks whether there is one."""
    local = settings.local
    if not local.enabled or local.base_url:
        return settings
    return replace(settings, local=replace(local, base_url=f"http://127.0.0.1:{local.port}"))
