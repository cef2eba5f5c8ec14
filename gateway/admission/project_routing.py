"""What a project says of its requests' ways: what a second is worth to it, and whether its prompts are marked for
providers' caches. Its word stands between the alias' and the request's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec.structs import asdict
from sqlalchemy import delete, select

from billing.accounts import put
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.money import PUSD_PER_USD
from billing.schema import projects
from gateway import audit
from gateway.admission.principal import AS_THE_ALIAS, ProjectRouting
from gateway.errors import InvalidRequest, NotFound
from gateway.schema import project_routing

SECOND_PUSD_MAX: Final = 1_000_000 * PUSD_PER_USD
"""As much as a request may say itself."""


class ProjectRoutings:
    """changed: has every process read its keys again (`KeyAdmin.changed`)."""

    def __init__(self, engine: AsyncEngine, changed: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._changed = changed

    async def read(self, project_id: str) -> ProjectRouting:
        """Raises: NotFound."""
        async with reading(self._engine) as db:
            await _existing(db, project_id)
            return await routing_of(db, project_id) or AS_THE_ALIAS

    async def set(self, project_id: str, said: ProjectRouting, *, actor: str, now_ns: int) -> None:
        """Raises: NotFound; InvalidRequest."""
        if said.second_pusd is not None and not 0 <= said.second_pusd <= SECOND_PUSD_MAX:
            most = SECOND_PUSD_MAX // PUSD_PER_USD
            raise InvalidRequest(f"a second is worth 0 to {most} USD", param="second_usd")
        async with writing(self._engine) as db:
            await _existing(db, project_id)
            await audit.hold(db, project_id)
            before = await routing_of(db, project_id) or AS_THE_ALIAS
            after: dict[str, Any] = asdict(said)
            if said == AS_THE_ALIAS:
                await db.execute(delete(project_routing).where(project_routing.c.project_id == project_id))
            else:
                await put(db, project_routing, {"project_id": project_id, **after})
            await audit.append(
                db, actor=actor, action="project.routing", subject=project_id, at_ns=now_ns,
                before=asdict(before), after=after,
            )  # fmt: skip
        await self._changed()


async def routing_of(db: AsyncConnection, project_id: str) -> ProjectRouting | None:
    """With a key: None where its project says nothing, as most do."""
    query = select(project_routing).where(project_routing.c.project_id == project_id)
    row = (await db.execute(query)).first()
    return None if row is None else ProjectRouting(row.second_pusd, row.cache_prompts)


async def _existing(db: AsyncConnection, project_id: str) -> None:
    """Raises: NotFound."""
    if (await db.execute(select(projects.c.id).where(projects.c.id == project_id))).first() is None:
        raise NotFound(f"no project {project_id!r}", param="project_id")
