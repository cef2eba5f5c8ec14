"""What becomes of a request that asks for something its provider has no word for: said for a project or for one key."""

from __future__ import annotations

from typing import Literal

from litestar import get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from gateway.admin.services import Services
from gateway.admin.wants import Caller, Office

Mode = Literal["strict", "lenient"]
Level = Literal["project", "key"]


class LossesView(Struct, frozen=True):
    """own: what this one says itself, if anything. effective: what holds, and said_by: whose word that is. A request's
    own header `x-farebox-losses` wins over all of them."""

    level: Level
    scope_id: str
    own: Mode | None
    effective: Mode
    said_by: Literal["key", "project", "settings"]


class LossesChange(Struct, frozen=True, forbid_unknown_fields=True):
    """strict refuses it by name; lenient leaves it out and lists it in `x-farebox-dropped`; null: as the next wider
    scope says."""

    mode: Mode | None


@get("/losses/{level:str}/{scope_id:str}", name="losses.read")
async def read_losses(level: FromPath[Level], scope_id: FromPath[str], services: Office) -> LossesView:
    """Strict or lenient, and who says so: the key, its project, or the settings."""
    return await _seen(services, level, scope_id)


@put("/losses/{level:str}/{scope_id:str}", name="losses.set")
async def set_losses(
    level: FromPath[Level], scope_id: FromPath[str], data: JSONBody[LossesChange], actor: Caller, services: Office
) -> LossesView:
    """Say it for a project or for one of its keys. Every running gateway knows it within a second."""
    await services.keys.set_losses(level, scope_id, data.mode, actor=actor.name, now_ns=services.clock())
    return await _seen(services, level, scope_id)


losses_handlers: list[HTTPRouteHandler] = [read_losses, set_losses]


async def _seen(services: Services, level: Level, scope_id: str) -> LossesView:
    found = await services.keys.losses(level, scope_id)
    settled: Mode = "strict" if services.settings.strict else "lenient"
    return LossesView(level, scope_id, found.own, found.mode or settled, found.said_by)
