"""openai-python in all its dialects, and the SDKs of those who speak its chat: Groq's and Cerebras's."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import cerebras.cloud.sdk as cerebras
import groq
import openai

from tests.matrix.asks import (
    ANSWER_SCHEMA,
    PATIENCE_S,
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
    arguments_of,
)

PDF_DATA_URL = "data:application/pdf;base64," + base64.b64encode(PDF).decode()
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
FUNCTION = {"name": TOOL, "description": "tells the weather", "parameters": TOOL_SCHEMA}


class Chat(Client):
    """Chat completions. The SDKs were generated from like descriptions, so they are asked alike."""

    name = "openai chat"
    package = "openai"
    usage_please: ClassVar[dict[str, Any]] = {"stream_options": {"include_usage": True}}

    def __init__(self, gateway: Door) -> None:
        super().__init__(gateway)
        self.sdk = self.connected(gateway)

    def connected(self, gateway: Door) -> Any:
        return openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0, timeout=PATIENCE_S)

    async def aclose(self) -> None:
        await self.sdk.close()

    async def ask(self, alias: str, ask: Ask) -> Seen:
        body = self.body(alias, ask)
        if not ask.stream:
            return self.seen(await self.sdk.chat.completions.create(**body))
        body |= self.usage_please
        return await self.streamed(await self.sdk.chat.completions.create(**body, stream=True))

    def body(self, alias: str, ask: Ask) -> dict[str, Any]:
        content: Any = ask.said
        if ask.image:
            content = [{"type": "text", "text": ask.said}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
        if ask.pdf == "address":
            raise NotOffered
        if ask.pdf:
            file = {"filename": "report.pdf", "file_data": PDF_DATA_URL}
            content = [{"type": "text", "text": ask.said}, {"type": "file", "file": file}]
        messages: list[Any] = [{"role": "user", "content": content}]
        if ask.system is not None:
            messages.insert(0, {"role": "system", "content": self.system(ask)})
        if ask.after is not None:
            messages.append(ask.after.turn)
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": result}
                for call, result in zip(ask.after.calls, ask.results, strict=True)
            ]
        body: dict[str, Any] = {"model": alias, "messages": messages, "max_tokens": ask.max_tokens}
        if ask.tools:
            body["tools"] = [{"type": "function", "function": FUNCTION}]
        if ask.forced:
            body["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
        if ask.schema:
            shape = {"name": "person", "schema": ANSWER_SCHEMA, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        if ask.reasoning:
            body |= {"reasoning_effort": "low"}
            del body["max_tokens"]
        if ask.stop is not None:
            body["stop"] = [ask.stop]
        if ask.seed is not None:
            body["seed"] = ask.seed
        if ask.n is not None:
            body["n"] = ask.n
        if ask.logprobs:
            body |= {"logprobs": True, "top_logprobs": 2}
        return body

    def system(self, ask: Ask) -> Any:
        """Gateways take Anthropic's mark in a chat's parts, as OpenRouter and LiteLLM do."""
        if not ask.cache:
            return ask.system
        return [{"type": "text", "text": ask.system, "cache_control": {"type": "ephemeral"}}]

    def seen(self, answer: Any) -> Seen:
        message = answer.choices[0].message
        seen = Seen(
            message.content or "",
            [choice.message.content for choice in answer.choices],
            _reasoning(message),
            [Call(c.id, c.function.name, arguments_of(c.function.arguments)) for c in message.tool_calls or ()],
            message.model_dump(exclude_none=True),
            logprobs=bool(answer.choices[0].logprobs and answer.choices[0].logprobs.content),
        )
        return _with_usage(seen, answer.usage)

    async def streamed(self, chunks: Any) -> Seen:
        seen, texts, calls, usage = Seen(), {}, {}, None  # type: ignore[var-annotated]
        async for chunk in chunks:
            usage = getattr(chunk, "usage", None) or getattr(getattr(chunk, "x_groq", None), "usage", None) or usage
            for choice in chunk.choices or ():
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                seen.reasoning += _reasoning(choice.delta)
                seen.logprobs |= bool(choice.logprobs and choice.logprobs.content)
                for call in choice.delta.tool_calls or ():
                    begun = calls.setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                    begun["name"] += call.function.name or ""
                    begun["arguments"] += call.function.arguments or ""
        seen.texts = [texts[index] for index in sorted(texts)]
        seen.text = texts.get(0, "")
        seen.calls = [Call(c["id"], c["name"], arguments_of(c["arguments"])) for c in calls.values()]
        functions = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls.values()
        ]
        seen.turn = {"role": "assistant", "content": seen.text or None, "tool_calls": functions}
        return _with_usage(seen, usage)


def _reasoning(message: Any) -> str:
    for name in ("reasoning_content", "reasoning"):
        if found := getattr(message, name, None):
            return str(found)
    return ""


def _with_usage(seen: Seen, usage: Any) -> Seen:
    if usage is not None:
        seen.input_tokens, seen.output_tokens = usage.prompt_tokens, usage.completion_tokens
        read = getattr(usage.prompt_tokens_details, "cached_tokens", 0) if usage.prompt_tokens_details else 0
        details = getattr(usage, "completion_tokens_details", None)
        seen.cache_read_tokens = read or 0
        seen.reasoning_tokens = (getattr(details, "reasoning_tokens", 0) or 0) if details else 0
    return seen


class AzureChat(Chat):
    """AzureOpenAI, which names the deployment in the path."""

    name = "openai chat (Azure)"

    def connected(self, gateway: Door) -> Any:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=gateway.url,
            api_key=gateway.key,
            api_version="2024-10-21",
            max_retries=0,
            timeout=PATIENCE_S,
        )


class GroqChat(Chat):
    name = "groq"
    package = "groq"
    usage_please: ClassVar[dict[str, Any]] = {"extra_body": {"stream_options": {"include_usage": True}}}

    def connected(self, gateway: Door) -> Any:
        return groq.AsyncGroq(base_url=gateway.url, api_key=gateway.key, max_retries=0, timeout=PATIENCE_S)


class CerebrasChat(Chat):
    name = "cerebras"
    package = "cerebras-cloud-sdk"
    note = (
        "Other backends' own bytes lack what Cerebras always sends (the type of each piece of a tool call), and the "
        "SDK then hands chunks over as dictionaries. Here they are read as such."
    )

    def connected(self, gateway: Door) -> Any:
        return cerebras.AsyncCerebras(
            base_url=gateway.url,
            api_key=gateway.key,
            max_retries=0,
            warm_tcp_connection=False,
            timeout=PATIENCE_S,
        )

    async def streamed(self, chunks: Any) -> Seen:
        return await super().streamed(_as_objects(chunks))


async def _as_objects(chunks: Any) -> AsyncIterator[Any]:
    async for chunk in chunks:
        yield json.loads(json.dumps(chunk.to_dict()), object_hook=_Fields)


class _Fields(dict[str, Any]):
    """A JSON object read by attribute; what it does not have is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class Completions(Chat):
    """Legacy completions: one text, no roles, no tools."""

    name = "openai completions"

    async def ask(self, alias: str, ask: Ask) -> Seen:
        unknown = (ask.tools, ask.after, ask.schema, ask.image, ask.pdf, ask.reasoning, ask.logprobs)
        if any(unknown):
            raise NotOffered
        prompt = "\n".join(filter(None, (ask.system, ask.said)))
        body: dict[str, Any] = {"model": alias, "prompt": prompt, "max_tokens": ask.max_tokens}
        more = {"stop": ask.stop, "seed": ask.seed, "n": ask.n}
        body |= {name: value for name, value in more.items() if value is not None}
        if not ask.stream:
            answer = await self.sdk.completions.create(**body)
            texts = [choice.text for choice in answer.choices]
            return _with_usage(Seen(texts[0], texts), answer.usage)
        seen, usage = Seen(), None
        body["stream_options"] = {"include_usage": True}
        async for chunk in await self.sdk.completions.create(**body, stream=True):
            usage = chunk.usage or usage
            seen.text += "".join(choice.text for choice in chunk.choices)
        return _with_usage(seen, usage)


class Responses(Chat):
    """The Responses API, its stream put together by the SDK itself."""

    name = "openai responses"

    async def ask(self, alias: str, ask: Ask) -> Seen:
        body = self.body(alias, ask)
        if ask.stream:
            async with self.sdk.responses.stream(**body) as events:
                answer = await events.get_final_response()
        else:
            answer = await self.sdk.responses.create(**body)
        thoughts = [item for item in answer.output if item.type == "reasoning"]
        calls = [item for item in answer.output if item.type == "function_call"]
        return Seen(
            answer.output_text,
            [answer.output_text],
            "".join(part.text for item in thoughts for part in [*item.summary, *(item.content or ())]),
            [Call(call.call_id, call.name, arguments_of(call.arguments)) for call in calls],
            [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in answer.output],
            answer.usage.input_tokens,
            answer.usage.output_tokens,
            answer.usage.output_tokens_details.reasoning_tokens,
            answer.usage.input_tokens_details.cached_tokens,
        )

    def body(self, alias: str, ask: Ask) -> dict[str, Any]:
        if ask.stop is not None or ask.seed is not None or ask.n is not None or ask.logprobs or ask.cache:
            raise NotOffered
        content: list[Any] = [{"type": "input_text", "text": ask.said}]
        if ask.image:
            content.append({"type": "input_image", "image_url": DATA_URL, "detail": "auto"})
        if ask.pdf == "bytes":
            content.append({"type": "input_file", "filename": "report.pdf", "file_data": PDF_DATA_URL})
        if ask.pdf == "address":
            content.append({"type": "input_file", "file_url": PDF_URL})
        items: list[Any] = [{"role": "user", "content": content}]
        if ask.after is not None:
            items += ask.after.turn
            items += [
                {"type": "function_call_output", "call_id": call.id, "output": result}
                for call, result in zip(ask.after.calls, ask.results, strict=True)
            ]
        body: dict[str, Any] = {"model": alias, "input": items, "max_output_tokens": ask.max_tokens, "store": False}
        if ask.system is not None:
            body["instructions"] = ask.system
        if ask.tools:
            body["tools"] = [{"type": "function", **FUNCTION, "strict": False}]
        if ask.forced:
            body["tool_choice"] = {"type": "function", "name": TOOL}
        if ask.schema:
            shape = {"type": "json_schema", "name": "person", "schema": ANSWER_SCHEMA, "strict": True}
            body["text"] = {"format": shape}
        if ask.reasoning:
            body["reasoning"] = {"effort": "low", "summary": "auto"}
            body["include"] = ["reasoning.encrypted_content"]
            del body["max_output_tokens"]
        return body

    async def count(self, alias: str, ask: Ask) -> int:
        body = {name: value for name, value in self.body(alias, ask).items() if name in ("model", "input", "tools")}
        return int((await self.sdk.responses.input_tokens.count(**body)).input_tokens)
