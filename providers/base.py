"""What an adapter is: a small protocol, and `DialectProvider`, which most adapters need only declare themselves for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from providers.dialects import openai_media
from providers.dialects.base import Dialect
from providers.dialects.hints import ASKING_HEADERS, HINT_HEADERS, without_hints
from providers.errors import Broken, Interrupted, ProviderError, Unsupported, for_status
from providers.neutral import ChatRequest, EmbeddingRequest, EmbeddingResponse, Usage
from providers.neutral.rerank import RerankRequest, RerankResponse
from providers.transport.base import TRACE_HEADERS, HttpRequest, HttpResponse, Timeouts, Transport
from providers.wire import jsonio

if TYPE_CHECKING:
    from providers.transport.fetching import Fetcher

T = TypeVar("T")

Operation = Literal[
    "chat", "completions", "embeddings", "rerank", "transcriptions", "translations", "speech", "images", "image_edits"
]


class Capabilities(Struct, frozen=True):
    """What a provider (or one of its models) takes. The router rules out what the request needs and this denies."""

    operations: frozenset[Operation] = frozenset({"chat"})
    tools: bool = True
    image_input: bool = True
    file_input: bool = True
    """Documents as parts of a message, PDF above all."""
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

    body: the client's own bytes; same dialect in and out sends them on with only what must change. Empty when the
      request is no longer what the client wrote (a guardrail edited it): then `request` is encoded.
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
    tenant: str = ""
    """Whose it is, as an id that means nothing outside. Only an engine of the operator's own is told: it shares its
    time fairly among tenants and keeps their caches apart."""


class EmbeddingCall(Struct, frozen=True):
    """One request for vectors; fields as in `Call`."""

    dialect: str
    request: EmbeddingRequest
    body: bytes
    request_id: str
    strict: bool = True


class RerankCall(Struct, frozen=True):
    """One request to rank documents; fields as in `Call`."""

    request: RerankRequest
    request_id: str
    strict: bool = True


class MediaCall(Struct, frozen=True):
    """One request for sound or images, as the client sent it."""

    operation: openai_media.Medium
    body: bytes
    content_type: str
    request_id: str


class Answer(Protocol):
    """A provider's 2xx: bytes in `dialect`, which the relay taps (same dialect) or decodes (another one)."""

    dialect: Dialect
    headers: Mapping[str, str]
    dropped: tuple[str, ...]

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def read(self) -> bytes:
        """All of it. Closed afterwards in any case."""

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


@runtime_checkable
class Embedder(Protocol):
    """A provider that also has "embeddings" among its operations."""

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """Raises: Unsupported before anything is sent; a ProviderError kind else."""


@runtime_checkable
class Reranker(Protocol):
    """A provider that also has "rerank" among its operations."""

    async def rerank(self, call: RerankCall, model: str) -> RerankAnswer:
        """Raises: Unsupported before anything is sent; a ProviderError kind else."""


@runtime_checkable
class Medium(Protocol):
    """A provider that also has sound or images among its operations."""

    async def pass_on(self, call: MediaCall, model: str) -> HttpResponse:
        """A 2xx, which the caller reads and closes. Raises: Unsupported before anything is sent; a ProviderError kind
        else."""


@runtime_checkable
class Probed(Protocol):
    """A provider that can be asked for nothing, to see whether it is there."""

    lists_models: ClassVar[bool]

    async def probe(self, path: str | None = None) -> None:
        """See `DialectProvider.probe`."""


@runtime_checkable
class TokenCounter(Protocol):
    """A provider that tells the length of a prompt without running it."""

    async def count_tokens(self, call: Call, model: str) -> int:
        """Input tokens of this request, as the provider counts them. Raises: as `Provider.send`."""


class EmbeddingAnswer(Struct, frozen=True):
    """A 2xx, read whole. body: in `dialect`, for a client of the same one; None where no client of ours speaks it, or
    the answer was put together from several."""

    response: EmbeddingResponse
    dropped: tuple[str, ...] = ()
    dialect: str = ""
    body: bytes | None = None


async def each_at_once(asked: Sequence[T], ask: Callable[[T], Awaitable[EmbeddingResponse]]) -> EmbeddingResponse:
    """Several calls as one answer, for hosts that take one text (or a few) at a time. At most `PARALLEL_CALLS` at a
    time; the first failure ends all, and nothing is charged then.

    Raises: what `ask` does."""
    room = asyncio.Semaphore(PARALLEL_CALLS)

    async def one(part: T) -> EmbeddingResponse:
        async with room:
            return await ask(part)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(part)) for part in asked]
    except ExceptionGroup as errors:
        # Not `except*`: before Python 3.11.4 what that raises comes out in a group again.
        refused = errors.subgroup(ProviderError)
        if refused is None:
            raise
        raise refused.exceptions[0] from errors
    found = [task.result() for task in tasks]
    counts = [each.usage.input_tokens for each in found]
    tokens = None if None in counts else sum(count or 0 for count in counts)
    vectors = tuple(vector for each in found for vector in each.vectors)
    return EmbeddingResponse(found[0].model, vectors, Usage(input_tokens=tokens))


class RerankAnswer(Struct, frozen=True):
    response: RerankResponse
    dropped: tuple[str, ...] = ()


PARALLEL_CALLS = 8
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024


class UpstreamAnswer:
    """The `Answer` of every adapter over HTTP."""

    __slots__ = ("_response", "dialect", "dropped", "headers")

    def __init__(self, response: HttpResponse, dialect: Dialect, dropped: tuple[str, ...]) -> None:
        self._response = response
        self.dialect = dialect
        self.dropped = dropped
        self.headers = response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.chunks()

    async def read(self) -> bytes:
        return await read_whole(self._response)

    async def aclose(self) -> None:
        await self._response.aclose()


class DialectProvider(ABC):
    """An adapter that is one known dialect at one host: encode, sign, send, tell errors apart. No parsing here.

    A subclass declares what is below and overrides the hooks it needs; `path` it must. One instance per endpoint serves
    all its requests and keeps no state of any.
    """

    name: ClassVar[str]
    capabilities: Capabilities
    dialects: ClassVar[Mapping[Operation, Dialect]]
    """What the host speaks, per operation. A client of the same dialect gets its bytes through untouched."""
    default_base_url: ClassVar[str | None] = None
    model_in_body: ClassVar[bool] = True
    """False where the path carries the model (Gemini, Bedrock)."""
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Top-level body fields that the host answers with an error, each with the values that mean the same as leaving it
    out. Another value is refused by name, or dropped and listed when the call is lenient."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Top-level body fields that go by another name there. The host's own name wins when a client sends both."""
    lists_models: ClassVar[bool] = True
    """Whether `models` asks the host. False: there is no list, or none of what may be asked for."""
    heeds: ClassVar[str] = ""
    """Prefix of the client's headers that ask this host, and no other, for something."""

    def __init__(self, endpoint: Endpoint, transport: Transport, timeouts: Timeouts | None = None) -> None:
        """Raises: ValueError when the endpoint cannot be used: no base URL, a malformed one."""
        self.endpoint = endpoint
        self.timeouts = timeouts or Timeouts()
        self._transport = transport
        self.base_url = checked_base_url(self.name, self.base_url_of(endpoint))
        self.fetcher: Fetcher | None = None
        if endpoint.options.get("fetch_images") or endpoint.options.get("fetch_documents"):
            from providers.transport.fetching import Fetcher, kinds_in  # Here, because most endpoints fetch nothing.

            self.fetcher = Fetcher(kinds=kinds_in(endpoint.options))

    # Hooks.

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        return endpoint.base_url or self.default_base_url

    @abstractmethod
    def path(self, call: Call, model: str) -> str:
        """Path (and query) below `base_url`, percent-encoded, with a leading slash."""

    def known_as(self, model: str) -> str:
        """The name that tells a model's family, where its own (an ARN) does not."""
        return model

    def dialect_for(self, call: Call, model: str) -> Dialect:
        """Raises: Unsupported when the host has no such operation."""
        dialect = self.dialects.get(call.operation)
        if dialect is None:
            raise Unsupported((call.operation,), self.name)
        return dialect

    def forward(self, call: Call, model: str) -> dict[str, Any]:
        """The client's own body, same dialect: members unread (`Raw`) but for what must change."""
        body = jsonio.split_object(call.body)
        if self.model_in_body:
            body["model"] = model
        return body

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        """Last edits of the body, encoded or forwarded; a forwarded one holds `Raw` values (`jsonio.plain` reads one).

        Raises: Unsupported."""
        return body

    def losses(self, call: Call) -> tuple[str, ...]:
        """What `adjust` leaves out of a lenient call, by the client's own field names."""
        return ()

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Headers of the host's own, beside content type and credential."""
        return ()

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        """The request with its credential. It is sent to `base_url` alone, and redirects are not followed."""
        return request

    # What they share.

    async def send(self, call: Call, model: str) -> UpstreamAnswer:
        dialect = self.dialect_for(call, model)
        call, dropped = self._heeded(call)
        if self.fetcher is not None and (inlined := await self.fetcher.inline(call.request)) is not call.request:
            call = replace(call, request=inlined, body=b"")
        if dialect.name == call.dialect and call.body:
            body = self.forward(call, model)
        else:
            request, hints = without_hints(call.request, dialect.name)
            encoded = dialect.encode_request(request, model=self.known_as(model), strict=call.strict)
            body, dropped = encoded.body, (*dropped, *hints, *encoded.dropped)
        dropped += self._fit(body, call.strict)
        body = self.adjust(body, call, model)
        dropped += self.losses(call)
        response = await self.exchange("POST", self.path(call, model), jsonio.joined(body), call, dialect)
        accepted = dialect.stream_media_type if call.request.stream else "application/json"
        if not _is_media_type(response.headers.get("content-type", ""), accepted):
            raise await self._unexpected(response, dialect, accepted)
        return UpstreamAnswer(response, dialect, dropped)

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        call: Call | None,
        dialect: Dialect | None,
        content_type: str = "application/json",
    ) -> HttpResponse:
        """Sign, send, and turn every non-2xx into its error kind. The caller closes the response.

        Raises: a ProviderError kind."""
        headers = [("user-agent", "farebox")]
        if body:
            headers.append(("content-type", content_type))
        headers += TRACE_HEADERS.get()
        if call is not None:
            headers += self.headers(call)
            headers += call.forward_headers
        request = HttpRequest(method, self.base_url + path, tuple(headers), body)
        response = await self._transport.send(await self.authorize(request), self.timeouts)
        if 200 <= response.status < 300:
            return response
        content = await _read_error(response)
        if dialect is not None:
            raise dialect.decode_error(response.status, response.headers, content)
        text = content[:500].decode("utf-8", "replace")
        raise for_status(response.status, text, headers=response.headers, body=content)

    async def models(self) -> tuple[str, ...]:
        return ()

    async def probe(self, path: str | None = None) -> None:
        """Whether the host is there and takes our credential, by a request that nobody pays for: its list of models, or
        GET `path`, which begins at the host's root (`/health`).

        Raises: a ProviderError kind."""
        if path is None:
            await self.models()
            return
        parts = urlsplit(self.base_url)
        url = f"{parts.scheme}://{parts.netloc}{path}"
        request = HttpRequest("GET", url, (("user-agent", "farebox"),), b"")
        response = await self._transport.send(await self.authorize(request), self.timeouts)
        content = await _read_error(response)
        if not 200 <= response.status < 300:
            text = content[:500].decode("utf-8", "replace")
            raise for_status(response.status, text, headers=response.headers, body=content)

    async def aclose(self) -> None:  # noqa: B027 - a default, not a hook that was forgotten
        """The transport is shared and closed by whoever made it."""

    def _heeded(self, call: Call) -> tuple[Call, tuple[str, ...]]:
        """The call without the headers that ask another host for something, and their names. Raises: Unsupported."""
        if not call.forward_headers:
            return call, ()
        lost = tuple(
            name for name, _ in call.forward_headers if name.startswith(ASKING_HEADERS) and not self._is_heeded(name)
        )
        if not lost:
            return call, ()
        if call.strict and (binding := tuple(name for name in lost if name not in HINT_HEADERS)):
            raise Unsupported(binding, self.name)
        kept = tuple(header for header in call.forward_headers if header[0] not in lost)
        return replace(call, forward_headers=kept), lost

    def _is_heeded(self, header: str) -> bool:
        return bool(self.heeds) and header.startswith(self.heeds)

    def _fit(self, body: dict[str, Any], strict: bool) -> tuple[str, ...]:
        """Rename and leave out what this host wants so. Returns: what a lenient call lost."""
        for ours, theirs in self.renamed.items():
            if ours in body:
                value = body.pop(ours)
                body.setdefault(theirs, value)
        refused = []
        for name, harmless in self.denied.items():
            if name in body:
                value = jsonio.plain(body.pop(name))
                if value is not None and value not in harmless:
                    refused.append(name)
        if refused and strict:
            raise Unsupported(tuple(refused), self.name)
        return tuple(refused)

    async def _unexpected(self, response: HttpResponse, dialect: Dialect, accepted: str) -> ProviderError:
        """A 2xx that is not what was asked for: an error object in disguise, or a page of some proxy."""
        content_type = response.headers.get("content-type", "")
        content = await _read_error(response)
        if _is_media_type(content_type, "application/json") and b'"error"' in content:
            return dialect.decode_error(response.status, response.headers, content)
        return Broken(
            f"{self.name} answered with {content_type or 'no content type'}, not {accepted.partition(';')[0]}",
            status=response.status,
            body=content,
        )


def checked_base_url(provider: str, url: str | None) -> str:
    """Without a trailing slash. A path is appended to it and starts with a slash, so no model name, however spelt, can
    move the request, and the credential in it, to another origin.

    Raises: ValueError."""
    if not url:
        raise ValueError(f"{provider}: base_url is missing")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{provider}: base_url must be http(s)://host[:port][/path], not {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{provider}: base_url takes no user, query or fragment")
    if parts.port == 0:
        raise ValueError(f"{provider}: base_url has port 0")
    return url.rstrip("/")


@lru_cache(maxsize=256)
def _is_media_type(actual: str, wanted: str) -> bool:
    kind = actual.partition(";")[0].strip().lower()
    wanted_kind = wanted.partition(";")[0].strip().lower()
    # Some engines leave the type of a JSON body out; a stream without a type could be anything.
    return kind == wanted_kind or (not kind and wanted_kind == "application/json")


async def read_whole(response: HttpResponse) -> bytes:
    """Raises: as `UpstreamAnswer.read`. The response is closed in any case."""
    try:
        return await response.read(MAX_ANSWER_BYTES)
    except Interrupted as error:
        # Nothing of a whole answer has reached the client, so another try is as good as the first.
        raise Broken(f"the answer was cut short: {error.message}", status=response.status) from error
    finally:
        await response.aclose()


async def _read_error(response: HttpResponse) -> bytes:
    """The body of an error, or what could be had: the status already says enough to choose a kind."""
    try:
        return await response.read(MAX_ERROR_BYTES)
    except ProviderError as error:
        return error.body
    finally:
        await response.aclose()
