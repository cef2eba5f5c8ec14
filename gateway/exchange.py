"""One request as it came off the wire, and what goes back. The values that every way through the gateway shares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from gateway.errors import InvalidRequest
from providers.base import Provider
from providers.dialects.base import ErrorBody

if TYPE_CHECKING:
    from gateway.admission import Principal
    from gateway.ingress.endpoints import Route

Headers = list[tuple[str, str]]
SayError = Callable[[Exception, str], ErrorBody]
"""An error and a request id, in the words a client will see: the table of `ingress/errors.py`."""


class Inbound(Struct, frozen=True):
    """headers: lower-case names. now_ns: unix time at arrival."""

    route: Route
    headers: Mapping[str, str]
    body: bytes
    key: str | None
    client_ip: str
    request_id: str
    now_ns: int
    tier: str | None = None
    """Set by the gateway itself: at whose price it is charged, whatever the body says."""
    is_shadow: bool = False
    """A copy, which makes no copies."""


class Reply(Struct, frozen=True):
    """A stream must be read to its end or closed: its settlement hangs on that."""

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes]
    error: ErrorBody | None = None
    """What `body` says, where it is a refusal: a stream that has begun must say it in its own words."""


class Providers(Protocol):
    def get(self, name: str) -> Provider:
        """The adapter of a configured provider, built on first use."""


TAGS_MAX = 8
TAG_CHARS_MAX = 64

# What the owner of a dialect wants to see unchanged (Claude Code's gateway contract and its like). Nothing else of a
# client's headers goes on: its credential least of all.
_FORWARDED = (
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
    "x-goog-api-client",
    # What AWS's users ask for beside the body: an adapter of another host refuses them by name (`providers/base.py`).
    "x-amzn-bedrock-guardrailidentifier",
    "x-amzn-bedrock-guardrailversion",
    "x-amzn-bedrock-trace",
    "x-amzn-bedrock-performanceconfig-latency",
    "x-amzn-bedrock-request-metadata",
)


def forwarded(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple([(name, headers[name]) for name in _FORWARDED if name in headers])


def tags_of(headers: Mapping[str, str]) -> tuple[str, ...]:
    """What a client says its request is for, in `x-farebox-tags: a, b`: to be counted and limited by.

    Raises: InvalidRequest for more or longer ones than anybody sums up."""
    said = headers.get("x-farebox-tags")
    if not said:
        return ()
    tags = tuple(dict.fromkeys(tag for part in said.split(",") if (tag := part.strip())))
    if len(tags) > TAGS_MAX or any(len(tag) > TAG_CHARS_MAX for tag in tags):
        raise InvalidRequest(
            f"x-farebox-tags: at most {TAGS_MAX} tags of {TAG_CHARS_MAX} characters", param="x-farebox-tags"
        )
    return tags


QUEUE = "x-farebox-queue-s"


def queue_of(headers: Mapping[str, str]) -> float | None:
    """How many seconds the client would wait for its turn; 0: not at all. Raises: InvalidRequest."""
    if (said := headers.get(QUEUE)) is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < inf:
        raise InvalidRequest(f"{QUEUE} is a number of seconds, 0 or more, not {said[:20]!r}", param=QUEUE)
    return seconds


LOSSES = "x-farebox-losses"


def is_strict(inbound: Inbound, who: Principal, otherwise: bool) -> bool:
    """Whether what the provider has no word for is refused by name, or left out and told: as the request says, else the
    key, else its project, else the settings. Raises: InvalidRequest."""
    match inbound.headers.get(LOSSES):
        case None:
            return otherwise if who.strict is None else who.strict
        case "strict":
            return True
        case "lenient":
            return False
    raise InvalidRequest(f"{LOSSES} must be strict or lenient", param=LOSSES)


def in_usd(amount_pusd: int) -> str:
    return f"{amount_pusd // 10**12}.{amount_pusd % 10**12:012d}"
