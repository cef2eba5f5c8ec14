"""Deployments and aliases: what clients may ask for and where it goes, changed while we run; plans, tried dry."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal

from litestar import Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta, Struct

from gateway.admin.api.providers import Fresh, Match
from gateway.admin.api.values import usd
from gateway.admin.problems import Problem
from gateway.admin.services import Switchyard
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.catalogue import store
from gateway.catalogue.document import AliasEntry, DeploymentEntry, Entry, Kind, Target, etag
from gateway.catalogue.faults import Fault
from gateway.offered import Alias, AliasTerms, DeploymentSettings, Feature, Strategy
from gateway.routing.explaining import explained
from gateway.routing.policy import plan
from gateway.routing.strategies import Load
from providers.registry import class_of

Source = Literal["file", "database"]


class DeploymentRow(Struct, frozen=True):
    """place: what it is called in usage, health and a request's `provider` object."""

    name: str
    place: str
    entry: DeploymentEntry
    source: Source
    etag: str | None


class AliasRow(Struct, frozen=True):
    alias: str
    entry: AliasEntry
    source: Source
    etag: str | None


class Preview(Struct, frozen=True, forbid_unknown_fields=True):
    """A request that is not made. entry: the alias as it would be; None: as it is."""

    alias: Alias
    entry: AliasEntry | None = None
    operation: Literal["chat", "completions", "embeddings"] = "chat"
    needs: frozenset[Feature] = frozenset()
    input_tokens: Annotated[int, Meta(ge=1, le=10**8)] = 1000
    max_tokens: Annotated[int, Meta(ge=1, le=10**7)] | None = None


class PreviewLeg(Struct, frozen=True):
    """likely_usd: with an answer of the usual length; most_usd: what would be held. probe: what the last one found,
    where its provider is probed."""

    place: int
    deployment: str
    kind: str
    region: str | None
    priority: int
    weight: int
    condition: str
    probe: str | None
    in_flight: int
    first_token_ms: int | None
    likely_usd: str
    most_usd: str
    why: str


class PreviewOut(Struct, frozen=True):
    deployment: str
    why: str


class PlanView(Struct, frozen=True):
    """In the order in which they would be tried. Chance is drawn anew each time, as for each request; how deployments
    fare is what this gateway process knows."""

    alias: str
    strategy: Strategy
    legs: list[PreviewLeg]
    left_out: list[PreviewOut]


class CatalogueChange(Struct, frozen=True):
    number: int
    at: Stamp
    actor: str
    change: str


class CatalogueView(Struct, frozen=True):
    """in_force: the version that this process goes by; newest: what was written last. faults: why a newer version or
    an edited file is not in force."""

    in_force: int
    newest: int
    faults: tuple[Fault, ...]
    history: list[CatalogueChange]


class Restore(Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=1)]


@get("/deployments", name="deployments.list")
async def list_deployments(services: Office) -> list[DeploymentRow]:
    """Those of the database, and of the settings file those that stand by themselves."""
    yard = services.yard
    document = (await yard.changes.view()).version.document
    rows = [
        DeploymentRow(name, entry.place, entry, "database", etag(entry)) for name, entry in document.deployments.items()
    ]
    rows += [
        DeploymentRow(said.place, said.place, _as_entry(said), "file", None)
        for said in yard.offer.live.file.deployments
    ]
    return sorted(rows, key=lambda row: row.name)


@put("/deployments/{name:path}", name="deployments.put", status_code=200)
async def put_deployment(
    name: FromPath[str],
    data: JSONBody[DeploymentEntry],
    actor: Caller,
    services: Office,
    if_match: Match = None,
    if_none_match: Fresh = None,
) -> Response[DeploymentRow]:
    """Add a model of a provider, or change what is known of it. Clients may ask for it as `provider/model`; aliases
    name it. A price given here counts from now on."""
    named = _name(name)
    tag = await _put(services.yard, "deployments", named, data, actor, services.clock(), if_match, if_none_match)
    return Response(DeploymentRow(named, data.place, data, "database", tag), headers={"etag": f'"{tag}"'})


@delete("/deployments/{name:path}", name="deployments.remove", status_code=204)
async def remove_deployment(name: FromPath[str], actor: Caller, services: Office, if_match: Match = None) -> None:
    """Refused while an alias names it. What is on its way there is finished."""
    await _remove(services.yard, "deployments", _name(name), actor, services.clock(), if_match)


@get("/aliases", name="aliases.list")
async def list_aliases(services: Office) -> list[AliasRow]:
    """Names that somebody gave: those of the database, and those of the settings file, which are changed there."""
    yard = services.yard
    document = (await yard.changes.view()).version.document
    rows = [AliasRow(name, entry, "database", etag(entry)) for name, entry in document.aliases.items()]
    for model in yard.offer.live.file.models:
        targets = tuple(Target(deployment=d.place, weight=d.weight, priority=d.priority) for d in model.deployments)
        terms = {name: getattr(model, name) for name in AliasTerms.__struct_fields__}
        rows.append(AliasRow(model.alias, AliasEntry(targets=targets, **terms), "file", None))
    return sorted(rows, key=lambda row: row.alias)


@put("/aliases/{name:path}", name="aliases.put", status_code=200)
async def put_alias(
    name: FromPath[str],
    data: JSONBody[AliasEntry],
    actor: Caller,
    services: Office,
    if_match: Match = None,
    if_none_match: Fresh = None,
) -> Response[AliasRow]:
    """Add an alias, or change where it goes. In force in every gateway within two seconds."""
    named = _name(name)
    tag = await _put(services.yard, "aliases", named, data, actor, services.clock(), if_match, if_none_match)
    return Response(AliasRow(named, data, "database", tag), headers={"etag": f'"{tag}"'})


@delete("/aliases/{name:path}", name="aliases.remove", status_code=204)
async def remove_alias(name: FromPath[str], actor: Caller, services: Office, if_match: Match = None) -> None:
    await _remove(services.yard, "aliases", _name(name), actor, services.clock(), if_match)


@post("/route/preview", name="route.preview", status_code=200)
async def preview(data: JSONBody[Preview], services: Office) -> PlanView:
    """Where a request would go and why, by an alias as it is or as it is being edited. Nothing is sent or kept."""
    yard, now_ns = services.yard, services.clock()
    catalog = yard.offer.catalog
    if data.entry is not None:
        settings = await yard.changes.as_if(data.alias, data.entry)
        catalog = yard.offer.with_fleet(settings, yard.offer.prices)
    deployments = catalog.deployments(data.alias)
    load = Load(data.input_tokens, data.max_tokens, 0 if data.operation == "embeddings" else 1)
    outlook = yard.outlook([each.id for each in deployments])
    route = plan(
        data.alias,
        frozenset({data.operation, *data.needs}),
        deployments,
        lambda d: class_of(d.kind).capabilities,
        lambda d: yard.offer.price_of(d, now_ns),
        random.random,
        terms=catalog.terms_of(data.alias),
        outlook=outlook,
        load=load,
    )
    return _plan(explained(data.alias, route, load, outlook))


@get("/catalogue", name="catalogue.read")
async def read_catalogue(services: Office, limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50) -> CatalogueView:
    """Which version is in force, what is wrong with a newer one, and who changed what."""
    offer = services.yard.offer
    async with services.reader.reading() as db:
        history = await store.versions(db, limit=limit)
        newest = await store.newest_number(db)
    return CatalogueView(
        offer.number,
        newest,
        offer.live.faults,
        [CatalogueChange(each.number, stamp(each.at_ns), each.actor, each.change) for each in history],
    )


@post("/catalogue/restore", name="catalogue.restore", status_code=200)
async def restore_catalogue(data: JSONBody[Restore], actor: Caller, services: Office) -> CatalogueView:
    """Bring an earlier version back, as a new one. Credentials stay as they are now."""
    yard = services.yard
    await yard.changes.restore(data.number, actor=actor.name, now_ns=services.clock(), note=actor.why)
    await yard.offer.load()
    shown: CatalogueView = await read_catalogue.fn(services)
    return shown


routing_handlers: list[HTTPRouteHandler] = [
    list_deployments, put_deployment, remove_deployment, list_aliases, put_alias, remove_alias, preview,
    read_catalogue, restore_catalogue,
]  # fmt: skip


async def _put(
    yard: Switchyard, kind: Kind, name: str, entry: Entry, actor: Any, now_ns: int, match: str | None, fresh: str | None
) -> str:
    _not_of_the_file(yard, kind, name)
    await yard.changes.put(
        kind,
        name,
        entry,
        actor=actor.name,
        now_ns=now_ns,
        if_match=None if match is None else match.removeprefix("W/").strip('" ') or None,
        fresh=fresh is not None,
        note=actor.why,
    )
    await yard.offer.load()
    return etag(entry)


async def _remove(yard: Switchyard, kind: Kind, name: str, actor: Any, now_ns: int, match: str | None) -> None:
    _not_of_the_file(yard, kind, name)
    tag = None if match is None else match.removeprefix("W/").strip('" ') or None
    await yard.changes.remove(kind, name, actor=actor.name, now_ns=now_ns, if_match=tag, note=actor.why)
    await yard.offer.load()


def _not_of_the_file(yard: Switchyard, kind: Kind, name: str) -> None:
    file = yard.offer.live.file
    known = {model.alias for model in file.models} if kind == "aliases" else {d.place for d in file.deployments}
    if name in known:
        raise Problem(409, "read-only", f"{name} is in the settings file", "Change it there: it is followed at once.")


def _name(path: str) -> str:
    """A path begins with a slash, which no name does."""
    return path.removeprefix("/")


def _as_entry(said: DeploymentSettings) -> DeploymentEntry:
    known = {name: getattr(said, name) for name in DeploymentEntry.__struct_fields__ if name != "credential"}
    return DeploymentEntry(credential=said.account, **known)


def _plan(told: dict[str, Any]) -> PlanView:
    legs = [
        PreviewLeg(
            leg["place"], leg["deployment"], leg["kind"], leg["region"], leg["priority"], leg["weight"],
            leg["condition"], leg["probe"], leg["in_flight"],
            None if leg["first_token_s"] is None else round(leg["first_token_s"] * 1000),
            usd(leg["likely_pusd"]) or "", usd(leg["most_pusd"]) or "", leg["why"],
        )
        for leg in told["legs"]
    ]  # fmt: skip
    return PlanView(told["model"], told["strategy"], legs, [PreviewOut(**each) for each in told["left_out"]])
