"""Errors of the admin API: RFC 9457 problem details, each with a line that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct
from sqlalchemy.exc import DBAPIError, IntegrityError

from billing.errors import BillingError, InsufficientFunds, LedgerConflict
from gateway.catalogue.changes import Outdated, Refused
from gateway.catalogue.faults import Fault
from gateway.envelope import CannotOpen
from gateway.errors import GatewayError, NotFound, Unavailable

log = structlog.get_logger(__name__)

# Source: RFC 9457 section 3, read 2026-11.
MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """What a handler raises. kind: a stable slug; detail: what happened; todo: what the reader can do about it."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        todo: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.todo = todo
        self.field = field
        self.retry_after_s = retry_after_s
        self.faults = tuple(faults)


class ProblemDetails(Struct, frozen=True, omit_defaults=True):
    """The body. `type` is a stable URN; `todo`, `field` and `faults` (all that is wrong, where several things may be)
    are our extension members."""

    type: str
    title: str
    status: int
    detail: str
    todo: str
    instance: str
    field: str | None = None
    faults: tuple[Fault, ...] = ()


def not_found(what: str, name: str, todo: str) -> Problem:
    return Problem(404, "not-found", f"no {what} {name!r}", todo)


def invalid(field: str, detail: str, todo: str) -> Problem:
    return Problem(422, "invalid-value", detail, todo, field=field)


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Any exception of a handler as a problem. Unforeseen ones are logged and tell the reader nothing of the inside."""
    problem = _problem(error)
    if problem.status == 500:
        log.error("admin request failed", path=request.url.path, exc_info=error)
    body = ProblemDetails(
        type=f"urn:farebox:problem:{problem.kind}",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        todo=problem.todo,
        instance=request.url.path,
        field=problem.field,
        faults=problem.faults,
    )
    headers = {} if problem.retry_after_s is None else {"retry-after": str(problem.retry_after_s)}
    return Response(msgspec.json.encode(body), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case ValidationException():
            field, detail = _first(error)
            return Problem(422, "invalid-value", detail, "Correct the value and send it again.", field=field)
        case HTTPException():
            kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
            return Problem(error.status_code, kind, error.detail, "See the reference under /docs.")
        case NotFound():
            return Problem(404, "not-found", error.message, "List what is there and take an id from the list.")
        case Unavailable():
            return Problem(503, "unavailable", error.message, "Try again; `farebox check` names what is away.")
        case GatewayError():
            return Problem(422, error.code.replace("_", "-"), error.message, "Correct the value and send it again.")
        case Refused():
            first = error.faults[0]
            return Problem(422, "catalogue-refused", str(first).partition("; ")[0], first.todo, field=first.path,
                           faults=error.faults)  # fmt: skip
        case Outdated():
            return Problem(412, "changed-meanwhile", str(error), "Read it again, and make the change on what is there.")
        case CannotOpen():
            return Problem(503, "key-ring", str(error), "Restore the key ring, or store the credential anew.")
        case InsufficientFunds():
            return Problem(409, "insufficient-funds", str(error), "Take a smaller amount or top up first.")
        case LedgerConflict():
            return Problem(409, "already-posted", str(error), "Use a new idempotency key for another transfer.")
        case BillingError() | ValueError():
            return Problem(422, "invalid-value", str(error), "Correct the value and send it again.")
        case IntegrityError():
            return Problem(
                409, "conflict", "Somebody else changed the same thing at this moment.", "Read it again, then decide."
            )
        case DBAPIError() | TimeoutError():
            return Problem(
                503, "report-too-slow", "The database did not answer in time.", "Take a shorter period or more filters."
            )
    return Problem(500, "internal", "Something went wrong on our side.", "Look for this path in the gateway's log.")


def _first(error: ValidationException) -> tuple[str | None, str]:
    found = error.extra
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return found[0].get("key"), str(found[0].get("message", error.detail))
    return None, error.detail
