"""Changing the catalogue: one way for the admin API and the command line. Every change is looked at whole, written as
a new version with its trace in the audit log, and taken up by every gateway within two seconds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.exc import IntegrityError

from billing.db import AsyncEngine, reading, writing
from gateway import audit
from gateway.catalogue import store
from gateway.catalogue.declared import declare_deployments
from gateway.catalogue.document import (
    AliasEntry,
    Credentials,
    DeploymentEntry,
    Document,
    Entry,
    Kind,
    ProviderEntry,
    etag,
    merged,
    plain,
)
from gateway.catalogue.faults import Fault, address_fault, faults, secret_faults
from gateway.catalogue.store import StoredCredential, Version
from gateway.config import Settings
from gateway.config_parts import Secret
from gateway.envelope import KeyRing
from gateway.errors import NotFound

_TRIES: Final = 8
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_VALUE_CHARS_MAX: Final = 64_000
# Of our own, so no credential: they would reach whatever address a provider is given.
_OURS: Final = ("FAREBOX_", "DATABASE_URL", "REDIS_URL", "VAULT_TOKEN", "VAULT_SECRET_ID")


class Refused(Exception):
    """A catalogue with faults. Nothing was written; what stood before stands."""

    def __init__(self, found: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, found)))
        self.faults = tuple(found)


class Outdated(Exception):
    """Somebody has changed the entry since it was read. etag: what it is now; None: it is not there."""

    def __init__(self, path: str, now: str | None) -> None:
        super().__init__(f"{path} has been changed meanwhile" if now else f"{path} is not there any more")
        self.etag = now


class Sealing(Struct, frozen=True):
    """A credential to be kept with a change. fields: values and references."""

    name: str
    kind: str
    fields: dict[str, str]

    def __repr__(self) -> str:
        return f"Sealing({self.name}, {', '.join(self.fields)})"


class View(Struct, frozen=True):
    version: Version
    credentials: list[StoredCredential]


ANY: Final = "*"
"""`if_match` of whoever takes any entry that is there; None takes its absence, too."""


class Changes:
    """settings: the file's part as it is now. ring: the key ring as it is now, which is rotated while we run. environ:
    what references look their variables up in."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Callable[[], Settings],
        ring: Callable[[], KeyRing],
        environ: Mapping[str, str],
    ) -> None:
        self.engine = engine
        self._settings = settings
        self._ring = ring
        self.environ = environ

    async def view(self) -> View:
        async with reading(self.engine) as db:
            return View(await store.newest(db), await store.stored(db))

    async def entry(self, kind: Kind, name: str) -> Entry:
        """Raises: NotFound."""
        async with reading(self.engine) as db:
            found = (await store.newest(db)).document.of(kind).get(name)
        if found is None:
            raise NotFound(f"no entry {name!r} among the {kind} of the database")
        return found

    async def put(
        self,
        kind: Kind,
        name: str,
        entry: Entry,
        *,
        actor: str,
        now_ns: int,
        if_match: str | None = None,
        fresh: bool = False,
        sealing: Sealing | None = None,
        note: str | None = None,
    ) -> Version:
        """Make or replace an entry. if_match: the etag it must have; fresh: it must not be there. sealing: its
        credential, kept in the same step. Raises: Refused, Outdated."""
        path = f"{kind}.{name}"
        if isinstance(entry, ProviderEntry):
            at = f"{path}.base_url"
            bad = await asyncio.to_thread(address_fault, at, entry.base_url, allow_private=entry.allow_private)
            if bad is not None:
                raise Refused([bad])

        def edit(before: Document) -> Document:
            _matched(path, before.of(kind).get(name), if_match, fresh)
            return before.with_entry(kind, name, entry)

        return await self._change(
            edit, f"{kind}.put", name, actor, now_ns, sealing=sealing, note=note, of=(kind, name), priced=entry
        )

    async def remove(
        self,
        kind: Kind,
        name: str,
        *,
        actor: str,
        now_ns: int,
        if_match: str | None = None,
        note: str | None = None,
    ) -> Version:
        """Raises: NotFound; Refused where something else names it; Outdated."""

        def edit(before: Document) -> Document:
            found = before.of(kind).get(name)
            if found is None:
                raise NotFound(f"no entry {name!r} among the {kind} of the database")
            _matched(f"{kind}.{name}", found, if_match, fresh=False)
            if users := [each for each, said in before.aliases.items() if name in _named_by(said)]:
                # `provider/model` goes on without its entry, less the limits and tags that stand there: not unsaid.
                todo = "take it out of the alias first"
                raise Refused([Fault(f"aliases.{each}.targets", f"it names {name!r}", todo) for each in users])
            return before.with_entry(kind, name, None)

        return await self._change(edit, f"{kind}.remove", name, actor, now_ns, note=note, of=(kind, name))

    async def restore(self, number: int, *, actor: str, now_ns: int, note: str | None = None) -> Version:
        """An earlier version once more, as a new one. Raises: NotFound, Refused."""
        async with reading(self.engine) as db:
            found = await store.versions(db, limit=1, number=number)
        if not found:
            raise NotFound(f"no version {number}: the last {store.KEPT} are kept")
        return await self._change(
            lambda _: found[0].document, "catalogue.restore", str(number), actor, now_ns, note=note
        )

    async def keep(self, sealing: Sealing, *, actor: str, now_ns: int, note: str | None = None) -> Version:
        """Store a credential, or a new value of it. Raises: Refused."""
        return await self._change(
            lambda before: before, "credentials.put", sealing.name, actor, now_ns, sealing=sealing, note=note
        )

    async def forget(self, name: str, *, actor: str, now_ns: int, note: str | None = None) -> Version:
        """Raises: NotFound; Refused while an entry names it."""
        async with reading(self.engine) as db:
            if name not in {each.name for each in await store.stored(db)}:
                raise NotFound(f"no credential {name!r}")
        return await self._change(
            lambda before: before, "credentials.remove", name, actor, now_ns, dropped=name, note=note
        )

    async def rewrap(self, *, actor: str, now_ns: int) -> int:
        """Every credential under the first key of the ring. Returns: how many were not. Raises: CannotOpen."""
        ring = await asyncio.to_thread(self._ring)
        async with writing(self.engine) as db:
            count = await store.rewrap(db, ring)
            await audit.append(
                db, actor=actor, action="credentials.rewrap", subject=ring.current, at_ns=now_ns, after={"rows": count}
            )
        return count

    async def revealed(self, name: str) -> dict[str, str]:
        """A stored credential's values, for a call. Raises: NotFound, CannotOpen, ConfigError."""
        _, credentials, _ = await self._now()
        if name not in credentials:
            raise NotFound(f"no credential {name!r}")
        return await asyncio.to_thread(lambda: {field: secret.reveal() for field, secret in credentials[name].items()})

    async def check(self, document: Document | None = None) -> list[Fault]:
        """Of the newest version, or of this one in its place. Writes nothing."""
        version, credentials, settings = await self._now()
        return await asyncio.to_thread(_all_faults, settings, document or version.document, credentials)

    async def as_if(self, alias: str, entry: AliasEntry) -> Settings:
        """What would be in force with this alias. Writes nothing. Raises: Refused."""
        version, credentials, settings = await self._now()
        listed = tuple(model for model in settings.models if model.alias != alias)
        settings, document = replace(settings, models=listed), version.document.with_entry("aliases", alias, entry)
        if found := faults(settings, document, credentials):
            raise Refused(found)
        return merged(settings, document, credentials)

    async def in_force(self) -> tuple[Settings, Document]:
        """File and database as one, credentials opened. Raises: Refused for a catalogue with faults."""
        version, credentials, settings = await self._now()
        if found := faults(settings, version.document, credentials):
            raise Refused(found)
        return merged(settings, version.document, credentials), version.document

    async def _now(self) -> tuple[Version, Credentials, Settings]:
        async with reading(self.engine) as db:
            version = await store.newest(db)
            credentials: Credentials = {}
            if await store.any_stored(db):
                credentials = await store.opened(db, await asyncio.to_thread(self._ring), self.environ)
        return version, credentials, self._settings()

    async def _change(
        self,
        edit: Callable[[Document], Document],
        action: str,
        subject: str,
        actor: str,
        now_ns: int,
        *,
        sealing: Sealing | None = None,
        dropped: str | None = None,
        note: str | None = None,
        of: tuple[Kind, str] | None = None,
        priced: Entry | None = None,
    ) -> Version:
        if sealing is not None:
            check_sealing(sealing)
        ring = await asyncio.to_thread(self._ring) if sealing is not None else None
        for _ in range(_TRIES):
            before, credentials, settings = await self._now()
            after = edit(before.document)
            if sealing is not None:
                given = {field: Secret(text, self.environ) for field, text in sealing.fields.items()}
                credentials = {**credentials, sealing.name: given}
            if dropped is not None:
                credentials = {name: fields for name, fields in credentials.items() if name != dropped}
            if found := await asyncio.to_thread(_all_faults, settings, after, credentials):
                raise Refused(found)
            version = Version(before.number + 1, after, now_ns, actor, f"{action} {subject}")
            try:
                async with writing(self.engine) as db:
                    if await store.newest_number(db) != before.number:
                        continue  # Somebody was quicker: what was looked at is not what would be changed.
                    if sealing is not None and ring is not None:
                        await store.put(db, ring, sealing.name, sealing.kind, sealing.fields, actor=actor, at_ns=now_ns)
                    if dropped is not None:
                        await store.remove(db, dropped)
                    await store.append(db, version)
                    if isinstance(priced, DeploymentEntry):
                        await declare_deployments(db, [priced], now_ns)
                    told = _told(of, before.document, after, sealing)
                    await audit.append(
                        db, actor=actor, action=action, subject=subject[:200], at_ns=now_ns, note=note,
                        before=told.get("before"), after=told.get("after"),
                    )  # fmt: skip
            except IntegrityError:
                continue  # The same, on PostgreSQL, where both could begin.
            return version
        raise Outdated(subject, None)


def _all_faults(settings: Settings, document: Document, credentials: Credentials) -> list[Fault]:
    return faults(settings, document, credentials) or secret_faults(document, credentials)


def _matched(path: str, found: Entry | None, if_match: str | None, fresh: bool) -> None:
    now = None if found is None else etag(found)
    if fresh and now is not None:
        raise Refused([Fault(path, "is there already", "change it, or take another name")])
    if if_match is not None and (now is None or if_match not in (ANY, now)):
        raise Outdated(path, now)


def _named_by(alias: AliasEntry) -> set[str]:
    return {*alias.fallbacks, *(target.deployment for target in alias.targets)}


def _told(
    of: tuple[Kind, str] | None, before: Document, after: Document, sealing: Sealing | None
) -> dict[str, dict[str, Any] | None]:
    """For the audit; of a credential its fields' names and what may be seen of them."""
    told: dict[str, dict[str, Any] | None] = {}
    if of is not None:
        kind, name = of
        told = {"before": plain(before.of(kind).get(name)), "after": plain(after.of(kind).get(name))}
    if sealing is not None:
        fields = {field: store.shown(text) for field, text in sealing.fields.items()}
        told["after"] = {**(told.get("after") or {}), "stored_credential": {"name": sealing.name, "fields": fields}}
    return told


def check_sealing(sealing: Sealing) -> None:
    """Raises: Refused."""
    path = f"credentials.{sealing.name}"
    found = []
    if not sealing.fields:
        found.append(Fault(path, "has no fields", "give at least one, as api_key"))
    for field, text in sealing.fields.items():
        if not _FIELD.fullmatch(field):
            found.append(Fault(f"{path}.{field}", "is no field's name", "lower-case letters, digits and _"))
        if not 0 < len(text) <= _VALUE_CHARS_MAX:
            found.append(Fault(f"{path}.{field}", "is empty or too long", "paste the value again"))
        scheme, _, rest = text.partition(":")
        if scheme == "env" and rest.startswith(_OURS):
            found.append(Fault(f"{path}.{field}", f"{rest} is a secret of the gateway's own", "name another variable"))
        if scheme == "file" and not _is_handed_over(rest):
            folders = ", ".join(map(str, SECRET_FOLDERS))
            found.append(Fault(f"{path}.{field}", f"only files below {folders} are read", "put the secret there"))
    if found:
        raise Refused(found)


SECRET_FOLDERS: Final = (Path("/run/secrets"), Path("/var/run/secrets"))
"""Where containers and Kubernetes hand secrets over. Whoever may add a provider may otherwise read no file of this
machine: the settings file, which only its owner writes, may name any."""


def _is_handed_over(rest: str) -> bool:
    path = Path(rest).resolve()
    return any(path.is_relative_to(folder.resolve()) for folder in SECRET_FOLDERS)
