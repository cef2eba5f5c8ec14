"""Providers and their credentials: added, tried, changed and removed while the gateway runs.

What the settings file says is listed beside and cannot be changed here. Every change is in force in all gateways within
two seconds; no open stream notices. A credential goes in and never comes out again.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from litestar import Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from msgspec import Meta, Struct
from msgspec.structs import replace

from billing.errors import UnknownPrice
from billing.usage import Meter
from gateway.admin.api.values import usd
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.services import Switchyard
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.catalogue import kinds, trying
from gateway.catalogue.changes import Sealing, check_sealing
from gateway.catalogue.document import ProviderEntry, ProviderName, etag
from gateway.catalogue.faults import address_fault
from gateway.catalogue.kinds import ProviderKind
from gateway.catalogue.store import StoredCredential, StoredField
from gateway.catalogue.trying import Tried
from gateway.config_parts import ConfigError, Secret
from gateway.offered import Name
from gateway.routing.catalog import Deployment
from gateway.routing.provider_set import endpoints_read
from providers.base import Credential, Endpoint
from providers.errors import ProviderError

Fields = Annotated[dict[str, Annotated[str, Meta(max_length=64_000)]], Meta(max_length=20)]
Match = Annotated[str | None, HeaderParameter(name="If-Match", max_length=100)]
Fresh = Annotated[str | None, HeaderParameter(name="If-None-Match", max_length=10)]


class ProviderDetail(Struct, frozen=True):
    """source: "file" is the settings file or the environment, which is changed there; "database" is changed here.
    credential: name of a stored credential; credential_fields: what may be seen of what is used."""

    name: str
    kind: str
    enabled: bool
    base_url: str | None
    region: str | None
    credential: str | None
    credential_fields: dict[str, StoredField]
    options: dict[str, Any]
    allow_private: bool
    replicas: bool
    probe_s: float | None
    probe_path: str | None
    source: Literal["file", "database"]
    etag: str | None


class ProviderChange(ProviderEntry, frozen=True, kw_only=True):
    """credential_fields: kept as a credential called like the provider, values or references (env:, file: below
    /run/secrets, vault:, aws-secretsmanager:, gcp-secret-manager:, azure-key-vault:). Left out: the credential that
    it has stays."""

    credential_fields: Fields | None = None


class ProviderTrial(ProviderChange, frozen=True, kw_only=True):
    """model: asked for one token; needed where the provider has no list of models."""

    name: ProviderName = "new"
    model: Annotated[str, Meta(max_length=256)] | None = None


class TestRequest(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=256)] | None = None


class OfferedModel(Struct, frozen=True):
    """What the provider lists. price: USD per million tokens, None: nobody has set one, so it would be refused.
    offered: listed to clients, as `provider/model`; what is priced and not listed they may ask for all the same."""

    model: str
    input_usd: str | None
    output_usd: str | None
    priced: bool
    offered: bool


class CredentialView(Struct, frozen=True):
    """used_by: providers and deployments that name it. sealed_under: which key of the ring."""

    name: str
    kind: str
    fields: dict[str, StoredField]
    used_by: list[str]
    sealed_under: str
    created_at: Stamp
    changed_at: Stamp
    changed_by: str


class CredentialChange(Struct, frozen=True, forbid_unknown_fields=True):
    """kind: of the provider it is for."""

    kind: Name
    fields: Fields


@get("/provider-kinds", name="providers.kinds", sync_to_thread=False)
def list_kinds() -> tuple[ProviderKind, ...]:
    """What each kind of provider needs to be told."""
    return kinds.kinds()


@get("/providers/{name:str}", name="providers.read")
async def read_provider(name: FromPath[str], services: Office) -> Response[ProviderDetail]:
    """One provider, with the ETag that a change may send as If-Match."""
    return await _detail(services.yard, name)


@put("/providers/{name:str}", name="providers.put", status_code=200)
async def put_provider(
    name: FromPath[ProviderName],
    data: JSONBody[ProviderChange],
    actor: Caller,
    services: Office,
    if_match: Match = None,
    if_none_match: Fresh = None,
) -> Response[ProviderDetail]:
    """Add a provider or change one. Sending it again changes nothing more. `If-None-Match: *` only adds, `If-Match`
    only changes what has that ETag. What is wrong is told fault by fault, and nothing is kept then."""
    yard = services.yard
    entry, sealing = _asked(name, data)
    await yard.changes.put(
        "providers",
        name,
        entry,
        actor=actor.name,
        now_ns=services.clock(),
        if_match=_tag(if_match),
        fresh=if_none_match is not None,
        sealing=sealing,
        note=actor.why,
    )
    await yard.offer.load()
    return await _detail(yard, name)


@delete("/providers/{name:str}", name="providers.remove", status_code=204)
async def remove_provider(name: FromPath[str], actor: Caller, services: Office, if_match: Match = None) -> None:
    """Requests that are on their way there are finished. Its stored credential stays; remove it beside."""
    yard = services.yard
    _not_of_the_file(yard, name)
    await yard.changes.remove(
        "providers", name, actor=actor.name, now_ns=services.clock(), if_match=_tag(if_match), note=actor.why
    )
    await yard.offer.load()


@post("/providers/{name:str}/test", name="providers.test", status_code=200)
async def test_provider(name: FromPath[str], data: JSONBody[TestRequest], services: Office) -> Tried:
    """Ask it for its list of models, which costs nothing, and tell what came of it. With `model` also for one token."""
    yard = services.yard
    endpoint = await _endpoint(yard, name)
    entry = yard.offer.live.document.providers.get(name)
    if entry is not None and (bad := await _guarded(f"providers.{name}.base_url", entry)) is not None:
        return bad
    return await trying.tried(endpoint, yard.transport, data.model)


@post("/provider-tests", name="providers.try", status_code=200)
async def try_provider(data: JSONBody[ProviderTrial], services: Office) -> Tried:
    """The same for a provider that is not there yet, as the form has it. Nothing is kept."""
    yard = services.yard
    entry, sealing = _asked(data.name, data)
    if (bad := await _guarded("base_url", entry)) is not None:
        return bad
    fields: dict[str, str] = {}
    try:
        if sealing is not None:
            check_sealing(sealing)
            fields = await asyncio.to_thread(_revealed, yard, sealing.fields)
        elif entry.credential is not None:
            fields = await yard.changes.revealed(entry.credential)
    except ConfigError as error:
        return Tried(False, "settings", error.problem, error.fix, 0)
    endpoint = Endpoint(entry.kind, entry.base_url, entry.region, Credential(fields), entry.options)
    return await trying.tried(endpoint, yard.transport, data.model)


@get("/providers/{name:str}/models", name="providers.discover")
async def discover_models(
    name: FromPath[str], services: Office, search: Annotated[str, QueryParameter(max_length=200)] = ""
) -> list[OfferedModel]:
    """What the provider lists for this credential, with what each would be sold at."""
    yard = services.yard
    endpoint = await _endpoint(yard, name)
    try:
        found = await trying.listed(endpoint, yard.transport)
    except ProviderError as error:
        raise Problem(502, "provider-failed", error.message, "Test the provider: that tells what is wrong.") from error
    now_ns, aliases = services.clock(), yard.offer.catalog.aliases
    listed = [model for model in dict.fromkeys(found) if search.lower() in model.lower()]
    return [_offered(yard, endpoint, name, model, now_ns, f"{name}/{model}" in aliases) for model in listed[:1000]]


@get("/credentials", name="credentials.list")
async def list_credentials(services: Office) -> list[CredentialView]:
    """Stored credentials: what may be seen of them, and what uses them."""
    return await _credentials(services.yard)


@put("/credentials/{name:str}", name="credentials.put", status_code=200)
async def put_credential(
    name: FromPath[Name], data: JSONBody[CredentialChange], actor: Caller, services: Office
) -> CredentialView:
    """Store a credential or a new value of one; whoever uses it does so with the new value from the next request on."""
    yard = services.yard
    sealing = Sealing(name, data.kind, data.fields)
    await yard.changes.keep(sealing, actor=actor.name, now_ns=services.clock(), note=actor.why)
    await yard.offer.load()
    return next(each for each in await _credentials(yard) if each.name == name)


@delete("/credentials/{name:str}", name="credentials.remove", status_code=204)
async def remove_credential(name: FromPath[str], actor: Caller, services: Office) -> None:
    """Refused while something names it."""
    await services.yard.changes.forget(name, actor=actor.name, now_ns=services.clock(), note=actor.why)
    await services.yard.offer.load()


provider_handlers: list[HTTPRouteHandler] = [
    list_kinds, read_provider, put_provider, remove_provider, test_provider, try_provider, discover_models,
    list_credentials, put_credential, remove_credential,
]  # fmt: skip


async def _credentials(yard: Switchyard) -> list[CredentialView]:
    view = await yard.changes.view()
    users: dict[str, list[str]] = {}
    for name, provider in view.version.document.providers.items():
        users.setdefault(provider.credential or "", []).append(f"providers/{name}")
    for name, deployment in view.version.document.deployments.items():
        users.setdefault(deployment.credential or "", []).append(f"deployments/{name}")
    return [_credential(each, users.get(each.name, [])) for each in view.credentials]


def _asked(name: str, data: ProviderChange) -> tuple[ProviderEntry, Sealing | None]:
    fields = {each: text for each, text in (data.credential_fields or {}).items() if text}
    credential = data.credential
    sealing = None
    if fields:
        credential = credential or name
        sealing = Sealing(credential, data.kind, fields)
    entry = ProviderEntry(
        kind=data.kind,
        enabled=data.enabled,
        base_url=data.base_url or None,
        region=data.region or None,
        credential=credential or None,
        options=data.options,
        allow_private=data.allow_private,
        replicas=data.replicas,
        probe_s=data.probe_s,
        probe_path=data.probe_path or None,
    )
    return entry, sealing


async def _guarded(path: str, entry: ProviderEntry) -> Tried | None:
    fault = await asyncio.to_thread(address_fault, path, entry.base_url, allow_private=entry.allow_private)
    return None if fault is None else Tried(False, "settings", fault.problem, fault.todo, 0)


def _revealed(yard: Switchyard, fields: dict[str, str]) -> dict[str, str]:
    return {name: Secret(text, yard.changes.environ).reveal() for name, text in fields.items()}


async def _endpoint(yard: Switchyard, name: str) -> Endpoint:
    """With its secrets, as calls have it. Raises: Problem."""
    settings, _ = await yard.changes.in_force()
    found = settings.providers.get(name)
    if found is None:
        raise not_found("provider", name, "List the providers and take a name from there.")
    alone = replace(settings, providers={name: found}, deployments=(), models=())
    try:
        return (await endpoints_read(alone, None))[name]
    except KeyError:
        raise Problem(409, "disabled", f"{name} is switched off", "Enable it first.") from None
    except ConfigError as error:
        raise invalid("credential", error.problem, error.fix or "Store it anew.") from error


def _not_of_the_file(yard: Switchyard, name: str) -> None:
    if name in yard.offer.live.file.providers:
        raise Problem(409, "read-only", f"{name} is in the settings file or the environment", "Remove it there.")


async def _detail(yard: Switchyard, name: str) -> Response[ProviderDetail]:
    view = await yard.changes.view()
    stored = {each.name: each.fields for each in view.credentials}
    entry = view.version.document.providers.get(name)
    if entry is not None:
        tag = etag(entry)
        fields = stored.get(entry.credential or "", {})
        detail = ProviderDetail(
            name, entry.kind, entry.enabled, entry.base_url, entry.region, entry.credential, fields, entry.options,
            entry.allow_private, entry.replicas, entry.probe_s, entry.probe_path, "database", tag,
        )  # fmt: skip
        return Response(detail, headers={"etag": f'"{tag}"'})
    said = yard.offer.live.file.providers.get(name)
    if said is None:
        raise not_found("provider", name, "List the providers and take a name from there.")
    shown = {
        field: StoredField(reference=None if secret.shown == "hidden" else secret.shown)
        for field, secret in said.credential.items()
    }
    return Response(
        ProviderDetail(
            name,
            said.kind,
            said.enabled,
            said.base_url,
            said.region,
            None,
            shown,
            said.options,
            True,
            said.replicas,
            said.probe_s,
            said.probe_path,
            "file",
            None,
        )
    )


def _offered(yard: Switchyard, endpoint: Endpoint, name: str, model: str, now_ns: int, offered: bool) -> OfferedModel:
    try:
        sale = yard.offer.price_of(Deployment(name, endpoint.provider, model), now_ns).sale
    except UnknownPrice:
        return OfferedModel(model, None, None, False, offered)
    per_million = {meter: usd(sale[meter] * 10**6) if meter in sale else None for meter in _MAIN}
    return OfferedModel(model, per_million[_MAIN[0]], per_million[_MAIN[1]], True, offered)


_MAIN = (Meter.INPUT_TOKENS, Meter.OUTPUT_TOKENS)


def _credential(stored: StoredCredential, used_by: list[str]) -> CredentialView:
    return CredentialView(
        stored.name, stored.kind, stored.fields, sorted(used_by), stored.key_id, stamp(stored.created_at_ns),
        stamp(stored.changed_at_ns), stored.changed_by,
    )  # fmt: skip


def _tag(header: str | None) -> str | None:
    return None if header is None else header.removeprefix("W/").strip().strip('"') or None
