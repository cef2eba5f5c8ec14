"""What a request itself says of where it may go: OpenRouter's `provider` object, in the body of OpenAI's dialects or in
the header `x-farebox-preferences` of any.

Source: openrouter.ai/docs, "Provider routing" (read 2026-11). `regions` and `second_usd` are ours. A field that we
cannot honour is refused by name: a constraint that is overlooked sends data where it must not go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from billing.prices import PriceSheet
from billing.usage import Meter
from gateway.config import Strategy
from gateway.errors import InvalidRequest
from gateway.routing.catalog import Deployment
from providers.base import Call
from providers.neutral import ChatRequest
from providers.wire import jsonio

HEADER: Final = "x-farebox-preferences"
FIELD: Final = "provider"
SESSION_HEADER: Final = "x-farebox-session"
_SORTS: Final[dict[str, Strategy]] = {
    "price": "lowest_cost",
    "throughput": "lowest_latency",
    "latency": "lowest_latency",
    "prefix": "prefix",
    "auto": "auto",
}
_Usd = Annotated[float, Meta(ge=0, le=1_000_000)]
_Names = Annotated[tuple[str, ...], Meta(max_length=64)]


class MaxPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """prompt, completion: USD a million tokens. request: USD for each."""

    prompt: _Usd | None = None
    completion: _Usd | None = None
    request: _Usd | None = None


class Preferences(Struct, frozen=True, forbid_unknown_fields=True):
    """Names are those of providers (`groq`), kinds, deployments (`groq/llama-3.3-70b`) or, in `regions`, of regions.

    order: tried first, as listed. only, ignore: who may and who may not. allow_fallbacks: False: the first alone.
    zdr, data_collection "deny": only deployments that the operator marked `zdr`. second_usd: for the sort `auto`."""

    order: _Names = ()
    only: _Names = ()
    ignore: _Names = ()
    regions: _Names = ()
    allow_fallbacks: bool = True
    require_parameters: bool = False
    data_collection: Literal["allow", "deny"] = "allow"
    zdr: bool = False
    sort: Literal["price", "throughput", "latency", "prefix", "auto"] | None = None
    max_price: MaxPrice | None = None
    second_usd: _Usd | None = None

    @property
    def strategy(self) -> Strategy | None:
        return None if self.sort is None else _SORTS[self.sort]

    def forbids(self, deployment: Deployment, sheet: PriceSheet) -> str | None:
        """Why this one may not be tried; None: it may."""
        if self.only and not _named(deployment, self.only):
            return "not among `only`"
        if _named(deployment, self.ignore):
            return "among `ignore`"
        if (self.zdr or self.data_collection == "deny") and not deployment.zdr:
            return "not marked zdr"
        if self.regions and deployment.region not in self.regions and deployment.residency not in self.regions:
            return f"in region {deployment.region or deployment.residency or 'unknown'}"
        return None if self.max_price is None else _too_dear(sheet, self.max_price)

    def place(self, deployment: Deployment) -> int:
        """In `order`; behind it all where it is not named."""
        names = (deployment.id, deployment.provider, deployment.kind)
        return min((self.order.index(name) for name in names if name in self.order), default=len(self.order))


NONE: Final = Preferences()


def read(value: Any, where: str = "provider") -> Preferences:
    """Raises: InvalidRequest naming the field."""
    try:
        return msgspec.convert(value, Preferences, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{where}: {error}", param=where) from error


def read_header(text: str) -> Preferences:
    """Raises: InvalidRequest."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f'{HEADER} is not JSON: {error}; send for example {{"only": ["groq"]}}') from error
    return read(value, HEADER)


def preferred(call: Call, headers: Mapping[str, str]) -> tuple[Call, Preferences]:
    """What the request prefers, and the request without it: no provider knows the field. The body's word wins.

    Raises: InvalidRequest."""
    members = call.request.extensions.get(call.dialect)
    if members is not None and (said := members.get(FIELD)) is not None:
        kept = {name: value for name, value in members.items() if name != FIELD}
        extensions = {**call.request.extensions, call.dialect: kept}
        body = jsonio.split_object(call.body)
        body.pop(FIELD, None)
        request = replace(call.request, extensions=extensions)
        return replace(call, request=request, body=jsonio.joined(body)), read(said)
    return call, NONE if (text := headers.get(HEADER)) is None else read_header(text)


def session_of(request: ChatRequest, headers: Mapping[str, str]) -> str | None:
    """The header's word, else OpenAI's `prompt_cache_key`, which clients send for this very purpose."""
    if (told := headers.get(SESSION_HEADER)) is not None:
        return told
    for members in request.extensions.values():
        if isinstance(key := members.get("prompt_cache_key"), str):
            return key
    return None


def _named(deployment: Deployment, names: tuple[str, ...]) -> bool:
    return deployment.provider in names or deployment.kind in names or deployment.id in names


def _too_dear(sheet: PriceSheet, most: MaxPrice) -> str | None:
    for what, meter, usd, unit in (
        ("prompt", Meter.INPUT_TOKENS, most.prompt, 10**6),
        ("completion", Meter.OUTPUT_TOKENS, most.completion, 10**6),
        ("request", Meter.REQUESTS, most.request, 1),
    ):
        if usd is not None and sheet.sale.get(meter, 0) * unit > usd * 10**12:
            return f"dearer than max_price.{what}"
    return None
