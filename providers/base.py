"""What an adapter is: a small protocol, and `DialectProvider`, which most adapters need only declare themselves for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from providers.dialects.base import Dialect
from providers.neutral import ChatRequest

Operation = Literal["chat", "completions", "embeddings"]


class Capabilities(Struct, frozen=True):
    """What a provider (or one of its models) takes. The router rules out what the request needs and this denies."""

    operations: frozenset[Operation] = frozenset({"chat"})
    tools: bool = True
    images: bool = True
    response_format: bool = True
    reasoning: bool = True
    logprobs: bool = True
    candidates: bool = True


class Credential(Struct, frozen=True):
    """A secret and what goes with it. `repr` never shows it.

    fields: per scheme, e.g. {"api_key": ...} or {"access_key_id": ..., "secret_access_key": ..., "region": ...}.
    """

    fields: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Credential({', '.join(sorted(self.fields))})"


class Endpoint(Struct, frozen=True):
    """Where a deployment's requests go: a provider's settings as configured, secrets resolved.

    base_url: overrides the provider's own. options: per provider (api_version, project, location, ...).
    """

    provider: str
    base_url: str | None = None
    region: str | None = None
    credential: Credential = Credential()
    options: Mapping[str, Any] = field(default_factory=dict)


class Call(Struct, frozen=True):
    """One request as the client sent it, decoded once.

    body: the client's own bytes; same dialect in and out sends them on with only what must change.
    forward_headers: the few client headers the dialect's owner wants to see unchanged (anthropic-beta ...).
    """

    operation: Operation
    dialect: str
    request: ChatRequest
    body: bytes
    request_id: str
    forward_headers: tuple[tuple[str, str], ...] = ()
    output_limit: int | None = None
    """Set when the budget covers less than the client may get: it goes upstream in place of the client's own limit."""
    strict: bool = True
    """Refuse by name what the target cannot say; False lists it in `Answer.dropped` instead."""


class Answer(Protocol):
    """A provider's 2xx: bytes in `dialect`, which the relay taps (same dialect) or decodes (another one)."""

    dialect: Dialect
    headers: Mapping[str, str]
    dropped: tuple[str, ...]

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def read(self) -> bytes: ...

    async def aclose(self) -> None:
        """Stop the upstream, and stop paying. Idempotent."""


class Provider(Protocol):
    name: str
    capabilities: Capabilities

    async def send(self, call: Call, model: str) -> Answer:
        """Ask `model` (the provider's own name for it).

        Raises: Unsupported before anything is sent; a ProviderError kind for every other failure up to the head.
        """

    async def models(self) -> tuple[str, ...]:
        """The provider's own list, for `farebox models` and health; not on the request path."""

    async def aclose(self) -> None: ...
