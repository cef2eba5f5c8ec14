"""google-genai, with a key as for the Gemini API and with a token as for Vertex AI; and its Interactions API."""

from __future__ import annotations

import base64
from typing import Any

from google import genai
from google.genai import errors, types
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


class Interactions(Gemini):
    """The stateless form: the steps so far go along. What is kept here is asked for in `e2e/test_interactions.py`."""

    name = "google-genai (Interactions)"

    async def ask(self, alias: str, ask: Ask) -> Seen:
        if ask.cache or ask.logprobs or ask.n is not None:
            raise NotOffered
        limit = None if ask.reasoning else ask.max_tokens
        config = {"max_output_tokens": limit, "seed": ask.seed, "stop_sequences": ask.stop and [ask.stop]}
        config["thinking_level"] = "low" if ask.reasoning else None
        asked: dict[str, Any] = {"model": alias, "input": self.steps(ask), "store": False}
        if ask.system is not None:
            asked["system_instruction"] = ask.system
        if ask.tools:
            tool = {"type": "function", "name": TOOL, "description": "tells the weather", "parameters": TOOL_SCHEMA}
            asked["tools"] = [tool]
        if ask.forced:
            config["tool_choice"] = {"allowed_tools": {"mode": "any", "tools": [TOOL]}}
        if ask.schema:
            form = {"type": "text", "mime_type": "application/json", "schema": ANSWER_SCHEMA}
            asked["response_format"] = form
        asked["generation_config"] = {name: value for name, value in config.items() if value is not None}
        if not ask.stream:
            return _interacted(await self.sdk.aio.interactions.create(**asked))
        last: Any = None
        pieces = []
        async for event in await self.sdk.aio.interactions.create(**asked, stream=True):
            if event.event_type == "error":
                raise errors.APIError(500, {"error": {"message": event.error.message, "status": event.error.code}})
            if event.event_type == "step.delta" and event.delta.type == "text":
                pieces.append(event.delta.text)
            last = event
        seen = _interacted(last.interaction)
        assert seen.text == "".join(pieces)
        return seen

    def steps(self, ask: Ask) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": ask.said}]
        if ask.image:
            content.append({"type": "image", "mime_type": "image/png", "data": base64.b64encode(PNG).decode()})
        if ask.pdf:
            where = {"data": base64.b64encode(PDF).decode()} if ask.pdf == "bytes" else {"uri": PDF_URL}
            content.append({"type": "document", "mime_type": "application/pdf", **where})
        steps: list[dict[str, Any]] = [{"type": "user_input", "content": content}]
        if ask.after is not None:
            steps += ask.after.turn
            steps += [
                {"type": "function_result", "call_id": call.id, "name": call.name, "result": result}
                for call, result in zip(ask.after.calls, ask.results, strict=True)
            ]
        return steps

    async def count(self, alias: str, ask: Ask) -> int:
        raise NotOffered


def _interacted(answer: Any) -> Seen:
    steps = answer.steps or []
    texts = [each.text for step in steps if step.type == "model_output" for each in step.content if each.type == "text"]
    thoughts = [each.text for step in steps if step.type == "thought" for each in step.summary or ()]
    seen = Seen("".join(texts), ["".join(texts)], "".join(thoughts))
    seen.calls = [Call(step.id, step.name, dict(step.arguments)) for step in steps if step.type == "function_call"]
    seen.turn = [step.model_dump(mode="json", exclude_none=True) for step in steps]
    usage = answer.usage
    seen.input_tokens, seen.reasoning_tokens = usage.total_input_tokens, usage.total_thought_tokens
    seen.output_tokens, seen.cache_read_tokens = (
        usage.total_output_tokens + seen.reasoning_tokens,
        usage.total_cached_tokens,
    )
    return seen
