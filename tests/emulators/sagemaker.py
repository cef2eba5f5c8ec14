"""SageMaker as it looks on the wire: a container of the OpenAI dialect behind the OpenAI path and InvokeEndpoint.

The container is the vLLM flavour of the OpenAI emulator; its bytes are cut anywhere and put in `PayloadPart` frames.
Source: botocore 1.44 `sagemaker-runtime`, read 2026-11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.emulators.bedrock import EVENT_STREAM, exception, frame, signature_of
from tests.emulators.openai import SSE, OpenAIEmulator
from tests.emulators.server import Out, Request

_PATH = re.compile(r"/endpoints/([^/]+)/(openai/v1/chat/completions|invocations|invocations-response-stream)")

# Said by SageMaker itself; every other fault is the container's.
OWN_FAULTS = ("429", "not-ready", "500", "503", "530", "stream-error")
SLICE_BYTES = 37  # falls inside lines, words and characters


class SageMakerEmulator(OpenAIEmulator):
    name = "sagemaker"

    def __init__(self, **server: Any) -> None:
        super().__init__("vllm", api_key=None, **server)

    async def handle(self, request: Request, out: Out) -> None:
        found = _PATH.fullmatch(request.raw_path)
        if found is None:
            await self._refuse(out, 400, "ValidationError", "no such path")
            return
        sent = request.headers.get("authorization", "")
        framed = found[2] != "openai/v1/chat/completions"
        expected = signature_of(request, self.url, "sagemaker") if framed else sent
        if sent != expected or not (framed or sent.startswith("Bearer sagemaker-api-key-")):
            await self._refuse(out, 403, "AccessDeniedException", "not signed")
            return
        if (fault := found[1].removeprefix("fault-")) in OWN_FAULTS and (framed or fault != "stream-error"):
            await self._fault(fault, out)
            return
        body = request.json()
        if body.get("model"):
            await self._refuse(out, 424, "ModelError", "", 404, '{"error":{"message":"The model `x` does not exist."}}')
            return
        request = replace(request, body=json.dumps(body | {"model": found[1]}).encode())
        await self._chat(request, _Framing(out) if found[2] == "invocations-response-stream" else out)

    async def _fault(self, fault: str, out: Out) -> None:
        match fault:
            case "429":
                told = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
                await self._refuse(out, 424, "ModelError", "", 429, json.dumps(told))
            case "not-ready":
                await self._refuse(out, 429, "ModelNotReadyException", "scaling up")
            case "500":
                await self._refuse(out, 500, "InternalFailure", "internal")
            case "503":
                await self._refuse(out, 503, "ServiceUnavailable", "away")
            case "530":
                await self._refuse(out, 530, "InternalDependencyException", "dependency")
            case "stream-error":
                await out.start(200, EVENT_STREAM)
                await out.chunk(part(b'data: {"choices": [{"index": 0, "delta": {"content": "word1"}}]}\n\n'))
                await out.chunk(
                    exception("ModelStreamError", {"Message": "container died", "ErrorCode": "StreamBroken"})
                )
                await out.end()

    async def _error(
        self,
        out: Out,
        status: int,
        message: str,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """What the container refuses comes as a 424 that holds it."""
        told = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        plain = out._out if isinstance(out, _Framing) else out
        await self._refuse(plain, 424, "ModelError", "", status, json.dumps(told))

    async def _refuse(
        self, out: Out, status: int, kind: str, message: str, original: int | None = None, told: str = ""
    ) -> None:
        self.stats.errors += 1
        body: dict[str, Any] = {"Message": message}
        if original is not None:
            body |= {"OriginalStatusCode": original, "OriginalMessage": told, "LogStreamArn": "arn:aws:logs:x"}
        await out.json(status, body, {"x-amzn-errortype": kind})


def part(payload: bytes) -> bytes:
    headers = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return frame(headers, payload)


class _Framing(Out):
    """Puts what the container streams into frames, cut anywhere."""

    def __init__(self, out: Out) -> None:
        super().__init__(out.reader, out.writer)
        self._out = out

    async def start(self, status: int, content_type: str, headers: Any = None) -> None:
        await self._out.start(status, EVENT_STREAM if content_type == SSE else content_type, headers)

    async def chunk(self, data: bytes) -> None:
        for at in range(0, len(data), SLICE_BYTES):
            await self._out.chunk(part(data[at : at + SLICE_BYTES]))
