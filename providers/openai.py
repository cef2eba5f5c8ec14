"""OpenAI itself. Source: platform.openai.com API reference and openai-python 3.54, read 2026-11."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from providers.base import Capabilities
from providers.openai_like import PATHS, OpenAILike
from providers.transport.base import HttpRequest


class OpenAI(OpenAILike):
    name = "openai"
    default_base_url = "https://api.openai.com/v1"
    capabilities = Capabilities(operations=frozenset(PATHS) - {"rerank"})
    output_limit: ClassVar[str] = "max_completion_tokens"  # reasoning models refuse the older name
    serves_responses: ClassVar[bool] = True
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        # Knobs of the open engines: OpenAI answers 400 to a field it does not know.
        "top_k": (-1, 0),
        "min_p": (0,),
        "repetition_penalty": (1,),
        # Such an answer is fetched later, from a path that we do not serve, and would be paid for by nobody.
        "background": (False,),
    }

    async def authorize(self, request: HttpRequest) -> HttpRequest:
        """The key, and whose account it is to be counted on where it serves several."""
        signed = await super().authorize(request)
        options = self.endpoint.options
        named = (("openai-organization", options.get("organization")), ("openai-project", options.get("project")))
        account = tuple((name, str(value)) for name, value in named if value)
        return msgspec.structs.replace(signed, headers=signed.headers + account)
