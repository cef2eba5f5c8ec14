"""Azure OpenAI and Foundry: the OpenAI emulator behind Azure's paths, keys, filters and throttles.

Source: Azure OpenAI data plane 2024-10-21 and v1, content-filter and PTU pages, openai-python 3.54 lib/azure, read
2026-11. A deployment is named like the model behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.emulators import anthropic as claude
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.ranking import ranked
from tests.emulators.server import Out, Request

_DEPLOYMENT = re.compile(r"/openai/deployments/(?P<name>[^/]+)/(?P<rest>chat/completions|completions|embeddings)")
_SAFE = {"filtered": False, "severity": "safe"}
FILTER_RESULT: Mapping[str, Any] = {
    "hate": _SAFE,
    "jailbreak": {"detected": True, "filtered": True},
    "self_harm": _SAFE,
    "sexual": _SAFE,
    "violence": {"filtered": True, "severity": "high"},
}


class AzureEmulator(OpenAIEmulator):
    """throttle: "ptu" tells the wait in retry-after-ms, "text" in the message alone (as seen on responses)."""

    name = "azure"

    def __init__(self, *, api_key: str | None = "azure-key", throttle: str = "ptu", **server: Any) -> None:
        super().__init__("azure", api_key=api_key, **server)
        self.throttle = throttle
        self._claudes = claude.AnthropicEmulator(api_key=None)
        self._claudes.stats, self._claudes.cache = self.stats, self.cache

    async def handle(self, request: Request, out: Out) -> None:
        if not self._authorised(request):
            message = "Access denied due to invalid subscription key or wrong API endpoint."
            await out.json(401, {"error": {"code": "401", "message": message}})
            return
        found = _DEPLOYMENT.fullmatch(request.path)
        if found is not None:
            if "api-version" not in request.query:
                await out.json(404, {"error": {"code": "404", "message": "Resource not found"}})
                return
            body = json.dumps(request.json() | {"model": found["name"]}).encode()
            request = replace(request, body=body, path=f"/openai/v1/{found['rest']}")
        if request.path == "/providers/cohere/v2/rerank":
            asked = request.json()
            results = [
                {"index": at, "relevance_score": score}
                for at, score in ranked(asked["query"], asked["documents"], asked.get("top_n"))
            ]
            meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
            await out.json(200, {"id": "rr-azure", "results": results, "meta": meta})
        elif request.path == "/anthropic/v1/messages":
            await self._claude(request, out)
        elif request.path.startswith("/openai/v1/"):
            await super().handle(request, out)
        else:
            await out.json(404, {"error": {"code": "404", "message": "Resource not found"}})

    async def _claude(self, request: Request, out: Out) -> None:
        if request.headers.get("x-api-key") != self.api_key:
            await out.json(401, claude.error_object("authentication_error", "invalid x-api-key"))
            return
        await self._claudes.handle(replace(request, path="/v1/messages"), out)

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
        if code == "content_filter":
            self.stats.errors += 1
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": FILTER_RESULT}
            message = "The response was filtered due to the prompt triggering Azure's content management policy."
            error = {"message": message, "type": None, "param": "prompt", "code": code, "status": 400}
            await out.json(400, {"error": {**error, "innererror": inner}}, {"apim-request-id": "apim-1"})
            return
        if status == 429 and code == "rate_limit_exceeded" and not headers:
            self.stats.errors += 1
            text = "Requests to the deployment have exceeded the call rate limit. Please retry after 6 seconds."
            told = {"retry-after-ms": "2500", "retry-after": "3"} if self.throttle == "ptu" else {}
            await out.json(429, {"error": {"code": "429", "message": text}}, told)
            return
        await super()._error(out, status, message, kind, code, param, headers)

    def _headers(self) -> dict[str, str]:
        return {**super()._headers(), "apim-request-id": "apim-1", "x-ms-region": "East US"}
