"""`farebox providers`: who we can ask and where that was said; added, tried and removed while gateways run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

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
    emit,
    make_table,
)
from gateway.cli.offering import catalogue, fields_of, in_force
from gateway.cli.site import Read, acting

if TYPE_CHECKING:
    from gateway.catalogue.kinds import KindField, ProviderKind

app = App(name="providers")

ACTOR = "farebox providers"


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the providers of the settings and of the database. Shows where each secret comes from, never the secret."""
    settings = common.settings()
    live, document, stored = await in_force(settings)
    unread = [error.path for error in settings.missing_secrets()]
    rows: list[dict[str, Any]] = []
    for name, provider in live.providers.items():
        entry = document.providers.get(name)
        credential = {key: repr(secret) for key, secret in provider.credential.items()}
        if entry is not None:
            credential = stored.get(entry.credential or "", {})
        ready = provider.enabled and not any(path.startswith(f"providers.{name}.") for path in unread)
        rows.append(
            {
                "provider": name,
                "kind": provider.kind,
                "enabled": provider.enabled,
                "base_url": provider.base_url,
                "region": provider.region,
                "credential": credential,
                "ready": ready,
                "source": "file" if entry is None else "database",
            }
        )

    def table() -> object:
        if not rows:
            return "none yet: `farebox providers add`, or export a key (OPENAI_API_KEY, ANTHROPIC_API_KEY, ...)"
        cells = [
            [
                row["provider"],
                row["kind"],
                "yes" if row["ready"] else "no",
                row["base_url"] or row["region"] or "",
                row["source"],
                ", ".join(f"{key}: {value}" for key, value in row["credential"].items()),
            ]
            for row in rows
        ]
        return make_table(["provider", "kind", "ready", "address", "from", "credential"], cells)

    emit(common, {"providers": rows}, table)
    return OK


@app.command
def kinds(*, common: Common = DEFAULTS) -> int:
    """Show the kinds of provider, and what each needs to be told."""
    from gateway.catalogue.kinds import kinds as known

    def named(field: KindField) -> str:
        return field.name if field.required else f"[{field.name}]"

    def needs(each: ProviderKind) -> str:
        ways = " | ".join(" + ".join(map(named, way.fields)) or way.label for way in each.ways)
        options = [f"--option {field.name}=..." for field in each.options if field.required]
        address = ["--base-url"] if each.base_url else []
        return ", ".join([ways, *address, *(["--region"] if each.region else []), *options])

    cells = [[each.kind, each.label, needs(each)] for each in known()]
    emit(common, {"kinds": known()}, lambda: make_table(["kind", "who", "needs"], cells))
    return OK


@app.command
async def add(
    name: str,
    /,
    *,
    kind: str | None = None,
    base_url: str | None = None,
    region: str | None = None,
    reference: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    credential: Read | None = None,
    use: str | None = None,
    option: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    allow_private: Annotated[bool, Parameter(negative="")] = False,
    replicas: Annotated[bool, Parameter(negative="")] = False,
    probe_s: float | None = None,
    probe_path: str | None = None,
    replace: Annotated[bool, Parameter(negative="")] = False,
    common: Changes = CHANGES,
) -> int:
    """Add a provider: every gateway asks it within two seconds, without a restart.

    For example: providers add east --kind bedrock --region us-east-1 --credential keys.txt

    Parameters
    ----------
    name:
        As in NAME/model; yours to choose.
    kind:
        Which adapter speaks to it; `farebox providers kinds` lists them. The name, if left out.
    base_url:
        Its address, where that is not the provider's own.
    region:
        Where it is, for AWS and Vertex.
    reference:
        A field of its credential as FIELD=REFERENCE, for instance api_key=env:OPENAI_API_KEY. May be repeated.
    credential:
        A file with lines of FIELD=VALUE.
    use:
        A credential that is stored already, by name.
    option:
        NAME=VALUE of the adapter's options. May be repeated.
    allow_private:
        The address leads into a network of your own.
    replicas:
        Engines join it by themselves, with the token of the setting replicas.token.
    probe_s:
        Ask it so often, at no cost, whether it is there.
    probe_path:
        What to ask for then, as /health. Its list of models, if left out.
    replace:
        Change one that is there.
    """
    from gateway.catalogue.changes import Sealing
    from gateway.catalogue.document import ProviderEntry, plain

    fields = fields_of(reference, credential)
    if fields and use:
        raise Problem("two credentials", fix="give one of --use and --reference or --credential", code=WRONG_USAGE)
    kind = kind or name
    entry = ProviderEntry(
        kind=kind,
        base_url=base_url,
        region=region,
        credential=name if fields else use,
        options=dict(_pair(each) for each in option),
        allow_private=allow_private,
        replicas=replicas,
        probe_s=probe_s,
        probe_path=probe_path,
    )
    sealing = Sealing(name, kind, fields) if fields else None
    async with catalogue(common) as changes:
        await changes.put(
            "providers", name, entry, actor=acting(ACTOR), now_ns=time.time_ns(), fresh=not replace, sealing=sealing
        )
    emit(common, {"provider": name, "entry": plain(entry)}, lambda: f"{name} can be asked: {name}/MODEL")
    return OK


@app.command(name="test")
async def try_(name: str, /, *, model: str | None = None, common: Common = DEFAULTS) -> int:
    """Ask a provider for its list of models, which costs nothing, and say what came of it.

    Parameters
    ----------
    name:
        As `farebox providers list` shows it.
    model:
        Also ask this one for one token.
    """
    from msgspec.structs import replace as with_

    from gateway.catalogue.trying import tried
    from gateway.routing.provider_set import endpoints_read
    from providers.transport.http1 import Http1Transport

    # Trying writes nothing, so it is no dry run either way.
    async with catalogue(Changes(common.config, common.data, common.json)) as changes:
        settings, _ = await changes.in_force()
        if name not in settings.providers:
            raise Problem(f"no provider {name!r}", fix=f"one of: {', '.join(settings.providers) or 'none yet'}")
        alone = with_(settings, providers={name: settings.providers[name]}, deployments=(), models=())
        endpoints = await endpoints_read(alone, None)
    if name not in endpoints:
        raise Problem(f"{name} is switched off", fix="enable it first")
    transport = Http1Transport()
    try:
        found = await tried(endpoints[name], transport, model)
    finally:
        await transport.aclose()
    emit(common, found, lambda: f"{'ok' if found.ok else found.stage}: {found.says} {found.todo}".rstrip())
    return OK if found.ok else NOT_WELL


@app.command
async def remove(name: str, /, *, common: Changes = CHANGES) -> int:
    """Remove a provider of the database. What is on its way there is finished; its credential stays stored.

    Parameters
    ----------
    name:
        As `farebox providers list` shows it.
    """
    async with catalogue(common) as changes:
        await changes.remove("providers", name, actor=acting(ACTOR), now_ns=time.time_ns())
    emit(common, {"provider": name, "removed": True}, lambda: f"{name} is gone")
    return OK


def _pair(text: str) -> tuple[str, str]:
    """Raises: Problem."""
    name, equals, value = text.partition("=")
    if not equals:
        raise Problem(f"{text!r} is no NAME=VALUE", fix="as --option project=my-project", code=WRONG_USAGE)
    return name, value
