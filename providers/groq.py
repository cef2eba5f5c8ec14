"""Groq: the OpenAI chat dialect behind a bearer key.

Source: console.groq.com/docs/openai and /docs/rate-limits, groq-python 1.7, read 2026-11. Its stream carries usage in
`x_groq.usage` of the last chunk even unasked; the dialect reads both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from providers.base import Call, Capabilities, Operation
from providers.dialects import openai_chat
from providers.dialects.base import Dialect
from providers.errors import Unsupported
from providers.openai_like import OpenAILike
from providers.wire import jsonio


class Groq(OpenAILike):
    name = "groq"
    default_base_url = "https://api.groq.com/openai/v1"
    capabilities = Capabilities(
        operations=frozenset({"chat", "transcriptions", "translations", "speech"}),
        logprobs=False,
        candidates=False,
        file_input=False,
    )
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": openai_chat.DIALECT}
    output_limit: ClassVar[str] = "max_completion_tokens"
    # Each is a 400 there; with the values given it asks for nothing, and clients send those out of habit.
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "n": (1,),
        "top_k": (-1, 0),
        "min_p": (0,),
        "repetition_penalty": (1,),
    }

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        body = super().adjust(body, call, model)
        if self.losses(call):
            if call.strict:
                raise Unsupported(("messages[].name",), self.name)
            body["messages"] = [_without_name(message) for message in jsonio.plain(body["messages"])]
        return body

    def losses(self, call: Call) -> tuple[str, ...]:
        named = any(message.name is not None for message in call.request.messages)
        return ("messages[].name",) if named else ()


def _without_name(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") == "function":
        return message  # there it tells which function answered
    return {key: value for key, value in message.items() if key != "name"}
