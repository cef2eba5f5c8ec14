"""`farebox keys`: virtual keys."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    emit,
    make_table,
    usd,
)
from gateway.cli.site import HERE, acting
from gateway.config import Settings

if TYPE_CHECKING:
    from billing.accounts import Project
    from billing.db import AsyncEngine
    from gateway.admission.key_admin import KeyAdmin, KeyInfo

app = App(name="keys")

ACTOR = "farebox keys"
PREFIX = "fbx-"
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@app.command
async def create(
    *,
    project: str,
    name: str = "unnamed",
    budget: str | None = None,
    budget_window: Literal["total", "month", "day", "hour"] = "total",
    rpm: int | None = None,
    tpm: int | None = None,
    parallel: int | None = None,
    weight: int | None = None,
    models: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    allow_ip: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    expires: str | None = None,
    common: Changes = CHANGES,
) -> int:
    """Make a key. It is shown once, here, and stored nowhere.

    Parameters
    ----------
    project:
        Whose key it is, by name or id.
    name:
        What you call it.
    budget:
        What it may spend, as 0.01usd or $5. Hard: the worst case of a request is held before it is sent.
    budget_window:
        In what time: ever, a calendar month, a day or an hour (UTC).
    rpm:
        Requests a minute.
    tpm:
        Tokens a minute.
    parallel:
        Requests at once.
    weight:
        Its share where requests wait for their turn at a deployment, beside keys of weight 1.
    models:
        Models it may ask for, as globs: 'gpt-*' 'smollm2-*'. Default: all.
    allow_ip:
        Addresses or networks it may come from. Default: anywhere.
    expires:
        After 90d, 12h, 30m, or at 2027-01-31 (UTC).
    """
    from billing.accounts import Window
    from gateway.admission.key_admin import KeyTerms

    settings = common.settings()
    now_ns = time.time_ns()
    terms = KeyTerms(
        models=tuple(models) if models else None,
        allow_ips=tuple(allow_ip) if allow_ip else None,
        rpm=rpm,
        tpm=tpm,
        parallel=parallel,
        weight=weight,
        expires_at_ns=span_ns(expires, now_ns, "--expires") if expires else None,
    )
    budgets = [(Window(budget_window), _amount(budget))] if budget else []
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        owner = await project_named(engine, project)
        new = await keys.create_key(
            project_id=owner.id, name=name, actor=acting(ACTOR), now_ns=now_ns, terms=terms, budgets=budgets
        )
        info = await keys.key(new.key_id)
    emit(
        common,
        _plain(info, owner.name) | {"key": None if common.dry_run else new.plain},
        lambda: (
            f"a key of project {owner.name} would be made"
            if common.dry_run
            else f"{new.plain}\n\nid {info.id}, project {owner.name}. Keep it: it cannot be shown again."
        ),
    )
    return OK


@app.command(name="list")
async def list_(*, project: str | None = None, like: str | None = None, common: Common = DEFAULTS) -> int:
    """List keys, newest first. Never shows a secret.

    Parameters
    ----------
    project:
        Only this project's.
    like:
        A part of the name, or how the key begins.
    """
    settings = common.settings()
    async with database(settings) as engine, key_admin(settings, engine) as keys:
        project_ids = [(await project_named(engine, project)).id] if project else None
        found = await keys.list_keys(project_ids=project_ids, like=like)
        projects = await _project_names(engine)
    columns = ["key", "name", "project", "budget", "rpm", "tpm", "parallel", "state", "warning"]
    rows = [_plain(info, projects.get(info.project_id, "")) for info in found]
    emit(
        common,
        {"keys": rows},
        lambda: make_table(columns, [[row[c] for c in columns] for row in rows], right=columns[3:7]),
    )
    return OK


@app.command
async def show(key: str, /, *, common: Common = DEFAULTS) -> int:
    """Show one key's terms and what it has spent.

    Parameters
    ----------
    key:
        Its id, or how it begins: fbx-...
    """
    from billing.accounts import Scope
    from billing.db import reading
    from billing.statements import spent

    settings = common.settings()
    async with database(settings) as engine, key_admin(settings, engine) as keys:
        info = await keys.key(id_of(key))
        projects = await _project_names(engine)
        async with reading(engine) as db:
            spent_pusd = await spent(db, Scope.KEY, info.id)
    value = _plain(info, projects.get(info.project_id, "")) | {"spent_usd": usd(spent_pusd), "spent_pusd": spent_pusd}
    emit(common, value, lambda: make_table(["", ""], [[name, said] for name, said in value.items()]))
    return OK


@app.command
async def revoke(key: str, /, *, common: Changes = CHANGES) -> int:
    """Revoke a key for good. Every running gateway refuses it within a second.

    Parameters
    ----------
    key:
        Its id, or how it begins: fbx-...
    """
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        info = await keys.revoke_key(id_of(key), actor=acting(ACTOR), now_ns=time.time_ns())
        projects = await _project_names(engine)
    emit(common, _plain(info, projects.get(info.project_id, "")), lambda: f"{PREFIX}{info.public_id} is revoked")
    return OK


@app.command
async def rotate(key: str, /, *, overlap: str = "24h", why: str | None = None, common: Changes = CHANGES) -> int:
    """Give a key a new secret. It stays the same key: limits, budgets and usage go on.

    Parameters
    ----------
    key:
        Its id, or how it begins: fbx-...
    overlap:
        How long the old secret works on: 7d, 24h, 30m, or 0 to end it at once.
    why:
        The reason, for the audit.
    """
    settings = common.settings()
    now_ns = time.time_ns()
    until_ns = now_ns if overlap == "0" else span_ns(overlap, now_ns, "--overlap")
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        new = await keys.rotate_key(id_of(key), until_ns - now_ns, actor=acting(ACTOR), now_ns=now_ns, why=why)
        info = await keys.key(new.key_id)
        projects = await _project_names(engine)
    plain = None if common.dry_run else new.plain
    value = _plain(info, projects.get(info.project_id, "")) | {"new_key": plain, "old_until": _iso(until_ns)}
    told = f"id {info.id}. The old secret works until {_iso(until_ns)}."
    emit(common, value, lambda: told if plain is None else f"{plain}\n\n{told} Keep this: it cannot be shown again.")
    return OK


@app.command(name="weight")
async def weigh(key: str, weight: int, /, *, common: Changes = CHANGES) -> int:
    """Give a key another share where requests wait for their turn at a deployment with max_parallel.

    Parameters
    ----------
    key:
        The key, as shown or whole.
    weight:
        1 to 1000. A key of weight 3 is served three times the tokens of one of weight 1 while both wait.
    """
    from gateway.admission.key_admin import KeyChanges

    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        changes = KeyChanges(weight=weight)
        info = await keys.update_key(id_of(key), changes, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"key": info.id, "weight": weight}, lambda: f"{info.name}: weight {weight}")
    return OK


@app.command
async def losses(
    scope: Literal["key", "project"],
    name: str,
    mode: Literal["strict", "lenient", "default"] | None = None,
    /,
    *,
    common: Changes = CHANGES,
) -> int:
    """Say what becomes of a request that asks for something its provider has no word for; without a mode, show it.

    Parameters
    ----------
    name:
        The key, as shown or whole, or the project's name.
    mode:
        strict refuses it by name, lenient leaves it out and lists it in x-farebox-dropped; default: as the project, or
        the settings, say. A request's own header x-farebox-losses wins.
    """
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        ident = id_of(name) if scope == "key" else (await project_named(engine, name)).id
        if mode is not None:
            chosen = None if mode == "default" else mode
            await keys.set_losses(scope, ident, chosen, actor=acting(ACTOR), now_ns=time.time_ns())
        found = await keys.losses(scope, ident)
    holds = found.mode or ("strict" if settings.strict else "lenient")
    value = {"scope": scope, "name": name, "losses": found.own or "default", "holds": holds, "by": found.said_by}
    emit(common, value, lambda: f"{scope} {name}: {value['losses']} ({holds}, by the {found.said_by})")
    return OK


@asynccontextmanager
async def key_admin(settings: Settings, engine: AsyncEngine) -> AsyncIterator[KeyAdmin]:
    """Changes keys in SQL and tells running gateways: by the Redis of the settings, or the one that `up` embeds."""
    from billing.db import REHEARSAL
    from gateway.admission.key_admin import KeyAdmin
    from gateway.admission.store import store_from
    from gateway.embedded.instance import find_running
    from gateway.embedded.secrets import Secrets

    site = HERE.get()
    if engine.get_execution_options().get(REHEARSAL):
        # Nobody is told of what is taken back.
        yield KeyAdmin(engine, None, Secrets.load(settings).key_pepper.encode())
        return
    if site is not None:
        yield site.keys
        return
    url = settings.redis_url
    if url is None and (running := find_running(settings.data_dir)) is not None:
        url = running.redis_url
    yield KeyAdmin(engine, store_from(url) if url else None, Secrets.load(settings).key_pepper.encode())


async def project_named(engine: AsyncEngine, name: str) -> Project:
    """By id or name. Raises: NotFound that lists what there is."""
    from billing.accounts import projects
    from billing.db import reading
    from gateway.errors import NotFound

    async with reading(engine) as db:
        known = await projects(db)
    for project in known:
        if name in (project.id, project.name):
            return project
    raise NotFound(f"no project {name!r}; there is: {', '.join(project.name for project in known) or 'none'}")


async def _project_names(engine: AsyncEngine) -> dict[str, str]:
    from billing.accounts import projects
    from billing.db import reading

    async with reading(engine) as db:
        return {project.id: project.name for project in await projects(db)}


def id_of(key: str) -> str:
    """A key as shown, or the whole of one, names itself by the part that is no secret."""
    return key.removeprefix(PREFIX).partition("_")[0] if key.startswith(PREFIX) else key


def _amount(text: str) -> int:
    from billing.money import parse_usd

    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise Problem(f"--budget: {error}", fix="write it as 0.01usd or $5", code=WRONG_USAGE) from error
    if amount < 0:
        raise Problem("--budget: below zero", fix="write it as 0.01usd or $5", code=WRONG_USAGE)
    return amount


def span_ns(text: str, at_ns: int, flag: str) -> int:
    """When a span such as 90d ends, or the date that it is. Raises: Problem naming the flag."""
    if found := re.fullmatch(r"([0-9]+)([mhdw])", text):
        return at_ns + int(found[1]) * _SECONDS[found[2]] * 10**9
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        fix = "write it as 90d, 12h, 30m or 2027-01-31"
        raise Problem(f"{flag}: {text!r} is neither a span nor a date", fix=fix, code=WRONG_USAGE) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()) * 10**9


def _plain(info: KeyInfo, project: str) -> dict[str, Any]:
    terms = info.terms
    return {
        "id": info.id,
        "key": f"{PREFIX}{info.public_id}",
        "name": info.name,
        "project": project,
        "models": list(terms.models) if terms.models else None,
        "allow_ips": list(terms.allow_ips) if terms.allow_ips else None,
        "budget": ", ".join(f"{usd(b.limit_pusd)} USD {b.window.value}" for b in info.budgets) or None,
        "rpm": terms.rpm,
        "tpm": terms.tpm,
        "parallel": terms.parallel,
        "weight": terms.weight or 1,
        "expires": _iso(terms.expires_at_ns),
        "created": _iso(info.created_at_ns),
        "state": info.state(time.time_ns()),
        "warning": info.warning(time.time_ns()),
    }


def _iso(at_ns: int | None) -> str | None:
    if at_ns is None:
        return None
    return datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC).isoformat().replace("+00:00", "Z")
