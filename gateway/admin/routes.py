"""Everything of the front office as Litestar route handlers, for the composition root to mount."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from litestar import Router
from litestar.di import Provide
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.types import ControllerRouterHandler, ExceptionHandlersMap

from gateway.admin.api.alerts import alert_handlers
from gateway.admin.api.bodies import body_handlers
from gateway.admin.api.catalog import catalog_handlers
from gateway.admin.api.commands import command_handlers
from gateway.admin.api.comparing import comparing_handlers
from gateway.admin.api.engines import engine_handlers
from gateway.admin.api.forecast import forecast_handlers
from gateway.admin.api.guardrails import guardrail_handlers
from gateway.admin.api.installation import installation_handlers
from gateway.admin.api.invoices import invoice_handlers
from gateway.admin.api.keys import key_handlers
from gateway.admin.api.ledger import ledger_handlers
from gateway.admin.api.losses import losses_handlers
from gateway.admin.api.members import member_handlers
from gateway.admin.api.project_routing import project_routing_handlers
from gateway.admin.api.projects import project_handlers
from gateway.admin.api.providers import provider_handlers
from gateway.admin.api.provisioning import provisioning_handlers
from gateway.admin.api.requests import request_handlers
from gateway.admin.api.routing import routing_handlers
from gateway.admin.api.savings import savings_handlers
from gateway.admin.api.tail import tail_handlers
from gateway.admin.api.usage import usage_handlers
from gateway.admin.api.usage_export import export_handlers
from gateway.admin.auth import guard
from gateway.admin.auth.passkeys import passkey_handlers
from gateway.admin.auth.roles import uncovered
from gateway.admin.auth.routes import auth_handlers
from gateway.admin.auth.sign_on import sign_on_handlers
from gateway.admin.guide import guide_routes
from gateway.admin.problems import respond
from gateway.admin.scim.routes import scim_routes
from gateway.admin.services import Services
from gateway.admin.static import DIST, dashboard_routes

API_PATH = "/admin/v1"
# For the application itself: a path or method that no route of ours has never reaches the routes' own handlers.
ASTRAY: ExceptionHandlersMap = {NotFoundException: respond, MethodNotAllowedException: respond}

HANDLERS = [
    *auth_handlers,
    *sign_on_handlers,
    *passkey_handlers,
    *provisioning_handlers,
    *usage_handlers,
    *export_handlers,
    *savings_handlers,
    *tail_handlers,
    *request_handlers,
    *key_handlers,
    *losses_handlers,
    *project_handlers,
    *project_routing_handlers,
    *forecast_handlers,
    *member_handlers,
    *catalog_handlers,
    *provider_handlers,
    *routing_handlers,
    *comparing_handlers,
    *ledger_handlers,
    *invoice_handlers,
    *alert_handlers,
    *guardrail_handlers,
    *body_handlers,
    *engine_handlers,
    *installation_handlers,
    *command_handlers,
]


def admin_routes(services: Callable[[], Services], *, dist: Path = DIST) -> list[ControllerRouterHandler]:
    """The admin API under /admin/v1 the dashboard under /ui, and the guide under /docs.

    services: asked for at each request, since routes are made before the lifespan has built anything; raises
    gateway.errors.Unavailable until then. Raises: ValueError for a handler that no role may call."""
    if open_by_oversight := uncovered(handler.name or repr(handler) for handler in HANDLERS):
        raise ValueError(f"no role stands for {', '.join(open_by_oversight)} in auth/roles.py")

    def office() -> Services:
        # A function of ours, not the caller's bound method: Litestar copies what it is given, deeply, and would ask
        # a copy of the object that the method belongs to.
        return services()

    api = Router(
        API_PATH,
        route_handlers=list(HANDLERS),
        guards=[guard.gate(office)],
        dependencies={
            "services": Provide(office, sync_to_thread=False),
            "actor": Provide(guard.actor),
            "sight": Provide(guard.sight),
        },
        exception_handlers={Exception: respond},
        # Nothing here may lie in a cache between us and the person who asked.
        response_headers={"cache-control": "no-store"},
        tags=["admin"],
    )
    return [api, scim_routes(services), *dashboard_routes(dist), *guide_routes()]
