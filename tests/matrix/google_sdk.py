"""google-genai, with a key as for the Gemini API and with a token as for Vertex AI."""

from __future__ import annotations

from typing import Any

from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from tests.matrix.asks import (
    ANSWER_SCHEMA,
    PDF,
    PDF_URL,
    PNG,
    TOOL,
    TOOL_SCHEMA,
    Ask,
    Call,
    Client,
    Door,
    NotOffered,
    Seen,
)


class Gemini(Client):
    name = "google-genai"
    package = "google-genai"

    def __init__(self, gateway: Door) -> None:
        super().__init__(gateway)
        self.sdk = self.connected(gateway)

    def connected(self, gateway: Door) -> genai.Client:
        return genai.Client(api_key=gateway.key, http_options=types.HttpOptions(base_url=gateway.url))

    async def aclose(self) -> None:
        await self.sdk.aio.aclose()

    async def ask(self, alias: str, ask: Ask) -> Seen:
        if ask.cache:
            raise NotOffered
        settings: dict[str, Any] = {"max_output_tokens": None if ask.reasoning else ask.max_tokens}
        if ask.system is not None:
            settings["system_instruction"] = ask.system
        if ask.tools:
            declaration = types.FunctionDeclaration(
                name=TOOL, description="tells the weather", parameters_json_schema=TOOL_SCHEMA
            )
            settings["tools"] = [types.Tool(function_declarations=[declaration])]
        if ask.forced:
            mode = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=[TOOL])
            settings["tool_config"] = types.ToolConfig(function_calling_config=mode)
        if ask.schema:
            settings |= {"response_mime_type": "application/json", "response_json_schema": ANSWER_SCHEMA}
        if ask.reasoning:
            settings["thinking_config"] = types.ThinkingConfig(thinking_budget=1024, include_thoughts=True)
        if ask.stop is not None:
            settings["stop_sequences"] = [ask.stop]
        if ask.logprobs:
            settings |= {"response_logprobs": True, "logprobs": 2}
        settings |= {"seed": ask.seed, "candidate_count": ask.n}
        asked: dict[str, Any] = {"model": alias, "contents": self.contents(ask)}
        asked["config"] = types.GenerateContentConfig(**settings)
        if ask.stream:
            return seen_in([chunk async for chunk in await self.sdk.aio.models.generate_content_stream(**asked)])
        return seen_in([await self.sdk.aio.models.generate_content(**asked)])

    def contents(self, ask: Ask) -> list[Any]:
        parts = [types.Part.from_text(text=ask.said)]
        if ask.image:
            parts.append(types.Part.from_bytes(data=PNG, mime_type="image/png"))
        if ask.pdf == "bytes":
            parts.append(types.Part.from_bytes(data=PDF, mime_type="application/pdf"))
        if ask.pdf == "address":
            parts.append(types.Part.from_uri(file_uri=PDF_URL, mime_type="application/pdf"))
        contents = [types.Content(role="user", parts=parts)]
        if ask.after is not None:
            results = [
                types.Part(function_response=types.FunctionResponse(id=c.id, name=c.name, response={"output": result}))
                for c, result in zip(ask.after.calls, ask.results, strict=True)
            ]
            contents += [ask.after.turn, types.Content(role="user", parts=results)]
        return contents

    async def count(self, alias: str, ask: Ask) -> int:
        counted = await self.sdk.aio.models.count_tokens(model=alias, contents=self.contents(ask))
        return counted.total_tokens or 0


def seen_in(chunks: list[types.GenerateContentResponse]) -> Seen:
    """One whole answer, or the pieces of a streamed one."""
    seen, texts, parts = Seen(), {}, []  # type: ignore[var-annotated]
    for chunk in chunks:
        for candidate in chunk.candidates or ():
            seen.logprobs |= candidate.logprobs_result is not None
            for part in (candidate.content.parts if candidate.content else None) or ():
                parts.append(part)
                if part.function_call:
                    call = part.function_call
                    seen.calls.append(Call(call.id or "", call.name or "", dict(call.args or {})))
                elif part.thought:
                    seen.reasoning += part.text or ""
                else:
                    index = candidate.index or 0
                    texts[index] = texts.get(index, "") + (part.text or "")
        if usage := chunk.usage_metadata:
            seen.input_tokens = usage.prompt_token_count
            seen.reasoning_tokens = usage.thoughts_token_count or 0
            seen.output_tokens = (usage.candidates_token_count or 0) + seen.reasoning_tokens
            seen.cache_read_tokens = usage.cached_content_token_count or 0
    seen.texts = [texts[index] for index in sorted(texts)]
    seen.text = texts.get(0, "")
    seen.turn = types.Content(role="model", parts=parts)
    return seen


class GeminiOnVertex(Gemini):
    name = "google-genai (Vertex)"

    def connected(self, gateway: Door) -> genai.Client:
        token = Credentials(token=gateway.key)  # type: ignore[no-untyped-call]
        return genai.Client(
            vertexai=True,
            project="demo",
            location="us-central1",
            credentials=token,
            http_options=types.HttpOptions(base_url=gateway.url),
        )
