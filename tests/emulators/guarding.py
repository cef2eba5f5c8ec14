"""Those whom guardrails ask: Bedrock's ApplyGuardrail, Azure's text:analyze, and a webhook of an operator's own.

They look for words: "forbidden" is blocked, "masked" is anonymized, "hate" has a severity of 6, "stall" is answered
after the client has given up. Source: botocore 1.44 `bedrock-runtime`; REST reference "Analyze Text" 2024-09-01; read
2026-11."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from gateway.alerting import SIGNATURE, sign
from providers.auth.sigv4 import verify
from tests.emulators.bedrock import SECRET_ACCESS_KEY
from tests.emulators.server import Emulator, Out, Request

SECRET = "hook-secret"
AZURE_KEY = "azure-key"


class GuardingEmulator(Emulator):
    async def handle(self, request: Request, out: Out) -> None:
        if b"stall" in request.body:
            await asyncio.Event().wait()
        if re.fullmatch(r"/guardrail/[^/]+/version/[^/]+/apply", request.path):
            await self._bedrock(request, out)
        elif request.path == "/contentsafety/text:analyze" and request.query["api-version"] == "2024-09-01":
            await self._azure(request, out)
        elif request.path == "/hook":
            await self._hook(request, out)
        else:
            await out.json(404, {"message": "nothing here"})

    async def _bedrock(self, request: Request, out: Out) -> None:
        path, _, query = request.raw_path.partition("?")
        now_s = _time_of(request.headers["x-amz-date"])
        if not verify(request.method, path, query, request.headers, request.body, SECRET_ACCESS_KEY, now_s):
            await out.json(403, {"message": "The request signature we calculated does not match"})
            return
        asked = request.json()
        assert asked["source"] in ("INPUT", "OUTPUT")
        texts = [block["text"]["text"] for block in asked["content"]]
        answer: dict[str, Any] = {"action": "NONE", "outputs": [], "assessments": [{}], "usage": _usage()}
        whole = " ".join(texts)
        if "forbidden" in whole:
            topic = {"name": "Forbidden", "type": "DENY", "action": "BLOCKED"}
            answer |= {"action": "GUARDRAIL_INTERVENED", "outputs": [{"text": "Sorry, no."}]}
            answer["assessments"] = [{"topicPolicy": {"topics": [topic]}}]
        elif "masked" in whole:
            entity = {"match": "masked", "type": "NAME", "action": "ANONYMIZED"}
            answer |= {"action": "GUARDRAIL_INTERVENED"}
            answer["outputs"] = [{"text": text.replace("masked", "{NAME}")} for text in texts]
            answer["assessments"] = [{"sensitiveInformationPolicy": {"piiEntities": [entity], "regexes": []}}]
        await out.json(200, answer)

    async def _azure(self, request: Request, out: Out) -> None:
        if request.headers.get("ocp-apim-subscription-key") != AZURE_KEY:
            await out.json(401, {"error": {"code": "401", "message": "Access denied"}})
            return
        asked = request.json()
        if not 0 < len(asked["text"]) <= 10_000:
            await out.json(400, {"error": {"code": "InvalidRequestBody", "message": "text is too long"}})
            return
        level = 6 if "hate" in asked["text"] else 0
        categories = [{"category": name, "severity": level if name == "Hate" else 0} for name in asked["categories"]]
        await out.json(200, {"blocklistsMatch": [], "categoriesAnalysis": categories})

    async def _hook(self, request: Request, out: Out) -> None:
        told = request.headers[SIGNATURE]
        at_s = int(told.partition(",")[0].removeprefix("t="))
        assert told == sign(request.body, SECRET, at_s)
        asked = request.json()
        if any("forbidden" in text for text in asked["texts"]):
            await out.json(200, {"action": "block", "reason": "says so"})
        elif any("masked" in text for text in asked["texts"]):
            texts = [text.replace("masked", "***") for text in asked["texts"]]
            await out.json(200, {"action": "redact", "texts": texts, "found": {"name": 1}})
        else:
            await out.json(200, {"action": "pass"})


def _usage() -> dict[str, int]:
    names = ("topicPolicyUnits", "contentPolicyUnits", "wordPolicyUnits", "sensitiveInformationPolicyUnits",
             "sensitiveInformationPolicyFreeUnits", "contextualGroundingPolicyUnits")  # fmt: skip
    return dict.fromkeys(names, 1)


def _time_of(stamp: str) -> float:
    from datetime import UTC, datetime

    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
