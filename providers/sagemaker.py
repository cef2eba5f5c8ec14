"""AWS SageMaker endpoints: containers that speak the OpenAI dialect, by the OpenAI path or by InvokeEndpoint.

Source: "Invoke a real-time endpoint with the OpenAI-compatible API" (2026-05), botocore 1.44 `sagemaker-runtime`,
sagemaker-core 2.27 token generator, read 2026-11.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from providers.auth.aws import BearerMint, KeySource, host, key_source, region_of
from providers.auth.sigv4 import sign
from providers.base import Call, Capabilities, DialectProvider, Endpoint, Operation
from providers.dialects import base, openai_chat
from providers.dialects.openai_chat import OpenAIChat
from providers.dialects.peeled import PeeledDecoder, PeeledTap
from providers.errors import AuthFailed, Broken, Overloaded, ProviderError, Rejected, for_status, retry_after_s
from providers.transport.base import HttpRequest, Timeouts, Transport
from providers.wire import jsonio
from providers.wire.eventstream import EventStreamDecoder

_KIND_OF_TYPE: Mapping[str, type[ProviderError]] = {
    "ModelNotReadyException": Overloaded,  # scaling up from zero
    "ServiceUnavailable": Overloaded,
    "InternalDependencyException": Broken,
    "InternalFailure": Broken,
    "ValidationError": Rejected,
    "AccessDeniedException": AuthFailed,
}


class ContainerChat(OpenAIChat):
    """The container's own dialect behind SageMaker's errors: a 424 carries what the container really said."""

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        word = headers.get("x-amzn-errortype", "").partition(":")[0].rpartition("#")[2]
        try:
            found = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = {}
        original = found.get("OriginalStatusCode")
        if isinstance(original, int) and original >= 400:
            told = str(found.get("OriginalMessage") or found.get("Message") or "")
            # The container's 401 is about its own key, if it has one, which is ours to set as well.
            return super().decode_error(original, headers, told.encode())
        text = str(found.get("Message") or found.get("message") or word)
        if (kind := _KIND_OF_TYPE.get(word)) is not None:
            return kind(text, status=status, code=word, body=body, retry_after_s=retry_after_s(headers))
        return super().decode_error(status, headers, body)


class FramedContainerChat(ContainerChat):
    """InvokeEndpointWithResponseStream: `PayloadPart` frames hold the container's bytes, cut anywhere."""

    stream_media_type = "application/vnd.amazon.eventstream"

    def event_decoder(self) -> base.EventDecoder:  # type: ignore[override]
        return PeeledDecoder(_PayloadPeel(), super().event_decoder())

    def tap(self, request_included_usage: bool) -> base.Tap:  # type: ignore[override]
        return PeeledTap(_PayloadPeel(), super().tap(request_included_usage))


OPENAI_PATH = ContainerChat()
INVOCATIONS = FramedContainerChat()


class SageMaker(DialectProvider):
    """The model is the endpoint's name. credential, `profile` and `role_arn`: as for Bedrock.

    options: `api` "invocations" for containers behind InvokeEndpoint, else the OpenAI path; `served_model` is what the
    container calls its model (vLLM refuses the endpoint's name but takes an empty one); `inference_component`,
    `target_variant`, `target_model`."""

    name = "sagemaker"
    lists_models = False
    capabilities = Capabilities(file_input=False)
    dialects: ClassVar[Mapping[Operation, base.Dialect]] = {"chat": openai_chat.DIALECT}

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._region = region_of(endpoint)
        super().__init__(endpoint, transport, timeouts)
        self._clock = clock
        self._invocations = endpoint.options.get("api") == "invocations"
        self._keys: KeySource = key_source(endpoint, clock)
        self._mint = BearerMint(self._keys, service="sagemaker", region=self._region, clock=clock)

    def base_url_of(self, endpoint: Endpoint) -> str | None:
        return endpoint.base_url or host("runtime.sagemaker", self._region)

    def dialect_for(self, call: Call, model: str) -> base.Dialect:
        super().dialect_for(call, model)
        # A whole answer is the container's bare body on both paths; only the stream is framed.
        return INVOCATIONS if self._invocations else OPENAI_PATH

    def path(self, call: Call, model: str) -> str:
        name = quote(model, safe="")
        if not self._invocations:
            return f"/endpoints/{name}/openai/v1/chat/completions"
        verb = "invocations-response-stream" if call.request.stream else "invocations"
        return f"/endpoints/{name}/{verb}"

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        body["model"] = self.endpoint.options.get("served_model", "")
        body.pop("max_completion_tokens", None)
        body.pop("max_tokens", None)
        if call.request.max_output_tokens is not None:
            body["max_tokens"] = call.request.max_output_tokens
        if call.request.stream:
            # Usage comes only when asked for, in the last chunk; a stream without it cannot be billed.
            options = jsonio.plain(body.get("stream_options")) or {}
            body["stream_options"] = {**options, "include_usage": True}
        return body

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        options = self.endpoint.options
        named = (
            ("x-amzn-sagemaker-inference-component", options.get("inference_component")),
            ("x-amzn-sagemaker-target-variant", options.get("target_variant")),
            ("x-amzn-sagemaker-target-model", options.get("target_model")),
        )
        return tuple((name, str(value)) for name, value in named if value)

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        if not self._invocations:
            token = await self._mint.token()
            return replace(request, headers=(*request.headers, ("authorization", f"Bearer {token}")))
        signed = sign(
            request.method,
            request.url,
            request.headers,
            request.body,
            keys=await self._keys.keys(),
            region=self._region,
            service="sagemaker",
            now_s=self._clock(),
        )
        return replace(request, headers=request.headers + signed)

    async def aclose(self) -> None:
        await self._keys.aclose()


class _PayloadPeel:
    """See `providers.dialects.peeled.Peel`."""

    def __init__(self) -> None:
        self._frames = EventStreamDecoder()

    @property
    def pending(self) -> int:
        return self._frames.pending

    def feed(self, data: bytes) -> Iterator[bytes]:
        for frame in self._frames.feed(data):
            if frame.message_type != "event":
                raise _stream_error(frame.event_type, frame.payload)
            if frame.event_type == "PayloadPart":
                yield frame.payload


def _stream_error(name: str, payload: bytes) -> ProviderError:
    """ModelStreamError names its cause in ErrorCode; InternalStreamFailure only itself."""
    try:
        found = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = {}
    code = str(found.get("ErrorCode") or name)
    text = str(found.get("Message") or code)
    if code == "ModelInvocationTimeExceeded":
        return for_status(504, text, code=code, body=payload)
    return Broken(text, code=code, body=payload)
