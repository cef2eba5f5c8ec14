"""What a project says of its requests' ways: money against seconds, and marks for providers' prompt caches."""

from __future__ import annotations

from typing import Annotated

from litestar import get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from gateway.admin.api.projects import amount_of
from gateway.admin.api.values import usd
from gateway.admin.services import Services
from gateway.admin.wants import Caller, Office
from gateway.admission.principal import ProjectRouting
from gateway.admission.project_routing import ProjectRoutings


class ProjectRoutingView(Struct, frozen=True):
    """second_usd: what the strategy `auto` pays to save a second. cache_prompts: whether Claude's prompts are marked
    for its cache where the client set no mark. null: as the alias says. A request's own `second_usd` wins."""

    project_id: str
    second_usd: str | None
    cache_prompts: bool | None


class ProjectRoutingChange(Struct, frozen=True, forbid_unknown_fields=True):
    """Both as they are to be from now on. null: as the alias says."""

    second_usd: Annotated[str, Meta(max_length=40)] | None = None
    cache_prompts: bool | None = None


@get("/projects/{project_id:str}/routing", name="project_routing.read")
async def read_routing(project_id: FromPath[str], services: Office) -> ProjectRoutingView:
    """What the project itself says; null where the alias of each request does."""
    return _view(project_id, await _store(services).read(project_id))


@put("/projects/{project_id:str}/routing", name="project_routing.set")
async def set_routing(
    project_id: FromPath[str], data: JSONBody[ProjectRoutingChange], actor: Caller, services: Office
) -> ProjectRoutingView:
    """In force on every gateway within a second."""
    second = None if data.second_usd is None else amount_of(data.second_usd, "second_usd")
    said = ProjectRouting(second, data.cache_prompts)
    await _store(services).set(project_id, said, actor=actor.name, now_ns=services.clock())
    return _view(project_id, said)


project_routing_handlers: list[HTTPRouteHandler] = [read_routing, set_routing]


def _store(services: Services) -> ProjectRoutings:
    return ProjectRoutings(services.engine, services.keys.changed)


def _view(project_id: str, said: ProjectRouting) -> ProjectRoutingView:
    return ProjectRoutingView(project_id, usd(said.second_pusd), said.cache_prompts)
