"""/scim/v2: what provisioning from outside calls, by a bearer token of its own kind, with errors in SCIM's form.

Source: RFC 7644, read 2026-11. Bulk, sorting and ETags are not there, and ServiceProviderConfig says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response, Router, delete, get, patch, post, put
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath
from sqlalchemy.exc import DBAPIError, IntegrityError

from billing.db import reading, writing
from gateway.admin.auth import people
from gateway.admin.problems import Problem
from gateway.admin.scim import schemas, store
from gateway.admin.scim.store import Change, Group, User
from gateway.admin.scim.wire import (
    ENTERPRISE,
    GROUP,
    LIST,
    USER,
    ScimError,
    Test,
    apply,
    parse_filter,
    parse_patch,
)
from gateway.admin.services import Services
from gateway.admin.times import stamp
from gateway.errors import GatewayError

log = structlog.get_logger(__name__)

PATH: Final = "/scim/v2"
MEDIA_TYPE: Final = "application/scim+json"
BODY_BYTES_MAX: Final = 4 * 2**20
COUNT: Final = 100
COUNT_MAX: Final = 500

AnyRequest = Request[Any, Any, Any]
Office = NamedDependency[Services]
Answer = Response[bytes]


def scim_routes(services: Callable[[], Services]) -> Router:
    def office() -> Services:
        return services()

    async def admit(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        here = services()
        now_ns = here.clock()
        subjects = [f"address:{connection.client.host if connection.client else ''}"]
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        async with reading(here.engine) as db:
            if await people.failures(db, subjects, at_ns=now_ns) >= people.MAX_FAILURES:
                raise ScimError(429, "too many wrong tokens from this address; wait fifteen minutes")
        async with writing(here.engine) as db:
            name = None
            if scheme.lower() == "bearer" and secret:
                name = await store.token_name(db, secret.strip(), at_ns=now_ns)
            if name is None and secret:
                await people.record_failure(db, subjects, at_ns=now_ns)
        if name is None:
            raise ScimError(401, "send a SCIM token as Bearer; make one under Organisation")
        connection.scope["state"]["scim"] = name

    return Router(
        PATH,
        route_handlers=[
            list_users, create_user, read_user, replace_user, patch_user, delete_user,
            list_groups, create_group, read_group, replace_group, patch_group, delete_group,
            provider_config, list_types, read_type, list_schemas, read_schema,
        ],
        guards=[admit],
        dependencies={"services": Provide(office, sync_to_thread=False)},
        exception_handlers={Exception: respond},
        include_in_schema=False,
        request_max_body_size=BODY_BYTES_MAX,
    )  # fmt: skip


def respond(request: AnyRequest, error: Exception) -> Answer:
    match error:
        case ScimError():
            found = error
        case Problem():
            found = ScimError(error.status, error.detail)
        case HTTPException():
            found = ScimError(error.status_code, error.detail)
        case IntegrityError():
            found = ScimError(409, "somebody else was quicker with this name", "uniqueness")
        case GatewayError() | DBAPIError() | TimeoutError():
            found = ScimError(503, "the database did not answer in time; try again")
        case _:
            log.error("scim request failed", path=request.url.path, exc_info=error)
            found = ScimError(500, "something went wrong on our side")
    headers = {"www-authenticate": "Bearer"} if found.status == 401 else {}
    return _answer(found.body(), found.status, headers)


@get("/Users")
async def list_users(request: AnyRequest, services: Office) -> Answer:
    tests = _filter(request)
    async with reading(services.engine) as db:
        found = [_user(services, each, []) | {"_row": each} for each in await store.users(db, tests)]
        met = [each for each in found if all(test.holds(each) for test in tests)]
        page, told = _page(request, met)
        inside = await store.groups_of(db, [each["id"] for each in page])
    items = [_user(services, each["_row"], inside.get(each["id"], [])) for each in page]
    return _answer(told | {"Resources": [_chosen(request, item) for item in items]})


@post("/Users")
async def create_user(request: AnyRequest, services: Office) -> Answer:
    body = await _body(request)
    async with _changing(request, services) as change:
        made = await store.create_user(change, body)
    shown = _user(services, made, [])
    return _answer(_chosen(request, shown), 201, {"location": shown["meta"]["location"]})


@get("/Users/{ident:str}")
async def read_user(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    async with reading(services.engine) as db:
        return _answer(_chosen(request, await _whole_user(services, db, await store.user(db, ident))))


@put("/Users/{ident:str}")
async def replace_user(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    body = await _body(request)
    async with _changing(request, services) as change:
        changed = await store.replace_user(change, ident, body)
        return _answer(_chosen(request, await _whole_user(services, change.db, changed)))


@patch("/Users/{ident:str}")
async def patch_user(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    steps = parse_patch(await _body(request))
    async with _changing(request, services) as change:
        whole = _user(services, await store.user(change.db, ident), [])
        for step in steps:
            whole = apply(whole, step)
        changed = await store.replace_user(change, ident, whole)
        return _answer(_chosen(request, await _whole_user(services, change.db, changed)))


@delete("/Users/{ident:str}", status_code=204)
async def delete_user(ident: FromPath[str], request: AnyRequest, services: Office) -> None:
    async with _changing(request, services) as change:
        await store.delete_user(change, ident)


@get("/Groups")
async def list_groups(request: AnyRequest, services: Office) -> Answer:
    tests = _filter(request)
    async with reading(services.engine) as db:
        found = await store.groups(db, tests)
        # Members are many: they are fetched for what is shown, or where the filter asks for them.
        every = await store.members(db, [each.id for each in found]) if _about_members(tests) else {}
        whole = [_group(services, each, every.get(each.id, [])) | {"_row": each} for each in found]
        page, told = _page(request, [each for each in whole if all(test.holds(each) for test in tests)])
        inside = await store.members(db, [each["id"] for each in page])
    items = [_group(services, each["_row"], inside.get(each["id"], [])) for each in page]
    return _answer(told | {"Resources": [_chosen(request, item) for item in items]})


@post("/Groups")
async def create_group(request: AnyRequest, services: Office) -> Answer:
    body = await _body(request)
    async with _changing(request, services) as change:
        made = await store.put_group(change, None, body)
        shown = await _whole_group(services, change.db, made)
    return _answer(_chosen(request, shown), 201, {"location": shown["meta"]["location"]})


@get("/Groups/{ident:str}")
async def read_group(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    async with reading(services.engine) as db:
        return _answer(_chosen(request, await _whole_group(services, db, await store.group(db, ident))))


@put("/Groups/{ident:str}")
async def replace_group(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    body = await _body(request)
    async with _changing(request, services) as change:
        await store.group(change.db, ident)
        changed = await store.put_group(change, ident, body)
        return _answer(_chosen(request, await _whole_group(services, change.db, changed)))


@patch("/Groups/{ident:str}")
async def patch_group(ident: FromPath[str], request: AnyRequest, services: Office) -> Answer:
    steps = parse_patch(await _body(request))
    async with _changing(request, services) as change:
        whole = await _whole_group(services, change.db, await store.group(change.db, ident))
        for step in steps:
            whole = apply(whole, step)
        changed = await store.put_group(change, ident, whole)
        return _answer(_chosen(request, await _whole_group(services, change.db, changed)))


@delete("/Groups/{ident:str}", status_code=204)
async def delete_group(ident: FromPath[str], request: AnyRequest, services: Office) -> None:
    async with _changing(request, services) as change:
        await store.delete_group(change, ident)


@get("/ServiceProviderConfig")
async def provider_config(services: Office) -> Answer:
    return _answer(schemas.config(_at(services), COUNT_MAX))


@get("/ResourceTypes")
async def list_types(services: Office) -> Answer:
    return _answer(_all(schemas.types(_at(services))))


@get("/ResourceTypes/{ident:str}")
async def read_type(ident: FromPath[str], services: Office) -> Answer:
    return _answer(_one(schemas.types(_at(services)), ident))


@get("/Schemas")
async def list_schemas(services: Office) -> Answer:
    return _answer(_all(schemas.all_of(_at(services))))


@get("/Schemas/{ident:str}")
async def read_schema(ident: FromPath[str], services: Office) -> Answer:
    return _answer(_one(schemas.all_of(_at(services)), ident))


def _at(services: Services) -> str:
    return f"{services.settings.office_url}{PATH}"


def _all(items: list[dict[str, Any]]) -> dict[str, Any]:
    return _listed(len(items), 1, len(items)) | {"Resources": items}


def _one(items: list[dict[str, Any]], ident: str) -> dict[str, Any]:
    for each in items:
        if each["id"] == ident:
            return each
    raise ScimError(404, f"no {ident!r}")


def _listed(total: int, start: int, count: int) -> dict[str, Any]:
    return {"schemas": [LIST], "totalResults": total, "startIndex": start, "itemsPerPage": count}


def _page(request: AnyRequest, found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """RFC 7644, section 3.4.2.4: the first is number 1; less than that means it; a count below zero means none."""
    start = max(1, _number(request, "startIndex", 1))
    count = min(COUNT_MAX, max(0, _number(request, "count", COUNT)))
    page = found[start - 1 : start - 1 + count]
    return page, _listed(len(found), start, len(page))


def _number(request: AnyRequest, name: str, otherwise: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise ScimError(400, f"{name} is a whole number", "invalidValue")
    return int(text)


def _filter(request: AnyRequest) -> tuple[Test, ...]:
    text = request.query_params.get("filter")
    return () if text is None else parse_filter(text)


def _about_members(tests: tuple[Test, ...]) -> bool:
    return any(test.path[0] == "members" for test in tests)


def _chosen(request: AnyRequest, resource: dict[str, Any]) -> dict[str, Any]:
    """`attributes` and `excludedAttributes`, by whole attributes; id and schemas are always there."""
    asked, left_out = (
        {name.strip().partition(".")[0].lower() for name in (request.query_params.get(said) or "").split(",")} - {""}
        for said in ("attributes", "excludedAttributes")
    )
    always = {"id", "schemas"}
    return {
        name: value
        for name, value in resource.items()
        if name in always or ((not asked or name.lower() in asked) and name.lower() not in left_out)
    }


async def _body(request: AnyRequest) -> dict[str, Any]:
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ScimError(400, "the body is no JSON object", "invalidSyntax") from error


def _changing(request: AnyRequest, services: Services) -> AbstractAsyncContextManager[Change]:
    actor = request.scope["state"]["scim"]
    return store.changing(services.engine, services.settings.admin, actor, services.clock())


async def _whole_user(services: Services, db: Any, user: User) -> dict[str, Any]:
    return _user(services, user, (await store.groups_of(db, [user.id])).get(user.id, []))


def _user(services: Services, user: User, groups: list[tuple[str, str]]) -> dict[str, Any]:
    at = _at(services)
    extended = [ENTERPRISE] if ENTERPRISE in user.resource else []
    return {
        **user.resource,
        "schemas": [USER, *extended],
        "id": user.id,
        **({} if user.external_id is None else {"externalId": user.external_id}),
        "userName": user.name,
        "active": user.active,
        "groups": [{"value": ident, "display": name, "$ref": f"{at}/Groups/{ident}"} for ident, name in groups],
        "meta": _meta("User", f"{at}/Users/{user.id}", user.created_at_ns, user.changed_at_ns),
    }


async def _whole_group(services: Services, db: Any, group: Group) -> dict[str, Any]:
    return _group(services, group, (await store.members(db, [group.id])).get(group.id, []))


def _group(services: Services, group: Group, members: list[tuple[str, str]]) -> dict[str, Any]:
    at = _at(services)
    return {
        "schemas": [GROUP],
        "id": group.id,
        **({} if group.external_id is None else {"externalId": group.external_id}),
        "displayName": group.name,
        "members": [{"value": ident, "display": name, "$ref": f"{at}/Users/{ident}"} for ident, name in members],
        "meta": _meta("Group", f"{at}/Groups/{group.id}", group.created_at_ns, group.changed_at_ns),
    }


def _meta(kind: str, location: str, created_ns: int, changed_ns: int) -> dict[str, Any]:
    times = {"created": stamp(created_ns).isoformat(), "lastModified": stamp(changed_ns).isoformat()}
    return {"resourceType": kind, **times, "location": location}


def _answer(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    more = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status_code=status, media_type=MEDIA_TYPE, headers=more)
