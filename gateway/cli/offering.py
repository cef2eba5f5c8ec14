"""What `providers`, `models`, `route` and `credentials` share: the catalogue in the database, and how it is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.cli.common import AWAY, NOT_WELL, WRONG_USAGE, Changes, Problem, database
from gateway.cli.site import read_file
from gateway.config import ConfigError, Settings, own_environment

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.catalogue.changes import Changes as Catalogue
    from gateway.catalogue.document import Document


@asynccontextmanager
async def catalogue(common: Changes) -> AsyncIterator[Catalogue]:
    """Changes of the catalogue; a dry run takes them back. Faults become problems with what to do."""
    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine:
        with_faults = _catalogue(settings, engine)
        try:
            yield with_faults
        except Exception as error:
            raise _told(error) from error


async def in_force(settings: Settings) -> tuple[Settings, Document, dict[str, dict[str, Any]]]:
    """File and database as one, and what may be seen of stored credentials; the file alone where there is no database
    yet. No secret is opened."""
    from gateway.catalogue.document import EMPTY
    from gateway.routing.offer import Offer

    try:
        async with database(settings) as engine:
            offer = Offer(engine, settings)
            await offer.load()
            view = await _catalogue(settings, engine).view()
    except Problem as problem:
        if problem.code != AWAY:
            raise
        return settings, EMPTY, {}
    stored = {each.name: {field: shown(what) for field, what in each.fields.items()} for each in view.credentials}
    return offer.live.settings, offer.live.document, stored


def shown(field: Any) -> str:
    return field.reference or (f"...{field.last4} ({field.fingerprint})" if field.last4 else "hidden")


def fields_of(references: Sequence[str], file: Path | None) -> dict[str, str]:
    """A credential's fields: references as `api_key=env:NAME`, and the lines of a file, where values may stand too.

    Raises: Problem for a value on the command line: it would stand in the shell's history and in `ps`."""
    from gateway.config_parts import SCHEMES, is_reference

    fields = {}
    for text in references:
        name, equals, said = text.partition("=")
        if not equals or not is_reference(said):
            schemes = ", ".join(f"{scheme}:" for scheme in SCHEMES)
            fix = f"write FIELD=REFERENCE with one of {schemes}; values go into a file for --credential"
            raise Problem(f"{name} is not given by reference", fix=fix, code=WRONG_USAGE)
        fields[name] = said
    if file is not None:
        try:
            text = read_file(file).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(f"{file} cannot be read", fix="name a file with lines as api_key=sk-...") from error
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, equals, value = line.partition("=")
            if not equals:
                raise Problem(f"{file}, line {number} is not FIELD=VALUE", fix="as api_key=sk-...", code=WRONG_USAGE)
            fields[name.strip()] = value.strip()
    return fields


def _catalogue(settings: Settings, engine: Any) -> Catalogue:
    from gateway.catalogue.changes import Changes as Catalogue
    from gateway.kept import key_ring

    return Catalogue(engine, lambda: settings, lambda: key_ring(settings), own_environment({}))


def _told(error: Exception) -> Exception:
    from gateway.catalogue.changes import Outdated, Refused
    from gateway.envelope import CannotOpen

    match error:
        case Refused():
            first = error.faults[0]
            more = "".join(f"\n  also {fault}" for fault in error.faults[1:])
            return Problem(f"{first.path}: {first.problem}{more}", fix=first.todo, code=NOT_WELL)
        case Outdated():
            return Problem(str(error), fix="look again, then repeat the command")
        case CannotOpen():
            return Problem(str(error), fix="restore the key ring from the backup of the data folder", code=AWAY)
        case ConfigError():
            return Problem(error.problem, fix=error.fix)
    return error
