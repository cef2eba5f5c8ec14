"""Bedrock's two hosts of the OpenAI dialects as they look on the wire: `runtime` below /openai/v1, `mantle` below /v1
or /openai/v1, whichever is the model's.

Signatures are checked by botocore's signer. Refusals of a wrong route word for word as users of the service report them
(see `providers/bedrock_openai.py`), read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from tests.emulators.bedrock import FORBIDDEN, GUARDRAIL, signature_of
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator, Out, Request

Host = Literal["runtime", "mantle"]

# Which of mantle's prefixes a model is served below, and by which APIs; others are below /v1 by both.
FRONTIER, RESPONSES_ALONE = re.compile(r"openai\.gpt-[0-9]|xai\."), re.compile(r"openai\.gpt-5")
_PATH = re.compile(r"(/openai/v1|/v1)(/chat/completions|/responses|/models)")


class BedrockOpenAIEmulator(OpenAIEmulator):
    name = "bedrock_openai"

    def __init__(self, host: Host = "mantle", *, api_key: str | None = None, **server: Any) -> None:
        """api_key: a bearer key to take beside signatures by the test keys. A minted one is taken unverified."""
        super().__init__("openai", api_key=api_key, **server)
        self._mantle = host == "mantle"

    def _authorised(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "")
        if sent.startswith("Bearer "):
            return sent.startswith("Bearer bedrock-api-key-") or sent == f"Bearer {self.api_key}"
        return sent == signature_of(request, self.url, "bedrock-mantle" if self._mantle else "bedrock")

    async def handle(self, request: Request, out: Out) -> None:
        found = _PATH.fullmatch(request.path)
        if found is None or (not self._mantle and (found[1] == "/v1" or found[2] == "/models")):
            await self._error(out, 404, "The requested resource does not exist", "invalid_request_error", "not_found")
            return
        if request.method == "POST" and self._authorised(request):
            model = str(request.json().get("model"))
            if self._mantle and (FRONTIER.match(model) is None) is (found[1] == "/openai/v1"):
                told = f"model `{model}` isn't supported on this route"
                await self._error(out, 400, told, "invalid_request_error", "validation_error")
                return
            if RESPONSES_ALONE.match(model) and found[2] != "/responses":
                told = f"The model '{model}' does not support the '{found[0]}' API"
                await self._error(out, 400, told, "invalid_request_error", "validation_error")
                return
            if request.headers.get("x-amzn-bedrock-guardrailidentifier") == GUARDRAIL and FORBIDDEN in str(
                request.body
            ):
                told = "The guardrail intervened"
                await self._error(out, 400, told, "invalid_request_error", "content_filter")
                return
        await super().handle(request, out)


SERVED: dict[str, Callable[..., Emulator]] = {
    "bedrock-mantle": lambda **server: BedrockOpenAIEmulator("mantle", **server),
    "bedrock-openai": lambda **server: BedrockOpenAIEmulator("runtime", **server),
}
