"""Shapes that several endpoints share. Amounts are exact decimal dollars as text: a JSON number would be rounded."""

from __future__ import annotations

import base64
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from billing.money import format_usd
from gateway.admin.problems import invalid
from gateway.admin.reports import Totals

T = TypeVar("T")


class TotalsView(Struct, frozen=True):
    """cost_usd, what providers bill, is null for roles that may not see money."""

    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    charge_usd: str
    cost_usd: str | None
    unpriced: int


class Page(Struct, Generic[T], frozen=True):
    """next: cursor of the page after this one; None on the last."""

    items: list[T]
    next: str | None


def totals_view(totals: Totals, *, money: bool) -> TotalsView:
    return TotalsView(
        totals.requests,
        totals.failed,
        totals.input_tokens,
        totals.output_tokens,
        format_usd(totals.charge_pusd),
        format_usd(totals.cost_pusd) if money else None,
        totals.unpriced,
    )


def usd(pusd: int | None) -> str | None:
    return None if pusd is None else format_usd(pusd)


def cursor(*position: Any) -> str:
    """Where the next page begins. Opaque to callers."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def at_cursor(text: str, kind: Any) -> Any:
    """Raises: Problem for one that we did not write."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, msgspec.DecodeError) as error:
        raise invalid("cursor", "is none of ours", "Take it from `next` of the page before, unchanged.") from error
