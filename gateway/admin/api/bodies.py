"""Logged bodies: which projects keep them, and those of one request, whose every reading is audited."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import delete, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from gateway.admin.problems import Problem
from gateway.admin.services import Services
from gateway.admin.wants import Caller, Office
from gateway.bodies.store import Bodies, BodyLogging
from gateway.envelope import CannotOpen
from gateway.guardrails.detectors import NAMES
from gateway.kept import key_ring


class BodyLogChange(Struct, frozen=True, forbid_unknown_fields=True):
    """days: how long a body is kept. detectors: what is taken out of it before; null: all there are."""

    days: Annotated[int, Meta(ge=1, le=3650)]
    detectors: list[str] | None = None


class RequestBodies(Struct, frozen=True):
    """As they came and went, redacted; of a stream the answer that it adds up to."""

    request: Any
    response: Any


@get("/bodies/projects", name="bodies.list")
async def list_projects(services: Office) -> list[BodyLogging]:
    """Projects whose bodies are logged; the others' are not."""
    return await _bodies(services).projects()


@put("/bodies/projects/{project_id:str}", name="bodies.set")
async def log_bodies(
    project_id: FromPath[str], data: JSONBody[BodyLogChange], actor: Caller, services: Office
) -> BodyLogging:
    """In force within a second. Bodies of requests before are not to be had."""
    found = NAMES if data.detectors is None else tuple(data.detectors)
    done = await _bodies(services).set(project_id, data.days, found, actor=actor.name, now_ns=services.clock())
    assert done is not None
    return done


@delete("/bodies/projects/{project_id:str}", name="bodies.stop")
async def stop_logging(project_id: FromPath[str], actor: Caller, services: Office) -> None:
    """What is kept stays until its time is over."""
    await _bodies(services).set(project_id, None, (), actor=actor.name, now_ns=services.clock())


@get("/requests/{request_id:str}/bodies", name="bodies.read")
async def read_bodies(request_id: FromPath[str], actor: Caller, services: Office) -> RequestBodies:
    """What one request said and was answered. Whoever reads it stands in the audit log."""
    try:
        said = await _bodies(services).read(
            request_id, key_ring(services.settings), actor=actor.name, now_ns=services.clock()
        )
    except CannotOpen as error:
        raise Problem(409, "sealed", str(error), "Give this process the key ring that sealed it.") from error
    return RequestBodies(said["request"], said["response"])


body_handlers: list[HTTPRouteHandler] = [list_projects, log_bodies, stop_logging, read_bodies]


def _bodies(services: Services) -> Bodies:
    return Bodies(services.engine, services.keys.changed)
