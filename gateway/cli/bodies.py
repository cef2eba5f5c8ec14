"""`farebox bodies`: which projects keep what their requests and answers said, and what one of them did say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from gateway.cli.common import CHANGES, DEFAULTS, OK, Changes, Common, Problem, database, emit, encode, make_table
from gateway.cli.keys import key_admin, project_named
from gateway.cli.site import acting

if TYPE_CHECKING:
    from gateway.bodies.store import BodyLogging

app = App(name="bodies")

ACTOR = "farebox bodies"


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the projects whose bodies are logged. The others' are not."""
    from gateway.bodies.store import Bodies

    settings = common.settings()
    async with database(settings) as engine, key_admin(settings, engine) as keys:
        found = await Bodies(engine, keys.changed).projects()
    cells = [[each.project_id, each.days, ", ".join(each.detectors) or "nothing"] for each in found]
    emit(common, {"projects": found}, lambda: make_table(["project", "days", "taken out before"], cells))
    return OK


@app.command(name="set")
async def set_(
    project: str,
    /,
    *,
    days: int,
    detectors: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    common: Changes = CHANGES,
) -> int:
    """Log the bodies of a project from now on: redacted, sealed, and gone after so many days.

    Parameters
    ----------
    project:
        By name or id.
    days:
        How long each is kept.
    detectors:
        What is taken out of them before: card, email, phone, iban, api_key, ip. Default: all of them.
    """
    from gateway.guardrails.detectors import NAMES

    return await _set(common, project, days, NAMES if detectors is None else detectors)


@app.command
async def stop(project: str, /, *, common: Changes = CHANGES) -> int:
    """Log no more bodies of a project. What is kept stays until its time is over.

    Parameters
    ----------
    project:
        By name or id.
    """
    return await _set(common, project, None, ())


@app.command
async def read(request: str, /, *, common: Common = DEFAULTS) -> int:
    """Show what one request said and was answered. That you read it stands in the audit before you do.

    Parameters
    ----------
    request:
        Its id, as the header x-request-id told it.
    """
    from gateway.bodies.store import Bodies
    from gateway.envelope import CannotOpen
    from gateway.kept import key_ring

    settings = common.settings()
    async with database(settings) as engine, key_admin(settings, engine) as keys:
        try:
            said = await Bodies(engine, keys.changed).read(
                request, key_ring(settings), actor=acting(ACTOR), now_ns=time.time_ns()
            )
        except CannotOpen as error:
            raise Problem(str(error), fix="give this process the key ring that sealed it (FAREBOX_KEY_RING)") from error
    emit(common, said, lambda: "\n\n".join(f"{name}\n{encode(said[name])}" for name in ("request", "response")))
    return OK


async def _set(common: Changes, project: str, days: int | None, detectors: tuple[str, ...]) -> int:
    from gateway.bodies.store import Bodies

    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        owner = await project_named(engine, project)
        done = await Bodies(engine, keys.changed).set(
            owner.id, days, detectors, actor=acting(ACTOR), now_ns=time.time_ns()
        )
    emit(common, {"project": owner.id, "logged": done}, lambda: _told(owner.name, done))
    return OK


def _told(name: str, done: BodyLogging | None) -> str:
    if done is None:
        return f"bodies of project {name} are not logged any more"
    return f"bodies of project {name} are logged and kept for {done.days} days, without {', '.join(done.detectors)}"
